//! The results of a measurement, whichever tool measured. Everything that prints, plots or compares works on a
//! [`Report`].
//!
//! [`json`] is its file, and [`check`] the conditions for such a file; [`table`], [`csv`] and [`html`] show it,
//! [`plot`] draws it, [`verdict`] compares two. A report may come from anywhere: only [`text`] shows its texts.

pub mod check;
pub mod csv;
pub mod html;
pub mod json;
pub mod plot;
mod quantity;
pub mod table;
pub mod text;
pub mod verdict;

pub use quantity::Quantity;
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// One run of one of the tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Report {
    /// The version of the format: [`VERSION`].
    pub version: u32,
    /// What was measured, for a heading: "Pipeline", "Wire", "Comparison".
    pub title: String,
    /// Where, when and how it was measured: machine, kernel, drivers, bound modes, versions, command line; in the order
    /// in which they are printed.
    pub context: Vec<(String, String)>,
    /// The figures.
    pub measures: Vec<Measure>,
    /// The curves.
    pub curves: Vec<Curve>,
    /// What limits the figures, what was skipped, and why, in whole sentences.
    pub notes: Vec<String>,
}

/// One quantity of one subject, with a sample per round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Measure {
    /// What was measured: "penstock auto", "open, 64 B".
    pub subject: String,
    /// The quantity: "TCP, 1 stream".
    pub quantity: String,
    /// The unit: "Gbit/s"; empty for a ratio.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
    /// Every sample, in the order of the rounds. Never empty, all finite.
    pub samples: Vec<f64>,
    /// The round of each sample, from 1. If empty, no round is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<usize>,
}

/// Which direction of a quantity is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    /// As for throughput.
    Higher,
    /// As for latency.
    Lower,
}

/// A line of a plot: curves of the same quantity are drawn together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Curve {
    /// The subject.
    pub subject: String,
    /// Which plot it belongs to: "Latency at 50 % of PDR".
    pub quantity: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Pairs of x and y, with x ascending.
    pub points: Vec<(f64, f64)>,
}

/// An axis of a plot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Axis {
    /// "Offered load".
    pub label: String,
    /// "kpps"; empty if it has none.
    pub unit: String,
    /// How values are laid out.
    pub scale: Scale,
}

/// The scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// Linear.
    Linear,
    /// Logarithmic; all values are above 0.
    Logarithmic,
    /// Percentiles by 1 / (1 - p), which shows the tail: 0, 90, 99, 99.9 are evenly spaced. Values are in percent, from
    /// 0 to 100; 100 is the maximum and is drawn at the edge.
    Percentile,
}

/// The curves of one plot, in the order of the report.
#[derive(Clone, Debug)]
pub struct Plot<'a> {
    /// Its name.
    pub name: &'a str,
    /// One per subject; all have the axes of the first.
    pub curves: Vec<&'a Curve>,
}

/// The median of some samples, and their spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of them are below it.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Report {
    /// A report without figures.
    pub fn new(title: &str, context: Vec<(String, String)>) -> Report {
        Report {
            version: VERSION,
            title: title.into(),
            context,
            measures: Vec::new(),
            curves: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The measures by quantity; measures of different units are different quantities.
    pub fn quantities(&self) -> Vec<Quantity<'_>> {
        let mut quantities: Vec<Quantity<'_>> = Vec::new();
        for measure in &self.measures {
            let Measure { quantity: name, unit, better, .. } = measure;
            match quantities.iter_mut().find(|q| (q.name, q.unit, q.better) == (name, unit, *better)) {
                Some(quantity) => quantity.measures.push(measure),
                None => quantities.push(Quantity { name, unit, better: *better, measures: vec![measure] }),
            }
        }
        quantities
    }

    /// The curves by plot; curves with different axes are different plots.
    pub fn plots(&self) -> Vec<Plot<'_>> {
        let mut plots: Vec<Plot<'_>> = Vec::new();
        for curve in &self.curves {
            let same = |plot: &&mut Plot<'_>| {
                plot.name == curve.quantity && plot.curves.iter().all(|c| (&c.x, &c.y) == (&curve.x, &curve.y))
            };
            match plots.iter_mut().find(same) {
                Some(plot) => plot.curves.push(curve),
                None => plots.push(Plot { name: &curve.quantity, curves: vec![curve] }),
            }
        }
        plots
    }

    /// The samples of this subject and quantity.
    pub fn samples(&self, subject: &str, quantity: &str) -> Option<&[f64]> {
        let measure = self.measures.iter().find(|m| m.subject == subject && m.quantity == quantity)?;
        Some(&measure.samples)
    }
}

