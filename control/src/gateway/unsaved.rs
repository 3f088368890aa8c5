//! What `wg set` changed since the profile was read: the difference between the gateway and its profile, for
//! `penstock save`.

use std::collections::BTreeSet;

use super::Gateway;
use super::peers::Peer;
use crate::ground::Origin;
use crate::profile::{self, Endpoint, Secret, Unsaved, UnsavedPeer};

/// The difference.
pub fn unsaved(gateway: &Gateway) -> Unsaved {
    let Gateway { profile, site, handshakes, plane, .. } = gateway;
    let peers = &handshakes.peers;
    let moved = plane.configured_port() != profile.local_port;
    let here = peers.iter().filter(|peer| peer.origin != Origin::Overlay);
    let changed = here.filter_map(|peer| {
        let given = profile.peers.iter().find(|given| given.public_key == peer.public_key);
        difference(peer, given)
    });
    let gone =
        |peer: &&profile::Peer| peers.with_key(&peer.public_key).is_none_or(|peer| peer.origin == Origin::Overlay);
    Unsaved {
        private_key: (site.private_key != profile.private_key).then(|| Secret(site.private_key.to_base64())),
        local_port: Some(plane.local_port()).filter(|_| moved),
        mark: Some(site.mark).filter(|mark| *mark != profile.mark),
        peers: changed.collect(),
        removed: profile.peers.iter().filter(gone).map(|peer| peer.public_key).collect(),
    }
}

/// The fields of a peer that differ from the profile; `None` if there are none.
fn difference(peer: &Peer, given: Option<&profile::Peer>) -> Option<UnsavedPeer> {
    let preshared_key = given.and_then(|given| given.preshared_key.as_ref());
    let allowed_ips: BTreeSet<_> = given.into_iter().flat_map(|given| given.allowed_ips.iter().copied()).collect();
    let keepalive = given.and_then(|given| given.persistent_keepalive);
    // What `wg set` gives is an address.
    let endpoint = match &peer.configured {
        configured if given.is_some_and(|given| given.endpoint == *configured) => None,
        Some(Endpoint::Address(address)) => Some(*address),
        _ => None,
    };
    let unsaved = UnsavedPeer {
        public_key: peer.public_key,
        preshared_key: (peer.preshared_key.as_ref() != preshared_key)
            .then(|| peer.preshared_key.as_ref().map(|key| Secret(key.to_base64()))),
        endpoint,
        allowed_ips: (*peer.allowed_ips() != allowed_ips).then(|| peer.allowed_ips().iter().copied().collect()),
        persistent_keepalive: (peer.persistent_keepalive != keepalive)
            .then(|| peer.persistent_keepalive.map_or(0, |interval| interval.as_secs())),
    };
    let UnsavedPeer { preshared_key, endpoint, allowed_ips, persistent_keepalive, .. } = &unsaved;
    let same = preshared_key.is_none() && endpoint.is_none() && allowed_ips.is_none() && persistent_keepalive.is_none();
    (given.is_none() || !same).then_some(unsaved)
}
