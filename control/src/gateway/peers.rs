//! The peers as control knows them: identity, endpoint, sessions, waiting packets. The list's order is that of the
//! peers in the published table.

mod owners;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_dataplane::peer::PeerCounters;
use penstock_dataplane::session::Session;
use penstock_proto::coordination::{self, Service};
use penstock_proto::path::{Path, Reason};
use penstock_proto::pmtu::PathMtu;
use penstock_proto::{PeerId, Speeds, Traffic, Used};

use crate::ground::Origin;
use crate::key::{PresharedKey, PublicKey};
use crate::profile::{Endpoint, SuiteSetting};

use owners::Owners;

/// How often the kernel sends a packet to a peer with which AF_XDP exchanges data. Connection tracking forgets a UDP
/// flow after 30 s (`nf_conntrack_udp_timeout`).
const SHOW_EVERY: Duration = Duration::from_secs(20);
/// Packets that may wait for a peer's session; further ones push out the oldest.
pub const WAITING: usize = 128;

/// Another site.
#[derive(Debug)]
pub struct Peer {
    /// Its id in the handshakes' state.
    pub id: PeerId,
    /// Where it was configured.
    pub origin: Origin,
    /// Its counters in the data plane, and its number there.
    pub counters: Arc<PeerCounters>,
    /// Its name for people; empty for one that came over the userspace API.
    pub name: String,
    /// What firewall rules can select it by, besides its name.
    pub tags: Vec<coordination::Name>,
    /// Which flows it may start here under the coordinator's policy; `None`: all.
    pub allow: Option<Vec<Service>>,
    /// Its public key.
    pub public_key: PublicKey,
    /// The preshared key, if there is one.
    pub preshared_key: Option<PresharedKey>,
    /// The endpoint as configured, to be resolved again when the peer is lost.
    pub configured: Option<Endpoint>,
    /// Its present endpoint.
    pub endpoint: Option<SocketAddr>,
    /// The address of ours that it last sent to, from which packets to it are sent.
    pub local: Option<IpAddr>,
    /// Whether the endpoint is only remembered from before the start.
    pub recalled: bool,
    /// The path found to it, if the coordinator named it.
    pub found: Option<Found>,
    /// How large packets to it may be; `None` as long as its endpoint is unknown.
    pub mtu: Option<PathMtu>,
    /// How many times its path has changed.
    pub path_changes: u64,
    /// Interval of persistent keepalives.
    pub persistent_keepalive: Option<Duration>,
    /// The suite setting for it.
    pub suite: SuiteSetting,
    /// How fast it is with each suite, if it has announced that to the coordinator.
    pub speeds: Option<Speeds>,
    /// The sessions that may receive, at most three.
    pub sessions: Vec<Arc<Session>>,
    /// Receiver index of the session to send on.
    pub sending: Option<u32>,
    /// Packets for which there is no session yet.
    pub waiting: VecDeque<Box<[u8]>>,
    /// Bytes of handshake messages, which do not pass through the data plane: received, sent.
    pub handshake_bytes: (u64, u64),
    /// Handshakes that were completed.
    pub handshakes: u64,
    /// Its part of [`Peers::allowed_ips`]: what is sent to it and accepted from it.
    allowed_ips: BTreeSet<IpNet>,
    sampled: Sampled,
    shown: Option<Shown>,
}

/// When the flow was last shown to the kernel's connection tracking, and when data had last passed at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    at: Instant,
    data: u64,
}

/// The path found to one of the coordinator's peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path.
    pub path: Path,
    /// Why it was chosen.
    pub reason: Reason,
}

impl Default for Found {
    fn default() -> Self {
        Self { path: Path::None, reason: Reason::NoCandidates }
    }
}

/// The traffic counters when they were last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sampled {
    sent: u64,
    sent_data: u64,
    received: u64,
    received_data: u64,
    counter: u64,
}

/// What has passed since the last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// For the timers.
    pub traffic: Traffic,
    /// The session that was used for sending, and how much.
    pub used: Option<(u32, Used)>,
}