impl Measure {
    /// A measure with these samples; it needs at least one before it is written.
    pub fn new(
        subject: impl Into<String>,
        quantity: impl Into<String>,
        unit: impl Into<String>,
        better: Better,
        samples: Vec<f64>,
    ) -> Measure {
        let (subject, quantity, unit) = (subject.into(), quantity.into(), unit.into());
        Measure { subject, quantity, unit, better, samples, rounds: Vec::new() }
    }

    /// The same, for these rounds, counted from 1: one per sample.
    #[must_use]
    pub fn of_rounds(self, rounds: Vec<usize>) -> Measure {
        let rounds = if rounds.iter().copied().eq(1..=rounds.len()) { Vec::new() } else { rounds };
        Measure { rounds, ..self }
    }

    /// Round and value of each sample.
    pub fn by_round(&self) -> impl Iterator<Item = (usize, f64)> {
        let round = |n| self.rounds.get(n).copied().unwrap_or(n + 1);
        self.samples.iter().enumerate().map(move |(n, sample)| (round(n), *sample))
    }

    /// The median of the samples, and their spread.
    pub fn spread(&self) -> Spread {
        Spread::of(&self.samples)
    }
}

impl Axis {
    /// An axis with this label and unit.
    pub fn new(label: &str, unit: &str, scale: Scale) -> Axis {
        Axis { label: label.into(), unit: unit.into(), scale }
    }
}

impl Spread {
    /// The spread of these samples.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(samples: &[f64]) -> Spread {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Spread { median, least: sorted[0], most: sorted[sorted.len() - 1] }
    }
}

impl Better {
    /// In words.
    pub fn sentence(self) -> &'static str {
        match self {
            Better::Higher => "higher is better",
            Better::Lower => "lower is better",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        assert_eq!(Spread::of(&[4.0, 1.0, 9.0]), Spread { median: 4.0, least: 1.0, most: 9.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 9.0, 2.0]).median, 3.0);
        assert_eq!(Spread::of(&[-1.0]), Spread { median: -1.0, least: -1.0, most: -1.0 });
    }

    #[test]
    fn measures_and_curves_group_in_the_order_of_the_report() {
        let report = sample::report();
        let headings: Vec<String> = report.quantities().iter().map(Quantity::heading).collect();
        assert_eq!(headings, ["TCP, 1 stream, Gbit/s", "idle ping, µs", "TCP, 1 stream, of kernel"]);
        assert_eq!(report.quantities()[0].measures.len(), 3);
        let plots: Vec<(&str, usize)> = report.plots().iter().map(|p| (p.name, p.curves.len())).collect();
        assert_eq!(plots, [("Latency", 2), ("Loss", 1)]);
    }
}

/// A small report for tests.
#[cfg(test)]
pub mod sample {
    use super::*;

    /// Three subjects, three quantities, two plots.
    pub fn report() -> Report {
        let measure = |subject, quantity, unit, better, samples: &[f64]| {
            Measure::new(subject, quantity, unit, better, samples.into())
        };
        let axis = Axis::new;
        let (tcp, ping, ratio) = ("TCP, 1 stream", "idle ping", "TCP, 1 stream, of kernel");
        let (up, down) = (Better::Higher, Better::Lower);
        let latency = |subject: &str, factor: f64| Curve {
            subject: subject.into(),
            quantity: "Latency".into(),
            x: axis("percentile", "%", Scale::Percentile),
            y: axis("latency", "µs", Scale::Logarithmic),
            points: [(0.0, 20.0), (50.0, 31.0), (90.0, 44.0), (99.0, 90.0), (99.9, 700.0), (100.0, 2100.0)]
                .map(|(x, y)| (x, y * factor))
                .into(),
        };
        Report {
            measures: vec![
                measure("kernel", tcp, "Gbit/s", up, &[11.9, 8.83, 13.47]),
                measure("kernel", ping, "µs", down, &[64.0, 60.0, 74.0]),
                measure("penstock auto", tcp, "Gbit/s", up, &[2.77, 2.57, 3.64]),
                measure("penstock auto", ping, "µs", down, &[318.0, 276.0, 339.0]),
                measure("penstock auto", ratio, "", up, &[0.232, 0.291, 0.27]),
                measure("wireguard-go", tcp, "Gbit/s", up, &[0.4, 0.34, 0.46]),
            ],
            curves: vec![
                latency("kernel", 1.0),
                latency("penstock auto", 3.5),
                Curve {
                    subject: "penstock auto".into(),
                    quantity: "Loss".into(),
                    x: axis("offered load", "kpps", Scale::Linear),
                    y: axis("loss", "%", Scale::Linear),
                    points: vec![(50.0, 0.0), (100.0, 0.02), (150.0, 1.5), (200.0, 21.0)],
                },
            ],
            notes: vec!["nebula was skipped: nebula is not on this machine.".into()],
            ..Report::new("Comparison", vec![("kernel".into(), "6.18.0".into()), ("load".into(), "0.1 0.2 0.3".into())])
        }
    }
}
