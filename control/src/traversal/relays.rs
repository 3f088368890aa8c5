//! Our bindings at the relays: each over UDP if that gets through, else over TLS.
//!
//! A relay knows a site at one address at a time, so the transports are tried one after the other: the relay's UDP
//! addresses, then its WebSocket. From the WebSocket it goes back to UDP once STUN shows that UDP gets through.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_connect::{Destinations, Trust};
use penstock_proto::StaticSecret;
use penstock_proto::coordination;
use penstock_proto::path::{self, RelayId, RelayKind};
use penstock_proto::relay::client::{Progress, RelayClient};
use penstock_proto::relay::gossip::Gossip;
use penstock_proto::trust::Document;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::coordinator::RelayStream;

/// How long a UDP address has to answer before the next transport is tried: two repetitions.
const UDP_PATIENCE: Duration = Duration::from_secs(3);
/// How long the WebSocket has: TCP, a proxy, TLS, the upgrade and the binding.
const TLS_PATIENCE: Duration = Duration::from_secs(15);
/// How long the WebSocket is kept before UDP is tried again.
const TLS_STAY: Duration = Duration::from_secs(60);
/// How often to check whether a WebSocket that was down is up again.
const STREAM_WATCH: Duration = Duration::from_millis(250);

/// The relays that the coordinator names.
pub struct Relays {
    private_key: StaticSecret,
    trust: Trust,
    local_port: u16,
    mark: u32,
    /// Where connections to relays go.
    destinations: Destinations,
    bindings: Vec<Binding>,
    next_id: u32,
    /// What the path agent was last told.
    told: Vec<path::Relay>,
    /// Signed documents that relays have passed on.
    documents: Vec<Document>,
}

struct Binding {
    id: RelayId,
    relay: coordination::Relay,
    transport: Transport,
    client: RelayClient,
    gossip: Gossip,
    /// When this transport was chosen.
    since: Instant,
    /// Whether the relay did not know us.
    challenged: bool,
    round_trip: Option<Duration>,
}

/// One of the transports to a relay.
enum Transport {
    /// UDP to the address at this place of the relay's list.
    Udp { place: usize, address: SocketAddr },
    /// A WebSocket, and whether it was up at the last check.
    Tls { stream: RelayStream, up: bool },
}

/// A relay as `status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RelayState {
    /// The coordinator's name for it.
    pub name: String,
    /// "udp" or "tls".
    pub transport: String,
    /// Where datagrams for it are sent.
    pub address: SocketAddr,
    /// Whether it forwards to us.
    pub bound: bool,
    /// Round trip of the last binding.
    pub round_trip_ms: Option<f64>,
}

/// The trust in relays for which the coordinator names no certificate, given the trust in the coordinator. A pin is for
/// the coordinator's own certificate, which no other relay has.
pub fn trust_in_relays(coordinator: &Trust) -> Trust {
    match coordinator {
        Trust::Pinned(_) | Trust::Rolling(_) => Trust::Authorities(None),
        authorities => authorities.clone(),
    }
}

impl Relays {
    /// No relays yet.
    pub fn new(
        private_key: StaticSecret,
        trust: Trust,
        local_port: u16,
        mark: u32,
        destinations: Destinations,
    ) -> Self {
        let (bindings, told, documents) = (Vec::new(), Vec::new(), Vec::new());
        Self { private_key, trust, local_port, mark, destinations, bindings, next_id: 0, told, documents }
    }

    /// Takes over the list; bindings to relays that remain in it go on.
    pub fn set(&mut self, now: Instant, relays: &[coordination::Relay]) {
        let mut before = std::mem::take(&mut self.bindings);
        for relay in relays.iter().take(path::constants::MAX_RELAYS) {
            let known = before.iter().position(|binding| binding.relay == *relay);
            let binding = match known {
                Some(place) => Some(before.swap_remove(place)),
                None => self.bind(now, relay),
            };
            self.bindings.extend(binding);
        }
    }

