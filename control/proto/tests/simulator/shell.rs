//! A gateway as its shell would drive it: agent, STUN, sockets, and a log of what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_proto::PublicKey;
use penstock_proto::coordination::{Candidate, CandidateKind};
use penstock_proto::path::{Path, PathAgent, Reason, SiteId, SocketId};
use penstock_proto::pmtu::PathMtu;
use penstock_proto::stun::{Discovery, NatReport, Reflexive};

pub struct Shell {
    pub key: PublicKey,
    pub site: SiteId,
    pub agent: PathAgent,
    pub stun: Reflexive,
    pub discovery: Discovery,
    pub report: Option<NatReport>,
    /// The addresses of the interfaces; IPv4 first.
    pub hosts: Vec<IpAddr>,
    /// For each of them the number of the NAT or firewall in front of it.
    pub nats: Vec<usize>,
    pub sockets: BTreeMap<SocketId, u16>,
    pub next_socket: u32,
    pub started: bool,
    /// The version of what was last signalled, and the versions seen of each peer.
    pub version: u64,
    pub seen: BTreeMap<usize, u64>,
    /// Whether STUN has answered or been given up, so that the candidates may be signalled.
    pub ready: bool,
    pub paths: BTreeMap<usize, (Path, Reason)>,
    pub diary: Vec<(Duration, usize, Path, Reason)>,
    /// Whether it drops sized pings, as older versions did.
    pub is_old: bool,
    /// The interface's MTU, if the agent is told.
    pub link: Option<u16>,
    pub mtus: BTreeMap<usize, PathMtu>,
    pub mtu_diary: Vec<(Duration, usize, PathMtu)>,
    pub sent: BTreeMap<usize, u64>,
    /// For each peer, the numbers received, and when the last one was.
    pub received: BTreeMap<usize, BTreeSet<u64>>,
    pub arrivals: BTreeMap<usize, Vec<Instant>>,
    pub opened_sockets: usize,
}

impl Shell {
    pub fn port(&self) -> u16 {
        self.sockets[&SocketId::TUNNEL]
    }

    pub fn local(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| SocketAddr::new(*host, self.port())).collect()
    }

    pub fn candidates(&self) -> Vec<Candidate> {
        let host = |address| Candidate { kind: CandidateKind::Host, address };
        let mut all: Vec<Candidate> = self.local().into_iter().map(host).collect();
        all.extend(self.stun.address().map(|address| Candidate { kind: CandidateKind::ServerReflexive, address }));
        all
    }

    pub fn poll_timeout(&mut self) -> Option<Instant> {
        if !self.started {
            return None;
        }
        let stun = [Some(self.stun.poll_timeout()), self.discovery.poll_timeout()];
        stun.into_iter().flatten().chain(self.agent.poll_timeout()).min()
    }

    pub fn path_to(&self, peer: usize) -> Path {
        self.paths.get(&peer).map_or(Path::None, |(path, _)| *path)
    }

    pub fn is_direct(&self, peer: usize) -> bool {
        matches!(self.path_to(peer), Path::Direct { .. })
    }

    pub fn is_relayed(&self, peer: usize) -> bool {
        matches!(self.path_to(peer), Path::Relay { .. })
    }

    /// The longest time without a datagram from this peer, from the first one on.
    pub fn longest_gap(&self, peer: usize) -> Duration {
        let arrivals = self.arrivals.get(&peer).map_or(&[][..], Vec::as_slice);
        arrivals.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}
