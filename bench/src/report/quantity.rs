//! The figures of one kind, of all subjects: what stands in one table and may be drawn in one plot.

use super::{Better, Measure};

/// The unit of what was counted.
const PACKETS: &str = "packets";
/// How the unit of a core's cycles ends.
const CYCLES: &str = "cycles/packet";

/// The measures of one quantity, in the order of the report.
#[derive(Clone, Debug)]
pub struct Quantity<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its unit, empty for a ratio.
    pub unit: &'a str,
    /// Which way it is better.
    pub better: Better,
    /// One a subject.
    pub measures: Vec<&'a Measure>,
}

impl Quantity<'_> {
    /// Is it worth a plot? That needs two subjects that differ; and what was counted, and cycles, explain the rates
    /// and times beside them.
    pub fn is_drawn(&self) -> bool {
        let explains = self.unit == PACKETS || self.unit.ends_with(CYCLES);
        self.measures.len() > 1 && !self.is_constant() && !explains
    }

    /// The rows of its table, each with its name: one a subject, or one for all if they are the same.
    pub fn rows(&self) -> Vec<(String, &Measure)> {
        match &self.measures[..] {
            [first, _, ..] if self.is_constant() => vec![(format!("all {}", self.measures.len()), *first)],
            measures => measures.iter().map(|measure| (measure.subject.clone(), *measure)).collect(),
        }
    }

    /// Have all subjects the same value in all of their rounds, and equally many of these?
    fn is_constant(&self) -> bool {
        let mut measures = self.measures.iter();
        let Some((first, value)) = measures.next().and_then(|first| Some((first, *first.samples.first()?))) else {
            return true;
        };
        first.samples.iter().all(|sample| *sample == value) && measures.all(|other| other.samples == first.samples)
    }

    /// For a heading: "TCP, 1 stream, Gbit/s".
    pub fn heading(&self) -> String {
        match self.unit {
            "" => self.name.into(),
            unit => format!("{}, {unit}", self.name),
        }
    }
}
