//! The network as the kernel sees it, kept as a snapshot that follows the kernel's news, and the routes to WAN
//! endpoints and LAN hosts in it.
//!
//! A router may have hundreds of thousands of routes. The snapshot keeps those that can matter here: of the main table,
//! those through a LAN interface and those inside them, default routes, the kernel's own for addresses, and ours; and
//! all routes of the local table and of our own.

mod news;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use penstock_dataplane::ports::Link;
use penstock_dataplane::prefix::PrefixMap;

use super::prefixes::all;
use super::{Kernel, PROTOCOL};
use crate::netlink::{
    Address, ForeignRule, Interface, LOCAL_TABLE, MAIN_TABLE, Neighbour, Route, RouteKind, Rule, network as prefix_of,
};
pub use news::Changed;
pub(super) use news::Follow;

/// `rtnetlink(7)`, RTPROT_KERNEL: routes that come with addresses.
pub(super) const PROTOCOL_KERNEL: u8 = 2;

/// How many destinations are remembered that had a route through a LAN interface and no longer have one.
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

impl Network {
    /// A network about which nothing is known yet.
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

    /// Asks the kernel for the routes. Returns how many it has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read_routes(&mut self, kernel: &mut impl Kernel) -> io::Result<u32> {
        let mut read: u32;
        loop {
            read = 0;
            let routes = kernel.routes(&mut |route| {
                read = read.saturating_add(1);
                self.matters(route)
            })?;
            self.routes.clear();
            let searched = self.behind_lan.len();
            for route in routes {
                self.insert(route, false);
            }
            // Routes inside those through a LAN interface may have been read before them.
            if self.behind_lan.len() == searched {
                break;
            }
        }
        let by_lan = self.routes_of(MAIN_TABLE).filter(|r| r.destination.prefix_len() > 0 && self.leaves_by_lan(r));
        let by_lan: BTreeSet<IpNet> = by_lan.map(|route| route.destination).collect();
        if self.behind_lan.len() > by_lan.len() + REMEMBERED {
            self.behind_lan = by_lan;
        }
        Ok(read)
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
                    || route.by_class
                    || route.destination.prefix_len() == 0
                    || self.leaves_by_lan(route)
                    || self.is_behind_lan(&route.destination))
    }

    /// Whether a route leads through a LAN interface.
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

    /// The IPv4 router beyond this interface, which may map ports.
    #[must_use]
    pub fn router(&self, interface: u32) -> Option<IpAddr> {
        let default = self.default_routes().filter(|route| route.interface == Some(interface));
        default.filter_map(|route| route.gateway).find(IpAddr::is_ipv4)
    }

    /// The routes of a table.
    pub fn routes_of(&self, table: u32) -> impl Iterator<Item = &Route> {
        let first = (table, IpNet::V4(Default::default()), 0);
        self.routes.range(first..).take_while(move |(key, _)| key.0 == table).flat_map(|(_, routes)| routes)
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

    /// The names of the bridges.
    #[must_use]
    pub fn bridges(&self) -> BTreeSet<String> {
        let bridges = self.interfaces.values().filter(|interface| interface.kind.as_deref() == Some("bridge"));
        bridges.map(|interface| interface.name.clone()).collect()
    }

    /// The addresses of an interface.
    pub fn addresses_of(&self, interface: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.interface == interface)
    }

    /// Whether an address is this host's, on any interface.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }

    /// A source address for IPv4: the first of the LAN interfaces in order.
    #[must_use]
    pub fn speaker_v4(&self, lan: &[u32]) -> Option<Ipv4Addr> {
        self.speaker(lan, |a| if let IpAddr::V4(a) = a { Some(a) } else { None })
    }

    /// A source address for IPv6: the first global one of the LAN interfaces in order.
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

    /// The routes that choose between interfaces; among equals, the one that the kernel prefers comes last.
    fn forwarding(&self) -> Vec<&Route> {
        let mut routes: Vec<_> = self.routes().filter(|r| r.table == MAIN_TABLE || r.table == LOCAL_TABLE).collect();
        routes.sort_by_key(|r| (r.table == LOCAL_TABLE, std::cmp::Reverse(r.metric)));
        routes
    }

    /// Next hops on these LAN interfaces: hosts that are neighbours, prefixes behind routers. What the
    /// kernel would send elsewhere, by other people's rules (`ip rule`), or by a route that only it can follow, has an
    /// entry without a link, so that no shorter prefix catches it.
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
        let forwarding = self.forwarding();
        let fitting = |link: Link, route: &Route| match route.mtu.and_then(|mtu| u16::try_from(mtu).ok()) {
            Some(mtu) if mtu < link.mtu => link.with_mtu(mtu),
            _ => link,
        };
        for route in &forwarding {
            let interface = lan.iter().find(|i| Some(i.index) == route.interface);
            let link = match (interface, route.gateway) {
                (Some(interface), Some(gateway))
                    if route.kind == RouteKind::Unicast && !is_ruled(route.destination) =>
                {
                    self.link(interface, gateway, gateway).map(|link| fitting(link, route))
                }
                _ => None,
            };
            let (address, length) = (route.destination.addr(), route.destination.prefix_len());
            let direct = route.kind == RouteKind::Unicast && route.gateway.is_none();
            on_link.insert(address, length, interface.filter(|_| direct).map(|i| (i.index, *route)));
            hops.insert(address, length, link);
        }
        // The other routes to the same prefix do not say which packets these are for.
        for route in forwarding.iter().filter(|route| route.kernel_only) {
            let (address, length) = (route.destination.addr(), route.destination.prefix_len());
            on_link.insert(address, length, None);
            hops.insert(address, length, None);
        }
        for neighbour in self.neighbours.values() {
            let interface = lan.iter().find(|i| i.index == neighbour.interface);
            let direct = on_link.lookup(neighbour.address).copied().flatten();
            let direct = direct.filter(|(interface, _)| *interface == neighbour.interface);
            if let (Some(interface), Some((_, route)), false) = (interface, direct, is_ruled(neighbour.address.into()))
            {
                let link = self.link(interface, neighbour.address, neighbour.address);
                hops.insert(neighbour.address, 128, link.map(|link| fitting(link, route)));
            }
        }
        hops
    }

    /// The destinations to which rules or routes may send packets of one traffic class another way.
    #[must_use]
    pub fn chosen_by_class(&self) -> Vec<IpNet> {
        let rules = self.other_rules.iter().filter(|rule| rule.by_class);
        let rules = rules.map(|rule| rule.destination.unwrap_or_else(|| all(rule.ipv6)));
        rules.chain(self.routes().filter(|route| route.by_class).map(|route| route.destination)).collect()
    }

    /// The networks of a site's hosts: its `subnets`, else those of the interfaces `lan`.
    #[must_use]
    pub fn of_site(&self, subnets: &BTreeSet<IpNet>, lan: &[u32]) -> BTreeSet<IpNet> {
        if !subnets.is_empty() {
            return subnets.clone();
        }
        lan.iter().flat_map(|lan| self.addresses_of(*lan)).map(|address| address.network()).collect()
    }

    /// Prefixes that are left to the kernel: inside `remote`, our addresses and what leaves by a LAN interface; inside
    /// `own`, our addresses, which no host may send from.
    #[must_use]
    pub fn kept(&self, remote: &[IpNet], own: &BTreeSet<IpNet>) -> Vec<IpNet> {
        let inside = |outer: &IpNet, route: &Route| {
            outer.contains(&route.destination) && outer.prefix_len() < route.destination.prefix_len()
        };
        let local = |route: &Route| route.table == LOCAL_TABLE;
        let mut kept: Vec<IpNet> = self
            .forwarding()
            .into_iter()
            .filter(|r| {
                let inside_remote =
                    (local(r) || self.leaves_by_lan(r)) && remote.iter().any(|prefix| inside(prefix, r));
                inside_remote || (local(r) && own.iter().any(|prefix| inside(prefix, r)))
            })
            .map(|r| r.destination)
            .collect();
        kept.sort_unstable();
        kept.dedup();
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::News;

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
            port_of: None,
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
        assert_eq!(mac("203.0.113.1"), None, "the WAN is not one of the LAN's hops");
        assert!(network().hops(&[]).is_empty());
    }

    #[test]
    fn what_only_the_kernel_can_follow_is_left_to_it_and_a_route_s_mtu_holds() {
        let hop = |change: fn(&mut Route), to: &str| {
            let mut network = network();
            let mut changed = route(if to.starts_with("10.7") { "10.7.0.0/16" } else { "10.101.0.0/24" }, 3, None);
            changed.gateway = to.starts_with("10.7").then(|| "10.101.0.254".parse().unwrap());
            change(&mut changed);
            network.insert(changed, !changed.kernel_only);
            network.hops(&[3]).lookup(to.parse().unwrap()).copied().flatten().map(|link| link.mtu)
        };
        for to in ["10.101.0.2", "10.7.1.1"] {
            assert_eq!(hop(|_| {}, to), Some(1500), "{to}");
            assert_eq!(hop(|route| route.mtu = Some(1300), to), Some(1300), "{to}");
            assert_eq!(hop(|route| route.mtu = Some(9000), to), Some(1500), "{to}");
            assert_eq!(hop(|route| route.kernel_only = true, to), None, "{to}: another route to the same prefix");
        }
    }

    #[test]
    fn the_site_keeps_what_leaves_by_a_lan_interface() {
        let remote = [net("10.0.0.0/8"), net("10.7.0.0/16")];
        let kept = |remote: &[IpNet], own: &[IpNet]| -> Vec<String> {
            network().kept(remote, &own.iter().copied().collect()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(kept(&remote, &[]), ["10.7.0.0/16", "10.8.0.0/16", "10.101.0.0/24", "10.101.0.1/32"]);
        // Packets from a router's networks are the site's, packets from our own addresses are forged.
        assert_eq!(kept(&[], &[net("10.0.0.0/8")]), ["10.101.0.1/32"]);
    }

    #[test]
    fn the_lan_gives_the_address_to_speak_from() {
        assert_eq!(network().speaker_v4(&[2, 3]), Some(Ipv4Addr::new(10, 101, 0, 1)));
        assert_eq!(network().speaker_v6(&[2, 3]), None);
    }

    /// One of hundreds of thousands of routes by the WAN comes and goes: the paths to endpoints are looked up again,
    /// but it is not kept, and nothing is planned or read for it.
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
        // A route inside a network behind a LAN router matters.
        let inside = route("10.8.1.0/24", 2, Some("192.0.2.254"));
        let mut changed = Changed::default();
        assert_eq!(network.follow(News::Route { route: inside, replaces: false }, &mut changed), Follow::Done);
        assert!(changed.ground);
        // For a LAN route that flaps, the routes are read only once.
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