    fn bind(&mut self, now: Instant, relay: &coordination::Relay) -> Option<Binding> {
        let client = self.client(now, relay)?;
        let transport = self.transport(relay, 0)?;
        let id = RelayId(self.next_id);
        self.next_id += 1;
        let gossip = Gossip::new(now, StdRng::from_os_rng());
        let (relay, challenged, round_trip) = (relay.clone(), false, None);
        Some(Binding { id, relay, transport, client, gossip, since: now, challenged, round_trip })
    }

    fn client(&self, now: Instant, relay: &coordination::Relay) -> Option<RelayClient> {
        RelayClient::new(now, &self.private_key, &relay.public_key.into())
    }

    /// The transport at this place of the list, or the first one after it that exists.
    fn transport(&self, relay: &coordination::Relay, place: usize) -> Option<Transport> {
        let udp = || relay.udp.first().map(|address| Transport::Udp { place: 0, address: *address });
        if let Some(address) = relay.udp.get(place) {
            return Some(Transport::Udp { place, address: *address });
        }
        let Some(url) = &relay.url else { return udp() };
        match RelayStream::open(url, self.trust_in(relay), self.local_port, self.mark, self.destinations.clone()) {
            Ok(stream) => Some(Transport::Tls { stream, up: false }),
            Err(e) => {
                tracing::warn!("relay {} cannot be reached over TLS: {e}", relay.name);
                udp()
            }
        }
    }

    /// Which certificate the relay must have: the coordinator says.
    fn trust_in(&self, relay: &coordination::Relay) -> Trust {
        relay.fingerprint.map_or_else(|| self.trust.clone(), Trust::Pinned)
    }

    /// Renews all bindings, because the network has changed.
    pub fn renew(&mut self, now: Instant) {
        for binding in &mut self.bindings {
            binding.client.renew(now);
            binding.since = now;
        }
    }

