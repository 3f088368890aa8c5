//! The peers with their handshakes and sessions: between WireGuard's state, which does no I/O, and the data plane.
//! Events of the former become sessions, endpoints and commands of the latter; notices from the workers drive the
//! timers.

mod drops;
mod timings;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow};
use penstock_connect::Names;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports as data;
use penstock_dataplane::ports::udp::UdpSender;
use penstock_dataplane::session::{Session, SessionConfig};
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_proto::messages::INITIATION;
use penstock_proto::{self as proto, Event, Key, PeerConfig, PeerId, Role, SessionKeys, Speeds};
use rand::SeedableRng;

use super::due::Due;
use super::peers::{Peer, Peers};
use super::suites;
use crate::endpoints::LastEndpoints;
use crate::ground::Origin;
use crate::key::{PrivateKey, PublicKey};
use crate::problem::{Problem, Problems};
use crate::profile::{self, Endpoint, SuiteSetting};
use crate::resolver::Resolver;
use crate::resolver::rotation::Change;

use drops::Drops;
pub use drops::{kebab, reasons as drop_reasons};
use timings::timings;

/// AF41 and no ECN: the traffic class of handshakes, as the kernel's WireGuard sends them.
const HANDSHAKE_TOS: u8 = 0x88;
/// How often the handshakes are told the wall clock's time, with which initiations are stamped.
const CLOCK_EVERY: Duration = Duration::from_secs(60);
/// Peers with which handshakes start at once after a restart: each handshake takes about 100 µs of curve arithmetic.
const CALLS_AT_ONCE: usize = 64;

/// The handshakes with all peers.
pub struct Handshakes {
    /// The peers.
    pub peers: Peers,
    /// WireGuard's state.
    pub proto: proto::Gateway,
    udp: UdpSender,
    resolver: Resolver,
    /// The peers' last endpoints, which survive restarts.
    last_endpoints: LastEndpoints,
    /// Peers to start handshakes with because they had a session before the restart.
    to_call: VecDeque<PeerId>,
    drops: Drops,
    /// Handshakes that were started, not counting those over a connection to a relay.
    begun: u64,
    clock_set: Instant,
    due: Due,
    commands: Vec<Command>,
    /// How fast this site is with each suite.
    speeds: Speeds,
    /// Peers that insist on another suite.
    problems: Problems,
}

impl Handshakes {
    /// Handshakes with this private key, sent through `udp`; without peers.
    ///
    /// # Errors
    /// A test asks for impossible timings.
    pub fn new(
        private_key: &PrivateKey,
        last_endpoints: LastEndpoints,
        speeds: Speeds,
        udp: UdpSender,
        now: Instant,
    ) -> Result<Self> {
        let rng = rand::rngs::StdRng::from_os_rng();
        let mark = udp.mark();
        let proto = proto::Gateway::with_timings(private_key.to_secret(), rng, now, SystemTime::now(), timings()?);
        Ok(Self {
            peers: Peers::default(),
            proto,
            udp,
            resolver: Resolver::new(Names::default(), mark),
            last_endpoints,
            to_call: VecDeque::new(),
            drops: Drops::default(),
            begun: 0,
            clock_set: now,
            due: Due::default(),
            commands: Vec::new(),
            speeds,
            problems: Problems::default(),
        })
    }

    /// Handshakes with these peers, for tests.
    #[cfg(test)]
    pub fn of(proto: proto::Gateway, peers: Peers, udp: UdpSender) -> Self {
        let (now, key) = (Instant::now(), PrivateKey::from_bytes([1; 32]));
        let speeds = Speeds { chacha20_poly1305: 1, aes_256_gcm: 1 };
        let empty = Self::new(&key, LastEndpoints::unkept(now), speeds, udp, now).expect("the usual timings");
        Self { peers, proto, ..empty }
    }

