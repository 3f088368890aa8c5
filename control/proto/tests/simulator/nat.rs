//! What is between a site and the network: mapping × filtering × timeout × port preservation, and Linux's plain
//! masquerade, which preserves the port unless an early packet from outside has taken the tuple.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_proto::coordination::Dependence;
use rand::Rng;
use rand::rngs::StdRng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Public address, no filter.
    None,
    /// Public address, a stateful firewall.
    Firewall,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
    /// The mapping depends only on the address.
    AddressDependent,
    Masquerade,
    UdpBlocked,
}

use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Firewall,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::AddressDependent,
        Self::Masquerade,
        Self::UdpBlocked,
    ];

    pub fn translates(self) -> bool {
        !matches!(self, Self::None | Self::Firewall | Self::UdpBlocked)
    }

    pub fn mapping(self) -> Dependence {
        match self {
            Self::Symmetric => AddressAndPortDependent,
            Self::AddressDependent => AddressDependent,
            _ => EndpointIndependent,
        }
    }

    pub fn filtering(self) -> Dependence {
        match self {
            Self::None | Self::FullCone => EndpointIndependent,
            Self::AddressRestricted => AddressDependent,
            _ => AddressAndPortDependent,
        }
    }
}

/// Whether two sites behind these can ever talk directly without guessing ports.
pub fn direct_works(a: Kind, b: Kind) -> bool {
    let dependent = |kind: Kind| kind.mapping() != EndpointIndependent;
    let strict = |kind: Kind| dependent(kind) || kind.filtering() == AddressAndPortDependent;
    let blocked = a == Kind::UdpBlocked || b == Kind::UdpBlocked;
    !(blocked || dependent(a) && strict(b) || dependent(b) && strict(a))
}

/// One flow, as `conntrack` would list it.
struct Entry {
    inside: Option<SocketAddr>,
    outside: SocketAddr,
    remote: SocketAddr,
    used: Instant,
    replied: bool,
}

pub struct Nat {
    pub kind: Kind,
    /// The external address.
    pub ip: IpAddr,
    pub timeout: Duration,
    pub preserves_port: bool,
    pub hairpins: bool,
    /// Datagrams to or from these are dropped.
    pub cut: Vec<IpAddr>,
    entries: Vec<Entry>,
}

/// `conntrack` keeps a flow that it saw in one direction only for 30 s (kernel: nf_conntrack_udp_timeout).
const ONE_WAY: Duration = Duration::from_secs(30);

impl Nat {
    pub fn new(kind: Kind, ip: IpAddr, rng: &mut StdRng) -> Self {
        let hairpins = kind.translates() && rng.random_bool(0.5);
        // A cone that does not preserve ports is as common as one that does.
        let preserves_port =
            kind == Kind::Masquerade || (kind.mapping() == EndpointIndependent && rng.random_bool(0.5));
        let timeout = Duration::from_secs(rng.random_range(30..180));
        Self { kind, ip, timeout, preserves_port, hairpins, cut: vec![], entries: vec![] }
    }

    /// Forgets everything, as after a power cut.
    pub fn reboot(&mut self) {
        self.entries.clear();
    }

    fn expire(&mut self, now: Instant) {
        let (timeout, kind) = (self.timeout, self.kind);
        let one_way = |entry: &Entry| kind == Kind::Masquerade && !entry.replied;
        self.entries.retain(|entry| now < entry.used + if one_way(entry) { ONE_WAY } else { timeout });
    }

    /// The source that a datagram shows outside.
    pub fn outbound(
        &mut self,
        now: Instant,
        inside: SocketAddr,
        remote: SocketAddr,
        rng: &mut StdRng,
    ) -> Option<SocketAddr> {
        if self.kind == Kind::UdpBlocked || self.cut.contains(&remote.ip()) {
            return None;
        }
        self.expire(now);
        let flow = self.entries.iter_mut().find(|entry| entry.inside == Some(inside) && entry.remote == remote);
        if let Some(entry) = flow {
            entry.used = now;
            return Some(entry.outside);
        }
        let outside = self.map(inside, remote, rng);
        self.entries.push(Entry { inside: Some(inside), outside, remote, used: now, replied: false });
        Some(outside)
    }

    fn map(&self, inside: SocketAddr, remote: SocketAddr, rng: &mut StdRng) -> SocketAddr {
        if !self.kind.translates() {
            return inside;
        }
        let same = |entry: &&Entry| {
            entry.inside == Some(inside)
                && match self.kind.mapping() {
                    EndpointIndependent => self.kind != Kind::Masquerade,
                    AddressDependent => entry.remote.ip() == remote.ip(),
                    AddressAndPortDependent => false,
                }
        };
        if let Some(entry) = self.entries.iter().find(same) {
            return entry.outside;
        }
        let taken = |outside: SocketAddr| match self.kind {
            // Only the same tuple gets in the way.
            Kind::Masquerade => self.entries.iter().any(|entry| entry.outside == outside && entry.remote == remote),
            _ => self.entries.iter().any(|entry| entry.outside == outside),
        };
        let mut outside = SocketAddr::new(self.ip, inside.port());
        while taken(outside) || (outside.port() == inside.port() && !self.preserves_port) {
            outside.set_port(rng.random_range(1024..=u16::MAX));
            if !taken(outside) {
                break;
            }
        }
        outside
    }

    /// The inside address that a datagram from `remote` to `outside` is for.
    pub fn inbound(&mut self, now: Instant, remote: SocketAddr, outside: SocketAddr) -> Option<SocketAddr> {
        if self.kind == Kind::UdpBlocked || self.cut.contains(&remote.ip()) {
            return None;
        }
        if self.kind == Kind::None {
            return Some(outside);
        }
        self.expire(now);
        let filtering = self.kind.filtering();
        let passes = |entry: &&mut Entry| {
            entry.outside == outside
                && entry.inside.is_some()
                && match filtering {
                    EndpointIndependent => true,
                    AddressDependent => entry.remote.ip() == remote.ip(),
                    AddressAndPortDependent => entry.remote == remote,
                }
        };
        if let Some(entry) = self.entries.iter_mut().find(passes) {
            (entry.used, entry.replied) = (now, true);
            return entry.inside;
        }
        if self.kind == Kind::Masquerade {
            // The packet is for the NAT's own address and so for itself: the tuple is taken as long as such packets
            // come.
            match self.entries.iter_mut().find(|entry| entry.outside == outside && entry.remote == remote) {
                Some(entry) => entry.used = now,
                None => self.entries.push(Entry { inside: None, outside, remote, used: now, replied: false }),
            }
        }
        None
    }
}
