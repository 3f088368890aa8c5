//! NAT traversal as the gateway does it: drives the path agent, STUN and the relay bindings of `penstock_proto` from
//! the tunnel's own socket.
//!
//! ```text
//!   map: peers, relays, STUN servers ─┐                    ┌─► probes, STUN, binds: the tunnel's socket
//!   addresses of the interfaces ──────┼──► Traversal ──────┼─► Selection: where a peer's packets go
//!   datagrams that are not WireGuard ─┤                    └─► Reachability: for the coordinator
//!   timeouts, traffic ────────────────┘
//! ```
//! Where the tunnel's socket cannot reach a peer by itself, only through a WebSocket or from another port, a local
//! address stands for the path; the data plane sends to it as to any endpoint.
//!
//! Reading order: [`Traversal`], `stun`, `relays`, `detours`.

mod detours;
mod relays;
mod stun;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_connect::{Destinations, Trust};
use penstock_dataplane::ports::Endpoint;
use penstock_dataplane::ports::udp::UdpSender;
use penstock_proto::coordination::{self, Candidate, CandidateKind, NatType, Reachability};
use penstock_proto::path::{self, Path, PathAgent, PathConfig, PathEvent, PathTransmit, Reason, SocketId};
use penstock_proto::pmtu::PathMtu;
use penstock_proto::stun::{NatReport, is_stun};
use penstock_proto::trust::Document;
use penstock_proto::{PublicKey, StaticSecret, Traffic};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::port_mapping::{Mapping, PortMapper};
use detours::{Detours, Received};
use relays::Relays;
pub use relays::{RelayState, trust_in_relays};
use stun::Stun;

/// How long candidates are gathered after a change before they are announced: addresses come in groups.
const SETTLE: Duration = Duration::from_millis(100);

/// Finds the paths to the peers.
pub struct Traversal {
    agent: PathAgent,
    stun: Stun,
    relays: Relays,
    detours: Detours,
    udp: UdpSender,
    /// Our addresses at which a peer might reach us.
    hosts: Vec<IpAddr>,
    /// The router that is asked to map the tunnel's port, and our address towards it.
    route: Option<(IpAddr, IpAddr)>,
    mapper: Option<PortMapper>,
    may_map: bool,
    /// Whether the router has answered, or has had time to.
    mapping_known: bool,
    told: Option<Reachability>,
    /// When to check whether there is something to announce.
    tell_at: Option<Instant>,
    selections: VecDeque<Selection>,
    mtus: VecDeque<(PublicKey, PathMtu)>,
    /// Probes of trains that have arrived.
    arrived: Vec<(PublicKey, u64)>,
    reachability: Option<Reachability>,
}

/// The configuration of NAT traversal.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which certificates are trusted in relays for which the coordinator names none.
    pub trust: Trust,
    /// Where the addresses of connections to relays are noted.
    pub destinations: Destinations,
    /// Whether ports may be guessed when one of the NATs has endpoint-dependent mapping.
    pub birthday_probing: bool,
    /// Whether the router is asked to map the tunnel's port.
    pub port_mapping: bool,
    /// The largest packet inside the tunnel, if the profile says so.
    pub pinned_mtu: Option<u16>,
}

/// Where a peer's packets go from now on, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The peer.
    pub peer: PublicKey,
    /// The address that the tunnel's socket sends to; `None` for nowhere.
    pub endpoint: Option<SocketAddr>,
    /// The path as the agent sees it.
    pub path: Path,
    /// Why this path was chosen.
    pub reason: Reason,
}

/// Input that did not arrive on the tunnel's socket.
#[derive(Debug)]
pub enum Input {
    /// A probe to another port of ours.
    Probe(Received),
    /// The router maps the tunnel's port, maps it differently, or no longer does.
    Mapping(Mapping),
}

