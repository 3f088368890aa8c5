//! The network as the kernel sees it, kept as a snapshot that follows the kernel's news, and the ways it
//! gives to WAN endpoints and LAN hosts.
//!
//! A router may have hundreds of thousands of routes. The snapshot keeps those that can matter here: of the
//! main table those that leave by a LAN interface and those inside them, default routes, what the kernel
//! makes for addresses, and ours; and all of the local table and of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use penstock_dataplane::ports::Link;
use penstock_dataplane::prefix::PrefixMap;

use super::{Kernel, Operation, PROTOCOL};
use crate::netlink::{
    Address, Interface, LOCAL_TABLE, MAIN_TABLE, Neighbour, News, Route, RouteKind, Rule, network as prefix_of,
};

/// `rtnetlink(7)`, RTPROT_KERNEL: routes that come with addresses.
const PROTOCOL_KERNEL: u8 = 2;

/// Which routes can matter: the gateway's table and interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// The gateway's routing table.
    pub table: u32,
    /// The LAN interfaces.
    pub lan: BTreeSet<String>,
}

/// What the kernel said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    interest: Interest,
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Their addresses.
    pub addresses: BTreeSet<Address>,
    routes: BTreeMap<RouteKey, Vec<Route>>,
    /// Rules of the shapes that a gateway makes.
    pub rules: BTreeSet<Rule>,
    /// Resolved neighbours, by interface and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Destinations of routes by a LAN interface: other routes inside these matter too.
    behind_lan: BTreeMap<IpNet, usize>,
}

/// Table, destination and metric. The kernel may have several routes of one key, though seldom.
type RouteKey = (u32, IpNet, u32);

/// What has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Interfaces.
    pub interfaces: bool,
    /// Addresses.
    pub addresses: bool,
    /// Neighbours, other than that the kernel became less sure of one.
    pub neighbours: bool,
    /// Destinations of routes that came, went or changed, also of those that the snapshot does not keep.
    pub destinations: BTreeSet<IpNet>,
    /// Whether any other destination may have changed too.
    pub everywhere: bool,
    /// Whether [`Ground::reconcile`](super::Ground::reconcile) has to look.
    pub ground: bool,
}

impl Changed {
    /// Everything may have.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            interfaces: true,
            addresses: true,
            neighbours: true,
            destinations: BTreeSet::new(),
            everywhere: true,
            ground: true,
        }
    }

    /// Whether the way to this address may have changed.
    #[must_use]
    pub fn affects(&self, address: IpAddr) -> bool {
        // Of few lengths at most, so that this costs little however many destinations changed.
        let host = IpNet::from(address).prefix_len();
        self.everywhere
            || self.interfaces
            || self.addresses
            || (0..=host).any(|length| self.destinations.contains(&prefix_of(address, length)))
    }
}

impl Network {
    /// A network of which nothing is known yet.
    #[must_use]
    pub fn empty(interest: Interest) -> Self {
        Self { interest, ..Self::default() }
    }

