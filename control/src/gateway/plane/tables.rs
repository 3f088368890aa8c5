//! The table that workers read, made from what control knows. Unchanged parts are shared with the previous table.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use penstock_dataplane::filter::Firewall;
use penstock_dataplane::mapping::Mapping;
use penstock_dataplane::ports::{Endpoint, Link};
use penstock_dataplane::prefix::PrefixMap;
use penstock_dataplane::shaper::WanRate;
use penstock_dataplane::table::{PeerEntry, SessionEntry, Table};

use super::PlaneConfig;
use crate::gateway::peers::{Peer, Peers};
use crate::ground::Network;

/// The groups of a single link: used by the gateway's own protocols, never forwarded.
const LOCAL_GROUPS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 24);
const LOCAL_GROUPS_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16);

/// What can be reached through the tunnel on this side.
#[derive(Clone, Copy, Debug)]
pub enum Behind<'a> {
    /// These prefixes; if there are none, the networks of the LAN interfaces.
    Subnets(&'a BTreeSet<IpNet>),
    /// Anything that the kernel has a route to.
    Anything,
}

/// Where a peer's datagrams go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Its endpoint, if it is known, and the source address of packets to it, if it has sent to one of ours that still
    /// exists.
    pub endpoint: Option<Endpoint>,
    /// The link to it for AF_XDP.
    pub link: Option<Link>,
}

/// What tables are made from besides the peers.
#[derive(Debug, Default)]
pub struct Parts {
    /// The peer that an address belongs to, by its place in the list. Updated by [`Parts::renew_allowed_ips`].
    allowed_ips: Arc<PrefixMap<u32>>,
    /// The peers' endpoints.
    endpoints: Arc<HashSet<SocketAddr>>,
    /// Next hops on the LAN.
    hops: Arc<PrefixMap<Option<Link>>>,
    /// What the tunnel may reach here, as prefixes and as a map; `None`: anything.
    reachable_prefixes: Option<BTreeSet<IpNet>>,
    reachable: Option<Arc<PrefixMap<()>>>,
    /// Which flows may pass; `None`: all of them.
    firewall: Option<Arc<Firewall>>,
    /// Largest inner packet.
    mtu: u16,
    /// Whether outer packets get the DSCP of the inner ones.
    copy_dscp: bool,
    /// The rate limit for everything sent over the WAN, if there is one. It is the same object as long as the rate
    /// stays the same.
    wan_rate: Option<Arc<WanRate>>,
    /// How this site's prefixes are mapped, if any are.
    mapping: Option<Arc<Mapping>>,
    /// The source address of ICMP messages about IPv4.
    icmp_v4: Option<Ipv4Addr>,
    /// The source address of ICMP messages about IPv6.
    icmp_v6: Option<Ipv6Addr>,
}

impl Parts {
    /// Empty parts of a tunnel with this MTU.
    pub fn new(mtu: u16, config: &PlaneConfig) -> Self {
        let mut parts = Self { mtu, ..Self::default() };
        parts.set_config(config);
        parts
    }

    /// Takes up the profile's settings for packets, for the next table.
    pub fn set_config(&mut self, config: &PlaneConfig) {
        self.copy_dscp = config.copy_dscp;
        let rate = config.wan_rate.map(|rate| rate.bits_per_second());
        if self.wan_rate.as_ref().map(|rate| rate.bits_per_second()) != rate {
            self.wan_rate = rate.map(|rate| Arc::new(WanRate::new(rate)));
        }
        let mut mapping = Mapping::default();
        for (real, shown) in &config.shown {
            mapping.insert(real.addr(), shown.addr(), real.prefix_len());
        }
        self.mapping = (!config.shown.is_empty()).then(|| Arc::new(mapping));
    }

    /// The largest inner packet.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Sets the largest inner packet; returns whether it has changed.
    pub fn set_mtu(&mut self, mtu: u16) -> bool {
        std::mem::replace(&mut self.mtu, mtu) != mtu
    }

