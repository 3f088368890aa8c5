//! The data plane in control's view: how each interface is driven, the workers with their ports, the steering programs,
//! and the table that they all read.
//!
//! Interfaces come and go by name. Workers and ports are made for those that exist; when one that AF_XDP drives is
//! removed, comes back or changes, or the tun device is lost, the workers are replaced. The tunnel's sockets survive
//! that, and so do sessions and counters.

pub mod cipher;
pub mod drives;
mod firewall;
mod modes;
mod next_hop;
mod offloads;
mod ports;
pub mod proof;
mod sockets;
pub mod steering;
mod tables;
mod trains;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use ipnet::IpNet;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::engine::EngineConfig;
use penstock_dataplane::ports::DATAGRAM_MAX;
use penstock_dataplane::ports::tun::{TunConfig, TunPort, TunQueue};
use penstock_dataplane::ports::udp::UdpSender;
use penstock_dataplane::slow_path::Notice;
use penstock_dataplane::table::Table;
use penstock_proto::{PeerId, Speeds};

use super::bypass::Bypassed;
use super::peers::Peers;
use crate::ground::Network;
use crate::netlink::Netlink;
use crate::problem::Problems;
use crate::profile::{CipherImplementation, Firewall, LocalPort, Name, Profile, Rate};
use crate::status;

use cipher::Chosen;
use drives::Drives;
use firewall::Filter;
use modes::workers;
pub use next_hop::{NextHops, Uplink};
use ports::{KernelPorts, PortSettings};
pub use sockets::{MARK, PORT, Sockets};
use steering::{Prefixes, Steering};
use tables::Parts;
pub use tables::{Behind, Path};
use trains::testing::Testing;
pub use workers::Workers;

/// The subject of the problem that there are no workers.
const WORKERS: &str = "workers";
/// The subject of the problem that the cipher is not the right one.
const CIPHER: &str = "cipher";

/// The subject of the problem that the way of outer packets depends on their class.
const CLASSES: &str = "CopyDscp";
/// The subject of the problem that the steering programs could not be told everything.
const STEERING: &str = "steering programs";

/// The profile's settings for the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneConfig {
    /// The gateway's name, which is also that of its tun device.
    pub name: Name,
    /// The tunnel's UDP port.
    pub local_port: LocalPort,
    /// Worker threads; 0 for one per queue.
    pub workers: u16,
    /// Never sleep.
    pub busy_poll: bool,
    /// The largest inner packet, if it does not depend on the WAN.
    pub mtu: Option<u16>,
    /// Whether outer packets get the DSCP of the inner ones.
    pub copy_dscp: bool,
    /// The rate limit for everything that is sent over the WAN.
    pub wan_rate: Option<Rate>,
    /// Prefixes of this site, with those under which the other sites know them.
    pub shown: BTreeMap<IpNet, IpNet>,
    /// Whether several datagrams may be sent as one bundle.
    pub udp_gso: bool,
    /// The firewall mark of what is sent.
    pub mark: u32,
    /// Which implementation of ChaCha20-Poly1305 is used.
    pub cipher: CipherImplementation,
}

impl PlaneConfig {
    /// The settings in this profile.
    pub fn of(profile: &Profile) -> Self {
        Self {
            name: profile.name.clone(),
            local_port: profile.local_port,
            workers: profile.workers,
            busy_poll: profile.busy_poll,
            mtu: profile.mtu,
            copy_dscp: profile.copy_dscp,
            wan_rate: profile.wan_rate,
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
            wan_rate: None,
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
    /// The wanted number of workers.
    count: u32,
    sockets: Sockets,
    /// The queues of the tun device, one per worker; none while there is no device.
    tun: Vec<TunQueue>,
    workers: Workers,
    steering: Steering,
    parts: Parts,
    filter: Filter,
    /// The MTU of the WAN interface.
    link_mtu: u16,
    /// The MTU that the steering programs were told.
    smallest_mtu: u16,
    paths: HashMap<PeerId, Path>,
    next_hops: NextHops,
    /// When the traffic of the AF_XDP ports was last examined.
    proved: Instant,
    /// Whether the workers have to be replaced.
    stale: bool,
    testing: Testing,
    problems: Problems,
}

/// What limits the size of outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The MTU of the WAN interface.
    pub link: u16,
    /// The profile's `Mtu`, for the inside.
    pub pinned: Option<u16>,
    /// The longest datagram that every port can receive, in bytes of UDP payload.
    pub receive_limit: usize,
}

impl Plane {
    /// Binds the tunnel's port, attaches the programs and starts the workers, with an empty table.
    ///
    /// # Errors
    /// In one sentence: the port, the name of the tun device or a mode that the profile requires is not available.
    pub fn start(profile: &Profile, drives: Drives) -> Result<Self> {
        Self::with(PlaneConfig::of(profile), drives)
    }

