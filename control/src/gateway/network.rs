//! Between the kernel and the other parts: what network changes mean here, and what the kernel and the steering
//! programs are told.

use std::net::IpAddr;
use std::time::Instant;

use super::due::Due;
use super::{Gateway, bypass, map, plane, wanted};
use crate::ground::Changed;

/// A problem's subject.
const NO_ADDRESS: &str = "outer addresses";

/// Follows the changes that the kernel reports.
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
    if changed.elements {
        gateway.bypass.note_elements(now);
    }
    if *changed == (Changed { elements: changed.elements, ..Changed::default() }) {
        return;
    }
    let network = gateway.ground.network();
    if changed.addresses {
        gateway.bypass.note_prefixes(now);
    }
    gateway.due.table |= gateway.plane.follow_hops(network, &gateway.site.virtual_addresses, gateway.site.behind());
    let endpoints = gateway.handshakes.peers.iter().filter_map(|peer| peer.endpoint);
    // An interface's MAC address is part of the links.
    gateway.due.paths |= changed.neighbours
        || changed.interfaces
        || endpoints.into_iter().any(|endpoint| changed.affects(endpoint.ip()));
    // A site without configured subnets has the networks that its LAN interfaces are connected to.
    gateway.due.paths |= changed.addresses;
    if let Some(overlay) = &mut gateway.overlay {
        let (hosts, router) = wanted::place(&gateway.site, &gateway.plane, network);
        overlay.set_place(now, hosts, router, wanted::default_routes(network));
    }
    if changed.interfaces || changed.addresses {
        note_missing_address(gateway, now);
        // Which parts of the map are accepted depends on the networks here.
        map::apply(gateway, now);
    }
}

/// Reports when there is no address that outer packets could be sent from; the gateway then waits for one. It need not
/// be on the WAN, nor global when the peers are on the link.
fn note_missing_address(gateway: &mut Gateway, now: Instant) {
    let Gateway { site, handshakes, overlay, ground, problems, .. } = gateway;
    let network = ground.network();
    let outside = |name: &str| name == site.wan || (name != site.name.as_str() && !site.lan.contains(name));
    let is_outside = |index| network.interface(index).is_some_and(|interface| outside(&interface.name));
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut addresses = network.addresses.iter().filter(|address| is_outside(address.interface));
    let global = addresses.clone().any(|address| address.global);
    let mut endpoints = handshakes.peers.iter().map(|peer| peer.endpoint);
    if global || endpoints.clone().flatten().any(|endpoint| link_local(endpoint.ip())) {
        problems.solved(NO_ADDRESS);
    } else if overlay.is_none() && endpoints.any(|e| e.is_none()) && addresses.any(|a| link_local(a.address)) {
        let sentence = "no interface other than the tunnel's and the LAN's has an address that is not link-local, so only \
                        peers on the same link can call";
        problems.warn(now, NO_ADDRESS, sentence, "give the WAN interface an address, unless all peers are on its link");
    } else {
        let sentence = "no interface other than the tunnel's and the LAN's has an address, so no peer can be reached";
        problems.note(now, NO_ADDRESS, sentence, "give the WAN interface an address; the gateway waits for it");
    }
}

/// Compares the kernel with what should be, and applies the difference.
pub fn reconcile(gateway: &mut Gateway, now: Instant) {
    let Gateway { profile, site, handshakes, overlay, guard, plane, ground, problems, .. } = gateway;
    let placement = site.placement(&profile.path);
    guard.place(placement.clone());
    let wanted = wanted::wanted(site, placement, &handshakes.peers, overlay.as_ref(), guard, plane, ground.network());
    ground.reconcile(now, &wanted);
    // What was released is forgotten on disk only now that it is gone from the kernel.
    guard.save(now, problems);
}

/// Finds the paths to the endpoints and tells the steering programs; returns whether the table has to follow. The
/// kernel is asked about new endpoints, or with `anew` about all.
pub fn find_paths(gateway: &mut Gateway, anew: bool) -> bool {
    let (linux, network) = gateway.ground.parts();
    let own = network.of_site(&gateway.site.subnets, &gateway.plane.drives().lan_indices());
    let changed = gateway.plane.find_paths(linux.netlink(), network, &gateway.handshakes.peers, anew);
    let addresses = gateway.plane.drives().wan.index().into_iter().flat_map(|wan| network.addresses_of(wan));
    let remote: Vec<_> = gateway.handshakes.peers.remote().into_iter().collect();
    let (kept, ruled) = (network.kept(&remote, &own), network.ruled_from_lan());
    gateway.plane.steer(
        &addresses.map(|address| address.address).collect(),
        &plane::steering::prefixes(
            &gateway.handshakes.peers,
            |prefix| gateway.guard.contains(prefix),
            &kept,
            &ruled,
            own,
        ),
    );
    changed
}

/// Looks at what the kernel does not announce: the number of receive queues, settings, the guard's file. Confirms the
/// neighbours that only AF_XDP sends to.
pub fn confirm(gateway: &mut Gateway) {
    let (linux, network) = gateway.ground.parts();
    gateway.plane.confirm_neighbours(linux.netlink(), network);
    gateway.plane.recount_queues();
    gateway.guard.confirm();
    // Neighbours that were silent get another chance.
    gateway.due.add(Due { paths: true, ground: true, ..Due::default() });
}
