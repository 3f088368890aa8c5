//! What a firewall on a gateway, or in front of it, has to let through: a list of flows computed from the profile,
//! which [`rules`] writes as rules of the usual firewalls.
//!
//! Firewalls are assumed to let in the answers to what they have let out.

pub mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use penstock_connect::{Proxy, ProxyError};

use crate::profile::{Coordinator, Endpoint, LocalPort, Profile};

/// The UDP port of the coordinator's STUN server and relay, unless it has others.
const COORDINATOR_UDP: u16 = 3478;
/// The STUN server's second port, likewise.
const STUN_ALTERNATE: u16 = 3479;
/// The port of PCP and NAT-PMP at the router (RFC 6887).
const PORT_MAPPING: u16 = 5351;
/// SSDP, with which UPnP starts (UPnP Device Architecture 1.1, section 1).
const SSDP: u16 = 1900;
/// DNS.
const DNS: u16 = 53;

/// The direction of the first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To this gateway.
    In,
    /// From this gateway.
    Out,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Anyone.
    Any,
    /// This address.
    Address(IpAddr),
    /// Whatever this name resolves to.
    Name(String),
    /// The router of the gateway's own network, at this address.
    Router(IpAddr),
}

/// Whether it also works without this flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works without it.
    Required,
    /// Without it some peers are relayed, or have to initiate the connection.
    Recommended,
}

/// Packets that have to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The direction of the first packet.
    pub direction: Direction,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port here; `None` for any.
    pub local_port: Option<u16>,
    /// The other end.
    pub remote: Remote,
    /// The port there; `None` for any.
    pub remote_port: Option<u16>,
    /// Whether it also works without this flow.
    pub need: Need,
    /// Its purpose.
    pub why: String,
}

/// What has to pass for this gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// By port and address.
    pub flows: Vec<Flow>,
    /// The site's own packets, which the kernel forwards between these interfaces and the tunnel's.
    pub lan: Vec<String>,
    /// The tunnel's interface.
    pub tunnel: String,
}

/// What the profile does not say.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The tunnel's port while the gateway runs.
    pub port: Option<u16>,
    /// The proxy through which the gateway reaches its coordinator.
    pub proxy: &'a Proxy,
    /// The router on the WAN, while there is a default route. Without one nobody is asked to map a port.
    pub router: Option<IpAddr>,
}

/// What has to pass for the gateway with this profile.
///
/// # Errors
/// The proxy that is asked for cannot be used.
pub fn needs(profile: &Profile, surroundings: &Surroundings<'_>) -> Result<Needs, ProxyError> {
    let pinned = match profile.local_port {
        LocalPort::Pinned(port) => Some(port),
        LocalPort::Random => None,
    };
    let port = pinned.or(surroundings.port);
    let mut flows = Vec::new();
    tunnel(profile, port, pinned, &mut flows);
    let mut names: BTreeSet<String> = flows.iter().filter_map(|flow| flow.remote.name()).collect();
    if let Some(coordinator) = &profile.coordinator {
        let server = tcp(coordinator, surroundings.proxy)?;
        // The coordinator says at which addresses its UDP ports are: only the TCP connection begins with a name.
        names.extend(server.remote.name());
        flows.push(server);
        udp(profile, coordinator, port, &mut flows);
        if let Some(router) = surroundings.router.filter(|_| profile.port_mapping) {
            port_mapping(router, &mut flows);
        }
    }
    name_servers(&names, &mut flows);
    Ok(Needs { flows, lan: profile.lan.interfaces.clone(), tunnel: profile.name.to_string() })
}

/// The tunnel itself: to and from peers.
fn tunnel(profile: &Profile, port: Option<u16>, pinned: Option<u16>, flows: &mut Vec<Flow>) {
    for peer in &profile.peers {
        let Some(endpoint) = &peer.endpoint else { continue };
        let why = format!("the tunnel to {}", peer.name);
        flows.push(out(Protocol::Udp, port, remote(endpoint), Some(endpoint.port()), Need::Required, &why));
    }
    let calls: Vec<&str> = profile.peers.iter().filter(|p| p.endpoint.is_none()).map(|p| p.name.as_str()).collect();
    let (need, why) = match calls.as_slice() {
        [] if profile.coordinator.is_some() => (Need::Recommended, "other sites reach this one directly".to_owned()),
        [] => (Need::Recommended, "peers call first as well".to_owned()),
        names => (Need::Required, format!("no endpoint is known, so these must call first: {}", names.join(", "))),
    };
    // A port that changes with each start cannot be let in.
    if let Some(port) = pinned {
        flows.push(Flow {
            direction: Direction::In,
            protocol: Protocol::Udp,
            local_port: Some(port),
            remote: Remote::Any,
            remote_port: None,
            need,
            why,
        });
    }
}

