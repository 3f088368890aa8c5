//! The MTU towards a peer that does not answer our probes: any WireGuard peer.

use std::net::IpAddr;
use std::time::Instant;

use super::hint::{Hint, TooBig};
use super::{MtuSource, PathMtu, ceiling};

/// The path to one endpoint, as the link and the routers describe it.
#[derive(Clone, Copy, Debug)]
pub struct PlainPath {
    to: IpAddr,
    link: u16,
    pinned: Option<u16>,
    hint: Hint,
}

impl PlainPath {
    /// The path to an address over a link with this MTU. `pinned` is the profile's `Mtu`, for the inside.
    #[must_use]
    pub fn new(to: IpAddr, link: u16, pinned: Option<u16>) -> Self {
        Self { to, link, pinned, hint: Hint::default() }
    }

    /// The endpoint, the link or the profile has changed. What routers said about another endpoint is forgotten.
    pub fn set_link(&mut self, to: IpAddr, link: u16, pinned: Option<u16>) {
        if to != self.to {
            self.hint = Hint::default();
        }
        (self.to, self.link, self.pinned) = (to, link, pinned);
    }

    /// Takes an ICMP message; `is_receiver` knows the receiver indices of the peer's sessions that we send on. Returns
    /// whether it counts.
    pub fn handle_too_big(&mut self, now: Instant, told: &TooBig<'_>, is_receiver: impl Fn(u32) -> bool) -> bool {
        let counts = told.to.ip() == self.to && told.is_plausible() && told.is_proven(is_receiver);
        if counts {
            self.hint.take(now, told.mtu);
        }
        counts
    }

    /// Forgets what has expired.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.hint.expire(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.hint.deadline()
    }

    /// What may be sent.
    #[must_use]
    pub fn mtu(&self) -> PathMtu {
        let most = ceiling(self.to, self.link, self.pinned);
        let (outer, source) = match self.hint.mtu().filter(|told| *told < most) {
            Some(told) => (told, MtuSource::Icmp),
            None => (most, MtuSource::Link),
        };
        PathMtu::new(self.to, outer, source, self.pinned)
    }
}
