//! The agent: its peers, its limits, and the calls by which the shell drives it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use rand::{CryptoRng, RngCore};
use x25519_dalek::{PublicKey, StaticSecret};

use super::constants::{
    MAX_RELAYS, PathTimings, STRANGER_BURST, STRANGER_PROBES_PER_SECOND, TARGET_BURST, TARGET_PINGS_PER_SECOND,
};
use super::limits::{Budget, PerAddress};
use super::peer::Peer;
use super::probe::{Envelope, Probe, ProbeKey, ProbeReject, SiteId};
use super::rounds::digest;
use super::{Path, PathEvent, PathTransmit, Reason, Relay, SocketId, Train};
use crate::coordination::{Candidate, NatType};
use crate::pmtu::{ByteBudget, LinkMtu, Links, PathMtu, TooBig};
use crate::relay::DATAGRAM_LIMIT;
use crate::{Endpoint, Traffic};

/// How many times a peer is settled at one instant: a path dies, a round starts, its probes are sent. Whatever is still
/// due then waits for the next timeout.
const MAX_SETTLES: u32 = 4;

/// The configuration of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathConfig {
    /// Whether ports may be guessed when one of the NATs has endpoint-dependent mapping.
    pub birthday: bool,
    /// The profile's `Mtu`: the largest packet inside the tunnel, whatever the path.
    pub pinned_mtu: Option<u16>,
    /// When things happen.
    pub timings: PathTimings,
}

impl Default for PathConfig {
    fn default() -> Self {
        Self { birthday: true, pinned_mtu: None, timings: PathTimings::default() }
    }
}

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddSiteError {
    /// The public key is our own.
    #[error("the peer has our own public key")]
    OwnKey,
    /// There is already a peer with this public key, or with one that has the same [`SiteId`].
    #[error("there is already such a peer")]
    Duplicate,
    /// A point of low order: anyone can compute the secret shared with it.
    #[error("the peer's public key is of low order")]
    LowOrderKey,
}

/// Finds the paths of one gateway to its peers.
pub struct PathAgent {
    private: StaticSecret,
    public: PublicKey,
    peers: BTreeMap<SiteId, Peer>,
    deadlines: BTreeSet<(Instant, SiteId)>,
    strangers: PerAddress,
    shared: Shared,
}

/// What all peers share.
pub(crate) struct Shared {
    pub site: SiteId,
    pub rng: Box<dyn CryptoRng + Send>,
    pub config: PathConfig,
    pub nat: NatType,
    /// The digest of the candidates that we have signalled, if we have.
    pub local: Option<u32>,
    pub relays: Vec<Relay>,
    pub budget: Budget,
    /// Limits pings to addresses that have not answered yet.
    pub targets: PerAddress,
    pub links: Links,
    /// The longest datagram that we can use.
    pub receive_limit: usize,
    pub sized_budget: ByteBudget,
    pub transmits: VecDeque<PathTransmit>,
    pub events: VecDeque<PathEvent>,
}

