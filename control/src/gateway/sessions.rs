//! Between the handshakes and the data plane: events of the one become sessions, paths and commands
//! of the other; notices of the other become news for the one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Result, bail};
use penstock_dataplane::clock::Millis;
use penstock_dataplane::session::{Session, SessionConfig, Suite};
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_proto::{self as proto, Event, PeerId, Role, SessionKeys};
use zeroize::Zeroizing;

use super::Gateway;
use crate::profile::Endpoint;

/// Notices taken at a time: a flood of handshakes may not keep the other inputs waiting.
const NOTICES_PER_TURN: usize = 256;
/// AF41 and no ECN: the traffic class of handshakes, as the kernel's WireGuard sends them.
const HANDSHAKE_TOS: u8 = 0x88;

impl Gateway {
    /// Takes what the workers have to say.
    ///
    /// # Errors
    /// A worker has died.
    pub(super) fn take_notices(&mut self, now: Instant) -> Result<()> {
        self.engine.notices().silence();
        for _ in 0..NOTICES_PER_TURN {
            let Some(notice) = self.engine.notices().pop() else { return Ok(()) };
            match notice {
                Notice::Datagram { from, payload } => self.take_datagram(now, from, &payload),
                Notice::NoSession { peer, packet } => self.wait_for_session(now, peer, packet),
                Notice::Confirmed { local_index } => self.proto.handle_confirmed(now, local_index),
                Notice::Roamed { local_index, from } => self.proto.handle_roamed(now, local_index, from),
                Notice::WorkerDied { worker } => {
                    self.fail_closed = true;
                    bail!("worker {worker} has died by a panic; remote prefixes stay blocked until the next start");
                }
            }
            self.take_events(now, 0);
        }
        // More wait: the bell brings us back after the other inputs had their turn.
        self.engine.notices().ring();
        Ok(())
    }

    fn take_datagram(&mut self, now: Instant, from: SocketAddr, payload: &[u8]) {
        if self.overlay.as_mut().is_some_and(|overlay| overlay.traversal.handle_datagram(now, from, payload)) {
            return;
        }
        match self.proto.handle_datagram(now, from, payload) {
            Ok(()) => {}
            Err(reject) => {
                *self.rejects.entry(reject).or_default() += 1;
                tracing::debug!("datagram of {} bytes from {from} dropped: {reject:?}", payload.len());
            }
        }
        self.take_events(now, payload.len() as u64);
    }

    fn wait_for_session(&mut self, now: Instant, number: u32, packet: Box<[u8]>) {
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
    pub(super) fn take_events(&mut self, now: Instant, datagram: u64) {
        while let Some(event) = self.proto.poll_event() {
            match event {
                Event::SessionEstablished { peer, session } => self.establish(peer, session, datagram),
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
                // The names of endpoints are asked again when the handshake is given up.
                Event::PathSilent { .. } => {}
                Event::HandshakeGaveUp { peer } => self.gave_up(now, peer),
            }
        }
    }

    fn establish(&mut self, id: PeerId, keys: SessionKeys, datagram: u64) {
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
            send_key: Zeroizing::new(*keys.send.as_bytes()),
            receive_key: Zeroizing::new(*keys.receive.as_bytes()),
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

    fn gave_up(&mut self, _now: Instant, id: PeerId) {
        let Some(peer) = self.peers.of_mut(id) else { return };
        tracing::warn!("{}: no answer; {} waiting packets dropped", peer.label(), peer.waiting.len());
        self.lost_waiting += peer.waiting.len() as u64;
        peer.waiting.clear();
        if let Some(Endpoint::Host { name, port }) = &peer.configured {
            self.resolver.ask(peer.public_key, name, *port, false);
        }
    }

    /// Sends what the handshakes have to send.
    pub(super) fn transmit(&mut self) {
        while let Some(transmit) = self.proto.poll_transmit() {
            let peer = transmit.peer.and_then(|id| self.peers.of_mut(id));
            // An endpoint that is routed into the tunnel would get its handshake wrapped in itself.
            if peer.as_ref().is_some_and(|p| self.looping.contains(&p.id)) {
                continue;
            }
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

    /// Looks at the traffic counters and tells the timers.
    pub(super) fn sample(&mut self, now: Instant) {
        let (proto, peers) = (&mut self.proto, &mut self.peers);
        let mut traversal = self.overlay.as_mut().map(|overlay| &mut overlay.traversal);
        for peer in peers.iter_mut() {
            let Some(sample) = peer.sample() else { continue };
            proto.handle_traffic(now, peer.id, sample.traffic);
            if let Some(traversal) = traversal.as_mut().filter(|_| peer.found.is_some()) {
                traversal.handle_traffic(now, &peer.public_key.into(), sample.traffic);
            }
            if let Some((index, counter)) = sample.used {
                proto.handle_session_used(now, peer.id, index, counter);
            }
        }
        if now.duration_since(self.clock_set) >= super::CLOCK_EVERY {
            self.clock_set = now;
            proto.set_clock(now, SystemTime::now());
        }
    }

    /// Hands the workers their commands, in order; the table they rely on must be published.
    pub(super) fn command(&mut self) {
        for command in self.commands.drain(..) {
            // One worker for all: packets that waited stay in order.
            if !self.engine.command(0, command) {
                self.lost_waiting += 1;
            }
        }
    }
}
