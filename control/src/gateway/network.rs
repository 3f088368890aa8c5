//! Between the kernel and the other parts: what its news change here, and what it and the steering programs are told.

use std::net::SocketAddr;
use std::time::Instant;

use super::due::Due;
use super::{Gateway, bypass, map, plane, wanted};
use crate::ground::Changed;

/// A problem's subject.
const NO_ADDRESS: &str = "outer addresses";

/// Follows what the kernel says is new.
pub fn changed(gateway: &mut Gateway, now: Instant, changed: &Changed) {
    gateway.due.ground |= changed.ground;
    let network = gateway.ground.network();
    if changed.interfaces {
        let sizes = gateway.plane.follow(network);
        gateway.due.add(if sizes { Due { paths: true, ..Due::SIZES } } else { Due::default() });
        bypass::follow_interfaces(gateway, now);
    }
    if changed.filters {
        gateway.bypass.note_rules(now);
    }
    if *changed == Changed::default() {
        return;
    }
    let network = gateway.ground.network();
    if changed.addresses {
        gateway.bypass.note_prefixes(now);
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
        note_missing_address(gateway, now);
        // What of the map is taken depends on the networks here.
        map::apply(gateway, now);
    }
}

/// Tells when there is no address that outer packets could begin from: the gateway waits for one. It need not be the
/// WAN's own, nor a global one where peers are on the link.
fn note_missing_address(gateway: &mut Gateway, now: Instant) {
    let Gateway { site, handshakes, ground, problems, .. } = gateway;
    let network = ground.network();
    let outside = |name: &str| name == site.wan || (name != site.name.as_str() && !site.lan.contains(name));
    let is_outside = |index| network.interface(index).is_some_and(|interface| outside(&interface.name));
    let mut addresses = network.addresses.iter().filter(|address| address.global);
    let on_link = |endpoint: SocketAddr| matches!(endpoint, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local());
    let mut endpoints = handshakes.peers.iter().filter_map(|peer| peer.endpoint);
    if addresses.any(|address| is_outside(address.interface)) || endpoints.any(on_link) {
        problems.solved(NO_ADDRESS);
    } else {
        let sentence = "no interface but the tunnel and the LAN's has an address, so no peer can be reached";
        problems.note(now, NO_ADDRESS, sentence, "give the WAN interface an address; the gateway waits for it");
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

/// Finds the ways to the endpoints and tells the steering programs; whether the table has to follow. The kernel is
/// asked about those that are new, or `anew` about all.
pub fn find_paths(gateway: &mut Gateway, anew: bool) -> bool {
    let (linux, network) = gateway.ground.parts();
    let own = network.of_site(&gateway.site.subnets, &gateway.plane.drives().lan_indices());
    let changed = gateway.plane.find_paths(linux.netlink(), network, &gateway.handshakes.peers, anew);
    let addresses = gateway.plane.drives().wan.index().into_iter().flat_map(|wan| network.addresses_of(wan));
    let remote: Vec<_> = gateway.handshakes.peers.remote().into_iter().collect();
    let (kept, ruled) = (network.kept(&remote), network.ruled_from_lan());
    gateway.plane.steer(
        addresses.map(|address| address.address).collect(),
        plane::steering::prefixes(&gateway.handshakes.peers, &kept, &ruled, own),
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