    /// Asks the kernel for everything.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(kernel: &mut impl Kernel, interest: Interest) -> io::Result<Self> {
        let mut network = Self::empty(interest);
        network.interfaces = kernel.interfaces()?.into_iter().map(|i| (i.index, i)).collect();
        network.addresses = kernel.addresses()?.into_iter().collect();
        network.neighbours = kernel.neighbours()?.into_iter().map(|n| ((n.interface, n.address), n)).collect();
        network.rules = kernel.rules()?.into_iter().collect();
        network.read_routes(kernel)?;
        Ok(network)
    }

    /// Asks the kernel for the routes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read_routes(&mut self, kernel: &mut impl Kernel) -> io::Result<()> {
        loop {
            let before = self.behind_lan.clone();
            let routes = kernel.routes(&mut |route| self.matters(route))?;
            self.routes.clear();
            self.behind_lan.clear();
            for route in routes {
                self.insert(route, false);
            }
            // Routes inside those by a LAN interface may have come before these.
            if self.behind_lan.keys().all(|destination| before.contains_key(destination)) {
                return Ok(());
            }
        }
    }

    /// What the snapshot keeps routes for.
    #[must_use]
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Whether a route can matter.
    fn matters(&self, route: &Route) -> bool {
        let ours = route.protocol == PROTOCOL || route.table == self.interest.table;
        ours || route.table == LOCAL_TABLE
            || route.table == MAIN_TABLE
                && (route.protocol == PROTOCOL_KERNEL
                    || route.destination.prefix_len() == 0
                    || self.leaves_by_lan(route)
                    || self.is_behind_lan(&route.destination))
    }

    /// Whether a route is by a LAN interface.
    #[must_use]
    pub fn leaves_by_lan(&self, route: &Route) -> bool {
        route.kind == RouteKind::Unicast
            && route
                .interface
                .and_then(|index| self.interfaces.get(&index))
                .is_some_and(|interface| self.interest.lan.contains(&interface.name))
    }

    fn is_behind_lan(&self, destination: &IpNet) -> bool {
        !self.behind_lan.is_empty()
            && (1..=destination.prefix_len())
                .any(|length| self.behind_lan.contains_key(&prefix_of(destination.addr(), length)))
    }

    /// All routes of the snapshot, by table, destination and metric.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().flatten()
    }

    /// The routes of a table.
    pub fn routes_of(&self, table: u32) -> impl Iterator<Item = &Route> {
        let first = (table, IpNet::V4(Default::default()), 0);
        self.routes.range(first..).take_while(move |(key, _)| key.0 == table).flat_map(|(_, routes)| routes)
    }

    /// Puts a route into the snapshot; whether this changed it.
    pub(super) fn insert(&mut self, route: Route, replaces: bool) -> bool {
        if !self.matters(&route) {
            return false;
        }
        let by_lan = self.counts_as_behind_lan(&route);
        let here = self.routes.entry(key(&route)).or_default();
        if here.contains(&route) {
            return false;
        }
        let mut replaced = None;
        // IPv6 routes of one key are the ways of one route, of which one stands for all.
        match here.first_mut().filter(|_| replaces || route.destination.addr().is_ipv6()) {
            Some(first) => replaced = Some(std::mem::replace(first, route)),
            None => here.push(route),
        }
        if let Some(old) = replaced {
            self.forget_behind_lan(&old);
        }
        if by_lan {
            *self.behind_lan.entry(route.destination).or_default() += 1;
        }
        true
    }

    /// Takes a route out of the snapshot; whether this changed it.
    pub(super) fn remove(&mut self, route: &Route) -> bool {
        let Some(here) = self.routes.get_mut(&key(route)) else { return false };
        let Some(at) = here.iter().position(|r| same(r, route)) else { return false };
        let old = here.remove(at);
        if here.is_empty() {
            self.routes.remove(&key(route));
        }
        self.forget_behind_lan(&old);
        true
    }

    fn counts_as_behind_lan(&self, route: &Route) -> bool {
        route.table == MAIN_TABLE && route.destination.prefix_len() > 0 && self.leaves_by_lan(route)
    }

    fn forget_behind_lan(&mut self, route: &Route) {
        if !self.counts_as_behind_lan(route) {
            return;
        }
        if let Some(count) = self.behind_lan.get_mut(&route.destination) {
            *count -= 1;
            if *count == 0 {
                self.behind_lan.remove(&route.destination);
            }
        }
    }

    /// Follows a piece of news.
    pub(super) fn follow(&mut self, news: News, changed: &mut Changed) -> Follow {
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
                    // IPv4 routes that began from it go with it, and the kernel does not say so.
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
                    // Further ways of the same route, of which one stood for all.
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
            News::Neighbour(neighbour) => {
                let known = |n: Neighbour| Neighbour { stale: false, ..n };
                let before = self.neighbours.insert((neighbour.interface, neighbour.address), neighbour);
                changed.neighbours |= before.map(known) != Some(known(neighbour));
            }
            News::NeighbourGone { interface, address } => {
                changed.neighbours |= self.neighbours.remove(&(interface, address)).is_some();
            }
            News::Sysctl | News::Filter | News::Lost => {}
        }
        Follow::Done
    }

    /// What was done is so, as far as we know, until the kernel says otherwise.
    pub(super) fn done(&mut self, operation: &Operation) {
        match operation {
            Operation::AddRoute(route) => {
                self.insert(*route, true);
            }
            Operation::RemoveRoute(route) => {
                self.remove(route);
            }
            Operation::AddRule(rule) => {
                self.rules.insert(*rule);
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
            // IPv4 routes by an interface that goes down go with it, and the kernel does not say so.
            return self.routes_went(index);
        }
        Follow::Done
    }

    fn routes_went(&self, interface: u32) -> Follow {
        let holds = self.routes().any(|r| r.interface == Some(interface));
        if holds { Follow::ReadRoutes } else { Follow::Done }
    }

    /// An interface by its name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.values().find(|i| i.name == name)
    }

    /// An interface by its index.
    #[must_use]
    pub fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get(&index)
    }

    /// The addresses of an interface.
    pub fn addresses_of(&self, interface: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.interface == interface)
    }

    /// An IPv4 address to speak from: the first of the LAN interfaces in order.
    #[must_use]
    pub fn speaker_v4(&self, lan: &[u32]) -> Option<Ipv4Addr> {
        self.speaker(lan, |a| if let IpAddr::V4(a) = a { Some(a) } else { None })
    }

    /// An IPv6 address to speak from: the first global one of the LAN interfaces in order.
    #[must_use]
    pub fn speaker_v6(&self, lan: &[u32]) -> Option<Ipv6Addr> {
        self.speaker(lan, |a| if let IpAddr::V6(a) = a { Some(a) } else { None })
    }

    fn speaker<A>(&self, lan: &[u32], family: impl Fn(IpAddr) -> Option<A>) -> Option<A> {
        lan.iter().find_map(|i| self.addresses_of(*i).filter(|a| a.global).find_map(|a| family(a.address)))
    }

    /// The resolved link to a neighbour on an interface; packets come from `source`.
    #[must_use]
    pub fn link(&self, interface: &Interface, neighbour: IpAddr, source: IpAddr) -> Option<Link> {
        let mac = self.neighbours.get(&(interface.index, neighbour))?.mac;
        let link = Link::new(interface.index, source, mac, interface.mac?, None);
        Some(link.with_mtu(u16::try_from(interface.mtu).unwrap_or(u16::MAX)))
    }

    /// The routes that choose between interfaces, the one the kernel prefers last among equals.
    fn forwarding(&self) -> Vec<&Route> {
        let mut routes: Vec<_> = self.routes().filter(|r| r.table == MAIN_TABLE || r.table == LOCAL_TABLE).collect();
        routes.sort_by_key(|r| (r.table == LOCAL_TABLE, std::cmp::Reverse(r.metric)));
        routes
    }

    /// Next hops on these LAN interfaces: hosts that are neighbours, prefixes behind routers. What the
    /// kernel would send elsewhere has an entry without a link, so that no shorter prefix catches it.
    /// Rules (`ip rule`) are not followed.
    #[must_use]
    pub fn hops(&self, lan: &[u32]) -> PrefixMap<Option<Link>> {
        let lan: Vec<&Interface> = lan.iter().filter_map(|i| self.interface(*i)).collect();
        let mut hops = PrefixMap::default();
        if lan.is_empty() {
            return hops;
        }
        let mut on_link = PrefixMap::default();
        for route in self.forwarding() {
            let interface = lan.iter().find(|i| Some(i.index) == route.interface);
            let link = match (interface, route.gateway) {
                (Some(interface), Some(gateway)) if route.kind == RouteKind::Unicast => {
                    self.link(interface, gateway, gateway)
                }
                _ => None,
            };
            let (address, length) = (route.destination.addr(), route.destination.prefix_len());
            let direct = route.kind == RouteKind::Unicast && route.gateway.is_none();
            on_link.insert(address, length, interface.filter(|_| direct).map(|i| i.index));
            hops.insert(address, length, link);
        }
        for neighbour in self.neighbours.values() {
            let interface = lan.iter().find(|i| i.index == neighbour.interface);
            let direct = on_link.lookup(neighbour.address).copied().flatten() == Some(neighbour.interface);
            if let (Some(interface), true) = (interface, direct) {
                let link = self.link(interface, neighbour.address, neighbour.address);
                hops.insert(neighbour.address, 128, link);
            }
        }
        hops
    }

    /// Prefixes inside remote ones that the kernel keeps for this site: our addresses, and what leaves by a
    /// LAN interface.
    #[must_use]
    pub fn kept(&self, remote: &[IpNet]) -> Vec<IpNet> {
        let mut kept: Vec<IpNet> = self
            .forwarding()
            .into_iter()
            .filter(|r| r.table == LOCAL_TABLE || self.leaves_by_lan(r))
            .map(|r| r.destination)
            .filter(|d| remote.iter().any(|p| p.contains(d) && p.prefix_len() < d.prefix_len()))
            .collect();
        kept.sort_unstable();
        kept.dedup();
        kept
    }
}

/// What a snapshot needs after a piece of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// Nothing.
    Done,
    /// The routes, since some went or matter now of which the kernel does not tell.
    ReadRoutes,
}

fn key(route: &Route) -> RouteKey {
    (route.table, route.destination, route.metric)
}

/// Whether two routes of one key are the same to the kernel.
fn same(a: &Route, b: &Route) -> bool {
    a.kind == b.kind && (a.kind != RouteKind::Unicast || (a.interface, a.gateway) == (b.interface, b.gateway))
}
