//! How the snapshot follows the kernel's news, and what has changed in it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Network, RouteKey};
use crate::ground::Operation;
use crate::netlink::{
    Address, Interface, LOCAL_TABLE, MAIN_TABLE, Neighbour, News, Route, RouteKind, network as prefix_of,
};

/// What has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Interfaces.
    pub interfaces: bool,
    /// Addresses.
    pub addresses: bool,
    /// Neighbours, unless an entry only became stale.
    pub neighbours: bool,
    /// Destinations of routes that came, went or changed, also of those that the snapshot does not keep.
    pub destinations: BTreeSet<IpNet>,
    /// Whether any other destination may have changed too.
    pub everywhere: bool,
    /// Packet filters of others.
    pub filters: bool,
    /// Elements of sets in these.
    pub elements: bool,
    /// Whether [`Ground::reconcile`](crate::ground::Ground::reconcile) has to look.
    pub ground: bool,
}

impl Changed {
    /// Everything may have changed.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            interfaces: true,
            addresses: true,
            neighbours: true,
            destinations: BTreeSet::new(),
            everywhere: true,
            filters: true,
            elements: true,
            ground: true,
        }
    }

    /// Whether the way to this address may have changed.
    #[must_use]
    pub fn affects(&self, address: IpAddr) -> bool {
        // One look-up per prefix length, however many destinations changed.
        let host = IpNet::from(address).prefix_len();
        self.everywhere
            || self.interfaces
            || self.addresses
            || (0..=host).any(|length| self.destinations.contains(&prefix_of(address, length)))
    }
}

/// What a snapshot needs after a piece of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ground) enum Follow {
    /// Nothing.
    Done,
    /// The routes: some have gone, or now matter, without the kernel reporting them.
    ReadRoutes,
}

impl Network {
    /// Puts a route into the snapshot; whether this changed it.
    pub(in crate::ground) fn insert(&mut self, route: Route, replaces: bool) -> bool {
        if !self.matters(&route) {
            return false;
        }
        if route.table == MAIN_TABLE && route.destination.prefix_len() > 0 && self.leaves_by_lan(&route) {
            self.behind_lan.insert(route.destination);
        }
        let here = self.routes.entry(key(&route)).or_default();
        if here.contains(&route) {
            return false;
        }
        // IPv6 routes of one key are the next hops of one multipath route; one of them stands for all.
        match here.first_mut().filter(|_| replaces || route.destination.addr().is_ipv6()) {
            Some(first) => *first = route,
            None => here.push(route),
        }
        true
    }

    /// Takes a route out of the snapshot; whether this changed it.
    pub(in crate::ground) fn remove(&mut self, route: &Route) -> bool {
        let Some(here) = self.routes.get_mut(&key(route)) else { return false };
        let Some(at) = here.iter().position(|r| same(r, route)) else { return false };
        here.remove(at);
        if here.is_empty() {
            self.routes.remove(&key(route));
        }
        true
    }

