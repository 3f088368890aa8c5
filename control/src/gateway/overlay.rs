//! Peers that the coordinator names: its map becomes peers and prefixes, the paths found to them become
//! endpoints, and what we learn of our own place goes back to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use penstock_connect::CoordinatorUrl;
use penstock_proto::coordination::{self, Candidate, Map, RefusalReason, Registration, SiteKey};
use penstock_proto::path::Path;
use penstock_proto::{Bucket, PeerConfig};

use super::Gateway;
use super::network::Network;
use super::peers::{Found, Peer, Peers};
use crate::coordinator::{Client, Event};
use crate::key::PublicKey;
use crate::traversal::{self, Selection, Traversal};

/// What a gateway with a coordinator has.
pub struct Overlay {
    /// Where the coordinator is.
    pub url: CoordinatorUrl,
    /// The connection to the coordinator.
    pub client: Client,
    /// The ways to the peers.
    pub traversal: Traversal,
    /// What the coordinator said last.
    pub map: Map,
    /// What it has on record of us.
    pub registration: Option<Registration>,
    /// First handshakes that nobody has asked for, lately.
    pub greetings: Bucket,
}

/// First handshakes a second, and at once, that go out before there is anything to send. Half of what a relay
/// lets one site begin, so that handshakes for traffic find room.
const GREETINGS_PER_SECOND: u32 = 10;
const GREETING_BURST: u32 = 100;

/// What came in for the overlay.
pub enum Input {
    /// The coordinator said something, or is gone.
    Coordinator(Box<Event>),
    /// Something came in on the way to the peers.
    Traversal(traversal::Input),
}

impl Overlay {
    /// Gives back what others hold for us, and keeps what is known for the next start.
    pub async fn stop(mut self) {
        self.traversal.release().await;
        self.client.stop().await;
    }

    /// Whether a peer may be called before there is anything to send to it.
    fn greets(&mut self, now: Instant) -> bool {
        let cost = Duration::from_secs(1) / GREETINGS_PER_SECOND;
        self.greetings.take(now, cost, cost * GREETING_BURST)
    }

    /// The next input. Cancel safe.
    pub async fn next(overlay: &mut Option<Self>) -> Input {
        let Some(Self { client, traversal, .. }) = overlay else { return std::future::pending().await };
        tokio::select! {
            event = client.next() => Input::Coordinator(Box::new(event)),
            input = traversal.next() => Input::Traversal(input),
        }
    }
}

/// Makes peers of a map's sites. What the profile says of a site, or gives to another peer, stays so.
/// Returns whether anything is new or gone, and the keys of those that came and went.
pub fn meet(map: &Map, proto: &mut penstock_proto::Gateway, peers: &mut Peers, now: Instant) -> Changes {
    let mut changes = Changes::default();
    let gone =
        |peer: &&Peer| peer.found.is_some() && !map.peers.contains_key(&SiteKey::from(*peer.public_key.as_bytes()));
    let gone: Vec<_> = peers.iter().filter(gone).map(|peer| peer.id).collect();
    for id in gone {
        proto.remove_peer(id);
        if let Some(peer) = peers.remove(id) {
            tracing::info!("{}: gone from the coordinator's map", peer.label());
            changes.removed.push(peer.public_key);
        }
    }
    let by_profile = |owner| peers.of(owner).is_some_and(|peer| peer.found.is_none());
    let taken: BTreeSet<IpNet> =
        peers.allowed_ips().filter(|(_, owner)| by_profile(*owner)).map(|(prefix, _)| *prefix).collect();
    for (key, site) in &map.peers {
        let key = PublicKey::from_bytes(*key.as_bytes());
        let known = peers.with_key(&key).map(|peer| (peer.id, peer.found.is_some()));
        let id = match known {
            Some((_, false)) => continue,
            Some((id, true)) => id,
            None => {
                let config = PeerConfig { fixed_endpoint: true, ..PeerConfig::default() };
                let id = match proto.add_peer(now, key.into(), config) {
                    Ok(id) => id,
                    Err(e) => {
                        tracing::error!("{} cannot be added: {e:?}", site.name);
                        continue;
                    }
                };
                let number = peers.number();
                let mut peer = Peer::new(id, number, key);
                peer.found = Some(Found::default());
                peers.push(peer);
                tracing::info!("{}: {}", site.name, join(&prefixes(site)));
                changes.added.push(key);
                id
            }
        };
        changes.others |= allow(peers, id, prefixes(site).difference(&taken).copied().collect());
        if let Some(peer) = peers.of_mut(id) {
            peer.name = site.name.to_string();
        }
    }
    changes
}

