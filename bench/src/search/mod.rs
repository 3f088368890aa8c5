//! Searches for the load a device carries, without any network: they ask a [`Measurer`] for trials.
//!
//! [`throughput`] is the search of RFC 2544, [`mlrsearch`] that of RFC 9971; both yield a [`GoalResult`].
//! Their terms are those of the RFCs. A load is packets a second in each direction.
//!
//! What the tool itself could not do must not be held against the device. So a trial has *two* loss ratios:
//! what was lost, and the part that nothing but the device can have lost. A trial that shows too much of the
//! first and not too much of the second is **disputed**: it is neither high-loss nor low-loss, and when
//! trials at a load go on being disputed, that load is the tool's ceiling, and the result says so.

mod binary;
mod goal;
mod mlrsearch;
#[cfg(test)]
mod simulated;

pub use binary::throughput;
pub use goal::{Class, Goal};
pub use mlrsearch::mlrsearch;

use std::time::Duration;

/// Trials at one load that may be disputed before the load is held to be above the tool's ceiling. The
/// first may have met a moment when the machine did something else.
const MOST_DISPUTED: usize = 3;

/// Measures one trial.
pub trait Measurer {
    /// Why a trial could not be done at all; it ends the search.
    type Error;

    /// Offers `load` for `duration`.
    fn measure(&mut self, load: u64, duration: Duration) -> Result<Trial, Self::Error>;
}

/// The result of one trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// Intended, packets a second.
    pub load: u64,
    /// For how long; also the Trial Effective Duration.
    pub duration: Duration,
    /// Trial Loss Ratio, 0 to 1.
    pub loss: f64,
    /// The part of it that the tool cannot have caused.
    pub certain_loss: f64,
    /// Was the intended load offered?
    pub offered: bool,
}

/// Between which loads a search takes place.
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
    /// From this load on the tool is not sure of itself: the device may carry more.
    Ceiling(u64),
    /// Too many trials; the bounds are further apart than wanted.
    Trials,
}

impl Trial {
    /// Is it high-loss, low-loss, or disputed (`None`) for this Goal Loss Ratio?
    pub fn is_high_loss(&self, goal_loss: f64) -> Option<bool> {
        match () {
            () if !self.offered => None,
            () if self.loss <= goal_loss => Some(false),
            () if self.certain_loss > goal_loss => Some(true),
            () => None,
        }
    }
}
