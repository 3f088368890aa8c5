//! `WanRate`: limits what the site sends over the WAN. Packets wait here rather than in a queue of the network, where
//! nothing distinguishes a terminal session from a download. The kernel's queues could, but AF_XDP bypasses them.
//!
//! ```text
//!   egress: whose packet, may it pass ─► FairQueue ─► when its time has come: session ─► seal ─► WAN
//! ```
//! Packets wait in plaintext, so that counters are in the order of sending. The queue may use at most a third of the
//! worker's frames: the rest is for receiving. Each worker has its own queue, and all take from one [`WanRate`] in
//! turn, so that each worker's share follows what it has to send.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::fair::{Class, FairQueue};
use crate::frame::{Frame, Pool};
use crate::inner::{IPV4_HEADER, IPV6_HEADER, Inner, UDP_HEADER};
use crate::session::{DATA_HEADER, PADDING, TAG};
use crate::transport::transport;

const NANOS: u64 = 1_000_000_000;
/// How much a worker takes at a time: what the rate passes in this fraction of a second, within these bounds in bytes.
const GRANTS_PER_SECOND: u64 = 4000;
const GRANT_BYTES: (u64, u64) = (1514, 1 << 16);
/// A worker that woke late makes up for what it did not send, for up to this time.
const CATCH_UP: u64 = NANOS / 200;
/// A worker's queue holds as many bytes as pass in this fraction of a second, and at least ten full packets.
const QUEUES_PER_SECOND: u64 = 10;
const QUEUE_BYTES_MIN: u64 = 10 * 1514;
/// A worker's queue holds at most its frames divided by this.
const FRAMES_SHARE: usize = 3;
/// DSCP of 32 and more: CS4 to CS7, AF41 to AF43, voice-admit, expedited forwarding (RFC 4594).
const URGENT_TOS: u8 = 0x80;
/// Packets of up to this many bytes count as small: keystrokes, acknowledgements, routing protocols.
const SMALL: usize = 128;

/// A rate that all workers share. Time is in nanoseconds on any clock.
#[derive(Debug)]
pub struct WanRate {
    bytes_per_second: u64,
    grant: u64,
    /// How long a grant takes.
    grant_nanos: u64,
    /// When everything granted so far will have passed.
    next: AtomicU64,
}

impl WanRate {
    /// A rate in bits of outer IP packets per second; at least 8 kbit/s.
    pub fn new(bits_per_second: u64) -> Self {
        let bytes_per_second = (bits_per_second / 8).max(1000);
        let grant = (bytes_per_second / GRANTS_PER_SECOND).clamp(GRANT_BYTES.0, GRANT_BYTES.1);
        Self { bytes_per_second, grant, grant_nanos: grant * NANOS / bytes_per_second, next: AtomicU64::new(0) }
    }

    /// The rate in bits per second.
    pub fn bits_per_second(&self) -> u64 {
        self.bytes_per_second * 8
    }

    /// Reserves a grant, and returns when it may be used.
    fn reserve(&self, now: u64) -> u64 {
        let earliest = now.saturating_sub(CATCH_UP);
        let mut next = self.next.load(Relaxed);
        loop {
            let at = next.max(earliest);
            match self.next.compare_exchange_weak(next, at + self.grant_nanos, Relaxed, Relaxed) {
                Ok(_) => return at,
                Err(other) => next = other,
            }
        }
    }

    fn queue_bytes(&self) -> usize {
        (self.bytes_per_second / QUEUES_PER_SECOND).max(QUEUE_BYTES_MIN) as usize
    }
}

/// A packet that waits: already judged, and complete.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) frame: Frame,
    /// The outer traffic class.
    pub(crate) tos: u8,
    /// [`crate::peer::PeerCounters::id`] of the peer that it was judged to be for.
    pub(crate) peer: u32,
}

/// A worker's queue, and its place in the order of those that take from the rate.
#[derive(Debug)]
pub(crate) struct Shaper {
    queue: FairQueue<Waiting>,
    /// So that nobody can choose flows that share a place.
    hasher: RandomState,
    /// Bytes that may still be sent, or, if negative, were sent too much.
    credit: i64,
    /// When the next grant may be used, if one is reserved.
    reserved: Option<u64>,
}

impl Shaper {
    /// An empty queue for a worker that has this packet memory.
    pub(crate) fn new(pool: &Pool, rate: &WanRate) -> Self {
        Self {
            queue: FairQueue::new(pool.slots() / FRAMES_SHARE, rate.queue_bytes()),
            hasher: RandomState::new(),
            credit: 0,
            reserved: None,
        }
    }

