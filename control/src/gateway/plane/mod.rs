//! The data plane as control sees it: how each interface is driven, the workers with their ports, the steering
//! programs, and the table that they all read.
//!
//! Interfaces come and go by name. Workers and ports are made for those that are there; when one that AF_XDP drives
//! goes, comes back or changes, or the tun device is lost, the workers are made anew. The tunnel's sockets outlive
//! them, and so do sessions and counters.

pub mod cipher;
pub mod drives;
mod modes;
mod next_hop;
pub mod steering;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use penstock_dataplane::drop::DropReason;
use penstock_dataplane::engine::{Engine, EngineConfig};
use penstock_dataplane::ports::PortInfo;
use penstock_dataplane::ports::tun::{TunConfig, TunPort, TunQueue};
use penstock_dataplane::ports::udp::{UdpConfig, UdpPort, UdpSender};
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_dataplane::table::Table;
use penstock_proto::{PeerId, Speeds};
use tokio::io::unix::AsyncFd;

use super::peers::Peers;
use crate::ground::Network;
use crate::netlink::Netlink;
use crate::problem::Problems;
use crate::profile::{CipherImplementation, LocalPort, Name, Profile};

use cipher::Chosen;
use drives::{Drives, KernelPorts, PortSettings};
use modes::workers;
pub use next_hop::NextHops;
use steering::{Prefixes, Steering};
use tables::Parts;
pub use tables::Path;

/// The subject of the problem that there are no workers.
const WORKERS: &str = "workers";
/// The subject of the problem that the cipher is not the one it should be.
const CIPHER: &str = "cipher";

/// What the profile says of the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneConfig {
    /// The gateway's name, which is its tun device's too.
    pub name: Name,
    /// The tunnel's UDP port.
    pub local_port: LocalPort,
    /// Worker threads; 0 for one a queue.
    pub workers: u16,
    /// Never sleep.
    pub busy_poll: bool,
    /// The largest inner packet, if it does not follow the WAN.
    pub mtu: Option<u16>,
    /// Whether bundles may be sent as one.
    pub udp_gso: bool,
    /// The firewall mark of what is sent.
    pub mark: u32,
    /// What computes ChaCha20-Poly1305.
    pub cipher: CipherImplementation,
}

impl PlaneConfig {
    /// What this profile says.
    pub fn of(profile: &Profile) -> Self {
        Self {
            name: profile.name.clone(),
            local_port: profile.local_port,
            workers: profile.workers,
            busy_poll: profile.busy_poll,
            mtu: profile.mtu,
            udp_gso: profile.udp_gso,
            mark: profile.mark,
            cipher: profile.cipher,
        }
    }
}

/// Workers, ports, programs and tables.
pub struct Plane {
    config: PlaneConfig,
    cipher: Chosen,
    speeds: Speeds,
    drives: Drives,
    local_port: u16,
    /// The tunnel's sockets, one a worker.
    sockets: Vec<UdpSender>,
    /// The queues of the tun device, one a worker; none while there is no device.
    tun: Vec<TunQueue>,
    running: Option<Running>,
    steering: Steering,
    parts: Parts,
    paths: HashMap<PeerId, Path>,
    next_hops: NextHops,
    /// For the workers, when the table is published.
    commands: Vec<Command>,
    /// What workers that have ended had dropped.
    dropped: BTreeMap<&'static str, u64>,
    /// Whether the workers are to be made anew.
    stale: bool,
    problems: Problems,
}

/// Workers, and a watch over what they have to say.
struct Running {
    engine: Engine,
    notices: AsyncFd<OwnedFd>,
}

impl Plane {
    /// Binds the tunnel's port, attaches the programs and starts the workers, with an empty table.
    ///
    /// # Errors
    /// One sentence: the port, the name of the tun device or a mode that the profile demands is not to be had.
    pub fn start(profile: &Profile, network: &Network) -> Result<Self> {
        let config = PlaneConfig::of(profile);
        let cipher = Chosen::start(config.cipher)?;
        let speeds = cipher.measure();
        let mut problems = Problems::default();
        if cipher.is_fallback {
            let sentence = format!("{}; ring is used instead", cipher.reason);
            problems.note(
                Instant::now(),
                CIPHER,
                &sentence,
                "set Cipher.Implementation to auto or ring, or replace the CPU",
            );
        }
        let mut drives = Drives::of(profile);
        drives.follow(network);
        let count = workers(u32::from(config.workers), drives.queues(), cores().len() as u32);
        let sockets = bind(&config, count)?;
        let local_port = sockets.first().map(UdpSender::local_port).ok_or_else(|| anyhow!("there is no worker"))?;
        let parts = Parts::new(drives.tunnel_mtu(config.mtu));
        let mut plane = Self {
            config,
            cipher,
            speeds,
            drives,
            local_port,
            sockets,
            tun: Vec::new(),
            running: None,
            steering: Steering::default(),
            parts,
            paths: HashMap::new(),
            next_hops: NextHops::default(),
            commands: Vec::new(),
            dropped: BTreeMap::new(),
            stale: false,
            problems,
        };
        plane.build(true)?;
        plane.drives.announce();
        tracing::info!("{count} workers, tunnel MTU {}, cipher {}", plane.tunnel_mtu(), plane.cipher.implementation);
        Ok(plane)
    }

