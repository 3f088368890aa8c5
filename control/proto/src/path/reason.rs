//! Why a peer's path is what it is, in words for whoever can change it.

use std::fmt;

use crate::coordination::{Dependence, NatType};

/// Why a path was selected, or why it is not a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The peer answers directly.
    Answered,
    /// Direct addresses are being tried.
    Probing,
    /// The peer has announced no address that could be tried.
    NoCandidates,
    /// UDP does not get out at this site.
    UdpBlockedHere,
    /// UDP does not get out at the peer's site.
    UdpBlockedThere,
    /// Both NATs have endpoint-dependent mapping.
    BothEndpointDependent,
    /// Our NAT has endpoint-dependent mapping, the peer's filters by port.
    EndpointDependentHere,
    /// The peer's NAT has endpoint-dependent mapping, ours filters by port.
    EndpointDependentThere,
    /// The direct path has stopped answering.
    DirectDied,
    /// As far as is known it should work, but it does not.
    NoAnswer,
    /// The peer answers neither directly nor over a relay.
    PeerSilent,
}

impl Reason {
    /// Why no direct path can work between NATs of these types; `None` if one can.
    pub(crate) fn against_direct(ours: &NatType, theirs: &NatType) -> Option<Self> {
        if ours.udp_blocked {
            return Some(Self::UdpBlockedHere);
        }
        if theirs.udp_blocked {
            return Some(Self::UdpBlockedThere);
        }
        match (is_endpoint_dependent(ours), is_endpoint_dependent(theirs)) {
            (true, true) => Some(Self::BothEndpointDependent),
            (true, false) if filters_by_port(theirs) => Some(Self::EndpointDependentHere),
            (false, true) if filters_by_port(ours) => Some(Self::EndpointDependentThere),
            _ => None,
        }
    }
}

impl NatType {
    /// Whether two gateways behind such NATs can reach each other directly; `None` when too little is known.
    ///
    /// They cannot in these cases only: UDP is blocked, or one NAT has endpoint-dependent mapping and the other has it
    /// too or filters by port, so that no port that either side learns is the one that the other must send to.
    #[must_use]
    pub fn direct_with(&self, other: &Self) -> Option<bool> {
        if Reason::against_direct(self, other).is_some() {
            return Some(false);
        }
        // Unknown filtering matters only if the strictest kind would be in the way.
        let strictest = |nat: &Self| {
            let filtering = nat.filtering.or(Some(Dependence::AddressAndPortDependent));
            nat.mapping.is_some().then_some(Self { filtering, ..*nat })
        };
        let (ours, theirs) = (strictest(self)?, strictest(other)?);
        Reason::against_direct(&ours, &theirs).is_none().then_some(true)
    }
}

pub(super) fn is_endpoint_dependent(nat: &NatType) -> bool {
    nat.mapping.is_some_and(|mapping| mapping != Dependence::EndpointIndependent)
}

pub(super) fn filters_by_port(nat: &NatType) -> bool {
    nat.filtering == Some(Dependence::AddressAndPortDependent)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "the peer answers directly",
            Self::Probing => "looking for a direct path",
            Self::NoCandidates => "the peer has not announced an address of its own yet",
            Self::UdpBlockedHere => "UDP is blocked here: let UDP out to any port, and its answers in",
            Self::UdpBlockedThere => "UDP is blocked at the peer: let UDP out to any port there, and its answers in",
            Self::BothEndpointDependent => {
                "both NATs use a different port for every destination: set LocalPort and forward it on one of them"
            }
            Self::EndpointDependentHere => {
                "the NAT here uses a different port for every destination, and the peer's accepts only endpoints it has \
                 sent to: set LocalPort and forward it on one of them"
            }
            Self::EndpointDependentThere => {
                "the peer's NAT uses a different port for every destination, and the one here accepts only endpoints it \
                 has sent to: set LocalPort and forward it on one of them"
            }
            Self::DirectDied => "the direct path stopped answering; it is tried again",
            Self::NoAnswer => "the NATs would allow a direct path, but nothing comes through: a firewall may block it",
            Self::PeerSilent => "the peer answers neither directly nor by a relay",
        })
    }
}
