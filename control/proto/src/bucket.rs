//! A token bucket that stores a single time instead of a token count.

use std::time::{Duration, Instant};

/// How much has passed lately, stored as the time at which the bucket will be full again. A new bucket is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket(Option<Instant>);

impl Bucket {
    /// Lets something through that takes `cost` to earn back, unless the bucket would then need longer than `full` to
    /// fill up.
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

    /// Counts something that cannot be refused. Returns by how much the debt now exceeds `full`, `limit` at most.
    pub fn charge(&mut self, now: Instant, cost: Duration, full: Duration, limit: Duration) -> Duration {
        let backlog = (self.backlog(now) + cost).min(full + limit);
        self.0 = Some(now + backlog);
        backlog.saturating_sub(full)
    }

    /// How long until the bucket is full again. At zero it is as good as new.
    #[must_use]
    pub fn backlog(&self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}
