//! The table of accepted flows, one for all workers: a reply may reach another worker than the request.
//!
//! All its memory is allocated at the start, in sets of a few places under many locks, so that neither its size nor the
//! time of a look-up depends on traffic. When all places of a set are taken, a new flow replaces the one that has been
//! silent longest and is not an established TCP connection; if all are, the new flow is refused. Flows are spread over
//! the sets by a keyed hash, so nobody can fill a set of their choice.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::classify::{DCCP, Flags, SCTP, UDP_LITE};
use super::key::{HashKey, Key};
use super::{Arrival, Direction};
use crate::clock::Millis;
use crate::inner::{ICMP, ICMPV6, TCP, UDP};

/// The most flows that are remembered: 16 MiB.
pub const FLOWS: usize = 1 << 18;
/// Places in which a flow may be.
const WAYS: usize = 16;
/// The number of locks: enough that two workers hardly ever want the same one.
const SHARDS: usize = 256;
const SETS_PER_SHARD: usize = FLOWS / WAYS / SHARDS;

/// Seconds of silence after which flows are forgotten. For an established TCP connection this is what RFC 5382, REQ-5
/// demands of a NAT; the others are those of Linux's connection tracking.
const TCP_ESTABLISHED: u32 = 7440;
const TCP_OPENING: u32 = 120;
const TCP_ANSWERED: u32 = 60;
const TCP_CLOSING: u32 = 120;
const TCP_RESET: u32 = 10;
const DATAGRAMS_UNANSWERED: u32 = 30;
const DATAGRAMS_ANSWERED: u32 = 120;
const ECHO: u32 = 30;
const FRAGMENTS: u32 = 120;
const OTHERS: u32 = 600;

/// The bits of both directions.
const BOTH: u8 = Direction::In as u8 | Direction::Out as u8;

/// The flows that were accepted and have not been silent for too long.
#[derive(Debug)]
pub struct Flows {
    hash_key: HashKey,
    shards: Box<[Mutex<Box<[Entry]>>]>,
    generation: AtomicU32,
}

/// What the table knows about a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It was accepted. Packets in the directions whose bits are set in `steady` change nothing about it.
    Known { steady: u8 },
    /// It was accepted under other rules; its first packet went in this direction.
    Stale { initiator: Direction },
    /// It is not in the table, or this packet begins another one in its place.
    New,
}

/// How far a flow has come. Flows other than TCP are opening until they are answered, and established from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no flow here.
    Free,
    /// Only one side has sent.
    Opening,
    /// TCP: the other side has answered, perhaps to a forged address. A connection once the first side has sent again.
    Answered,
    /// Both sides have sent.
    Established,
    /// TCP: both sides have ended it.
    Closing,
    /// TCP: one side has reset it.
    Reset,
}

