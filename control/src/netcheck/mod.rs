//! What the network lets a gateway do, and what to change where it does not: `penstock netcheck`.
//!
//! ```text
//!   discovery (STUN) ─┐
//!   port mapping ─────┼─► Parts ─► Report ─► JSON, or words
//!   coordinator, peers┘          ▲
//!   lifetime, if asked for ──────┘
//! ```
//! [`Report`] is a contract (docs/nat.md), however it is gathered: [`gather`] measures where no gateway runs; a running
//! gateway already has the parts, measured from the tunnel's own socket, and is asked over the control socket.

mod advice;
mod class;
mod gather;
mod lifetime;
mod render;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use penstock_proto::coordination::{Dependence, Map, NatType};
use penstock_proto::stun::NatReport;
use serde::{Deserialize, Serialize};

pub use advice::{Advice, Subject};
pub use class::NatClass;
pub use gather::{GatherError, Plan, discover, gather};
pub use lifetime::{LifetimeProblem, MappingLifetime, Progress, Silences, SilencesError, add_lifetimes};
pub use render::render;

use crate::port_mapping::{self, Mapping};
use crate::status::PathKind;

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Whether a running gateway knows it; otherwise it was measured from other sockets.
    pub running: bool,
    /// Whether more will be known soon.
    pub measuring: bool,
    /// The tunnel's port.
    pub local_port: u16,
    /// Whether the profile sets it.
    pub pinned: bool,
    /// For IPv4, if there is a route to a STUN server.
    pub ipv4: Option<Family>,
    /// For IPv6, likewise.
    pub ipv6: Option<Family>,
    /// The router's answer; `None` if there is no router to ask.
    pub port_mapping: Option<Mapping>,
    /// Whether the coordinator could be reached; `None` without one.
    pub coordinator: Option<Coordinator>,
    /// The other sites.
    pub peers: Vec<RemoteSite>,
}

/// Another site.
#[derive(Clone, Debug, Default)]
pub struct RemoteSite {
    /// Its name.
    pub name: String,
    /// The NAT that it has announced.
    pub nat: NatType,
    /// How it is reached now, if a gateway runs.
    pub path: Option<PathKind>,
    /// Why, in a sentence.
    pub reason: Option<String>,
}

impl RemoteSite {
    /// The peers of a map.
    #[must_use]
    pub fn of_map(map: &Map) -> Vec<Self> {
        let peer = |site: &penstock_proto::coordination::Peer| Self {
            name: site.name.to_string(),
            nat: site.reachability.as_ref().and_then(|told| told.nat_type).unwrap_or_default(),
            path: None,
            reason: None,
        };
        map.peers.values().map(peer).collect()
    }
}

/// How the network treats UDP of one IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Family {
    /// In one word.
    pub nat_type: NatClass,
    /// In the terms of RFC 4787.
    pub nat: NatReport,
    /// Who is let in at the tunnel's port, which may be more than at other ports: a port can be forwarded.
    pub port_filtering: Option<Dependence>,
    /// How long an idle mapping lives, or a firewall's permission; null if it was not asked for.
    #[serde(default)]
    pub mapping_lifetime: Option<MappingLifetime>,
}

impl Family {
    /// From a discovery at the tunnel's port.
    #[must_use]
    pub fn new(nat: NatReport) -> Self {
        Self { nat_type: NatClass::of(&nat), nat, port_filtering: nat.filtering, mapping_lifetime: None }
    }

    /// Whether anybody may send to the tunnel's port.
    fn is_open(&self) -> Option<bool> {
        if self.nat.udp_blocked {
            return Some(false);
        }
        self.port_filtering.map(|filtering| filtering == Dependence::EndpointIndependent)
    }
}

/// Whether TCP to the coordinator works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Coordinator {
    /// Host and port.
    pub address: String,
    /// The HTTP proxy in between.
    pub proxy: Option<String>,
    /// Whether a connection could be made; for a running gateway, whether there is one.
    pub reachable: bool,
    /// The error, if not.
    pub problem: Option<String>,
}

/// Whether others can contact this gateway first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reachable {
    /// At an address of its own that is not filtered, or at a port that the firewall lets in.
    Open,
    /// At a port that the router maps on request.
    Mapped,
    /// Only those that it has sent to.
    Closed,
    /// UDP does not pass.
    Blocked,
    /// The STUN server could not find out.
    Unknown,
}