    /// Adds a peer of the profile, and has its name resolved.
    ///
    /// # Errors
    /// The peer exists already, or has our own key.
    pub fn add(&mut self, now: Instant, given: &profile::Peer) -> Result<()> {
        let last = self.last_endpoints.of(&given.public_key, given.endpoint.as_ref());
        let endpoint = last.or(match &given.endpoint {
            Some(Endpoint::Address(address)) => Some(*address),
            _ => None,
        });
        let config = PeerConfig {
            preshared_key: given.preshared_key.as_ref().map(|key| Key::from(*key.as_bytes())),
            endpoint,
            persistent_keepalive: given.persistent_keepalive,
            ..PeerConfig::default()
        };
        let id = self
            .proto
            .add_peer(now, given.public_key.into(), config)
            .map_err(|e| anyhow!("peer {} cannot be added: {e:?}", given.name))?;
        let number = self.peers.number();
        let mut peer = Peer::new(id, number, given.public_key, Origin::Profile);
        peer.name.clone_from(&given.name);
        peer.tags.clone_from(&given.tags);
        peer.preshared_key.clone_from(&given.preshared_key);
        peer.configured.clone_from(&given.endpoint);
        peer.endpoint = endpoint;
        peer.recalled = last.is_some();
        peer.persistent_keepalive = given.persistent_keepalive;
        self.peers.push(peer);
        self.set_suite(id, given.suite);
        for prefix in &given.allowed_ips {
            self.peers.allow(*prefix, id);
        }
        self.watch_name(now, id);
        // Handshakes with the other peers do not start until there is something to send.
        self.to_call.extend(last.map(|_| id));
        self.due.add(Due::PEERS);
        Ok(())
    }

