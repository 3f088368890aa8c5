//! Between the kernel and the other parts: what its news change here, and what it and the steering programs are told.

use std::time::Instant;

use super::due::Due;
use super::{Gateway, map, plane, wanted};
use crate::ground::Changed;

/// Follows what the kernel says is new.
pub fn changed(gateway: &mut Gateway, now: Instant, changed: &Changed) {
    gateway.due.ground |= changed.ground;
    let network = gateway.ground.network();
    if changed.interfaces {
        let sizes = gateway.plane.follow(network);
        gateway.due.add(if sizes { Due { paths: true, ..Due::SIZES } } else { Due::default() });
    }
    if *changed == Changed::default() {
        return;
    }
    gateway.due.table |= gateway.plane.follow_hops(network, &gateway.site.virtual_addresses, gateway.site.behind());
    let endpoints = gateway.handshakes.peers.iter().filter_map(|peer| peer.endpoint);
    // An interface's MAC address is a part of the links.
    gateway.due.paths |= changed.neighbours
        || changed.interfaces
        || endpoints.into_iter().any(|endpoint| changed.affects(endpoint.ip()));
    // Without subnets of its own a site is what the LAN interfaces are connected to.
    gateway.due.paths |= changed.addresses;
    if let Some(overlay) = &mut gateway.overlay {
        let (hosts, router) = wanted::place(&gateway.site, &gateway.plane, network);
        overlay.set_place(now, hosts, router, wanted::default_routes(network));
    }
    if changed.interfaces || changed.addresses {
        // What of the map is taken depends on the networks here.
        map::apply(gateway, now);
    }
}

/// Compares the kernel with what should be, and applies the difference.
pub fn reconcile(gateway: &mut Gateway, now: Instant) {
    let Gateway { site, handshakes, overlay, guard, plane, ground, problems, .. } = gateway;
    let wanted = wanted::wanted(site, &handshakes.peers, overlay.as_ref(), guard, plane, ground.network());
    ground.reconcile(now, &wanted);
    // What was released is forgotten only now that the kernel has forgotten it.
    guard.save(now, problems);
}

/// Finds the ways to the endpoints and tells the steering programs; whether the table has to follow.
pub fn find_paths(gateway: &mut Gateway) -> bool {
    let (linux, network) = gateway.ground.parts();
    let own = network.of_site(&gateway.site.subnets, &gateway.plane.drives().lan_indices());
    let changed = gateway.plane.find_paths(linux.netlink(), network, &gateway.handshakes.peers);
    let addresses = gateway.plane.drives().wan.index().into_iter().flat_map(|wan| network.addresses_of(wan));
    let remote: Vec<_> = gateway.handshakes.peers.remote().into_iter().collect();
    let kept = network.kept(&remote);
    gateway.plane.steer(
        addresses.map(|address| address.address).collect(),
        plane::steering::prefixes(&gateway.handshakes.peers, &kept, own),
    );
    changed
}

/// Counts receive queues again, and has neighbours confirmed that only AF_XDP sends to.
pub fn confirm(gateway: &mut Gateway) {
    let (linux, network) = gateway.ground.parts();
    gateway.plane.confirm_neighbours(linux.netlink(), network);
    gateway.plane.recount_queues();
    // Those that were silent get another chance.
    gateway.due.paths = true;
}
