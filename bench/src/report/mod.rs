//! What a measurement yields, whoever measured. All that prints, plots or compares works on a [`Report`].

use serde::{Deserialize, Serialize};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// One run of one of the tools, as its JSON has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Report {
    /// Of the format: [`VERSION`].
    pub version: u32,
    /// What was measured, for a heading: "Pipeline", "Wire", "Comparison".
    pub title: String,
    /// Where, when and how: machine, kernel, drivers, bound modes, versions, command line; in the order of
    /// printing.
    pub context: Vec<(String, String)>,
    /// The figures.
    pub measures: Vec<Measure>,
    /// What is not a figure but a line.
    pub curves: Vec<Curve>,
    /// What limits the figures, what was skipped, and why: whole sentences.
    pub notes: Vec<String>,
}

/// One quantity of one subject, once a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Measure {
    /// What was measured: "penstock auto", "open, 64 B".
    pub subject: String,
    /// Which of its quantities: "TCP, 1 stream".
    pub quantity: String,
    /// In which unit: "Gbit/s"; empty for a ratio.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
    /// Every sample, in the order of the rounds. Never empty, all finite.
    pub samples: Vec<f64>,
}

/// Which way a quantity is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    /// As throughput.
    Higher,
    /// As latency.
    Lower,
}

/// A line of a plot: curves of the same quantity are drawn together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Curve {
    /// What was measured.
    pub subject: String,
    /// Which plot it belongs to: "Latency at 50 % of PDR".
    pub quantity: String,
    /// Across.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// Pairs of x and y, x rising.
    pub points: Vec<(f64, f64)>,
}

/// An axis of a plot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Axis {
    /// "Offered load".
    pub label: String,
    /// "kpps"; empty where there is none.
    pub unit: String,
    /// How values are laid out.
    pub scale: Scale,
}

/// How the values of an axis are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm; all are above 0.
    Logarithmic,
    /// Percentiles as the tail wants them, by 1 / (1 - p): 0, 90, 99, 99.9 are evenly spaced.
    Percentile,
}
