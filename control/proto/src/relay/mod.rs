//! A relay for sites that cannot reach each other: which datagram goes where, without I/O.
//!
//! A relay forwards whole WireGuard datagrams and probes, unchanged, so to a site it is nothing but an endpoint of its
//! peer, and the relay sees only ciphertext. A site first binds its source address to its name ([`binding`]); datagrams
//! from unbound sources are dropped. The destination is found
//!
//! - for a handshake initiation by its MAC1, which is keyed with the responder's public key,
//! - for a probe by the receiver's id in its header,
//! - for everything else by its receiver index, which the relay has learnt from the sender index of the handshake
//!   message in the other direction, once that was answered ([`routes`]).
//!
//! Every datagram must be between two sites that the policy joins, or it is dropped and counted, and no pair may exceed
//! its [`RelayLimits::pair_bytes_per_second`].
//!
//! Bound sites are also told about the authority's revocations ([`gossip`]).
//!
//! [`client`] is the gateway's side of a binding.

pub mod binding;
pub mod client;
pub mod gossip;
mod message;
mod routes;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use x25519_dalek::{PublicKey, StaticSecret};

use crate::Bucket;
use crate::cookie::MacKeys;
use crate::messages::{
    COOKIE_REPLY, COOKIE_REPLY_LENGTH, INITIATION, INITIATION_LENGTH, RESPONSE, RESPONSE_LENGTH, TRANSPORT_DATA,
};
use crate::path::{Envelope, FIRST_BYTE, SiteId};
use crate::trust::Document;

use binding::Bindings;
use gossip::Board;
use message::Kind;
pub use message::{BIND_LENGTH, BOUND_LENGTH, CHALLENGE_LENGTH};
use routes::Routes;

/// Where a relay takes streams from sites whose UDP is blocked: a WebSocket over TLS.
pub const PATH: &str = "/v1/relay";
/// The WebSocket subprotocol of such a stream (RFC 6455, section 1.9). Each binary frame is one datagram.
pub const SUBPROTOCOL: &str = "penstock.relay.v1";
/// Longest datagram, in bytes: the payload of an Ethernet frame of 9000 bytes.
pub const DATAGRAM_LIMIT: usize = 9000;

/// Shortest transport data: a keepalive.
const DATA_LENGTHS: std::ops::RangeInclusive<usize> = 32..=DATAGRAM_LIMIT;
/// Initiations per second of one site that are examined: each costs a MAC for every peer of the site.
const INITIATIONS_PER_SECOND: u64 = 20;
/// Initiations at once: after a restart of the relay, a site initiates to all its peers.
const INITIATION_BURST: u64 = 200;

/// Where a datagram comes from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A UDP address.
    Udp(SocketAddr),
    /// A TLS connection, by the caller's number for it. Numbers are never reused.
    Stream(u64),
}

/// The most that a relay carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// Bytes of datagrams a second from one site to another.
    pub pair_bytes_per_second: u64,
    /// Burst, in bytes.
    pub pair_burst: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self { pair_bytes_per_second: 12_500_000, pair_burst: 2_500_000 }
    }
}

/// What to do with a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send it there, unchanged.
    Forward(Source),
    /// Send this back to where it came from. It is never longer than what came.
    Answer(Vec<u8>),
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RelayDrop {
    /// Neither WireGuard nor ours, or of a wrong length.
    #[error("malformed")]
    Malformed,
    /// From a source to which no site is bound.
    #[error("unbound-source")]
    UnboundSource,
    /// A bind message of a site that this relay does not know.
    #[error("unknown-site")]
    UnknownSite,
    /// A bind message that the site did not make.
    #[error("bad-proof")]
    BadProof,
    /// For nobody that the sender may talk to.
    #[error("unknown-receiver")]
    UnknownReceiver,
    /// For a site that is not bound here.
    #[error("unbound-receiver")]
    UnboundReceiver,
    /// More initiations than a site may send.
    #[error("too-many-initiations")]
    TooManyInitiations,
    /// More bytes than a pair may send.
    #[error("over-budget")]
    OverBudget,
}

impl RelayDrop {
    /// All reasons, for counters.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::UnboundSource,
        Self::UnknownSite,
        Self::BadProof,
        Self::UnknownReceiver,
        Self::UnboundReceiver,
        Self::TooManyInitiations,
        Self::OverBudget,
    ];
}

/// A relay.
pub struct Relay {
    bindings: Bindings,
    sites: HashMap<SiteId, Site>,
    routes: Routes,
    pairs: HashMap<(SiteId, SiteId), Bucket>,
    limits: RelayLimits,
    board: Board,
}