    /// The data plane of a WireGuard device without a profile: the tunnel's sockets, on a port that the kernel chooses,
    /// and the tun device.
    ///
    /// # Errors
    /// In one sentence: there is no free port, or no device of this name can be created.
    pub fn device(name: &Name) -> Result<Self> {
        Self::with(PlaneConfig::device(name), Drives::none())
    }

    fn with(config: PlaneConfig, drives: Drives) -> Result<Self> {
        let cipher = Chosen::start(config.cipher)?;
        let speeds = cipher.measure();
        let mut problems = Problems::default();
        note_fallback(&mut problems, Instant::now(), &cipher);
        let count = workers(u32::from(config.workers), drives.queues(), cores().len() as u32);
        let sockets = Sockets::bind(&config, count)?;
        let parts = Parts::new(drives.tunnel_mtu(config.mtu), &config);
        let link_mtu = drives.link_mtu();
        let mut plane = Self {
            config,
            cipher,
            speeds,
            drives,
            count,
            sockets,
            tun: Vec::new(),
            workers: Workers::default(),
            steering: Steering::default(),
            link_mtu,
            smallest_mtu: parts.mtu(),
            parts,
            filter: Filter::default(),
            paths: HashMap::new(),
            next_hops: NextHops::default(),
            proved: Instant::now(),
            stale: false,
            testing: Testing::new(Instant::now()),
            problems,
        };
        plane.attach(true)?;
        plane.build(true, Table::default())?;
        plane.drives.announce();
        tracing::info!("workers: {count}, tunnel MTU {}, cipher {}", plane.tunnel_mtu(), plane.cipher.implementation);
        Ok(plane)
    }

    /// Follows changes of the interfaces. Returns whether the size of packets may have changed.
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
            // The change may have removed an obstacle.
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

    /// Sets which rules AF_XDP on the interfaces would bypass.
    pub fn set_bypassed(&mut self, bypassed: &Bypassed) {
        self.stale |= self.drives.set_bypassed(bypassed);
    }

    /// What limits the size of packets.
    pub fn sizes(&self) -> Sizes {
        Sizes { link: self.link_mtu, pinned: self.config.mtu, receive_limit: DATAGRAM_MAX }
    }

    /// Tells the steering programs the smallest MTU of any peer: larger packets that may be fragmented are left to the
    /// kernel, which fragments them by the route to the peer.
    pub fn set_smallest_mtu(&mut self, mtu: u16) {
        if std::mem::replace(&mut self.smallest_mtu, mtu) != mtu {
            self.steering.set_tunnel_mtu(mtu);
        }
    }

    /// The firewall mark of outer packets.
    pub fn mark(&self) -> u32 {
        self.config.mark
    }

    /// Sets the largest inner packet; returns whether it has changed.
    pub fn set_tunnel_mtu(&mut self, mtu: u16) -> bool {
        self.parts.set_mtu(mtu)
    }

    /// Takes up another profile. Where sockets or workers have to be replaced, [`Self::renew`] does it.
    pub fn reload(&mut self, now: Instant, profile: &Profile, network: &Network) {
        let config = PlaneConfig::of(profile);
        let ports_differ = self.drives.reload(profile, network);
        if ports_differ || config.workers != self.config.workers {
            self.count = workers(u32::from(config.workers), self.drives.queues(), cores().len() as u32);
        }
        if config.cipher != self.config.cipher {
            self.change_cipher(now, config.cipher);
        }
        let before = std::mem::replace(&mut self.config, config);
        self.stale |=
            ports_differ || (before.busy_poll, before.udp_gso) != (self.config.busy_poll, self.config.udp_gso);
        self.parts.set_config(&self.config);
        self.sockets.set_mark(now, self.config.mark, &mut self.problems);
        self.problems.try_now(now);
    }

