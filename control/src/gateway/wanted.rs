//! What should be, computed from the parts of the gateway: the kernel's state, what a map may contain, and where this
//! gateway can be reached.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_proto::trust::{Server, Surroundings};

use super::overlay::{DefaultRoutes, Overlay, endpoints_in_use};
use super::path_mtu;
use super::peers::Peers;
use super::plane::Plane;
use super::site::Site;
use crate::ground::{Guard, Network, Placement, Prefixes, Tun, Wanted};
use crate::profile::Name;

/// The most addresses inside guarded prefixes at which peers are looked for.
const PROBED_LIMIT: usize = 256;

/// Only the guard: at boot, before a start, after a stop.
pub fn guard_only(name: &Name, placement: Placement, guard: &Guard) -> Wanted {
    Wanted {
        name: name.clone(),
        placement,
        tun: None,
        tunnelled: Default::default(),
        mtus: Default::default(),
        guarded: guard.prefixes(),
        outer: Default::default(),
        local_port: None,
        forward: false,
    }
}

/// Everything, while the gateway runs.
pub fn wanted(
    site: &Site,
    placement: Placement,
    peers: &Peers,
    overlay: Option<&Overlay>,
    guard: &Guard,
    plane: &Plane,
    network: &Network,
) -> Wanted {
    let servers = overlay.into_iter().flat_map(Overlay::servers).map(|(address, _)| address);
    let endpoints = peers.iter().filter_map(|peer| peer.endpoint).map(|endpoint| endpoint.ip());
    let mut guarded = guard.prefixes();
    // A prefix that no peer has any more, but that lies inside one that a peer has, belongs to that peer.
    guarded.retain(|prefix| peers.owner(prefix).is_some() || !peers.is_remote(*prefix));
    let probed = probed(peers, overlay, &guarded);
    Wanted {
        tun: plane.tun().map(|index| tun(site, plane, network, index)),
        tunnelled: peers.remote(),
        mtus: path_mtu::of_prefixes(peers, plane.tunnel_mtu()),
        guarded,
        outer: servers.chain(endpoints).chain(probed).collect(),
        local_port: Some(plane.local_port()),
        forward: true,
        ..guard_only(&site.name, placement, guard)
    }
}

/// The addresses inside a guarded prefix at which peers are looked for. Other sites announce them, and each splits the
/// prefix into as many routes as it has free bits, so their number is limited.
fn probed(peers: &Peers, overlay: Option<&Overlay>, guarded: &BTreeSet<IpNet>) -> BTreeSet<IpAddr> {
    let mut candidates = overlay.into_iter().flat_map(|overlay| overlay.candidates(peers)).peekable();
    if candidates.peek().is_none() {
        return BTreeSet::new();
    }
    let guarded: Prefixes = guarded.iter().copied().collect();
    candidates.filter(|address| guarded.holding(*address).is_some()).take(PROBED_LIMIT).collect()
}

/// The tun device, with the source addresses of the gateway's own connections: its own in the tunnel, or else the
/// LAN's.
fn tun(site: &Site, plane: &Plane, network: &Network, index: u32) -> Tun {
    let lan = plane.drives().lan_indices();
    let own = |v4: bool| site.virtual_addresses.iter().copied().find(|a| a.is_ipv4() == v4);
    Tun {
        index,
        mtu: Some(u32::from(plane.tunnel_mtu())),
        addresses: site.virtual_addresses.iter().copied().collect(),
        source_v4: own(true).or_else(|| network.speaker_v4(&lan).map(IpAddr::V4)),
        source_v6: own(false).or_else(|| network.speaker_v6(&lan).map(IpAddr::V6)),
    }
}

/// What a map is judged by: this site's networks, what its profile accepts, and what must stay outside the tunnel.
pub fn surroundings(site: &Site, peers: &Peers, overlay: &Overlay, network: &Network) -> Surroundings {
    let endpoints = endpoints_in_use(peers, &overlay.believed.sites).map(|address| (address, Server::Endpoint));
    Surroundings::new(own_networks(site, network), site.accept.clone(), overlay.servers().chain(endpoints))
}

/// The networks that this gateway is connected to other than through the tunnel, and the site's subnets.
fn own_networks(site: &Site, network: &Network) -> Vec<IpNet> {
    let connected = network.interfaces.values().filter(|i| i.name != site.name.as_str()).flat_map(|interface| {
        network.addresses_of(interface.index).filter(|address| address.global).map(|address| address.network())
    });
    let own = site.virtual_addresses.iter().map(|address| IpNet::from(*address));
    connected.chain(site.subnets.iter().chain(&site.shown).copied()).chain(own).collect()
}

/// The addresses at which a peer might reach us, which are those of all interfaces except the tunnel's and the LAN's;
/// and the WAN's IPv4 router, which may map ports, with our address towards it.
pub fn place(site: &Site, plane: &Plane, network: &Network) -> (Vec<IpAddr>, Option<(IpAddr, IpAddr)>) {
    let outside = |interface: u32| {
        network
            .interface(interface)
            .is_some_and(|i| i.up && i.name != "lo" && i.name != site.name.as_str() && !site.lan.contains(&i.name))
    };
    let usable = network.addresses.iter().filter(|address| address.global && outside(address.interface));
    let hosts = usable.map(|address| address.address).collect();
    let router = plane.drives().wan.index().and_then(|wan| {
        let router = network.router(wan)?;
        let local = network.addresses_of(wan).map(|address| address.address).find(IpAddr::is_ipv4)?;
        Some((router, local))
    });
    (hosts, router)
}

/// The default routes, for noticing when they change.
pub fn default_routes(network: &Network) -> DefaultRoutes {
    network.default_routes().map(|route| (route.interface, route.gateway)).collect()
}