/// The connection to the coordinator.
fn tcp(coordinator: &Coordinator, proxy: &Proxy) -> Result<Flow, ProxyError> {
    let url = coordinator.url.endpoint();
    let (remote, port, why) = match proxy.address(&coordinator.url)? {
        Some((host, port)) => (
            remote_host(&host),
            port,
            "the proxy in HTTPS_PROXY, which leads to the coordinator and to relays over TLS",
        ),
        None => (remote_host(url.host()), url.port(), "the coordinator, and its relay where UDP is blocked"),
    };
    Ok(out(Protocol::Tcp, None, remote, Some(port), Need::Required, why))
}

/// STUN, relays and direct paths.
fn udp(profile: &Profile, coordinator: &Coordinator, port: Option<u16>, flows: &mut Vec<Flow>) {
    let host = remote_host(coordinator.url.endpoint().host());
    // The ports of birthday probing are any.
    let direct = port.filter(|_| !profile.birthday_probing);
    let out = |local, remote, port, why| out(Protocol::Udp, local, remote, port, Need::Recommended, why);
    flows.extend([
        out(
            port,
            host.clone(),
            Some(COORDINATOR_UDP),
            "STUN and relay: without it, traffic is relayed over TCP and no path is direct",
        ),
        out(port, host, Some(STUN_ALTERNATE), "the second port for STUN, which shows how a NAT chooses ports"),
        out(direct, Remote::Any, None, "direct paths to other sites, at any port of their NATs"),
    ]);
}

/// PCP, NAT-PMP and UPnP. The search for UPnP goes to the router alone, so its answer comes from where it was sent.
fn port_mapping(router: IpAddr, flows: &mut Vec<Flow>) {
    let out = |protocol, port, why| out(protocol, None, Remote::Router(router), port, Need::Recommended, why);
    flows.extend([
        out(Protocol::Udp, Some(PORT_MAPPING), "the router is asked to map a port, by PCP and NAT-PMP"),
        out(Protocol::Udp, Some(SSDP), "the router is searched for UPnP"),
        out(Protocol::Tcp, None, "the router is asked by UPnP, at a port that it names"),
    ]);
}

/// Name servers, if there are names to resolve.
fn name_servers(names: &BTreeSet<String>, flows: &mut Vec<Flow>) {
    let Some(name) = names.first() else { return };
    let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
    let why = format!("name servers, for {name}{more}");
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        flows.push(out(protocol, None, Remote::Any, Some(DNS), Need::Required, &why));
    }
}

fn out(
    protocol: Protocol,
    local_port: Option<u16>,
    remote: Remote,
    remote_port: Option<u16>,
    need: Need,
    why: &str,
) -> Flow {
    Flow { direction: Direction::Out, protocol, local_port, remote, remote_port, need, why: why.to_owned() }
}

/// A host of a URL.
fn remote_host(host: &str) -> Remote {
    let host = host.trim_matches(['[', ']']);
    host.parse().map_or_else(|_| Remote::Name(host.to_owned()), Remote::Address)
}

fn remote(endpoint: &Endpoint) -> Remote {
    match endpoint {
        Endpoint::Address(address) => Remote::Address(address.ip()),
        Endpoint::Host { name, .. } => Remote::Name(name.clone()),
    }
}

impl Remote {
    /// The name that has to be resolved.
    fn name(&self) -> Option<String> {
        if let Self::Name(name) = self { Some(name.clone()) } else { None }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::In { "in" } else { "out" })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Tcp { "tcp" } else { "udp" })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Address(address) | Self::Router(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Required { "yes" } else { "recommended" })
    }
}

#[cfg(test)]
mod tests;
