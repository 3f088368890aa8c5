//! How a NAT behaves, in the terms of RFC 4787, and what that means for two sites.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::coordination::{Dependence, NatType};

/// What is known about the NAT or firewall between a gateway and the network; `None` means not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NatReport {
    /// No STUN server answered.
    pub udp_blocked: bool,
    /// The address that others see.
    pub reflexive: Option<SocketAddr>,
    /// Whether addresses are translated at all.
    pub translated: Option<bool>,
    /// What part of the destination decides from which external port a packet leaves (RFC 4787, section 4.1). A NAT
    /// where this is not endpoint-independent is often called symmetric.
    pub mapping: Option<Dependence>,
    /// What part of its source decides whether a packet is let in (RFC 4787, section 5).
    pub filtering: Option<Dependence>,
    /// Whether the external port is the internal one (RFC 4787, section 4.2.1).
    pub port_preservation: Option<bool>,
    /// Whether a packet to the external address comes back in (RFC 4787, section 6).
    pub hairpinning: Option<bool>,
}

impl NatReport {
    /// Whether anything is known at all.
    #[must_use]
    pub fn is_known(&self) -> bool {
        *self != Self::default()
    }

    /// What the coordinator and the peers are told about it.
    #[must_use]
    pub fn nat_type(&self) -> NatType {
        NatType { mapping: self.mapping, filtering: self.filtering, udp_blocked: self.udp_blocked }
    }
}

fn words(dependence: Dependence) -> &'static str {
    match dependence {
        Dependence::EndpointIndependent => "endpoint-independent",
        Dependence::AddressDependent => "address-dependent",
        Dependence::AddressAndPortDependent => "address- and port-dependent",
    }
}

impl fmt::Display for NatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.udp_blocked {
            return f.write_str("UDP is blocked");
        }
        f.write_str(match self.translated {
            Some(true) => "NAT",
            Some(false) => "no NAT",
            None => "nothing is known of a NAT",
        })?;
        if let Some(mapping) = self.mapping {
            write!(f, ", {} mapping", words(mapping))?;
        }
        if let Some(filtering) = self.filtering {
            write!(f, ", {} filtering", words(filtering))?;
        }
        Ok(())
    }
}