    /// Adopts the rate, which may have changed.
    pub(crate) fn set_rate(&mut self, rate: &WanRate) {
        self.queue.set_max_bytes(rate.queue_bytes());
    }

    /// How many packets and bytes wait.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.queue.len(), self.queue.bytes())
    }

    /// Queues a packet with these bytes, for an endpoint of this family. [`Self::overflow`] must follow.
    pub(crate) fn push(&mut self, packet: Waiting, bytes: &[u8], inner: &Inner, endpoint: Option<SocketAddr>) {
        let class = if is_urgent(inner) { Class::Urgent } else { Class::Bulk };
        let ports = transport(bytes, inner.header)
            .filter(|transport| transport.fragment.is_none())
            .and_then(|transport| transport.payload.first_chunk::<4>());
        let flow = (inner.source, inner.destination, inner.protocol, ports);
        let wire = on_the_wire(packet.frame.len(), endpoint);
        self.queue.push(packet, wire, class, self.hasher.hash_one(flow) as u32);
    }

    /// Takes a packet for which there is no room.
    pub(crate) fn overflow(&mut self) -> Option<Waiting> {
        self.queue.overflow()
    }

    /// Takes the packet that may be sent at this time at this rate, with its bytes on the wire. Without a rate it may
    /// be sent at once.
    pub(crate) fn pop(&mut self, rate: Option<&WanRate>, now: u64) -> Option<(Waiting, usize)> {
        let Some(rate) = rate else { return self.queue.pop() };
        if self.queue.is_empty() {
            return None;
        }
        while self.credit <= 0 {
            let at = *self.reserved.get_or_insert_with(|| rate.reserve(now));
            if at > now {
                return None;
            }
            self.reserved = None;
            self.credit += rate.grant as i64;
        }
        let (packet, bytes) = self.queue.pop()?;
        self.credit -= bytes as i64;
        Some((packet, bytes))
    }

    /// Gives back the bytes of a packet that was not sent after all.
    pub(crate) fn refund(&mut self, bytes: usize) {
        self.credit += bytes as i64;
    }

    /// How long nothing may be sent; `None` when nothing waits.
    pub(crate) fn pause(&self, now: u64) -> Option<Duration> {
        let pause = self.reserved.map_or(0, |at| at.saturating_sub(now));
        (!self.queue.is_empty()).then(|| Duration::from_nanos(pause))
    }
}

/// Whether a packet goes before others, by its own DSCP.
#[inline]
pub(crate) fn is_urgent(inner: &Inner) -> bool {
    inner.tos & URGENT_TOS != 0
}

/// The same without queues that tell sparse flows from dense ones: small packets are taken for sparse flows.
#[inline]
pub(crate) fn is_urgent_or_small(inner: &Inner) -> bool {
    is_urgent(inner) || inner.len <= SMALL
}