/// Whether a direct path can work to peers behind one kind of NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DirectTo {
    /// The peer's kind of NAT.
    pub nat_type: NatClass,
    /// Null: too little is known.
    pub direct: Option<bool>,
}

/// The same for one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DirectToPeer {
    /// Its name.
    pub name: String,
    /// Its NAT.
    pub nat_type: NatClass,
    /// Null: too little is known.
    pub direct: Option<bool>,
    /// How it is reached now; null if no gateway runs.
    #[serde(default)]
    pub path: Option<PathKind>,
    /// Why, and why not better, in a sentence.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Everything that `netcheck` reports. Fields are added, never renamed, retyped or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// Whether this comes from a running gateway, which knows it from the tunnel's own socket.
    #[serde(default)]
    pub running: bool,
    /// Whether the running gateway will know more soon.
    #[serde(default)]
    pub measuring: bool,
    /// The tunnel's UDP port.
    pub local_port: u16,
    /// Whether the profile sets it; otherwise it is random.
    pub pinned: bool,
    /// The NAT in one word: IPv4's, or IPv6's where there is no IPv4.
    pub nat_type: NatClass,
    /// Null: there is no route to a STUN server.
    #[serde(rename = "IPv4")]
    pub ipv4: Option<Family>,
    /// Null: there is no route to a STUN server.
    #[serde(rename = "IPv6")]
    pub ipv6: Option<Family>,
    /// Null: no router to ask.
    pub port_mapping: Option<Mapping>,
    /// Whether others can contact this gateway first.
    pub reachable: Reachable,
    /// Null: the profile names none.
    pub coordinator: Option<Coordinator>,
    /// By the kind of the peer's NAT.
    pub direct: Vec<DirectTo>,
    /// For each peer, as far as the coordinator has announced them.
    pub peers: Vec<DirectToPeer>,
    /// What to change, the most important first.
    pub advice: Vec<Advice>,
}

impl Report {
    /// Draws the conclusions.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { running, measuring, local_port, pinned, ipv4, ipv6, port_mapping, coordinator, peers } = parts;
        let main = ipv4.or(ipv6);
        let reachable = reachable(main.as_ref(), port_mapping.as_ref());
        let ours = effective(main.as_ref(), reachable);
        let direct = NatClass::OF_PEERS
            .into_iter()
            .map(|class| DirectTo { nat_type: class, direct: ours.direct_with(&class.nat_type()) });
        let peers = peers.into_iter().map(|RemoteSite { name, nat, path, reason }| DirectToPeer {
            name,
            nat_type: NatClass::of_type(&nat),
            direct: ours.direct_with(&nat),
            path,
            reason,
        });
        let mut report = Self {
            running,
            measuring,
            local_port,
            pinned,
            nat_type: main.map_or(NatClass::Unknown, |family| family.nat_type),
            ipv4,
            ipv6,
            port_mapping,
            reachable,
            coordinator,
            direct: direct.collect(),
            peers: peers.collect(),
            advice: vec![],
        };
        report.advise();
        report
    }

    fn advise(&mut self) {
        self.advice = advice::advice(self);
    }

    /// The address that others see, of the IP version that counts.
    #[must_use]
    pub fn public_address(&self) -> Option<SocketAddr> {
        self.ipv4.or(self.ipv6).and_then(|family| family.nat.reflexive)
    }
}

fn reachable(main: Option<&Family>, mapping: Option<&Mapping>) -> Reachable {
    let mapped = mapping.and_then(Mapping::candidate);
    match main.map(Family::is_open) {
        Some(Some(true)) => Reachable::Open,
        _ if mapped.is_some_and(|address| port_mapping::is_public(address.ip())) => Reachable::Mapped,
        Some(_) if main.is_some_and(|family| family.nat.udp_blocked) => Reachable::Blocked,
        Some(Some(false)) => Reachable::Closed,
        Some(None) | None => Reachable::Unknown,
    }
}

/// A port that is let in is as good as no NAT, however the NAT treats others.
fn effective(main: Option<&Family>, reachable: Reachable) -> NatType {
    let measured = main.map(|family| family.nat.nat_type()).unwrap_or_default();
    match reachable {
        Reachable::Mapped => NatClass::None.nat_type(),
        // The mapping stays as measured: an open port does not help those who are told another one.
        Reachable::Open => NatType { filtering: Some(Dependence::EndpointIndependent), ..measured },
        _ => measured,
    }
}
