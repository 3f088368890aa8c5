//! Two hosts and two gateways in network namespaces, joined by veth pairs with one queue. All goes with its guard;
//! what a killed run left goes with the next one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{self, Process};
use super::{Placement, Result, io_error};
use crate::report::context;

/// Namespaces and the folder of files are called PREFIX, process id of the run, name.
const PREFIX: &str = "penstock-compare-";
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

/// Which end of which link, for its Ethernet address.
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
    /// For files of the subject: keys, profiles, logs.
    pub(super) folder: PathBuf,
    placement: Placement,
}

/// A network namespace that goes with its guard.
#[derive(Debug)]
pub(super) struct Namespace(String);

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

    /// For file names.
    pub(super) fn letter(self) -> &'static str {
        ["a", "b"][self.index()]
    }
}

impl Topology {
    pub(super) fn new(folder: &Path, placement: Placement) -> Result<Topology> {
        let hosts = [Namespace::new("host-a")?, Namespace::new("host-b")?];
        let gateways = [Namespace::new("gateway-a")?, Namespace::new("gateway-b")?];
        let topology = Topology { hosts, gateways, folder: folder.into(), placement };
        let ([host_a, host_b], [gateway_a, gateway_b]) = (&topology.hosts, &topology.gateways);
        link((host_a, "lan", End::HostA), (gateway_a, "lan", End::LanA))?;
        link((gateway_a, "wan", End::WanA), (gateway_b, "wan", End::WanB))?;
        link((gateway_b, "lan", End::LanB), (host_b, "lan", End::HostB))?;
        host_a.ip("address add 10.101.0.2/24 dev lan")?;
        gateway_a.ip("address add 10.101.0.1/24 dev lan")?;
        gateway_a.ip("address add 192.0.2.1/30 dev wan")?;
        gateway_b.ip("address add 192.0.2.2/30 dev wan")?;
        gateway_b.ip("address add 10.102.0.1/24 dev lan")?;
        host_b.ip("address add 10.102.0.2/24 dev lan")?;
        host_a.ip("route add default via 10.101.0.1")?;
        host_b.ip("route add default via 10.102.0.1")?;
        for gateway in &topology.gateways {
            gateway.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        }
        Ok(topology)
    }

    pub(super) fn host(&self, side: Side) -> &Namespace {
        &self.hosts[side.index()]
    }

    pub(super) fn gateway(&self, side: Side) -> &Namespace {
        &self.gateways[side.index()]
    }

    /// What the kernel says of the links: they are all alike.
    pub(super) fn describe_links(&self) -> String {
        let gateway = crate::wire::Namespace::named(&self.gateway(Side::A).0);
        let described = gateway.and_then(|gateway| gateway.enter(|| context::interface("wan").1));
        described.unwrap_or_else(|error| format!("unknown: {error}"))
    }

    /// AF_XDP sees a local stack's packets before their checksums are filled in, unless that is switched off.
    pub(super) fn let_hosts_fill_in_checksums(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| host.run(&["ethtool", "-K", "lan", "tx", "off"]).map(drop))
    }

    /// Starts a gateway's program, with a /run of its own so that two of a kind do not meet there.
    pub(super) fn start(&self, side: Side, words: &[&str]) -> Result<Process> {
        let core = side.index().to_string();
        let own_run = ["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"];
        let pinned = ["taskset", "-c", &core];
        let pinned = if self.placement == Placement::Pinned { &pinned[..] } else { &[] };
        let words: Vec<&str> = own_run.iter().chain(pinned).chain(words).copied().collect();
        Process::start(self.gateway(side).command(&words), &self.file(side, "gateway"))
    }

    /// A file of this side.
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

/// Runs `words` where a gateway's process is: its network and its /run.
pub(super) fn beside(process: &Process, words: &[&str]) -> Result<String> {
    let pid = process.id().to_string();
    process::run(Command::new("nsenter").args(["-t", &pid, "-m", "-n"]).args(words))
}

/// The Ethernet address of an end.
pub(super) fn mac(end: End) -> String {
    format!("02:50:53:54:00:{:02x}", end as u8)
}

impl Namespace {
    pub(super) fn new(name: &str) -> Result<Namespace> {
        let name = prefix() + name;
        process::run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace(name);
        namespace.ip("link set lo up")?;
        let no_filter = ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"];
        namespace.run(&["sysctl", "-qw", no_filter[0], no_filter[1]])?;
        Ok(namespace)
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(words);
        command
    }

    /// Runs a short command here.
    pub(super) fn run(&self, words: &[&str]) -> Result<String> {
        process::run(&mut self.command(words))
    }

    /// Runs an `ip` command here.
    pub(super) fn ip(&self, words: &str) -> Result<String> {
        process::run(Command::new("ip").args(["-n", &self.0]).args(words.split(' ')))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing more can be done about a failure, and the next run tries again.
        let _ = process::run(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

/// Joins two namespaces by a veth pair of one queue.
fn link(one: (&Namespace, &str, End), other: (&Namespace, &str, End)) -> Result<()> {
    const ONE_QUEUE: [&str; 4] = ["numrxqueues", "1", "numtxqueues", "1"];
    let ((left, left_name, left_end), (right, right_name, right_end)) = (one, other);
    let mut command = Command::new("ip");
    command.args(["link", "add", left_name, "address", &mac(left_end)]).args(ONE_QUEUE);
    command.args(["netns", &left.0, "type", "veth", "peer", "name", right_name, "address", &mac(right_end)]);
    command.args(ONE_QUEUE).args(["netns", &right.0]);
    process::run(&mut command)?;
    left.ip(&format!("link set {left_name} up"))?;
    right.ip(&format!("link set {right_name} up"))?;
    Ok(())
}

/// What the names of this run's namespaces and folder begin with.
pub(super) fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Removes the namespaces of runs that are no more, with what still runs in them, and their files.
pub(super) fn sweep() {
    for name in left_in(Path::new("/run/netns")) {
        let pids = process::run(Command::new("ip").args(["netns", "pids", &name])).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        drop(Namespace(name));
    }
    let folder = std::env::temp_dir();
    for name in left_in(&folder) {
        let _ = std::fs::remove_dir_all(folder.join(name));
    }
}

/// Our names in a folder whose process is no more. Anybody may write to the folder of temporary files, but only
/// root's are ours.
fn left_in(folder: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let is_left = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner: u32 = name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()?;
        let of_root = entry.metadata().is_ok_and(|metadata| metadata.uid() == 0);
        (of_root && !Path::new("/proc").join(owner.to_string()).exists()).then_some(name)
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| is_left(&entry)).collect()
}
