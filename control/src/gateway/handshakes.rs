//! The peers with their handshakes and sessions: between WireGuard's state, which does no I/O, and the data plane.
//! Events of the one become sessions, endpoints and commands of the other; notices of the workers become news for
//! the timers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, anyhow};
use penstock_connect::Names;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports::udp::UdpSender;
use penstock_dataplane::session::{Session, SessionConfig, Suite};
use penstock_dataplane::slow_path::Command;
use penstock_proto::{self as proto, Event, Key, PeerConfig, PeerId, Reject, Role, SessionKeys, Timings};
use rand::SeedableRng;

use super::peers::{Peer, Peers};
use super::site::Site;
use crate::ground::Origin;
use crate::key::PrivateKey;
use crate::profile::{self, Endpoint};
use crate::resolver::Resolver;
use crate::resolver::rotation::Change;

/// AF41 and no ECN: the traffic class of handshakes, as the kernel's WireGuard sends them.
const HANDSHAKE_TOS: u8 = 0x88;
/// How often the handshakes are told the time of day, by which initiations are stamped.
const CLOCK_EVERY: Duration = Duration::from_secs(60);
/// Shortens the handshakes' timings, for tests.
const TEST_REKEY: &str = "PENSTOCK_TEST_REKEY_AFTER_SECONDS";

/// What the gateway has to see to after a change here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Sessions, or something else that is in the table.
    pub table: bool,
    /// Which prefixes belong to whom, or the order of the peers.
    pub prefixes: bool,
    /// The ways to the endpoints.
    pub paths: bool,
}

impl Due {
    /// Peers came, went, or got other prefixes or endpoints.
    pub const PEERS: Self = Self { table: true, prefixes: true, paths: true };

    /// This and another.
    pub fn add(&mut self, other: Self) {
        self.table |= other.table;
        self.prefixes |= other.prefixes;
        self.paths |= other.paths;
    }
}

/// The handshakes with all peers.
pub struct Handshakes {
    /// The peers.
    pub peers: Peers,
    /// WireGuard's state.
    pub proto: proto::Gateway,
    udp: UdpSender,
    resolver: Resolver,
    /// Handshake messages that were dropped, by reason.
    rejects: HashMap<Reject, u64>,
    /// Packets that waited for a session in vain.
    lost_waiting: u64,
    clock_set: Instant,
    due: Due,
    commands: Vec<Command>,
}

impl Handshakes {
    /// Handshakes of a site, which go out by `udp`; without peers.
    ///
    /// # Errors
    /// A test asks for timings that cannot be.
    pub fn new(site: &Site, udp: UdpSender, now: Instant) -> Result<Self> {
        let rng = rand::rngs::StdRng::from_os_rng();
        let key = site.private_key.to_secret();
        let proto = proto::Gateway::with_timings(key, rng, now, SystemTime::now(), timings()?);
        Ok(Self {
            peers: Peers::default(),
            proto,
            udp,
            resolver: Resolver::new(Names::default(), site.mark),
            rejects: HashMap::new(),
            lost_waiting: 0,
            clock_set: now,
            due: Due::default(),
            commands: Vec::new(),
        })
    }

    /// Adds a peer of the profile, and has its name resolved.
    ///
    /// # Errors
    /// It is there already, or it is ourselves.
    pub fn add(&mut self, now: Instant, given: &profile::Peer) -> Result<()> {
        let endpoint = match &given.endpoint {
            Some(Endpoint::Address(address)) => Some(*address),
            _ => None,
        };
        let config = PeerConfig {
            preshared_key: given.preshared_key.as_ref().map(|key| Key::from(*key.as_bytes())),
            endpoint,
            persistent_keepalive: given.persistent_keepalive,
            fixed_endpoint: false,
        };
        let id = self
            .proto
            .add_peer(now, given.public_key.into(), config)
            .map_err(|e| anyhow!("peer {} cannot be added: {e:?}", given.name))?;
        let number = self.peers.number();
        let mut peer = Peer::new(id, number, given.public_key, Origin::Profile);
        peer.name.clone_from(&given.name);
        peer.preshared_key.clone_from(&given.preshared_key);
        peer.configured.clone_from(&given.endpoint);
        peer.endpoint = endpoint;
        peer.persistent_keepalive = given.persistent_keepalive;
        self.peers.push(peer);
        for prefix in &given.allowed_ips {
            self.peers.allow(*prefix, id);
        }
        self.watch_name(now, id);
        self.due.add(Due::PEERS);
        Ok(())
    }

