//! Measures from sockets of its own, where no gateway runs.
//!
//! ```text
//!   a fresh socket      the whole discovery: how the NAT maps and filters
//!   the pinned port     whether anybody is let in, and where it shows
//!   the router          does it map the pinned port?
//! ```
//! The pinned port is tested with care: a whole discovery opens the filters that it tests, for minutes, and the next
//! one would find them open. So no request goes from there to the server's other address. A mapping is asked for last,
//! since it opens the port.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_connect::{CoordinatorUrl, Outbound, bind_udp};
use penstock_proto::stun::message::MAX_LENGTH;
use penstock_proto::stun::{Discovery, NatReport};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;

use super::{Coordinator, Family, NatClass, Parts, RemoteSite, Report};
use crate::coordinator;
use crate::netlink::Netlink;
use crate::port_mapping::{Mapping, PortMapper};

/// A discovery is at most three steps of three seconds; it ends by itself.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(15);
/// How long a router may take to answer in any protocol: the slowest is IGD, with three exchanges of two seconds.
const MAPPING_LIMIT: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The pinned port, if there is one.
    pub local_port: Option<u16>,
    /// STUN servers of both IP versions.
    pub servers: Vec<SocketAddr>,
    /// The coordinator, if there is one.
    pub coordinator: Option<CoordinatorUrl>,
    /// The route to it; its firewall mark is used for all sockets.
    pub outbound: Outbound,
    /// The other sites, as far as they are known.
    pub peers: Vec<RemoteSite>,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The pinned port cannot be bound.
    #[error("UDP port {port} of {ip} cannot be used: {error}")]
    Port {
        /// The port.
        port: u16,
        /// The address of ours.
        ip: IpAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The kernel does not answer.
    #[error("cannot ask the kernel for routes: {0}")]
    Routes(io::Error),
}

/// Measures everything, in parallel where one measurement does not disturb another.
///
/// # Errors
/// The pinned port is taken, or the kernel reports nothing about routes. What the network blocks is not an error, but
/// part of the report.
pub async fn gather(plan: &Plan) -> Result<Report, GatherError> {
    let routes = ServerRoutes::of(&plan.servers)?;
    let mark = plan.outbound.mark;
    let bind = |route| Sockets::bind(plan.local_port, route, mark);
    let sockets = [bind(&routes.ipv4)?, bind(&routes.ipv6)?];
    let [first, second] = &sockets;
    let local_port = plan.local_port.or(first.as_ref().or(second.as_ref()).map(Sockets::port)).unwrap_or(0);
    let coordinator = async {
        match &plan.coordinator {
            Some(url) => Some(try_coordinator(url, &plan.outbound).await),
            None => None,
        }
    };
    let (ipv4, ipv6, coordinator) =
        tokio::join!(measure(first, &routes.ipv4), measure(second, &routes.ipv6), coordinator);
    let port_mapping = match (routes.router, first) {
        (Some(router), Some(sockets)) => Some(map(router, sockets.local, local_port, mark).await),
        _ => None,
    };
    let pinned = plan.local_port.is_some();
    let peers = plan.peers.clone();
    let (running, measuring) = (false, false);
    let parts = Parts { running, measuring, local_port, pinned, ipv4, ipv6, port_mapping, coordinator, peers };
    Ok(Report::new(parts))
}

async fn try_coordinator(url: &CoordinatorUrl, outbound: &Outbound) -> Coordinator {
    let outcome = coordinator::reach(url, outbound).await;
    Coordinator {
        address: url.endpoint().host_and_port(),
        proxy: outbound.proxy.towards(url),
        reachable: outcome.is_ok(),
        problem: outcome.err(),
    }
}

/// The routes to the servers.
pub(super) struct ServerRoutes {
    pub ipv4: ServerRoute,
    pub ipv6: ServerRoute,
    /// The IPv4 router.
    router: Option<IpAddr>,
}

#[derive(Default)]
pub(super) struct ServerRoute {
    pub servers: Vec<SocketAddr>,
    /// Our address towards them; `None`: there is no route.
    pub local: Option<IpAddr>,
}