    /// Follows a piece of news.
    pub(in crate::ground) fn follow(&mut self, news: News, changed: &mut Changed) -> Follow {
        match news {
            News::Interface(interface) => return self.interface_news(interface, changed),
            News::InterfaceGone(index) => {
                if self.interfaces.remove(&index).is_some() {
                    (changed.interfaces, changed.ground) = (true, true);
                    self.addresses.retain(|a| a.interface != index);
                    return self.routes_went(index);
                }
            }
            News::Address(address) => {
                let known = |a: &Address| a.interface == address.interface && a.address == address.address;
                let mut same = self.addresses.iter().filter(|a| known(a));
                if same.any(|a| *a == address) {
                    return Follow::Done;
                }
                self.addresses.insert(address);
                (changed.addresses, changed.ground) = (true, true);
            }
            News::AddressGone(address) => {
                if self.addresses.remove(&address) {
                    (changed.addresses, changed.ground) = (true, true);
                    // IPv4 routes with this source address go with it, and the kernel does not report them.
                    return self.routes_went(address.interface);
                }
            }
            News::Route { route, replaces } => {
                let knew = self.behind_lan.len();
                if self.insert(route, replaces) {
                    changed.ground |= route.table != LOCAL_TABLE;
                }
                changed.destinations.insert(route.destination);
                if self.behind_lan.len() > knew {
                    return Follow::ReadRoutes;
                }
            }
            News::RouteGone(route) => {
                if self.remove(&route) {
                    changed.ground |= route.table != LOCAL_TABLE;
                    // The route may have more next hops: this one stood for all.
                    if route.destination.addr().is_ipv6() && self.leaves_by_lan(&route) {
                        changed.destinations.insert(route.destination);
                        return Follow::ReadRoutes;
                    }
                }
                changed.destinations.insert(route.destination);
            }
            News::Rule(rule) => {
                changed.ground |= self.rules.insert(rule);
                changed.everywhere = true;
            }
            News::RuleGone(rule) => {
                changed.ground |= self.rules.remove(&rule);
                changed.everywhere = true;
            }
            News::OtherRule(rule) => {
                if !self.other_rules.contains(&rule) {
                    self.other_rules.push(rule);
                }
                changed.everywhere = true;
            }
            News::OtherRuleGone(rule) => {
                self.other_rules.retain(|there| *there != rule);
                changed.everywhere = true;
            }
            News::Neighbour(neighbour) => {
                let known = |n: Neighbour| Neighbour { stale: false, ..n };
                let before = self.neighbours.insert((neighbour.interface, neighbour.address), neighbour);
                changed.neighbours |= before.map(known) != Some(known(neighbour));
            }
            News::NeighbourGone { interface, address } => {
                changed.neighbours |= self.neighbours.remove(&(interface, address)).is_some();
            }
            News::OtherFilter => changed.filters = true,
            News::OtherElements => changed.elements = true,
            News::Sysctl | News::Filter | News::Lost => {}
        }
        Follow::Done
    }

    /// Assumes the effect of an operation, until the kernel reports otherwise.
    pub(in crate::ground) fn done(&mut self, operation: &Operation) {
        match operation {
            Operation::AddRoute(route) => {
                self.insert(*route, true);
            }
            Operation::RemoveRoute(route) => {
                self.remove(route);
            }
            Operation::AddRule(rule) => {
                self.rules.insert(rule.clone());
            }
            Operation::RemoveRule(rule) => {
                self.rules.remove(rule);
            }
            Operation::AddAddress { interface, address } => {
                let length = IpNet::from(*address).prefix_len();
                self.addresses.insert(Address { interface: *interface, address: *address, length, global: true });
            }
            Operation::RemoveAddress { interface, address } => {
                self.addresses.retain(|a| (a.interface, a.address) != (*interface, *address));
            }
            Operation::SetMtu { interface, mtu } => {
                if let Some(interface) = self.interfaces.get_mut(interface) {
                    interface.mtu = *mtu;
                }
            }
            Operation::SetUp { interface, up } => {
                if let Some(there) = self.interfaces.get_mut(interface) {
                    there.up = *up;
                }
                if !up {
                    self.routes.retain(|_, routes| {
                        routes.retain(|r| r.interface != Some(*interface));
                        !routes.is_empty()
                    });
                    self.addresses.retain(|a| a.interface != *interface || a.address.is_ipv4());
                }
            }
            _ => {}
        }
    }

    fn interface_news(&mut self, interface: Interface, changed: &mut Changed) -> Follow {
        let index = interface.index;
        let before = self.interfaces.insert(index, interface.clone());
        if before.as_ref() == Some(&interface) {
            return Follow::Done;
        }
        (changed.interfaces, changed.ground) = (true, true);
        let Some(before) = before else { return Follow::Done };
        if before.name != interface.name
            && self.interest.lan.contains(&before.name) != self.interest.lan.contains(&interface.name)
        {
            return Follow::ReadRoutes;
        }
        if before.up && !interface.up {
            // IPv4 routes through an interface that goes down go with it, and the kernel does not report them.
            return self.routes_went(index);
        }
        Follow::Done
    }

    fn routes_went(&self, interface: u32) -> Follow {
        let holds = self.routes().any(|r| r.interface == Some(interface));
        if holds { Follow::ReadRoutes } else { Follow::Done }
    }
}

fn key(route: &Route) -> RouteKey {
    (route.table, route.destination, route.metric)
}

/// Whether two routes of one key are the same to the kernel.
fn same(a: &Route, b: &Route) -> bool {
    a.kind == b.kind && (a.kind != RouteKind::Unicast || (a.interface, a.gateway) == (b.interface, b.gateway))
}
