//! A handshake message arrives: from the datagram to the session.
//!
//! Cheap checks come first: length, MAC1, load, and only then curve arithmetic. Every way out is a named [`Reject`],
//! and only [`Reject::Suite`] changes a peer.

use std::time::Instant;

use crate::constants::INITIATION_INTERVAL;
use crate::cookie::verify_mac2;
use crate::event::{Contents, Endpoint, Event, Transmit};
use crate::gateway::Gateway;
use crate::messages::{CookieReply, Initiation, Message, Response};
use crate::noise::{Claim, Timestamp, TransportKeys};
use crate::peer::PeerId;
use crate::session::{Role, Session, SessionKeys, Settled};
use crate::suite::Suite;
use crate::wipe::wiped;

/// Why a datagram was answered with silence, or with a cookie reply only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// No bytes.
    Empty,
    /// The first byte is not a message type, or the reserved bytes are not zero.
    UnknownType,
    /// Type 4, which is the data plane's.
    TransportData,
    /// Not the exact length of its type.
    Length,
    /// MAC1 is wrong: the sender doesn't know our public key, or the datagram was damaged.
    Mac1,
    /// Under load, and MAC2 is wrong or missing: a cookie reply was sent.
    UnderLoad,
    /// Under load, and the source has used up its share of handshakes.
    RateLimited,
    /// A Diffie-Hellman product would not depend on our key.
    LowOrderKey,
    /// An initiation that doesn't decrypt.
    Initiation,
    /// An initiation with a key that is not a peer's.
    UnknownPeer,
    /// An authentic initiation with a suite that the peer may not use.
    Suite,
    /// An initiation that is no newer than one we have seen.
    Replay,
    /// An initiation too soon after another from the same peer.
    TooFrequent,
    /// A response or a cookie reply to nothing that we wait for.
    UnknownIndex,
    /// A response that does not decrypt: forged, or made with a different preshared key.
    Response,
    /// A cookie reply that does not decrypt, or does not refer to the last message we sent.
    CookieReply,
}

impl Reject {
    /// All reasons.
    pub const ALL: [Self; 16] = [
        Self::Empty,
        Self::UnknownType,
        Self::TransportData,
        Self::Length,
        Self::Mac1,
        Self::UnderLoad,
        Self::RateLimited,
        Self::LowOrderKey,
        Self::Initiation,
        Self::UnknownPeer,
        Self::Suite,
        Self::Replay,
        Self::TooFrequent,
        Self::UnknownIndex,
        Self::Response,
        Self::CookieReply,
    ];
}

const _: () = assert!(Reject::ALL.len() == Reject::CookieReply as usize + 1, "the last reason, and all before it");

impl Gateway {
    /// Takes a datagram of type 1, 2 or 3 that came from `from` to the tunnel's UDP port. IPv4 addresses must be given
    /// as IPv4, not mapped into IPv6, since they may become the peer's endpoint.
    ///
    /// # Errors
    /// The reason why it was dropped. [`Reject::UnderLoad`] means that a cookie reply is sent.
    pub fn handle_datagram(&mut self, now: Instant, from: impl Into<Endpoint>, datagram: &[u8]) -> Result<(), Reject> {
        let from = from.into();
        match Message::parse(datagram)? {
            Message::Initiation(initiation) => {
                self.mac_keys.verify(datagram)?;
                self.admit(now, from, datagram, initiation.sender)?;
                wiped(|| self.receive_initiation(now, from, &initiation))
            }
            Message::Response(response) => {
                self.mac_keys.verify(datagram)?;
                let id = self.waits_for(response.receiver).ok_or(Reject::UnknownIndex)?;
                self.admit(now, from, datagram, response.sender)?;
                wiped(|| self.receive_response(now, from, id, &response))
            }
            Message::CookieReply(reply) => self.receive_cookie_reply(now, &reply),
        }
    }

