//! Two hosts and two gateways in network namespaces, joined by veth pairs with one queue each. Dropping the topology
//! removes all of it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use penstock_netns::Namespace;

use super::process::{self, Process};
use super::{Error, Placement, Result, io_error};
use crate::laboratory::context;
use crate::traffic::interface::Interface;

/// The gateways' addresses on the WAN.
pub(super) const WAN: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// The hosts' addresses.
pub(super) const HOSTS: [&str; 2] = ["10.101.0.2", "10.102.0.2"];
/// The hosts' networks.
pub(super) const NETWORKS: [&str; 2] = ["10.101.0.0/24", "10.102.0.0/24"];
/// The gateways' UDP port on the WAN.
pub(super) const PORT: u16 = 47100;

/// One of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// An end of a link, for its Ethernet address.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    HostA = 1,
    LanA,
    WanA,
    WanB,
    LanB,
    HostB,
}

/// The namespaces with their links up and addresses set; nothing is routed between the sites yet.
#[derive(Debug)]
pub(super) struct Topology {
    hosts: [Namespace; 2],
    gateways: [Namespace; 2],
    /// The folder for files of the subject: keys, profiles, logs.
    pub(super) folder: PathBuf,
    placement: Placement,
}

impl Side {
    pub(super) const BOTH: [Side; 2] = [Side::A, Side::B];

    pub(super) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// The letter in file names.
    pub(super) fn letter(self) -> &'static str {
        ["a", "b"][self.index()]
    }
}

impl Topology {
    pub(super) fn new(folder: &Path, placement: Placement, congestion_control: &str) -> Result<Topology> {
        let hosts = [namespace("host-a")?, namespace("host-b")?];
        let gateways = [namespace("gateway-a")?, namespace("gateway-b")?];
        let topology = Topology { hosts, gateways, folder: folder.into(), placement };
        let ([host_a, host_b], [gateway_a, gateway_b]) = (&topology.hosts, &topology.gateways);
        link((host_a, "lan", End::HostA), (gateway_a, "lan", End::LanA))?;
        link((gateway_a, "wan", End::WanA), (gateway_b, "wan", End::WanB))?;
        link((gateway_b, "lan", End::LanB), (host_b, "lan", End::HostB))?;
        host_a.try_ip("address add 10.101.0.2/24 dev lan\nroute add default via 10.101.0.1")?;
        gateway_a.try_ip("address add 10.101.0.1/24 dev lan\naddress add 192.0.2.1/30 dev wan")?;
        gateway_b.try_ip("address add 192.0.2.2/30 dev wan\naddress add 10.102.0.1/24 dev lan")?;
        host_b.try_ip("address add 10.102.0.2/24 dev lan\nroute add default via 10.102.0.1")?;
        for gateway in &topology.gateways {
            gateway.try_sysctl("net/ipv4/ip_forward", "1")?;
        }
        for host in &topology.hosts {
            let set = host.try_sysctl("net/ipv4/tcp_congestion_control", congestion_control);
            set.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    Error::Failed(format!("this kernel has no congestion control {congestion_control}"))
                }
                _ => error.into(),
            })?;
        }
        Ok(topology)
    }

    pub(super) fn host(&self, side: Side) -> &Namespace {
        &self.hosts[side.index()]
    }

    pub(super) fn gateway(&self, side: Side) -> &Namespace {
        &self.gateways[side.index()]
    }

    /// The kernel's description of one of the links, which are all alike.
    pub(super) fn describe_links(&self) -> String {
        context::interface(&Interface { namespace: self.gateway(Side::A).clone(), name: "wan".into() }).1
    }

    /// Has the hosts fill in checksums themselves: AF_XDP sees their packets before an offload would.
    pub(super) fn let_hosts_fill_in_checksums(&self) -> Result<()> {
        for host in &self.hosts {
            host.try_run(&["ethtool", "-K", "lan", "tx", "off"])?;
        }
        Ok(())
    }

    /// Starts a gateway's program with its own /run, so that two instances do not share it.
    pub(super) fn start(&self, side: Side, words: &[&str]) -> Result<Process> {
        let core = side.index().to_string();
        let own_run = ["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"];
        let pinned = ["taskset", "-c", &core];
        let pinned = if self.placement == Placement::Pinned { &pinned[..] } else { &[] };
        let words: Vec<&str> = own_run.iter().chain(pinned).chain(words).copied().collect();
        let mut command = self.gateway(side).command(words[0]);
        command.args(&words[1..]);
        Process::start(command, &self.file(side, "gateway"))
    }

    /// The path of a file of this side.
    pub(super) fn file(&self, side: Side, name: &str) -> PathBuf {
        self.folder.join(format!("{}.{name}", side.letter()))
    }

    /// Writes a file of this side that only its owner may read.
    pub(super) fn write(&self, side: Side, name: &str, text: &str) -> Result<PathBuf> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.file(side, name);
        let mut options = std::fs::File::options();
        let opened = options.create(true).write(true).truncate(true).mode(0o600).open(&path);
        opened
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io_error(format!("write {}", path.display())))?;
        Ok(path)
    }
}

/// Runs `words` in the namespaces of a gateway's process: its network and its /run.
pub(super) fn beside(process: &Process, words: &[&str]) -> Result<String> {
    let pid = process.id().to_string();
    process::run(Command::new("nsenter").args(["-t", &pid, "-m", "-n"]).args(words))
}

/// The Ethernet address of an end.
pub(super) fn mac(end: End) -> String {
    format!("02:50:53:54:00:{:02x}", end as u8)
}

/// A namespace in which a reply may come in by another interface than the request went out by.
fn namespace(role: &str) -> Result<Namespace> {
    let namespace = Namespace::try_new(role)?;
    for interfaces in ["all", "default"] {
        namespace.try_sysctl(&format!("net/ipv4/conf/{interfaces}/rp_filter"), "0")?;
    }
    Ok(namespace)
}

fn link(left: (&Namespace, &str, End), right: (&Namespace, &str, End)) -> Result<()> {
    let addresses = [mac(left.2), mac(right.2)];
    let end = |(namespace, name, _), address| penstock_netns::End { namespace, name, address };
    Ok(penstock_netns::veth([end(left, &addresses[0]), end(right, &addresses[1])], 1)?)
}
