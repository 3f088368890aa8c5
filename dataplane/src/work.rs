//! What a worker has done: batches, packets, and how long it slept for want of them.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A worker's counters since it was started. One thread adds, any may read.
#[derive(Debug, Default)]
pub(crate) struct Work {
    batches: AtomicU64,
    packets: AtomicU64,
    sleeps: AtomicU64,
    slept_nanos: AtomicU64,
}

/// The counters of a [`Work`] as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkDone {
    /// Batches received from ports, without empty ones.
    pub batches: u64,
    /// Packets in these batches.
    pub packets: u64,
    /// How often it went to sleep and was woken.
    pub sleeps: u64,
    /// How long it slept in all, not counting a sleep that still lasts.
    pub slept: Duration,
}

impl AddAssign for WorkDone {
    fn add_assign(&mut self, more: Self) {
        self.batches += more.batches;
        self.packets += more.packets;
        self.sleeps += more.sleeps;
        self.slept += more.slept;
    }
}

impl Work {
    /// Counts a batch.
    #[inline]
    pub(crate) fn received(&self, packets: usize) {
        add(&self.batches, 1);
        add(&self.packets, packets as u64);
    }

    /// Counts a sleep.
    pub(crate) fn slept(&self, how_long: Duration) {
        add(&self.sleeps, 1);
        add(&self.slept_nanos, u64::try_from(how_long.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn done(&self) -> WorkDone {
        WorkDone {
            batches: self.batches.load(Relaxed),
            packets: self.packets.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
            slept: Duration::from_nanos(self.slept_nanos.load(Relaxed)),
        }
    }
}

/// Adds without a locked instruction: nobody else writes.
#[inline]
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}
