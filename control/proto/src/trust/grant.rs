//! Which subnets of a site are put in force: the coordinator's decision, before anything is signed.
//!
//! As long as nothing is granted: private prefixes (RFC 1918, RFC 4193) that overlap no other site's and contain no
//! address of the coordinator, a relay, a STUN server or another site. Everything else, default routes and public
//! prefixes above all, waits for a grant: `key create --subnet`, `site approve --subnets`.
//!
//! Once something is granted, by an administrator or by the rule above, it is the site's statement, and an offer is in
//! force if it lies inside. One that does not has to wait, and the previous offer stays in force.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::prefix::{Server, Servers, is_private, overlap};
use super::statement::{Subnets, SubnetsError};
use crate::coordination::Name;

/// What a site wants, and what it has.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The subnets that the gateway offers now.
    pub subnets: &'a [IpNet],
    /// Those that are announced to the others.
    pub in_force: &'a [IpNet],
    /// What it may offer. `None`: nothing was decided yet, and it has no statement.
    pub granted: Option<&'a Subnets>,
}

/// What the rest of the overlay has.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere {
    others: Vec<(IpNet, Name)>,
    servers: Servers,
}

/// The decision about an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What is announced to the others. If nothing was granted yet, this is to be granted.
    pub in_force: Vec<IpNet>,
    /// What waits for an administrator, and why.
    pub waiting: Vec<(IpNet, WaitReason)>,
}

/// Why a subnet is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// No administrator can change that.
    Impossible(SubnetsError),
    /// It lies outside what the site may offer.
    NotGranted,
    /// It is a default route.
    Default,
    /// It is not private.
    Public,
    /// It overlaps this subnet of another site.
    Overlap(IpNet, Name),
    /// It contains this address.
    Holds(IpAddr, Server),
}

impl Elsewhere {
    /// `others` are the subnets that every other site may offer. `servers` are the addresses of coordinator, relays and
    /// STUN servers, and all those at which *other* sites say that they can be reached.
    pub fn new(
        others: impl IntoIterator<Item = (IpNet, Name)>,
        servers: impl IntoIterator<Item = (IpAddr, Server)>,
    ) -> Self {
        Self { others: others.into_iter().collect(), servers: Servers::new(servers) }
    }

    /// Decides on the offer of a site.
    #[must_use]
    pub fn decide(&self, offer: Offer<'_>) -> Decision {
        let mut decision = Decision::default();
        for subnet in offer.subnets {
            match self.reason_against(subnet, offer.granted) {
                None => decision.in_force.push(*subnet),
                Some(reason) => decision.waiting.push((*subnet, reason)),
            }
        }
        if !decision.waiting.is_empty() && !offer.in_force.is_empty() {
            let may = |subnet: &&IpNet| offer.granted.is_some_and(|granted| granted.contain(subnet));
            decision.in_force = offer.in_force.iter().filter(may).copied().collect();
        }
        decision
    }