impl Traversal {
    /// Traversal without peers and servers. `udp` is the tunnel's socket, whose firewall mark all the others get too.
    pub fn new(private_key: StaticSecret, udp: UdpSender, settings: Settings) -> Self {
        let config = PathConfig {
            birthday: settings.birthday_probing,
            pinned_mtu: settings.pinned_mtu,
            ..PathConfig::default()
        };
        let (local_port, mark) = (udp.local_port(), udp.mark());
        Self {
            agent: PathAgent::new(private_key.clone(), config, StdRng::from_os_rng()),
            stun: Stun::default(),
            relays: Relays::new(private_key, settings.trust, local_port, mark, settings.destinations),
            detours: Detours::new(local_port, mark),
            udp,
            hosts: Vec::new(),
            route: None,
            mapper: None,
            may_map: settings.port_mapping,
            mapping_known: false,
            told: None,
            tell_at: None,
            selections: VecDeque::new(),
            mtus: VecDeque::new(),
            arrived: Vec::new(),
            reachability: None,
        }
    }

    /// Sets the relays and STUN servers.
    pub fn set_servers(&mut self, now: Instant, relays: &[coordination::Relay], stun: &[SocketAddr]) {
        let local = self.local();
        self.relays.set(now, relays);
        self.stun.set_servers(now, stun, &local);
        self.tell_soon(now);
    }

    /// Sets our own addresses; a different set means a different network.
    pub fn set_hosts(&mut self, now: Instant, hosts: Vec<IpAddr>) {
        if hosts == self.hosts {
            return;
        }
        let first = self.hosts.is_empty();
        self.hosts = hosts;
        if first {
            let local = self.local();
            self.stun.restart(now, &local);
            self.tell_soon(now);
        } else {
            self.network_changed(now);
        }
    }

    /// The route to the network has changed: everything is measured again.
    pub fn network_changed(&mut self, now: Instant) {
        let local = self.local();
        self.stun.restart(now, &local);
        self.relays.renew(now);
        self.agent.handle_network_change(now);
        self.tell_soon(now);
    }

    /// The router on the way to the network, and our address towards it.
    pub fn set_route(&mut self, now: Instant, route: Option<(IpAddr, IpAddr)>) {
        if route == self.route {
            return;
        }
        self.route = route;
        let (port, mark) = (self.udp.local_port(), self.udp.mark());
        // The old router no longer serves us; its mapping expires by itself.
        self.mapper =
            route.filter(|_| self.may_map).map(|(router, local)| PortMapper::start(router, local, port, mark));
        self.mapping_known = false;
        self.tell_soon(now);
    }

    /// Whether ports may be guessed, and whether the router is asked to map the tunnel's port.
    pub fn set_permissions(&mut self, now: Instant, birthday_probing: bool, port_mapping: bool) {
        self.agent.set_birthday(birthday_probing);
        if std::mem::replace(&mut self.may_map, port_mapping) != port_mapping {
            let route = self.route.take();
            if let Some(mapper) = self.mapper.take() {
                // The router may be slow to answer.
                tokio::spawn(mapper.release());
            }
            self.set_route(now, route);
        }
    }

    /// The path agent, to be told about links and what routers say.
    pub fn agent(&mut self) -> &mut PathAgent {
        &mut self.agent
    }

    /// Announces our addresses to the coordinator again, over a new connection.
    pub fn repeat_reachability(&mut self) {
        self.reachability.clone_from(&self.told);
    }

    /// The state of the router's mapping; `None` if no router is asked.
    pub fn mapping(&self) -> Option<Mapping> {
        self.mapper.as_ref().map(PortMapper::mapping)
    }

    /// Whether the NAT is still being measured or the router still being asked.
    pub fn measuring(&self) -> bool {
        self.stun.measuring() || (self.mapper.is_some() && !self.mapping_known)
    }

    /// Deletes the mapping at the router.
    pub async fn release(&mut self) {
        if let Some(mapper) = self.mapper.take() {
            mapper.release().await;
        }
    }

    /// Also looks for a path to this peer.
    ///
    /// # Errors
    /// Its key is invalid, or ours.
    pub fn add_peer(&mut self, now: Instant, peer: PublicKey) -> Result<(), path::AddSiteError> {
        self.agent.add_peer(now, peer)
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, peer: &PublicKey) {
        self.agent.remove_peer(peer);
    }

