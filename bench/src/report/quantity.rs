//! The figures of one quantity of all subjects: what is shown in one table and may be drawn in one plot.

use super::{Better, Measure};

/// The unit of counts.
const PACKETS: &str = "packets";
/// The unit of a core's cycles.
const CYCLES: &str = "cycles/packet";

/// The measures of one quantity, in the order of the report.
#[derive(Clone, Debug)]
pub struct Quantity<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its unit, empty for a ratio.
    pub unit: &'a str,
    /// Which direction is better.
    pub better: Better,
    /// One per subject.
    pub measures: Vec<&'a Measure>,
}

impl Quantity<'_> {
    /// Whether it is worth a plot. That needs two subjects that differ; counts and cycles only explain the rates and
    /// times beside them.
    pub fn is_drawn(&self) -> bool {
        let explains = [PACKETS, CYCLES].contains(&self.unit);
        self.measures.len() > 1 && !self.is_constant() && !explains
    }

    /// The rows of its table, each with its name: one per subject, or one for all if they are the same.
    pub fn rows(&self) -> Vec<(String, &Measure)> {
        match &self.measures[..] {
            [first, _, ..] if self.is_constant() => vec![(format!("all {}", self.measures.len()), *first)],
            measures => measures.iter().map(|measure| (measure.subject.clone(), *measure)).collect(),
        }
    }

    /// Whether all subjects have the same value in all rounds, and equally many rounds.
    fn is_constant(&self) -> bool {
        let mut measures = self.measures.iter();
        let Some((first, value)) = measures.next().and_then(|first| Some((first, *first.samples.first()?))) else {
            return true;
        };
        first.samples.iter().all(|sample| *sample == value) && measures.all(|other| other.samples == first.samples)
    }

    /// Its heading: "TCP, 1 stream, Gbit/s".
    pub fn heading(&self) -> String {
        match self.unit {
            "" => self.name.into(),
            unit => format!("{}, {unit}", self.name),
        }
    }
}
