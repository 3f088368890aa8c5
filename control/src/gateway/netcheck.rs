//! What a running gateway knows of its network, for `netcheck`: measured from the tunnel's own socket.

use std::time::Instant;

use penstock_connect::Proxy;
use penstock_proto::coordination::{MapVersion, RegistrationState};

use super::Gateway;
use super::overlay::Overlay;
use crate::coordinator::State;
use crate::key::PublicKey;
use crate::netcheck::{Coordinator, Family, Parts, RemoteSite, Report};

/// What is known now; nothing is measured for this. Without a coordinator no server is asked, so little is known.
pub fn report(gateway: &Gateway) -> Report {
    let (local_port, pinned) = (gateway.plane.local_port(), gateway.site.pinned);
    let Some(overlay) = &gateway.overlay else {
        return Report::new(Parts { running: true, local_port, pinned, ..Parts::default() });
    };
    let [ipv4, ipv6] = overlay.traversal.reports().map(|nat| nat.map(Family::new));
    Report::new(Parts {
        running: true,
        measuring: measuring(overlay),
        local_port,
        pinned,
        ipv4,
        ipv6,
        port_mapping: overlay.traversal.mapping(),
        coordinator: Some(coordinator(overlay)),
        peers: peers_on_the_map(gateway, overlay),
    })
}

fn peers_on_the_map(gateway: &Gateway, overlay: &Overlay) -> Vec<RemoteSite> {
    let now = Instant::now();
    let with_path = |(key, mut peer): (_, RemoteSite)| {
        if let Some(known) = gateway.handshakes.peers.with_key(&key) {
            let status = super::report::peer(gateway, known, now);
            (peer.path, peer.reason) = (Some(status.path), status.reason);
        }
        peer
    };
    let keys = overlay.map.peers.keys().map(|key| PublicKey::from_bytes(*key.as_bytes()));
    keys.zip(RemoteSite::of_map(&overlay.map)).map(with_path).collect()
}

/// Whether more will be known soon.
fn measuring(overlay: &Overlay) -> bool {
    let Overlay { client, traversal, map, registration, .. } = overlay;
    // A site that waits for approval gets no map.
    let pending = registration.as_ref().is_some_and(|site| site.state == RegistrationState::Pending);
    let map_to_come = match client.state() {
        State::Connecting => true,
        State::Connected { .. } => map.version == MapVersion::default() && !pending,
        State::Disconnected { .. } => false,
    };
    map_to_come || traversal.measuring()
}

fn coordinator(overlay: &Overlay) -> Coordinator {
    let (reachable, problem) = match overlay.client.state() {
        State::Connected { .. } => (true, None),
        State::Connecting => (false, Some("it has not answered yet".to_owned())),
        State::Disconnected { why, .. } => (false, Some(why)),
    };
    Coordinator {
        address: overlay.config.url.endpoint().host_and_port(),
        // The proxy that the connection itself uses.
        proxy: Proxy::of_environment().towards(&overlay.config.url),
        reachable,
        problem,
    }
}
