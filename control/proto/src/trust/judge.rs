//! What a gateway lets a coordinator route into the tunnel, whatever the coordinator says or anyone has signed.
//!
//! A prefix from a map must pass here before it is routed, guarded or made an allowed IP. Prefixes of the profile's
//! peers need not, since the gateway's administrator has written them.
//!
//! - Never a prefix that is one of the gateway's own networks or lies inside one. One that *contains* such a network
//!   passes; the caller must let the longer prefix of that network win.
//! - Without `Accept` in the profile, only private prefixes (RFC 1918, RFC 4193) that contain no address of the
//!   coordinator, a relay, a STUN server or a peer's endpoint. With it, exactly what lies inside one of its prefixes,
//!   including public ones and default routes.
//! - A virtual address, a /32 of 100.64.0.0/10, needs no `Accept`, but must not be a server's either.
//! - One prefix has one peer, and all peers together have at most [`PREFIXES_LIMIT`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::prefix::{Server, Servers, has_host_bits, is_overlay_address, is_private, unroutable};

/// The most prefixes of all peers of a map together: each is a route, a blackhole and an allowed IP.
pub const PREFIXES_LIMIT: usize = 65_536;

/// What a gateway knows about itself and its surroundings.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    own: Vec<IpNet>,
    accept: Option<Vec<IpNet>>,
    servers: Servers,
}

impl Surroundings {
    /// `own` are the connected networks and `Lan.Subnets`, `accept` is `Accept` of the profile, `servers`
    /// are the addresses of coordinator, relays and STUN servers, and the peers' endpoints.
    pub fn new(
        own: impl IntoIterator<Item = IpNet>,
        accept: Option<Vec<IpNet>>,
        servers: impl IntoIterator<Item = (IpAddr, Server)>,
    ) -> Self {
        let own = own.into_iter().map(|prefix| prefix.trunc()).collect();
        Self { own, accept, servers: Servers::new(servers) }
    }

    /// Whether one prefix may be routed into the tunnel.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, prefix: IpNet) -> Result<(), RefusedPrefix> {
        self.reason_against(&prefix).map_or(Ok(()), |reason| Err(RefusedPrefix { prefix, reason }))
    }

    /// [`admit`](Self::admit) for prefixes that passed in the surroundings `before`, if given. These are checked only
    /// against what is new: a gateway has thousands of prefixes, and its surroundings change whenever a peer moves.
    pub fn still_admit(&self, before: Option<&Self>) -> impl Fn(IpNet) -> Result<(), RefusedPrefix> + '_ {
        let same = |before: &&Self| (&before.own, &before.accept) == (&self.own, &self.accept);
        let new = before.filter(same).map(|before| self.servers.beyond(&before.servers));
        move |prefix| match &new {
            Some(new) if new.within(&prefix).is_none() => Ok(()),
            _ => self.admit(prefix),
        }
    }

    fn reason_against(&self, prefix: &IpNet) -> Option<PrefixReason> {
        if has_host_bits(prefix) {
            return Some(PrefixReason::HostBits);
        }
        if let Some(reason) = unroutable(prefix) {
            return Some(PrefixReason::Unroutable(reason));
        }
        if let Some(own) = self.own.iter().find(|own| own.contains(prefix)) {
            return Some(PrefixReason::Own(*own));
        }
        let accepted = self.accept.as_ref().map(|accept| accept.iter().any(|accepted| accepted.contains(prefix)));
        match accepted {
            Some(true) => return None,
            Some(false) if !is_overlay_address(prefix) => return Some(PrefixReason::NotAccepted),
            _ => {}
        }
        if prefix.prefix_len() == 0 {
            return Some(PrefixReason::Default);
        }
        if !is_private(prefix) && !is_overlay_address(prefix) {
            return Some(PrefixReason::Public);
        }
        self.servers.within(prefix).map(|(address, server)| PrefixReason::Holds(address, server))
    }
}

/// The verdict on all prefixes of a map. `P` identifies a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement<P> {
    /// What may be routed, each prefix to one peer.
    pub accepted: BTreeMap<IpNet, P>,
    /// What may not, in the order of the offers.
    pub refused: Vec<(P, RefusedPrefix)>,
}

/// Judges the prefixes that a map offers besides those in force: `in_force` tells which ones are, and `count` how many.
/// Of two peers with the same prefix the earlier one gets it, and when there are too many prefixes the later ones are
/// refused.
pub fn judge<P: Copy + PartialEq>(
    offers: impl IntoIterator<Item = (P, IpNet)>,
    surroundings: &Surroundings,
    in_force: impl Fn(&IpNet) -> bool,
    count: usize,
) -> Judgement<P> {
    let mut judgement = Judgement { accepted: BTreeMap::new(), refused: Vec::new() };
    for (peer, prefix) in offers {
        let reason = match judgement.accepted.get(&prefix) {
            Some(owner) if *owner == peer => continue,
            Some(_) => Some(PrefixReason::Taken),
            None if in_force(&prefix) => Some(PrefixReason::Taken),
            None => surroundings.reason_against(&prefix),
        };
        match reason {
            Some(reason) => judgement.refused.push((peer, RefusedPrefix { prefix, reason })),
            None if count + judgement.accepted.len() >= PREFIXES_LIMIT => {
                judgement.refused.push((peer, RefusedPrefix { prefix, reason: PrefixReason::TooMany }));
            }
            None => drop(judgement.accepted.insert(prefix, peer)),
        }
    }
    judgement
}

/// A prefix that is not routed, with the reason; as text, a sentence for the gateway's administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{prefix} is not routed: {reason}")]
pub struct RefusedPrefix {
    /// The prefix.
    pub prefix: IpNet,
    /// The reason.
    pub reason: PrefixReason,
}

/// Why a gateway does not route a prefix that a coordinator offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixReason {
    /// It has bits set beyond its length.
    HostBits,
    /// Its addresses cannot be behind any site; the text says what they are.
    Unroutable(&'static str),
    /// It is this network of the gateway's, or lies inside it.
    Own(IpNet),
    /// `Accept` does not contain it.
    NotAccepted,
    /// It is a default route, and there is no `Accept`.
    Default,
    /// It is not private, and there is no `Accept`.
    Public,
    /// It would draw traffic to this address into the tunnel.
    Holds(IpAddr, Server),
    /// Another peer has it.
    Taken,
    /// There are [`PREFIXES_LIMIT`] already.
    TooMany,
}

impl fmt::Display for PrefixReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostBits => f.write_str("it is an address within a prefix, not a prefix"),
            Self::Unroutable(reason) => write!(f, "its addresses {reason}"),
            Self::Own(own) => write!(f, "it lies inside {own}, a network of this gateway"),
            Self::NotAccepted => f.write_str("Accept in the profile does not contain it"),
            Self::Default => f.write_str("it is a default route, which takes an entry of Accept in the profile"),
            Self::Public => f.write_str("it is not a private prefix, which takes an entry of Accept in the profile"),
            Self::Holds(address, server) => {
                write!(f, "it holds {address}, {server}, which takes an entry of Accept in the profile")
            }
            Self::Taken => f.write_str("another peer has it already"),
            Self::TooMany => write!(f, "the map has more than {PREFIXES_LIMIT} prefixes"),
        }
    }
}

#[cfg(test)]
mod tests;