    /// What a peer has announced about itself.
    pub fn set_remote(&mut self, now: Instant, peer: &PublicKey, candidates: &[Candidate], nat: NatType) {
        self.agent.set_remote(now, peer, candidates, nat);
    }

    /// Notes a peer's traffic: a path in use is watched closely.
    pub fn handle_traffic(&mut self, now: Instant, peer: &PublicKey, traffic: Traffic) {
        self.agent.handle_traffic(now, peer, traffic);
    }

    /// Takes a datagram that arrived on the tunnel's socket, if it is not WireGuard's.
    pub fn handle_datagram(&mut self, now: Instant, from: Endpoint, datagram: &[u8]) -> bool {
        if is_stun(datagram) {
            self.stun.handle_datagram(now, datagram);
        } else if datagram.first() == Some(&path::FIRST_BYTE) {
            if self.relays.handle_datagram(now, from.remote, datagram) {
                // At once: what the relay forwards may be right behind its answer.
                self.tell_relays(now);
            } else if self.relays.may_probe(from.remote) {
                self.handle_probe(now, SocketId::TUNNEL, from.remote, datagram);
                self.answer(from);
            }
        } else {
            return false;
        }
        true
    }

    fn handle_probe(&mut self, now: Instant, socket: SocketId, from: SocketAddr, datagram: &[u8]) {
        if let Err(reject) = self.agent.handle_datagram(now, socket, from, datagram) {
            tracing::debug!("probe from {from} dropped: {reject}");
        }
    }

    /// Sends the probes that an incoming probe calls for.
    fn answer(&mut self, from: Endpoint) {
        while let Some(transmit) = self.agent.poll_transmit() {
            self.send_probe(&transmit, Some(from));
        }
    }

    /// The next input that does not arrive on the tunnel's socket, for [`Self::handle_input`]. Cancel safe.
    pub async fn next(&mut self) -> Input {
        let Self { detours, mapper, .. } = self;
        let mapping = async {
            match mapper {
                Some(mapper) => mapper.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = detours.next() => Input::Probe(received),
            mapping = mapping => Input::Mapping(mapping),
        }
    }

    /// Takes the output of [`Self::next`].
    pub fn handle_input(&mut self, now: Instant, input: &Input) {
        match input {
            Input::Probe(Received { socket, from, datagram }) => self.handle_probe(now, *socket, *from, datagram),
            Input::Mapping(_) => {
                self.mapping_known = true;
                self.tell_soon(now);
            }
        }
    }

    /// Does what is due, and sends. To be called after every other call, and at [`Self::poll_timeout`].
    pub fn step(&mut self, now: Instant) {
        self.agent.handle_timeout(now);
        for query in self.stun.step(now) {
            self.send(SocketId::TUNNEL, query.to, &query.bytes, None);
        }
        if self.stun.take_changed() {
            self.tell_soon(now);
        }
        for (to, datagram) in self.relays.step(now, self.stun.passes()) {
            self.send(SocketId::TUNNEL, to, &datagram, None);
        }
        self.tell_relays(now);
        if self.tell_at.is_some_and(|at| at <= now) && self.stun.settles_at().is_some_and(|at| at <= now) {
            self.tell_at = None;
            self.tell(now);
        }
        while let Some(event) = self.agent.poll_event() {
            self.handle_event(now, event);
        }
        while let Some(transmit) = self.agent.poll_transmit() {
            self.send_probe(&transmit, None);
        }
    }

    /// When [`Self::step`] is to be called next.
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let tell = self.tell_at.zip(self.stun.settles_at()).map(|(at, settled)| at.max(settled));
        [self.agent.poll_timeout(), self.stun.poll_timeout(), self.relays.poll_timeout(now), tell]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next change of a peer's path.
    pub fn poll_selection(&mut self) -> Option<Selection> {
        self.selections.pop_front()
    }

    /// The next change of the size of packets to a peer.
    pub fn poll_mtu(&mut self) -> Option<(PublicKey, PathMtu)> {
        self.mtus.pop_front()
    }

    /// As [`send_train`], to a peer whose path is found here.
    pub fn send_train(
        &mut self,
        peer: &PublicKey,
        size: (usize, u16),
        singles: bool,
        source: Option<IpAddr>,
    ) -> Option<[Vec<u64>; 2]> {
        send_train(&mut self.agent, &self.udp, peer, size, singles, source)
    }

    /// The probes of trains that have arrived since the last time.
    pub fn take_arrived(&mut self) -> Vec<(PublicKey, u64)> {
        std::mem::take(&mut self.arrived)
    }

    /// What the coordinator is to be told, when it has changed.
    pub fn poll_reachability(&mut self) -> Option<Reachability> {
        self.reachability.take()
    }

    /// The signed documents that relays have passed on since the last call.
    pub fn take_documents(&mut self) -> Vec<Document> {
        self.relays.take_documents()
    }

    /// The round trip on a peer's path.
    pub fn round_trip(&self, peer: &PublicKey) -> Option<Duration> {
        self.agent.path(peer).and_then(|(_, _, round_trip)| round_trip)
    }

    /// The paths to a peer that answer, each with its round trip.
    pub fn answering(&self, peer: &PublicKey) -> impl Iterator<Item = (path::Path, Duration)> + '_ {
        self.agent.answering(peer)
    }

