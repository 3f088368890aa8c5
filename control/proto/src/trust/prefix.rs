//! Kinds of prefixes, and addresses that a prefix must not contain.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The range from which the coordinator takes virtual addresses: the shared address space (RFC 6598).
const OVERLAY: IpNet = v4(100, 64, 0, 0, 10);

/// Whether a prefix lies in private address space: RFC 1918, or unique local addresses (RFC 4193).
#[must_use]
pub fn is_private(prefix: &IpNet) -> bool {
    const PRIVATE: [IpNet; 4] = [v4(10, 0, 0, 0, 8), v4(172, 16, 0, 0, 12), v4(192, 168, 0, 0, 16), v6(0xfc00, 7)];
    PRIVATE.iter().any(|private| private.contains(prefix))
}

/// The overlay's address range, if the prefix lies inside it.
pub(super) fn overlay_around(prefix: &IpNet) -> Option<IpNet> {
    OVERLAY.contains(prefix).then_some(OVERLAY)
}

/// Whether a prefix is a single address from the range that the coordinator gives to sites.
#[must_use]
pub fn is_overlay_address(prefix: &IpNet) -> bool {
    prefix.prefix_len() == 32 && OVERLAY.contains(prefix)
}

/// Whether a prefix has bits set beyond its length.
pub(super) fn has_host_bits(prefix: &IpNet) -> bool {
    prefix.addr() != prefix.network()
}

/// Whether two prefixes have an address in common.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Why a prefix cannot be behind any site, if so. The overlay's own addresses are not included.
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

/// The kind of server whose traffic a prefix would draw into the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// The coordinator.
    Coordinator,
    /// A relay.
    Relay,
    /// A host on the way to the coordinator or to a relay that is reached over TLS: the relay itself, or a proxy.
    RelayOrProxy,
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
            Self::RelayOrProxy => "the address of a relay or a proxy",
            Self::Stun => "a STUN server's address",
            Self::Endpoint => "the outer address of a site",
        })
    }
}

/// Addresses that no tunnel may lead to, in order and each once: found by prefix in logarithmic time.
#[derive(Clone, Debug, Default)]
pub(super) struct Servers(Vec<(IpAddr, Server)>);

impl Servers {
    /// Of an address with several purposes, only the first in the order of [`Server`] is named.
    pub fn new(addresses: impl IntoIterator<Item = (IpAddr, Server)>) -> Self {
        // A dual-stack socket shows IPv4 addresses as IPv4-mapped ones.
        let canonical = addresses.into_iter().map(|(address, server)| (address.to_canonical(), server));
        let mut servers: Vec<_> = canonical.collect();
        servers.sort_unstable();
        servers.dedup_by_key(|(address, _)| *address);
        Self(servers)
    }

    /// Those that `others` does not have.
    pub fn beyond(&self, others: &Self) -> Self {
        let mut others = others.0.iter().map(|(address, _)| address).peekable();
        let mut lack = |address: &IpAddr| {
            while others.next_if(|other| *other < address).is_some() {}
            others.peek() != Some(&address)
        };
        Self(self.0.iter().filter(|(address, _)| lack(address)).copied().collect())
    }

    /// The lowest of the addresses in the prefix.
    pub fn within(&self, prefix: &IpNet) -> Option<(IpAddr, Server)> {
        let first = self.0.partition_point(|(address, _)| *address < prefix.network());
        self.0.get(first).copied().filter(|(address, _)| *address <= prefix.broadcast())
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}
