//! What has passed through a port, for control to judge whether the port works: a ring that was bound may still lose
//! everything. The worker adds, control reads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::work::add;

/// Counters of a port since it was bound.
#[derive(Debug, Default)]
pub struct Evidence {
    received: AtomicU64,
    verified: AtomicU64,
    damaged: AtomicU64,
    sent: AtomicU64,
    completed: AtomicU64,
}

/// The counters of an [`Evidence`] as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Frames that came out of the receive ring.
    pub received: u64,
    /// On the WAN: messages among them that verified.
    pub verified: u64,
    /// On the WAN: messages of known sessions among them that did not.
    pub damaged: u64,
    /// Frames that were put into the transmit ring.
    pub sent: u64,
    /// Frames that came back by the completion ring.
    pub completed: u64,
}

impl Evidence {
    pub(crate) fn received(&self, frames: usize) {
        add(&self.received, frames as u64);
    }

    pub(crate) fn opened(&self, verified: usize, damaged: usize) {
        add(&self.verified, verified as u64);
        add(&self.damaged, damaged as u64);
    }

    pub(crate) fn sent(&self, frames: usize) {
        add(&self.sent, frames as u64);
    }

    pub(crate) fn completed(&self, frames: usize) {
        add(&self.completed, frames as u64);
    }

    /// The counters at this moment. What happens later to a packet is read first, so that no frame seems to have come
    /// back without being sent.
    pub fn passed(&self) -> Passed {
        let completed = self.completed.load(Relaxed);
        Passed {
            completed,
            sent: self.sent.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
            verified: self.verified.load(Relaxed),
            received: self.received.load(Relaxed),
        }
    }
}