    /// Forgets a peer.
    pub fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.proto.remove_peer(id);
        let peer = self.peers.remove(id)?;
        self.resolver.forget(&peer.public_key);
        tracing::info!("{}: removed", peer.label());
        self.due.add(Due::PEERS);
        Some(peer)
    }

    /// Makes this our private key: all sessions begin anew. Returns the peer that had this key, which is gone.
    pub fn set_private_key(&mut self, key: &PrivateKey) -> Option<Peer> {
        let ourselves = self.proto.set_private_key(key.to_secret());
        tracing::info!("private key changed: all sessions begin anew");
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

    /// Sends by this socket from now on. One with another port has all peers told at once, since they send to the
    /// old one until they hear from the new one.
    pub fn set_sender(&mut self, now: Instant, udp: UdpSender) {
        let before = std::mem::replace(&mut self.udp, udp);
        if before.local_port() != self.udp.local_port() {
            let live = self.peers.iter().filter(|p| p.sending().is_some_and(|s| s.alive(Millis::at(now))));
            self.commands.extend(live.map(|peer| Command::Keepalive(peer.data.id)));
        }
    }

    /// Asks for names with this firewall mark from now on.
    pub fn set_mark(&mut self, now: Instant, mark: u32) {
        self.resolver = Resolver::new(Names::default(), mark);
        let ids: Vec<PeerId> = self.peers.iter().map(|peer| peer.id).collect();
        ids.into_iter().for_each(|id| self.watch_name(now, id));
    }

    /// Sends a peer's packets there from now on.
    pub fn set_endpoint(&mut self, id: PeerId, endpoint: Option<SocketAddr>) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        if peer.endpoint != endpoint {
            peer.endpoint = endpoint;
            self.proto.set_endpoint(id, endpoint);
            self.due.paths = true;
        }
    }

    /// Notes that peers were changed from outside.
    pub fn changed(&mut self, due: Due) {
        self.due.add(due);
    }

    /// What has to be seen to, and what the workers have to do; both are taken.
    pub fn take_due(&mut self) -> (Due, Vec<Command>) {
        (std::mem::take(&mut self.due), std::mem::take(&mut self.commands))
    }

    /// Counts packets that were lost while they waited for a session.
    pub fn lost(&mut self, packets: u64) {
        self.lost_waiting += packets;
    }

    /// Drops of control, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (String, u64)> {
        let rejects =
            self.rejects.iter().map(|(reject, n)| (format!("handshake-{}", kebab(&format!("{reject:?}"))), *n));
        rejects.chain([("no-session".to_owned(), self.lost_waiting)])
    }

    /// Takes a datagram that is WireGuard's.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, payload: &[u8]) {
        if let Err(reject) = self.proto.handle_datagram(now, from, payload) {
            *self.rejects.entry(reject).or_default() += 1;
            tracing::debug!("datagram of {} bytes from {from} dropped: {reject:?}", payload.len());
        }
        self.take_events(now, payload.len() as u64);
    }

    /// Takes a packet to the peer of this number in the data plane, for which there is no session.
    pub fn handle_no_session(&mut self, now: Instant, number: u32, packet: Box<[u8]>) {
        let Some(peer) = self.peers.numbered_mut(number) else { return };
        let id = peer.id;
        // The session may have come while the packet was on its way to us.
        if peer.sending().is_some_and(|s| s.alive(Millis::at(now))) {
            self.commands.push(Command::Send(packet));
            return;
        }
        if self.proto.handle_wanted(now, id) {
            if let Some(peer) = self.peers.of_mut(id)
                && !peer.wait(packet)
            {
                self.lost_waiting += 1;
            }
        } else {
            self.lost_waiting += 1;
        }
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
                    self.due.table = true;
                }
                Event::SendKeepalive { peer } => {
                    self.commands.extend(self.peers.of(peer).map(|p| Command::Keepalive(p.data.id)));
                }
                Event::EndpointChanged { peer, endpoint } => self.moved(peer, endpoint),
                Event::PathSilent { peer } => {
                    if let Some(peer) = self.peers.of(peer) {
                        self.resolver.handle_silence(now, &peer.public_key);
                    }
                }
                Event::HandshakeGaveUp { peer } => self.gave_up(peer),
            }
        }
    }

    fn establish(&mut self, id: PeerId, keys: &SessionKeys, datagram: u64) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        peer.handshake_bytes.0 += datagram;
        let suite = match keys.suite {
            proto::Suite::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
            other => {
                tracing::error!("a session with suite {other:?}, which the data plane does not know");
                return;
            }
        };
        tracing::debug!("{}: handshake done as {:?}", peer.label(), keys.role);
        peer.sessions.push(Arc::new(Session::new(SessionConfig {
            local_index: keys.local_index,
            remote_index: keys.remote_index,
            suite,
            send_key: keys.send.as_bytes(),
            receive_key: keys.receive.as_bytes(),
            born: Millis::at(keys.born),
            confirmed: keys.role == Role::Initiator,
            peer: Arc::clone(&peer.data),
        })));
        // The peer's next packet may be there before this turn ends.
        self.due.table = true;
    }

    fn promote(&mut self, id: PeerId, local_index: u32) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        if peer.sending.is_none() {
            tracing::info!("{}: connected", peer.label());
        }
        peer.sending = Some(local_index);
        self.commands.extend(peer.waiting.drain(..).map(Command::Send));
        self.due.table = true;
    }

    fn moved(&mut self, id: PeerId, endpoint: SocketAddr) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        if peer.endpoint != Some(endpoint) {
            tracing::info!("{}: endpoint is now {endpoint}", peer.label());
            peer.endpoint = Some(endpoint);
            self.due.paths = true;
        }
    }

    fn gave_up(&mut self, id: PeerId) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        tracing::warn!("{}: no answer; {} waiting packets dropped", peer.label(), peer.waiting.len());
        self.lost_waiting += peer.waiting.len() as u64;
        peer.waiting.clear();
    }

    /// The next endpoint that a name leads to. Cancel safe.
    pub async fn resolved(&mut self) -> Change {
        self.resolver.next().await
    }

    /// Takes over an endpoint that a name leads to.
    pub fn handle_resolved(&mut self, now: Instant, change: Change) {
        let Some(peer) = self.peers.with_key(&change.peer) else { return };
        if peer.endpoint == Some(change.endpoint) {
            return;
        }
        tracing::info!("{}: the endpoint's name leads to {}", peer.label(), change.endpoint);
        let (id, interval) = (peer.id, peer.persistent_keepalive);
        self.set_endpoint(id, Some(change.endpoint));
        self.proto.handle_path(now, id, false);
        if let Some(interval) = interval {
            self.proto.set_persistent_keepalive(now, id, Some(interval));
        }
    }

    /// Follows what was configured as a peer's endpoint.
    pub fn watch_name(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.of(id) else { return };
        match &peer.configured {
            Some(Endpoint::Host { name, port }) => self.resolver.watch(now, peer.public_key, name, *port),
            _ => self.resolver.forget(&peer.public_key),
        }
    }

    /// Sends what the handshakes have to send.
    pub fn transmit(&mut self) {
        while let Some(transmit) = self.proto.poll_transmit() {
            let peer = transmit.peer.and_then(|id| self.peers.of_mut(id));
            match self.udp.send_to(&transmit.contents, transmit.to, HANDSHAKE_TOS, None) {
                Ok(()) => {
                    if let Some(peer) = peer {
                        peer.handshake_bytes.1 += transmit.contents.len() as u64;
                    }
                }
                Err(e) => tracing::debug!("a handshake message to {} was not sent: {e}", transmit.to),
            }
        }
    }

    /// Looks at the traffic counters and tells the timers. `each` is told of every peer that had traffic.
    pub fn sample(&mut self, now: Instant, mut each: impl FnMut(&Peer, proto::Traffic)) {
        for peer in self.peers.iter_mut() {
            let Some(sample) = peer.sample() else { continue };
            self.proto.handle_traffic(now, peer.id, sample.traffic);
            each(peer, sample.traffic);
            if let Some((index, counter)) = sample.used {
                self.proto.handle_session_used(now, peer.id, index, counter);
            }
        }
        if now.duration_since(self.clock_set) >= CLOCK_EVERY {
            self.clock_set = now;
            self.proto.set_clock(now, SystemTime::now());
        }
    }
}

