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
    Address, ForeignRule, Interface, LOCAL_TABLE, MAIN_TABLE, Neighbour, News, Route, RouteKind, Rule,
    network as prefix_of,
};

/// `rtnetlink(7)`, RTPROT_KERNEL: routes that come with addresses.
const PROTOCOL_KERNEL: u8 = 2;

/// How many destinations that had a route by a LAN interface, and have none now, are remembered.
const REMEMBERED: usize = 256;

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
    /// Those of other shapes.
    pub other_rules: Vec<ForeignRule>,
    /// Resolved neighbours, by interface and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Destinations that routes by a LAN interface have, or had lately: other routes inside these are kept too. One
    /// that flaps is not searched for again and again.
    behind_lan: BTreeSet<IpNet>,
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
    /// Packet filters of others.
    pub filters: bool,
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
            filters: true,
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
        network.other_rules = kernel.other_rules()?;
        network.read_routes(kernel)?;
        Ok(network)
    }

    /// Asks the kernel for the routes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read_routes(&mut self, kernel: &mut impl Kernel) -> io::Result<()> {
        loop {
            let routes = kernel.routes(&mut |route| self.matters(route))?;
            self.routes.clear();
            let searched = self.behind_lan.len();
            for route in routes {
                self.insert(route, false);
            }
            // Routes inside those by a LAN interface may have come before these.
            if self.behind_lan.len() == searched {
                break;
            }
        }
        let by_lan = self.routes_of(MAIN_TABLE).filter(|r| r.destination.prefix_len() > 0 && self.leaves_by_lan(r));
        let by_lan: BTreeSet<IpNet> = by_lan.map(|route| route.destination).collect();
        if self.behind_lan.len() > by_lan.len() + REMEMBERED {
            self.behind_lan = by_lan;
        }
        Ok(())
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
                .any(|length| self.behind_lan.contains(&prefix_of(destination.addr(), length)))
    }

    /// All routes of the snapshot, by table, destination and metric.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().flatten()
    }

    /// The default routes that are not the tunnel's.
    pub fn default_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes().filter(|route| route.destination.prefix_len() == 0 && route.protocol != PROTOCOL)
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
        if route.table == MAIN_TABLE && route.destination.prefix_len() > 0 && self.leaves_by_lan(&route) {
            self.behind_lan.insert(route.destination);
        }
        let here = self.routes.entry(key(&route)).or_default();
        if here.contains(&route) {
            return false;
        }
        // IPv6 routes of one key are the ways of one route, of which one stands for all.
        match here.first_mut().filter(|_| replaces || route.destination.addr().is_ipv6()) {
            Some(first) => *first = route,
            None => here.push(route),
        }
        true
    }

    /// Takes a route out of the snapshot; whether this changed it.
    pub(super) fn remove(&mut self, route: &Route) -> bool {
        let Some(here) = self.routes.get_mut(&key(route)) else { return false };
        let Some(at) = here.iter().position(|r| same(r, route)) else { return false };
        here.remove(at);
        if here.is_empty() {
            self.routes.remove(&key(route));
        }
        true
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

    /// Whether an address is this host's, on any interface.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
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
        Some(link.with_mtu(interface.largest_packet()))
    }

    /// The routes that choose between interfaces, the one the kernel prefers last among equals.
    fn forwarding(&self) -> Vec<&Route> {
        let mut routes: Vec<_> = self.routes().filter(|r| r.table == MAIN_TABLE || r.table == LOCAL_TABLE).collect();
        routes.sort_by_key(|r| (r.table == LOCAL_TABLE, std::cmp::Reverse(r.metric)));
        routes
    }

    /// Next hops on these LAN interfaces: hosts that are neighbours, prefixes behind routers. What the
    /// kernel would send elsewhere, or by the rules of others (`ip rule`), has an entry without a link, so that no
    /// shorter prefix catches it.
    #[must_use]
    pub fn hops(&self, lan: &[u32]) -> PrefixMap<Option<Link>> {
        let lan: Vec<&Interface> = lan.iter().filter_map(|i| self.interface(*i)).collect();
        let mut hops = PrefixMap::default();
        if lan.is_empty() {
            return hops;
        }
        let ruled = self.ruled_from_tunnel();
        let is_ruled = |to: IpNet| ruled.iter().any(|prefix| prefix.contains(&to));
        let mut on_link = PrefixMap::default();
        for prefix in &ruled {
            hops.insert(prefix.addr(), prefix.prefix_len(), None);
        }
        for route in self.forwarding() {
            let interface = lan.iter().find(|i| Some(i.index) == route.interface);
            let link = match (interface, route.gateway) {
                (Some(interface), Some(gateway))
                    if route.kind == RouteKind::Unicast && !is_ruled(route.destination) =>
                {
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
            if let (Some(interface), true) = (interface, direct && !is_ruled(neighbour.address.into())) {
                let link = self.link(interface, neighbour.address, neighbour.address);
                hops.insert(neighbour.address, 128, link);
            }
        }
        hops
    }

    /// The networks of a site's hosts: its `subnets`, else those of the interfaces `lan`.
    #[must_use]
    pub fn of_site(&self, subnets: &BTreeSet<IpNet>, lan: &[u32]) -> BTreeSet<IpNet> {
        if !subnets.is_empty() {
            return subnets.clone();
        }
        lan.iter().flat_map(|lan| self.addresses_of(*lan)).map(|address| address.network()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(to: &str, interface: u32, gateway: Option<&str>) -> Route {
        Route::by(net(to), interface, gateway.map(|g| g.parse().unwrap()), 0, 3)
    }

    fn network() -> Network {
        let interface = |index, name: &str| Interface {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            kind: None,
            queues: 1,
        };
        let neighbour = |interface, address: &str, last| Neighbour {
            interface,
            address: address.parse().unwrap(),
            mac: [2, 0, 0, 0, 1, last],
            stale: false,
        };
        let mut network = Network::empty(Interest { table: 47100, lan: BTreeSet::from(["lan0".to_owned()]) });
        network.interfaces = [interface(2, "wan0"), interface(3, "lan0")].map(|i| (i.index, i)).into();
        network.addresses.insert(Address {
            interface: 3,
            address: "10.101.0.1".parse().unwrap(),
            length: 24,
            global: true,
        });
        let neighbours = [
            neighbour(3, "10.101.0.2", 2),
            neighbour(3, "10.101.0.254", 254),
            neighbour(3, "10.7.7.7", 7),
            neighbour(2, "192.0.2.254", 9),
        ];
        network.neighbours = neighbours.map(|n| ((n.interface, n.address), n)).into();
        for route in [
            Route { kind: RouteKind::Local, table: LOCAL_TABLE, ..route("10.101.0.1/32", 3, None) },
            route("0.0.0.0/0", 2, Some("192.0.2.254")),
            route("10.101.0.0/24", 3, None),
            route("10.7.0.0/16", 3, Some("10.101.0.254")),
            route("10.8.0.0/16", 3, Some("10.101.0.253")),
            route("10.7.7.0/24", 2, Some("192.0.2.254")),
        ] {
            assert!(network.insert(route, false), "{route:?}");
        }
        network
    }

    #[test]
    fn hops_follow_neighbours_and_routers_of_the_lan_only() {
        let hops = network().hops(&[3]);
        let mac = |to: &str| hops.lookup(to.parse().unwrap()).copied().flatten().map(|l: Link| l.header()[5]);
        assert_eq!(mac("10.101.0.2"), Some(2), "a neighbour");
        assert_eq!(mac("10.101.0.3"), None, "on the link, unresolved");
        assert_eq!(mac("10.101.0.1"), None, "our own address");
        assert_eq!(mac("10.7.1.1"), Some(254), "behind a resolved router");
        assert_eq!(mac("10.8.1.1"), None, "behind an unresolved router");
        assert_eq!(mac("10.7.7.7"), None, "the kernel would send it elsewhere");
        assert_eq!(mac("203.0.113.1"), None, "the WAN is none of the LAN's hops");
        assert!(network().hops(&[]).is_empty());
    }

    #[test]
    fn the_site_keeps_what_leaves_by_a_lan_interface() {
        let remote = [net("10.0.0.0/8"), net("10.7.0.0/16")];
        let text: Vec<String> = network().kept(&remote).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.7.0.0/16", "10.8.0.0/16", "10.101.0.0/24", "10.101.0.1/32"]);
    }

    #[test]
    fn the_lan_gives_the_address_to_speak_from() {
        assert_eq!(network().speaker_v4(&[2, 3]), Some(Ipv4Addr::new(10, 101, 0, 1)));
        assert_eq!(network().speaker_v6(&[2, 3]), None);
    }

    /// One of hundreds of thousands of routes by the WAN comes and goes: it is told to who asks for ways to
    /// endpoints, but not kept, and nothing is planned or read for it.
    #[test]
    fn a_flapping_route_of_the_wan_costs_next_to_nothing() {
        let mut network = network();
        let before = network.clone();
        let flapping = route("198.51.100.0/24", 2, Some("192.0.2.254"));
        for news in [News::Route { route: flapping, replaces: false }, News::RouteGone(flapping)] {
            let mut changed = Changed::default();
            assert_eq!(network.follow(news, &mut changed), Follow::Done);
            assert!(!changed.ground && network == before);
            assert!(changed.affects("198.51.100.7".parse().unwrap()));
            assert!(!changed.affects("198.51.101.7".parse().unwrap()));
        }
        // Inside a network behind a LAN router it matters.
        let inside = route("10.8.1.0/24", 2, Some("192.0.2.254"));
        let mut changed = Changed::default();
        assert_eq!(network.follow(News::Route { route: inside, replaces: false }, &mut changed), Follow::Done);
        assert!(changed.ground);
        // A LAN route that flaps is searched behind once.
        let lan = route("10.9.0.0/16", 3, Some("10.101.0.254"));
        for expected in [Follow::ReadRoutes, Follow::Done] {
            let come = News::Route { route: lan, replaces: false };
            assert_eq!(network.follow(come, &mut Changed::default()), expected);
            assert_eq!(network.follow(News::RouteGone(lan), &mut Changed::default()), Follow::Done);
        }
    }

    #[test]
    fn routes_that_go_without_a_word_are_asked_for() {
        let mut network = network();
        let mut down = network.interfaces[&3].clone();
        down.up = false;
        assert_eq!(network.follow(News::Interface(down), &mut Changed::default()), Follow::ReadRoutes);
        let address = *network.addresses.first().unwrap();
        assert_eq!(network.follow(News::AddressGone(address), &mut Changed::default()), Follow::ReadRoutes);
        assert_eq!(network.follow(News::InterfaceGone(3), &mut Changed::default()), Follow::ReadRoutes);
        assert_eq!(network.follow(News::InterfaceGone(77), &mut Changed::default()), Follow::Done);
    }
}
