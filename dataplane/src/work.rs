//! What a worker has done: batches, packets, and how long it slept for want of them.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A worker's counters since it was started. One thread adds, any may read.
#[derive(Debug)]
pub(crate) struct Work {
    begun: Instant,
    batches: AtomicU64,
    packets: AtomicU64,
    sleeps: AtomicU64,
    /// Nanoseconds slept. During a sleep, those before it less the time at which it began, which is negative: so one
    /// number tells at any moment how long the worker has slept.
    slept_nanos: AtomicI64,
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
    /// How long it slept in all, with a sleep that still lasts.
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

impl Default for Work {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            batches: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            slept_nanos: AtomicI64::new(0),
        }
    }
}

impl Work {
    /// Counts a batch.
    #[inline]
    pub(crate) fn received(&self, packets: usize) {
        add(&self.batches, 1);
        add(&self.packets, packets as u64);
    }

    /// A sleep begins.
    pub(crate) fn falls_asleep(&self) {
        self.slept_nanos.store(self.slept_nanos.load(Relaxed) - self.nanos(), Relaxed);
    }

    /// The sleep has ended.
    pub(crate) fn wakes(&self) {
        self.slept_nanos.store(self.slept_nanos.load(Relaxed) + self.nanos(), Relaxed);
        add(&self.sleeps, 1);
    }

    pub(crate) fn done(&self) -> WorkDone {
        let slept = match self.slept_nanos.load(Relaxed) {
            asleep @ ..0 => asleep + self.nanos(),
            slept => slept,
        };
        WorkDone {
            batches: self.batches.load(Relaxed),
            packets: self.packets.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
            slept: Duration::from_nanos(slept.try_into().unwrap_or(0)),
        }
    }

    /// The time since the start. Longer than any time slept, so that subtracting it makes that negative.
    fn nanos(&self) -> i64 {
        self.begun.elapsed().as_nanos() as i64 + 1
    }
}

/// Adds without a locked instruction: nobody else writes.
#[inline]
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}
