//! What the network lets a gateway do, and what to change where it does not: `penstock netcheck`.
//!
//! ```text
//!   discovery (STUN) ─┐
//!   port mapping ─────┼─► Parts ─► Report ─► JSON, or words
//!   coordinator, peers┘          ▲
//!   lifetime, if asked for ──────┘
//! ```
//! [`Report`] is a contract (docs/nat.md), apart from how it is gathered: [`gather`] measures where no gateway
//! runs; a running gateway has the parts already, from the tunnel's own socket, and is asked over the control
//! socket.

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
    /// Whether a running gateway knows it; else it was measured from sockets of its own.
    pub running: bool,
    /// Whether more will be known soon.
    pub measuring: bool,
    /// The tunnel's port.
    pub local_port: u16,
    /// Whether the profile says so.
    pub pinned: bool,
    /// Where IPv4 leads to a STUN server.
    pub ipv4: Option<Family>,
    /// Where IPv6 does.
    pub ipv6: Option<Family>,
    /// What the router says; `None` if there is none to ask.
    pub port_mapping: Option<Mapping>,
    /// Whether the coordinator could be reached; `None` without one.
    pub coordinator: Option<Coordinator>,
    /// The other sites.
    pub peers: Vec<Peer>,
}

/// Another site.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// What it has told of its NAT.
    pub nat: NatType,
    /// How it is reached now; of a running gateway.
    pub path: Option<PathKind>,
    /// Why so: a sentence.
    pub reason: Option<String>,
}

impl Peer {
    /// Those of a map.
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
    /// In the words of RFC 4787.
    pub nat: NatReport,
    /// Who is let in at the tunnel's port, which may be more than at others: a port can be forwarded.
    pub port_filtering: Option<Dependence>,
    /// How long a silent mapping lives, or a firewall's permission; null if it was not asked for.
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
    /// The HTTP proxy on the way.
    pub proxy: Option<String>,
    /// Whether a connection was made; of a running gateway, whether it is there.
    pub reachable: bool,
    /// Why not.
    pub problem: Option<String>,
}

/// Whether others can begin a conversation with this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reachable {
    /// By an address that is its own and not filtered, or by a port that the firewall lets in.
    Open,
    /// By a port that the router maps on request.
    Mapped,
    /// Only those it has sent to.
    Closed,
    /// UDP does not pass.
    Blocked,
    /// The STUN server could not tell.
    Unknown,
}

/// Whether a direct path can work to peers behind one kind of NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DirectTo {
    /// Theirs.
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
    /// Why so and no better: a sentence.
    #[serde(default)]
    pub reason: Option<String>,
}

/// All that `netcheck` says. Fields are added, never renamed, retyped or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// Whether a running gateway was asked, which knows it of the tunnel's own socket.
    #[serde(default)]
    pub running: bool,
    /// Whether the running gateway will know more soon.
    #[serde(default)]
    pub measuring: bool,
    /// The tunnel's UDP port.
    pub local_port: u16,
    /// Whether it is the profile's, or random.
    pub pinned: bool,
    /// The NAT in one word: IPv4's, or IPv6's where there is no IPv4.
    pub nat_type: NatClass,
    /// Null: no way to a STUN server.
    #[serde(rename = "IPv4")]
    pub ipv4: Option<Family>,
    /// Null: no way to a STUN server.
    #[serde(rename = "IPv6")]
    pub ipv6: Option<Family>,
    /// Null: no router to ask.
    pub port_mapping: Option<Mapping>,
    /// Whether others can begin.
    pub reachable: Reachable,
    /// Null: there is none.
    pub coordinator: Option<Coordinator>,
    /// By the kind of the peer's NAT.
    pub direct: Vec<DirectTo>,
    /// By peer, as far as the coordinator has told of them.
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
        let peers = peers.into_iter().map(|Peer { name, nat, path, reason }| DirectToPeer {
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

    /// The address that others see, of the version that counts.
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

/// A port that is let in is as good as no NAT, whatever the others are.
fn effective(main: Option<&Family>, reachable: Reachable) -> NatType {
    let measured = main.map(|family| family.nat.nat_type()).unwrap_or_default();
    match reachable {
        Reachable::Mapped => NatClass::None.nat_type(),
        // The mapping is measured: an open port does not help whoever is told another one.
        Reachable::Open => NatType { filtering: Some(Dependence::EndpointIndependent), ..measured },
        _ => measured,
    }
}
