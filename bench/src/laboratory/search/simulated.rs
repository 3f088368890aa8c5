//! Devices that exist only as a loss function.

use std::convert::Infallible;
use std::time::Duration;

use super::{Measurer, Trial};

/// A device that forwards up to a capacity, and a generator that sends up to its own.
pub struct Device {
    pub capacity: u64,
    /// What the generator can send.
    pub generator: u64,
    /// Loss ratio at any load, in addition to what exceeds the capacity.
    pub floor: f64,
    /// One in this many trials loses a tenth more for no reason; 0 for none.
    pub hiccup: u64,
    pub trials: Vec<Trial>,
}

impl Device {
    pub fn with_capacity(capacity: u64) -> Device {
        Device { capacity, generator: u64::MAX, floor: 0.0, hiccup: 0, trials: vec![] }
    }
}

impl Measurer for Device {
    type Error = Infallible;

    fn measure(&mut self, load: u64, duration: Duration) -> Result<Trial, Infallible> {
        assert!(load > 0);
        let sent = load.min(self.generator);
        let count = self.trials.len() as u64 + 1;
        let hiccup = if self.hiccup > 0 && count.is_multiple_of(self.hiccup) { 0.1 } else { 0.0 };
        let over = 1.0 - (self.capacity as f64 / sent as f64).min(1.0);
        let loss = (over + self.floor + hiccup).min(1.0);
        let offered = sent == load;
        let certain_loss = if offered { loss } else { 0.0 };
        let trial = Trial { load, duration, loss, certain_loss, offered };
        self.trials.push(trial);
        Ok(trial)
    }
}