/// `UnknownPeer` as `unknown-peer`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}

/// WireGuard's timings, unless a test wants them shorter.
fn timings() -> Result<Timings> {
    let Ok(text) = std::env::var(TEST_REKEY) else { return Ok(Timings::default()) };
    let seconds: u64 = text
        .parse()
        .ok()
        .filter(|seconds| (1..=120).contains(seconds))
        .ok_or_else(|| anyhow!("{TEST_REKEY}={text:?} is not a number of seconds from 1 to 120"))?;
    tracing::warn!("{TEST_REKEY}={seconds}: TIMINGS ARE SHORTENED FOR TESTS; never run a site like this");
    Ok(shortened(Duration::from_secs(seconds)))
}

fn shortened(rekey_after: Duration) -> Timings {
    let real = Timings::default();
    let scale = rekey_after.as_secs_f64() / real.rekey_after_time.as_secs_f64();
    Timings {
        rekey_after_time: rekey_after,
        reject_after_time: real.reject_after_time.mul_f64(scale),
        rekey_timeout: real.rekey_timeout.mul_f64(scale).max(Duration::from_millis(200)),
        rekey_timeout_jitter: real.rekey_timeout_jitter.mul_f64(scale),
        keepalive_timeout: real.keepalive_timeout.mul_f64(scale).max(Duration::from_millis(400)),
        ..real
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_timings_keep_their_order() {
        for seconds in [1, 3, 10, 120] {
            let t = shortened(Duration::from_secs(seconds));
            assert!(t.rekey_after_time < t.reject_after_time);
            assert!(t.keepalive_timeout + t.rekey_timeout < t.reject_after_time, "{seconds}");
        }
        assert_eq!(shortened(Duration::from_secs(120)), Timings::default());
    }
}
