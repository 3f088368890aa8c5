//! One question to a path: which of these sizes pass? Asked in rounds, until all are answered or the rounds are used
//! up.

use std::time::Instant;

pub(super) struct Trial {
    /// The unanswered sizes, the largest first. An answer counts for all smaller sizes too.
    pub sizes: Vec<u16>,
    /// The largest answered size; 0 if there is none.
    pub best: u16,
    /// The first round sends only the largest.
    pub narrow: bool,
    /// Rounds sent so far.
    pub rounds: u8,
    pub began: Instant,
    /// When the next round is to be sent; after the last one, when the verdict is due.
    pub due: Instant,
}

impl Trial {
    pub fn new(now: Instant, mut sizes: Vec<u16>) -> Self {
        sizes.sort_unstable_by(|one, other| other.cmp(one));
        sizes.dedup();
        Self { sizes, best: 0, narrow: false, rounds: 0, began: now, due: now }
    }

    pub fn answered(&mut self, size: u16) {
        self.best = self.best.max(size);
        self.sizes.retain(|open| *open > size);
    }

    /// Also asks for this size, and for all sizes at once.
    pub fn widen(&mut self, size: u16) {
        self.narrow = false;
        if size > self.best && !self.sizes.contains(&size) {
            self.sizes.push(size);
            self.sizes.sort_unstable_by(|one, other| other.cmp(one));
        }
    }

    /// The sizes that the next round sends.
    pub fn round(&self) -> &[u16] {
        let length = if self.narrow && self.rounds == 0 { 1 } else { self.sizes.len() };
        &self.sizes[..length.min(self.sizes.len())]
    }

    pub fn sent(&mut self, next: Instant) {
        self.rounds = self.rounds.saturating_add(1);
        self.due = next;
    }
}
