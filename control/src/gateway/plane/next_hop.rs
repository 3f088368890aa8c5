//! The ways to the peers' endpoints: the kernel chooses the route, and where it leads out of a WAN that AF_XDP drives
//! to a neighbour that is resolved, the workers send there themselves.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_proto::PeerId;

use super::tables::Path;
use crate::gateway::peers::Peers;
use crate::ground::Network;
use crate::netlink::{Interface, Netlink, Outer, RouteKind};

/// A neighbour that does not answer is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A neighbour: its interface and address.
type Neighbour = (u32, IpAddr);

/// The neighbours that AF_XDP sends the tunnel to.
#[derive(Debug, Default)]
pub struct NextHops {
    used: BTreeSet<Neighbour>,
    /// What the kernel said of each peer's endpoint, and of packets from which address of ours.
    found: HashMap<PeerId, (SocketAddr, Option<IpAddr>, Option<Hop>)>,
    /// When unresolved neighbours were last asked for.
    asked: HashMap<Neighbour, Instant>,
}

impl NextHops {
    /// The path to every peer's endpoint, and the neighbours that are not resolved yet. `wan` is the interface that
    /// AF_XDP drives, if it is there; `outer` the mark and UDP port of the tunnel's packets. The kernel is asked
    /// about endpoints that are new, or `anew` about all of them.
    pub fn find(
        &mut self,
        netlink: &mut Netlink,
        network: &Network,
        wan: Option<&Interface>,
        peers: &Peers,
        (mark, port): (u32, u16),
        anew: bool,
    ) -> (HashMap<PeerId, Path>, Vec<Neighbour>) {
        self.used.clear();
        let known = std::mem::take(&mut self.found);
        let known = |id, asked| known.get(&id).filter(|(at, from, _)| !anew && (*at, *from) == asked);
        let mut paths = HashMap::new();
        for peer in peers.iter() {
            let Some(endpoint) = peer.endpoint else { continue };
            let local = peer.local.filter(|local| network.has_address(*local));
            let outer = Outer { mark, source: local, source_port: port, destination: endpoint };
            let mut path = Path { endpoint: Some(endpoint), local, link: None };
            if let Some(wan) = wan {
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

    /// The neighbours in use, here and on the LAN interfaces `lan`, that the kernel is no longer sure of.
    pub fn stale(&self, network: &Network, lan: &[u32]) -> Vec<Neighbour> {
        let used = |n: &&crate::netlink::Neighbour| {
            n.stale && (lan.contains(&n.interface) || self.used.contains(&(n.interface, n.address)))
        };
        network.neighbours.values().filter(used).map(|n| (n.interface, n.address)).collect()
    }

    /// Has the kernel resolve neighbours, but not again and again those that are silent.
    pub fn ask(&mut self, netlink: &mut Netlink, now: Instant, neighbours: &[Neighbour]) {
        self.asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
        for neighbour in neighbours {
            if self.asked.contains_key(neighbour) {
                continue;
            }
            self.asked.insert(*neighbour, now);
            if let Err(e) = netlink.use_neighbour(neighbour.0, neighbour.1) {
                tracing::debug!("neighbour {} cannot be asked for: {e}", neighbour.1);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Hop {
    address: IpAddr,
    source: IpAddr,
}

/// The next hop of an outer packet, if the kernel's route leads out of `wan`.
fn next_hop(netlink: &mut Netlink, wan: &Interface, outer: &Outer) -> Option<Hop> {
    let route = netlink.route_of(outer).ok()??;
    if route.interface != Some(wan.index) || route.kind != RouteKind::Unicast {
        return None;
    }
    let source = outer.source.or(route.source)?;
    Some(Hop { address: route.gateway.unwrap_or(outer.destination.ip()), source })
}
