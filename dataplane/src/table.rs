//! The tables that control publishes and workers read: peers, allowed IPs, sessions, next hops. A
//! table is immutable; a change is a new table, which each worker picks up between two batches.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::filter::Firewall;
use crate::mapping::Mapping;
use crate::peer::PeerCounters;
use crate::ports::{Endpoint, Link};
use crate::prefix::{Mix, PrefixMap};
use crate::session::Session;
use crate::shaper::WanRate;

/// Everything that a worker must know to decide about a packet.
#[derive(Clone, Debug)]
pub struct Table {
    /// The peers; other tables hold places in this list.
    pub peers: Vec<PeerEntry>,
    /// Which peer a remote address belongs to: the route for packets sent, and the check for packets received.
    pub allowed_ips: Arc<PrefixMap<u32>>,
    /// By our receiver index: the sessions that may receive.
    pub sessions: HashMap<u32, SessionEntry, BuildHasherDefault<Mix>>,
    /// Addresses at which peers are reached directly, not through a relay: data from there without a session is
    /// reported to control.
    pub endpoints: Arc<HashSet<SocketAddr>>,
    /// Next hops on the LAN. Packets without a link or an entry are left to the kernel through the tun device.
    pub hops: Arc<PrefixMap<Option<Link>>>,
    /// Where packets from the tunnel may go: this site's prefixes and the gateway's own addresses. `None`: anywhere.
    pub reachable: Option<Arc<PrefixMap<()>>>,
    /// Which flows may pass; `None`: all.
    pub firewall: Option<Arc<Firewall>>,
    /// Largest inner packet of any peer, in bytes.
    pub mtu: usize,
    /// Whether outer packets get the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// The rate limit of everything that is sent over the WAN; `None`: nothing waits.
    pub wan_rate: Option<Arc<WanRate>>,
    /// How this site's prefixes are mapped for the other sites, if any is.
    pub mapping: Option<Arc<Mapping>>,
    /// Our address in ICMP messages about IPv4 packets.
    pub icmp_v4: Option<Ipv4Addr>,
    /// Our address in ICMP messages about IPv6 packets.
    pub icmp_v6: Option<Ipv6Addr>,
}

/// A peer, its path and the session to send by.
#[derive(Clone, Debug)]
pub struct PeerEntry {
    /// Its counters.
    pub peer: Arc<PeerCounters>,
    /// Its address, and the one of ours that it last sent to, from which packets to it leave.
    pub endpoint: Option<Endpoint>,
    /// Whether an authentic packet from another address moves the endpoint there.
    pub roams: bool,
    /// How to get there by AF_XDP; `None` leaves it to the kernel's UDP socket.
    pub link: Option<Link>,
    /// Largest inner packet to it, in bytes: what its path takes, and no more than [`Table::mtu`].
    pub mtu: usize,
    /// The session to send by. (One; lanes will make it several.)
    pub sending: Option<Arc<Session>>,
    /// A newer session that the peer initiated, used for sending as soon as the peer shows that it has the keys.
    pub next: Option<Arc<Session>>,
}

impl PeerEntry {
    /// The session to send by now. The answer to the first packet of a new session uses that session: the peer may have
    /// no other.
    #[inline]
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.next.as_ref().filter(|next| next.confirmed()).or(self.sending.as_ref())
    }
}

/// A session, and the place of its peer in [`Table::peers`].
#[derive(Clone, Debug)]
pub struct SessionEntry {
    /// The session.
    pub session: Arc<Session>,
    /// Its peer's place.
    pub peer: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            allowed_ips: Arc::default(),
            sessions: HashMap::default(),
            endpoints: Arc::default(),
            hops: Arc::default(),
            reachable: None,
            firewall: None,
            mtu: 1420,
            copy_dscp: false,
            wan_rate: None,
            mapping: None,
            icmp_v4: None,
            icmp_v6: None,
        }
    }
}

impl Table {
    /// The peer to which packets for `destination` go.
    #[inline]
    pub fn route(&self, destination: IpAddr) -> Option<u32> {
        self.allowed_ips.lookup(destination).copied()
    }

    /// Whether a packet from the tunnel may go there.
    #[inline]
    pub fn admits(&self, destination: IpAddr) -> bool {
        self.reachable.as_ref().is_none_or(|reachable| reachable.lookup(destination).is_some())
    }

    /// The link by which packets for a LAN host go; `None` leaves them to the kernel.
    #[inline]
    pub fn hop(&self, destination: IpAddr) -> &Option<Link> {
        self.hops.lookup(destination).unwrap_or(&None)
    }
}
