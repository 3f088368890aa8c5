//! A handshake message is sent, and why: packets wait, sessions grow old, timers expire.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::constants::{CALL_INTERVAL, INITIATION_PATIENCE};
use crate::event::{Contents, Endpoint, Event, Traffic, Transmit, Used};
use crate::gateway::Gateway;
use crate::messages::Response;
use crate::noise::Initiator;
use crate::peer::PeerId;
use crate::session::Role;
use crate::timers::due;
use crate::wipe::wiped;

impl Gateway {
    /// A packet to this peer waits and there is no session to send it on: starts a handshake, unless one is under way.
    /// That one is given up 90 s after it started, however many packets wait for it; the next packet then starts
    /// another.
    ///
    /// Returns whether a handshake is under way now. It is not when the peer has no endpoint or a public
    /// key of low order; the packet may be dropped then.
    pub fn handle_wanted(&mut self, now: Instant, id: PeerId) -> bool {
        let under_way = self.want_handshake(now, id);
        self.reschedule(id);
        under_way
    }

    /// The peer is now reached by a different path, whose endpoint has been set: an initiation that waits for its
    /// response is sent again unless the response comes soon, since it may have been lost on the old path.
    ///
    /// With `renew`, a handshake starts at once in any case, for a relay that has not seen the present session's. A
    /// response that may still come by the old path is then useless: the relay would not have seen its session either.
    pub fn handle_path(&mut self, now: Instant, id: PeerId, renew: bool) {
        let give_up = now + self.timings.rekey_attempt_time;
        let Some(peer) = self.named_mut(id).filter(|peer| peer.config.endpoint.is_some()) else {
            return;
        };
        let due = match &peer.pending {
            _ if renew => now,
            // Its response may be on the way, and nothing would be waiting for it.
            Some((_, sent)) => now.max(*sent + INITIATION_PATIENCE),
            None => return,
        };
        peer.timers.give_up.get_or_insert(give_up);
        if due > now {
            peer.timers.retry = Some(peer.timers.retry.map_or(due, |at| at.min(due)));
        } else {
            self.send_initiation(now, id);
            // The peer ignores this one if it arrives right behind an earlier one, by a quicker path.
            if let Some(peer) = self.named_mut(id) {
                peer.timers.retry = Some(now + INITIATION_PATIENCE);
            }
        }
        self.reschedule(id);
    }

    /// The peer has a session that we do not have, as after we have restarted: it would go on sending on it until it
    /// has missed our answers for 15 s. So we start a handshake, unless there is a session or a handshake started a
    /// moment ago.
    pub fn handle_unknown_session(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peer(id) else {
            return;
        };
        let recent = |at: Instant| now < at + CALL_INTERVAL;
        let answered = peer.sessions.next.is_some_and(|next| recent(next.born));
        let called = peer.pending.as_ref().is_some_and(|(_, sent)| recent(*sent));
        if peer.sessions.current.is_none() && !answered && !called {
            self.handle_path(now, id, true);
        }
    }

    /// Reports a peer's traffic since the last report; to be called a few times a second. Where the order of events is
    /// unknown, receiving is taken to have come last, which at worst costs a keepalive.
    pub fn handle_traffic(&mut self, now: Instant, id: PeerId, traffic: Traffic) {
        let timings = self.timings;
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        if traffic.sent_any || traffic.sent_data {
            peer.timers.any_sent();
        }
        if traffic.sent_data {
            peer.timers.data_sent(now, &timings);
        }
        if traffic.received_any || traffic.received_data {
            peer.timers.any_received(now);
        }
        if traffic.received_data {
            peer.timers.data_received(now, &timings);
        }
        if traffic != Traffic::default() {
            peer.traversed(now);
        }
        let sent = traffic.sent_any || traffic.sent_data;
        let received = traffic.received_any || traffic.received_data;
        if self.wants_successor(now, id, sent, received, Used::default()) {
            self.want_handshake(now, id);
        }
        self.reschedule(id);
    }

    /// A session has sent as much as `used` says: asks for its successor when it is old or much used, and ends it when
    /// it is used up. Once a second is often enough.
    pub fn handle_session_used(&mut self, now: Instant, id: PeerId, local_index: u32, used: Used) {
        let timings = self.timings;
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        if peer.current_session() != Some(local_index) {
            return;
        }
        let mut wanted = self.wants_successor(now, id, true, false, used);
        if used.messages >= timings.reject_after_messages || used.blocks >= timings.reject_after_blocks {
            self.expire_sessions(id, |session| session == local_index);
            wanted = true;
        }
        if wanted {
            self.want_handshake(now, id);
        }
        self.reschedule(id);
    }

    /// Whether the current session should be replaced (paper 6.2).
    fn wants_successor(&mut self, now: Instant, id: PeerId, sent: bool, received: bool, used: Used) -> bool {
        let timings = self.timings;
        let Some(peer) = self.named_mut(id) else {
            return false;
        };
        let Some(session) = peer.sessions.current else {
            return false;
        };
        let age = session.age(now);
        let initiator = session.role == Role::Initiator;
        if sent && (used.messages > timings.rekey_after_messages || used.blocks > timings.rekey_after_blocks) {
            return true;
        }
        if sent && initiator && age >= timings.rekey_after_time {
            return true;
        }
        let patience = if initiator { timings.rekey_on_receive() } else { timings.responder_rekey() };
        let late = (sent || received) && age >= patience;
        late && !std::mem::replace(&mut peer.timers.asked_on_receive, true)
    }

