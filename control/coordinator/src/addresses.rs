//! Who has which addresses: subnets that do not overlap, and the virtual addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use penstock_proto::coordination::{Name, SiteKey};

use crate::site::Site;

/// Where virtual addresses are taken from: the shared address space (RFC 6598).
pub const VIRTUAL: Ipv4Net = match Ipv4Net::new(Ipv4Addr::new(100, 64, 0, 0), 10) {
    Ok(net) => net,
    Err(_) => panic!("a /10 is a prefix"),
};

/// Why a site cannot have a subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// It is not written as a subnet.
    #[error("{0} is an address within a subnet: write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// It cannot be at a site.
    #[error("{subnet} cannot be at a site: it overlaps {reserved}, {reason}")]
    Reserved {
        /// The subnet.
        subnet: IpNet,
        /// What it overlaps.
        reserved: IpNet,
        /// What that is.
        reason: &'static str,
    },
    /// The site says it twice, or one within the other.
    #[error("{name} offers {first} and {second}, which overlap")]
    Twice {
        /// The site.
        name: Name,
        /// The one.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// Another site has it, or part of it.
    #[error("{subnet} of {name} overlaps {others} of {other}")]
    Overlap {
        /// The subnet.
        subnet: IpNet,
        /// Whose it is to be.
        name: Name,
        /// The other's.
        others: IpNet,
        /// Whose it is.
        other: Name,
    },
}

/// The subnets of sites, none of which overlaps one of another site.
#[derive(Debug, Default)]
pub struct Subnets {
    /// By their first address.
    owners: BTreeMap<IpAddr, (IpNet, Owner)>,
}

#[derive(Debug)]
struct Owner {
    key: SiteKey,
    name: Name,
}

impl Subnets {
    /// Adds those of a site.
    pub fn insert(&mut self, site: &Site) {
        for subnet in &site.subnets {
            let owner = Owner { key: site.key, name: site.name.clone() };
            self.owners.insert(subnet.network(), (*subnet, owner));
        }
    }

    /// Removes those of a site, if they are its own.
    pub fn remove(&mut self, site: &Site) {
        for subnet in &site.subnets {
            if self.owners.get(&subnet.network()).is_some_and(|(_, owner)| owner.key == site.key) {
                self.owners.remove(&subnet.network());
            }
        }
    }

    /// A subnet of another site that overlaps this one.
    fn overlap(&self, subnet: &IpNet, site: &SiteKey) -> Option<(IpNet, &Owner)> {
        let (first, last) = (subnet.network(), subnet.broadcast());
        let before = self.owners.range(..first).next_back().filter(|(_, (other, _))| other.contains(subnet));
        let mut found =
            before.into_iter().chain(self.owners.range(first..=last)).map(|(_, (net, owner))| (*net, owner));
        found.find(|(_, owner)| owner.key != *site)
    }
}

/// Checks whether `site` can have its subnets beside those of `others`, its own not counted.
///
/// # Errors
/// The first subnet that it cannot have.
pub fn check_subnets(site: &Site, others: &Subnets) -> Result<(), SubnetError> {
    for (number, subnet) in site.subnets.iter().enumerate() {
        if *subnet != subnet.trunc() {
            return Err(SubnetError::HostBits(*subnet));
        }
        for (reserved, reason) in reserved() {
            if overlap(subnet, &reserved) {
                return Err(SubnetError::Reserved { subnet: *subnet, reserved, reason });
            }
        }
        if let Some(first) = site.subnets[..number].iter().find(|first| overlap(first, subnet)) {
            return Err(SubnetError::Twice { name: site.name.clone(), first: *first, second: *subnet });
        }
        if let Some((others, owner)) = others.overlap(subnet, &site.key) {
            let (name, other) = (site.name.clone(), owner.name.clone());
            return Err(SubnetError::Overlap { subnet: *subnet, name, others, other });
        }
    }
    Ok(())
}

