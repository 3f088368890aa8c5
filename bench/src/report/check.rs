//! Conditions that a report must meet before it is written, and after it is read.

use std::collections::HashSet;

use super::{Axis, Curve, Measure, Report, Scale, VERSION};

/// The most samples of a measure: a comparison looks at every pair of an old and a new sample.
pub const MOST_SAMPLES: usize = 1000;
/// The most measures, curves, notes and lines of context, each: displays search all of them for each.
pub const MOST_ENTRIES: usize = 10_000;
/// The largest value of a quantity: thirty years in nanoseconds.
pub const MOST_VALUE: f64 = 1e18;

/// What is wrong with a report, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

fn refuse<T>(sentence: String) -> Result<T, Invalid> {
    Err(Invalid(sentence))
}

impl Report {
    /// Checks everything that the types promise.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.version != VERSION {
            return refuse(format!(
                "it has version {} of the format, this program reads version {VERSION}",
                self.version
            ));
        }
        let Report { context, measures, curves, notes, .. } = self;
        let entries = [
            ("lines of context", context.len()),
            ("measures", measures.len()),
            ("curves", curves.len()),
            ("notes", notes.len()),
        ];
        if let Some((what, _)) = entries.into_iter().find(|(_, count)| *count > MOST_ENTRIES) {
            return refuse(format!("it has more than {MOST_ENTRIES} {what}"));
        }
        let mut seen = HashSet::new();
        for measure in &self.measures {
            measure.check()?;
            if !seen.insert((&measure.subject, &measure.quantity)) {
                return refuse(format!("{} appears twice", measure.name()));
            }
        }
        self.curves.iter().try_for_each(Curve::check)
    }
}

impl Measure {
    fn name(&self) -> String {
        format!("the measure \"{}\" of \"{}\"", self.quantity, self.subject)
    }

    fn check(&self) -> Result<(), Invalid> {
        let Measure { samples, rounds, .. } = self;
        let rising = rounds.first() != Some(&0) && rounds.is_sorted_by(|a, b| a < b);
        let breach = if samples.is_empty() {
            " has no samples".into()
        } else if samples.len() > MOST_SAMPLES {
            format!(" has more than {MOST_SAMPLES} samples")
        } else if !samples.iter().all(|sample| is_sensible(*sample)) {
            no_number()
        } else if !rising || !rounds.is_empty() && rounds.len() != samples.len() {
            " has rounds that are not one per sample, ascending from 1 or more".into()
        } else {
            return Ok(());
        };
        refuse(self.name() + &breach)
    }
}

impl Curve {
    fn check(&self) -> Result<(), Invalid> {
        let name = || format!("the curve \"{}\" of \"{}\"", self.quantity, self.subject);
        if self.points.is_empty() {
            return refuse(format!("{} has no points", name()));
        }
        for &(x, y) in &self.points {
            if !is_sensible(x) || !is_sensible(y) {
                return refuse(name() + &no_number());
            }
            for (axis, value) in [(&self.x, x), (&self.y, y)] {
                if !axis.shows(value) {
                    return refuse(format!("{} has a value that its axis \"{}\" cannot show", name(), axis.label));
                }
            }
        }
        match self.points.is_sorted_by(|a, b| a.0 <= b.0) {
            true => Ok(()),
            false => refuse(format!("{} has points whose x decreases", name())),
        }
    }
}

impl Axis {
    fn shows(&self, value: f64) -> bool {
        match self.scale {
            Scale::Linear => true,
            Scale::Logarithmic => value > 0.0,
            Scale::Percentile => (0.0..=100.0).contains(&value),
        }
    }
}

fn no_number() -> String {
    format!(" has a value that is not a number between -{MOST_VALUE:e} and {MOST_VALUE:e}")
}

fn is_sensible(value: f64) -> bool {
    value.abs() <= MOST_VALUE
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn what_breaks_a_promise_is_refused() {
        type Breach = fn(&mut Report);
        let breaches: [(Breach, &str); 15] = [
            (|r| r.version = 2, "version 2"),
            (|r| r.notes = vec![String::new(); MOST_ENTRIES + 1], "more than 10000 notes"),
            (|r| r.context = vec![(String::new(), String::new()); MOST_ENTRIES + 1], "more than 10000 lines"),
            (|r| r.measures[0].samples.clear(), "no samples"),
            (|r| r.measures[0].samples = vec![1.0; MOST_SAMPLES + 1], "more than 1000"),
            (|r| r.measures[0].samples[1] = f64::NAN, "not a number between"),
            (|r| r.measures[0].samples[1] = 1e19, "not a number between"),
            (|r| r.measures[0].rounds = vec![1, 2], "one per sample"),
            (|r| r.measures[0].rounds = vec![1, 3, 3], "one per sample"),
            (|r| r.measures[0].rounds = vec![0, 1, 2], "one per sample"),
            (|r| r.measures[2] = r.measures[0].clone(), "appears twice"),
            (|r| r.curves[0].points[2].0 = 10.0, "whose x decreases"),
            (|r| r.curves[0].points[5].0 = 100.1, "axis \"percentile\""),
            (|r| r.curves[0].points[5].1 = 0.0, "axis \"latency\""),
            (|r| r.curves[2].points[0].1 = f64::NEG_INFINITY, "not a number between"),
        ];
        assert_eq!(sample::report().check(), Ok(()));
        for (breach, sentence) in breaches {
            let mut report = sample::report();
            breach(&mut report);
            let said = report.check().expect_err(sentence).to_string();
            assert!(said.contains(sentence), "{said}");
        }
    }
}
