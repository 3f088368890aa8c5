//! A peer: its configuration, and the state of the handshakes with it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use x25519_dalek::{PublicKey, StaticSecret};

use crate::constants::Timings;
use crate::cookie::{CookieJar, MacKeys};
use crate::noise::{Initiator, Timestamp, diffie_hellman};
use crate::session::Sessions;
use crate::timers::Timers;
use crate::{Key, Suite};

/// Identifies a peer of a [`Gateway`](crate::Gateway). The id of a removed peer is never used for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// The configuration of a peer, except its public key.
#[derive(Clone, Debug, Default)]
pub struct PeerConfig {
    /// Mixed into every handshake; all zeros are the same as none.
    pub preshared_key: Option<Key>,
    /// Where the first initiation goes. Without one, the peer has to initiate.
    pub endpoint: Option<SocketAddr>,
    /// Interval at which something is sent in any case, to keep a NAT's mapping alive. `None` and zero both mean off.
    pub persistent_keepalive: Option<Duration>,
    /// The endpoint is only what [`set_endpoint`](crate::Gateway::set_endpoint) says, wherever packets come from,
    /// because somebody else, such as a [`PathAgent`](crate::path::PathAgent), decides on the path.
    pub fixed_endpoint: bool,
    /// The suite of the handshakes that we initiate. We never initiate one with the other suite.
    pub suite: Suite,
    /// Whether the peer may also initiate handshakes with the other suite.
    pub any_suite: bool,
}

/// A peer as its gateway sees it.
pub struct Peer {
    pub(crate) id: PeerId,
    pub(crate) public_key: PublicKey,
    pub(crate) config: PeerConfig,
    /// Our address that the peer last sent to.
    pub(crate) local: Option<IpAddr>,
    pub(crate) mac_keys: MacKeys,
    /// The product of both static keys; `None` when the peer's is of low order.
    pub(crate) static_static: Option<Key>,
    /// Our public key is the lower of the two, which decides between simultaneous handshakes.
    pub(crate) we_lead: bool,
    /// The timestamp of the newest initiation that we have answered.
    pub(crate) latest_timestamp: Option<Timestamp>,
    pub(crate) last_initiation: Option<Instant>,
    pub(crate) last_handshake: Option<SystemTime>,
    /// Our initiation that waits for its response, and when it was sent.
    pub(crate) pending: Option<(Box<Initiator>, Instant)>,
    pub(crate) sessions: Sessions,
    pub(crate) cookies: CookieJar,
    pub(crate) timers: Timers,
    /// The deadline under which the gateway has filed this peer.
    pub(crate) scheduled: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(id: PeerId, public_key: PublicKey, config: PeerConfig) -> Self {
        Self {
            id,
            public_key,
            config,
            local: None,
            mac_keys: MacKeys::new(&public_key),
            static_static: None,
            we_lead: false,
            latest_timestamp: None,
            last_initiation: None,
            last_handshake: None,
            pending: None,
            sessions: Sessions::default(),
            cookies: CookieJar::default(),
            timers: Timers::default(),
            scheduled: None,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Its static public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The preshared key, which WireGuard's configuration API shows to root.
    #[must_use]
    pub fn preshared_key(&self) -> Option<&Key> {
        self.config.preshared_key.as_ref()
    }

    /// Where an authenticated packet last came from, or what was configured.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.config.endpoint
    }

    /// The interval of persistent keepalives, never zero.
    #[must_use]
    pub fn persistent_keepalive(&self) -> Option<Duration> {
        self.config.persistent_keepalive.filter(|interval| !interval.is_zero())
    }

    /// When the last handshake was completed; for the responder, when the initiator's first packet came.
    #[must_use]
    pub fn last_handshake(&self) -> Option<SystemTime> {
        self.last_handshake
    }

    /// Our index of the session to send on, if there is one.
    #[must_use]
    pub fn current_session(&self) -> Option<u32> {
        self.sessions.current.map(|session| session.local_index)
    }

    /// Whether a handshake that we initiated is under way.
    #[must_use]
    pub fn handshake_under_way(&self) -> bool {
        self.timers.retry.is_some()
    }

    /// Computes what depends on our own key; to be called when that changes.
    pub(crate) fn set_own_key(&mut self, private: &StaticSecret, public: &PublicKey) {
        self.static_static = diffie_hellman(private, &self.public_key).ok();
        self.we_lead = public.as_bytes() < self.public_key.as_bytes();
        self.cookies = CookieJar::default();
    }

    /// When this peer next needs attention.
    pub(crate) fn deadline(&self, timings: &Timings) -> Option<Instant> {
        let expiry = self.sessions.iter().map(|session| session.born + timings.reject_after_time);
        expiry.chain(self.timers.next()).min()
    }

    /// Something was sent or received: the persistent keepalive's interval starts again.
    pub(crate) fn traversed(&mut self, now: Instant) {
        self.timers.persistent = self.persistent_keepalive().map(|interval| now + interval);
    }
}

/// The peers, in slots that are never given back, so that the ids of removed peers are recognised.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Slot>,
    by_key: HashMap<[u8; 32], PeerId>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    peer: Option<Box<Peer>>,
}

impl Peers {
    pub fn add(&mut self, public_key: PublicKey, config: PeerConfig) -> PeerId {
        let free = self.slots.iter().position(|slot| slot.peer.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        let id = PeerId { index: index as u32, generation: slot.generation };
        slot.peer = Some(Box::new(Peer::new(id, public_key, config)));
        self.by_key.insert(public_key.to_bytes(), id);
        id
    }

    pub fn remove(&mut self, id: PeerId) -> Option<Box<Peer>> {
        self.named(id)?;
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.generation = slot.generation.wrapping_add(1);
        let peer = slot.peer.take()?;
        self.by_key.remove(peer.public_key.as_bytes());
        Some(peer)
    }

    pub fn named(&self, id: PeerId) -> Option<&Peer> {
        let slot = self.slots.get(id.index as usize)?;
        slot.peer.as_deref().filter(|_| slot.generation == id.generation)
    }

    pub fn named_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.peer.as_deref_mut().filter(|peer| peer.id == id)
    }

    pub fn ids(&self) -> Vec<PeerId> {
        self.iter().map(Peer::id).collect()
    }

    pub fn by_key(&self, public_key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(public_key.as_bytes()).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().filter_map(|slot| slot.peer.as_deref())
    }
}