/// The lowest virtual address that is not taken. None if all are.
#[must_use]
pub fn free_virtual_address(taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let mut taken = taken.iter().peekable();
    VIRTUAL.hosts().find(|address| {
        while taken.next_if(|taken| *taken < address).is_some() {}
        taken.peek() != Some(&address)
    })
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn reserved() -> [(IpNet, &'static str); 7] {
    let v4 = |a, b, c, d, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length));
    let v6 = |first: u16, length| {
        let address = std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0);
        IpNet::V6(ipnet::Ipv6Net::new_assert(address, length))
    };
    [
        (VIRTUAL.into(), "where sites have their virtual addresses"),
        (v4(0, 0, 0, 0, 8), "which is nobody's address"),
        (v4(127, 0, 0, 0, 8), "every machine's own addresses"),
        (v4(224, 0, 0, 0, 3), "multicast and reserved addresses"),
        (v6(0, 16), "every machine's own and mapped addresses"),
        (v6(0xfe80, 10), "the addresses of links"),
        (v6(0xff00, 8), "multicast addresses"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::SiteState;

    fn site(number: u8, subnets: &[&str]) -> Site {
        Site {
            key: [number; 32].into(),
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: Ipv4Addr::new(100, 64, 0, number),
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            tags: BTreeSet::new(),
            state: SiteState::Approved,
            created: 0,
            last_seen: None,
            ends: None,
        }
    }

    fn check(candidate: &Site, others: &[Site]) -> Result<(), String> {
        let mut subnets = Subnets::default();
        others.iter().for_each(|other| subnets.insert(other));
        check_subnets(candidate, &subnets).map_err(|error| error.to_string())
    }

    #[test]
    fn overlaps_are_named_whichever_is_wider() {
        let others = [site(1, &["10.1.0.0/16", "2001:db8:1::/48"])];
        assert_eq!(check(&site(2, &["10.2.0.0/16", "2001:db8:2::/48"]), &others), Ok(()));
        assert_eq!(
            check(&site(2, &["10.1.7.0/24"]), &others).unwrap_err(),
            "10.1.7.0/24 of site-2 overlaps 10.1.0.0/16 of site-1"
        );
        assert!(check(&site(2, &["10.0.0.0/8"]), &others).is_err());
        assert!(check(&site(2, &["10.1.0.0/16"]), &others).is_err());
        assert!(check(&site(2, &["2001:db8::/32"]), &others).is_err());
        assert_eq!(check(&site(1, &["10.1.0.0/17"]), &others), Ok(()), "a site does not overlap itself");
    }

    #[test]
    fn who_gives_subnets_back_takes_nothing_of_others_along() {
        let mut subnets = Subnets::default();
        let (one, other) = (site(1, &["10.1.0.0/16"]), site(2, &["10.2.0.0/16"]));
        subnets.insert(&one);
        subnets.insert(&other);
        // A site whose old record claims what it never had.
        subnets.remove(&site(1, &["10.1.0.0/16", "10.2.0.0/16"]));
        assert_eq!(check_subnets(&site(3, &["10.1.0.0/16"]), &subnets), Ok(()));
        assert!(check_subnets(&site(3, &["10.2.7.0/24"]), &subnets).is_err());
    }

    #[test]
    fn some_subnets_cannot_be_at_a_site() {
        let bad = [
            "100.64.1.0/24",
            "100.0.0.0/8",
            "0.0.0.0/0",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/0",
            "::1/128",
            "fe80::/64",
            "ff00::/8",
            "10.1.0.1/24",
        ];
        for bad in bad {
            assert!(check(&site(1, &[bad]), &[]).is_err(), "{bad}");
        }
        assert_eq!(
            check(&site(1, &["10.1.0.1/24"]), &[]).unwrap_err(),
            "10.1.0.1/24 is an address within a subnet: write 10.1.0.0/24"
        );
        assert!(check(&site(1, &["10.1.0.0/24", "10.1.0.0/16"]), &[]).unwrap_err().contains("which overlap"));
        for good in ["10.0.0.0/8", "192.168.1.0/24", "100.128.0.0/9", "fd00::/8", "2000::/3", "169.254.7.0/24"] {
            assert_eq!(check(&site(1, &[good]), &[]), Ok(()), "{good}");
        }
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