/// A place for a flow: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Entry {
    key: Key,
    /// When the last packet came.
    second: u32,
    /// The generation of the firewall that accepted it.
    generation: u32,
    phase: Phase,
    /// The direction of its first packet.
    initiator: Direction,
    /// TCP: the bits of the directions in which it has ended.
    ended: u8,
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Flows {
    /// An empty table.
    pub fn new() -> Self {
        let shard = || Mutex::new(vec![Entry::FREE; SETS_PER_SHARD * WAYS].into());
        Self {
            hash_key: HashKey::random(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            generation: AtomicU32::new(0),
        }
    }

    /// How many flows there are.
    pub fn count(&self, now: Millis) -> usize {
        let second = (now.0 / 1000) as u32;
        let living = |entry: &&Entry| entry.lives(second) && !entry.key.is_fragments();
        (0..SHARDS).map(|shard| self.lock(shard).iter().filter(living).count()).sum()
    }

    pub(super) fn next_generation(&self) -> u32 {
        self.generation.fetch_add(1, Relaxed)
    }

    #[inline(always)]
    pub(super) fn hash(&self, key: &Key) -> u32 {
        self.hash_key.hash(key)
    }

    /// Takes note of a packet of a flow, if it is known.
    pub(super) fn touch(&self, key: &Key, flags: Flags, arrival: &Arrival) -> Found {
        let mut shard = self.lock(shard_of(arrival.hash));
        let Some(entry) = find(&mut shard, key, arrival) else { return Found::New };
        let over = matches!(entry.phase, Phase::Closing | Phase::Reset);
        if flags.opens() && (over || arrival.direction != entry.initiator) {
            return Found::New;
        }
        if entry.generation != arrival.generation {
            return Found::Stale { initiator: entry.initiator };
        }
        entry.advance(flags, arrival);
        Found::Known { steady: entry.steady() }
    }

    /// Whether the flow is known. Says nothing about its next packets.
    pub(super) fn holds(&self, key: &Key, arrival: &Arrival) -> bool {
        find(&mut self.lock(shard_of(arrival.hash)), key, arrival).is_some()
    }

    /// Remembers a flow that begins with this packet; `false` if there is no place for it.
    pub(super) fn open(&self, key: &Key, flags: Flags, arrival: &Arrival) -> bool {
        let mut shard = self.lock(shard_of(arrival.hash));
        let set = set_of(&mut shard, arrival.hash);
        let known = set.iter().position(|entry| entry.is_of(key));
        let free = || set.iter().position(|entry| !entry.lives(arrival.second));
        let silent = || {
            let yielding = set.iter().enumerate().filter(|(_, entry)| entry.yields());
            yielding.max_by_key(|(_, entry)| arrival.second.saturating_sub(entry.second)).map(|(place, _)| place)
        };
        let Some(place) = known.or_else(free).or_else(silent) else { return false };
        let Arrival { direction, second, generation, .. } = *arrival;
        set[place] = Entry { key: *key, second, generation, phase: Phase::Opening, initiator: direction, ended: 0 };
        set[place].advance(flags, arrival);
        true
    }

    /// Notes that the current rules accept a flow too.
    pub(super) fn renew(&self, key: &Key, arrival: &Arrival) {
        if let Some(entry) = find(&mut self.lock(shard_of(arrival.hash)), key, arrival) {
            entry.generation = arrival.generation;
        }
    }

    /// Notes that the current rules do not accept a flow. It stays, to be judged again by its first packet: if it were
    /// forgotten, the other side's retransmissions would begin it anew.
    pub(super) fn refuse(&self, key: &Key, arrival: &Arrival) {
        if let Some(entry) = find(&mut self.lock(shard_of(arrival.hash)), key, arrival) {
            entry.second = entry.second.max(arrival.second);
        }
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Box<[Entry]>> {
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self::new()
    }
}

/// The hash's top bits choose the shard, the next ones the set; the cache uses the bottom ones.
#[inline]
fn shard_of(hash: u32) -> usize {
    hash as usize >> (u32::BITS - SHARDS.ilog2())
}

#[inline]
fn set_of(shard: &mut [Entry], hash: u32) -> &mut [Entry] {
    let set = hash as usize >> (u32::BITS - SHARDS.ilog2() - SETS_PER_SHARD.ilog2()) & (SETS_PER_SHARD - 1);
    &mut shard[set * WAYS..][..WAYS]
}

#[inline]
fn find<'s>(shard: &'s mut [Entry], key: &Key, arrival: &Arrival) -> Option<&'s mut Entry> {
    let set = set_of(shard, arrival.hash);
    set.iter_mut().find(|entry| entry.is_of(key)).filter(|entry| entry.lives(arrival.second))
}

impl Entry {
    const FREE: Self =
        Self { key: Key::NONE, second: 0, generation: 0, phase: Phase::Free, initiator: Direction::In, ended: 0 };

    fn is_of(&self, key: &Key) -> bool {
        self.key == *key && self.phase != Phase::Free
    }

    /// Whether it holds a flow that has not been silent for too long. Clocks of workers may differ by a second.
    fn lives(&self, second: u32) -> bool {
        self.phase != Phase::Free && second.saturating_sub(self.second) <= self.lifetime()
    }

    fn lifetime(&self) -> u32 {
        match (self.key.protocol(), self.phase) {
            _ if self.key.is_fragments() => FRAGMENTS,
            (TCP, Phase::Answered) => TCP_ANSWERED,
            (TCP, Phase::Established) => TCP_ESTABLISHED,
            (TCP, Phase::Closing) => TCP_CLOSING,
            (TCP, Phase::Reset) => TCP_RESET,
            (TCP, _) => TCP_OPENING,
            (UDP | DCCP | SCTP | UDP_LITE, Phase::Established) => DATAGRAMS_ANSWERED,
            (UDP | DCCP | SCTP | UDP_LITE, _) => DATAGRAMS_UNANSWERED,
            (ICMP | ICMPV6, _) => ECHO,
            _ => OTHERS,
        }
    }

    /// Whether another flow may take its place before it has been silent for too long. So a flood of unanswered packets
    /// or of new flows never displaces an established TCP connection.
    fn yields(&self) -> bool {
        self.key.protocol() != TCP || self.phase != Phase::Established
    }

    /// Updates the state for a packet.
    fn advance(&mut self, flags: Flags, arrival: &Arrival) {
        self.second = self.second.max(arrival.second);
        if flags.any(Flags::RST) {
            self.phase = Phase::Reset;
            return;
        }
        let first = arrival.direction == self.initiator;
        self.phase = match self.phase {
            Phase::Opening if !first && self.key.protocol() == TCP => Phase::Answered,
            Phase::Opening if !first => Phase::Established,
            Phase::Answered if first && !flags.any(Flags::SYN) => Phase::Established,
            phase => phase,
        };
        if flags.any(Flags::FIN) {
            self.ended |= arrival.direction as u8;
            if self.ended == BOTH && self.phase != Phase::Reset {
                self.phase = Phase::Closing;
            }
        }
    }

    /// The bits of the directions in which packets without TCP's control bits change nothing.
    fn steady(&self) -> u8 {
        match self.phase {
            Phase::Opening if self.key.protocol() != TCP => self.initiator as u8,
            Phase::Free | Phase::Opening | Phase::Answered => 0,
            Phase::Established | Phase::Closing | Phase::Reset => BOTH,
        }
    }
}
