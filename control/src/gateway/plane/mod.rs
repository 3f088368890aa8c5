//! The data plane as control sees it: how each interface is driven, the workers with their ports, the steering
//! programs, and the table that they all read.
//!
//! Interfaces come and go by name. Workers and ports are made for those that are there; when one that AF_XDP drives
//! goes, comes back or changes, or the tun device is lost, the workers are made anew. The tunnel's sockets outlive
//! them, and so do sessions and counters.

pub mod cipher;
pub mod drives;
mod firewall;
mod modes;
mod next_hop;
pub mod proof;
pub mod steering;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::drop::DropReason;
use penstock_dataplane::engine::{Engine, EngineConfig};
use penstock_dataplane::ports::tun::{TunConfig, TunPort, TunQueue};
use penstock_dataplane::ports::udp::{UdpConfig, UdpPort, UdpSender};
use penstock_dataplane::ports::{DATAGRAM_MAX, PortInfo};
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_dataplane::table::Table;
use penstock_dataplane::work::WorkDone;
use penstock_proto::{PeerId, Speeds};
use tokio::io::unix::AsyncFd;

use super::bypass::Bypassed;
use super::peers::Peers;
use crate::ground::Network;
use crate::netlink::Netlink;
use crate::problem::Problems;
use crate::profile::{CipherImplementation, Firewall, LocalPort, Name, Profile};
use crate::status;

use cipher::Chosen;
use drives::{Drives, KernelPorts, PortSettings};
use firewall::Filter;
use modes::workers;
pub use next_hop::NextHops;
use steering::{Prefixes, Steering};
use tables::Parts;
pub use tables::{Behind, Path};

