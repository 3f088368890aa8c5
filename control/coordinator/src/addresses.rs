//! Which site has which addresses: the subnets that sites may offer, and the virtual addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use penstock_proto::coordination::SiteNumber;

/// The range for virtual addresses: the shared address space (RFC 6598).
pub const VIRTUAL: Ipv4Net = match Ipv4Net::new(Ipv4Addr::new(100, 64, 0, 0), 10) {
    Ok(net) => net,
    Err(_) => panic!("a /10 is a prefix"),
};

/// The subnets that each site may offer. A prefix sorts before all those that lie inside it.
#[derive(Debug, Default)]
pub struct Owners(BTreeSet<(IpNet, SiteNumber)>);

impl Owners {
    /// Notes that a site may offer these.
    pub fn insert<'a>(&mut self, site: SiteNumber, subnets: impl IntoIterator<Item = &'a IpNet>) {
        self.0.extend(subnets.into_iter().map(|subnet| (*subnet, site)));
    }

    /// Notes that a site may no longer offer these.
    pub fn remove<'a>(&mut self, site: SiteNumber, subnets: impl IntoIterator<Item = &'a IpNet>) {
        for subnet in subnets {
            self.0.remove(&(*subnet, site));
        }
    }

    /// What prevents a site from offering a subnet, if anything does: the same subnet of another site, or else one that
    /// overlaps it. This takes a few dozen look-ups, however many subnets there are.
    #[must_use]
    pub fn rivals(&self, subnet: &IpNet, site: SiteNumber) -> Vec<(IpNet, SiteNumber)> {
        let others = |range: std::ops::RangeInclusive<(IpNet, SiteNumber)>| {
            self.0.range(range).copied().find(|(_, owner)| *owner != site)
        };
        let exactly = |net: IpNet| others((net, SiteNumber::MIN)..=(net, SiteNumber::MAX));
        let around = || {
            (0..subnet.prefix_len())
                .filter_map(|length| IpNet::new(subnet.addr(), length).ok())
                .find_map(|net| exactly(net.trunc()))
        };
        let inside = || {
            let first = (subnet.trunc(), SiteNumber::MIN);
            let found = self.0.range(first..).take_while(|(net, _)| subnet.contains(net));
            found.copied().find(|(_, owner)| *owner != site)
        };
        exactly(*subnet).into_iter().chain(around().or_else(inside)).collect()
    }
}

/// The lowest free virtual address; `None` if all are taken.
#[must_use]
pub fn free_virtual_address(taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let mut taken = taken.iter().peekable();
    VIRTUAL.hosts().find(|address| {
        while taken.next_if(|taken| *taken < address).is_some() {}
        taken.peek() != Some(&address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// Compared with the definition, one subnet after the other.
    #[test]
    fn rivals_are_those_that_overlap() {
        let mut rng = StdRng::seed_from_u64(15);
        let mut outcomes = [0; 3];
        for _ in 0..2_000 {
            let subnet = |rng: &mut StdRng| {
                let address = Ipv4Addr::new(10, 0, rng.random_range(0..4) << 6, 0);
                IpNet::new(address.into(), rng.random_range(8..21)).unwrap().trunc()
            };
            let all: Vec<(IpNet, SiteNumber)> =
                (0..rng.random_range(0..8)).map(|_| (subnet(&mut rng), rng.random_range(0..3))).collect();
            let mut owners = Owners::default();
            all.iter().for_each(|(subnet, site)| owners.insert(*site, [subnet]));
            let wanted = subnet(&mut rng);
            let others = || all.iter().filter(|(_, site)| *site != 1);
            let found = owners.rivals(&wanted, 1);
            assert!(found.iter().all(|rival| others().any(|other| other == rival)));
            let overlap = |net: &IpNet| net.contains(&wanted) || wanted.contains(net);
            assert!(found.iter().all(|(net, _)| overlap(net)));
            assert_eq!(found.is_empty(), !others().any(|(net, _)| overlap(net)), "{wanted} among {all:?}");
            let same = |list: &[(IpNet, SiteNumber)]| list.iter().any(|(net, site)| *net == wanted && *site != 1);
            assert_eq!(same(&found), same(&all));
            outcomes[found.len()] += 1;
            all.iter().for_each(|(subnet, site)| owners.remove(*site, [subnet]));
            assert!(owners.0.is_empty());
        }
        assert!(outcomes.iter().all(|count| *count > 50), "{outcomes:?}");
    }

    #[test]
    fn virtual_addresses_are_given_from_the_lowest() {
        let free = |taken: &[u8]| {
            free_virtual_address(&taken.iter().map(|last| Ipv4Addr::new(100, 64, 0, *last)).collect()).unwrap()
        };
        for (taken, expected) in [(&[][..], 1), (&[1, 3], 2), (&[1, 2, 3], 4), (&[2], 1)] {
            assert_eq!(free(taken), Ipv4Addr::new(100, 64, 0, expected), "{taken:?}");
        }
    }
}