struct Site {
    public_key: PublicKey,
    mac: MacKeys,
    peers: HashSet<SiteId>,
    initiations: Bucket,
}

impl Relay {
    /// A relay that knows no sites. `private_key` is its own; sites bind themselves to its public key.
    #[must_use]
    pub fn new(private_key: StaticSecret, cookie_secret: crate::Key, limits: RelayLimits) -> Self {
        Self {
            bindings: Bindings::new(private_key, cookie_secret),
            sites: HashMap::new(),
            routes: Routes::default(),
            pairs: HashMap::new(),
            limits,
            board: Board::default(),
        }
    }

    /// Passes on these documents from now on: [`Publication::common`](crate::trust::Publication::common).
    pub fn set_documents<'a>(&mut self, documents: impl IntoIterator<Item = &'a Document>) {
        self.board = Board::new(documents);
    }

    /// Makes a site known, or changes whom it may talk to. A pair is joined only when each names the other.
    pub fn set_site(&mut self, public_key: PublicKey, peers: impl IntoIterator<Item = PublicKey>) {
        let id = SiteId::of(&public_key);
        let peers: HashSet<SiteId> =
            peers.into_iter().map(|peer| SiteId::of(&peer)).filter(|peer| *peer != id).collect();
        let site = self.site(public_key);
        let before = std::mem::replace(&mut site.peers, peers);
        let gone: Vec<SiteId> = before.difference(&self.sites[&id].peers).copied().collect();
        gone.into_iter().for_each(|peer| self.forget_pair(id, peer));
    }

    /// Makes a site known, without peers if it is new.
    pub fn add_site(&mut self, public_key: PublicKey) {
        self.site(public_key);
    }

    /// Joins two known sites, or separates them; unknown sites are ignored.
    pub fn set_pair(&mut self, one: &PublicKey, other: &PublicKey, joined: bool) {
        let (one, other) = (SiteId::of(one), SiteId::of(other));
        if one == other || !self.sites.contains_key(&one) || !self.sites.contains_key(&other) {
            return;
        }
        for (site, peer) in [(one, other), (other, one)] {
            let peers = self.sites.get_mut(&site).map(|site| &mut site.peers);
            peers.into_iter().for_each(|peers| _ = if joined { peers.insert(peer) } else { peers.remove(&peer) });
        }
        if !joined {
            self.forget_pair(one, other);
        }
    }

    /// Forgets a site: what it sends is dropped from now on.
    pub fn remove_site(&mut self, public_key: &PublicKey) {
        let id = SiteId::of(public_key);
        let Some(site) = self.sites.remove(&id) else { return };
        self.bindings.remove(id);
        for peer in site.peers {
            self.sites.get_mut(&peer).into_iter().for_each(|peer| _ = peer.peers.remove(&id));
            self.forget_pair(id, peer);
        }
    }

    fn site(&mut self, public_key: PublicKey) -> &mut Site {
        self.sites.entry(SiteId::of(&public_key)).or_insert_with(|| Site {
            mac: MacKeys::new(&public_key),
            public_key,
            peers: HashSet::new(),
            initiations: Bucket::default(),
        })
    }

    fn forget_pair(&mut self, one: SiteId, other: SiteId) {
        for (from, to) in [(one, other), (other, one)] {
            self.routes.forget(from, to);
            self.pairs.remove(&(from, to));
        }
    }

    /// The site that is bound to this source.
    #[must_use]
    pub fn site_at(&self, now: Instant, source: Source) -> Option<SiteId> {
        self.bindings.site_of(now, source)
    }

    /// All known sites.
    pub fn sites(&self) -> impl Iterator<Item = &PublicKey> {
        self.sites.values().map(|site| &site.public_key)
    }

    /// The sites that this site names: it may talk to those that name it too.
    pub fn peers(&self, site: &PublicKey) -> impl Iterator<Item = SiteId> {
        self.sites.get(&SiteId::of(site)).into_iter().flat_map(|site| &site.peers).copied()
    }

    /// How many sites are known, and how many of them are bound.
    #[must_use]
    pub fn count(&self, now: Instant) -> (usize, usize) {
        (self.sites.len(), self.bindings.count(now))
    }

    /// A stream has ended.
    pub fn stream_closed(&mut self, stream: u64) {
        self.bindings.forget(Source::Stream(stream));
    }

    /// Decides what to do with a datagram.
    ///
    /// # Errors
    /// The reason why it is dropped.
    pub fn handle_datagram(&mut self, now: Instant, from: Source, datagram: &[u8]) -> Result<Outcome, RelayDrop> {
        let (&[first, kind, ..], len) = (datagram.first_chunk::<4>().ok_or(RelayDrop::Malformed)?, datagram.len());
        if first == FIRST_BYTE && kind == Kind::Bind as u8 {
            return self.bind(now, from, datagram);
        }
        let sender = self.bindings.site_of(now, from).ok_or(RelayDrop::UnboundSource)?;
        if first == FIRST_BYTE && kind == gossip::Kind::Ask as u8 {
            return self.board.answer(datagram).map(Outcome::Answer).ok_or(RelayDrop::Malformed);
        }
        let receiver = if first == FIRST_BYTE {
            Envelope::parse(datagram).map_err(|_| RelayDrop::Malformed)?.receiver
        } else if datagram[1..4] != [0; 3] {
            return Err(RelayDrop::Malformed);
        } else {
            match first {
                INITIATION if len == INITIATION_LENGTH => {
                    let receiver = self.receiver_of_initiation(now, sender, datagram)?;
                    self.routes.call(now, sender, receiver, word(datagram, 4));
                    receiver
                }
                RESPONSE if len == RESPONSE_LENGTH => {
                    self.routes.answer(now, sender, word(datagram, 8), word(datagram, 4))?
                }
                COOKIE_REPLY if len == COOKIE_REPLY_LENGTH => self.routes.find(now, sender, word(datagram, 4))?,
                TRANSPORT_DATA if DATA_LENGTHS.contains(&len) => self.routes.find(now, sender, word(datagram, 4))?,
                _ => return Err(RelayDrop::Malformed),
            }
        };
        if !self.joined(sender, receiver) {
            return Err(RelayDrop::UnknownReceiver);
        }
        let to = self.bindings.source_of(now, receiver).ok_or(RelayDrop::UnboundReceiver)?;
        let RelayLimits { pair_bytes_per_second, pair_burst } = self.limits;
        let budget = self.pairs.entry((sender, receiver)).or_default();
        let time = |bytes| time_of(bytes, pair_bytes_per_second);
        if budget.take(now, time(len as u64), time(pair_burst)) {
            Ok(Outcome::Forward(to))
        } else {
            Err(RelayDrop::OverBudget)
        }
    }

    fn bind(&mut self, now: Instant, from: Source, datagram: &[u8]) -> Result<Outcome, RelayDrop> {
        let bind = message::Bind::read(datagram).ok_or(RelayDrop::Malformed)?;
        let site = self.sites.get(&bind.site).ok_or(RelayDrop::UnknownSite)?;
        self.bindings.handle(now, from, &bind, &site.public_key).map(Outcome::Answer)
    }

    /// Whether these two may talk: each names the other.
    #[must_use]
    pub fn are_joined(&self, one: &PublicKey, other: &PublicKey) -> bool {
        self.joined(SiteId::of(one), SiteId::of(other))
    }

    fn joined(&self, a: SiteId, b: SiteId) -> bool {
        let names = |a: SiteId, b: SiteId| self.sites.get(&a).is_some_and(|site| site.peers.contains(&b));
        names(a, b) && names(b, a)
    }

    fn receiver_of_initiation(&mut self, now: Instant, sender: SiteId, datagram: &[u8]) -> Result<SiteId, RelayDrop> {
        let site = self.sites.get_mut(&sender).ok_or(RelayDrop::UnboundSource)?;
        let time = |initiations| time_of(initiations, INITIATIONS_PER_SECOND);
        if !site.initiations.take(now, time(1), time(INITIATION_BURST)) {
            return Err(RelayDrop::TooManyInitiations);
        }
        let site = &self.sites[&sender];
        let is_for = |peer: &&SiteId| self.sites.get(peer).is_some_and(|peer| peer.mac.verify(datagram).is_ok());
        site.peers.iter().find(is_for).copied().ok_or(RelayDrop::UnknownReceiver)
    }
}

/// Whether a datagram is a session's data. Everything else is needed to start a session, or to find a path.
#[must_use]
pub fn is_data(datagram: &[u8]) -> bool {
    datagram.starts_with(&[TRANSPORT_DATA, 0, 0, 0])
}

/// The little-endian number at `at` of a message whose length was checked.
fn word(datagram: &[u8], at: usize) -> u32 {
    datagram[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// How long this many bytes take at that rate.
fn time_of(amount: u64, per_second: u64) -> Duration {
    let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(nanoseconds.try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