/// Bytes of the outer IP packet around an inner packet.
fn on_the_wire(inner: usize, endpoint: Option<SocketAddr>) -> usize {
    let ip = if endpoint.is_some_and(|endpoint| endpoint.is_ipv6()) { IPV6_HEADER } else { IPV4_HEADER };
    ip + UDP_HEADER + DATA_HEADER + inner.next_multiple_of(PADDING) + TAG
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 1_000_000;

    /// A worker with packets of one flow, and the bytes that it has sent.
    struct Trial {
        pool: Pool,
        shaper: Shaper,
        sent: u64,
        /// Of urgent packets: the longest that one has waited.
        waited: u64,
    }

    impl Trial {
        fn new(rate: &WanRate) -> Self {
            let pool = Pool::heap(1024);
            Self { shaper: Shaper::new(&pool, rate), pool, sent: 0, waited: 0 }
        }

        fn push(&mut self, tos: u8, port: u8, len: usize) {
            let Some(mut frame) = self.pool.take() else { return };
            frame.set(0, len);
            let mut bytes =
                vec![0x45, tos, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 9, 17, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2];
            bytes.resize(len, port);
            let inner = Inner::parse(&bytes).expect("a packet");
            self.shaper.push(Waiting { frame, tos, peer: 0 }, &bytes, &inner, None);
            while let Some(refused) = self.shaper.overflow() {
                self.pool.give(refused.frame);
            }
        }

        /// Sends what may be sent, up to a batch. Returns whether an urgent packet was among it.
        fn send(&mut self, rate: &WanRate, now: u64) -> bool {
            let mut urgent = false;
            for _ in 0..crate::ports::BATCH {
                let Some((packet, bytes)) = self.shaper.pop(Some(rate), now) else { break };
                self.sent += bytes as u64;
                urgent |= packet.tos & URGENT_TOS != 0;
                self.pool.give(packet.frame);
            }
            urgent
        }
    }

    fn within(sent: u64, rate: &WanRate, seconds: u64, percent: f64) {
        let off = sent as f64 / (rate.bytes_per_second * seconds) as f64 - 1.0;
        assert!(off.abs() < percent / 100.0, "{:?}: {off}", rate.bits_per_second());
    }

    /// Over a second, any rate is kept within 2 %, although pauses are overslept by up to 2 ms. At the highest rate,
    /// the queue holds too few packets for that.
    #[test]
    fn the_rate_is_met() {
        for (bits, longest) in [(MBIT, 2_000_000), (20 * MBIT, 2_000_000), (333 * MBIT, 2_000_000), (2000 * MBIT, 1)] {
            let rate = WanRate::new(bits);
            let mut trial = Trial::new(&rate);
            let (mut now, mut overslept) = (7 * NANOS, 0);
            let end = now + NANOS;
            while now < end {
                for _ in 0..32 {
                    if trial.pool.available() > 1024 * 3 / 4 {
                        trial.push(0, 0, 1420);
                    }
                }
                trial.send(&rate, now);
                let pause = trial.shaper.pause(now).map_or(0, |pause| pause.as_nanos() as u64);
                overslept = (overslept + 377_000) % longest;
                now += if pause > 0 { pause + overslept } else { 20_000 };
            }
            within(trial.sent, &rate, 1, 2.0);
        }
    }

    /// Workers that all have too much to send share the rate; one that has little gets that, and the others the rest.
    #[test]
    fn workers_share_by_what_they_need() {
        let rate = WanRate::new(100 * MBIT);
        let mut workers = [Trial::new(&rate), Trial::new(&rate), Trial::new(&rate)];
        let mut needed = 0;
        for tick in 0..50_000 {
            let now = 9 * NANOS + tick * 40_000;
            for (number, worker) in workers.iter_mut().enumerate() {
                // The last one sends 10 Mbit/s in the first half.
                let sparse = tick % 29 == 0 && tick < 25_000;
                if number < 2 || sparse {
                    worker.push(0, 0, 1400);
                }
                needed += if number == 2 && sparse { on_the_wire(1400, None) as u64 } else { 0 };
                worker.send(&rate, now);
            }
        }
        let [a, b, c] = workers.each_ref().map(|worker| worker.sent);
        within(a + b + c, &rate, 2, 2.0);
        assert!(a.abs_diff(b) < a / 50, "{a} {b}");
        assert_eq!(c, needed);
    }

    /// Urgent packets wait no longer than a grant of each worker takes, beside flows that fill the queue.
    #[test]
    fn what_is_urgent_waits_for_one_grant() {
        let rate = WanRate::new(20 * MBIT);
        let mut trial = Trial::new(&rate);
        let mut since = None;
        for tick in 0..50_000u64 {
            let now = 9 * NANOS + tick * 40_000;
            trial.push(0, (tick % 5) as u8, 1400);
            if tick % 250 == 100 {
                trial.push(0xb8, 9, 84);
                since = Some(now);
            }
            if trial.send(&rate, now) {
                trial.waited = trial.waited.max(now - since.take().expect("was sent"));
            }
        }
        assert_eq!(since, None);
        assert!(trial.waited <= 2 * rate.grant_nanos, "{}", trial.waited);
    }

    /// The queue leaves frames for receiving, and holds a tenth of a second.
    #[test]
    fn the_queue_is_bounded() {
        for (bits, packets) in [(20 * MBIT, 250_000 / 1484), (10_000 * MBIT, 1024 / FRAMES_SHARE)] {
            let rate = WanRate::new(bits);
            let mut trial = Trial::new(&rate);
            (0..2000).for_each(|_| trial.push(0, 0, 1420));
            let (waiting, bytes) = trial.shaper.waiting();
            assert_eq!((waiting, bytes), (packets, packets * on_the_wire(1420, None)));
            assert_eq!(trial.pool.available(), 1024 - waiting);
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let rate = WanRate::new(MBIT);
        let mut trial = Trial::new(&rate);
        (0..5).for_each(|_| trial.push(0, 0, 1420));
        let mut released = 0;
        while let Some((packet, _)) = trial.shaper.pop(None, 0) {
            trial.pool.give(packet.frame);
            released += 1;
        }
        assert_eq!((released, trial.shaper.pause(0)), (5, None));
    }
}