    /// Takes up what has become of the interfaces. Returns whether the largest inner packet is another.
    pub fn follow(&mut self, network: &Network) -> bool {
        if self.drives.follow(network) {
            self.stale = true;
        }
        if self.tun.first().is_some_and(|tun| network.interface(tun.ifindex()).is_none()) {
            tracing::warn!("the tun device {} is gone; it is made again", self.config.name);
            self.tun.clear();
            self.stale = true;
        }
        if self.stale {
            // What was in the way may have gone with what has changed.
            self.problems.try_now(Instant::now());
        }
        let mtu = self.drives.tunnel_mtu(self.config.mtu);
        let changed = self.parts.set_mtu(mtu);
        if changed {
            tracing::info!("tunnel MTU {mtu}");
            self.steering.set_tunnel_mtu(mtu);
        }
        changed
    }

    /// Makes the workers anew if they are not those of the interfaces that are there. Returns whether it did: then
    /// they have an empty table.
    pub fn renew(&mut self, now: Instant) -> Option<Vec<Notice>> {
        if !self.stale || !self.problems.may_try(now, WORKERS) {
            return None;
        }
        let notices = self.stop();
        match self.build(false) {
            Ok(()) => {
                self.stale = false;
                self.problems.solved(WORKERS);
                self.drives.announce();
            }
            Err(e) => {
                let sentence = format!("they cannot be started: {e:#}");
                self.problems.failed(now, WORKERS, &sentence, "remove what is named, or restart the gateway");
            }
        }
        Some(notices)
    }

    /// Stops the workers, and returns what they still had to say.
    fn stop(&mut self) -> Vec<Notice> {
        self.steering = Steering::default();
        let Some(Running { mut engine, .. }) = self.running.take() else { return Vec::new() };
        engine.stop();
        for (reason, count) in engine.drops() {
            *self.dropped.entry(DropReason::name(reason)).or_default() += count;
        }
        std::iter::from_fn(|| engine.notices().pop()).collect()
    }

    /// Makes ports and workers. `strict`: a mode that the profile demands must be had.
    fn build(&mut self, strict: bool) -> Result<()> {
        let count = self.sockets.len();
        let name = self.config.name.as_str();
        let mtu = self.parts.mtu();
        let tun = if self.tun.is_empty() {
            let config = TunConfig { name: name.to_owned(), mtu, queues: count };
            TunPort::open(&config).with_context(|| format!("cannot create the tun device {name}"))?
        } else {
            self.tun.iter().cloned().map(TunPort::on).collect()
        };
        self.tun = tun.iter().map(|port| port.queue().clone()).collect();
        let udp_config = udp_config(&self.config, self.local_port, count);
        let udp = self.sockets.iter().enumerate().map(|(i, s)| UdpPort::on(s, i as u32, &udp_config)).collect();
        let settings =
            PortSettings { local_port: self.local_port, tunnel_mtu: mtu, busy_poll: self.config.busy_poll, strict };
        let mut steering = drives::attach(&mut self.drives, settings)?;
        let setups = drives::build(&mut self.drives, &mut steering, KernelPorts { udp, tun }, settings, &cores())?;
        let config = EngineConfig { workers: setups, table: Table::default(), cipher: self.cipher.cipher() };
        let engine = Engine::start(config).context("cannot start the workers")?;
        let notices = crate::readable::watch(engine.notices()).context("cannot hear the workers")?;
        self.steering = steering;
        self.running = Some(Running { engine, notices });
        Ok(())
    }