    /// What is known about the NAT.
    pub fn report(&self) -> &NatReport {
        self.stun.report()
    }

    /// What is known about the NAT for IPv4 and for IPv6; `None` where there is no STUN server.
    pub fn reports(&self) -> [Option<NatReport>; 2] {
        self.stun.reports()
    }

    /// The relays, in the map's order.
    pub fn relays(&self, now: Instant) -> Vec<RelayState> {
        self.relays.states(now)
    }

    /// The name of the relay that has this number in paths.
    pub fn relay_name(&self, id: path::RelayId) -> Option<String> {
        self.relays.name(id)
    }

    fn tell_relays(&mut self, now: Instant) {
        if let Some(relays) = self.relays.take_changed(now) {
            self.agent.set_relays(now, &relays);
        }
    }

    fn handle_event(&mut self, now: Instant, event: PathEvent) {
        match event {
            PathEvent::Selected { peer, path, reason } => {
                let endpoint = match path {
                    Path::Direct { socket: SocketId::TUNNEL, address } | Path::Relay { address, .. } => Some(address),
                    Path::Direct { socket, address } => self.detours.lead(socket, address),
                    Path::None => None,
                };
                self.selections.push_back(Selection { peer, endpoint, path, reason });
            }
            PathEvent::Mtu { peer, mtu } => self.mtus.push_back((peer, mtu)),
            PathEvent::Arrived { peer, transaction } => self.arrived.push((peer, transaction)),
            PathEvent::RefreshCandidates => {
                self.stun.refresh(now);
                self.relays.renew(now);
                if let Some(mapper) = &self.mapper {
                    mapper.refresh();
                }
                self.tell_soon(now);
            }
            PathEvent::OpenSockets { peer, count } => {
                let sockets = self.detours.open(count);
                self.agent.handle_sockets(now, &peer, sockets);
            }
            PathEvent::CloseSockets { sockets } => self.detours.close(&sockets),
        }
    }

    fn send_probe(&self, probe: &PathTransmit, called: Option<Endpoint>) {
        let PathTransmit { socket, to, ttl, dont_fragment, bytes, .. } = probe;
        let sent = match *socket {
            SocketId::TUNNEL => return send_probe(&self.udp, probe, called),
            other if *dont_fragment => self.detours.send_unfragmented(other, *to, bytes),
            other => self.detours.send(other, *to, bytes, *ttl),
        };
        if let Err(e) = sent {
            tracing::trace!("no probe of {} bytes can be sent to {to}: {e}", bytes.len());
        }
    }