    /// Takes a datagram; returns whether it was a relay's answer to us.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(binding) = self.bindings.iter_mut().find(|binding| binding.address() == from) else { return false };
        match binding.client.handle_datagram(now, datagram) {
            Some(Progress::Bound { round_trip }) => {
                binding.round_trip = Some(round_trip);
                if std::mem::take(&mut binding.challenged) && self.told.iter().any(|told| told.id == binding.id) {
                    // It has restarted, or sees us at a new address: it has lost all that it knew of our sessions.
                    // Under a new id it counts as a relay that was never tried.
                    binding.id = RelayId(self.next_id);
                    self.next_id += 1;
                }
                true
            }
            Some(Progress::Asked) => {
                binding.challenged = true;
                true
            }
            None => {
                let heard = binding.gossip.handle_datagram(now, datagram);
                let is_answer = heard.is_some();
                self.documents.extend(heard.into_iter().flatten());
                is_answer
            }
        }
    }

    /// The signed documents that relays have passed on since the last call.
    pub fn take_documents(&mut self) -> Vec<Document> {
        std::mem::take(&mut self.documents)
    }

    /// Whether the agent may take probes from this address: a probe forwarded by a relay that the agent does not know
    /// would seem to come from the peer itself.
    pub fn may_probe(&self, from: SocketAddr) -> bool {
        let told = || self.told.iter().any(|relay| relay.address == from);
        let relay = from.ip().is_loopback() || self.bindings.iter().any(|b| b.relay.udp.contains(&from));
        !relay || told()
    }

    /// The datagrams to send, and where. `udp_passes` is STUN's finding.
    pub fn step(&mut self, now: Instant, udp_passes: bool) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut bindings = std::mem::take(&mut self.bindings);
        let mut datagrams = Vec::new();
        for binding in &mut bindings {
            let next = match &binding.transport {
                _ if binding.client.is_bound(now) && binding.may_leave_tls(now, udp_passes) => Some(0),
                _ if binding.client.is_bound(now) || now < binding.since + binding.patience() => None,
                Transport::Udp { place, .. } if udp_passes => Some(place + 1),
                // If nothing gets through at all, the other addresses are not tried.
                Transport::Udp { .. } => Some(binding.relay.udp.len()),
                Transport::Tls { .. } => Some(0),
            };
            if let Some(transport) = next.and_then(|place| self.transport(&binding.relay, place)) {
                // A new transport is a new source address, of which neither end knows anything.
                let Some(client) = self.client(now, &binding.relay) else { continue };
                (binding.transport, binding.client, binding.since) = (transport, client, now);
            }
            binding.watch_stream(now);
            let to = binding.address();
            datagrams.extend(std::iter::from_fn(|| binding.client.poll_transmit(now)).map(|bind| (to, bind.to_vec())));
            if binding.client.is_bound(now) {
                datagrams.extend(binding.gossip.poll_transmit(now).map(|ask| (to, ask)));
            }
        }
        self.bindings = bindings;
        datagrams
    }

    /// When there is more to do.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let due = |binding: &Binding| match &binding.transport {
            Transport::Tls { up: false, .. } => binding.client.poll_timeout().min(now + STREAM_WATCH),
            _ if binding.client.is_bound(now) => binding.client.poll_timeout().min(binding.gossip.poll_timeout()),
            _ => binding.client.poll_timeout(),
        };
        self.bindings.iter().map(due).min()
    }

    /// The relays for the path agent, the nearest first, if they have changed.
    pub fn take_changed(&mut self, now: Instant) -> Option<Vec<path::Relay>> {
        let mut bound: Vec<&Binding> = self.bindings.iter().filter(|binding| binding.client.is_bound(now)).collect();
        // The order matters only until the agent has measured for itself; it changes only with the list.
        bound.sort_by_key(|binding| (binding.kind() == RelayKind::Tls, binding.id));
        let relays: Vec<path::Relay> = bound
            .iter()
            .map(|binding| path::Relay { id: binding.id, kind: binding.kind(), address: binding.address() })
            .collect();
        (relays != self.told).then(|| {
            self.told.clone_from(&relays);
            relays
        })
    }

    /// All relays, in the map's order.
    pub fn states(&self, now: Instant) -> Vec<RelayState> {
        let state = |binding: &Binding| RelayState {
            name: binding.relay.name.to_string(),
            transport: if binding.kind() == RelayKind::Udp { "udp" } else { "tls" }.to_owned(),
            address: binding.address(),
            bound: binding.client.is_bound(now),
            round_trip_ms: binding.round_trip.map(|round_trip| round_trip.as_secs_f64() * 1e3),
        };
        self.bindings.iter().map(state).collect()
    }

    /// The name of a relay.
    pub fn name(&self, id: RelayId) -> Option<String> {
        self.bindings.iter().find(|binding| binding.id == id).map(|binding| binding.relay.name.to_string())
    }
}

impl Binding {
    fn address(&self) -> SocketAddr {
        match &self.transport {
            Transport::Udp { address, .. } => *address,
            Transport::Tls { stream, .. } => stream.address(),
        }
    }

    fn kind(&self) -> RelayKind {
        match self.transport {
            Transport::Udp { .. } => RelayKind::Udp,
            Transport::Tls { .. } => RelayKind::Tls,
        }
    }

    fn patience(&self) -> Duration {
        match self.transport {
            Transport::Udp { .. } => UDP_PATIENCE,
            Transport::Tls { .. } => TLS_PATIENCE,
        }
    }

    /// Binds at once over a WebSocket that has just come up: to the relay it is a new source, and what was sent
    /// meanwhile is lost.
    fn watch_stream(&mut self, now: Instant) {
        let Transport::Tls { stream, up } = &mut self.transport else { return };
        let was_up = std::mem::replace(up, stream.is_up());
        if *up && !was_up {
            self.client.renew(now);
        }
    }

    /// Whether a binding over TLS should go back to UDP.
    fn may_leave_tls(&self, now: Instant, udp_passes: bool) -> bool {
        let by_tls = self.kind() == RelayKind::Tls;
        by_tls && udp_passes && !self.relay.udp.is_empty() && now >= self.since + TLS_STAY
    }
}