impl ServerRoutes {
    pub fn of(servers: &[SocketAddr]) -> Result<Self, GatherError> {
        let mut netlink = Netlink::open().map_err(GatherError::Routes)?;
        let mut router = None;
        let mut route = |is_ipv4: bool| -> Result<ServerRoute, GatherError> {
            let servers: Vec<SocketAddr> =
                servers.iter().copied().filter(|server| server.is_ipv4() == is_ipv4).collect();
            let mut local = None;
            for server in &servers {
                let Some(route) = netlink.route_to(server.ip()).map_err(GatherError::Routes)? else { continue };
                local = local.or(route.source);
                if is_ipv4 {
                    router = router.or(route.gateway);
                }
            }
            Ok(ServerRoute { servers, local })
        };
        let (ipv4, ipv6) = (route(true)?, route(false)?);
        Ok(Self { ipv4, ipv6, router })
    }
}

/// The sockets of one IP version.
struct Sockets {
    local: IpAddr,
    fresh: UdpSocket,
    pinned: Option<UdpSocket>,
}

impl Sockets {
    fn bind(port: Option<u16>, route: &ServerRoute, mark: u32) -> Result<Option<Self>, GatherError> {
        let Some(local) = route.local else { return Ok(None) };
        let bind = |port| {
            let socket = bind_udp(SocketAddr::new(local, port), mark);
            socket.map_err(|error| GatherError::Port { port, ip: local, error })
        };
        let fresh = bind(0)?;
        let pinned = port.map(bind).transpose()?;
        Ok(Some(Self { local, fresh, pinned }))
    }

    fn port(&self) -> u16 {
        self.fresh.local_addr().map_or(0, |address| address.port())
    }
}

async fn measure(sockets: &Option<Sockets>, route: &ServerRoute) -> Option<Family> {
    let Sockets { fresh, pinned, .. } = sockets.as_ref()?;
    let careful = async {
        match pinned {
            Some(pinned) => Some(run(pinned, &route.servers, false).await),
            None => None,
        }
    };
    let (nat, port) = tokio::join!(discover(fresh, &route.servers), careful);
    let mut family = Family::new(nat);
    if let Some(port) = port {
        // The NAT behaves as the fresh socket shows; external address and filtering of the tunnel are those of its
        // port.
        family.port_filtering = port.filtering;
        family.nat.reflexive = port.reflexive;
        family.nat.port_preservation = port.port_preservation;
        family.nat_type = NatClass::of(&family.nat);
    }
    Some(family)
}

/// Runs a whole discovery from a socket that is bound to one address. Silence is a result too.
pub async fn discover(socket: &UdpSocket, servers: &[SocketAddr]) -> NatReport {
    run(socket, servers, true).await
}

/// `opening`: whether requests may go to a server's other address and to ourselves, which opens filters. Without them,
/// the report says nothing about mapping and hairpinning.
async fn run(socket: &UdpSocket, servers: &[SocketAddr], opening: bool) -> NatReport {
    let nothing = NatReport { udp_blocked: true, ..NatReport::default() };
    let Ok(local) = socket.local_addr() else { return nothing };
    let mut discovery = Discovery::new(Instant::now(), servers, &[local], StdRng::from_os_rng());
    if !opening {
        discovery = discovery.without_opening();
    }
    let mut datagram = [0; MAX_LENGTH];
    let end = Instant::now() + DISCOVERY_LIMIT;
    while Instant::now() < end {
        while let Some(query) = discovery.poll_transmit(Instant::now()) {
            // What the kernel refuses counts as lost.
            let _ = socket.send_to(&query.bytes, query.to).await;
        }
        if let Some(report) = discovery.poll_report() {
            return report;
        }
        let Some(at) = discovery.poll_timeout() else { continue };
        tokio::select! {
            received = socket.recv_from(&mut datagram) => {
                if let Ok((length, _)) = received {
                    discovery.handle_datagram(Instant::now(), &datagram[..length]);
                }
            }
            () = tokio::time::sleep_until(at.min(end).into()) => {}
        }
    }
    nothing
}

/// Maps the port, looks at the result, and deletes the mapping again.
async fn map(router: IpAddr, local: IpAddr, port: u16, mark: u32) -> Mapping {
    let mut mapper = PortMapper::start(router, local, port, mark);
    let mapping = tokio::time::timeout(MAPPING_LIMIT, mapper.next()).await.unwrap_or_default();
    mapper.release().await;
    mapping
}
