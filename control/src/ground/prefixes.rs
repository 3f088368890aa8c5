//! Sets of prefixes, with look-ups by containment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netlink::network;

/// A set of prefixes. The cost of a look-up depends on the number of different lengths, not of prefixes.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    all: BTreeSet<IpNet>,
    /// The lengths that occur, the longest first.
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
}

impl Prefixes {
    /// Adds a prefix.
    pub fn insert(&mut self, prefix: IpNet) {
        if self.all.insert(prefix) {
            let lengths = if prefix.addr().is_ipv4() { &mut self.lengths_v4 } else { &mut self.lengths_v6 };
            if let Err(at) = lengths.binary_search_by(|l| prefix.prefix_len().cmp(l)) {
                lengths.insert(at, prefix.prefix_len());
            }
        }
    }

    /// The longest prefix of the set that contains or equals this one.
    pub fn covering(&self, prefix: &IpNet) -> Option<IpNet> {
        let lengths = if prefix.addr().is_ipv4() { &self.lengths_v4 } else { &self.lengths_v6 };
        let longest = lengths.iter().filter(|length| **length <= prefix.prefix_len());
        longest.map(|length| network(prefix.addr(), *length)).find(|candidate| self.all.contains(candidate))
    }

    /// The longest prefix of the set that contains an address.
    pub fn holding(&self, address: IpAddr) -> Option<IpNet> {
        self.covering(&address.into())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.all.iter()
    }

    /// Whether the set has no prefix of this IP version.
    pub fn lacks(&self, ipv6: bool) -> bool {
        if ipv6 { self.lengths_v6.is_empty() } else { self.lengths_v4.is_empty() }
    }
}

impl FromIterator<IpNet> for Prefixes {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut set = Self::default();
        prefixes.into_iter().for_each(|prefix| set.insert(prefix));
        set
    }
}

/// All addresses of an IP version: the destination of its default route.
pub fn all(ipv6: bool) -> IpNet {
    if ipv6 { IpNet::V6(Ipv6Net::default()) } else { IpNet::V4(Ipv4Net::default()) }
}

/// Whether a prefix is a default route, or so short that practically all outer traffic lies inside it.
pub fn is_default(prefix: &IpNet) -> bool {
    prefix.prefix_len() <= if prefix.addr().is_ipv4() { 1 } else { 3 }
}

/// The prefix without those inside it, in as few pieces as possible.
pub fn without(prefix: IpNet, gaps: &BTreeSet<IpNet>) -> Vec<IpNet> {
    if gaps.iter().any(|gap| gap.contains(&prefix)) {
        return Vec::new();
    }
    if !gaps.iter().any(|gap| prefix.contains(gap)) {
        return vec![prefix];
    }
    let halves = prefix.subnets(prefix.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, gaps)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_covering_prefix_is_found() {
        let set: Prefixes = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "fd00::/8"].map(net).into_iter().collect();
        assert_eq!(set.covering(&net("10.1.2.0/24")), Some(net("10.1.0.0/16")));
        assert_eq!(set.covering(&net("10.1.0.0/16")), Some(net("10.1.0.0/16")));
        assert_eq!(set.covering(&net("10.0.0.0/9")), Some(net("10.0.0.0/8")));
        assert_eq!(set.holding("192.0.2.1".parse().unwrap()), Some(net("0.0.0.0/0")));
        assert_eq!(set.holding("2001:db8::1".parse().unwrap()), None);
    }

    #[test]
    fn gaps_leave_the_rest_whole() {
        let gaps: BTreeSet<IpNet> = ["10.0.0.5/32", "10.200.0.0/16"].map(net).into_iter().collect();
        let pieces = without(net("10.0.0.0/8"), &gaps);
        let held = |address: &str| pieces.iter().filter(|p| p.contains(&net(address))).count();
        assert_eq!((held("10.0.0.5/32"), held("10.200.7.7/32")), (0, 0));
        for address in ["10.0.0.4/32", "10.0.0.6/32", "10.255.255.255/32", "10.199.1.1/32", "10.201.0.0/32"] {
            assert_eq!(held(address), 1, "{address}");
        }
        let size: u64 = pieces.iter().map(|p| 1u64 << (32 - p.prefix_len())).sum();
        assert_eq!(size, (1 << 24) - 1 - (1 << 16));
        assert_eq!(without(net("10.0.0.0/8"), &BTreeSet::new()), [net("10.0.0.0/8")]);
        assert_eq!(without(net("10.200.1.0/24"), &gaps), []);
    }
}
