//! Routes: those we add and remove, and the kernel's choice for a destination.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use super::links::family;
use super::{Netlink, network};

/// The routing table that is used unless rules say otherwise.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The table of this host's own addresses, and of broadcast ones (`rtnetlink(7)`, RT_TABLE_LOCAL).
pub const LOCAL_TABLE: u32 = 255;

/// What happens to a packet that follows a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// It is forwarded.
    Unicast,
    /// It is dropped.
    Blackhole,
    /// It is delivered to this host.
    Local,
    /// The lookup goes on with the next rule, as if this table had no route.
    Throw,
    /// Anything else.
    Other,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The destination of the packets.
    pub destination: IpNet,
    /// The table it is in.
    pub table: u32,
    /// The lower is preferred.
    pub metric: u32,
    /// Who added it (`rtnetlink(7)`, `rtm_protocol`).
    pub protocol: u8,
    /// What happens to the packet.
    pub kind: RouteKind,
    /// The outgoing interface.
    pub interface: Option<u32>,
    /// The next hop; `None` for a destination on the link.
    pub gateway: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The MTU of the route, in bytes; `None` for the interface's.
    pub mtu: Option<u32>,
    /// Whether only the kernel can follow it: it holds for some packets of its prefix and not for others (by traffic
    /// class or source), has several next hops, or encapsulates.
    pub kernel_only: bool,
    /// Whether it is for packets of one traffic class.
    pub by_class: bool,
}

/// A datagram of the gateway's own, outside the tunnel: everything that rules may look at.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Its firewall mark.
    pub mark: u32,
    /// Its source address; `None` for the one that the route prefers.
    pub source: Option<IpAddr>,
    /// Its UDP source port.
    pub source_port: u16,
    /// Its destination.
    pub destination: SocketAddr,
}

impl Route {
    /// A blackhole route to `destination` in the main table.
    pub fn blackhole(destination: IpNet, metric: u32, protocol: u8) -> Self {
        Self {
            destination,
            table: MAIN_TABLE,
            metric,
            protocol,
            kind: RouteKind::Blackhole,
            interface: None,
            gateway: None,
            source: None,
            mtu: None,
            kernel_only: false,
            by_class: false,
        }
    }

