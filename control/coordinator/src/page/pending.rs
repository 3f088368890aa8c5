//! What waits for a browser to come back: each used once and only for a while, and few at a time.

use std::time::{Duration, Instant};

/// Waiting items, the oldest first.
#[derive(Debug)]
pub(super) struct Pending<T> {
    lifetime: Duration,
    limit: usize,
    items: Vec<(Instant, T)>,
}

impl<T> Pending<T> {
    /// Nothing waits yet. An item can be used for `lifetime`; one beyond `limit` replaces the oldest.
    pub fn new(lifetime: Duration, limit: usize) -> Self {
        Self { lifetime, limit, items: Vec::new() }
    }

    pub fn add(&mut self, now: Instant, item: T) {
        self.forget(now);
        if self.items.len() == self.limit {
            self.items.remove(0);
        }
        self.items.push((now, item));
    }

    /// Uses up the item that fits, if it still waits.
    pub fn take(&mut self, now: Instant, fits: impl Fn(&T) -> bool) -> Option<T> {
        self.forget(now);
        let place = self.items.iter().position(|(_, item)| fits(item))?;
        Some(self.items.remove(place).1)
    }

    fn forget(&mut self, now: Instant) {
        self.items.retain(|(added, _)| now < *added + self.lifetime);
    }
}
