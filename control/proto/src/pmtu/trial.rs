//! One question to a path: which of these sizes pass? Asked in rounds, until all are answered or enough were sent.

use std::time::Instant;

pub(super) struct Trial {
    /// Those that are not answered, the largest first. An answer speaks for all smaller sizes too.
    pub sizes: Vec<u16>,
    /// The largest answered; 0 is none.
    pub best: u16,
    /// The first round sends only the largest.
    pub narrow: bool,
    /// Rounds that were sent.
    pub rounds: u8,
    pub began: Instant,
    /// When the next round is to be sent, or after the last one the verdict is due.
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

    /// Asks for this size too, and for all at once.
    pub fn widen(&mut self, size: u16) {
        self.narrow = false;
        if size > self.best && !self.sizes.contains(&size) {
            self.sizes.push(size);
            self.sizes.sort_unstable_by(|one, other| other.cmp(one));
        }
    }

    /// What the next round sends.
    pub fn round(&self) -> &[u16] {
        let length = if self.narrow && self.rounds == 0 { 1 } else { self.sizes.len() };
        &self.sizes[..length.min(self.sizes.len())]
    }

    pub fn sent(&mut self, next: Instant) {
        self.rounds = self.rounds.saturating_add(1);
        self.due = next;
    }
}