impl Peer {
    /// A peer with only its key known.
    pub fn new(id: PeerId, number: u32, public_key: PublicKey, origin: Origin) -> Self {
        Self {
            id,
            origin,
            counters: Arc::new(PeerCounters::new(number)),
            name: String::new(),
            tags: Vec::new(),
            allow: None,
            public_key,
            preshared_key: None,
            configured: None,
            endpoint: None,
            local: None,
            recalled: false,
            found: None,
            mtu: None,
            path_changes: 0,
            persistent_keepalive: None,
            // Only the profile can require a suite; a peer from elsewhere may be any WireGuard.
            suite: if origin == Origin::Overlay { SuiteSetting::Auto } else { SuiteSetting::default() },
            speeds: None,
            sessions: Vec::new(),
            sending: None,
            waiting: VecDeque::new(),
            handshake_bytes: (0, 0),
            handshakes: 0,
            allowed_ips: BTreeSet::new(),
            sampled: Sampled::default(),
            shown: None,
        }
    }

    /// What to call it in the log.
    pub fn label(&self) -> String {
        if self.name.is_empty() { self.public_key.to_string() } else { self.name.clone() }
    }

    /// What is sent to it and accepted from it.
    pub fn allowed_ips(&self) -> &BTreeSet<IpNet> {
        &self.allowed_ips
    }

    /// Whether its endpoint follows its packets. Paths found by the path agent do not.
    pub fn roams(&self) -> bool {
        self.found.is_none()
    }

    /// Whether this is the peer's own endpoint, and not a relay that others are behind too.
    pub fn is_at(&self, endpoint: SocketAddr) -> bool {
        let relayed = matches!(self.found, Some(Found { path: Path::Relay { .. }, .. }));
        self.endpoint == Some(endpoint) && !relayed
    }

    /// The largest packet to it, in a tunnel with this MTU.
    pub fn mtu_within(&self, tunnel: u16) -> u16 {
        self.mtu.map_or(tunnel, |mtu| mtu.inner.min(tunnel))
    }

    /// Whether it receives with this index of its own.
    pub fn receives_by(&self, index: u32) -> bool {
        self.sessions.iter().any(|session| session.remote_index == index)
    }

    /// The session to send on.
    pub fn sending(&self) -> Option<&Arc<Session>> {
        let index = self.sending?;
        self.sessions.iter().find(|s| s.local_index == index)
    }

    /// Bytes of WireGuard messages received, handshakes included.
    pub fn received_bytes(&self) -> u64 {
        self.counters.received.bytes.load(Relaxed) + self.handshake_bytes.0
    }

    /// Bytes of WireGuard messages sent, handshakes included.
    pub fn sent_bytes(&self) -> u64 {
        self.counters.sent.bytes.load(Relaxed) + self.handshake_bytes.1
    }

    /// Queues a packet that waits for a session; `false` if the oldest was dropped for it.
    pub fn wait(&mut self, packet: Box<[u8]>) -> bool {
        let full = self.waiting.len() >= WAITING;
        if full {
            self.waiting.pop_front();
        }
        self.waiting.push_back(packet);
        !full
    }

    /// Reads the counters; `None` when nothing has passed since the last reading.
    pub fn sample(&mut self) -> Option<Sample> {
        let session = self.sending();
        let index = session.map(|s| s.local_index);
        let blocks = session.map_or(0, |s| s.sent_blocks());
        let now = Sampled {
            sent: self.counters.sent.packets.load(Relaxed),
            sent_data: self.counters.sent.last_data.load(Relaxed),
            received: self.counters.received.packets.load(Relaxed),
            received_data: self.counters.received.last_data.load(Relaxed),
            counter: session.map_or(0, |s| s.sent()),
        };
        let before = std::mem::replace(&mut self.sampled, now);
        if before == now {
            return None;
        }
        let traffic = Traffic {
            sent_data: now.sent_data != before.sent_data,
            sent_any: now.sent != before.sent,
            received_data: now.received_data != before.received_data,
            received_any: now.received != before.received,
        };
        let used = Used { messages: now.counter, blocks };
        let used = index.filter(|_| now.counter != before.counter).map(|index| (index, used));
        Some(Sample { traffic, used })
    }

    /// Whether it is time to show the flow to the kernel's connection tracking; if so, it counts as shown. Only a flow
    /// with data since the last time needs it: an idle one is forgotten with any WireGuard implementation.
    pub fn is_to_be_shown(&mut self, now: Instant) -> bool {
        let data = self.sampled.sent_data.max(self.sampled.received_data);
        // The handshake went through the kernel.
        let shown = *self.shown.get_or_insert(Shown { at: now, data });
        let due = now.duration_since(shown.at) >= SHOW_EVERY && data != shown.data;
        if due {
            self.shown = Some(Shown { at: now, data });
        }
        due
    }
}