/// The subject of the problem that there are no workers.
const WORKERS: &str = "workers";
/// The subject of the problem that the cipher is not the one it should be.
const CIPHER: &str = "cipher";
/// The subject of the problem that the tunnel's port is not that of the profile.
pub const PORT: &str = "LocalPort";
/// The same of its firewall mark.
pub const MARK: &str = "FwMark";

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
    /// Whether outer packets have the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// Prefixes of this site with what the other sites know them by.
    pub shown: BTreeMap<IpNet, IpNet>,
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
            copy_dscp: profile.copy_dscp,
            shown: profile.lan.shown.clone(),
            udp_gso: profile.udp_gso,
            mark: profile.mark,
            cipher: profile.cipher,
        }
    }

    /// A WireGuard device without a profile.
    fn device(name: &Name) -> Self {
        Self {
            name: name.clone(),
            local_port: LocalPort::Random,
            workers: 0,
            busy_poll: false,
            mtu: None,
            copy_dscp: false,
            shown: BTreeMap::new(),
            udp_gso: true,
            mark: 0,
            cipher: CipherImplementation::Auto,
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
    /// How many workers there should be.
    workers: u32,
    /// The tunnel's sockets, one a worker.
    sockets: Vec<UdpSender>,
    /// The queues of the tun device, one a worker; none while there is no device.
    tun: Vec<TunQueue>,
    running: Option<Running>,
    steering: Steering,
    parts: Parts,
    filter: Filter,
    /// The MTU of the WAN interface.
    link_mtu: u16,
    /// What the steering programs were told.
    smallest_mtu: u16,
    paths: HashMap<PeerId, Path>,
    next_hops: NextHops,
    /// For the workers, when the table is published.
    commands: Vec<Command>,
    /// What workers that have ended had dropped.
    dropped: BTreeMap<&'static str, u64>,
    /// What they had done, by their number.
    worked: Vec<WorkDone>,
    /// When it was last looked at what has passed the AF_XDP ports.
    proved: Instant,
    /// Whether the workers are to be made anew.
    stale: bool,
    problems: Problems,
}

/// What bounds the size of packets outside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The MTU of the WAN interface.
    pub link: u16,
    /// The profile's `Mtu`, for the inside.
    pub pinned: Option<u16>,
    /// The longest datagram that every port takes in, in bytes of UDP payload.
    pub receive_limit: usize,
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
    pub fn start(profile: &Profile, drives: Drives) -> Result<Self> {
        Self::with(PlaneConfig::of(profile), drives)
    }

    /// The data plane of a WireGuard device without a profile: the tunnel's sockets, on a port that the kernel picks,
    /// and the tun device.
    ///
    /// # Errors
    /// One sentence: no port or no device of this name is to be had.
    pub fn device(name: &Name) -> Result<Self> {
        Self::with(PlaneConfig::device(name), Drives::none())
    }

    fn with(config: PlaneConfig, drives: Drives) -> Result<Self> {
        let cipher = Chosen::start(config.cipher)?;
        let speeds = cipher.measure();
        let mut problems = Problems::default();
        note_fallback(&mut problems, Instant::now(), &cipher);
        let count = workers(u32::from(config.workers), drives.queues(), cores().len() as u32);
        let sockets = bind(&config, count)?;
        let local_port = sockets.first().map(UdpSender::local_port).ok_or_else(|| anyhow!("there is no worker"))?;
        let parts = Parts::new(drives.tunnel_mtu(config.mtu), &config);
        let link_mtu = drives.link_mtu();
        let mut plane = Self {
            config,
            cipher,
            speeds,
            drives,
            local_port,
            workers: count,
            sockets,
            tun: Vec::new(),
            running: None,
            steering: Steering::default(),
            link_mtu,
            smallest_mtu: parts.mtu(),
            parts,
            filter: Filter::default(),
            paths: HashMap::new(),
            next_hops: NextHops::default(),
            commands: Vec::new(),
            dropped: BTreeMap::new(),
            worked: Vec::new(),
            proved: Instant::now(),
            stale: false,
            problems,
        };
        plane.attach(true)?;
        plane.build(true, Table::default())?;
        plane.drives.announce();
        tracing::info!("{count} workers, tunnel MTU {}, cipher {}", plane.tunnel_mtu(), plane.cipher.implementation);
        Ok(plane)
    }

    /// Takes up what has become of the interfaces. Returns whether packets may be of another size.
    pub fn follow(&mut self, network: &Network) -> bool {
        if self.drives.follow(network) {
            self.stale = true;
        }
        self.drives.lan.iter().filter_map(|drive| drive.interface.as_ref()).for_each(|lan| self.steering.follow(lan));
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
        }
        let link = self.drives.link_mtu();
        std::mem::replace(&mut self.link_mtu, link) != link || changed
    }

    /// Takes up what AF_XDP on the interfaces would pass by.
    pub fn set_bypassed(&mut self, bypassed: &Bypassed) {
        self.stale |= self.drives.set_bypassed(bypassed);
    }

    /// What bounds the size of packets.
    pub fn sizes(&self) -> Sizes {
        Sizes { link: self.link_mtu, pinned: self.config.mtu, receive_limit: DATAGRAM_MAX }
    }

    /// Tells the steering programs the smallest MTU of a peer: what is larger and may be fragmented is the kernel's to
    /// fragment, by the route to that peer.
    pub fn set_smallest_mtu(&mut self, mtu: u16) {
        if std::mem::replace(&mut self.smallest_mtu, mtu) != mtu {
            self.steering.set_tunnel_mtu(mtu);
        }
    }

    /// The firewall mark of what is sent.
    pub fn mark(&self) -> u32 {
        self.config.mark
    }

    /// Makes this the largest inner packet; whether it was another.
    pub fn set_tunnel_mtu(&mut self, mtu: u16) -> bool {
        self.parts.set_mtu(mtu)
    }

    /// Takes up another profile. What the sockets or the workers have to be made anew for is left to
    /// [`Self::renew`].
    pub fn reload(&mut self, now: Instant, profile: &Profile, network: &Network) {
        let config = PlaneConfig::of(profile);
        let ports_differ = self.drives.reload(profile, network);
        if ports_differ || config.workers != self.config.workers {
            self.workers = workers(u32::from(config.workers), self.drives.queues(), cores().len() as u32);
        }
        if config.cipher != self.config.cipher {
            self.change_cipher(now, config.cipher);
        }
        let before = std::mem::replace(&mut self.config, config);
        self.stale |=
            ports_differ || (before.busy_poll, before.udp_gso) != (self.config.busy_poll, self.config.udp_gso);
        self.parts.set_config(&self.config);
        self.set_mark(now, self.config.mark);
        self.problems.try_now(now);
    }

    /// Has the next workers compute by this implementation.
    fn change_cipher(&mut self, now: Instant, asked: CipherImplementation) {
        match Chosen::start(asked) {
            Ok(cipher) => {
                note_fallback(&mut self.problems, now, &cipher);
                self.stale |= cipher.implementation != self.cipher.implementation;
                self.speeds = cipher.measure();
                self.cipher = cipher;
            }
            Err(e) => self.problems.note(now, CIPHER, &format!("{e:#}"), "replace the CPU"),
        }
    }

    /// Binds the tunnel to this port, if it is to be had; [`Self::renew`] is to follow. Returns whether it was. With 0
    /// any port will do, so the present one does.
    pub fn move_to_port(&mut self, now: Instant, port: u16) -> bool {
        if port == 0 || port == self.local_port {
            return true;
        }
        let before = std::mem::replace(&mut self.config.local_port, LocalPort::Pinned(port));
        self.problems.try_now(now);
        self.stale |= self.rebind(now);
        let moved = self.local_port == port;
        if !moved {
            self.config.local_port = before;
        }
        moved
    }

    /// Gives the tunnel's packets another firewall mark.
    pub fn set_mark(&mut self, now: Instant, mark: u32) {
        self.config.mark = mark;
        match self.sockets.iter().filter(|socket| socket.mark() != mark).try_for_each(|s| s.set_mark(mark)) {
            Ok(()) => self.problems.solved(MARK),
            Err(e) => {
                let sentence = format!("the sockets cannot be given the mark {mark}: {e}");
                self.problems.note(now, MARK, &sentence, "give the gateway CAP_NET_ADMIN, and reload it");
            }
        }
    }

    /// Binds the sockets that are wanted, if they are others than those there are. Returns whether there are others
    /// now.
    fn rebind(&mut self, now: Instant) -> bool {
        let moves = matches!(self.config.local_port, LocalPort::Pinned(port) if port != self.local_port);
        let (there, wanted) = (self.sockets.len(), self.workers as usize);
        if !moves {
            self.problems.solved(PORT);
        }
        if (!moves && there == wanted) || !self.problems.may_try(now, PORT) {
            return false;
        }
        let config = udp_config(&self.config, self.local_port, wanted);
        let bound = if moves {
            bind(&self.config, self.workers).map(|sockets| self.sockets = sockets)
        } else {
            self.sockets.truncate(wanted);
            let more = self.sockets[0].siblings(&config, wanted - self.sockets.len());
            more.map(|more| self.sockets.extend(more)).map_err(Into::into)
        };
        match bound {
            Ok(()) => {
                self.local_port = self.sockets[0].local_port();
                self.problems.solved(PORT);
                true
            }
            Err(e) => {
                let sentence = format!("{e:#}; the tunnel stays on port {}", self.local_port);
                self.problems.failed(now, PORT, &sentence, "free the port, or set another LocalPort and reload");
                false
            }
        }
    }

    /// Makes the workers anew if they are not those of the sockets and interfaces there should be. Returns whether
    /// it did, with what the old ones had to say: then the tun device may be another.
    pub fn renew(&mut self, now: Instant) -> Option<Vec<Notice>> {
        self.stale |= self.rebind(now);
        if !self.stale || !self.problems.may_try(now, WORKERS) {
            return None;
        }
        let attached = self.attach(false);
        // The new workers begin with the old table: it holds until the next one is published.
        let (notices, table) = self.stop();
        match attached.and_then(|()| self.build(false, table)) {
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

    /// Stops the workers, and returns what they still had to say and their table.
    fn stop(&mut self) -> (Vec<Notice>, Table) {
        let Some(Running { mut engine, .. }) = self.running.take() else { return Default::default() };
        engine.stop();
        for (reason, count) in engine.drops() {
            *self.dropped.entry(DropReason::name(reason)).or_default() += count;
        }
        add_work(&mut self.worked, engine.work());
        (std::iter::from_fn(|| engine.notices().pop()).collect(), Table::clone(&engine.table()))
    }

    /// Attaches the programs. `strict`: a mode that the profile demands must be had.
    fn attach(&mut self, strict: bool) -> Result<()> {
        let settings = self.port_settings(strict);
        drives::attach(&mut self.drives, &mut self.steering, settings)
    }

    fn port_settings(&self, strict: bool) -> PortSettings {
        let busy_poll = self.config.busy_poll;
        PortSettings { local_port: self.local_port, tunnel_mtu: self.smallest_mtu, busy_poll, strict }
    }

    /// Makes ports and workers. `strict`: a mode that the profile demands must be had.
    fn build(&mut self, strict: bool, table: Table) -> Result<()> {
        let count = self.sockets.len();
        let name = self.config.name.as_str();
        let mtu = self.parts.mtu();
        if self.tun.len() != count {
            self.tun.clear();
        }
        let tun = if self.tun.is_empty() {
            let config = TunConfig { name: name.to_owned(), mtu, queues: count };
            TunPort::open(&config).with_context(|| format!("cannot create the tun device {name}"))?
        } else {
            self.tun.iter().cloned().map(TunPort::on).collect()
        };
        self.tun = tun.iter().map(|port| port.queue().clone()).collect();
        let udp_config = udp_config(&self.config, self.local_port, count);
        let udp = self.sockets.iter().enumerate().map(|(i, s)| UdpPort::on(s, i as u32, &udp_config)).collect();
        let (settings, kernel) = (self.port_settings(strict), KernelPorts { udp, tun });
        let setups = drives::build(&mut self.drives, &mut self.steering, kernel, settings, &cores())?;
        // Merged for us below, the tunnel's datagrams would reach a program as frames that are larger than any.
        self.sockets.iter().for_each(|socket| socket.set_gro(!self.drives.wan.xdp()));
        let engine = Engine::start(EngineConfig { workers: setups, table, cipher: self.cipher.cipher() })
            .context("cannot start the workers")?;
        let notices = crate::readable::watch(engine.notices()).context("cannot hear the workers")?;
        self.running = Some(Running { engine, notices });
        Ok(())
    }

    /// When to try again what has failed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.problems.poll_timeout()
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

    /// The port that is asked for: the profile's, or that of `wg set`.
    pub fn configured_port(&self) -> LocalPort {
        self.config.local_port
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

    /// What each worker has done since the start of the gateway; also of one that there is no more.
    pub fn work(&self) -> Vec<WorkDone> {
        let mut all = self.worked.clone();
        add_work(&mut all, self.running.iter().flat_map(|running| running.engine.work()));
        all
    }

    /// Calls the workers, who are to answer soon. Returns those who have not answered the last call.
    pub fn call(&self) -> Vec<usize> {
        let Some(Running { engine, .. }) = &self.running else { return Vec::new() };
        let silent = engine.silent().collect();
        engine.call();
        silent
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

    /// Finds the ways to the endpoints that are new, or `anew` to all; whether any differs.
    pub fn find_paths(&mut self, netlink: &mut Netlink, network: &Network, peers: &Peers, anew: bool) -> bool {
        let wan = self.drives.wan.interface.as_ref().filter(|_| self.drives.wan.xdp());
        let outer = (self.config.mark, self.local_port);
        let (paths, missing) = self.next_hops.find(netlink, network, wan, peers, outer, anew);
        self.next_hops.ask(netlink, Instant::now(), &missing);
        let changed = paths != self.paths;
        if changed {
            self.parts.renew_endpoints(peers);
        }
        self.paths = paths;
        changed
    }

    /// Counts the queues of the interfaces again: the kernel announces no change of them. Another number needs other
    /// ports.
    pub fn recount_queues(&mut self) {
        if self.drives.recount() {
            tracing::info!("an interface has another number of receive queues");
            self.stale = true;
        }
    }

    /// Keeps the kernel's entries of neighbours that only AF_XDP sends to: it does not see that traffic, and would
    /// forget them after a minute.
    pub fn confirm_neighbours(&mut self, netlink: &mut Netlink, network: &Network) {
        if self.drives.any_xdp() {
            let stale = self.next_hops.stale(network, &self.drives.lan_xdp());
            self.next_hops.ask(netlink, Instant::now(), &stale);
        }
    }

    /// Renews what the tunnel may reach, the next hops on the LAN, and the addresses that ICMP messages come from.
    /// Whether anything may differ.
    pub fn follow_hops(&mut self, network: &Network, own: &[IpAddr], behind: Behind<'_>) -> bool {
        self.parts.follow(network, &self.drives.lan_indices(), &self.drives.lan_xdp(), own, behind)
    }

    /// To be called when allowed IPs or the order of the peers have changed.
    pub fn renew_allowed_ips(&mut self, peers: &Peers) {
        self.parts.renew_allowed_ips(peers);
    }

    /// To be called when the profile or the peers have changed.
    pub fn renew_firewall(&mut self, firewall: Option<&Firewall>, peers: &Peers) {
        if self.filter.follow(firewall, peers) {
            self.parts.set_firewall(self.filter.compiled());
        }
    }

    /// What `status` says of the firewall.
    pub fn firewall(&self, peers: &Peers) -> Option<status::Firewall> {
        self.filter.status(peers, Millis::now())
    }

    /// Tells the steering programs our addresses, and where the prefixes lead.
    pub fn steer(&mut self, addresses: BTreeSet<IpAddr>, prefixes: Prefixes) {
        if !self.steering.is_empty() {
            self.steering.set_addresses(addresses);
            self.steering.set_prefixes(&prefixes);
        }
    }

    /// Hands the workers a table of this moment.
    pub fn publish(&self, peers: &Peers) {
        if let Some(Running { engine, .. }) = &self.running {
            engine.publish(self.parts.table(peers, |peer| self.paths.get(&peer.id).copied().unwrap_or_default()));
        }
    }
}

/// Adds what each worker did to what those of the same number did before.
fn add_work(all: &mut Vec<WorkDone>, more: impl Iterator<Item = WorkDone>) {
    for (worker, done) in more.enumerate() {
        match all.get_mut(worker) {
            Some(before) => *before += done,
            None => all.push(done),
        }
    }
}

fn note_fallback(problems: &mut Problems, now: Instant, cipher: &Chosen) {
    if !cipher.is_fallback {
        problems.solved(CIPHER);
        return;
    }
    let sentence = format!("{}; ring is used instead", cipher.reason);
    problems.note(now, CIPHER, &sentence, "set Cipher.Implementation to auto or ring, or replace the CPU");
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
