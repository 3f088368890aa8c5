//! A peer in the data plane's view: counters and times of its traffic, which outlive each snapshot of the tables.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Millis;

/// The traffic between us and a peer. Bytes are those of WireGuard messages, including headers, padding and tags, but
/// not UDP and IP.
#[derive(Debug)]
#[repr(align(64))]
pub struct PeerCounters {
    /// The controller's number for it.
    pub id: u32,
    /// Sending side.
    pub sent: Traffic,
    /// Receiving side; only authenticated messages count.
    pub received: Traffic,
}

/// Counters of one direction.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Traffic {
    /// Messages.
    pub packets: AtomicU64,
    /// Bytes of messages.
    pub bytes: AtomicU64,
    /// Time of the last message ([`Millis`]; 0: never).
    pub last: AtomicU64,
    /// Time of the last message that was not a keepalive ([`Millis`]; 0: never).
    pub last_data: AtomicU64,
}

impl PeerCounters {
    /// A peer with which nothing has been exchanged.
    pub fn new(id: u32) -> Self {
        Self { id, sent: Traffic::default(), received: Traffic::default() }
    }
}

impl Traffic {
    /// Counts messages of `bytes` in total; `data` if one of them was not a keepalive.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64, data: bool, now: Millis) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.last.store(now.0, Relaxed);
        if data {
            self.last_data.store(now.0, Relaxed);
        }
    }
}
