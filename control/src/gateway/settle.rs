//! What follows from a change: routes, paths, next hops, steering maps, and the table.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ipnet::IpNet;

use super::Gateway;
use super::drives::Drive;
use super::network::Network;
use super::resolver::Resolved;
use super::routes::{PROTOCOL, Tunnel};
use super::steering;
use super::tables::{Path, icmp_source};
use crate::netlink::{Change, Neighbour, Netlink, Route, RouteKind};

/// A neighbour that does not answer is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What has changed and is not yet in force.
#[derive(Clone, Copy, Debug, Default)]
pub struct Due {
    /// Sessions, or something else that is in the table.
    pub table: bool,
    /// Which prefixes belong to whom, or the order of the peers.
    pub allowed_ips: bool,
    /// The routes to the remote prefixes.
    pub routes: bool,
    /// The ways to the endpoints.
    pub paths: bool,
}

impl Due {
    /// Peers came, went, or got other prefixes or endpoints.
    pub fn everything_of_peers(&mut self) {
        *self = Self { table: true, allowed_ips: true, routes: true, paths: true };
    }
}

impl Gateway {
    /// Puts in force what is due.
    ///
    /// # Errors
    /// A route could not be made. Everything else is in force.
    pub(super) fn settle(&mut self) -> Result<()> {
        let due = std::mem::take(&mut self.due);
        if due.paths || due.routes {
            let endpoints = self.peers.iter().filter_map(|p| p.endpoint).map(|e| e.ip());
            self.routes.pass_around(&mut self.netlink, &self.network.routes, &self.peers.remote(), endpoints);
        }
        let routed = if due.routes { self.settle_routes() } else { Ok(()) };
        let mut table = due.table;
        if due.paths || due.routes {
            table |= self.settle_paths();
            self.steer();
        }
        if due.allowed_ips {
            self.parts.renew_allowed_ips(&self.peers);
            table = true;
        }
        if table {
            self.publish();
        }
        routed
    }

    /// Blackholes first, then the routes by the tunnel, then the blackholes that are not needed.
    fn settle_routes(&mut self) -> Result<()> {
        let remote = self.peers.remote();
        self.routes.guard(&mut self.netlink, &remote)?;
        if remote.iter().any(|p| p.addr().is_ipv6()) {
            self.forwarding.enable_ipv6(&self.drives.wan.interface.name)?;
        }
        self.routes.lead(&mut self.netlink, &remote, &self.tunnel)?;
        self.routes.guard(&mut self.netlink, &remote)
    }

    /// Finds the way to every endpoint anew; whether any differs.
    fn settle_paths(&mut self) -> bool {
        let (mut paths, mut looping) = (HashMap::new(), HashSet::new());
        self.next_hops.clear();
        for peer in self.peers.iter() {
            let Some(endpoint) = peer.endpoint else { continue };
            let way = way(&mut self.netlink, &self.network, &self.drives.wan, self.tunnel.interface, endpoint);
            if way.looping {
                looping.insert(peer.id);
                if !self.looping.contains(&peer.id) {
                    let label = peer.label();
                    tracing::error!("{label}: endpoint {endpoint} is routed into the tunnel itself; nothing is sent");
                }
            }
            self.next_hops.extend(way.next_hop);
            paths.insert(peer.id, way.path);
        }
        self.looping = looping;
        let missing: Vec<_> = self
            .next_hops
            .iter()
            .filter(|(interface, address)| !self.network.neighbours.iter().any(|n| n.is(*interface, *address)))
            .copied()
            .collect();
        self.ask_for(&missing);
        let changed = paths != self.paths;
        self.paths = paths;
        changed
    }

    /// Has the kernel resolve neighbours, but not again and again those that are silent.
    fn ask_for(&mut self, neighbours: &[(u32, IpAddr)]) {
        let now = Instant::now();
        self.asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
        for neighbour in neighbours {
            if self.asked.contains_key(neighbour) {
                continue;
            }
            self.asked.insert(*neighbour, now);
            if let Err(e) = self.netlink.use_neighbour(neighbour.0, neighbour.1) {
                tracing::debug!("neighbour {} cannot be asked for: {e}", neighbour.1);
            }
        }
    }

    /// Keeps the kernel's entries of neighbours that only AF_XDP sends to.
    pub(super) fn confirm_neighbours(&mut self) {
        if !self.drives.any_xdp() {
            return;
        }
        let lan = self.lan_xdp();
        let used = |n: &&Neighbour| lan.contains(&n.interface) || self.next_hops.contains(&(n.interface, n.address));
        let stale: Vec<_> =
            self.network.neighbours.iter().filter(used).filter(|n| n.stale).map(|n| (n.interface, n.address)).collect();
        self.ask_for(&stale);
        // Those that were silent get another chance.
        self.due.paths = true;
    }

    /// Tells the steering programs.
    pub(super) fn steer(&mut self) {
        if self.steering.is_empty() {
            return;
        }
        let wan = self.drives.wan.interface.index;
        let addresses: BTreeSet<IpAddr> = self.network.addresses_of(wan).map(|a| a.address).collect();
        self.steering.set_addresses(addresses);
        let remote: Vec<IpNet> = self.peers.remote().into_iter().collect();
        let kept = self.network.kept(&remote, PROTOCOL);
        self.steering.set_prefixes(steering::prefixes(&self.peers, &kept));
    }