    /// When to try again what has failed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stale { self.problems.poll_timeout() } else { None }
    }

    /// What is wrong with interfaces and workers.
    pub fn problems(&self, now: Instant) -> Vec<crate::problem::Problem> {
        let mut all = self.problems.list(now);
        all.extend(self.drives.problems(now));
        all
    }

    /// Waits until the workers have something to say. Cancel safe.
    ///
    /// # Errors
    /// They cannot be heard any more.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.running {
            Some(running) => {
                running.notices.readable().await?.clear_ready();
                Ok(())
            }
            None => std::future::pending().await,
        }
    }

    /// Takes up to `limit` notices. What remains is announced again.
    pub fn notices(&self, limit: usize) -> Vec<Notice> {
        let Some(Running { engine, .. }) = &self.running else { return Vec::new() };
        engine.notices().silence();
        let notices: Vec<Notice> = std::iter::from_fn(|| engine.notices().pop()).take(limit).collect();
        if notices.len() == limit {
            engine.notices().ring();
        }
        notices
    }

    /// The tunnel's sockets send by this.
    pub fn sender(&self) -> UdpSender {
        self.sockets[0].clone()
    }

    /// The tunnel's UDP port.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// The tun device's index, while there is one.
    pub fn tun(&self) -> Option<u32> {
        self.tun.first().map(TunQueue::ifindex)
    }

    /// The cipher in use.
    pub fn cipher(&self) -> &Chosen {
        &self.cipher
    }

    /// How fast it is.
    pub fn speeds(&self) -> Speeds {
        self.speeds
    }

    /// The largest inner packet.
    pub fn tunnel_mtu(&self) -> u16 {
        self.parts.mtu()
    }

    /// The interfaces, and how they are driven.
    pub fn drives(&self) -> &Drives {
        &self.drives
    }

    /// Whether packets are forwarded: the workers run, and the WAN interface is there and up.
    pub fn forwards(&self) -> bool {
        self.running.is_some() && self.drives.wan.interface.as_ref().is_some_and(|wan| wan.up)
    }

    /// The steering programs.
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.sockets.len()
    }

    /// The ports of every worker.
    pub fn ports(&self) -> impl Iterator<Item = (usize, &PortInfo)> {
        self.running.iter().flat_map(|running| running.engine.ports())
    }

    /// How many packets were dropped for each reason, since the start of the gateway.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops: BTreeMap<String, u64> =
            self.dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        for (reason, count) in self.running.iter().flat_map(|running| running.engine.drops()) {
            *drops.entry(DropReason::name(reason).to_owned()).or_default() += count;
        }
        drops
    }

    /// Hands the workers a command, once the next table is published.
    pub fn command(&mut self, commands: impl IntoIterator<Item = Command>) {
        self.commands.extend(commands);
    }

    /// Hands the workers their commands, in order. Returns how many were lost.
    pub fn send_commands(&mut self) -> u64 {
        let Some(Running { engine, .. }) = &self.running else { return self.commands.drain(..).count() as u64 };
        // One worker for all: packets that waited stay in order.
        self.commands.drain(..).map(|command| u64::from(!engine.command(0, command))).sum()
    }

    /// Finds the way to every endpoint anew; whether any differs.
    pub fn find_paths(&mut self, netlink: &mut Netlink, network: &Network, peers: &Peers, mark: u32) -> bool {
        let wan = self.drives.wan.interface.as_ref().filter(|_| self.drives.wan.xdp());
        let (paths, missing) = self.next_hops.find(netlink, network, wan, peers, (mark, self.local_port));
        self.next_hops.ask(netlink, Instant::now(), &missing);
        let changed = paths != self.paths;
        self.paths = paths;
        changed
    }

    /// Keeps the kernel's entries of neighbours that only AF_XDP sends to: it does not see that traffic, and would
    /// forget them after a minute.
    pub fn confirm_neighbours(&mut self, netlink: &mut Netlink, network: &Network) {
        if self.drives.any_xdp() {
            let stale = self.next_hops.stale(network, &self.drives.lan_xdp());
            self.next_hops.ask(netlink, Instant::now(), &stale);
        }
    }

    /// Renews the next hops on the LAN, and the addresses that ICMP messages come from. Whether anything may differ.
    pub fn follow_hops(&mut self, network: &Network, own: &[IpAddr]) -> bool {
        self.parts.follow(network, &self.drives.lan_indices(), &self.drives.lan_xdp(), own)
    }

    /// To be called when allowed IPs or the order of the peers have changed.
    pub fn renew_allowed_ips(&mut self, peers: &Peers) {
        self.parts.renew_allowed_ips(peers);
    }

    /// Tells the steering programs our addresses, and where the prefixes lead.
    pub fn steer(&mut self, addresses: BTreeSet<IpAddr>, prefixes: Prefixes) {
        if !self.steering.is_empty() {
            self.steering.set_addresses(addresses);
            self.steering.set_prefixes(prefixes);
        }
    }

    /// Hands the workers a table of this moment.
    pub fn publish(&self, peers: &Peers) {
        if let Some(Running { engine, .. }) = &self.running {
            engine.publish(self.parts.table(peers, |peer| self.paths.get(&peer.id).copied().unwrap_or_default()));
        }
    }
}

fn cores() -> Vec<core_affinity::CoreId> {
    core_affinity::get_core_ids().unwrap_or_default()
}

fn udp_config(config: &PlaneConfig, port: u16, workers: usize) -> UdpConfig {
    // Not bound to the WAN interface: what the kernel routes elsewhere is carried as well.
    UdpConfig { interface: None, port, workers, gso: config.udp_gso, mark: config.mark }
}

fn bind(config: &PlaneConfig, workers: u32) -> Result<Vec<UdpSender>> {
    let port = match config.local_port {
        LocalPort::Random => 0,
        LocalPort::Pinned(port) => port,
    };
    let bound = UdpPort::bind(&udp_config(config, port, workers as usize)).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => anyhow!("UDP port {port} is in use by another program"),
        io::ErrorKind::PermissionDenied => anyhow!("UDP port {port} is not permitted: missing CAP_NET_BIND_SERVICE"),
        _ => anyhow!("cannot bind UDP port {port}: {e}"),
    })?;
    Ok(bound.iter().map(UdpPort::sender).collect())
}
