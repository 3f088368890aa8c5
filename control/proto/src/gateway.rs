//! The gateway: its peers, its indices, its clocks, and the calls by which the shell drives it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use rand::{CryptoRng, RngCore};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::clock::Clock;
use crate::constants::Timings;
use crate::cookie::{CookieSecret, MacKeys};
use crate::event::{Event, Transmit};
use crate::limiter::{Limiter, Load};
use crate::noise::Timestamp;
use crate::peer::{Peer, PeerConfig, PeerId, Peers};
use crate::session::Session;
use crate::timers::Timers;
use crate::{Key, Suite};

/// One end of any number of WireGuard peers.
pub struct Gateway {
    pub(crate) private_key: StaticSecret,
    pub(crate) public_key: PublicKey,
    pub(crate) mac_keys: MacKeys,
    pub(crate) timings: Timings,
    pub(crate) rng: Box<dyn CryptoRng + Send>,
    pub(crate) cookie_secret: CookieSecret,
    pub(crate) load: Load,
    pub(crate) limiter: Limiter,
    peers: Peers,
    /// Every live receiver index: of pending initiations and of sessions, at most four per peer.
    pub(crate) indices: HashMap<u32, PeerId>,
    /// The next deadline of every peer that has one.
    deadlines: BTreeSet<(Instant, PeerId)>,
    clock: Clock,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) events: VecDeque<Event>,
}

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddPeerError {
    /// The public key is the gateway's own.
    OwnKey,
    /// There is a peer with this public key.
    Duplicate(PeerId),
}

impl Gateway {
    /// A gateway without peers. `wall` is what the wall clock shows at `now`.
    pub fn new(
        private_key: StaticSecret,
        rng: impl CryptoRng + Send + 'static,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        Self::with_timings(private_key, rng, now, wall, Timings::default())
    }

    /// The same with other timings. For tests only: see [`Timings`].
    #[doc(hidden)]
    pub fn with_timings(
        private_key: StaticSecret,
        rng: impl CryptoRng + Send + 'static,
        now: Instant,
        wall: SystemTime,
        timings: Timings,
    ) -> Self {
        let mut rng: Box<dyn CryptoRng + Send> = Box::new(rng);
        let public_key = PublicKey::from(&private_key);
        Self {
            private_key,
            public_key,
            mac_keys: MacKeys::new(&public_key),
            timings,
            cookie_secret: CookieSecret::new(timings.cookie_secret_lifetime),
            load: Load::default(),
            limiter: Limiter::new(&mut rng),
            rng,
            peers: Peers::default(),
            indices: HashMap::new(),
            deadlines: BTreeSet::new(),
            clock: Clock::new(now, wall),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Our static public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Our static private key, which WireGuard's configuration API shows to root.
    #[must_use]
    pub fn private_key(&self) -> &StaticSecret {
        &self.private_key
    }

    /// Takes another identity. All sessions end; a peer whose public key is the new one is removed and returned.
    /// Setting the key that we already have changes nothing.
    pub fn set_private_key(&mut self, private_key: StaticSecret) -> Option<PeerId> {
        let public_key = PublicKey::from(&private_key);
        if public_key == self.public_key {
            return None;
        }
        self.public_key = public_key;
        self.private_key = private_key;
        self.mac_keys = MacKeys::new(&self.public_key);
        let ourselves = self.peer_of(&self.public_key);
        if let Some(id) = ourselves {
            self.remove_peer(id);
        }
        for id in self.peers.ids() {
            self.forget_sessions(id);
            if let Some(peer) = self.peers.named_mut(id) {
                peer.set_own_key(&self.private_key, &self.public_key);
            }
            self.reschedule(id);
        }
        ourselves
    }

    /// Sets the wall clock that timestamps initiations and dates handshakes. The clock may step; timestamps of
    /// initiations never go back as long as the gateway exists.
    pub fn set_clock(&mut self, now: Instant, wall: SystemTime) {
        self.clock.set(now, wall);
    }

    /// Adds a peer. With a persistent keepalive and an endpoint, a handshake starts at once.
    ///
    /// # Errors
    /// [`AddPeerError::OwnKey`], [`AddPeerError::Duplicate`]. A public key of low order is not an error: its handshakes
    /// are never answered.
    pub fn add_peer(
        &mut self,
        now: Instant,
        public_key: PublicKey,
        config: PeerConfig,
    ) -> Result<PeerId, AddPeerError> {
        if public_key.as_bytes() == self.public_key.as_bytes() {
            return Err(AddPeerError::OwnKey);
        }
        if let Some(id) = self.peer_of(&public_key) {
            return Err(AddPeerError::Duplicate(id));
        }
        let id = self.peers.add(public_key, config);
        if let Some(peer) = self.peers.named_mut(id) {
            peer.set_own_key(&self.private_key, &self.public_key);
            peer.timers.persistent = peer.persistent_keepalive().map(|_| now);
        }
        self.reschedule(id);
        Ok(id)
    }

    /// Removes a peer; its sessions expire.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.forget_sessions(id);
        if let Some(at) = self.peers.remove(id).and_then(|peer| peer.scheduled) {
            self.deadlines.remove(&(at, id));
        }
    }

    /// Changes the preshared key, from the next handshake on; existing sessions go on.
    pub fn set_preshared_key(&mut self, id: PeerId, preshared_key: Option<Key>) {
        if let Some(peer) = self.peers.named_mut(id) {
            peer.config.preshared_key = preshared_key;
        }
    }

    /// Changes the suites, from the next handshake on; existing sessions go on. See [`PeerConfig`].
    pub fn set_suite(&mut self, id: PeerId, suite: Suite, any_suite: bool) {
        if let Some(peer) = self.peers.named_mut(id) {
            peer.config.suite = suite;
            peer.config.any_suite = any_suite;
        }
    }

    /// Changes the endpoint. No [`Event::EndpointChanged`] follows, since the caller knows.
    pub fn set_endpoint(&mut self, id: PeerId, endpoint: Option<SocketAddr>) {
        if let Some(peer) = self.peers.named_mut(id) {
            peer.config.endpoint = endpoint;
            peer.local = None;
        }
    }

    /// Changes the interval of persistent keepalives; if there is one, the first keepalive is sent at once.
    pub fn set_persistent_keepalive(&mut self, now: Instant, id: PeerId, interval: Option<Duration>) {
        if let Some(peer) = self.peers.named_mut(id) {
            peer.config.persistent_keepalive = interval;
            peer.timers.persistent = peer.persistent_keepalive().map(|_| now);
        }
        self.reschedule(id);
    }

    /// A peer by its id.
    #[must_use]
    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.named(id)
    }