    /// Updates what tables take from the network: what the tunnel may reach, next hops on the LAN interfaces `xdp`, and
    /// addresses of the LAN interfaces `lan`, or else our own. Returns whether anything may have changed.
    pub fn follow(&mut self, network: &Network, lan: &[u32], xdp: &[u32], own: &[IpAddr], behind: Behind<'_>) -> bool {
        let reachable = reachable(own, behind, network, lan);
        let opens = reachable != self.reachable_prefixes;
        if opens {
            self.reachable = reachable.as_ref().map(|prefixes| Arc::new(map_of(prefixes.iter().copied())));
            self.reachable_prefixes = reachable;
        }
        let (v4, v6) = (network.speaker_v4(lan), network.speaker_v6(lan));
        let icmp_v4 = icmp_source(v4, own, |a| if let IpAddr::V4(a) = a { Some(a) } else { None });
        let icmp_v6 = icmp_source(v6, own, |a| if let IpAddr::V6(a) = a { Some(a) } else { None });
        let speaks_anew = (icmp_v4, icmp_v6) != (self.icmp_v4, self.icmp_v6);
        (self.icmp_v4, self.icmp_v6) = (icmp_v4, icmp_v6);
        if xdp.is_empty() {
            let had_hops = !self.hops.is_empty();
            self.hops = Arc::default();
            return opens || speaks_anew || had_hops;
        }
        self.hops = Arc::new(network.hops(xdp));
        true
    }

    /// To be called when allowed IPs or the order of the peers have changed.
    pub fn renew_allowed_ips(&mut self, peers: &Peers) {
        let mut map = PrefixMap::default();
        for (prefix, owner) in peers.allowed_ips() {
            if let Some(place) = peers.place(owner) {
                map.insert(prefix.addr(), prefix.prefix_len(), place as u32);
            }
        }
        self.allowed_ips = Arc::new(map);
    }

    /// Sets the firewall of the next tables.
    pub fn set_firewall(&mut self, firewall: Option<Arc<Firewall>>) {
        self.firewall = firewall;
    }

    /// To be called when endpoints of peers have changed.
    pub fn renew_endpoints(&mut self, peers: &Peers) {
        let endpoints = peers.iter().filter_map(|peer| peer.endpoint.filter(|at| peer.is_at(*at)));
        self.endpoints = Arc::new(endpoints.collect());
    }

    /// A table of the present state.
    pub fn table(&self, peers: &Peers, path: impl Fn(&Peer) -> Path) -> Table {
        let mut table = Table {
            allowed_ips: Arc::clone(&self.allowed_ips),
            endpoints: Arc::clone(&self.endpoints),
            hops: Arc::clone(&self.hops),
            reachable: self.reachable.clone(),
            firewall: self.firewall.clone(),
            mtu: usize::from(self.mtu),
            copy_dscp: self.copy_dscp,
            wan_rate: self.wan_rate.clone(),
            mapping: self.mapping.clone(),
            icmp_v4: self.icmp_v4,
            icmp_v6: self.icmp_v6,
            ..Table::default()
        };
        for (place, peer) in peers.iter().enumerate() {
            let Path { endpoint, link } = path(peer);
            let sending = peer.sending().cloned();
            let next = peer.sessions.last().filter(|session| !session.confirmed()).cloned();
            table.peers.push(PeerEntry {
                peer: Arc::clone(&peer.counters),
                endpoint,
                roams: peer.roams(),
                // The kernel's socket fragments, AF_XDP does not.
                link: link.filter(|_| !peer.mtu.is_some_and(|mtu| mtu.fragmented)),
                mtu: peer.mtu_within(self.mtu).into(),
                sending,
                next,
            });
            for session in &peer.sessions {
                let entry = SessionEntry { session: Arc::clone(session), peer: place as u32 };
                table.sessions.insert(session.local_index, entry);
            }
        }
        table
    }
}

/// A map that tells whether an address lies in one of these prefixes.
pub(super) fn map_of(prefixes: impl IntoIterator<Item = IpNet>) -> PrefixMap<()> {
    let mut map = PrefixMap::default();
    for prefix in prefixes {
        map.insert(prefix.addr(), prefix.prefix_len(), ());
    }
    map
}