    /// Forgets a peer.
    pub fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.proto.remove_peer(id);
        let peer = self.peers.remove(id)?;
        self.last_endpoints.forget(&peer.public_key);
        self.resolver.forget(&peer.public_key);
        self.problems.solved(&suites::subject(&peer));
        tracing::info!("{}: removed", peer.label());
        self.due.add(Due::PEERS);
        Some(peer)
    }

    /// Makes this our private key; all sessions start again. Returns the peer that had this key and is now gone.
    pub fn set_private_key(&mut self, key: &PrivateKey) -> Option<Peer> {
        let ourselves = self.proto.set_private_key(key.to_secret());
        tracing::info!("private key changed: all sessions restart");
        let peer = self.peers.remove(ourselves?)?;
        self.resolver.forget(&peer.public_key);
        tracing::info!("{}: removed, since it is this site", peer.label());
        self.due.add(Due::PEERS);
        Some(peer)
    }

    /// The tunnel's socket.
    pub fn sender(&self) -> UdpSender {
        self.udp.clone()
    }

    /// Sends from this socket from now on. If its port is different, all peers are told at once, since they send to the
    /// old one until they hear from the new one.
    pub fn set_sender(&mut self, now: Instant, udp: UdpSender) {
        let before = std::mem::replace(&mut self.udp, udp);
        if before.local_port() != self.udp.local_port() {
            let live = self.peers.iter().filter(|p| p.sending().is_some_and(|s| s.alive(Millis::at(now))));
            self.commands.extend(live.map(|peer| Command::Keepalive(peer.counters.id)));
        }
    }

    /// Resolves names with this firewall mark from now on.
    pub fn set_mark(&mut self, now: Instant, mark: u32) {
        self.resolver = Resolver::new(Names::default(), mark);
        let ids: Vec<PeerId> = self.peers.iter().map(|peer| peer.id).collect();
        ids.into_iter().for_each(|id| self.watch_name(now, id));
    }

    /// Sends a peer's packets to this endpoint from now on.
    pub fn set_endpoint(&mut self, id: PeerId, endpoint: Option<SocketAddr>) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        if peer.endpoint != endpoint {
            (peer.endpoint, peer.local) = (endpoint, None);
            self.proto.set_endpoint(id, endpoint);
            self.due.endpoints = true;
        }
    }

    /// How fast this site is with each suite.
    pub fn speeds(&self) -> Speeds {
        self.speeds
    }

    /// Sets how fast this site is with each suite.
    pub fn set_own_speeds(&mut self, speeds: Speeds) {
        if self.speeds != speeds {
            self.speeds = speeds;
            let ids: Vec<PeerId> = self.peers.iter().map(|peer| peer.id).collect();
            ids.into_iter().for_each(|id| self.choose_suite(id));
        }
    }

    /// Sets which suite is used with a peer, from its next handshake on.
    pub fn set_suite(&mut self, id: PeerId, suite: SuiteSetting) {
        if let Some(peer) = self.peers.of_mut(id) {
            peer.suite = suite;
        }
        self.choose_suite(id);
    }

    /// Sets the speeds that a site has announced to the coordinator.
    pub fn set_speeds(&mut self, key: &PublicKey, speeds: Option<Speeds>) {
        let Some(id) = self.peers.with_key(key).filter(|peer| peer.speeds != speeds).map(|peer| peer.id) else {
            return;
        };
        if let Some(peer) = self.peers.of_mut(id) {
            peer.speeds = speeds;
        }
        self.choose_suite(id);
    }

    /// The suite of the next handshake with a peer, and the reason.
    pub fn suite(&self, peer: &Peer) -> suites::Choice {
        suites::choose(
            peer.suite,
            self.speeds,
            peer.speeds,
            peer.sending().map(|session| suites::proto(session.suite())),
        )
    }

    /// Makes the next handshakes with a peer use the right suite. To be called after anything that this depends on has
    /// changed.
    fn choose_suite(&mut self, id: PeerId) {
        let Some(peer) = self.peers.of(id) else { return };
        self.proto.set_suite(id, self.suite(peer).suite, peer.suite == SuiteSetting::Auto);
    }

    /// What is wrong with peers.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }

    /// Notes that peers were changed from outside.
    pub fn changed(&mut self, due: Due) {
        self.due.add(due);
    }

    /// Takes what needs attention, and the commands for the workers.
    pub fn take_due(&mut self) -> (Due, Vec<Command>) {
        (std::mem::take(&mut self.due), std::mem::take(&mut self.commands))
    }

    /// Counts packets that waited for a session and were lost.
    pub fn lost(&mut self, packets: u64) {
        self.drops.waited(packets);
    }

    /// What control has dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (String, u64)> {
        self.drops.by_reason()
    }

    /// How many handshakes were started by datagrams over the WAN.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Refuses a probe that comes out of the tunnel: the tunnel itself cannot be the path to its own end.
    pub fn refuses_probe(&mut self, from_inside: bool, payload: &[u8]) -> bool {
        let refused = from_inside && payload.first() == Some(&proto::path::FIRST_BYTE);
        if refused {
            self.drops.probe_inside();
        }
        refused
    }

    /// Takes a worker's notice.
    pub fn handle_notice(&mut self, now: Instant, notice: Notice) {
        match notice {
            Notice::Datagram { from, payload, .. } => self.handle_datagram(now, from, &payload),
            Notice::UnknownSession { from } => self.handle_unknown_session(now, from),
            Notice::NoSession { peer, packet } => self.handle_no_session(now, peer, packet),
            Notice::Confirmed { local_index, from } => self.proto.handle_confirmed(now, local_index, ends(from)),
            Notice::Roamed { local_index, from } => self.proto.handle_roamed(now, local_index, ends(from)),
            // From workers that were stopped; they have been replaced already.
            Notice::WorkerDied { .. } => {}
        }
        self.take_events(now, 0);
    }

    /// Takes a WireGuard datagram.
    fn handle_datagram(&mut self, now: Instant, from: data::Endpoint, payload: &[u8]) {
        // Those that are expected have been taken before.
        if payload.first() == Some(&proto::path::FIRST_BYTE) {
            tracing::debug!("probe from {} dropped: nobody here expects it", from.remote);
            self.drops.probe_unexpected();
            return;
        }
        if let Err(reject) = self.proto.handle_datagram(now, ends(from), payload) {
            self.drops.rejected(reject);
            tracing::debug!("datagram of {} bytes from {} dropped: {reject:?}", payload.len(), from.remote);
        }
        self.take_events(now, payload.len() as u64);
    }

    /// Takes a packet for the peer with this number in the data plane, for which there is no session or no address.
    fn handle_no_session(&mut self, now: Instant, number: u32, packet: Box<[u8]>) {
        let Some(peer) = self.peers.numbered_mut(number) else { return };
        let id = peer.id;
        // Both may have appeared while the packet was on its way to us. The table with them is published before
        // the packet is sent, so it does not come back.
        if peer.endpoint.is_some() && peer.sending().is_some_and(|s| s.alive(Millis::at(now))) {
            self.commands.push(Command::Send(packet));
            return;
        }
        if self.proto.handle_wanted(now, id) {
            if let Some(peer) = self.peers.of_mut(id)
                && !peer.wait(packet)
            {
                self.drops.waited(1);
            }
        } else {
            self.drops.waited(1);
        }
    }

    /// Takes the notice that data came from this address on a session that nobody knows: after we restart, a peer goes
    /// on sending on the session that it had with us before.
    fn handle_unknown_session(&mut self, now: Instant, from: SocketAddr) {
        let there = self.peers.iter().filter(|peer| peer.is_at(from)).map(|peer| peer.id);
        for id in there.collect::<Vec<_>>() {
            self.proto.handle_unknown_session(now, id);
        }
    }

    /// Starts handshakes with some of the peers that had a session before the restart.
    pub fn call(&mut self, now: Instant) {
        for _ in 0..CALLS_AT_ONCE {
            let Some(id) = self.to_call.pop_front() else { return };
            self.proto.handle_unknown_session(now, id);
        }
    }

    /// Writes what has to survive the process, if that is due.
    pub fn save(&mut self, now: Instant, at_end: bool, problems: &mut Problems) {
        self.last_endpoints.save(now, at_end, problems);
    }

    /// Takes all events. `datagram` is the length of the handshake message that caused them, or 0.
    pub fn take_events(&mut self, now: Instant, datagram: u64) {
        while let Some(event) = self.proto.poll_event() {
            match event {
                Event::SessionEstablished { peer, session } => self.establish(peer, &session, datagram),
                Event::SessionPromoted { peer, local_index } => self.promote(peer, local_index),
                Event::SessionExpired { peer, local_index } => {
                    if let Some(peer) = self.peers.of_mut(peer) {
                        peer.sessions.retain(|s| s.local_index != local_index);
                        peer.sending = peer.sending.filter(|sending| *sending != local_index);
                    }
                    self.choose_suite(peer);
                    self.due.table = true;
                }
                Event::SendKeepalive { peer } => {
                    self.commands.extend(self.peers.of(peer).map(|p| Command::Keepalive(p.counters.id)));
                }
                Event::EndpointChanged { peer, endpoint } => self.moved(peer, endpoint),
                Event::PathSilent { peer } => self.silent(now, peer),
                Event::SuiteRefused { peer, suite } => {
                    if let Some(peer) = self.peers.of(peer) {
                        suites::note_refused(&mut self.problems, now, peer, suite);
                    }
                }
                Event::HandshakeGaveUp { peer } => self.gave_up(peer),
            }
        }
    }

    fn establish(&mut self, id: PeerId, keys: &SessionKeys, datagram: u64) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        peer.handshake_bytes.0 += datagram;
        let suite = suites::data(keys.suite);
        self.problems.solved(&suites::subject(peer));
        tracing::debug!("{}: handshake done as {:?}, {}", peer.label(), keys.role, keys.suite);
        peer.sessions.push(Arc::new(Session::new(SessionConfig {
            local_index: keys.local_index,
            remote_index: keys.remote_index,
            suite,
            send_key: keys.send.as_bytes(),
            receive_key: keys.receive.as_bytes(),
            born: Millis::at(keys.born),
            confirmed: keys.role == Role::Initiator,
            peer: Arc::clone(&peer.counters),
        })));
        // The peer's next packet may arrive before this turn ends.
        self.due.table = true;
    }

    fn promote(&mut self, id: PeerId, local_index: u32) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        if peer.sending.is_none() {
            tracing::info!("{}: connected", peer.label());
        }
        peer.sending = Some(local_index);
        peer.handshakes += 1;
        peer.recalled = false;
        self.commands.extend(peer.waiting.drain(..).map(Command::Send));
        self.due.table = true;
        self.keep_endpoint(id);
        self.choose_suite(id);
    }

    fn moved(&mut self, id: PeerId, proto::Endpoint { remote, local }: proto::Endpoint) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        if peer.endpoint != Some(remote) {
            tracing::info!("{}: endpoint is now {remote}", peer.label());
        } else if let Some(local) = local.filter(|_| peer.local.is_some() && peer.local != local) {
            tracing::info!("{}: now sends to {local}", peer.label());
        }
        (peer.endpoint, peer.local) = (Some(remote), local);
        self.due.endpoints = true;
        self.keep_endpoint(id);
    }

    /// Keeps the endpoint of a peer with a session for the next start, unless its path is found again each time.
    fn keep_endpoint(&mut self, id: PeerId) {
        let Some(peer) = self.peers.of(id).filter(|peer| peer.roams() && peer.sending.is_some()) else { return };
        if let Some(endpoint) = peer.endpoint {
            self.last_endpoints.note(peer.public_key, endpoint, peer.configured.as_ref());
        }
    }

    /// A peer does not answer: it may be reached at another address of its name, or at its configured address.
    fn silent(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        self.resolver.handle_silence(now, &peer.public_key);
        if let (true, Some(Endpoint::Address(configured))) = (std::mem::take(&mut peer.recalled), &peer.configured) {
            let configured = *configured;
            self.set_endpoint(id, Some(configured));
            self.proto.handle_path(now, id, false);
        }
    }

    fn gave_up(&mut self, id: PeerId) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        self.last_endpoints.forget(&peer.public_key);
        tracing::warn!("{}: no answer; {} waiting packets dropped", peer.label(), peer.waiting.len());
        self.drops.waited(peer.waiting.len() as u64);
        peer.waiting.clear();
    }

    /// The next endpoint that a name leads to. Cancel safe.
    pub async fn resolved(&mut self) -> Change {
        self.resolver.next().await
    }

    /// Takes over an endpoint that a name resolves to.
    pub fn handle_resolved(&mut self, now: Instant, change: Change) {
        let Some(peer) = self.peers.with_key(&change.peer) else { return };
        if peer.endpoint == Some(change.endpoint) {
            return;
        }
        tracing::info!("{}: the endpoint's name now resolves to {}", peer.label(), change.endpoint);
        let (id, interval) = (peer.id, peer.persistent_keepalive);
        self.set_endpoint(id, Some(change.endpoint));
        self.proto.handle_path(now, id, false);
        if let Some(interval) = interval {
            self.proto.set_persistent_keepalive(now, id, Some(interval));
        }
    }

    /// Watches the name configured as a peer's endpoint, if it is one.
    pub fn watch_name(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.of(id) else { return };
        match &peer.configured {
            Some(Endpoint::Host { name, port }) => self.resolver.watch(now, peer.public_key, name, *port),
            _ => self.resolver.forget(&peer.public_key),
        }
    }

    /// Sends the pending handshake messages.
    pub fn transmit(&mut self) {
        while let Some(transmit) = self.proto.poll_transmit() {
            // A local address stands for a connection to a relay.
            let begins = transmit.contents.first() == Some(&INITIATION) && !transmit.to.ip().is_loopback();
            self.begun += u64::from(begins);
            let peer = transmit.peer.and_then(|id| self.peers.of_mut(id));
            match send(&self.udp, &transmit) {
                Ok(()) => {
                    if let Some(peer) = peer {
                        peer.handshake_bytes.1 += transmit.contents.len() as u64;
                    }
                }
                Err(e) => tracing::debug!("a handshake message to {} was not sent: {e}", transmit.to),
            }
        }
    }

    /// Has the kernel send a keepalive to the peers with which AF_XDP exchanges data, so that connection tracking keeps
    /// their flows: otherwise a firewall that admits only answers would not let them in after a restart.
    pub fn show_flows(&mut self, now: Instant) {
        let live = self.peers.iter_mut().filter(|peer| peer.sending.is_some());
        let due = live.filter_map(|peer| peer.is_to_be_shown(now).then(|| Command::Keepalive(peer.counters.id)));
        self.commands.extend(due);
    }

    /// Reads the traffic counters and tells the timers. `each` is called for every peer that had traffic.
    pub fn sample(&mut self, now: Instant, mut each: impl FnMut(&Peer, proto::Traffic)) {
        for peer in self.peers.iter_mut() {
            let Some(sample) = peer.sample() else { continue };
            self.proto.handle_traffic(now, peer.id, sample.traffic);
            each(peer, sample.traffic);
            if let Some((index, used)) = sample.used {
                self.proto.handle_session_used(now, peer.id, index, used);
            }
        }
        if now.duration_since(self.clock_set) >= CLOCK_EVERY {
            self.clock_set = now;
            self.proto.set_clock(now, SystemTime::now());
        }
    }
}

/// Sends a handshake message, from the address that the peer last sent to, as long as it is ours.
fn send(udp: &UdpSender, transmit: &proto::Transmit) -> io::Result<()> {
    let proto::Transmit { to, local, contents, .. } = transmit;
    let sent = local.map(|local| udp.send_from(local.into(), contents, *to, HANDSHAKE_TOS));
    match sent {
        Some(Err(e)) if e.kind() != io::ErrorKind::WouldBlock => {}
        Some(sent) => return sent,
        None => {}
    }
    udp.send_to(contents, *to, HANDSHAKE_TOS, None)
}

/// A datagram's endpoints in the handshakes' terms.
fn ends(data::Endpoint { remote, local }: data::Endpoint) -> proto::Endpoint {
    proto::Endpoint { remote, local }
}
