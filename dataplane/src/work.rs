//! What a worker has done: batches by size, how many packets waited in its rings, and how long it slept for lack of
//! packets.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::ports::BATCH;
use crate::ports::xdp::RING;

/// The largest batch of each class: each is twice as large as the one before.
pub const BATCH_SIZES: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, BATCH];
/// The most packets in a ring of each class: from one batch to a full ring.
pub const RING_FILLS: [usize; 5] = [BATCH, 256, 512, 1024, RING as usize];

/// A worker's counters since it was started. One thread adds, any may read.
#[derive(Debug)]
pub(crate) struct Work {
    begun: Instant,
    /// Batches by size, as in [`BATCH_SIZES`].
    batches: [AtomicU64; BATCH_SIZES.len()],
    packets: AtomicU64,
    /// How full the receive rings of WAN and LAN were.
    rings: [RingFill; 2],
    sleeps: AtomicU64,
    /// Nanoseconds slept. During a sleep, this is the total of earlier sleeps less the time at which this one began,
    /// which is negative: so one number gives the total at any moment.
    slept_nanos: AtomicI64,
    /// Packets that waited for their time and were sent, and their bytes.
    shaped: [AtomicU64; 2],
    /// Packets that wait, and their bytes.
    waiting: [AtomicU64; 2],
}

/// How full the receive rings of a side were whenever packets were taken from one.
#[derive(Debug, Default)]
struct RingFill {
    /// How often the rings held up to this many packets, as in [`RING_FILLS`].
    times: [AtomicU64; RING_FILLS.len()],
    /// The sum of these numbers of packets.
    packets: AtomicU64,
}

/// The counters of a [`Work`] as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkDone {
    /// Batches received from ports, without empty ones, by size as in [`BATCH_SIZES`].
    pub batches: [u64; BATCH_SIZES.len()],
    /// Packets in these batches.
    pub packets: u64,
    /// How full the AF_XDP receive rings of the WAN were.
    pub wan_rings: RingFilled,
    /// How full those of the LAN were.
    pub lan_rings: RingFilled,
    /// How often it went to sleep and was woken.
    pub sleeps: u64,
    /// How long it slept in total, including a sleep in progress.
    pub slept: Duration,
    /// What was sent at a rate.
    pub shaped: Shaped,
}

/// What a worker has sent at a rate. Bytes are those of outer IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shaped {
    /// Packets that were sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that wait now.
    pub waiting_packets: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
}

/// How full rings were whenever packets were taken from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFilled {
    /// How often the rings held up to this many packets, as in [`RING_FILLS`].
    pub times: [u64; RING_FILLS.len()],
    /// The sum of these numbers of packets.
    pub packets: u64,
}

impl AddAssign for RingFilled {
    fn add_assign(&mut self, more: Self) {
        self.times.iter_mut().zip(more.times).for_each(|(times, more)| *times += more);
        self.packets += more.packets;
    }
}

impl AddAssign for Shaped {
    fn add_assign(&mut self, more: Self) {
        self.packets += more.packets;
        self.bytes += more.bytes;
        self.waiting_packets += more.waiting_packets;
        self.waiting_bytes += more.waiting_bytes;
    }
}

impl AddAssign for WorkDone {
    fn add_assign(&mut self, more: Self) {
        self.batches.iter_mut().zip(more.batches).for_each(|(batches, more)| *batches += more);
        self.packets += more.packets;
        self.wan_rings += more.wan_rings;
        self.lan_rings += more.lan_rings;
        self.sleeps += more.sleeps;
        self.slept += more.slept;
        self.shaped += more.shaped;
    }
}

impl Default for Work {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            batches: Default::default(),
            packets: AtomicU64::default(),
            rings: Default::default(),
            sleeps: AtomicU64::default(),
            slept_nanos: AtomicI64::default(),
            shaped: Default::default(),
            waiting: Default::default(),
        }
    }
}

impl Work {
    /// Counts a non-empty batch from one side. `waiting` is the number of packets still in the ring, if it came from
    /// one.
    #[inline]
    pub(crate) fn received(&self, side: Origin, packets: usize, waiting: Option<usize>) {
        add(&self.batches[class(&BATCH_SIZES, packets)], 1);
        add(&self.packets, packets as u64);
        if let Some(waiting) = waiting {
            let ring = &self.rings[side as usize];
            add(&ring.times[class(&RING_FILLS, packets + waiting)], 1);
            add(&ring.packets, (packets + waiting) as u64);
        }
    }

    /// Counts a packet that has waited and is sent.
    pub(crate) fn shaped(&self, bytes: usize) {
        add(&self.shaped[0], 1);
        add(&self.shaped[1], bytes as u64);
    }

    /// Sets how many packets wait now, and their bytes.
    pub(crate) fn waiting(&self, (packets, bytes): (usize, usize)) {
        self.waiting[0].store(packets as u64, Relaxed);
        self.waiting[1].store(bytes as u64, Relaxed);
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
        let [wan_rings, lan_rings] = self.rings.each_ref().map(|ring| RingFilled {
            times: ring.times.each_ref().map(|times| times.load(Relaxed)),
            packets: ring.packets.load(Relaxed),
        });
        let [packets, bytes] = self.shaped.each_ref().map(|count| count.load(Relaxed));
        let [waiting_packets, waiting_bytes] = self.waiting.each_ref().map(|count| count.load(Relaxed));
        WorkDone {
            shaped: Shaped { packets, bytes, waiting_packets, waiting_bytes },
            batches: self.batches.each_ref().map(|batches| batches.load(Relaxed)),
            packets: self.packets.load(Relaxed),
            wan_rings,
            lan_rings,
            sleeps: self.sleeps.load(Relaxed),
            slept: Duration::from_nanos(slept.try_into().unwrap_or(0)),
        }
    }

    /// The time since the start. It is longer than any time slept, so that subtracting it gives a negative number.
    fn nanos(&self) -> i64 {
        self.begun.elapsed().as_nanos() as i64 + 1
    }
}

/// The side that a batch comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    Wan,
    Lan,
}

/// The class of a number: the lowest bound that it does not exceed.
#[inline]
fn class(bounds: &[usize], number: usize) -> usize {
    bounds.iter().take(bounds.len() - 1).take_while(|bound| number > **bound).count()
}

/// Adds without a locked instruction: nobody else writes.
#[inline]
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_and_rings_are_counted_by_size() {
        let work = Work::default();
        for packets in [1, 2, 3, 4, 65, BATCH] {
            work.received(Origin::Lan, packets, None);
        }
        work.received(Origin::Wan, BATCH, Some(0));
        work.received(Origin::Wan, BATCH, Some(1));
        work.received(Origin::Wan, BATCH, Some(RING as usize));
        let done = work.done();
        assert_eq!(done.batches, [1, 1, 2, 0, 0, 0, 0, 5]);
        assert_eq!(done.packets, 75 + 4 * BATCH as u64);
        assert_eq!(done.wan_rings.times, [1, 1, 0, 0, 1]);
        assert_eq!(done.wan_rings.packets, 3 * BATCH as u64 + 1 + u64::from(RING));
        assert_eq!(done.lan_rings, RingFilled::default());
    }
}
