//! Metrics: the state of a program as an OpenMetrics page, and the small web server that serves it.
//!
//! What is served is a list of [`Family`]s, each of which finds its samples in the state. [`table`] reads a page back,
//! so that each program's test can compare the list with its documentation.

pub mod http;
pub mod table;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
pub use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The media type of a page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one name, computed from a state `S`.
#[derive(Debug)]
pub struct Family<S: 'static> {
    /// Without the `_total` of a counter or the `_info` of an info, which belong to the names of samples only.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricType,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means. Without a backslash or a line feed.
    pub help: &'static str,
    /// Its samples. No two may have the same labels.
    pub samples: fn(&S) -> Vec<Sample>,
}

/// The values of a family's labels, in the order of their names, and the sample's own value.
pub type Sample = (Vec<String>, Value);

/// The value of a sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter, a gauge or an info.
    Number(f64),
    /// Of a histogram.
    Histogram {
        /// The sum of all that was counted.
        sum: f64,
        /// The upper bound of each bucket, and how many values lie above the bound before and not above this one. The
        /// last bound counts as infinite.
        buckets: Vec<(f64, u64)>,
    },
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

/// The only sample of a family without labels.
#[must_use]
pub fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value.into())]
}

/// 1 for true, 0 for false.
#[must_use]
pub fn truth(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

/// The page of these families in this state.
///
/// # Errors
/// Never in practice: the encoder writes to a string.
pub fn page<S: fmt::Debug + Send + Sync + 'static>(
    families: &'static [Family<S>],
    state: S,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { families, state }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page<S: 'static> {
    families: &'static [Family<S>],
    state: S,
}

impl<S: fmt::Debug + Send + Sync + 'static> Collector for Page<S> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.families {
            let mut encoder = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (values, value) in (family.samples)(&self.state) {
                debug_assert_eq!(values.len(), family.labels.len(), "{}", family.name);
                let labels: Vec<(&str, String)> = family.labels.iter().copied().zip(values).collect();
                match (family.kind, labels.is_empty()) {
                    (MetricType::Info, _) => encoder.encode_info(&labels)?,
                    (kind, true) => encode(&mut encoder, kind, value)?,
                    (kind, false) => encode(&mut encoder.encode_family(&labels)?, kind, value)?,
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: Value) -> fmt::Result {
    match value {
        Value::Number(number) if matches!(kind, MetricType::Counter) => {
            encoder.encode_counter::<NoLabelSet, _, f64>(&number, None)
        }
        Value::Number(number) => encoder.encode_gauge(&number),
        Value::Histogram { sum, mut buckets } => {
            if let Some((last, _)) = buckets.last_mut() {
                *last = f64::INFINITY;
            }
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_ends_in_infinity() {
        const FAMILIES: &[Family<()>] = &[Family {
            name: "size",
            kind: MetricType::Histogram,
            labels: &["worker"],
            help: "Sizes",
            samples: |()| {
                vec![(vec!["0".into()], Value::Histogram { sum: 9.0, buckets: vec![(1.0, 2), (4.0, 0), (8.0, 1)] })]
            },
        }];
        let page = page(FAMILIES, ()).unwrap();
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "size_sum{worker=\"0\"} 9.0",
                "size_count{worker=\"0\"} 3",
                "size_bucket{le=\"1.0\",worker=\"0\"} 2",
                "size_bucket{le=\"4.0\",worker=\"0\"} 2",
                "size_bucket{le=\"+Inf\",worker=\"0\"} 3",
            ]
        );
    }
}
