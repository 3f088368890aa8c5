//! Histograms of times.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer times are recorded as this one: a trial waits for late packets only for seconds.
const LONGEST: Duration = Duration::from_secs(100);
/// The precision: 0.1 % of each value.
const DIGITS: u8 = 3;

/// A percentile is reported only if this many samples are beyond it.
const BEYOND: f64 = 5.0;

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    // Only contradictory bounds are refused.
    Histogram::new_with_max(LONGEST.as_nanos() as u64, DIGITS).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Records a time of `nanoseconds`, `count` times.
#[inline]
pub fn record(histogram: &mut Histogram<u64>, nanoseconds: u64, count: u64) {
    histogram.saturating_record_n(nanoseconds, count);
}

/// Whether enough samples are beyond a percentile for it to be more than chance.
pub fn supports(histogram: &Histogram<u64>, percentile: f64) -> bool {
    // 100 - 99.9 is a little less than 0.1 in floating point.
    histogram.len() as f64 * (100.0 - percentile) / 100.0 + 1e-6 >= BEYOND
}

/// The percentile curve of a histogram as (percentile, microseconds), as far into the tail as the number of samples
/// supports, so that the last point stands for several samples.
pub fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    /// Points in each decade of the tail: enough for a smooth line.
    const STEPS: [f64; 5] = [1.0, 0.7, 0.5, 0.3, 0.2];
    let mut points = vec![];
    let mut tail = 100.0;
    while supports(histogram, 100.0 - tail) {
        for step in STEPS {
            let percentile = 100.0 - tail * step;
            // A logarithmic axis has no 0.
            let nanoseconds = histogram.value_at_percentile(percentile).max(1);
            points.push((percentile, nanoseconds as f64 / 1e3));
        }
        tail /= 10.0;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_ends_where_samples_do() {
        let mut times = histogram();
        for millis in 1..=1000 {
            record(&mut times, millis * 1_000_000, 1);
        }
        let points = percentiles(&times);
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{points:?}");
        let at = |percentile: f64| points.iter().find(|(p, _)| (p - percentile).abs() < 1e-9).map(|(_, v)| *v);
        assert!((at(50.0).expect("there") / 500e3 - 1.0).abs() < 0.002);
        assert!((at(99.0).expect("there") / 990e3 - 1.0).abs() < 0.002);
        assert!(points.last().expect("some").0 < 99.91);
        assert!(percentiles(&histogram()).is_empty());
    }

    #[test]
    fn five_samples_beyond_are_enough() {
        for (percentile, enough) in [(50.0, 10), (90.0, 50), (99.0, 500), (99.9, 5000), (99.99, 50_000)] {
            let mut times = histogram();
            record(&mut times, 7, enough - 1);
            assert!(!supports(&times, percentile), "{percentile}");
            record(&mut times, 7, 1);
            assert!(supports(&times, percentile), "{percentile}");
        }
    }

    #[test]
    fn what_is_longer_than_the_longest_still_counts() {
        let mut times = histogram();
        record(&mut times, u64::MAX, 2);
        assert_eq!(times.len(), 2);
        assert!(times.max() >= LONGEST.as_nanos() as u64);
    }
}
