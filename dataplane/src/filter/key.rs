//! What identifies a flow, and its keyed hash.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};

use super::Direction;

/// In [`Key::kind`], above the protocol: the addresses are those of IPv6.
const V6: u32 = 1 << 8;
/// The key is that of fragments between two hosts.
const FRAGMENTS: u32 = 1 << 9;
/// The echo request goes out.
const OUT: u32 = 1 << 10;

/// A flow: both of its directions have the same key, since one end is always the remote one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The address at the other site.
    remote: u128,
    /// The address on this side.
    local: u128,
    /// The remote and the local port, or an echo's identifier.
    ports: u32,
    /// The peer behind which the remote address is, so that no other site may use what this one was allowed.
    peer: u32,
    kind: u32,
}

impl Key {
    /// The key of a place that holds no flow.
    pub(super) const NONE: Self = Self { remote: 0, local: 0, ports: 0, peer: 0, kind: 0 };

    /// The key of a packet that goes in this direction, as yet without ports; `None` if its addresses are of
    /// different families.
    #[inline(always)]
    pub(super) fn new(
        (source, destination): (IpAddr, IpAddr),
        protocol: u8,
        (peer, direction): (u32, Direction),
    ) -> Option<Self> {
        let (source, destination, v6) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (u128::from(source.to_bits()), u128::from(destination.to_bits()), 0)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => (source.to_bits(), destination.to_bits(), V6),
            _ => return None,
        };
        let (remote, local) = match direction {
            Direction::In => (source, destination),
            Direction::Out => (destination, source),
        };
        Some(Self { remote, local, ports: 0, peer, kind: v6 | u32::from(protocol) })
    }

    #[inline(always)]
    pub(super) fn with_ports(self, source: u16, destination: u16, direction: Direction) -> Self {
        let (remote, local) = match direction {
            Direction::In => (source, destination),
            Direction::Out => (destination, source),
        };
        Self { ports: u32::from(remote) << 16 | u32::from(local), ..self }
    }

    /// The key of echoes with this identifier whose requests go in this direction.
    pub(super) fn with_echo(self, identifier: u16, request: Direction) -> Self {
        Self { ports: identifier.into(), kind: self.kind | out(request), ..self }
    }

    /// The key of fragments between these two hosts.
    pub(super) fn of_fragments(self) -> Self {
        Self { ports: 0, kind: self.kind & V6 | FRAGMENTS, ..self }
    }

    #[inline]
    pub(super) fn protocol(&self) -> u8 {
        self.kind as u8
    }

    #[inline]
    pub(super) fn is_v6(&self) -> bool {
        self.kind & V6 != 0
    }

    #[inline]
    pub(super) fn is_fragments(&self) -> bool {
        self.kind & FRAGMENTS != 0
    }

    #[inline]
    pub(super) fn peer(&self) -> u32 {
        self.peer
    }

    /// The destination port of a packet that goes in this direction. Called only for protocols with ports.
    #[inline]
    pub(super) fn destination_port(&self, direction: Direction) -> u16 {
        match direction {
            Direction::In => self.ports as u16,
            Direction::Out => (self.ports >> 16) as u16,
        }
    }

    /// Source and destination of a packet that goes in this direction.
    pub(super) fn addresses(&self, direction: Direction) -> (IpAddr, IpAddr) {
        let address = |bits: u128| match self.is_v6() {
            true => IpAddr::from(bits.to_be_bytes()),
            false => Ipv4Addr::from_bits(bits as u32).into(),
        };
        match direction {
            Direction::In => (address(self.remote), address(self.local)),
            Direction::Out => (address(self.local), address(self.remote)),
        }
    }
}

fn out(direction: Direction) -> u32 {
    if direction == Direction::Out { OUT } else { 0 }
}

/// The words that a hash is keyed with.
#[derive(Clone, Debug)]
pub(super) struct HashKey([u64; 13]);

impl HashKey {
    /// Words that nobody else knows.
    pub(super) fn random() -> Self {
        // SipHash under a key that the standard library gets from the kernel.
        let random = RandomState::new();
        Self(std::array::from_fn(|word| random.hash_one(word)))
    }

    /// "Multilinear-HM" (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): whoever does not know
    /// the words cannot choose flows that collide more often than random ones do. Six multiplications that do not wait
    /// for each other.
    #[inline(always)]
    pub(super) fn hash(&self, key: &Key) -> u32 {
        let words = &self.0;
        let pair = |at: usize, first: u32, second: u32| {
            words[at].wrapping_add(first.into()).wrapping_mul(words[at + 1].wrapping_add(second.into()))
        };
        let halves = |at: usize, word: u64| pair(at, word as u32, (word >> 32) as u32);
        let sum = words[0]
            .wrapping_add(halves(1, key.remote as u64))
            .wrapping_add(halves(3, (key.remote >> 64) as u64))
            .wrapping_add(halves(5, key.local as u64))
            .wrapping_add(halves(7, (key.local >> 64) as u64))
            .wrapping_add(pair(9, key.ports, key.peer))
            .wrapping_add(pair(11, key.kind, 0));
        (sum >> 32) as u32
    }
}