/// What a new map has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Who is new.
    pub added: Vec<PublicKey>,
    /// Who is gone.
    pub removed: Vec<PublicKey>,
    /// Whether anybody has other prefixes.
    pub others: bool,
}

fn prefixes(site: &coordination::Peer) -> BTreeSet<IpNet> {
    site.subnets.iter().copied().chain([IpNet::from(IpAddr::from(site.virtual_address))]).collect()
}

/// Gives a peer exactly these prefixes; whether that changes anything.
fn allow(peers: &mut Peers, id: penstock_proto::PeerId, wanted: BTreeSet<IpNet>) -> bool {
    let has: BTreeSet<IpNet> = peers.allowed_ips_of(id).into_iter().collect();
    has.difference(&wanted).for_each(|prefix| peers.disallow(*prefix, id));
    for prefix in wanted.difference(&has) {
        peers.allow(*prefix, id);
    }
    has != wanted
}

fn join(prefixes: &BTreeSet<IpNet>) -> String {
    prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Gateway {
    /// Takes what came in for the overlay.
    pub(super) fn take_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Coordinator(event) => self.heard(now, *event),
            Input::Traversal(input) => {
                if let Some(overlay) = &mut self.overlay {
                    overlay.traversal.handle_input(now, &input);
                }
            }
        }
    }

    fn heard(&mut self, now: Instant, event: Event) {
        match event {
            // The others are told to forget us; so do we.
            Event::Refused(refusal) if refusal.reason == RefusalReason::Revoked => self.take_map(now, Map::default()),
            Event::Connected | Event::Lost(_) | Event::Refused(_) => {}
            Event::Registered(registration) => self.registered(registration),
            Event::Map(map) => self.take_map(now, map),
        }
    }

    /// Takes over what the coordinator has on record of us: the address, unless the profile has one.
    pub(super) fn registered(&mut self, registration: Registration) {
        let Some(overlay) = &mut self.overlay else { return };
        if overlay.registration.as_ref() == Some(&registration) {
            return;
        }
        let address = IpAddr::from(registration.virtual_address);
        overlay.registration = Some(registration);
        if self.own_address || self.virtual_addresses == [address] {
            return;
        }
        if let Err(e) = self.move_to(address) {
            tracing::error!("{} cannot have the address {address}: {e}", self.name);
        }
    }

    fn move_to(&mut self, address: IpAddr) -> Result<()> {
        let tun = self.tunnel.interface;
        self.netlink.add_address(tun, address)?;
        for old in std::mem::replace(&mut self.virtual_addresses, vec![address]) {
            self.netlink.remove_address(tun, old)?;
        }
        self.tunnel = self.tunnel_sources();
        self.renew_parts();
        (self.due.routes, self.due.table) = (true, true);
        Ok(())
    }

    /// Takes over a map: peers, their prefixes and addresses, and the servers.
    pub(super) fn take_map(&mut self, now: Instant, map: Map) {
        let Some(overlay) = &mut self.overlay else { return };
        let changes = meet(&map, &mut self.proto, &mut self.peers, now);
        overlay.map = map;
        self.meet_paths(now, &changes);
        if changes.others || !changes.added.is_empty() || !changes.removed.is_empty() {
            self.due.everything_of_peers();
        }
    }

    /// Has paths found to the map's peers.
    pub(super) fn meet_paths(&mut self, now: Instant, changes: &Changes) {
        let Some(Overlay { traversal, map, .. }) = &mut self.overlay else { return };
        traversal.set_servers(now, &map.relays, &map.stun_servers);
        changes.removed.iter().for_each(|key| traversal.remove_peer(&(*key).into()));
        for key in &changes.added {
            if let Err(e) = traversal.add_peer(now, (*key).into()) {
                tracing::error!("no path can be found to {key}: {e}");
            }
        }
        // What lies behind the tunnel cannot be the way to its end.
        let remote = self.peers.remote();
        let outside = |candidate: &&Candidate| !remote.iter().any(|prefix| prefix.contains(&candidate.address.ip()));
        for (key, site) in &map.peers {
            let told = site.reachability.clone().unwrap_or_default();
            let candidates: Vec<Candidate> = told.candidates.iter().filter(outside).copied().collect();
            traversal.set_remote(now, &(*key).into(), &candidates, told.nat_type.unwrap_or_default());
        }
    }

    /// Has the paths followed: what the agent has chosen becomes endpoints, what it has learnt of us goes
    /// to the coordinator.
    pub(super) fn follow_paths(&mut self, now: Instant) {
        let Some(Overlay { client, traversal, .. }) = &mut self.overlay else { return };
        traversal.step(now);
        if let Some(reachability) = traversal.poll_reachability() {
            client.announce(reachability);
        }
        while let Some(selection) = self.overlay.as_mut().and_then(|overlay| overlay.traversal.poll_selection()) {
            self.select(now, selection);
        }
    }

    fn select(&mut self, now: Instant, Selection { peer, endpoint, path, reason }: Selection) {
        let relay = |id| self.overlay.as_ref().and_then(|overlay| overlay.traversal.relay_name(id)).unwrap_or_default();
        let way = match path {
            Path::Direct { address, .. } => format!("direct to {address}"),
            Path::Relay { relay: id, .. } => format!("by relay {}: {reason}", relay(id)),
            Path::None => format!("no path: {reason}"),
        };
        let Some(id) = self.peers.with_key(&PublicKey::from_bytes(peer.to_bytes())).map(|peer| peer.id) else { return };
        let Some(peer) = self.peers.of_mut(id) else { return };
        tracing::info!("{}: {way}", peer.label());
        let before = peer.found.replace(Found { path, reason });
        if peer.endpoint != endpoint {
            peer.endpoint = endpoint;
            self.proto.set_endpoint(id, endpoint);
            self.due.paths = true;
        }
        if before.is_none_or(|before| before.path != path) {
            // A relay knows by handshakes which session is whose, and has seen none of this one's, nor of one
            // that is in the making.
            let known = self.proto.peer(id).is_some_and(|peer| peer.handshake_under_way()) || peer.sending.is_some();
            let unseen = matches!(path, Path::Relay { .. }) && known;
            // We may have been restarted: the peer would send by a session that we have not until it has missed
            // our answers for 15 s.
            let first = peer.sending.is_none() && before.is_some_and(|before| before.path == Path::None);
            let renew = unseen || (first && self.overlay.as_mut().is_some_and(|overlay| overlay.greets(now)));
            self.proto.handle_path(now, id, renew);
        }
    }

    /// The addresses at which a peer might reach us: those of all interfaces that are neither the tunnel's
    /// nor the LAN's.
    pub(super) fn hosts(&self) -> Vec<IpAddr> {
        let inside: Vec<u32> =
            self.drives.lan.iter().map(|drive| drive.interface.index).chain([self.tunnel.interface]).collect();
        hosts(&self.network, &inside)
    }

    /// The network is another: whether that matters to paths.
    pub(super) fn find_paths_anew(&mut self, before: &Network) {
        let moved = default_routes(before) != default_routes(&self.network);
        self.place_paths();
        if let Some(Overlay { client, traversal, .. }) = self.overlay.as_mut().filter(|_| moved) {
            traversal.network_changed(Instant::now());
            client.hurry();
        }
    }

    /// Tells the traversal where we are.
    pub(super) fn place_paths(&mut self) {
        let (now, hosts, route) = (Instant::now(), self.hosts(), self.router());
        if let Some(Overlay { traversal, .. }) = &mut self.overlay {
            traversal.set_hosts(now, hosts);
            traversal.set_route(now, route);
        }
    }

    /// The IPv4 router of the WAN, which may map ports, and our address towards it.
    fn router(&self) -> Option<(IpAddr, IpAddr)> {
        let wan = self.drives.wan.interface.index;
        let default =
            self.network.routes.iter().filter(|r| r.destination.prefix_len() == 0 && r.interface == Some(wan));
        let router = default.filter_map(|route| route.gateway).find(IpAddr::is_ipv4)?;
        let local = self.network.addresses_of(wan).map(|address| address.address).find(IpAddr::is_ipv4)?;
        Some((router, local))
    }

    /// Where a peer's WireGuard datagrams go, for `status`.
    pub(super) fn relay_of(&self, peer: &Peer) -> Option<String> {
        match peer.found?.path {
            Path::Relay { relay, .. } => self.overlay.as_ref()?.traversal.relay_name(relay),
            _ => None,
        }
    }
}