    /// Decides whether there is time for the curve arithmetic that this message needs.
    fn admit(&mut self, now: Instant, from: Endpoint, datagram: &[u8], sender: u32) -> Result<(), Reject> {
        if !self.load.note(now) {
            return Ok(());
        }
        let cookie = self.cookie_secret.cookie(now, from.remote, &mut self.rng);
        if verify_mac2(datagram, &cookie) {
            let allowed = self.limiter.allow(now, from.remote.ip());
            return if allowed { Ok(()) } else { Err(Reject::RateLimited) };
        }
        let reply = self.mac_keys.reply(datagram, sender, &cookie, &mut self.rng);
        let contents = Contents::new(&reply.encode());
        self.transmits.push_back(Transmit { to: from.remote, local: from.local, peer: None, contents });
        Err(Reject::UnderLoad)
    }

    fn receive_initiation(&mut self, now: Instant, from: Endpoint, initiation: &Initiation) -> Result<(), Reject> {
        let claim = Claim::open(&self.public_key, &self.private_key, initiation)?;
        let id = self.peer_of(claim.remote()).ok_or(Reject::UnknownPeer)?;
        let peer = self.peer(id).ok_or(Reject::UnknownPeer)?;
        let static_static = peer.static_static.as_ref().ok_or(Reject::LowOrderKey)?;
        let (responder, timestamp) = claim.verify(static_static, initiation)?;
        if peer.latest_timestamp.is_some_and(|latest| timestamp <= latest) {
            return Err(Reject::Replay);
        }
        if peer.last_initiation.is_some_and(|last| now < last + INITIATION_INTERVAL) {
            return Err(Reject::TooFrequent);
        }
        let suite = responder.suite();
        if suite != peer.config.suite && !peer.config.any_suite {
            self.refuse_suite(now, id, suite, timestamp);
            return Err(Reject::Suite);
        }

        let preshared_key = peer.config.preshared_key.clone();
        let ephemeral = self.random_secret();
        let local_index = self.reserve_index(id);
        let responded = responder.respond(preshared_key.as_ref(), &ephemeral, local_index);
        let (keys, response) = responded.inspect_err(|_| {
            self.indices.remove(&local_index);
        })?;

        if let Some(peer) = self.named_mut(id) {
            peer.latest_timestamp = Some(timestamp);
            peer.last_initiation = Some(now);
        }
        // The endpoint stays: the initiation may be an old one that somebody replays to us after a restart. Whoever
        // sends the first packet of the session has its keys.
        self.authenticated(now, id);
        let session = Session { local_index, role: Role::Responder, suite, started: now, born: now };
        let ended = self.named_mut(id).and_then(|peer| peer.sessions.responded(session));
        self.end_session(id, ended);
        self.announce(id, &session, initiation.sender, keys);
        self.send_response(now, id, from, &response);
        self.reschedule(id);
        Ok(())
    }

    /// The administrators of both sites have to be told. The timestamp is remembered all the same, so that an attacker
    /// who replays this initiation later is refused.
    fn refuse_suite(&mut self, now: Instant, id: PeerId, suite: Suite, timestamp: Timestamp) {
        if let Some(peer) = self.named_mut(id) {
            peer.latest_timestamp = Some(timestamp);
            peer.last_initiation = Some(now);
        }
        self.events.push_back(Event::SuiteRefused { peer: id, suite });
    }

    fn receive_response(
        &mut self,
        now: Instant,
        from: Endpoint,
        id: PeerId,
        response: &Response,
    ) -> Result<(), Reject> {
        let peer = self.peer(id).ok_or(Reject::UnknownIndex)?;
        let (initiator, started) = peer.pending.as_ref().ok_or(Reject::UnknownIndex)?;
        let preshared_key = peer.config.preshared_key.as_ref();
        let keys = initiator.finish(&self.private_key, preshared_key, response)?;

        let (local_index, suite) = (initiator.index(), initiator.suite());
        let session = Session { local_index, role: Role::Initiator, suite, started: *started, born: now };
        let Some(peer) = self.named_mut(id) else {
            return Err(Reject::UnknownIndex);
        };
        peer.pending = None;
        let settled = peer.sessions.initiated(session, peer.we_lead);
        self.roam(id, from);
        self.authenticated(now, id);
        self.announce(id, &session, response.sender, keys);
        self.settled(now, id, local_index, &settled);
        if settled.promoted {
            self.send_keepalive(now, id);
        }
        self.reschedule(id);
        Ok(())
    }

