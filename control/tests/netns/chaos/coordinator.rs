//! A coordinator of both gateways that may be gone, and that lies now and then. No authority is pinned, so only the
//! gateways' own judgement keeps its claims out of the routes.

use std::net::SocketAddr;

use penstock_proto::coordination::{
    Candidate, CandidateKind, Map, MapVersion, Peer, Reachability, Registration, RegistrationState, SiteKey,
};

use super::LOCAL_PORTS;
use crate::overlay_trust::puppet::{Puppet, Shown};
use crate::support::*;

/// What it says about the sites.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    Truth,
    /// There are no sites at all.
    Nobody,
    /// The two sites may not talk to each other.
    Unlinked,
    /// A third site has these prefixes.
    ThirdHas(&'static [&'static str]),
}

pub struct Coordinator {
    puppet: Puppet,
    sites: [Listed; 2],
}

/// A site in the coordinator's view.
struct Listed {
    key: SiteKey,
    peer: Peer,
}

const THIRD: [u8; 32] = [3; 32];
const SUBNETS_OF_THIRD: [&str; 2] = ["10.103.0.0/24", "fd00:103::/64"];

impl Coordinator {
    /// Starts it on the middle namespace and makes it the coordinator of both gateways, which are not started yet.
    pub fn start(topology: &Topology, a: &mut GatewayConfig, b: &mut GatewayConfig) -> Self {
        let address = "192.0.2.66".parse().expect("that of the switch");
        let puppet = Puppet::start(topology.middle(), address);
        let sites = [(&topology.a, a), (&topology.b, b)].map(|(site, config)| {
            config.peers.clear();
            config.coordinator = Some(puppet.in_profile(None));
            let at = |port| SocketAddr::new(site.wan4.into(), port);
            let candidates = LOCAL_PORTS.map(|port| Candidate { kind: CandidateKind::Host, address: at(port) });
            let reachability = Reachability { candidates: candidates.collect(), ..Reachability::default() };
            let subnets = site.subnets();
            let peer = listed(site.number, subnets.iter().map(String::as_str), Some(reachability));
            Listed { key: config.public_key().parse().expect("a key"), peer }
        });
        let coordinator = Self { puppet, sites };
        coordinator.say(Word::Truth);
        coordinator
    }

    /// Tells both gateways, now and whenever they connect.
    pub fn say(&self, word: Word) {
        for (number, site) in self.sites.iter().enumerate() {
            let other = &self.sites[1 - number];
            let third = |subnets: &[&'static str]| (THIRD.into(), listed(3, subnets.iter().copied(), None));
            let peers = match word {
                Word::Truth => [(other.key, other.peer.clone()), third(&SUBNETS_OF_THIRD)].into(),
                Word::Nobody => Default::default(),
                Word::Unlinked => [third(&SUBNETS_OF_THIRD)].into(),
                Word::ThirdHas(subnets) => [(other.key, other.peer.clone()), third(subnets)].into(),
            };
            let registration = Registration {
                name: site.peer.name.clone(),
                state: RegistrationState::Approved,
                virtual_address: site.peer.virtual_address,
                subnets: Vec::new(),
                waiting: Vec::new(),
            };
            let map = Map { version: MapVersion { epoch: 1, number: 1 }, peers, ..Map::default() };
            self.puppet.show(site.key, Shown { registration, documents: Vec::new(), map });
        }
    }

    /// Ends, with its connections.
    pub fn stop(&mut self) {
        self.puppet.stop();
    }

    /// Comes back.
    pub fn run(&mut self) {
        self.puppet.run();
    }
}

fn listed<'a>(number: u8, subnets: impl Iterator<Item = &'a str>, reachability: Option<Reachability>) -> Peer {
    Peer {
        name: format!("site-{number}").parse().expect("a name"),
        virtual_address: [100, 64, 0, number].into(),
        subnets: subnets.map(|subnet| subnet.parse().expect("a prefix")).collect(),
        tags: Vec::new(),
        allow: None,
        reachability,
    }
}
