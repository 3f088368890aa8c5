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
    /// The peer has told no address that could be tried.
    NoCandidates,
    /// No UDP gets out here.
    UdpBlockedHere,
    /// No UDP gets out there.
    UdpBlockedThere,
    /// Both NATs map endpoint-dependently.
    BothEndpointDependent,
    /// Ours maps endpoint-dependently, the peer's filters by port.
    EndpointDependentHere,
    /// The peer's maps endpoint-dependently, ours filters by port.
    EndpointDependentThere,
    /// The direct path has stopped answering.
    DirectDied,
    /// By what is known it should work, and it doesn't.
    NoAnswer,
    /// Neither directly nor by a relay does the peer answer.
    PeerSilent,
}

impl Reason {
    /// Why no direct path can work between NATs of these types, if it can't.
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
    /// They cannot exactly when UDP is blocked, or when one's mapping is endpoint-dependent and the other's
    /// is too or filters by port: then no port that one of them learns is the one that the other must
    /// send to.
    #[must_use]
    pub fn direct_with(&self, other: &Self) -> Option<bool> {
        if Reason::against_direct(self, other).is_some() {
            return Some(false);
        }
        let known = |nat: &Self| nat.mapping.is_some() && nat.filtering.is_some();
        (known(self) && known(other)).then_some(true)
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
            Self::NoCandidates => "the peer has not told any address of its own yet",
            Self::UdpBlockedHere => "UDP is blocked here: let UDP out to any port, and its answers in",
            Self::UdpBlockedThere => "UDP is blocked at the peer: let UDP out to any port there, and its answers in",
            Self::BothEndpointDependent => {
                "both NATs give every destination another port: set LocalPort and forward it on one of them"
            }
            Self::EndpointDependentHere => {
                "the NAT here gives every destination another port, and the peer's lets in only known ports: \
                 set LocalPort and forward it on one of them"
            }
            Self::EndpointDependentThere => {
                "the peer's NAT gives every destination another port, and the one here lets in only known ports: \
                 set LocalPort and forward it on one of them"
            }
            Self::DirectDied => "the direct path stopped answering; it is tried again",
            Self::NoAnswer => "the NATs would allow a direct path, but nothing comes through: a firewall may block it",
            Self::PeerSilent => "the peer answers neither directly nor by a relay",
        })
    }
}
