//! Searches for the load that a device carries. They use no network: they request trials from a [`Measurer`].
//!
//! [`mlrsearch`] is the search of RFC 9971, with [`Goal::rfc2544`] that of RFC 2544. The terms are the RFCs'. A load is
//! packets a second in each direction.
//!
//! The device must not be blamed for what the tool itself could not do. So a trial has *two* loss ratios: what was
//! lost, and the part of it that only the device can have lost. A trial with too much of the first but not of the
//! second is **disputed**: it is neither high-loss nor low-loss. If trials at a load keep being disputed, that load is
//! the tool's ceiling, and the result says so.

mod goal;
mod mlrsearch;
#[cfg(test)]
mod simulated;

pub use goal::{Class, Goal};
pub use mlrsearch::mlrsearch;

use std::time::Duration;

/// How many trials at one load may be disputed before the load counts as above the tool's ceiling. The first may have
/// coincided with other work on the machine.
const MOST_DISPUTED: usize = 3;

/// Measures one trial.
pub trait Measurer {
    /// Why a trial could not be done; this ends the search.
    type Error;

    /// Offers `load` for `duration`.
    fn measure(&mut self, load: u64, duration: Duration) -> Result<Trial, Self::Error>;
}

/// The result of one trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The intended load, in packets a second.
    pub load: u64,
    /// Its duration; also the Trial Effective Duration.
    pub duration: Duration,
    /// Trial Loss Ratio, 0 to 1.
    pub loss: f64,
    /// The part of it that the tool cannot have caused.
    pub certain_loss: f64,
    /// Whether the intended load was offered.
    pub offered: bool,
}

/// The range of loads of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Min Load, above 0.
    pub min: u64,
    /// Max Load.
    pub max: u64,
}

/// What a search found for one goal.
#[derive(Debug, Clone, PartialEq)]
pub struct GoalResult {
    /// Relevant Lower Bound.
    pub lower: Option<u64>,
    /// Relevant Upper Bound.
    pub upper: Option<u64>,
    /// Conditional Throughput at the lower bound, packets a second.
    pub conditional_throughput: Option<f64>,
    /// Why the search ended.
    pub end: End,
}

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The bounds are close enough: a Regular Goal Result.
    Regular,
    /// Max Load is a lower bound: the device may carry more.
    MaxLoad,
    /// Min Load is an upper bound: the device carries less.
    MinLoad,
    /// From this load on the tool itself is the limit: the device may carry more.
    Ceiling(u64),
    /// Too many trials; the bounds are further apart than requested.
    Trials,
}

impl Trial {
    /// Whether it is high-loss or low-loss for this Goal Loss Ratio; `None` if disputed.
    pub fn is_high_loss(&self, goal_loss: f64) -> Option<bool> {
        match () {
            () if !self.offered => None,
            () if self.loss <= goal_loss => Some(false),
            () if self.certain_loss > goal_loss => Some(true),
            () => None,
        }
    }
}
