//! `wg show` and `wg set`: the running gateway over WireGuard's userspace API.

use std::time::Instant;

use penstock_proto::{AddPeerError, Key, PeerConfig, PeerId};

use super::Gateway;
use super::due::Due;
use super::handshakes::Handshakes;
use super::overlay::Overlay;
use super::peers::Peer;
use crate::ground::Origin;
use crate::profile::Endpoint;
use crate::uapi::{Change, Device, Errno, PeerState, Request, SetDevice, SetPeer};

/// Answers a request.
pub fn serve(gateway: &mut Gateway, now: Instant, request: Request) {
    // Whoever asked may be gone.
    match request {
        Request::Get { reply } => {
            let _ = reply.send(Ok(device(gateway)));
        }
        Request::Set { change, reply } => {
            let outcome = set_device(gateway, now, change);
            gateway.overlay.iter_mut().for_each(Overlay::judge_all);
            gateway.follow_up(now);
            let _ = reply.send(outcome);
        }
    }
}

fn device(gateway: &Gateway) -> Device {
    Device {
        private_key: Some(gateway.site.private_key.clone()),
        listen_port: gateway.plane.local_port(),
        fwmark: gateway.site.mark,
        peers: gateway.handshakes.peers.iter().map(|peer| peer_state(&gateway.handshakes, peer)).collect(),
    }
}

/// A peer as `wg` shows it.
pub(super) fn peer_state(handshakes: &Handshakes, peer: &Peer) -> PeerState {
    let last = handshakes.proto.peer(peer.id).and_then(penstock_proto::Peer::last_handshake);
    PeerState {
        public_key: peer.public_key,
        preshared_key: peer.preshared_key.clone(),
        endpoint: peer.endpoint,
        last_handshake: last.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()),
        rx_bytes: peer.received_bytes(),
        tx_bytes: peer.sent_bytes(),
        persistent_keepalive: peer.persistent_keepalive,
        allowed_ips: peer.allowed_ips().iter().copied().collect(),
    }
}

fn set_device(gateway: &mut Gateway, now: Instant, change: SetDevice) -> Result<(), Errno> {
    // `wg setconf` sends zero when its file names no mark: without a mark the tunnel's packets would go into the
    // tunnel.
    if let Some(mark) = change.fwmark.filter(|mark| *mark != 0 && *mark != gateway.site.mark) {
        gateway.site.mark = mark;
        gateway.plane.set_mark(now, mark);
        gateway.handshakes.set_mark(now, mark);
        gateway.due.ground = true;
        gateway.due.paths = true;
    }
    if change.listen_port.is_some_and(|port| !gateway.plane.move_to_port(now, port)) {
        return Err(Errno::AddressInUse);
    }
    match change.private_key {
        Change::Keep => {}
        Change::Clear => {
            tracing::warn!("a gateway must have a private key");
            return Err(Errno::NotSupported);
        }
        Change::To(_) if gateway.overlay.is_some() => {
            tracing::warn!("the coordinator knows this site by its private key: enrol again with another one");
            return Err(Errno::NotSupported);
        }
        Change::To(key) => {
            gateway.handshakes.set_private_key(&key);
            gateway.site.private_key = key;
        }
    }
    let Gateway { handshakes, overlay, .. } = gateway;
    set_peers(handshakes, overlay.as_mut(), now, change.replace_peers, change.peers)
}

/// Changes peers; with `replace`, all existing ones are removed first.
pub(super) fn set_peers(
    handshakes: &mut Handshakes,
    mut overlay: Option<&mut Overlay>,
    now: Instant,
    replace: bool,
    peers: Vec<SetPeer>,
) -> Result<(), Errno> {
    if replace {
        for id in handshakes.peers.iter().map(|p| p.id).collect::<Vec<_>>() {
            remove(handshakes, overlay.as_deref_mut(), id);
        }
    }
    peers.into_iter().try_for_each(|peer| set_peer(handshakes, overlay.as_deref_mut(), now, peer))
}

/// Removes a peer, and ends the search for a path to it.
pub fn remove(handshakes: &mut Handshakes, overlay: Option<&mut Overlay>, id: PeerId) {
    if let (Some(peer), Some(overlay)) = (handshakes.remove(id), overlay) {
        overlay.traversal.remove_peer(&peer.public_key.into());
    }
}

fn set_peer(
    handshakes: &mut Handshakes,
    overlay: Option<&mut Overlay>,
    now: Instant,
    change: SetPeer,
) -> Result<(), Errno> {
    let known = handshakes.peers.with_key(&change.public_key).map(|p| p.id);
    if change.remove {
        if let Some(id) = known {
            remove(handshakes, overlay, id);
        }
        return Ok(());
    }
    let id = match known {
        Some(id) => id,
        None if change.update_only => return Ok(()),
        None => match handshakes.proto.add_peer(now, change.public_key.into(), PeerConfig::default()) {
            Ok(id) => {
                let number = handshakes.peers.number();
                handshakes.peers.push(Peer::new(id, number, change.public_key, Origin::Runtime));
                id
            }
            // As the kernel does: a configuration shared by all sites names each of them, including the one it is on.
            Err(AddPeerError::OwnKey) => return Ok(()),
            Err(AddPeerError::Duplicate(_)) => return Err(Errno::Io),
        },
    };
    change_peer(handshakes, now, id, change);
    handshakes.watch_name(now, id);
    handshakes.changed(Due::PEERS);
    Ok(())
}

/// Changes an existing peer.
pub fn change_peer(handshakes: &mut Handshakes, now: Instant, id: PeerId, change: SetPeer) {
    let Handshakes { peers, proto, .. } = handshakes;
    if change.replace_allowed_ips {
        peers.disallow_all(id);
    }
    for allowed in change.allowed_ips {
        if allowed.remove {
            peers.disallow(allowed.prefix, id);
        } else if let Some(loser) = peers.allow(allowed.prefix, id).and_then(|loser| peers.of(loser)) {
            tracing::info!("{} moves away from {}", allowed.prefix, loser.label());
        }
    }
    let Some(peer) = peers.of_mut(id) else { return };
    match change.preshared_key {
        Change::Keep => {}
        Change::Clear => {
            peer.preshared_key = None;
            proto.set_preshared_key(id, None);
        }
        Change::To(key) => {
            proto.set_preshared_key(id, Some(Key::from(*key.as_bytes())));
            peer.preshared_key = Some(key);
        }
    }
    if let Some(endpoint) = change.endpoint {
        peer.configured = Some(Endpoint::Address(endpoint));
        (peer.endpoint, peer.local) = (Some(endpoint), None);
        proto.set_endpoint(id, Some(endpoint));
    }
    // Last: with an interval, the first keepalive goes out at once, to the new endpoint.
    let interval = match change.persistent_keepalive {
        Change::Keep => return,
        Change::Clear => None,
        Change::To(interval) => Some(interval),
    };
    peer.persistent_keepalive = interval;
    proto.set_persistent_keepalive(now, id, interval);
}