impl PathAgent {
    /// An agent without peers and relays.
    pub fn new(private: StaticSecret, config: PathConfig, rng: impl CryptoRng + Send + 'static) -> Self {
        let mut rng: Box<dyn CryptoRng + Send> = Box::new(rng);
        let public = PublicKey::from(&private);
        let strangers = PerAddress::new(&mut rng, STRANGER_PROBES_PER_SECOND, STRANGER_BURST);
        let targets = PerAddress::new(&mut rng, TARGET_PINGS_PER_SECOND, TARGET_BURST);
        let shared = Shared {
            site: SiteId::of(&public),
            rng,
            config,
            nat: NatType::default(),
            local: None,
            relays: Vec::new(),
            budget: Budget::default(),
            targets,
            links: Links::default(),
            receive_limit: DATAGRAM_LIMIT,
            sized_budget: ByteBudget::of_all(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        Self { private, public, peers: BTreeMap::new(), deadlines: BTreeSet::new(), strangers, shared }
    }

    /// Adds a peer. A relay is selected for it at once, if there is one.
    ///
    /// # Errors
    /// See [`AddSiteError`].
    pub fn add_peer(&mut self, now: Instant, public_key: PublicKey) -> Result<(), AddSiteError> {
        self.insert(public_key)?;
        self.with(now, SiteId::of(&public_key), |peer, shared| peer.set_relays(shared));
        Ok(())
    }

    fn insert(&mut self, public_key: PublicKey) -> Result<(), AddSiteError> {
        if public_key == self.public {
            return Err(AddSiteError::OwnKey);
        }
        let site = SiteId::of(&public_key);
        if self.peers.contains_key(&site) {
            return Err(AddSiteError::Duplicate);
        }
        let key = ProbeKey::new(&self.private, &self.public, &public_key).ok_or(AddSiteError::LowOrderKey)?;
        self.peers.insert(site, Peer::new(public_key, site, key));
        Ok(())
    }

    /// Sets the endpoint of a peer whose path is not chosen here, and the session with it, if there is one; adds the
    /// peer if it is new. Only its path's MTU is searched for, and no [`PathEvent::Selected`] comes. To be called
    /// whenever its endpoint or session changes. All peers of this agent must be of this kind; relays, candidates and
    /// changes of the network do not concern it.
    ///
    /// # Errors
    /// See [`AddSiteError`].
    pub fn set_endpoint(
        &mut self,
        now: Instant,
        public_key: &PublicKey,
        endpoint: Endpoint,
        session: Option<u32>,
    ) -> Result<(), AddSiteError> {
        let site = SiteId::of(public_key);
        let known = self.peers.get(&site).filter(|peer| peer.public_key == *public_key);
        match known {
            Some(peer) if peer.is_given(endpoint, session) => return Ok(()),
            Some(_) => {}
            None => self.insert(*public_key)?,
        }
        self.with(now, site, |peer, _| peer.give(endpoint, session));
        Ok(())
    }

    /// Removes the peers that are not among those to keep.
    pub fn retain_peers(&mut self, keep: impl Fn(&PublicKey) -> bool) {
        let keys = self.peers.values().map(|peer| peer.public_key);
        keys.filter(|key| !keep(key)).collect::<Vec<_>>().iter().for_each(|key| self.remove_peer(key));
    }

    /// Removes a peer and forgets its key.
    pub fn remove_peer(&mut self, public_key: &PublicKey) {
        let site = SiteId::of(public_key);
        if let Some(mut peer) = self.peers.remove(&site) {
            if let Some(at) = peer.scheduled {
                self.deadlines.remove(&(at, site));
            }
            peer.close_sockets(&mut self.shared);
        }
    }

    /// Sets what a peer has signalled about itself. When its addresses have changed, they are tried at once.
    pub fn set_remote(&mut self, now: Instant, public_key: &PublicKey, candidates: &[Candidate], nat: NatType) {
        self.with(now, SiteId::of(public_key), |peer, shared| peer.set_remote(now, shared, candidates, nat));
    }

    /// Sets what the coordinator tells the peers about us. To be called once STUN has answered or has been given up: no
    /// probe may go from behind one NAT to another before our own external address is known.
    pub fn set_local(&mut self, now: Instant, candidates: &[Candidate], nat: NatType) {
        self.shared.local = Some(digest(candidates));
        self.shared.nat = nat;
        self.each(now, |_, _| {});
    }

    /// Whether ports may be guessed from now on. An attempt under way runs to its end.
    pub fn set_birthday(&mut self, birthday: bool) {
        self.shared.config.birthday = birthday;
    }

    /// Sets the profile's `Mtu`.
    pub fn set_pinned_mtu(&mut self, now: Instant, pinned: Option<u16>) {
        if std::mem::replace(&mut self.shared.config.pinned_mtu, pinned) != pinned {
            self.each(now, |_, _| {});
        }
    }

    /// Sets the relays that we are bound at, the best first.
    pub fn set_relays(&mut self, now: Instant, relays: &[Relay]) {
        self.shared.relays = relays.iter().copied().take(MAX_RELAYS).collect();
        self.each(now, |peer, shared| peer.set_relays(shared));
    }

    /// Sets the links that lead to the peers and relays; to be called whenever one changes. Until the first call, path
    /// MTUs are not searched for. A local address that stands for a relay behind TLS has the real link's MTU.
    pub fn set_links(&mut self, now: Instant, links: &[LinkMtu]) {
        self.shared.links = Links::new(links);
        self.each(now, |_, _| {});
    }

    /// Sets the longest datagram, in bytes of UDP payload, that every port of the data plane can receive: longer probes
    /// from the peers are not answered. At first it is [`DATAGRAM_LIMIT`].
    pub fn set_receive_limit(&mut self, length: usize) {
        self.shared.receive_limit = length;
    }

    /// Takes an ICMP message about a datagram of ours to a peer or relay; `is_receiver` knows the receiver indices with
    /// which the data plane sends to a peer. The message is a hint that is tried out; it is believed only where nobody
    /// answers probes.
    pub fn handle_too_big(&mut self, now: Instant, told: &TooBig<'_>, is_receiver: impl Fn(&PublicKey, u32) -> bool) {
        if !told.is_plausible() {
            return;
        }
        let meant = self.peers.iter().filter(|(_, peer)| peer.sizes.go_to(told.to));
        for site in meant.map(|(site, _)| *site).collect::<Vec<_>>() {
            self.with(now, site, |peer, _| {
                let proven = told.is_proven(|index| is_receiver(&peer.public_key, index));
                peer.handle_too_big(now, told, proven);
            });
        }
    }

    /// How large packets to a peer may be on its path, once the links are known.
    #[must_use]
    pub fn mtu(&self, public_key: &PublicKey) -> Option<PathMtu> {
        self.peers.get(&SiteId::of(public_key))?.sizes.reported
    }

    /// Takes a datagram that begins with [`FIRST_BYTE`](super::FIRST_BYTE) and came from `from` to `socket`.
    ///
    /// # Errors
    /// The reason why it was dropped; nothing is sent in answer.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), ProbeReject> {
        let envelope = Envelope::parse(datagram)?;
        if envelope.receiver != self.shared.site {
            return Err(ProbeReject::Receiver);
        }
        let peer = self.peers.get_mut(&envelope.sender).ok_or(ProbeReject::Sender)?;
        // Known addresses are not limited: forgeries in a peer's name could otherwise lock the peer out.
        if !peer.knows(from) && !self.strangers.allow(now, from.ip()) {
            return Err(ProbeReject::RateLimited);
        }
        let result = match peer.open(&envelope)? {
            Probe::Ping(ping) => peer.handle_ping(now, &mut self.shared, socket, from, ping),
            Probe::Pong(pong) => peer.handle_pong(now, socket, from, pong),
            Probe::SizedPing(ping) => peer.handle_sized_ping(now, &mut self.shared, socket, from, ping),
            Probe::SizedPong(pong) => peer.handle_sized_pong(now, &mut self.shared, socket, from, pong),
        };
        self.with(now, envelope.sender, |_, _| {});
        result
    }

    /// Makes `count` pings to a peer, of the size that passes and not above `longest`. The shell sends them, together or
    /// one by one, to learn what becomes of them; each answer is a [`PathEvent::Arrived`]. Answers to earlier ones are
    /// no longer waited for. `None`: it is not known how large they may be, or they would not leave by the tunnel's own
    /// socket.
    pub fn make_train(&mut self, public_key: &PublicKey, count: usize, longest: u16) -> Option<Train> {
        self.peers.get_mut(&SiteId::of(public_key))?.make_train(&mut self.shared, count, longest)
    }

    /// Notes a peer's traffic, to be reported at least every second while there is any: while datagrams are sent, the
    /// path is watched closely.
    pub fn handle_traffic(&mut self, now: Instant, public_key: &PublicKey, traffic: Traffic) {
        if traffic.sent_any {
            self.with(now, SiteId::of(public_key), |peer, _| {
                peer.traffic = Some(now);
                peer.sizes.note_traffic(now, traffic);
            });
        }
    }

    /// Takes the sockets that [`PathEvent::OpenSockets`] asked for; an empty list if they could not be opened.
    pub fn handle_sockets(&mut self, now: Instant, public_key: &PublicKey, sockets: Vec<SocketId>) {
        let site = SiteId::of(public_key);
        if self.peers.contains_key(&site) {
            self.with(now, site, |peer, shared| peer.hold_sockets(now, shared, sockets));
        } else {
            self.shared.events.push_back(PathEvent::CloseSockets { sockets });
        }
    }

    /// The link, an address or the NAT has changed: peers fall back to their relays, and all addresses are tried again.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.each(now, |peer, shared| peer.handle_network_change(now, shared));
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<SiteId> = self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        for site in due {
            self.with(now, site, |_, _| {});
        }
    }

