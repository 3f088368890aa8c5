//! Runs trials on a bench for the searches.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::{Bench, Load, Outcome};
use crate::laboratory::search::{Measurer, Trial};

/// The fraction by which a load that does not hold is lowered.
const STEP: f64 = 0.05;
/// The most steps, which lead down to a fifth of the first load.
const STEPS: usize = 32;

/// Runs trials and remembers them.
pub(super) struct Prober<'a> {
    bench: &'a mut Bench,
    stop: &'a AtomicBool,
    trials: Vec<Trial>,
}

/// The result of a trial without a rate, in each direction.
pub(super) struct Flood {
    /// Packets a second.
    pub(super) offered: u64,
    /// Packets a second.
    pub(super) received: f64,
    /// IP packets' bits a second.
    pub(super) received_bits: f64,
}

impl<'a> Prober<'a> {
    pub(super) fn new(bench: &'a mut Bench, stop: &'a AtomicBool) -> Prober<'a> {
        Prober { bench, stop, trials: vec![] }
    }

    /// Names of the directions, in the order of outcomes.
    pub(super) fn directions(&self) -> impl Iterator<Item = &str> {
        self.bench.directions().iter().map(|direction| direction.name.as_str())
    }

    /// All trials at a load so far.
    pub(super) fn into_trials(self) -> Vec<Trial> {
        self.trials
    }

    /// Sends unpaced.
    pub(super) fn flood(&mut self, duration: Duration) -> io::Result<Flood> {
        let outcomes = self.bench.run(Load { rate: None, duration }, self.stop)?;
        let mean = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64;
        Ok(Flood {
            offered: mean(|outcome| outcome.sent.packets_per_second) as u64,
            received: mean(|outcome| outcome.received_rate),
            received_bits: mean(|outcome| outcome.received_bits),
        })
    }

    /// The highest load from this one downwards that is carried without loss for this long.
    pub(super) fn highest_held(&mut self, from: u64, duration: Duration) -> io::Result<Option<u64>> {
        let mut load = from;
        for _ in 0..STEPS {
            let (trial, _) = self.trial(load, duration)?;
            if trial.offered && trial.loss == 0.0 {
                return Ok(Some(load));
            }
            load -= (load as f64 * STEP) as u64;
        }
        Ok(None)
    }

    /// One trial, with its complete results in each direction.
    pub(super) fn trial(&mut self, load: u64, duration: Duration) -> io::Result<(Trial, Vec<Outcome>)> {
        let outcomes = self.bench.run(Load { rate: NonZeroU64::new(load.max(1)), duration }, self.stop)?;
        let trial = Outcome::trial(&outcomes, load, duration);
        self.trials.push(trial);
        Ok((trial, outcomes))
    }
}

impl Measurer for Prober<'_> {
    type Error = io::Error;

    fn measure(&mut self, load: u64, duration: Duration) -> io::Result<Trial> {
        Ok(self.trial(load, duration)?.0)
    }
}