    /// The id of the peer with this public key.
    #[must_use]
    pub fn peer_of(&self, public_key: &PublicKey) -> Option<PeerId> {
        self.peers.by_key(public_key)
    }

    /// The peer that owns a live receiver index.
    #[must_use]
    pub fn peer_of_index(&self, local_index: u32) -> Option<PeerId> {
        self.indices.get(&local_index).copied()
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    /// How many receiver indices are in use: at most four per peer.
    #[must_use]
    pub fn live_indices(&self) -> usize {
        self.indices.len()
    }

    /// The next datagram to send. Call this until it returns `None` after every `handle_*` call, after the events.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event. Call this until it returns `None` after every `handle_*` call and every change of peers or keys.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Does everything that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Each due deadline is handled once: one that is set meanwhile waits for the next call.
        let due: Vec<PeerId> = self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        for id in due {
            self.peer_timeout(now, id);
            self.reschedule(id);
        }
    }

    pub(crate) fn named_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.named_mut(id)
    }

    /// To be called after anything that may have moved a deadline of this peer.
    pub(crate) fn reschedule(&mut self, id: PeerId) {
        let Some(peer) = self.peers.named_mut(id) else {
            return;
        };
        let deadline = peer.deadline(&self.timings);
        if deadline != peer.scheduled {
            if let Some(at) = peer.scheduled {
                self.deadlines.remove(&(at, id));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, id));
            }
            peer.scheduled = deadline;
        }
    }

    /// A new index that belongs to no live session or initiation.
    pub(crate) fn reserve_index(&mut self, id: PeerId) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if let Entry::Vacant(vacant) = self.indices.entry(index) {
                vacant.insert(id);
                return index;
            }
        }
    }

    pub(crate) fn random_secret(&mut self) -> StaticSecret {
        let mut bytes = Key::zero();
        self.rng.fill_bytes(bytes.as_mut());
        StaticSecret::from(*bytes.as_bytes())
    }

    pub(crate) fn end_session(&mut self, peer: PeerId, session: Option<Session>) {
        if let Some(Session { local_index, .. }) = session {
            self.indices.remove(&local_index);
            self.events.push_back(Event::SessionExpired { peer, local_index });
        }
    }

    pub(crate) fn drop_pending(&mut self, id: PeerId) {
        if let Some((initiator, _)) = self.named_mut(id).and_then(|peer| peer.pending.take()) {
            self.indices.remove(&initiator.index());
        }
    }

    fn forget_sessions(&mut self, id: PeerId) {
        self.drop_pending(id);
        let Some(peer) = self.peers.named_mut(id) else {
            return;
        };
        let persistent = peer.timers.persistent;
        peer.timers = Timers { persistent, ..Default::default() };
        for session in peer.sessions.expire(|_| true) {
            self.end_session(id, session);
        }
    }

    pub(crate) fn wall(&self, now: Instant) -> SystemTime {
        self.clock.wall(now)
    }

    pub(crate) fn stamp(&mut self, now: Instant) -> Timestamp {
        self.clock.stamp(now)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("public_key", self.public_key.as_bytes())
            .field("peers", &self.peers.iter().count())
            .field("indices", &self.indices.len())
            .finish_non_exhaustive()
    }
}
