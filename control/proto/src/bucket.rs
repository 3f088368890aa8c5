//! A token bucket, kept as a time.

use std::time::{Duration, Instant};

/// What was let through lately, as the time at which all of it would be worked off. A new one is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket(Option<Instant>);

impl Bucket {
    /// Lets something through that takes `cost` to be worked off, unless with it more than `full` would
    /// wait.
    pub fn take(&mut self, now: Instant, cost: Duration, full: Duration) -> bool {
        let backlog = self.0.map_or(Duration::ZERO, |at| at.saturating_duration_since(now)) + cost;
        let allowed = backlog <= full;
        if allowed {
            self.0 = Some(now + backlog);
        }
        allowed
    }
}