    /// Makes the next workers use this implementation.
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

    /// Binds the tunnel to this port, if possible; [`Self::renew`] is to follow. Returns whether it was possible. Port
    /// 0 means any, so the present one stays.
    pub fn move_to_port(&mut self, now: Instant, port: u16) -> bool {
        if port == 0 || port == self.local_port() {
            return true;
        }
        let before = std::mem::replace(&mut self.config.local_port, LocalPort::Pinned(port));
        self.problems.try_now(now);
        self.stale |= self.rebind(now);
        let moved = self.local_port() == port;
        if !moved {
            self.config.local_port = before;
        }
        moved
    }

    /// Sets the firewall mark of the tunnel's packets.
    pub fn set_mark(&mut self, now: Instant, mark: u32) {
        self.config.mark = mark;
        self.sockets.set_mark(now, mark, &mut self.problems);
    }

    fn rebind(&mut self, now: Instant) -> bool {
        self.sockets.renew(now, &self.config, self.count, &mut self.problems)
    }

    /// Replaces the workers if they do not fit the present sockets and interfaces. If so, returns the old ones' last
    /// notices; the tun device may then be another.
    pub fn renew(&mut self, now: Instant) -> Option<Vec<Notice>> {
        self.stale |= self.rebind(now);
        if !self.stale || !self.problems.may_try(now, WORKERS) {
            return None;
        }
        let attached = self.attach(false);
        // The new workers start with the old table, which is valid until the next one is published.
        let (notices, table) = self.workers.stop();
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

    /// Attaches the programs. `strict`: fails if a mode that the profile requires is not possible.
    fn attach(&mut self, strict: bool) -> Result<()> {
        let settings = self.port_settings(strict);
        ports::attach(&mut self.drives, &mut self.steering, settings)
    }

    fn port_settings(&self, strict: bool) -> PortSettings {
        let busy_poll = self.config.busy_poll;
        PortSettings { local_port: self.local_port(), tunnel_mtu: self.smallest_mtu, busy_poll, strict }
    }

    /// Makes ports and workers. `strict`: fails if a mode that the profile requires is not possible.
    fn build(&mut self, strict: bool, table: Table) -> Result<()> {
        let count = self.sockets.count();
        let name = self.config.name.as_str();
        let mtu = self.parts.mtu();
        let tun = if self.tun.len() == count {
            self.tun.iter().cloned().map(TunPort::on).collect()
        } else {
            let config = TunConfig { name: name.to_owned(), mtu, queues: count };
            let replaces = !self.tun.is_empty();
            self.tun.clear();
            let open = || TunPort::open(&config);
            let opened = if replaces { ports::patiently(open) } else { open() };
            opened.with_context(|| format!("cannot create the tun device {name}"))?
        };
        self.tun = tun.iter().map(|port| port.queue().clone()).collect();
        let (settings, kernel) =
            (self.port_settings(strict), KernelPorts { udp: self.sockets.ports(&self.config), tun });
        let setups = ports::build(&mut self.drives, &mut self.steering, kernel, settings, &cores())?;
        // If the kernel merged the tunnel's datagrams below XDP, a program would see frames that are too large for it.
        self.sockets.set_gro(!self.drives.wan.xdp());
        self.workers.start(EngineConfig { workers: setups, table, cipher: self.cipher.cipher() })
    }

    /// When to retry what has failed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.problems.poll_timeout()
    }

    /// What is wrong with interfaces and workers.
    pub fn problems(&self, now: Instant) -> Vec<crate::problem::Problem> {
        let mut all = self.problems.list(now);
        all.extend(self.drives.problems(now));
        all.extend(self.testing.problems(now));
        all
    }