    fn publish(&mut self) {
        let table = self.parts.table(&self.peers, |peer| self.paths.get(&peer.id).copied().unwrap_or_default());
        self.engine.publish(table);
    }

    /// Looks at what the kernel says is new.
    ///
    /// # Errors
    /// An interface that the gateway stands on is gone.
    pub(super) fn network_changed(&mut self, change: Change) -> Result<()> {
        let before = self.network.clone();
        self.network.refresh(&mut self.netlink, change)?;
        self.check_interfaces()?;
        if change.routes && self.routes.forget_lost(&self.network.routes) {
            tracing::warn!("somebody removed routes of the tunnel; they are made again");
            self.due.routes = true;
        }
        if self.network.says_same(&before) {
            return Ok(());
        }
        self.due.paths = true;
        self.find_paths_anew(&before);
        if self.renew_parts() {
            self.due.table = true;
        }
        let tunnel = self.tunnel_sources();
        if tunnel != self.tunnel {
            self.tunnel = tunnel;
            self.due.routes = true;
        }
        Ok(())
    }

    fn check_interfaces(&self) -> Result<()> {
        let drives = std::iter::once(&self.drives.wan).chain(&self.drives.lan);
        for Drive { interface, .. } in drives {
            if self.network.interface(interface.index).is_none() {
                bail!("interface {} is gone", interface.name);
            }
        }
        if self.network.interface(self.tunnel.interface).is_none() {
            bail!("the tunnel's device {} was removed", self.name);
        }
        Ok(())
    }

    /// Renews what tables have from the network; whether anything may differ.
    pub(super) fn renew_parts(&mut self) -> bool {
        let lan: Vec<u32> = self.drives.lan.iter().map(|d| d.interface.index).collect();
        let (v4, v6) = (self.network.speaker_v4(&lan), self.network.speaker_v6(&lan));
        let own = &self.virtual_addresses;
        let icmp_v4 = icmp_source(v4, own, |a| if let IpAddr::V4(a) = a { Some(a) } else { None });
        let icmp_v6 = icmp_source(v6, own, |a| if let IpAddr::V6(a) = a { Some(a) } else { None });
        let spoken = (icmp_v4, icmp_v6) != (self.parts.icmp_v4, self.parts.icmp_v6);
        (self.parts.icmp_v4, self.parts.icmp_v6) = (icmp_v4, icmp_v6);
        let lan = self.lan_xdp();
        if lan.is_empty() {
            return spoken;
        }
        self.parts.hops = Arc::new(self.network.hops(&lan));
        true
    }

    /// LAN interfaces that are driven by AF_XDP.
    fn lan_xdp(&self) -> Vec<u32> {
        self.drives.lan.iter().filter(|d| d.xdp()).map(|d| d.interface.index).collect()
    }

    /// The tun device with the addresses that the gateway's own connections begin from: its own in
    /// the tunnel, else the LAN's.
    pub(super) fn tunnel_sources(&self) -> Tunnel {
        let lan: Vec<u32> = self.drives.lan.iter().map(|d| d.interface.index).collect();
        let own = |v4: bool| self.virtual_addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        Tunnel {
            interface: self.tunnel.interface,
            source_v4: own(true).or_else(|| self.network.speaker_v4(&lan).map(IpAddr::V4)),
            source_v6: own(false).or_else(|| self.network.speaker_v6(&lan).map(IpAddr::V6)),
        }
    }

    /// A name was resolved.
    pub(super) fn resolved(&mut self, now: Instant, resolved: Resolved) {
        let Some(id) = self.peers.with_key(&resolved.peer).map(|p| p.id) else { return };
        let Some(peer) = self.peers.of_mut(id) else { return };
        let Some(crate::profile::Endpoint::Host { name, port }) = &peer.configured else { return };
        if *name != resolved.name {
            return;
        }
        let Some(endpoint) = resolved.addresses.first().copied() else {
            if peer.endpoint.is_none() {
                self.resolver.ask(resolved.peer, name, *port, true);
            }
            return;
        };
        if peer.endpoint == Some(endpoint) {
            return;
        }
        tracing::info!("{}: {name} is {endpoint}", peer.label());
        peer.endpoint = Some(endpoint);
        self.proto.set_endpoint(id, Some(endpoint));
        if let Some(interval) = peer.persistent_keepalive {
            self.proto.set_persistent_keepalive(now, id, Some(interval));
        }
        self.due.paths = true;
    }
}

/// How to get to an endpoint.
struct Way {
    path: Path,
    next_hop: Option<(u32, IpAddr)>,
    looping: bool,
}

fn way(netlink: &mut Netlink, network: &Network, wan: &Drive, tun: u32, endpoint: SocketAddr) -> Way {
    let by_kernel = Way { path: Path { endpoint: Some(endpoint), link: None }, next_hop: None, looping: false };
    let Ok(Some(route)) = netlink.route_to(endpoint.ip()) else { return by_kernel };
    if route.interface == Some(tun) {
        return Way { path: Path::default(), looping: true, ..by_kernel };
    }
    let Route { interface, gateway, source, kind, .. } = route;
    let interface = network.interface(wan.interface.index).filter(|i| Some(i.index) == interface && wan.xdp());
    let (Some(interface), Some(source), RouteKind::Unicast) = (interface, source, kind) else { return by_kernel };
    let next = gateway.unwrap_or(endpoint.ip());
    let path = Path { endpoint: Some(endpoint), link: network.link(interface, next, source) };
    Way { path, next_hop: Some((interface.index, next)), looping: false }
}
