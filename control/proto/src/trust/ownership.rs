//! Which site an announced prefix belongs to: a map may narrow what a site offers, but must not move it to another.
//!
//! An announced prefix belongs to the sites with the *longest* stated subnet that contains it. So a coordinator cannot
//! take 10.1.2.0/24 from the site that states 10.1.0.0/16 by announcing it at a site that states a default route.

use std::fmt;

use ipnet::IpNet;

use super::prefix::{has_host_bits, overlay_around};
use crate::coordination::SiteKey;

/// Why an announced prefix does not belong to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipReason {
    /// It lies in none of the subnets in the site's statement.
    NotStated,
    /// It lies in one of them, but also in this longer one of another site.
    Owned(IpNet, SiteKey),
}

impl fmt::Display for OwnershipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStated => f.write_str("the site's signed statement does not contain it"),
            Self::Owned(subnet, owner) => write!(f, "it lies inside {subnet}, which is {owner}'s by its statement"),
        }
    }
}

/// The site that an announced prefix belongs to; `S` identifies sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner<S> {
    /// The site that it is announced for.
    Itself,
    /// It lies in none of the subnets in that site's statement.
    NotStated,
    /// It lies in one of them, but also in this longer one of another site.
    Another(IpNet, S),
}

/// For each announced prefix, in order and once, which site it belongs to.
pub(super) fn attribute<S: Copy + Ord>(
    mut stated: Vec<(IpNet, S)>,
    mut announced: Vec<(IpNet, S)>,
) -> impl Iterator<Item = (IpNet, S, Owner<S>)> {
    // A prefix sorts before all those that lie inside it.
    stated.sort_unstable();
    announced.sort_unstable();
    announced.dedup();
    let mut stated = stated.into_iter().peekable();
    // The stated subnets that contain the present prefix, the longest last.
    let mut around: Vec<(IpNet, S)> = Vec::new();
    announced.into_iter().map(move |(prefix, site)| {
        if has_host_bits(&prefix) {
            return (prefix, site, Owner::NotStated);
        }
        while let Some(next) = stated.next_if(|(subnet, _)| *subnet <= prefix) {
            leave(&mut around, &next.0);
            around.push(next);
        }
        leave(&mut around, &prefix);
        (prefix, site, owner(&around, &prefix, site))
    })
}

/// Removes the subnets that do not contain a prefix.
fn leave<S>(around: &mut Vec<(IpNet, S)>, prefix: &IpNet) {
    while around.pop_if(|(subnet, _)| !subnet.contains(prefix)).is_some() {}
}

fn owner<S: Copy + Ord>(around: &[(IpNet, S)], prefix: &IpNet, site: S) -> Owner<S> {
    let Some((longest, another)) = around.last() else { return Owner::NotStated };
    // A default route says nothing about virtual addresses: that of a site which is not in the map is not in the lists.
    if overlay_around(prefix).is_some() && longest != prefix {
        return Owner::NotStated;
    }
    if around.iter().rev().take_while(|(subnet, _)| subnet == longest).any(|(_, owner)| *owner == site) {
        return Owner::Itself;
    }
    match around.iter().any(|(_, owner)| *owner == site) {
        true => Owner::Another(*longest, *another),
        false => Owner::NotStated,
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn site(number: u8) -> SiteKey {
        [number; 32].into()
    }

    /// Against the definition, one prefix after the other.
    #[test]
    fn the_longest_statement_owns() {
        let mut rng = StdRng::seed_from_u64(15);
        let prefix = |rng: &mut StdRng| {
            let length = rng.random_range(0..6);
            let net = if rng.random() {
                IpNet::new([rng.random_range(0..4) << 6 | rng.random_range(0..4u8), 0, 0, 0].into(), length)
            } else {
                IpNet::new([rng.random_range(0..4u16) << 14, 0, 0, 0, 0, 0, 0, 0].into(), length)
            };
            net.unwrap().trunc()
        };
        let mut outcomes = [0; 3];
        for _ in 0..10_000 {
            let list = |rng: &mut StdRng| -> Vec<_> {
                (0..rng.random_range(0..9)).map(|_| (prefix(rng), site(rng.random_range(0..3)))).collect()
            };
            let (stated, announced) = (list(&mut rng), list(&mut rng));
            let found: Vec<_> = attribute(stated.clone(), announced.clone()).collect();
            assert_eq!(found.len(), announced.iter().collect::<std::collections::BTreeSet<_>>().len());
            for (prefix, site, verdict) in found {
                assert!(announced.contains(&(prefix, site)));
                let around = stated.iter().filter(|(subnet, _)| subnet.contains(&prefix));
                let longest = around.clone().map(|(subnet, _)| *subnet).max_by_key(IpNet::prefix_len);
                let owns = |(subnet, owner): &(IpNet, SiteKey)| Some(*subnet) == longest && *owner == site;
                let expected = if around.clone().any(owns) {
                    0
                } else if around.clone().any(|(_, owner)| *owner == site) {
                    1
                } else {
                    2
                };
                let actual = match verdict {
                    Owner::Itself => 0,
                    Owner::Another(subnet, owner) => {
                        assert_eq!(Some(subnet), longest);
                        assert!(owner != site && stated.contains(&(subnet, owner)));
                        1
                    }
                    Owner::NotStated => 2,
                };
                assert_eq!(actual, expected, "{prefix} of {site}, {stated:?}");
                outcomes[expected] += 1;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 500), "{outcomes:?}");
    }

    fn verdict(stated: &str, announced: &str) -> Owner<SiteKey> {
        let of_site = |prefix: &str| vec![(prefix.parse().unwrap(), site(1))];
        attribute(of_site(stated), of_site(announced)).next().unwrap().2
    }

    #[test]
    fn host_bits_are_no_way_around() {
        assert_eq!(verdict("10.1.0.0/16", "10.1.0.0/16"), Owner::Itself);
        assert_eq!(verdict("10.1.0.0/16", "10.1.0.1/16"), Owner::NotStated);
    }

    #[test]
    fn a_default_route_is_no_claim_to_virtual_addresses() {
        assert_eq!(verdict("0.0.0.0/0", "8.0.0.0/8"), Owner::Itself);
        assert_eq!(verdict("100.64.0.7/32", "100.64.0.7/32"), Owner::Itself);
        for others in ["100.64.0.7/32", "100.64.0.0/24", "100.64.0.0/10"] {
            assert_eq!(verdict("0.0.0.0/0", others), Owner::NotStated, "{others}");
        }
    }
}
