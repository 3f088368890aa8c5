//! What the checks look at: plain values, gathered once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use ipnet::IpNet;

use crate::bypass::Ruleset;
use crate::netlink::{Channels, ForeignRule, Interface, Offloads, Route, XdpAttachment};
use crate::profile::Profile;
use crate::status::Status;

/// Everything that is known. What could not be seen is `None` or empty, and no check makes a finding of it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Who runs `doctor`.
    pub user: User,
    /// The machine and its kernel.
    pub host: Host,
    /// The profile's file.
    pub file: ProfileFile,
    /// What is in it; keys are left out.
    pub profile: Option<Profile>,
    /// Whether the gateway runs, and what it says.
    pub gateway: Running,
    /// The profile's interfaces and the tunnel's, by name, as far as they exist.
    pub links: BTreeMap<String, Link>,
    /// The interface of the best IPv4 default route, by name.
    pub default_route: Option<String>,
    /// The CPU that each worker of the running gateway is pinned to.
    pub worker_cpus: BTreeMap<u16, u32>,
    /// Routing rules that no gateway made.
    pub rules: Vec<ForeignRule>,
    /// Routes of those rules' tables that are about remote prefixes.
    pub routes: Vec<Route>,
    /// The rules of the packet filter.
    pub firewall: Ruleset,
    /// Our addresses on the WAN.
    pub wan_addresses: BTreeSet<IpNet>,
    /// The key files that the profile names.
    pub keys: Vec<KeyFile>,
    /// What stands in the way of root without capabilities to the profile and its keys, with its owner.
    pub closed: BTreeMap<PathBuf, u32>,
    /// Who has the tunnel's port although no gateway runs.
    pub port_owner: Option<PortOwner>,
    /// What could not be seen: sentences.
    pub unseen: Vec<String>,
}

impl Facts {
    /// The remote prefixes: the profile's, and what a running gateway knows of a coordinator.
    pub(super) fn remote(&self) -> BTreeSet<IpNet> {
        let mut remote = self.profile.as_ref().map(Profile::remote).unwrap_or_default();
        if let Running::Yes(status) = &self.gateway {
            remote.extend(&status.guarded);
        }
        remote
    }
}

/// Who runs `doctor`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The effective user.
    pub id: u32,
    /// The effective capabilities, as bits.
    pub capabilities: Option<u64>,
    /// The limit of locked memory in bytes; `None` without one.
    pub locked_memory: Option<u64>,
}

/// The machine and its kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// What `uname -r` says.
    pub release: String,
    /// Whether the kernel has AF_XDP sockets.
    pub xdp_sockets: Option<bool>,
    /// Whether it has `bpf(2)`.
    pub bpf: Option<bool>,
    /// Whether it has TUN devices.
    pub tun: Option<bool>,
    /// Entries of the connection table, and the most that it takes.
    pub connections: Option<(u64, u64)>,
    /// Whether the clock is disciplined by a time source.
    pub synchronised: Option<bool>,
    /// The time by this machine's clock.
    pub now: Option<SystemTime>,
    /// When this program's file was made.
    pub built: Option<SystemTime>,
    /// Whether systemd-networkd, if it runs, leaves foreign rules and routes alone.
    pub networkd_leaves_alone: Option<bool>,
    /// Whether systemd knows a program that synchronises the clock; `None` without systemd.
    pub has_time_service: Option<bool>,
    /// How many processors there are.
    pub cores: usize,
    /// The CPUs of each NUMA node.
    pub nodes: BTreeMap<u32, BTreeSet<u32>>,
}

/// The profile's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfileFile {
    /// Where it is.
    pub path: PathBuf,
    /// Why the profile is not valid.
    pub error: Option<String>,
    /// Its permission bits and its owner.
    pub status: Option<(u32, u32)>,
}

/// Whether the gateway runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Running {
    /// We may not ask it, or there is no profile.
    #[default]
    Unknown,
    /// It does not.
    No,
    /// It does, and says this.
    Yes(Box<Status>),
}

/// An interface, as the kernel and its driver describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What rtnetlink reports.
    pub interface: Interface,
    /// The XDP program on it.
    pub xdp: Option<XdpAttachment>,
    /// Which offloads its driver has, and which are on.
    pub offloads: Option<Offloads>,
    /// How many receive queues are in use and how many there could be.
    pub channels: Option<Channels>,
    /// What native XDP can do; 0: nothing.
    pub xdp_features: Option<u64>,
    /// `rp_filter`, the stricter of its own and that of all.
    pub rp_filter: Option<u8>,
    /// Whether it forwards IPv4.
    pub forwarding: Option<bool>,
    /// How received packets are spread over its queues.
    pub spread: Spread,
    /// The interrupts of its receive queues.
    pub interrupts: BTreeMap<u32, Interrupt>,
    /// The NUMA node of its card.
    pub node: Option<u32>,
}

/// How a card spreads received packets over its queues (RSS).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The queues that hash values lead to; empty if the driver does not say.
    pub queues: BTreeSet<u32>,
    /// Whether the hash of UDP over IPv4 covers the addresses and not the ports.
    pub udp_by_address: bool,
}

/// An interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number in `/proc/interrupts`.
    pub number: u32,
    /// The CPUs that handle it.
    pub cpus: BTreeSet<u32>,
}

/// A key file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its permission bits and owner; `None` if it is not there.
    pub status: Option<(u32, u32)>,
    /// Whether systemd made it for the service alone, and its group may read it.
    pub credential: bool,
}

/// Who has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOwner {
    /// The address it is bound to.
    pub address: IpAddr,
    /// The process, if it could be found.
    pub process: Option<(u32, String)>,
}

/// Whether two prefixes have addresses in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
