//! What to measure, with which packets.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::packet::{Addresses, BuildError, Flows, Mix, Template};
use crate::search::Limits;

/// Parts of the partial drop rate at which latency is measured, in percent.
pub(super) const LATENCY_LOADS: [u64; 3] = [10, 50, 90];

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The throughput of RFC 2544: a binary search, one trial a load, no loss
    Throughput,
    /// MLRsearch of RFC 9971: non-drop rate, and partial drop rate at 0.5 % loss
    Mlr,
    /// Latency at 10, 50 and 90 % of the partial drop rate
    Latency,
    /// The rate that comes through when the device is flooded
    Maximum,
    /// The tool itself, without a device: its generator beside a bare AF_XDP transmit loop
    Tool,
}

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of what sizes.
    pub mixes: Vec<Mix>,
    /// By which methods.
    pub kinds: Vec<Kind>,
    /// Instead of all these: one trial at this rate.
    pub fixed: Option<NonZeroU64>,
    /// Goal Final Trial Duration, also that of RFC 2544 and of a fixed rate.
    pub trial: Duration,
    /// Goal Duration Sum; latency is measured as long.
    pub duration_sum: Duration,
    /// Goal Exceed Ratio.
    pub exceed_ratio: f64,
    /// Goal Width, of the upper bound.
    pub width: f64,
    /// Min and Max Load; Max Load is lowered to what the generator sends when unpaced.
    pub limits: Limits,
    /// How often everything is measured.
    pub rounds: u32,
}

/// What the packets look like.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// One a direction.
    pub addresses: Vec<Addresses>,
    /// In each direction.
    pub flows: Flows,
}

impl Traffic {
    /// The packets of a mix, one template a direction.
    pub fn templates(&self, mix: &Mix) -> Result<Vec<Template>, BuildError> {
        self.addresses.iter().map(|addresses| Template::new(addresses, mix, self.flows)).collect()
    }
}

impl Plan {
    /// How often progress will be told; the tool's own ceiling is measured, or not.
    pub fn steps(&self, ceiling: bool) -> u64 {
        let wants = |kind| u64::from(self.kinds.contains(&kind));
        let searches = match self.fixed {
            Some(_) => 1,
            None => {
                let latency = wants(Kind::Latency);
                1 + wants(Kind::Tool)
                    + wants(Kind::Throughput)
                    + wants(Kind::Mlr).max(latency)
                    + latency * LATENCY_LOADS.len() as u64
            }
        };
        self.mixes.len() as u64 * (u64::from(ceiling) + u64::from(self.rounds) * searches)
    }
}
