//! The site's own networks: which of them lie inside guarded prefixes and have to be excepted, and which guarded
//! prefixes they rule out.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::prefixes::{Prefixes, all, is_default};
use super::{Finding, Network, PROTOCOL, Wanted};
use crate::netlink::{Interface, MAIN_TABLE, Route, RouteKind};

/// The guarded prefixes, compared with the site's own networks.
#[derive(Debug, Default)]
pub struct Own {
    /// Guarded prefixes that are neither one of the site's own networks nor inside one.
    pub guarded: Prefixes,
    /// Networks inside guarded prefixes that are reached through a LAN interface: the main table decides on them.
    pub thrown: BTreeSet<IpNet>,
    /// Subnets of this site inside guarded prefixes that no LAN interface leads to at present. They must neither go
    /// into the tunnel nor leave through the WAN.
    pub lost: BTreeSet<IpNet>,
    /// Destinations inside thrown networks that the main table would send elsewhere: they are guarded again.
    pub strays: BTreeSet<IpNet>,
    /// What the main table must not block although it lies inside a guarded prefix: subnets of this site that are
    /// reached only by a LAN route shorter than the prefix, and outer addresses without a longer route of their own.
    pub gaps: BTreeSet<IpNet>,
    /// Whether the main table's default route leaves by a LAN interface, for IPv4 and IPv6.
    pub default_by_lan: [bool; 2],
    /// Longer prefixes that another gateway of this machine guards in another table, which has to decide on them.
    pub others: BTreeSet<IpNet>,
}

impl Own {
    /// Compares them, and reports what stands in the way.
    pub fn sort_out(wanted: &Wanted, network: &Network, findings: &mut Vec<Finding>) -> Self {
        let mut own = Self::default();
        let connected = connected(wanted, network);
        let mine: Prefixes =
            connected.keys().chain(&wanted.placement.local).copied().filter(|p| !is_default(p)).collect();
        for prefix in &wanted.guarded {
            match mine.covering(prefix) {
                None => own.guarded.insert(*prefix),
                Some(here) => {
                    let place = match connected.get(&here) {
                        Some(interface) => format!("the network {here} of interface {interface}"),
                        None => format!("this site's own subnet {here}"),
                    };
                    findings.push(Finding {
                        subject: prefix.to_string(),
                        sentence: format!("the remote prefix is, or lies inside, {place}; it stays with this site"),
                        what_to_do: "renumber one of the sites, or take the prefix from the peer's AllowedIPs",
                    });
                }
            }
        }
        let routes = best(network);
        own.except(&routes, network, findings);
        let destinations: Prefixes = routes.keys().copied().collect();
        own.except_subnets(wanted, &routes, &destinations, network);
        own.except_outer(wanted, &destinations);
        own.find_strays(&routes, network);
        own.default_by_lan =
            [false, true].map(|ipv6| routes.get(&all(ipv6)).is_some_and(|route| network.leaves_by_lan(route)));
        own.except_others(wanted, network);
        foreign_networks(wanted, network, &own, findings);
        own
    }

    fn except(&mut self, routes: &BTreeMap<IpNet, &Route>, network: &Network, findings: &mut Vec<Finding>) {
        for (destination, route) in routes {
            if is_default(destination) || !network.leaves_by_lan(route) {
                continue;
            }
            let Some(guarded) = self.guarded.covering(destination) else { continue };
            self.thrown.insert(*destination);
            if guarded == *destination {
                findings.push(Finding {
                    subject: destination.to_string(),
                    sentence:
                        "this site has a route of its own to the remote prefix by a LAN interface; that one stays"
                            .to_owned(),
                    what_to_do: "remove the route, or take the prefix from the peer's AllowedIPs",
                });
            }
        }
        // A link-local address belongs to the interface with which it is used.
        let link_local = IpNet::V6("fe80::/10".parse().expect("a prefix"));
        if self.guarded.covering(&link_local).is_some() {
            self.thrown.insert(link_local);
        }
    }

