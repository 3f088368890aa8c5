//! How large packets to each peer may be: as its path agent has found, else as the link and routers say.
//!
//! [`PathMtu`] says what follows from it. The table has each peer's size, the kernel's routes to its prefixes have it,
//! and the steering programs leave to the kernel what has to be fragmented for some peer.

use std::collections::BTreeMap;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use penstock_proto::path::PathAgent;
use penstock_proto::pmtu::{LinkMtu, PathMtu};

use super::Gateway;
use super::due::Due;
use super::peers::Peers;
use super::plane::Sizes;
use crate::icmp::TooBigMessage;
use crate::key::PublicKey;

/// Follows the link and the peers' endpoints and sessions, and tells the path agents and the steering programs.
pub fn follow(gateway: &mut Gateway, now: Instant, due: &mut Due) {
    let Gateway { site, handshakes, overlay, probing, plane, .. } = gateway;
    if due.paths || due.endpoints || due.table {
        let sizes = plane.sizes();
        if let Some(overlay) = overlay {
            overlay.set_sizes(now, sizes);
        }
        probing.follow(now, &site.private_key, sizes, &handshakes.peers);
        if probing.step(now, handshakes) {
            due.add(Due::SIZES);
        }
    }
    if due.table {
        let tunnel = plane.tunnel_mtu();
        plane.set_smallest_mtu(handshakes.peers.iter().map(|peer| peer.mtu_within(tunnel)).min().unwrap_or(tunnel));
    }
}

/// Takes routers' messages about the tunnel's datagrams.
pub fn handle_too_big(gateway: &mut Gateway, now: Instant, messages: &[TooBigMessage]) {
    let Gateway { handshakes, overlay, probing, plane, .. } = gateway;
    for message in messages.iter().filter(|message| message.source_port == plane.local_port()) {
        let agents = overlay.iter_mut().map(|overlay| overlay.traversal.agent()).chain([probing.agent()]);
        for agent in agents {
            agent.handle_too_big(now, &message.too_big(), |key, index| {
                let peer = handshakes.peers.with_key(&PublicKey::from_bytes(key.to_bytes()));
                peer.is_some_and(|peer| peer.receives_by(index))
            });
        }
    }
}

/// Tells a path agent the WAN link's limit, the profile's, and the longest datagrams that are received.
pub fn tell(agent: &mut PathAgent, now: Instant, Sizes { link, pinned, receive_limit }: Sizes) {
    let networks = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let links = networks.map(|network| LinkMtu { network, mtu: link });
    agent.set_receive_limit(receive_limit);
    agent.set_pinned_mtu(now, pinned);
    agent.set_links(now, &links);
}

/// The prefixes whose routes need an MTU of their own, smaller than the tunnel's.
pub fn of_prefixes(peers: &Peers, tunnel: u16) -> BTreeMap<IpNet, u32> {
    let smaller = |owner| Some(peers.of(owner)?.mtu_within(tunnel)).filter(|mtu| *mtu < tunnel);
    peers.allowed_ips().filter_map(|(prefix, owner)| Some((*prefix, u32::from(smaller(owner)?)))).collect()
}

/// Sets how large packets to a peer may be; returns whether that is new.
pub fn note(peers: &mut Peers, key: penstock_proto::PublicKey, mtu: PathMtu) -> bool {
    let Some(peer) = peers.with_key_mut(&PublicKey::from_bytes(key.to_bytes())) else { return false };
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