    /// A route to `destination` in the main table through an interface.
    pub fn by(destination: IpNet, interface: u32, gateway: Option<IpAddr>, metric: u32, protocol: u8) -> Self {
        Self {
            kind: RouteKind::Unicast,
            interface: Some(interface),
            gateway,
            ..Self::blackhole(destination, metric, protocol)
        }
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination.addr());
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.kind = match self.kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Blackhole => RouteType::BlackHole,
            RouteKind::Local => RouteType::Local,
            RouteKind::Throw => RouteType::Throw,
            RouteKind::Other => RouteType::Unspec,
        };
        let on_link = self.kind == RouteKind::Unicast && self.gateway.is_none();
        if on_link && self.destination.addr().is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(self.destination.addr().into()));
        attributes.push(RouteAttribute::Priority(self.metric));
        attributes.push(RouteAttribute::Table(self.table));
        attributes.extend(self.interface.map(RouteAttribute::Oif));
        attributes.extend(self.gateway.map(|g| RouteAttribute::Gateway(g.into())));
        attributes.extend(self.source.map(|s| RouteAttribute::PrefSource(s.into())));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        message
    }

    pub(super) fn from_message(message: &RouteMessage) -> Option<Self> {
        let unspecified = match message.header.address_family {
            netlink_packet_route::AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            netlink_packet_route::AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut route = Self {
            destination: network(unspecified, message.header.destination_prefix_length),
            table: u32::from(message.header.table),
            metric: 0,
            protocol: message.header.protocol.into(),
            kind: match message.header.kind {
                RouteType::Unicast => RouteKind::Unicast,
                RouteType::BlackHole => RouteKind::Blackhole,
                RouteType::Local => RouteKind::Local,
                RouteType::Throw => RouteKind::Throw,
                _ => RouteKind::Other,
            },
            interface: None,
            gateway: None,
            source: None,
            mtu: None,
            kernel_only: message.header.tos != 0 || message.header.source_prefix_length != 0,
            by_class: message.header.tos != 0,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => {
                    route.destination = network(address(to)?, message.header.destination_prefix_length);
                }
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Oif(interface) => route.interface = Some(*interface),
                RouteAttribute::Gateway(gateway) => route.gateway = address(gateway),
                RouteAttribute::PrefSource(source) => route.source = address(source),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::Via(via) => route.gateway = via_address(via),
                RouteAttribute::EncapType(_) => route.kernel_only = true,
                // Of several next hops, the first stands for all. `route_to` gives the kernel's choice.
                RouteAttribute::MultiPath(hops) => {
                    route.kernel_only = true;
                    let first = hops.first()?;
                    route.interface = Some(first.interface_index);
                    route.gateway = first.attributes.iter().find_map(|a| match a {
                        RouteAttribute::Gateway(gateway) => address(gateway),
                        RouteAttribute::Via(via) => via_address(via),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Some(route)
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

fn via_address(via: &netlink_packet_route::route::RouteVia) -> Option<IpAddr> {
    use netlink_packet_route::route::RouteVia;
    match via {
        RouteVia::Inet(a) => Some(IpAddr::V4(*a)),
        RouteVia::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

impl Netlink {
    /// All routes of all tables.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        self.routes_that(|_| true)
    }

    /// The routes of all tables for which `keep` returns true; the others, which may be many, take no memory.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn routes_that(&mut self, mut keep: impl FnMut(&Route) -> bool) -> io::Result<Vec<Route>> {
        self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()), |m| match m {
            RouteNetlinkMessage::NewRoute(route) => Route::from_message(&route).filter(&mut keep),
            _ => None,
        })
    }

    /// The route that a packet of the gateway's own takes, according to routes and rules; `None` when there is none, or
    /// it drops the packet.
    ///
    /// # Errors
    /// Any other error of the kernel.
    pub fn route_of(&mut self, packet: &Outer) -> io::Result<Option<Route>> {
        let mut selectors = vec![
            RouteAttribute::Mark(packet.mark),
            RouteAttribute::IpProto(libc::IPPROTO_UDP as u8),
            RouteAttribute::Sport(packet.source_port),
            RouteAttribute::Dport(packet.destination.port()),
        ];
        selectors.extend(packet.source.map(|source| RouteAttribute::Source(source.into())));
        // Link-local addresses exist on every link; the zone says which one is meant.
        if let SocketAddr::V6(v6) = packet.destination
            && v6.scope_id() != 0
        {
            selectors.push(RouteAttribute::Oif(v6.scope_id()));
        }
        self.look_up(packet.destination.ip(), selectors)
    }

    /// The route that any other packet of this host to `destination` takes.
    ///
    /// # Errors
    /// As [`Self::route_of`].
    pub fn route_to(&mut self, destination: IpAddr) -> io::Result<Option<Route>> {
        self.look_up(destination, Vec::new())
    }

    fn look_up(&mut self, destination: IpAddr, selectors: Vec<RouteAttribute>) -> io::Result<Option<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        let by_source = selectors.iter().any(|selector| matches!(selector, RouteAttribute::Source(_)));
        message.header.source_prefix_length = if by_source { message.header.destination_prefix_length } else { 0 };
        message.attributes = selectors;
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        match self.query(RouteNetlinkMessage::GetRoute(message)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => Ok(Route::from_message(&answer).map(|mut route| {
                // The kernel has chosen for this packet.
                route.kernel_only = answer.attributes.iter().any(|a| matches!(a, RouteAttribute::EncapType(_)));
                // What routers have reported about the path expires, and is no property of the route.
                let told = |a: &RouteAttribute| matches!(a, RouteAttribute::CacheInfo(info) if info.expires != 0);
                route.mtu = route.mtu.filter(|_| !answer.attributes.iter().any(told));
                route
            })),
            Ok(_) => Ok(None),
            // A blackhole answers EINVAL, a prohibition EACCES, no route ENETUNREACH.
            Err(e) => match e.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES) => Ok(None),
                _ => Err(e),
            },
        }
    }

    /// Adds a route, or replaces the one with the same destination, table and metric.
    ///
    /// # Errors
    /// There is no such interface or next hop.
    pub fn add_route(&mut self, route: &Route) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRoute(route.message()), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds a route unless there is one with the same destination, table and metric.
    ///
    /// # Errors
    /// `EEXIST`, or there is no such interface or next hop.
    pub fn add_new_route(&mut self, route: &Route) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRoute(route.message()), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a route; it is not an error if it is already gone.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove_route(&mut self, route: &Route) -> io::Result<()> {
        match self.change(RouteNetlinkMessage::DelRoute(route.message()), 0) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV)) => Ok(()),
            other => other,
        }
    }
}