    fn receive_cookie_reply(&mut self, now: Instant, reply: &CookieReply) -> Result<(), Reject> {
        let id = self.peer_of_index(reply.receiver).ok_or(Reject::UnknownIndex)?;
        let peer = self.named_mut(id).ok_or(Reject::UnknownIndex)?;
        // The cookie goes into the next message. Sending one right away would let a reply trigger traffic (paper
        // 5.4.7).
        peer.cookies.accept(now, &peer.mac_keys, reply)
    }

    /// The data plane opened the first packet of a session in which we are the responder: the peer has the keys, and is
    /// where that packet came from.
    pub fn handle_confirmed(&mut self, now: Instant, local_index: u32, from: impl Into<Endpoint>) {
        let Some(id) = self.peer_of_index(local_index) else {
            return;
        };
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        let we_lead = peer.we_lead;
        let Some(settled) = peer.sessions.confirmed(local_index, we_lead) else {
            return;
        };
        peer.timers.any_received(now);
        peer.traversed(now);
        self.roam(id, from.into());
        self.drop_pending(id);
        self.settled(now, id, local_index, &settled);
        self.reschedule(id);
    }

    /// The data plane opened a packet that came from an address other than the peer's endpoint, or to a different
    /// address of ours.
    pub fn handle_roamed(&mut self, _now: Instant, local_index: u32, from: impl Into<Endpoint>) {
        if let Some(id) = self.peer_of_index(local_index) {
            self.roam(id, from.into());
        }
    }

    /// The peer whose pending initiation has this index.
    fn waits_for(&self, local_index: u32) -> Option<PeerId> {
        let id = self.peer_of_index(local_index)?;
        let (initiator, _) = self.peer(id)?.pending.as_ref()?;
        (initiator.index() == local_index).then_some(id)
    }

    /// A handshake message has proven to be the peer's.
    fn authenticated(&mut self, now: Instant, id: PeerId) {
        if let Some(peer) = self.named_mut(id) {
            peer.timers.any_received(now);
            peer.traversed(now);
        }
    }

    fn roam(&mut self, id: PeerId, from: Endpoint) {
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        // It is not known which address of ours was used; the one from before is kept as long as the peer's stays the
        // same.
        let same_remote = peer.config.endpoint == Some(from.remote);
        let local = if same_remote { from.local.or(peer.local) } else { from.local };
        if !peer.config.fixed_endpoint && (!same_remote || peer.local != local) {
            peer.config.endpoint = Some(from.remote);
            peer.local = local;
            let endpoint = Endpoint { remote: from.remote, local };
            self.events.push_back(Event::EndpointChanged { peer: id, endpoint });
        }
    }

    fn announce(&mut self, peer: PeerId, session: &Session, remote_index: u32, keys: TransportKeys) {
        let session = Box::new(SessionKeys {
            local_index: session.local_index,
            remote_index,
            send: keys.send,
            receive: keys.receive,
            role: session.role,
            born: session.born,
            suite: session.suite,
        });
        self.events.push_back(Event::SessionEstablished { peer, session });
    }

    /// Both sides have the keys: the handshake is over.
    fn settled(&mut self, now: Instant, id: PeerId, local_index: u32, settled: &Settled) {
        let wall = self.wall(now);
        if let Some(peer) = self.named_mut(id) {
            peer.timers.handshake_complete();
            peer.last_handshake = Some(wall);
        }
        if settled.promoted {
            self.events.push_back(Event::SessionPromoted { peer: id, local_index });
        }
        self.end_session(id, settled.ended);
    }
}