fn hosts(network: &Network, inside: &[u32]) -> Vec<IpAddr> {
    let outside = |interface: u32| {
        !inside.contains(&interface) && network.interface(interface).is_some_and(|i| i.up && i.name != "lo")
    };
    let usable = network.addresses.iter().filter(|address| address.global && outside(address.interface));
    usable.map(|address| address.address).collect()
}

fn default_routes(network: &Network) -> Vec<(Option<u32>, Option<IpAddr>)> {
    let default = network.routes.iter().filter(|route| route.destination.prefix_len() == 0);
    default.map(|route| (route.interface, route.gateway)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::peers::tests::peers;
    use super::*;

    use std::net::Ipv4Addr;

    fn site(name: &str, number: u8, subnets: &[&str]) -> coordination::Peer {
        coordination::Peer {
            name: name.parse().unwrap(),
            virtual_address: Ipv4Addr::new(100, 64, 0, number),
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            reachability: None,
        }
    }

    fn map<const N: usize>(sites: [(u8, coordination::Peer); N]) -> Map {
        let peers = sites.into_iter().map(|(key, site)| (SiteKey::from([key; 32]), site)).collect();
        Map { peers, ..Map::default() }
    }

    fn prefixes_of(peers: &Peers, name: &str) -> Vec<String> {
        let peer = peers.iter().find(|peer| peer.name == name).unwrap();
        peers.allowed_ips_of(peer.id).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn peers_follow_the_map() {
        let (mut proto, mut peers) = peers(&[]);
        let now = Instant::now();
        let both = map([(7, site("berlin", 7, &["10.7.0.0/16"])), (8, site("cadiz", 8, &["10.8.0.0/16"]))]);
        let changes = meet(&both, &mut proto, &mut peers, now);
        assert_eq!((changes.added.len(), changes.removed.len(), changes.others), (2, 0, true));
        assert_eq!(prefixes_of(&peers, "berlin"), ["10.7.0.0/16", "100.64.0.7/32"]);
        assert!(peers.iter().all(|peer| !peer.roams() && peer.endpoint.is_none()));

        let changes = meet(&both, &mut proto, &mut peers, now);
        assert!(changes.added.is_empty() && changes.removed.is_empty() && !changes.others, "{changes:?}");

        // Cadiz is gone, and Berlin takes its subnet over.
        let one = map([(7, site("berlin", 7, &["10.8.0.0/16"]))]);
        let changes = meet(&one, &mut proto, &mut peers, now);
        assert_eq!((changes.removed.len(), changes.others), (1, true));
        assert_eq!(prefixes_of(&peers, "berlin"), ["10.8.0.0/16", "100.64.0.7/32"]);
        assert_eq!(peers.remote().len(), 2);
        assert!(proto.peer_of(&PublicKey::from_bytes([8; 32]).into()).is_none(), "its sessions are over");
    }

    #[test]
    fn the_profile_comes_first() {
        let (mut proto, mut peers) = peers(&[7]);
        let now = Instant::now();
        let profiled = peers.iter().next().unwrap().id;
        peers.allow("10.7.0.0/16".parse().unwrap(), profiled);
        let greedy =
            map([(7, site("berlin", 7, &["10.9.0.0/16"])), (8, site("cadiz", 8, &["10.7.0.0/16", "10.7.1.0/24"]))]);
        meet(&greedy, &mut proto, &mut peers, now);
        assert_eq!(peers.allowed_ips_of(profiled), ["10.7.0.0/16".parse::<IpNet>().unwrap()]);
        assert!(peers.of(profiled).unwrap().roams());
        assert_eq!(prefixes_of(&peers, "cadiz"), ["10.7.1.0/24", "100.64.0.8/32"]);
        meet(&Map::default(), &mut proto, &mut peers, now);
        assert_eq!(peers.iter().map(|peer| peer.id).collect::<Vec<_>>(), [profiled]);
    }
}