    fn send(&self, socket: SocketId, to: SocketAddr, datagram: &[u8], ttl: Option<u8>) {
        let sent = match socket {
            SocketId::TUNNEL => self.udp.send_to(datagram, to, 0, ttl),
            other => self.detours.send(other, to, datagram, ttl),
        };
        if let Err(e) = sent {
            tracing::trace!("nothing can be sent to {to}: {e}");
        }
    }

    fn local(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| SocketAddr::new(*host, self.udp.local_port())).collect()
    }

    fn tell_soon(&mut self, now: Instant) {
        self.tell_at.get_or_insert(now + SETTLE);
    }

    /// Announces our addresses to the agent and the coordinator, if they have changed.
    fn tell(&mut self, now: Instant) {
        let kinds = [
            (CandidateKind::Host, self.local()),
            (CandidateKind::ServerReflexive, self.stun.addresses()),
            (CandidateKind::PortMapped, self.mapping().and_then(|mapping| mapping.candidate()).into_iter().collect()),
        ];
        let mut candidates: Vec<Candidate> = Vec::new();
        for (kind, addresses) in kinds {
            for address in addresses {
                let candidate = Candidate { kind, address };
                if candidate.is_sound() && !candidates.iter().any(|known| known.address == address) {
                    candidates.push(candidate);
                }
            }
        }
        // Addresses seen from outside are worth more than those of a machine that has many.
        candidates.sort_by_key(|candidate| candidate.kind == CandidateKind::Host);
        candidates.truncate(coordination::limits::CANDIDATES_LIMIT);
        let nat = self.stun.report().nat_type();
        let reachability = Reachability { candidates, nat_type: Some(nat), ..Reachability::default() };
        if self.told.as_ref() != Some(&reachability) {
            self.agent.set_local(now, &reachability.candidates, nat);
            self.told = Some(reachability.clone());
            self.reachability = Some(reachability);
        }
    }
}

/// Sends a probe from the tunnel's socket: an answer leaves from the address that was probed, any other probe from the
/// one that the agent names.
pub fn send_probe(udp: &UdpSender, probe: &PathTransmit, called: Option<Endpoint>) {
    let PathTransmit { to, local, ttl, dont_fragment, bytes, .. } = probe;
    let called = called.filter(|called| called.remote == *to).and_then(|called| called.local);
    let send = |source: Option<IpAddr>| match source {
        _ if *dont_fragment => udp.send_unfragmented(source, bytes, *to),
        Some(source) => udp.send_from(source.into(), bytes, *to, 0),
        None => udp.send_to(bytes, *to, 0, *ttl),
    };
    let source = called.or(*local).filter(|_| ttl.is_none());
    // The address may be gone.
    let sent = send(source).or_else(|e| if source.is_some() { send(None) } else { Err(e) });
    if let Err(e) = sent {
        tracing::trace!("no probe of {} bytes can be sent to {to}: {e}", bytes.len());
    }
}

/// Sends a peer probes as one train and, with `singles`, as many more one by one. `source` is the address of ours that
/// data to it leaves from. Returns the names of both; `None` if they cannot be sent.
pub fn send_train(
    agent: &mut PathAgent,
    udp: &UdpSender,
    peer: &PublicKey,
    (count, longest): (usize, u16),
    singles: bool,
    source: Option<IpAddr>,
) -> Option<[Vec<u64>; 2]> {
    let path::Train { to, length, pings } = agent.make_train(peer, count * (1 + usize::from(singles)), longest)?;
    let (train, singles) = pings.split_at(count);
    let bytes = train.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect::<Vec<u8>>();
    let sent = udp.send_bundle(&bytes, length, source, to).and_then(|()| {
        singles.iter().try_for_each(|(_, bytes)| match source {
            Some(source) => udp.send_from(source.into(), bytes, to, 0),
            None => udp.send_to(bytes, to, 0, None),
        })
    });
    if let Err(e) = sent {
        tracing::debug!("no train can be sent to {to}: {e}");
        return None;
    }
    Some([train, singles].map(|pings| pings.iter().map(|(name, _)| *name).collect()))
}