    fn reason_against(&self, subnet: &IpNet, granted: Option<&Subnets>) -> Option<WaitReason> {
        if let Err(error) = Subnets::check(subnet) {
            return Some(WaitReason::Impossible(error));
        }
        let other = |conflict: fn(&IpNet, &IpNet) -> bool| {
            let other = self.others.iter().find(|(other, _)| conflict(other, subnet));
            other.map(|(other, name)| WaitReason::Overlap(*other, name.clone()))
        };
        match granted {
            // A granted subnet may contain or lie inside another site's, but no two sites have the same one.
            Some(granted) if granted.contain(subnet) => other(IpNet::eq),
            Some(_) => Some(WaitReason::NotGranted),
            None if subnet.prefix_len() == 0 => Some(WaitReason::Default),
            None if !is_private(subnet) => Some(WaitReason::Public),
            None => other(overlap)
                .or_else(|| self.servers.within(subnet).map(|(address, server)| WaitReason::Holds(address, server))),
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible(error) => error.fmt(f),
            Self::NotGranted => f.write_str("the site was not granted it"),
            Self::Default => f.write_str("a default route must be granted"),
            Self::Public => f.write_str("a prefix that is not private must be granted"),
            Self::Overlap(other, name) => write!(f, "it overlaps {other} of {name}"),
            Self::Holds(address, server) => write!(f, "it holds {address}, {server}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn elsewhere() -> Elsewhere {
        let others = nets(&["10.102.0.0/16", "fd02::/48"]).into_iter().map(|net| (net, "berlin".parse().unwrap()));
        let servers = [("192.168.7.1", Server::Endpoint), ("172.16.0.9", Server::Coordinator)];
        Elsewhere::new(others, servers.map(|(address, server)| (address.parse().unwrap(), server)))
    }

    fn decide(subnets: &[&str], in_force: &[&str], granted: Option<&[&str]>) -> (Vec<IpNet>, Vec<String>) {
        let granted = granted.map(|granted| Subnets::new(nets(granted)).unwrap());
        let (subnets, in_force) = (nets(subnets), nets(in_force));
        let offer = Offer { subnets: &subnets, in_force: &in_force, granted: granted.as_ref() };
        let decision = elsewhere().decide(offer);
        (decision.in_force, decision.waiting.iter().map(|(_, reason)| reason.to_string()).collect())
    }

    #[test]
    fn private_subnets_need_no_grant() {
        let good: &[&str] = &["10.101.0.0/24", "192.168.8.0/24", "fd01::/48", "172.20.0.0/16"];
        assert_eq!(decide(good, &[], None), (nets(good), vec![]));
    }

    #[test]
    fn everything_else_does() {
        for (bad, reason) in [
            ("0.0.0.0/0", "a default route must be granted"),
            ("::/0", "a default route must be granted"),
            ("8.0.0.0/7", "a prefix that is not private must be granted"),
            ("2000::/3", "a prefix that is not private must be granted"),
            ("10.0.0.0/7", "a prefix that is not private must be granted"),
            ("10.102.7.0/24", "it overlaps 10.102.0.0/16 of berlin"),
            ("10.0.0.0/8", "it overlaps 10.102.0.0/16 of berlin"),
            ("192.168.7.0/24", "it holds 192.168.7.1, the outer address of a site"),
            ("172.16.0.0/12", "it holds 172.16.0.9, the coordinator's address"),
        ] {
            assert_eq!(decide(&[bad], &[], None), (vec![], vec![reason.to_owned()]), "{bad}");
            let granted: &[&str] = &[bad];
            assert_eq!(decide(&[bad], &[], Some(granted)), (nets(&[bad]), vec![]), "{bad}");
        }
    }

    #[test]
    fn some_things_cannot_be_granted() {
        for bad in ["127.0.0.0/8", "100.64.7.0/24", "fe80::/64", "ff00::/8"] {
            assert!(Subnets::new(nets(&[bad])).is_err(), "{bad}");
            assert_eq!(decide(&[bad], &[], Some(&["0.0.0.0/0", "::/0"])).0, [], "{bad}");
        }
        assert_eq!(
            decide(&["10.1.0.1/24"], &[], None).1,
            ["10.1.0.1/24 is an address within a subnet: write 10.1.0.0/24"]
        );
        let (in_force, waiting) = decide(&["10.102.0.0/16"], &[], Some(&["10.0.0.0/8"]));
        assert_eq!((in_force, waiting), (vec![], vec!["it overlaps 10.102.0.0/16 of berlin".to_owned()]));
    }

    #[test]
    fn a_first_offer_gets_what_it_can() {
        let (in_force, waiting) = decide(&["10.101.0.0/24", "0.0.0.0/0"], &[], None);
        assert_eq!((in_force, waiting.len()), (nets(&["10.101.0.0/24"]), 1));
    }

    #[test]
    fn a_changed_offer_waits_and_the_old_one_stays() {
        let old: &[&str] = &["10.101.0.0/24", "10.101.1.0/24"];
        for changed in [&["10.103.0.0/24"][..], &["10.101.0.0/24", "10.103.0.0/24"], &["10.101.0.0/16"]] {
            let (in_force, waiting) = decide(changed, old, Some(old));
            assert_eq!((in_force, waiting), (nets(old), vec!["the site was not granted it".to_owned()]));
        }
        assert_eq!(decide(&["10.101.1.0/24"], old, Some(old)), (nets(&["10.101.1.0/24"]), vec![]), "less is no change");
        assert_eq!(decide(&[], old, Some(old)), (vec![], vec![]));
        let narrowed: &[&str] = &["10.101.0.0/24"];
        assert_eq!(decide(&["10.103.0.0/24"], old, Some(narrowed)).0, nets(narrowed), "never more than is granted");
    }

    #[test]
    fn whatever_is_offered_only_what_may_be_is_in_force() {
        let mut rng = StdRng::seed_from_u64(7);
        let prefix = |rng: &mut StdRng| {
            let first = [8, 10, 10, 10, 172, 192][rng.random_range(0..6)];
            let address = [first, if first == 192 { 168 } else { 16 }, rng.random_range(0..4), 0];
            IpNet::new(address.into(), rng.random_range(20..27)).unwrap().trunc()
        };
        let list = |rng: &mut StdRng, most| (0..rng.random_range(0..most)).map(|_| prefix(rng)).collect::<Vec<_>>();
        let (mut in_force, mut waiting) = (0, 0);
        for _ in 0..5_000 {
            let (others, servers) = (list(&mut rng, 3), list(&mut rng, 3));
            let elsewhere = Elsewhere::new(
                others.iter().map(|net| (*net, "other".parse().unwrap())),
                servers.iter().map(|net| (net.addr(), Server::Relay)),
            );
            let subnets = list(&mut rng, 4);
            let granted = rng.random::<bool>().then(|| Subnets::new(list(&mut rng, 4)).unwrap());
            let before = granted.iter().flat_map(Subnets::iter).copied().collect::<Vec<_>>();
            let decision = elsewhere.decide(Offer { subnets: &subnets, in_force: &before, granted: granted.as_ref() });
            for subnet in &decision.in_force {
                assert!(subnets.contains(subnet) || before.contains(subnet));
                match &granted {
                    Some(granted) => assert!(granted.contain(subnet)),
                    None => {
                        assert!(is_private(subnet) && !others.iter().any(|other| overlap(other, subnet)));
                        assert!(!servers.iter().any(|server| subnet.contains(&server.addr())));
                    }
                }
            }
            let decided = |subnet: &IpNet| {
                decision.in_force.contains(subnet) || decision.waiting.iter().any(|(waits, _)| waits == subnet)
            };
            assert!(subnets.iter().all(|subnet| decided(subnet) || !decision.waiting.is_empty()));
            in_force += decision.in_force.len();
            waiting += decision.waiting.len();
        }
        assert!(in_force > 1_000 && waiting > 1_000, "{in_force} in force, {waiting} waiting");
    }
}
