//! `wg set`: changes of the running gateway over the userspace API.

use std::time::Instant;

use penstock_proto::{AddPeerError, Key, PeerConfig, PeerId};

use super::Gateway;
use super::peers::Peer;
use crate::profile::Endpoint;
use crate::uapi::{Change, Device, Errno, PeerState, Request, SetDevice, SetPeer};

impl Gateway {
    /// Answers a request.
    pub(super) fn serve_uapi(&mut self, now: Instant, request: Request) {
        match request {
            Request::Get { reply } => {
                // The asker may have gone.
                let _ = reply.send(Ok(self.device()));
            }
            Request::Set { change, reply } => {
                let outcome = self.set_device(now, change).and_then(|()| {
                    self.take_events(now, 0);
                    self.settle().map_err(|e| {
                        tracing::error!("a change over the userspace API is only half in force: {e:#}");
                        Errno::Io
                    })
                });
                let _ = reply.send(outcome);
            }
        }
    }

    fn device(&self) -> Device {
        Device {
            private_key: Some(self.private_key.clone()),
            listen_port: self.local_port,
            fwmark: 0,
            peers: self.peers.iter().map(|peer| self.peer_state(peer)).collect(),
        }
    }

    fn peer_state(&self, peer: &Peer) -> PeerState {
        let last = self.proto.peer(peer.id).and_then(penstock_proto::Peer::last_handshake);
        PeerState {
            public_key: peer.public_key,
            preshared_key: peer.preshared_key.clone(),
            endpoint: peer.endpoint,
            last_handshake: last.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()),
            rx_bytes: peer.received_bytes(),
            tx_bytes: peer.sent_bytes(),
            persistent_keepalive: peer.persistent_keepalive,
            allowed_ips: self.peers.allowed_ips_of(peer.id),
        }
    }

    fn set_device(&mut self, now: Instant, change: SetDevice) -> Result<(), Errno> {
        if change.listen_port.is_some_and(|port| port != self.local_port) {
            tracing::warn!("the listen port cannot be changed while the gateway runs: set LocalPort and restart");
            return Err(Errno::NotSupported);
        }
        if change.fwmark.is_some_and(|mark| mark != 0) {
            tracing::warn!("a firewall mark is not supported");
            return Err(Errno::NotSupported);
        }
        match change.private_key {
            Change::Keep => {}
            Change::Clear => {
                tracing::warn!("a gateway cannot be without a private key");
                return Err(Errno::NotSupported);
            }
            Change::To(_) if self.overlay.is_some() => {
                tracing::warn!("the coordinator knows this site by its private key: enrol again with another one");
                return Err(Errno::NotSupported);
            }
            Change::To(key) => {
                let ourselves = self.proto.set_private_key(key.to_secret());
                self.private_key = key;
                if let Some(id) = ourselves {
                    self.forget(id);
                }
                tracing::info!("private key changed: all sessions begin anew");
            }
        }
        if change.replace_peers {
            for id in self.peers.iter().map(|p| p.id).collect::<Vec<_>>() {
                self.remove_peer(id);
            }
        }
        change.peers.into_iter().try_for_each(|peer| self.set_peer(now, peer))
    }

    fn set_peer(&mut self, now: Instant, change: SetPeer) -> Result<(), Errno> {
        let known = self.peers.with_key(&change.public_key).map(|p| p.id);
        if change.remove {
            known.into_iter().for_each(|id| self.remove_peer(id));
            return Ok(());
        }
        let id = match known {
            Some(id) => id,
            None if change.update_only => return Ok(()),
            None => match self.proto.add_peer(now, change.public_key.into(), PeerConfig::default()) {
                Ok(id) => {
                    let number = self.peers.number();
                    self.peers.push(Peer::new(id, number, change.public_key));
                    id
                }
                // As the kernel does: a configuration shared by all sites names each one itself.
                Err(AddPeerError::OwnKey) => return Ok(()),
                Err(AddPeerError::Duplicate(_)) => return Err(Errno::Io),
            },
        };
        self.change_peer(now, id, change);
        self.due.everything_of_peers();
        Ok(())
    }

    fn change_peer(&mut self, now: Instant, id: PeerId, change: SetPeer) {
        if change.replace_allowed_ips {
            self.peers.disallow_all(id);
        }
        for allowed in change.allowed_ips {
            if allowed.remove {
                self.peers.disallow(allowed.prefix, id);
            } else if let Some(loser) = self.peers.allow(allowed.prefix, id)
                && let Some(loser) = self.peers.of(loser)
            {
                tracing::info!("{} moves away from {}", allowed.prefix, loser.label());
            }
        }
        let Some(peer) = self.peers.of_mut(id) else { return };
        match change.preshared_key {
            Change::Keep => {}
            Change::Clear => {
                peer.preshared_key = None;
                self.proto.set_preshared_key(id, None);
            }
            Change::To(key) => {
                self.proto.set_preshared_key(id, Some(Key::from(*key.as_bytes())));
                peer.preshared_key = Some(key);
            }
        }
        if let Some(endpoint) = change.endpoint {
            peer.configured = Some(Endpoint::Address(endpoint));
            peer.endpoint = Some(endpoint);
            self.proto.set_endpoint(id, Some(endpoint));
        }
        // Last: with an interval, the first keepalive goes out at once, to the new endpoint.
        let interval = match change.persistent_keepalive {
            Change::Keep => return,
            Change::Clear => None,
            Change::To(interval) => Some(interval),
        };
        peer.persistent_keepalive = interval;
        self.proto.set_persistent_keepalive(now, id, interval);
    }

    fn remove_peer(&mut self, id: PeerId) {
        self.proto.remove_peer(id);
        self.forget(id);
    }

    fn forget(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.remove(id) {
            tracing::info!("{}: removed", peer.label());
            if let Some(overlay) = self.overlay.as_mut().filter(|_| peer.found.is_some()) {
                overlay.traversal.remove_peer(&peer.public_key.into());
            }
        }
        self.due.everything_of_peers();
    }
}