/// What the tunnel may reach here, if not anything: this site's prefixes, or else the networks of its LAN interfaces;
/// and the gateway itself, by its addresses and the groups that are never forwarded (RFC 5771, section 4; RFC 4291,
/// section 2.7).
fn reachable(own: &[IpAddr], behind: Behind<'_>, network: &Network, lan: &[u32]) -> Option<BTreeSet<IpNet>> {
    let Behind::Subnets(subnets) = behind else { return None };
    let groups = [IpNet::V4(LOCAL_GROUPS_V4), IpNet::V6(LOCAL_GROUPS_V6)];
    let addresses = network.addresses.iter().map(|address| address.address).filter(|address| !address.is_loopback());
    let own = addresses.chain(own.iter().copied()).map(IpNet::from);
    Some(own.chain(groups).chain(network.of_site(subnets, lan)).collect())
}

/// The source address of ICMP messages: the LAN's, or else one of our own in the tunnel.
fn icmp_source<A: Copy>(lan: Option<A>, own: &[IpAddr], family: impl Fn(IpAddr) -> Option<A>) -> Option<A> {
    lan.or_else(|| own.iter().find_map(|a| family(*a)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::peers::tests::peers;

    use penstock_dataplane::clock::Millis;
    use penstock_dataplane::session::{Session, SessionConfig, Suite};

    fn session(local_index: u32, peer: &Peer) -> Arc<Session> {
        Arc::new(Session::new(SessionConfig {
            local_index,
            remote_index: 9,
            suite: Suite::ChaCha20Poly1305,
            send_key: &[1; 32],
            receive_key: &[2; 32],
            born: Millis::now(),
            confirmed: true,
            peer: Arc::clone(&peer.counters),
        }))
    }

    #[test]
    fn a_table_holds_each_peer_with_its_sessions_and_path() {
        let (_proto, mut peers) = peers(&[7, 8]);
        let ids: Vec<_> = peers.iter().map(|p| p.id).collect();
        peers.allow("10.1.0.0/16".parse().unwrap(), ids[0]);
        peers.allow("10.0.0.0/8".parse().unwrap(), ids[1]);
        for peer in peers.iter_mut().skip(1) {
            peer.sessions = vec![session(100, peer), session(101, peer)];
            peer.sending = Some(101);
        }
        let mut parts = Parts { mtu: 1420, ..Parts::default() };
        parts.renew_allowed_ips(&peers);
        let endpoint = "192.0.2.2:47100".parse::<SocketAddr>().ok().map(Endpoint::from);
        let table =
            parts.table(&peers, |peer| Path { endpoint: endpoint.filter(|_| peer.id == ids[1]), ..Path::default() });

        assert_eq!(table.route("10.1.2.3".parse().unwrap()), Some(0));
        assert_eq!(table.route("10.2.2.3".parse().unwrap()), Some(1));
        assert_eq!(table.route("11.2.2.3".parse().unwrap()), None);
        assert!(table.peers[0].sending.is_none() && table.peers[0].endpoint.is_none());
        assert_eq!(table.peers[1].sending.as_ref().map(|s| s.local_index), Some(101));
        assert_eq!(table.peers[1].endpoint, endpoint);
        assert_eq!((table.sessions[&100].peer, table.sessions.len()), (1, 2));
    }

    #[test]
    fn places_follow_a_removal() {
        let (_proto, mut peers) = peers(&[7, 8]);
        let ids: Vec<_> = peers.iter().map(|p| p.id).collect();
        peers.allow("10.0.0.0/8".parse().unwrap(), ids[1]);
        peers.remove(ids[0]);
        let mut parts = Parts::default();
        parts.renew_allowed_ips(&peers);
        let table = parts.table(&peers, |_| Path::default());
        assert_eq!((table.peers.len(), table.route("10.2.2.3".parse().unwrap())), (1, Some(0)));
    }

    #[test]
    fn the_lan_speaks_first() {
        let own = ["100.64.0.1".parse().unwrap()];
        let v4 = |a| if let IpAddr::V4(a) = a { Some(a) } else { None };
        let lan = Ipv4Addr::new(10, 0, 0, 1);
        assert_eq!(icmp_source(Some(lan), &own, v4), Some(lan));
        assert_eq!(icmp_source(None, &own, v4), Some(Ipv4Addr::new(100, 64, 0, 1)));
        assert_eq!(icmp_source(None, &[], v4), None);
    }
}
