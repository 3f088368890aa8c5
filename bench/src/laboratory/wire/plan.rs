//! What to measure, and with which packets.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::laboratory::search::Limits;
use crate::traffic::packet::{Addresses, BuildError, Flows, Mix, Template};

/// The loads at which latency is measured, in percent of the partial drop rate.
pub(super) const LATENCY_LOADS: [u64; 3] = [10, 50, 90];

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The throughput of RFC 2544: one trial per load, no loss
    Throughput,
    /// MLRsearch of RFC 9971: non-drop rate, and partial drop rate at 0.5 % loss
    Mlr,
    /// Latency at 10, 50 and 90 % of the partial drop rate
    Latency,
    /// The rate received when the device is flooded
    Maximum,
    /// The tool itself, without a device: its generator compared with a bare AF_XDP transmit loop
    Tool,
}

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sizes of the packets.
    pub mixes: Vec<Mix>,
    /// The methods.
    pub kinds: Vec<Kind>,
    /// Instead of these, one trial at this rate.
    pub fixed: Option<NonZeroU64>,
    /// Goal Final Trial Duration; also the duration of trials of RFC 2544 and at a fixed rate.
    pub trial: Duration,
    /// Goal Duration Sum; also how long latency is measured.
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

/// The contents of the packets.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// One per direction.
    pub addresses: Vec<Addresses>,
    /// In each direction.
    pub flows: Flows,
}

impl Traffic {
    /// The packets of a mix, one template per direction.
    pub fn templates(&self, mix: &Mix) -> Result<Vec<Template>, BuildError> {
        self.addresses.iter().map(|addresses| Template::new(addresses, mix, self.flows)).collect()
    }
}

impl Plan {
    /// How often progress is reported, with or without the measurement of the tool's own ceiling.
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