    /// The next probe to send. Call this until it returns `None` after every other call, after the events.
    pub fn poll_transmit(&mut self) -> Option<PathTransmit> {
        self.shared.transmits.pop_front()
    }

    /// The next event. Call this until it returns `None` after every other call.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.shared.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A peer's path and its reason, and the round trip on it if it is known.
    #[must_use]
    pub fn path(&self, public_key: &PublicKey) -> Option<(Path, Reason, Option<std::time::Duration>)> {
        let peer = self.peers.get(&SiteId::of(public_key))?;
        let (path, reason) = peer.reported?;
        Some((path, reason, peer.round_trip()))
    }

    /// The paths to a peer that answer, each with its round trip.
    pub fn answering(&self, public_key: &PublicKey) -> impl Iterator<Item = (Path, std::time::Duration)> + '_ {
        let checks = self.peers.get(&SiteId::of(public_key)).into_iter().flat_map(|peer| &peer.checks);
        checks.filter_map(|check| Some((check.path(), check.round_trip()?)))
    }

    fn each(&mut self, now: Instant, mut change: impl FnMut(&mut Peer, &mut Shared)) {
        let sites: Vec<SiteId> = self.peers.keys().copied().collect();
        for site in sites {
            self.with(now, site, &mut change);
        }
    }

    /// Changes a peer, does what is due because of that, and sets its deadline.
    fn with(&mut self, now: Instant, site: SiteId, change: impl FnOnce(&mut Peer, &mut Shared)) {
        let Some(peer) = self.peers.get_mut(&site) else {
            return;
        };
        change(peer, &mut self.shared);
        peer.settle(now, &mut self.shared);
        // Each step may make something else due, such as a new round after a path's death.
        for _ in 0..MAX_SETTLES {
            if peer.deadline(now, &self.shared).is_none_or(|at| at > now) {
                break;
            }
            peer.settle(now, &mut self.shared);
        }
        let deadline = peer.deadline(now, &self.shared);
        if deadline != peer.scheduled {
            if let Some(at) = peer.scheduled {
                self.deadlines.remove(&(at, site));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, site));
            }
            peer.scheduled = deadline;
        }
    }
}

impl Shared {
    pub fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

impl fmt::Debug for PathAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathAgent")
            .field("public", self.public.as_bytes())
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