    /// How many workers there are, or are to be.
    pub fn worker_count(&self) -> usize {
        self.sockets.count()
    }

    /// The workers.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// The workers, for sending them commands.
    pub fn workers_mut(&mut self) -> &mut Workers {
        &mut self.workers
    }

    /// For sending from the tunnel's sockets.
    pub fn sender(&self) -> UdpSender {
        self.sockets.sender()
    }

    /// The tunnel's UDP port.
    pub fn local_port(&self) -> u16 {
        self.sockets.port()
    }

    /// The configured port: the profile's, or that of `wg set`.
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

    /// Whether packets are forwarded: the workers run, and the WAN interface exists and is up.
    pub fn forwards(&self) -> bool {
        self.workers.engine().is_some() && self.drives.wan.interface.as_ref().is_some_and(|wan| wan.up)
    }

    /// The steering programs.
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// Finds the paths to new endpoints, or with `anew` to all; returns whether any has changed.
    pub fn find_paths(&mut self, netlink: &mut Netlink, network: &Network, peers: &Peers, anew: bool) -> bool {
        let wan = self.drives.wan.interface.as_ref().filter(|_| self.drives.wan.xdp());
        // With the inner packet's class, outer packets may have to take different ways to the same peer.
        let by_class = if self.config.copy_dscp && wan.is_some() { network.chosen_by_class() } else { Vec::new() };
        let uplink = Uplink { wan, mark: self.config.mark, port: self.local_port(), by_class };
        let (paths, missing) = self.next_hops.find(netlink, network, peers, &uplink, anew);
        let now = Instant::now();
        match uplink.by_class.first() {
            None => self.problems.solved(CLASSES),
            Some(to) => {
                let sentence = format!(
                    "a rule or route to {to} is for one traffic class, so the kernel sends to peers there, and AF_XDP only \
                     receives from them"
                );
                self.problems.warn(now, CLASSES, &sentence, "CopyDscp: false, if the class is not to choose the way");
            }
        }
        self.next_hops.ask(netlink, now, &missing);
        let changed = paths != self.paths;
        if changed {
            self.parts.renew_endpoints(peers);
        }
        self.paths = paths;
        changed
    }

    /// Counts the queues of the interfaces again, because the kernel does not announce changes. Another number requires
    /// other ports.
    pub fn recount_queues(&mut self) {
        if self.drives.recount() {
            tracing::info!("an interface has another number of receive queues");
            self.stale = true;
        }
    }

    /// Keeps the kernel's entries of neighbours that only AF_XDP sends to: the kernel does not see that traffic, and
    /// would forget them after a minute.
    pub fn confirm_neighbours(&mut self, netlink: &mut Netlink, network: &Network) {
        if self.drives.any_xdp() {
            let stale = self.next_hops.stale(network, &self.drives.lan_xdp());
            self.next_hops.ask(netlink, Instant::now(), &stale);
        }
    }

    /// Updates what the tunnel may reach, the next hops on the LAN, and the source addresses of ICMP messages. Returns
    /// whether anything may have changed.
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

    /// The firewall's entry in `status`.
    pub fn firewall(&self, peers: &Peers) -> Option<status::Firewall> {
        self.filter.status(peers, Millis::now())
    }

    /// Tells the steering programs our addresses, and where the prefixes lead.
    pub fn steer(&mut self, addresses: &BTreeSet<IpAddr>, prefixes: &Prefixes) {
        match self.steering.tell(addresses, prefixes).as_slice() {
            [] => self.problems.solved(STEERING),
            [first, ..] => {
                let sentence =
                    format!("some addresses or prefixes could not be given to them: {first}; it is tried again");
                let what_to_do = "see the kernel's log; until then the kernel forwards what the programs do not know";
                self.problems.note(Instant::now(), STEERING, &sentence, what_to_do);
            }
        }
    }

    /// Publishes a table of the present state to the workers.
    pub fn publish(&self, peers: &Peers) {
        if let Some(engine) = self.workers.engine() {
            engine.publish(self.parts.table(peers, |peer| self.paths.get(&peer.id).copied().unwrap_or_default()));
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
