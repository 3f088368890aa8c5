//! How large packets to each peer may be: as its path agent has found, else as the link and routers say.
//!
//! [`PathMtu`] says what follows from it. The table has each peer's size, the kernel's routes to its prefixes have it,
//! and the steering programs leave to the kernel what has to be fragmented for some peer.

use std::collections::BTreeMap;
use std::time::Instant;

use ipnet::IpNet;
use penstock_proto::pmtu::{PathMtu, PlainPath};

use super::Gateway;
use super::due::Due;
use super::peers::{Peer, Peers};
use super::plane::Sizes;
use crate::icmp::Told;
use crate::key::PublicKey;

/// Follows the link and the peers' endpoints, and tells the path agent and the steering programs.
pub fn follow(gateway: &mut Gateway, now: Instant, due: &mut Due) {
    let Gateway { handshakes, overlay, plane, .. } = gateway;
    if due.paths || due.endpoints {
        let sizes = plane.sizes();
        if let Some(overlay) = overlay {
            overlay.set_sizes(now, sizes);
        }
        if follow_plain(now, &mut handshakes.peers, sizes) {
            due.add(Due::SIZES);
        }
    }
    if due.table {
        let tunnel = plane.tunnel_mtu();
        plane.set_smallest_mtu(handshakes.peers.iter().map(|peer| peer.mtu_within(tunnel)).min().unwrap_or(tunnel));
    }
}

/// Takes routers' messages about the tunnel's datagrams.
pub fn handle_told(gateway: &mut Gateway, now: Instant, told: &[Told]) {
    let Gateway { handshakes, overlay, plane, due, .. } = gateway;
    for told in told.iter().filter(|told| told.source_port == plane.local_port()) {
        let told = told.too_big();
        if let Some(overlay) = overlay {
            let peers = &handshakes.peers;
            overlay.traversal.handle_too_big(now, &told, |key, index| {
                peers.with_key(&PublicKey::from_bytes(key.to_bytes())).is_some_and(|peer| peer.receives_by(index))
            });
        }
        for peer in handshakes.peers.iter_mut().filter(|peer| peer.endpoint == Some(told.to)) {
            let Some(mut path) = peer.plain_path.take() else { continue };
            if path.handle_too_big(now, &told, |index| peer.receives_by(index)) && note(peer, path.mtu()) {
                due.add(Due::SIZES);
            }
            peer.plain_path = Some(path);
        }
    }
}

/// The prefixes whose routes need an MTU of their own, smaller than the tunnel's.
pub fn of_prefixes(peers: &Peers, tunnel: u16) -> BTreeMap<IpNet, u32> {
    let smaller = |owner| Some(peers.of(owner)?.mtu_within(tunnel)).filter(|mtu| *mtu < tunnel);
    peers.allowed_ips().filter_map(|(prefix, owner)| Some((*prefix, u32::from(smaller(owner)?)))).collect()
}

/// Updates the peers without a path agent; returns whether any peer's size may have changed.
fn follow_plain(now: Instant, peers: &mut Peers, Sizes { link, pinned, .. }: Sizes) -> bool {
    let mut changed = false;
    for peer in peers.iter_mut().filter(|peer| peer.found.is_none()) {
        let Some(to) = peer.endpoint.map(|endpoint| endpoint.ip()) else { continue };
        let path = peer.plain_path.get_or_insert_with(|| PlainPath::new(to, link, pinned));
        path.set_link(to, link, pinned);
        path.handle_timeout(now);
        let mtu = path.mtu();
        changed |= note(peer, mtu);
    }
    changed
}

/// Sets how large packets to a peer may be; returns whether that is new.
pub fn note(peer: &mut Peer, mtu: PathMtu) -> bool {
    let before = peer.mtu.replace(mtu);
    if before.is_some_and(|before| before.inner != mtu.inner) {
        tracing::info!(
            "{}: packets of {} bytes inside, {} outside: {}",
            peer.label(),
            mtu.inner,
            mtu.outer,
            mtu.source
        );
    }
    before != Some(mtu)
}