    /// Does what is due for this peer.
    pub(crate) fn peer_timeout(&mut self, now: Instant, id: PeerId) {
        self.expire_old_sessions(now, id);
        let timings = self.timings;
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        let timers = &mut peer.timers;
        if due(&mut timers.give_up, now) {
            timers.retry = None;
            timers.keepalive = None;
            timers.another_keepalive = false;
            self.drop_pending(id);
            self.events.push_back(Event::HandshakeGaveUp { peer: id });
        } else if due(&mut timers.retry, now) {
            if timers.is_silent(now, &timings) {
                self.events.push_back(Event::PathSilent { peer: id });
            }
            self.send_initiation(now, id);
        }
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        if due(&mut peer.timers.unanswered, now) {
            self.want_handshake(now, id);
        }
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        if due(&mut peer.timers.keepalive, now) {
            peer.timers.keepalive_sent(now, &timings);
            self.send_keepalive(now, id);
        }
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        if due(&mut peer.timers.persistent, now) {
            peer.traversed(now);
            self.send_keepalive(now, id);
        }
    }

    /// An empty packet on the current session; without one, a handshake, which ends with such a packet.
    pub(crate) fn send_keepalive(&mut self, now: Instant, id: PeerId) {
        match self.peer(id).and_then(|peer| peer.sessions.current) {
            Some(_) => self.events.push_back(Event::SendKeepalive { peer: id }),
            None => {
                self.want_handshake(now, id);
            }
        }
    }

    pub(crate) fn send_response(&mut self, now: Instant, id: PeerId, to: Endpoint, response: &Response) {
        let timings = self.timings;
        let jitter = self.jitter();
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        // The peer's handshake gets its chance before ours is tried again.
        peer.timers.quiet_until = Some(now + timings.rekey_timeout);
        let retry = now + timings.rekey_timeout + jitter;
        peer.timers.retry = peer.timers.retry.map(|at| at.max(retry));
        self.transmit(now, id, to, &mut response.encode());
    }

    fn want_handshake(&mut self, now: Instant, id: PeerId) -> bool {
        let give_up = now + self.timings.rekey_attempt_time;
        let Some(peer) = self.named_mut(id) else {
            return false;
        };
        if peer.config.endpoint.is_none() || peer.static_static.is_none() {
            return false;
        }
        peer.timers.give_up.get_or_insert(give_up);
        if peer.timers.retry.is_none() {
            match peer.timers.quiet_until.filter(|until| now < *until) {
                Some(until) => peer.timers.retry = Some(until),
                None => self.send_initiation(now, id),
            }
        }
        true
    }

    /// Sends an initiation in place of the pending one, and schedules its retry.
    fn send_initiation(&mut self, now: Instant, id: PeerId) {
        wiped(|| self.initiate(now, id));
    }

    fn initiate(&mut self, now: Instant, id: PeerId) {
        self.drop_pending(id);
        let timestamp = self.stamp(now);
        let ephemeral = self.random_secret();
        let index = self.reserve_index(id);
        let retry = now + self.timings.rekey_timeout + self.jitter();
        let quiet_until = now + self.timings.rekey_timeout;
        let public_key = self.public_key;
        let started = self.named_mut(id).and_then(|peer| {
            let static_static = peer.static_static.as_ref()?;
            let to = Endpoint { remote: peer.config.endpoint?, local: peer.local };
            let suite = peer.config.suite;
            let (initiator, initiation) =
                Initiator::start(suite, &public_key, &peer.public_key, static_static, ephemeral, index, &timestamp)
                    .ok()?;
            peer.pending = Some((Box::new(initiator), now));
            peer.timers.retry = Some(retry);
            peer.timers.quiet_until = Some(quiet_until);
            Some((to, initiation))
        });
        match started {
            Some((to, initiation)) => self.transmit(now, id, to, &mut initiation.encode()),
            None => {
                self.indices.remove(&index);
            }
        }
    }

    /// Signs a handshake message for its receiver and sends it.
    fn transmit(&mut self, now: Instant, id: PeerId, to: Endpoint, datagram: &mut [u8]) {
        let use_for = self.timings.cookie_use();
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        let mac1 = peer.mac_keys.sign(datagram, peer.cookies.cookie(now, use_for));
        peer.cookies.sent(mac1);
        peer.timers.any_sent();
        peer.traversed(now);
        let contents = Contents::new(datagram);
        self.transmits.push_back(Transmit { to: to.remote, local: to.local, peer: Some(id), contents });
    }

    fn expire_old_sessions(&mut self, now: Instant, id: PeerId) {
        let lifetime = self.timings.reject_after_time;
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        let ended = peer.sessions.expire(|session| session.age(now) >= lifetime);
        for session in ended {
            self.end_session(id, session);
        }
    }

    fn expire_sessions(&mut self, id: PeerId, ended: impl Fn(u32) -> bool) {
        let Some(peer) = self.named_mut(id) else {
            return;
        };
        for session in peer.sessions.expire(|session| ended(session.local_index)) {
            self.end_session(id, session);
        }
    }

    fn jitter(&mut self) -> Duration {
        self.rng.random_range(Duration::ZERO..=self.timings.rekey_timeout_jitter)
    }
}
