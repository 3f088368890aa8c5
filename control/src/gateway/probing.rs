//! Probes to the peers whose path is not found here: those of the profile, and of `wg set`. They go where the peer's
//! packets go, from the tunnel's own socket, and find how large packets may be there. Where they go to is decided by
//! the profile and by WireGuard's roaming alone.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use penstock_dataplane::ports::Endpoint;
use penstock_dataplane::ports::udp::UdpSender;
use penstock_proto::path::{PathAgent, PathConfig, PathEvent, ProbeReject, SocketId};
use penstock_proto::{self as proto, Traffic};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::handshakes::Handshakes;
use super::path_mtu;
use super::peers::Peers;
use super::plane::Sizes;
use crate::key::{PrivateKey, PublicKey};
use crate::traversal::{send_probe, send_train};

/// The path agent of these peers.
pub struct Probing {
    agent: PathAgent,
    private_key: PrivateKey,
    /// The packet sizes that the agent was told.
    sizes: Option<Sizes>,
    /// Probes of trains that have arrived.
    arrived: Vec<(proto::PublicKey, u64)>,
}

impl Probing {
    /// Without peers; [`follow`](Self::follow) adds them.
    pub fn new(private_key: &PrivateKey) -> Self {
        let agent = PathAgent::new(private_key.to_secret(), PathConfig::default(), StdRng::from_os_rng());
        Self { agent, private_key: private_key.clone(), sizes: None, arrived: Vec::new() }
    }

    /// Follows this site's key, the link, and where the peers are. [`step`](Self::step) is to follow.
    pub fn follow(&mut self, now: Instant, private_key: &PrivateKey, sizes: Sizes, peers: &Peers) {
        if self.private_key != *private_key {
            *self = Self::new(private_key);
        }
        if self.sizes.replace(sizes) != Some(sizes) {
            path_mtu::tell(&mut self.agent, now, sizes);
        }
        let is_one = |key: &proto::PublicKey| {
            let peer = peers.with_key(&PublicKey::from_bytes(key.to_bytes()));
            peer.is_some_and(|peer| peer.found.is_none() && peer.endpoint.is_some())
        };
        self.agent.retain_peers(is_one);
        for peer in peers.iter().filter(|peer| peer.found.is_none()) {
            let Some(remote) = peer.endpoint else { continue };
            let endpoint = proto::Endpoint { remote, local: peer.local };
            if let Err(e) = self.agent.set_endpoint(now, &peer.public_key.into(), endpoint, peer.sending) {
                tracing::debug!("{} cannot be probed: {e}", peer.label());
            }
        }
    }

    /// Notes a peer's traffic: a path in use is watched closely.
    pub fn handle_traffic(&mut self, now: Instant, peer: &PublicKey, traffic: Traffic) {
        self.agent.handle_traffic(now, &(*peer).into(), traffic);
    }

    /// Takes a datagram that arrived on the tunnel's socket, if it is a probe of one of these peers.
    pub fn handle_datagram(&mut self, now: Instant, udp: &UdpSender, from: Endpoint, datagram: &[u8]) -> bool {
        match self.agent.handle_datagram(now, SocketId::TUNNEL, from.remote, datagram) {
            Ok(()) => {}
            Err(ProbeReject::NotProbe | ProbeReject::Receiver | ProbeReject::Sender) => return false,
            Err(reject) => tracing::debug!("probe from {} dropped: {reject}", from.remote),
        }
        while let Some(transmit) = self.agent.poll_transmit() {
            send_probe(udp, &transmit, Some(from));
        }
        true
    }

    /// The agent, to be told what routers say.
    pub fn agent(&mut self) -> &mut PathAgent {
        &mut self.agent
    }

    /// Does what is due, and sends. Returns whether the size of packets to some peer has changed.
    pub fn step(&mut self, now: Instant, handshakes: &mut Handshakes) -> bool {
        self.agent.handle_timeout(now);
        let mut changed = false;
        while let Some(event) = self.agent.poll_event() {
            match event {
                PathEvent::Mtu { peer, mtu } => changed |= path_mtu::note(&mut handshakes.peers, peer, mtu),
                PathEvent::Arrived { peer, transaction } => self.arrived.push((peer, transaction)),
                _ => {}
            }
        }
        let udp = handshakes.sender();
        while let Some(transmit) = self.agent.poll_transmit() {
            send_probe(&udp, &transmit, None);
        }
        changed
    }

    /// As [`send_train`], to one of these peers.
    pub fn send_train(
        &mut self,
        udp: &UdpSender,
        peer: &PublicKey,
        size: (usize, u16),
        singles: bool,
        source: Option<IpAddr>,
    ) -> Option<[Vec<u64>; 2]> {
        send_train(&mut self.agent, udp, &(*peer).into(), size, singles, source)
    }

    /// The probes of trains that have arrived since the last time.
    pub fn take_arrived(&mut self) -> Vec<(proto::PublicKey, u64)> {
        std::mem::take(&mut self.arrived)
    }

    /// When [`step`](Self::step) is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.agent.poll_timeout()
    }

    /// The round trip on a peer's path, if it answers probes.
    pub fn round_trip(&self, peer: &PublicKey) -> Option<Duration> {
        self.agent.answering(&(*peer).into()).map(|(_, round_trip)| round_trip).next()
    }
}
