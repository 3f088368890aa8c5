//! What the kernel's network stack should hold for the tunnel, compared with what it holds.
//!
//! [`Wanted`] says what should be; [`Network`] and a few settings say what is. [`plan`] compares them and yields
//! operations, which a [`Kernel`] carries out. This is repeated whenever either side changes or an operation has
//! failed, so nothing is believed to hold because it was done once. A failed operation is a problem with a name and is
//! retried; it does not keep others from being carried out.
//!
//! ```text
//!   gateway ── Wanted ──► plan ──► operations ──► Kernel ─┐
//!                           ▲                             │ rtnetlink, nft, /proc/sys
//!   Monitor ── News ──► Network ◄────── what was done ◄───┘
//! ```
//!
//! # The guard
//! A remote prefix is guarded: its packets go into the tunnel or nowhere. Three layers ensure this, and each suffices
//! for packets from the LAN, since others may remove rules and routes:
//!
//! 1. A routing table of our own holds the tunnel's routes, blackholes under them, and `throw` routes for the site's
//!    own networks. A rule sends everything there except our outer traffic, which carries a mark.
//! 2. The main table has a blackhole with the worst metric for every guarded prefix except default routes, with gaps
//!    for the outer addresses, which the tunnel's own packets have to reach.
//! 3. The packet filter drops what comes from a LAN or the tunnel for a guarded prefix and would leave through another
//!    interface, and what arrives on another interface with a source in a guarded prefix.
//!
//! Blackholes and filter survive the process. [`Guard`] keeps the set of guarded prefixes, [`Ground::withdraw`] removes
//! everything but the guard.

mod actual;
mod filter;
mod guard;
mod kernel;
mod network;
mod operation;
mod own;
mod plan;
mod policy;
mod prefixes;
mod reconcile;
#[cfg(test)]
mod simulation;
mod sysctls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use actual::{Actual, FilterState};
pub use filter::Filter;
pub use guard::{Guard, Origin, Refusal};
pub use kernel::{Kernel, Linux};
pub use network::{Changed, Interest, Network};
pub use operation::Operation;
pub use plan::{Finding, Plan, plan};
pub use prefixes::Prefixes;
pub use reconcile::Ground;
pub use sysctls::{Saved, Sysctl};

use crate::profile::Name;

/// The routing table of tunnel routes and guard, unless the profile names another.
pub const DEFAULT_TABLE: u32 = 47100;
/// The mark of the gateway's outer traffic, unless the profile names another.
pub const DEFAULT_MARK: u32 = 47100;
/// Priority of the rule that leads to the table.
pub const RULE_PRIORITY: u32 = 4710;
/// Priority of the rules that keep the WAN's own addresses in the main table.
pub const WAN_RULE_PRIORITY: u32 = RULE_PRIORITY - 1;
/// Priority of the kernel's own rule for the main table.
const MAIN_PRIORITY: u32 = 32_766;
/// Priorities of the rules for what comes from the tunnel: right before the kernel's own.
const CONFINING_PRIORITIES: [u32; 2] = [MAIN_PRIORITY - 2, MAIN_PRIORITY - 1];
/// The number in a route's or rule's `proto` field that marks ours, as `ip route` shows it. The kernel and
/// `/etc/iproute2/rt_protos` leave this one free.
pub const PROTOCOL: u8 = 80;
/// The smallest MTU with which IPv6 works (RFC 8200, section 5).
pub const SMALLEST_MTU_V6: u32 = 1280;

/// The highest metric of a blackhole: worse than any other route. Each gateway has a metric of its own.
const WORST_METRIC: u32 = u32::MAX;
/// The number of metrics for the gateways of one machine.
const METRICS: u32 = 1 << 16;

/// What should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The gateway's name, which is also that of its tun device. A gateway recognises its own routes by it.
    pub name: Name,
    /// Where the guard stands, and the tunnel's routes with it.
    pub placement: Placement,
    /// The tun device; `None` while there is none.
    pub tun: Option<Tun>,
    /// Remote prefixes that lead into the tunnel. Those that are not also guarded are ignored.
    pub tunnelled: BTreeSet<IpNet>,
    /// Those of them whose peers take only packets smaller than the tunnel's MTU, with that size in bytes.
    pub mtus: BTreeMap<IpNet, u32>,
    /// Remote prefixes that are blocked wherever they are not tunnelled.
    pub guarded: BTreeSet<IpNet>,
    /// Addresses that outer traffic is sent to: peers' endpoints and where peers are looked for, the coordinator, relays,
    /// STUN servers. Only those inside a guarded prefix make a difference.
    pub outer: BTreeSet<IpAddr>,
    /// The tunnel's UDP port; `None` while it is not bound.
    pub local_port: Option<u16>,
    /// Whether packets are to be forwarded. If not, there is only the guard: at boot, and for a gateway that was
    /// stopped.
    pub forward: bool,
}

/// Where the guard is to stand: what it takes to put it up, besides the prefixes. It is kept with them, so that the guard
/// does not depend on a sound profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Placement {
    /// The profile's file.
    pub profile: PathBuf,
    /// The routing table of tunnel routes and guard.
    pub table: u32,
    /// The mark (`SO_MARK`) of the gateway's outer traffic.
    pub mark: u32,
    /// The WAN interface.
    pub wan: String,
    /// The LAN interfaces.
    pub lan: BTreeSet<String>,
    /// The site's own subnets, `Lan.Subnets`.
    pub local: BTreeSet<IpNet>,
    /// Whether packets from the tunnel may go to networks other than this site's.
    pub transit: bool,
}

impl Placement {
    /// The part of the network that matters there.
    #[must_use]
    pub fn interest(&self) -> Interest {
        Interest { table: self.table, lan: self.lan.clone() }
    }
}

/// The tun device, and the source addresses for connections through it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// Its index.
    pub index: u32,
    /// The largest inner packet; `None` leaves the MTU to others.
    pub mtu: Option<u32>,
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Source address for IPv4.
    pub source_v4: Option<IpAddr>,
    /// Source address for IPv6.
    pub source_v6: Option<IpAddr>,
}

/// The metric of the blackholes of the gateway of this name, by which it recognises its own after a crash.
#[must_use]
pub fn guard_metric(name: &Name) -> u32 {
    WORST_METRIC - hash(name)
}

/// The metric of the tunnel's routes and `throw` routes of the gateway of this name.
#[must_use]
pub fn tunnel_metric(name: &Name) -> u32 {
    1 + hash(name)
}

fn hash(name: &Name) -> u32 {
    // FNV-1a, because the standard library's hash may differ from build to build.
    let hash = name.as_str().bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    hash % METRICS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gateway_has_metrics_of_its_own_and_blackholes_are_worse_than_any_route() {
        let [a, b] = ["amsterdam", "berlin"].map(|n| Name::try_from(n.to_owned()).unwrap());
        for name in [&a, &b] {
            assert!(guard_metric(name) > u32::MAX - METRICS);
            assert!((1..=METRICS).contains(&tunnel_metric(name)));
        }
        assert_ne!(guard_metric(&a), guard_metric(&b));
        assert_ne!(tunnel_metric(&a), tunnel_metric(&b));
    }
}
