//! Kinds of prefixes, and addresses that a prefix must not hold.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where the coordinator takes virtual addresses from: the shared address space (RFC 6598).
const OVERLAY: IpNet = v4(100, 64, 0, 0, 10);

/// Whether a prefix lies in private address space: RFC 1918, or unique local addresses (RFC 4193).
#[must_use]
pub fn is_private(prefix: &IpNet) -> bool {
    const PRIVATE: [IpNet; 4] = [v4(10, 0, 0, 0, 8), v4(172, 16, 0, 0, 12), v4(192, 168, 0, 0, 16), v6(0xfc00, 7)];
    PRIVATE.iter().any(|private| private.contains(prefix))
}

/// The overlay's virtual addresses, if the prefix lies inside them.
pub(super) fn overlay_around(prefix: &IpNet) -> Option<IpNet> {
    OVERLAY.contains(prefix).then_some(OVERLAY)
}

/// Whether a prefix is one address of those that the coordinator gives to sites.
#[must_use]
pub fn is_overlay_address(prefix: &IpNet) -> bool {
    prefix.prefix_len() == 32 && OVERLAY.contains(prefix)
}

/// Whether a prefix has bits beyond its length.
pub(super) fn has_host_bits(prefix: &IpNet) -> bool {
    prefix.addr() != prefix.network()
}

/// Whether two prefixes have an address in common.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// What no site can have behind it, with the reason. The overlay's own addresses are not among them.
pub(super) fn unroutable(prefix: &IpNet) -> Option<&'static str> {
    const UNROUTABLE: [(IpNet, &str); 6] = [
        (v4(0, 0, 0, 0, 8), "are nobody's"),
        (v4(127, 0, 0, 0, 8), "are every machine's own"),
        (v4(224, 0, 0, 0, 3), "are for multicast, or reserved"),
        (v6(0, 16), "are every machine's own, or map IPv4 addresses"),
        (v6(0xfe80, 10), "belong to a link"),
        (v6(0xff00, 8), "are for multicast"),
    ];
    UNROUTABLE.iter().find(|(range, _)| range.contains(prefix)).map(|(_, reason)| *reason)
}

/// Whose address a prefix would draw into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// The coordinator.
    Coordinator,
    /// A relay.
    Relay,
    /// A STUN server.
    Stun,
    /// The outer endpoint of a site, or an address at which it says that it can be reached.
    Endpoint,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "the coordinator's address",
            Self::Relay => "a relay's address",
            Self::Stun => "a STUN server's address",
            Self::Endpoint => "the outer address of a site",
        })
    }
}

/// Addresses that no tunnel may lead to, found by prefix in logarithmic time.
#[derive(Clone, Debug, Default)]
pub(super) struct Servers(BTreeMap<IpAddr, Server>);

impl Servers {
    /// An address may serve several purposes; the first in the order of [`Server`] is named.
    pub fn new(addresses: impl IntoIterator<Item = (IpAddr, Server)>) -> Self {
        let mut servers = BTreeMap::new();
        for (address, server) in addresses {
            // A dual-stack socket shows IPv4 addresses as mapped ones.
            servers
                .entry(address.to_canonical())
                .and_modify(|known: &mut Server| *known = server.min(*known))
                .or_insert(server);
        }
        Self(servers)
    }

    /// Those that the others lack.
    pub fn beyond(&self, others: &Self) -> Self {
        Self(self.0.iter().filter(|(address, _)| !others.0.contains_key(*address)).map(|(a, s)| (*a, *s)).collect())
    }

    /// The lowest address that lies in the prefix.
    pub fn within(&self, prefix: &IpNet) -> Option<(IpAddr, Server)> {
        let mut range = self.0.range(prefix.network()..=prefix.broadcast());
        range.next().map(|(address, server)| (*address, *server))
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}