/// All peers, and the owners of the remote prefixes.
#[derive(Debug, Default)]
pub struct Peers {
    list: Vec<Peer>,
    /// The place of each in the list.
    places: HashMap<PeerId, usize>,
    by_key: HashMap<PublicKey, PeerId>,
    by_number: HashMap<u32, PeerId>,
    allowed_ips: Owners,
    numbers: u32,
}

impl Peers {
    /// A number for a new peer in the data plane; no number is used twice.
    pub fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers - 1
    }

    /// Appends a peer.
    pub fn push(&mut self, peer: Peer) {
        self.places.insert(peer.id, self.list.len());
        self.by_key.insert(peer.public_key, peer.id);
        self.by_number.insert(peer.counters.id, peer.id);
        self.list.push(peer);
    }

    /// Removes a peer and its allowed IPs. The last peer of the list takes its place.
    pub fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.disallow_all(id);
        let at = self.places.remove(&id)?;
        let peer = self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            self.places.insert(moved.id, at);
        }
        self.by_key.remove(&peer.public_key);
        self.by_number.remove(&peer.counters.id);
        Some(peer)
    }

    /// The peers, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Peer> {
        self.list.iter()
    }

    /// The peers, in order, for changes.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Peer> {
        self.list.iter_mut()
    }

    /// A peer's place in the order.
    pub fn place(&self, id: PeerId) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// A peer by its id in the handshakes' state.
    pub fn of(&self, id: PeerId) -> Option<&Peer> {
        self.list.get(self.place(id)?)
    }

    /// A peer by its id in the handshakes' state, for changes.
    pub fn of_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let place = self.place(id)?;
        self.list.get_mut(place)
    }

    /// A peer by its number in the data plane, for changes.
    pub fn numbered_mut(&mut self, number: u32) -> Option<&mut Peer> {
        let id = *self.by_number.get(&number)?;
        self.of_mut(id)
    }

    /// A peer by its public key.
    pub fn with_key(&self, key: &PublicKey) -> Option<&Peer> {
        self.of(*self.by_key.get(key)?)
    }

    /// A peer by its public key, for changes.
    pub fn with_key_mut(&mut self, key: &PublicKey) -> Option<&mut Peer> {
        let id = *self.by_key.get(key)?;
        self.of_mut(id)
    }

    /// Gives a prefix to a peer, whoever had it. Returns the previous owner, if it was another peer.
    pub fn allow(&mut self, prefix: IpNet, id: PeerId) -> Option<PeerId> {
        let prefix = prefix.trunc();
        self.of_mut(id)?.allowed_ips.insert(prefix);
        let before = self.allowed_ips.insert(prefix, id).filter(|before| *before != id)?;
        if let Some(loser) = self.of_mut(before) {
            loser.allowed_ips.remove(&prefix);
        }
        Some(before)
    }

    /// Takes a prefix from a peer, if it has it.
    pub fn disallow(&mut self, prefix: IpNet, id: PeerId) {
        let prefix = prefix.trunc();
        if self.of_mut(id).is_some_and(|peer| peer.allowed_ips.remove(&prefix)) {
            self.allowed_ips.remove(&prefix);
        }
    }

    /// Takes all prefixes from a peer.
    pub fn disallow_all(&mut self, id: PeerId) {
        let Some(peer) = self.of_mut(id) else { return };
        for prefix in std::mem::take(&mut peer.allowed_ips) {
            self.allowed_ips.remove(&prefix);
        }
    }

    /// All prefixes with their owners.
    pub fn allowed_ips(&self) -> impl Iterator<Item = (&IpNet, PeerId)> {
        self.allowed_ips.iter()
    }

    /// The owner of exactly this prefix.
    pub fn owner(&self, prefix: &IpNet) -> Option<PeerId> {
        self.allowed_ips.get(prefix)
    }

    /// Whether an address or prefix lies in a remote prefix.
    pub fn is_remote(&self, prefix: impl Into<IpNet>) -> bool {
        self.allowed_ips.covering(prefix.into()).next().is_some()
    }

    /// All remote prefixes.
    pub fn remote(&self) -> BTreeSet<IpNet> {
        self.allowed_ips.iter().map(|(prefix, _)| *prefix).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    use std::time::SystemTime;

    use penstock_dataplane::clock::Millis;
    use penstock_proto::{Gateway, PeerConfig, clamped_private_key};
    use rand::SeedableRng;

    /// A handshake state with peers of these keys, and the list of them.
    pub fn peers(keys: &[u8]) -> (Gateway, Peers) {
        let now = Instant::now();
        let rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut proto = Gateway::new(clamped_private_key([1; 32]), rng, now, SystemTime::now());
        let mut peers = Peers::default();
        for key in keys {
            let key = PublicKey::from_bytes([*key; 32]);
            let id = proto.add_peer(now, key.into(), PeerConfig::default()).unwrap();
            let number = peers.number();
            peers.push(Peer::new(id, number, key, Origin::Profile));
        }
        (proto, peers)
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_has_one_owner() {
        let (_proto, mut peers) = peers(&[7, 8]);
        let (a, b) = (peers.list[0].id, peers.list[1].id);
        assert_eq!(peers.allow(net("10.0.0.0/8"), a), None);
        assert_eq!(peers.allow(net("10.0.0.0/8"), a), None);
        assert_eq!(peers.allow(net("10.1.0.0/16"), b), None);
        assert_eq!(peers.allow(net("10.9.9.9/8"), b), Some(a), "host bits do not make it another prefix");
        assert!(peers.of(a).unwrap().allowed_ips().is_empty());
        peers.disallow(net("10.1.0.0/16"), a);
        assert_eq!(peers.of(b).unwrap().allowed_ips().len(), 2, "only the owner can lose it");
        peers.disallow(net("10.1.0.0/16"), b);
        assert_eq!(peers.remote(), [net("10.0.0.0/8")].into());
        peers.remove(b);
        assert!(peers.remote().is_empty() && peers.iter().count() == 1);
    }

    #[test]
    fn peers_are_found_by_id_key_and_number_also_after_a_removal() {
        let (_proto, mut peers) = peers(&[7, 8, 9]);
        let first = peers.list[0].id;
        peers.remove(first);
        assert!(peers.of(first).is_none() && peers.numbered_mut(0).is_none());
        for (number, key) in [(1, 8), (2, 9)] {
            let key = PublicKey::from_bytes([key; 32]);
            let id = peers.with_key(&key).unwrap().id;
            assert_eq!(peers.of(id).unwrap().public_key, key);
            assert_eq!(peers.numbered_mut(number).unwrap().public_key, key);
            assert_eq!(peers.list[peers.place(id).unwrap()].id, id);
        }
    }

    #[test]
    fn numbers_are_never_used_again() {
        let (_proto, mut peers) = peers(&[7, 8]);
        let last = peers.list[1].id;
        peers.remove(last);
        assert_eq!(peers.number(), 2);
    }

    #[test]
    fn the_oldest_packet_goes_when_too_many_wait() {
        let (_proto, mut peers) = peers(&[7]);
        let peer = &mut peers.list[0];
        for n in 0..WAITING {
            assert!(peer.wait([n as u8].into()));
        }
        assert!(!peer.wait([255].into()));
        assert_eq!((peer.waiting.len(), peer.waiting[0][0], peer.waiting[WAITING - 1][0]), (WAITING, 1, 255));
    }

    #[test]
    fn a_flow_is_shown_every_20_s_while_it_has_data() {
        let (_proto, mut peers) = peers(&[7]);
        let peer = &mut peers.list[0];
        let start = Instant::now();
        let mut shown = Vec::new();
        for second in 0..100 {
            // Data flows for the first 50 s.
            peer.sampled.received_data = second.min(50);
            if peer.is_to_be_shown(start + Duration::from_secs(second)) {
                shown.push(second);
            }
        }
        assert_eq!(shown, [20, 40, 60]);
    }

    #[test]
    fn a_sample_tells_what_passed_and_then_nothing() {
        let (_proto, mut peers) = peers(&[7]);
        let peer = &mut peers.list[0];
        assert_eq!(peer.sample(), None);
        peer.counters.sent.count(1, 32, false, Millis(5));
        let traffic = peer.sample().unwrap().traffic;
        assert_eq!(traffic, Traffic { sent_any: true, ..Traffic::default() });
        assert_eq!(peer.sample(), None);
        peer.counters.received.count(3, 300, true, Millis(6));
        let traffic = peer.sample().unwrap().traffic;
        assert_eq!(traffic, Traffic { received_any: true, received_data: true, ..Traffic::default() });
        assert_eq!((peer.received_bytes(), peer.sent_bytes()), (300, 32));
    }
}
