//! What a relay has done: datagrams and bytes forwarded, and datagrams dropped, by reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use penstock_proto::relay::RelayDrop;

/// Why a datagram to be forwarded, or an answer, was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Too many datagrams wait for the stream.
    QueueFull,
    /// The socket's send buffer is full.
    Congested,
    /// The kernel refused to send it.
    SendFailed,
}

const LOSSES: [(Loss, &str); 3] =
    [(Loss::QueueFull, "queue-full"), (Loss::Congested, "congested"), (Loss::SendFailed, "send-failed")];

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Counters {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; RelayDrop::ALL.len()],
    losses: [AtomicU64; LOSSES.len()],
}

impl Counters {
    /// Counts forwarded datagrams, and their bytes together.
    pub fn forwarded(&self, datagrams: usize, bytes: usize) {
        self.datagrams.fetch_add(datagrams as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a dropped datagram.
    pub fn dropped(&self, reason: RelayDrop) {
        let place = RelayDrop::ALL.iter().position(|other| *other == reason).unwrap_or_default();
        self.drops[place].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts datagrams that were not sent.
    pub fn lost(&self, why: Loss, datagrams: usize) {
        let place = LOSSES.iter().position(|(other, _)| *other == why).unwrap_or_default();
        self.losses[place].fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// Datagrams and bytes forwarded.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.datagrams.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Dropped datagrams by reason, for all reasons.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let decided = RelayDrop::ALL.iter().map(RelayDrop::to_string).zip(&self.drops);
        let lost = LOSSES.iter().map(|(_, name)| (*name).to_owned()).zip(&self.losses);
        decided.chain(lost).map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        let counters = Counters::default();
        for (times, reason) in RelayDrop::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counters.dropped(reason));
        }
        counters.lost(Loss::Congested, 40);
        let drops = counters.drops();
        assert_eq!(drops.len(), RelayDrop::ALL.len() + LOSSES.len());
        for (times, reason) in RelayDrop::ALL.into_iter().enumerate() {
            assert_eq!(drops[&reason.to_string()], times as u64);
        }
        assert_eq!((drops["congested"], drops["queue-full"]), (40, 0));
    }
}
