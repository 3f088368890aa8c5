//! A token bucket, kept as a time.

use std::time::{Duration, Instant};

/// What was let through lately, as the time at which all of it would be worked off. A new one is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket(Option<Instant>);

impl Bucket {
    /// Lets something through that takes `cost` to be worked off, unless with it more than `full` would
    /// wait.
    pub fn take(&mut self, now: Instant, cost: Duration, full: Duration) -> bool {
        let allowed = self.allows(now, cost, full);
        if allowed {
            self.0 = Some(now + self.backlog(now) + cost);
        }
        allowed
    }

    /// Whether [`Bucket::take`] would let it through.
    #[must_use]
    pub fn allows(&self, now: Instant, cost: Duration, full: Duration) -> bool {
        self.backlog(now) + cost <= full
    }

    /// Counts something that cannot be refused, and tells by how much more than `full` waits now: at most `limit`.
    pub fn charge(&mut self, now: Instant, cost: Duration, full: Duration, limit: Duration) -> Duration {
        let backlog = (self.backlog(now) + cost).min(full + limit);
        self.0 = Some(now + backlog);
        backlog.saturating_sub(full)
    }

    /// How long what was let through takes to be worked off. Once that is nothing, the bucket is as good as new.
    #[must_use]
    pub fn backlog(&self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}
