//! Path MTU discovery: how large an outer packet may be, and so how large an inner one, without I/O.
//!
//! ```text
//!   the link's MTU, a pinned Mtu ──► ceiling ┐
//!   answers to padded probes ────────────────┼──► outer MTU ──► inner MTU = outer − 60 (IPv4) or 80 (IPv6)
//!   ICMP "too big" ──► hint ─────────────────┘                  never below 1280 unless pinned
//! ```
//! Between two Penstocks sizes are probed as in RFC 8899 (DPLPMTUD), per path and per direction: with a datagram of the
//! size in question that may not be fragmented, and a small answer that says what arrived.
//!
//! ```text
//!   asking ──► climbing ──► resting ◄──► verifying: the size in use, while data flows
//!     │          ▲  ▲         │             │ it dies while smaller ones pass
//!     │          │  └ raising ┘             ▼
//!     ▼          └───────────────────── fallen to the largest size that passed meanwhile, or to the base
//!   nobody answers: the link's MTU, and what ICMP proves
//! ```
//! A path whose MTU lies between two sizes of the ladder is found to within 16 bytes. Invariants:
//!
//! - A size counts as *probed* only after an answer to a probe of at least this size, on this path, while it was in
//!   use.
//! - The answer to a probe proves that probe and smaller ones. A peer cannot answer a probe that has not reached it,
//!   since it would have to guess the probe's 64-bit transaction.
//! - Nothing unauthenticated changes a probed size. ICMP makes us probe, and no more.
//! - When everything is silent, the path has failed; it is not a black hole, and the size stays.
//!
//! # For the shell
//! The path agent does all this, for the paths that it finds and for those that are given to it. The shell
//! 1. tells it the links by [`PathAgent::set_links`](crate::path::PathAgent::set_links), whenever one changes;
//!    before that, nothing is probed, and no event comes,
//! 2. sends a [`PathTransmit`](crate::path::PathTransmit) that says `dont_fragment` with DF and without regard to
//!    the kernel's own idea of the path (`IP_PMTUDISC_PROBE`, which Linux has per socket only; `IPV6_DONTFRAG`
//!    and `IPV6_PMTUDISC_PROBE`); what the kernel refuses with `EMSGSIZE` counts as lost and need not be reported,
//! 3. hands in ICMP by [`PathAgent::handle_too_big`](crate::path::PathAgent::handle_too_big),
//! 4. applies [`PathEvent::Mtu`](crate::path::PathEvent::Mtu): see [`PathMtu`].
//!
//! Reading order: [`PathMtu`], `search`, `trial`, `hint`, [`constants`].

mod budget;
pub mod constants;
mod hint;
mod search;
#[cfg(test)]
mod tests;
mod trial;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub(crate) use budget::ByteBudget;
use constants::{MAX_LINKS, SMALLEST_INNER};
pub use hint::TooBig;
pub(crate) use search::{Conditions, Search, SizedProbe};

/// How large packets to a peer may be. For the data plane, per peer:
///
/// - Inner packets up to `inner` bytes are sealed. Larger ones are answered by ICMPv6 "packet too big" or ICMP
///   "fragmentation needed" with `inner`; IPv4 without DF is fragmented inside, to `inner`.
/// - The MSS of TCP's SYNs is clamped to `inner`, of those that leave for the peer *and* of those that come from it:
///   our SYN says what the peer's side may send, and theirs what ours may, and the two directions of a path may
///   differ. The peer does the same with what it knows.
/// - The tun route of the peer's prefixes has `inner` as its MTU. The device's own MTU stays that of the largest.
/// - Outer packets get DF, unless `fragmented`: then they leave by the kernel's socket without it, also when the
///   port is AF_XDP, and outer IPv6 is cut to 1280 bytes (`IPV6_MTU`), since no router does that for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathMtu {
    /// The largest outer IP packet that passes, its header included.
    pub outer: u16,
    /// The largest packet inside the tunnel.
    pub inner: u16,
    /// An outer packet around `inner` bytes is larger than `outer`: it must be fragmented.
    pub fragmented: bool,
    /// How this is known.
    pub source: MtuSource,
}

/// How a path's MTU is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtuSource {
    /// It is the link's, or follows from the pinned one. Nothing has been probed yet, or nobody answers probes.
    Link,
    /// It was good for the path used before; this one is about to be probed.
    Previous,
    /// A validated ICMP message said so, and nobody answers probes.
    Icmp,
    /// A probe of this size was answered.
    Probed,
    /// Smaller probes pass, but none of the least size that a path should carry.
    Base,
}

impl fmt::Display for MtuSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "of the link",
            Self::Previous => "as on the path before, about to be probed",
            Self::Icmp => "told by a router",
            Self::Probed => "probed",
            Self::Base => "assumed: not even probes of this size pass",
        })
    }
}

impl PathMtu {
    /// What `outer` leaves inside towards an address of this family.
    pub(crate) fn new(to: IpAddr, outer: u16, source: MtuSource, pinned: Option<u16>) -> Self {
        let room = outer.saturating_sub(overhead(to));
        let least = SMALLEST_INNER.min(pinned.unwrap_or(SMALLEST_INNER));
        let inner = room.min(pinned.unwrap_or(u16::MAX)).max(least);
        Self { outer, inner, fragmented: inner > room, source }
    }
}

/// The length of the headers of a UDP payload: the IP header without options, and UDP's.
pub(crate) fn header(to: IpAddr) -> u16 {
    if to.is_ipv6() { 48 } else { 28 }
}

/// The bytes that encapsulation adds: [`header`], WireGuard's header (16) and the tag (16).
pub(crate) fn overhead(to: IpAddr) -> u16 {
    header(to) + 32
}

/// The largest outer packet that may be tried at all.
pub(crate) fn ceiling(to: IpAddr, link: u16, pinned: Option<u16>) -> u16 {
    link.min(pinned.map_or(u16::MAX, |inner| inner.saturating_add(overhead(to))))
}

/// The MTU of the link by which some destinations are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkMtu {
    /// The destinations, as in the routing table: `0.0.0.0/0` for the default route's interface.
    pub network: IpNet,
    /// The interface's MTU, or less if the ports of the data plane carry less.
    pub mtu: u16,
}

/// The links, as set by the shell.
#[derive(Default)]
pub(crate) struct Links(Vec<LinkMtu>);

impl Links {
    pub fn new(links: &[LinkMtu]) -> Self {
        Self(links.iter().take(MAX_LINKS).copied().collect())
    }

    /// The MTU towards an address: that of the longest prefix.
    pub fn mtu(&self, to: IpAddr) -> Option<u16> {
        let reached = self.0.iter().filter(|link| link.network.contains(&to));
        reached.max_by_key(|link| link.network.prefix_len()).map(|link| link.mtu)
    }
}
