//! Sites behind NATs of every kind, in network namespaces with the kernel's own connection tracking.
//!
//! ```text
//!   host ───────── gateway ─────────── nat ─────────────── internet ─── nat ─── gateway ─── host
//!   eth0       lan0       wan0     lan     wan           siteN   lo
//!   10.N.1.2   10.N.1.1   10.N.0.2 10.N.0.1 11.N.0.2     11.N.0.1  11.255.0.1 to .8
//!   10.N.1.2   10.N.1.1   11.N.1.2 11.N.1.1 11.N.0.2     11.N.0.1     where there is no NAT
//! ```
//! The internet forwards from site to site and is a host too: servers are bound to its addresses. It is also the hop at
//! which a packet with a time to live of 2 from a gateway expires, behind the sender's NAT and before the other's. The
//! outer addresses are from a block that nobody announces and that, unlike those for documentation, is not reserved
//! anywhere: routers that map ports refuse reserved ones. No packet leaves the machine. With [`Lab::dual_stack`] a site
//! also has a global IPv6 address, which nothing filters.

mod client;
mod mapping_server;
mod rules;
mod servers;
mod site;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use penstock_proto::coordination::{Dependence, NatType};

use penstock_netns::{Namespace, unique};

pub use client::{exchange, nat_report, socket};
pub use mapping_server::{MappingServer, Offer};
pub use servers::{Stun, corners};
pub use site::{PROXY_PORT, Site};

/// What is between a gateway and the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A router: the gateway's address is public.
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    PortRestricted,
    /// Address- and port-dependent mapping and filtering: a different random port for every flow.
    Symmetric,
    /// Linux's plain masquerade: like [`Self::PortRestricted`], unless a packet from outside comes before the first one
    /// to the same remote endpoint. Then the flow gets a different port.
    Masquerade,
    /// TCP passes, UDP does not.
    UdpBlocked,
    /// Nothing passes; a proxy at the site's [`Site::proxy`] accepts HTTP CONNECT.
    ProxyOnly,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::Masquerade,
        Self::UdpBlocked,
        Self::ProxyOnly,
    ];

    /// What a discovery must find.
    pub fn nat_type(self) -> NatType {
        use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let (mapping, filtering) = match self {
            Self::None | Self::FullCone => (EndpointIndependent, EndpointIndependent),
            Self::AddressRestricted => (EndpointIndependent, AddressDependent),
            Self::PortRestricted | Self::Masquerade => (EndpointIndependent, AddressAndPortDependent),
            Self::Symmetric => (AddressAndPortDependent, AddressAndPortDependent),
            Self::UdpBlocked | Self::ProxyOnly => return NatType { udp_blocked: true, ..NatType::default() },
        };
        NatType { mapping: Some(mapping), filtering: Some(filtering), udp_blocked: false }
    }

    /// The oracle: whether two such sites can talk directly. They cannot exactly when UDP is blocked, or when one side
    /// is endpoint-dependent and the other is too or filters by port.
    pub fn direct_works(self, other: Self) -> bool {
        let blocked = |kind| matches!(kind, Self::UdpBlocked | Self::ProxyOnly);
        let dependent = |kind| kind == Self::Symmetric;
        let by_port = |kind| matches!(kind, Self::Symmetric | Self::PortRestricted | Self::Masquerade);
        let fails = |a, b| blocked(a) || dependent(a) && by_port(b);
        !fails(self, other) && !fails(other, self)
    }
}

/// How long a NAT remembers (nf_conntrack's defaults).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpTimeouts {
    /// A flow with packets in one direction only.
    pub unreplied: Duration,
    /// A flow with packets in both directions; also the lifetime of a cone's mapping and permission.
    pub stream: Duration,
}

impl Default for UdpTimeouts {
    fn default() -> Self {
        Self { unreplied: Duration::from_secs(30), stream: Duration::from_secs(120) }
    }
}

/// The internet, to which sites are attached.
pub struct Lab {
    internet: Namespace,
    scratch: PathBuf,
    dual_stack: bool,
}

impl Lab {
    /// The number of addresses for servers.
    const SERVERS: u8 = 8;

    pub fn new() -> Self {
        Self::with(false)
    }

    /// With IPv6 as well.
    pub fn dual_stack() -> Self {
        Self::with(true)
    }

    fn with(dual_stack: bool) -> Self {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nat-{}-{}", std::process::id(), unique()));
        std::fs::create_dir_all(&scratch).expect("scratch directory");
        let internet = Namespace::new("internet");
        internet.sysctl("net/ipv4/ip_forward", "1");
        internet.sysctl("net/ipv6/conf/all/forwarding", "1");
        let addresses = (1..=Self::SERVERS).map(|host| {
            format!("addr add 11.255.0.{host}/32 dev lo\naddr add 2001:db8:ffff::{host}/128 dev lo nodad\n")
        });
        internet.ip(&addresses.collect::<String>());
        Self { internet, scratch, dual_stack }
    }

    pub fn internet(&self) -> &Namespace {
        &self.internet
    }

    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// An address of a server, by a number from 1.
    pub fn server(&self, number: u8) -> Ipv4Addr {
        assert!((1..=Self::SERVERS).contains(&number), "there are {} addresses", Self::SERVERS);
        Ipv4Addr::new(11, 255, 0, number)
    }

    /// Adds a site. `number`, from 1 to 250, is in all its addresses and must be its own.
    pub fn site(&self, kind: Kind, number: u8) -> Site {
        Site::new(&self.internet, &self.scratch, kind, number, self.dual_stack)
    }

    /// Adds a site of each kind, numbered from 1, in parallel.
    pub fn sites(&self, kinds: &[Kind]) -> Vec<Site> {
        std::thread::scope(|scope| {
            let builders: Vec<_> =
                (1..).zip(kinds).map(|(number, kind)| scope.spawn(move || self.site(*kind, number))).collect();
            builders.into_iter().map(|builder| builder.join().expect("a site")).collect()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let keep = std::thread::panicking() && std::env::var_os("PENSTOCK_TEST_KEEP").is_some();
        if !keep {
            let _ = std::fs::remove_dir_all(&self.scratch);
        }
    }
}
