//! One change of the kernel's state.

use std::fmt;
use std::net::IpAddr;

use super::{Filter, Sysctl};
use crate::netlink::{Route, RouteKind, Rule};
use crate::profile::Name;

/// One change of the kernel's state. Repeating it does no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sets an interface up or down.
    SetUp {
        /// Its index.
        interface: u32,
        /// Whether up.
        up: bool,
    },
    /// Sets an interface's MTU.
    SetMtu {
        /// Its index.
        interface: u32,
        /// The largest IP packet, in bytes.
        mtu: u32,
    },
    /// Adds an address to an interface, without a network.
    AddAddress {
        /// Its index.
        interface: u32,
        /// The address.
        address: IpAddr,
    },
    /// Removes such an address from an interface.
    RemoveAddress {
        /// Its index.
        interface: u32,
        /// The address.
        address: IpAddr,
    },
    /// Sets a setting.
    SetSysctl {
        /// The setting.
        sysctl: Sysctl,
        /// Its value.
        value: String,
    },
    /// Restores the value that a setting had before the gateway changed it.
    RestoreSysctl {
        /// The setting.
        sysctl: Sysctl,
        /// Its value before.
        value: String,
    },
    /// Adds a route, or replaces the one with the same destination, table and metric.
    AddRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule.
    RemoveRule(Rule),
    /// Installs the gateway's packet filter, in one step.
    SetFilter(Box<Filter>),
    /// Removes the packet filter of the gateway of this name.
    RemoveFilter(Name),
}

impl Operation {
    /// What it is about: a failed operation becomes a problem of this name, and one that succeeds ends it.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::SetUp { interface, .. } => format!("interface {interface}"),
            Self::SetMtu { interface, .. } => format!("MTU of interface {interface}"),
            Self::AddAddress { address, .. } | Self::RemoveAddress { address, .. } => format!("address {address}"),
            Self::SetSysctl { sysctl, .. } | Self::RestoreSysctl { sysctl, .. } => sysctl.to_string(),
            Self::AddRoute(route) | Self::RemoveRoute(route) => {
                let kind = match route.kind {
                    RouteKind::Unicast => "route to",
                    RouteKind::Blackhole => "blackhole for",
                    _ => "exception for",
                };
                format!("{kind} {} in table {}", route.destination, route.table)
            }
            Self::AddRule(rule) | Self::RemoveRule(rule) => {
                let family = if rule.ipv6 { "IPv6" } else { "IPv4" };
                match (rule.from, &rule.input) {
                    (Some(from), _) => format!("routing rule for {from}"),
                    (None, Some(name)) => format!("{family} routing rule {} for {name}", rule.priority),
                    (None, None) => format!("{family} routing rule"),
                }
            }
            Self::SetFilter(_) | Self::RemoveFilter(_) => "packet filter".to_owned(),
        }
    }

    /// What an administrator can do if it fails.
    #[must_use]
    pub fn what_to_do(&self) -> &'static str {
        match self {
            Self::SetFilter(_) | Self::RemoveFilter(_) => {
                "install nftables (the command nft) and a kernel with nf_tables; routes guard the remote prefixes meanwhile"
            }
            Self::AddRule(_) | Self::RemoveRule(_) => {
                "use a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"
            }
            Self::SetSysctl { .. } | Self::RestoreSysctl { .. } => {
                "let the service write /proc/sys/net (ReadWritePaths=/proc/sys/net)"
            }
            _ => "see the kernel's error; it is retried automatically",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetMtu { interface, mtu } => write!(f, "set the MTU of interface {interface} to {mtu}"),
            Self::SetUp { interface, up: true } => write!(f, "bring interface {interface} up"),
            Self::SetUp { interface, up: false } => write!(f, "take interface {interface} down"),
            Self::SetSysctl { sysctl, value } => write!(f, "set {sysctl} to {value}"),
            Self::RestoreSysctl { sysctl, value } => write!(f, "set {sysctl} back to {value}"),
            Self::AddAddress { .. } | Self::AddRoute(_) | Self::AddRule(_) => write!(f, "add the {}", self.subject()),
            Self::RemoveAddress { .. } | Self::RemoveRoute(_) | Self::RemoveRule(_) | Self::RemoveFilter(_) => {
                write!(f, "remove the {}", self.subject())
            }
            Self::SetFilter(_) => write!(f, "set the {}", self.subject()),
        }
    }
}