    fn except_subnets(
        &mut self,
        wanted: &Wanted,
        routes: &BTreeMap<IpNet, &Route>,
        destinations: &Prefixes,
        network: &Network,
    ) {
        for subnet in &wanted.placement.local {
            let Some(guarded) = self.guarded.covering(subnet) else { continue };
            let by = destinations.covering(subnet);
            match by.filter(|to| !is_default(to) && network.leaves_by_lan(routes[to])) {
                None => {
                    self.lost.insert(*subnet);
                }
                // The main table's blackhole for the guarded prefix would be longer than the route.
                Some(to) if !guarded.contains(&to) => {
                    self.thrown.insert(*subnet);
                    self.gaps.insert(*subnet);
                }
                Some(_) => {}
            }
        }
    }

    /// A gap splits the blackhole of the guarded prefix into longer ones. Inside the network of an interface these would
    /// block the network's other addresses, and there is no need: its route is longer than the guarded prefix.
    fn except_outer(&mut self, wanted: &Wanted, destinations: &Prefixes) {
        for address in wanted.outer.iter().map(|address| IpNet::from(*address)) {
            let Some(guarded) = self.guarded.covering(&address) else { continue };
            let by = destinations.covering(&address);
            if by.is_none_or(|to| to.prefix_len() < guarded.prefix_len()) {
                self.gaps.insert(address);
            }
        }
    }

    fn except_others(&mut self, wanted: &Wanted, network: &Network) {
        let theirs = |r: &&Route| r.protocol == PROTOCOL && r.kind == RouteKind::Blackhole;
        let elsewhere = |r: &&Route| r.table != MAIN_TABLE && r.table != wanted.placement.table;
        for prefix in network.routes().filter(theirs).filter(elsewhere).map(|r| r.destination) {
            if self.guarded.covering(&prefix).is_some_and(|guarded| guarded != prefix) {
                self.others.insert(prefix);
            }
        }
    }

    fn find_strays(&mut self, routes: &BTreeMap<IpNet, &Route>, network: &Network) {
        let thrown: Prefixes = self.thrown.iter().copied().collect();
        for (destination, route) in routes {
            let elsewhere = route.kind == RouteKind::Unicast && !network.leaves_by_lan(route);
            if elsewhere && thrown.covering(destination).is_some() && !is_link_local(destination) {
                self.strays.insert(*destination);
            }
        }
    }
}

fn is_link_local(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}

/// The networks of the LAN interfaces.
fn connected<'a>(wanted: &Wanted, network: &'a Network) -> BTreeMap<IpNet, &'a str> {
    let lan: BTreeMap<u32, &Interface> =
        network.interfaces.values().filter(|i| wanted.placement.lan.contains(&i.name)).map(|i| (i.index, i)).collect();
    let addresses = network.addresses.iter().filter(|a| a.global);
    addresses.filter_map(|a| Some((a.network(), lan.get(&a.interface)?.name.as_str()))).collect()
}

/// The main table's best route for each destination, except for ours.
fn best(network: &Network) -> BTreeMap<IpNet, &Route> {
    let mut best = BTreeMap::new();
    // In order of metric.
    for route in network.routes_of(MAIN_TABLE).filter(|r| r.protocol != PROTOCOL) {
        best.entry(route.destination).or_insert(route);
    }
    best
}

/// Networks of interfaces other than the LAN's that overlap a remote prefix: not excepted, but reported.
fn foreign_networks(wanted: &Wanted, network: &Network, own: &Own, findings: &mut Vec<Finding>) {
    for address in network.addresses.iter().filter(|a| a.global) {
        let Some(interface) = network.interface(address.interface) else { continue };
        let here = address.network();
        let ours = wanted.placement.lan.contains(&interface.name) || interface.name == wanted.name.as_str();
        if ours || interface.name == "lo" || own.thrown.contains(&here) {
            continue;
        }
        let overlaps = own.guarded.covering(&here).filter(|p| !is_default(p));
        let inside = || own.guarded.iter().find(|p| here.contains(*p)).copied();
        if here.prefix_len() < IpNet::from(address.address).prefix_len()
            && let Some(prefix) = overlaps.or_else(inside)
        {
            findings.push(Finding {
                subject: format!("network {here} of interface {}", interface.name),
                sentence: format!(
                    "it overlaps the remote prefix {prefix}, whose packets go into the tunnel or nowhere"
                ),
                what_to_do: "renumber one of the networks",
            });
        }
    }
}
