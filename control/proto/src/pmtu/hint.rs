//! What routers say: ICMP "fragmentation needed" (RFC 792, RFC 1191) and ICMPv6 "packet too big" (RFC 4443).
//!
//! Anybody can send such a message, so it is a hint at most. Where the path can be probed it only makes us look
//! at once. Where it cannot, it counts when the quoted datagram shows a receiver index that we do send to, which only
//! somebody who has seen our traffic knows, and even then no lower than [`BASE`].

use std::net::SocketAddr;
use std::time::Instant;

use super::constants::{BASE, HINT_LIFETIME};
use crate::messages::TRANSPORT_DATA;

/// An ICMP message about a datagram that we sent, as the shell reads it from the kernel's error queue
/// (`IP_RECVERR`, `IPV6_RECVERR`) or a raw socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig<'a> {
    /// The quoted packet's destination.
    pub to: SocketAddr,
    /// The MTU of the next hop; old routers say 0.
    pub mtu: u16,
    /// The length of the quoted packet, by its IP header, header included.
    pub length: u16,
    /// The quoted part of its UDP payload.
    pub payload: &'a [u8],
}

impl TooBig<'_> {
    /// Whether a router can have said this of such a packet, and whether it tells us anything.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let least = if self.to.is_ipv6() { BASE } else { 68 };
        (least..self.length).contains(&self.mtu)
    }

    /// Whether the quote is of transport data to one of these receiver indices.
    pub fn is_proven(&self, is_receiver: impl Fn(u32) -> bool) -> bool {
        match self.payload {
            [TRANSPORT_DATA, 0, 0, 0, a, b, c, d, ..] => is_receiver(u32::from_le_bytes([*a, *b, *c, *d])),
            _ => false,
        }
    }
}

/// The lowest of the messages that count, until it is too old.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hint(Option<(u16, Instant)>);

impl Hint {
    pub fn take(&mut self, now: Instant, mtu: u16) {
        let mtu = mtu.max(BASE);
        if self.mtu().is_none_or(|known| mtu <= known) {
            self.0 = Some((mtu, now + HINT_LIFETIME));
        }
    }

    pub fn expire(&mut self, now: Instant) {
        self.0 = self.0.filter(|(_, until)| now < *until);
    }

    pub fn mtu(&self) -> Option<u16> {
        self.0.map(|(mtu, _)| mtu)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.0.map(|(_, until)| until)
    }
}
