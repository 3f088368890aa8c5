//! The paths to the peers' endpoints: the kernel chooses the route, and where that leads through a WAN driven by AF_XDP
//! to a resolved neighbour, the workers send there themselves.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_dataplane::ports::Endpoint;
use penstock_proto::PeerId;

use super::tables::Path;
use crate::gateway::peers::Peers;
use crate::ground::Network;
use crate::netlink::{Interface, Netlink, Outer, RouteKind};

/// How long after an unanswered request a neighbour is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A neighbour: its interface and address.
type Neighbour = (u32, IpAddr);

/// The neighbours that AF_XDP sends the tunnel's packets to.
#[derive(Debug, Default)]
pub struct NextHops {
    used: BTreeSet<Neighbour>,
    /// The kernel's answer for each peer's endpoint, and for which source address it was given.
    found: HashMap<PeerId, (SocketAddr, Option<IpAddr>, Option<Hop>)>,
    /// When unresolved neighbours were last asked for.
    asked: HashMap<Neighbour, Instant>,
}

/// How the tunnel's packets leave.
pub struct Uplink<'a> {
    /// The interface that AF_XDP drives, if it exists.
    pub wan: Option<&'a Interface>,
    /// The mark of the packets.
    pub mark: u32,
    /// Their UDP port.
    pub port: u16,
    /// The destinations to which packets may take different ways, by their class.
    pub by_class: Vec<IpNet>,
}

impl Uplink<'_> {
    fn depends_on_class(&self, to: IpAddr) -> bool {
        self.by_class.iter().any(|prefix| prefix.contains(&to))
    }
}

impl NextHops {
    /// The path to every peer's endpoint, and the neighbours that are not resolved yet. The kernel is asked about new
    /// endpoints, or, with `anew`, about all of them.
    pub fn find(
        &mut self,
        netlink: &mut Netlink,
        network: &Network,
        peers: &Peers,
        uplink: &Uplink<'_>,
        anew: bool,
    ) -> (HashMap<PeerId, Path>, Vec<Neighbour>) {
        self.used.clear();
        let known = std::mem::take(&mut self.found);
        let known = |id, asked| known.get(&id).filter(|(at, from, _)| !anew && (*at, *from) == asked);
        let mut paths = HashMap::new();
        for peer in peers.iter() {
            let Some(endpoint) = peer.endpoint else { continue };
            let local = peer.local.filter(|local| network.has_address(*local));
            let Uplink { mark, port, .. } = *uplink;
            let outer = Outer { mark, source: local, source_port: port, destination: endpoint };
            let mut path = Path { endpoint: Some(Endpoint { remote: endpoint, local }), link: None };
            if let Some(wan) = uplink.wan.filter(|_| !uplink.depends_on_class(endpoint.ip())) {
                let hop = match known(peer.id, (endpoint, local)) {
                    Some((.., hop)) => *hop,
                    None => next_hop(netlink, wan, &outer),
                };
                self.found.insert(peer.id, (endpoint, local, hop));
                if let Some(hop) = hop {
                    path.link = network.link(wan, hop.address, hop.source);
                    self.used.insert((wan.index, hop.address));
                }
            }
            paths.insert(peer.id, path);
        }
        let resolved = |(interface, address): &&Neighbour| network.neighbours.contains_key(&(*interface, *address));
        let missing = self.used.iter().filter(|used| !resolved(used)).copied().collect();
        (paths, missing)
    }

    /// The neighbours in use, here and on the LAN interfaces `lan`, whose entries the kernel considers stale.
    pub fn stale(&self, network: &Network, lan: &[u32]) -> Vec<Neighbour> {
        let used = |n: &&crate::netlink::Neighbour| {
            n.stale && (lan.contains(&n.interface) || self.used.contains(&(n.interface, n.address)))
        };
        network.neighbours.values().filter(used).map(|n| (n.interface, n.address)).collect()
    }

    /// Has the kernel resolve neighbours, but does not keep asking for those that are silent.
    pub fn ask(&mut self, netlink: &mut Netlink, now: Instant, neighbours: &[Neighbour]) {
        self.asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
        for neighbour in neighbours {
            if self.asked.contains_key(neighbour) {
                continue;
            }
            self.asked.insert(*neighbour, now);
            if let Err(e) = netlink.use_neighbour(neighbour.0, neighbour.1) {
                tracing::debug!("neighbour {} cannot be resolved: {e}", neighbour.1);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Hop {
    address: IpAddr,
    source: IpAddr,
}

/// The next hop of an outer packet, if the kernel's route leads through `wan` and asks for nothing that workers do not
/// do: they neither encapsulate nor fragment.
fn next_hop(netlink: &mut Netlink, wan: &Interface, outer: &Outer) -> Option<Hop> {
    let route = netlink.route_of(outer).ok()??;
    if route.interface != Some(wan.index) || route.kind != RouteKind::Unicast {
        return None;
    }
    if route.kernel_only || route.mtu.is_some_and(|mtu| mtu < u32::from(wan.largest_packet())) {
        return None;
    }
    let source = outer.source.or(route.source)?;
    Some(Hop { address: route.gateway.unwrap_or(outer.destination.ip()), source })
}
