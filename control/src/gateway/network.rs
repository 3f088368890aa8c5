//! The network as the kernel sees it, kept as a snapshot, and the ways it gives to WAN endpoints and
//! LAN hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use penstock_dataplane::ports::Link;
use penstock_dataplane::prefix::PrefixMap;

use crate::netlink::{Address, Change, Interface, MAIN_TABLE, Neighbour, Netlink, Route, RouteKind};

/// `rtnetlink(7)`, RT_TABLE_LOCAL: our own addresses, and broadcast ones.
const LOCAL_TABLE: u32 = 255;

/// What the kernel said when it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// Routes of all tables.
    pub routes: Vec<Route>,
    /// Resolved neighbours.
    pub neighbours: Vec<Neighbour>,
}

impl Network {
    /// Asks for everything.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ask(netlink: &mut Netlink) -> Result<Self> {
        let mut network = Self::default();
        network.refresh(netlink, Change::everything())?;
        Ok(network)
    }

    /// Asks for what has changed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn refresh(&mut self, netlink: &mut Netlink, change: Change) -> Result<()> {
        let context = "the kernel does not tell about the network";
        if change.interfaces {
            self.interfaces = netlink.interfaces().context(context)?;
        }
        if change.addresses {
            self.addresses = netlink.addresses().context(context)?;
        }
        if change.routes {
            self.routes = netlink.routes().context(context)?;
        }
        if change.neighbours {
            self.neighbours = netlink.neighbours().context(context)?;
        }
        Ok(())
    }

    /// Whether it tells the same, but for how sure the kernel is of neighbours.
    pub fn says_same(&self, other: &Self) -> bool {
        let known = |n: &Neighbour| Neighbour { stale: false, ..*n };
        self.interfaces == other.interfaces
            && self.addresses == other.addresses
            && self.routes == other.routes
            && self.neighbours.iter().map(known).eq(other.neighbours.iter().map(known))
    }

    /// An interface by its name.
    pub fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// An interface by its index.
    pub fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.index == index)
    }

    /// The addresses of an interface.
    pub fn addresses_of(&self, interface: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.interface == interface)
    }

    /// An IPv4 address to speak from: the first of the LAN interfaces in order.
    pub fn speaker_v4(&self, lan: &[u32]) -> Option<Ipv4Addr> {
        self.speaker(lan, |a| if let IpAddr::V4(a) = a { Some(a) } else { None })
    }

    /// An IPv6 address to speak from: the first global one of the LAN interfaces in order.
    pub fn speaker_v6(&self, lan: &[u32]) -> Option<Ipv6Addr> {
        self.speaker(lan, |a| if let IpAddr::V6(a) = a { Some(a) } else { None })
    }

    fn speaker<A>(&self, lan: &[u32], family: impl Fn(IpAddr) -> Option<A>) -> Option<A> {
        lan.iter().find_map(|i| self.addresses_of(*i).filter(|a| a.global).find_map(|a| family(a.address)))
    }

    /// The resolved link to a neighbour on an interface; packets come from `source`.
    pub fn link(&self, interface: &Interface, neighbour: IpAddr, source: IpAddr) -> Option<Link> {
        let mac = self.neighbours.iter().find(|n| n.interface == interface.index && n.address == neighbour)?.mac;
        let link = Link::new(interface.index, source, mac, interface.mac?, None);
        Some(link.with_mtu(u16::try_from(interface.mtu).unwrap_or(u16::MAX)))
    }

    /// The routes that choose between interfaces, the one the kernel prefers last among equals.
    fn forwarding(&self) -> Vec<&Route> {
        let mut routes: Vec<_> =
            self.routes.iter().filter(|r| r.table == MAIN_TABLE || r.table == LOCAL_TABLE).collect();
        routes.sort_by_key(|r| (r.table == LOCAL_TABLE, std::cmp::Reverse(r.metric)));
        routes
    }

    /// Next hops on these LAN interfaces: hosts that are neighbours, prefixes behind routers. What the
    /// kernel would send elsewhere has an entry without a link, so that no shorter prefix catches it.
    /// Rules (`ip rule`) are not followed.
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
        for neighbour in &self.neighbours {
            let interface = lan.iter().find(|i| i.index == neighbour.interface);
            let direct = on_link.lookup(neighbour.address).copied().flatten() == Some(neighbour.interface);
            if let (Some(interface), true) = (interface, direct) {
                let link = self.link(interface, neighbour.address, neighbour.address);
                hops.insert(neighbour.address, 128, link);
            }
        }
        hops
    }

    /// Prefixes that the kernel keeps although a remote one holds them: our addresses, and routes of
    /// others that are more specific.
    pub fn kept(&self, remote: &[IpNet], ours: u8) -> Vec<IpNet> {
        let mut kept: Vec<IpNet> = self
            .forwarding()
            .into_iter()
            .filter(|r| r.protocol != ours)
            .map(|r| r.destination)
            .filter(|d| remote.iter().any(|p| p.contains(d) && p.prefix_len() < d.prefix_len()))
            .collect();
        kept.sort_unstable();
        kept.dedup();
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let route = |to: &str, interface, gateway: Option<&str>| {
            Route::by(to.parse().unwrap(), interface, gateway.map(|g| g.parse().unwrap()), 0, 3)
        };
        let neighbour = |interface, address: &str, last| Neighbour {
            interface,
            address: address.parse().unwrap(),
            mac: [2, 0, 0, 0, 1, last],
            stale: false,
        };
        let local = Route { kind: RouteKind::Local, table: LOCAL_TABLE, ..route("10.101.0.1/32", 3, None) };
        Network {
            interfaces: vec![interface(2, "wan0"), interface(3, "lan0")],
            addresses: vec![Address { interface: 3, address: "10.101.0.1".parse().unwrap(), length: 24, global: true }],
            routes: vec![
                local,
                route("0.0.0.0/0", 2, Some("192.0.2.254")),
                route("10.101.0.0/24", 3, None),
                route("10.7.0.0/16", 3, Some("10.101.0.254")),
                route("10.8.0.0/16", 3, Some("10.101.0.253")),
                route("10.7.7.0/24", 2, Some("192.0.2.254")),
            ],
            neighbours: vec![
                neighbour(3, "10.101.0.2", 2),
                neighbour(3, "10.101.0.254", 254),
                neighbour(3, "10.7.7.7", 7),
                neighbour(2, "192.0.2.254", 9),
            ],
        }
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
    fn the_kernel_keeps_what_is_more_specific_than_a_remote_prefix() {
        let remote: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "10.7.7.0/24".parse().unwrap()];
        let kept = network().kept(&remote, 80);
        let text: Vec<String> = kept.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.7.0.0/16", "10.7.7.0/24", "10.8.0.0/16", "10.101.0.0/24", "10.101.0.1/32"]);
    }

    #[test]
    fn the_lan_gives_the_address_to_speak_from() {
        assert_eq!(network().speaker_v4(&[2, 3]), Some(Ipv4Addr::new(10, 101, 0, 1)));
        assert_eq!(network().speaker_v6(&[2, 3]), None);
    }
}
