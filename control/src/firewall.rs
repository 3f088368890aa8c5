//! What a firewall on a gateway, or in front of it, has to let through: a list of flows computed from the profile,
//! which [`rules`] writes as rules of the usual firewalls.
//!
//! Firewalls are assumed to let in the answers to what they have let out.

pub mod rules;

use std::fmt;
use std::net::IpAddr;

use crate::profile::{Endpoint, LocalPort, Profile};

/// The UDP port of the coordinator's STUN server and relay, unless it has others.
const COORDINATOR_UDP: u16 = 3478;
/// The port of PCP and NAT-PMP at the router (RFC 6887).
const PORT_MAPPING: u16 = 5351;
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
}

/// Whether it also works without this flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing works without it.
    Required,
    /// Without it some peers are relayed, or have to call first.
    Better,
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

/// What has to pass for the gateway with this profile. `port` is the tunnel's port while it runs.
#[must_use]
pub fn needs(profile: &Profile, port: Option<u16>) -> Needs {
    let pinned = match profile.local_port {
        LocalPort::Pinned(port) => Some(port),
        LocalPort::Random => None,
    };
    let port = pinned.or(port);
    let mut flows = Vec::new();
    tunnel(profile, port, pinned, &mut flows);
    coordinator(profile, port, &mut flows);
    names(profile, &mut flows);
    Needs { flows, lan: profile.lan.interfaces.clone(), tunnel: profile.name.to_string() }
}

/// The tunnel itself: to and from peers.
fn tunnel(profile: &Profile, port: Option<u16>, pinned: Option<u16>, flows: &mut Vec<Flow>) {
    for peer in &profile.peers {
        let Some(endpoint) = &peer.endpoint else { continue };
        flows.push(Flow {
            direction: Direction::Out,
            protocol: Protocol::Udp,
            local_port: port,
            remote: remote(endpoint),
            remote_port: Some(endpoint.port()),
            need: Need::Required,
            why: format!("the tunnel to {}", peer.name),
        });
    }
    let calls: Vec<&str> = profile.peers.iter().filter(|p| p.endpoint.is_none()).map(|p| p.name.as_str()).collect();
    let (need, why) = match calls.as_slice() {
        [] if profile.coordinator.is_some() => (Need::Better, "other sites reach this one directly".to_owned()),
        [] => (Need::Better, "peers call first as well".to_owned()),
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

/// The coordinator, its STUN server and relay, direct paths, and the router.
fn coordinator(profile: &Profile, port: Option<u16>, flows: &mut Vec<Flow>) {
    let Some(coordinator) = &profile.coordinator else { return };
    let url = coordinator.url.endpoint();
    let host = match url.host().trim_matches(['[', ']']).parse() {
        Ok(address) => Remote::Address(address),
        Err(_) => Remote::Name(url.host().to_owned()),
    };
    let out = |protocol, local_port, remote, remote_port, need, why: &str| Flow {
        direction: Direction::Out,
        protocol,
        local_port,
        remote,
        remote_port,
        need,
        why: why.to_owned(),
    };
    let udp = Protocol::Udp;
    flows.extend([
        out(
            Protocol::Tcp,
            None,
            host.clone(),
            Some(url.port()),
            Need::Required,
            "the coordinator, and its relay where UDP is blocked",
        ),
        out(
            udp,
            port,
            host,
            Some(COORDINATOR_UDP),
            Need::Better,
            "STUN and relay: without it, traffic is relayed over TCP and no path is direct",
        ),
        out(udp, port, Remote::Any, None, Need::Better, "direct paths to other sites, at any port of their NATs"),
    ]);
    if profile.port_mapping {
        flows.push(out(
            udp,
            None,
            Remote::Any,
            Some(PORT_MAPPING),
            Need::Better,
            "the router, on the local network, is asked to map a port",
        ));
    }
}

/// Name servers, if there are names to resolve.
fn names(profile: &Profile, flows: &mut Vec<Flow>) {
    if !flows.iter().any(|flow| matches!(flow.remote, Remote::Name(_))) {
        return;
    }
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        flows.push(Flow {
            direction: Direction::Out,
            protocol,
            local_port: None,
            remote: Remote::Any,
            remote_port: Some(DNS),
            need: Need::Required,
            why: format!("name servers: the profile of {} has names", profile.name),
        });
    }
}

fn remote(endpoint: &Endpoint) -> Remote {
    match endpoint {
        Endpoint::Address(address) => Remote::Address(address.ip()),
        Endpoint::Host { name, .. } => Remote::Name(name.clone()),
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
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Required { "yes" } else { "better" })
    }
}

#[cfg(test)]
mod tests;
