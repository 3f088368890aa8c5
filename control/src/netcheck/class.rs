//! The usual names for kinds of NAT (RFC 3489, section 5), which RFC 4787 describes in more detail.

use std::fmt;

use penstock_proto::coordination::{Dependence, NatType};
use penstock_proto::stun::NatReport;
use serde::{Deserialize, Serialize};

/// A kind of NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatClass {
    /// Nothing is translated or filtered.
    None,
    /// Nothing is translated, and only answers are let in.
    Firewall,
    /// One port for all destinations, open for all.
    FullCone,
    /// One port for all destinations, open for addresses that were sent to.
    AddressRestricted,
    /// One port for all destinations, open for addresses and ports that were sent to.
    PortRestricted,
    /// A different port for each destination.
    Symmetric,
    /// UDP does not pass.
    UdpBlocked,
    /// Not enough is known.
    Unknown,
}

use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};

impl NatClass {
    /// The kinds that a peer may be behind, as the table of what works lists them.
    pub const OF_PEERS: [Self; 6] =
        [Self::None, Self::FullCone, Self::AddressRestricted, Self::PortRestricted, Self::Symmetric, Self::UdpBlocked];

    /// From what was measured.
    #[must_use]
    pub fn of(nat: &NatReport) -> Self {
        match (nat.translated, Self::of_type(&nat.nat_type())) {
            (Some(false), Self::FullCone) => Self::None,
            (Some(false), Self::AddressRestricted | Self::PortRestricted) => Self::Firewall,
            (_, class) => class,
        }
    }

    /// From what a peer has announced, where no NAT and a full cone look alike.
    #[must_use]
    pub fn of_type(nat: &NatType) -> Self {
        if nat.udp_blocked {
            return Self::UdpBlocked;
        }
        match (nat.mapping, nat.filtering) {
            (Some(AddressDependent | AddressAndPortDependent), _) => Self::Symmetric,
            (Some(EndpointIndependent), Some(EndpointIndependent)) => Self::FullCone,
            (Some(EndpointIndependent), Some(AddressDependent)) => Self::AddressRestricted,
            (Some(EndpointIndependent), Some(AddressAndPortDependent)) => Self::PortRestricted,
            (None, _) | (_, None) => Self::Unknown,
        }
    }

    /// The strictest behaviour of such a NAT.
    #[must_use]
    pub fn nat_type(self) -> NatType {
        let (mapping, filtering) = match self {
            Self::None | Self::FullCone => (EndpointIndependent, EndpointIndependent),
            Self::AddressRestricted => (EndpointIndependent, AddressDependent),
            Self::PortRestricted | Self::Firewall => (EndpointIndependent, AddressAndPortDependent),
            Self::Symmetric => (AddressAndPortDependent, AddressAndPortDependent),
            Self::UdpBlocked => return NatType { udp_blocked: true, ..NatType::default() },
            Self::Unknown => return NatType::default(),
        };
        NatType { mapping: Some(mapping), filtering: Some(filtering), udp_blocked: false }
    }
}

impl fmt::Display for NatClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "no NAT",
            Self::Firewall => "a firewall, no NAT",
            Self::FullCone => "full-cone NAT",
            Self::AddressRestricted => "address-restricted NAT",
            Self::PortRestricted => "port-restricted NAT",
            Self::Symmetric => "symmetric NAT",
            Self::UdpBlocked => "UDP blocked",
            Self::Unknown => "unknown",
        })
    }
}
