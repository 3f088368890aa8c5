//! How each interface is driven, and the workers' ports for it.
//!
//! ```text
//!   worker 0:  wan  xdp(q0) xdp(q2) … udp      lan  xdp(q0) xdp(q2) … tun
//!   worker 1:  wan  xdp(q1) xdp(q3) … udp      lan  xdp(q1) xdp(q3) … tun
//! ```
//! The last port of each side is the kernel's, and takes what has no link.

mod proving;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use penstock_dataplane::clock::Millis;
use penstock_dataplane::engine::WorkerSetup;
use penstock_dataplane::frame::Pool;
use penstock_dataplane::ports::tun::TunPort;
use penstock_dataplane::ports::udp::UdpPort;
use penstock_dataplane::ports::xdp::{Binding, Checksums, FRAMES, RING, XdpPort};
use penstock_dataplane::ports::{BATCH, INNER_MAX, Port};
use penstock_dataplane::steer::{AttachError, AttachMode, XdpMode};

use super::modes::{Device, ModeSetting, Plan, loses, merges, plan};
use super::proof::Proof;
use super::steering::{Lan, Steering, Wan};
use crate::gateway::bypass::Bypassed;
use crate::ground::Network;
use crate::netlink::Interface;
use crate::problem::{Problem, Problems, Severity};
use crate::profile::Profile;
use proving::note_bound;

/// Frames of a worker besides those in AF_XDP rings: a batch in every hand, and the socket ports'
/// receive buffers.
const SPARE_FRAMES: u32 = 16 * BATCH as u32;
/// Frames of a worker without AF_XDP.
const SOCKET_FRAMES: u32 = 4096;
/// How often a queue that is taken is tried again, and after which pause.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// What encapsulation takes from the WAN's MTU: outer IPv6 (40) and UDP (8), WireGuard's header (16)
/// and tag (16).
const OVERHEAD: u16 = 80;
/// The inside is never smaller, since IPv6 needs it (RFC 8200, section 5): outer packets are fragmented instead.
const SMALLEST_MTU: u16 = 1280;
/// The MTU of the WAN as long as it is not there: Ethernet's.
const USUAL_WAN_MTU: u16 = 1500;

/// An interface, and how it is driven.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The interface's name, by which the profile knows it.
    pub name: String,
    /// The interface, if there is one of this name.
    pub interface: Option<Interface>,
    /// What it is.
    device: Option<Device>,
    /// How it is driven.
    plan: Plan,
    setting: ModeSetting,
    /// A rule of the kernel's that AF_XDP would pass by.
    bypassed: Option<String>,
    /// Whether AF_XDP carries what it is given.
    proof: Proof,
}

impl Drive {
    fn new(name: &str, setting: ModeSetting) -> Self {
        let plan = Plan::Socket(missing(name));
        let proof = Proof::default();
        Self { name: name.to_owned(), interface: None, device: None, plan, setting, bypassed: None, proof }
    }

    /// How it is to be driven: as its device can, as far as no rule and no proof is against it.
    fn plan(&self) -> Plan {
        let Some(device) = &self.device else { return Plan::Socket(missing(&self.name)) };
        let plan = plan(self.setting, device, self.bypassed.as_deref());
        match self.proof.fallen() {
            Some(fallen) => proving::fall(plan, fallen),
            None => plan,
        }
    }

    /// Takes up a rule that AF_XDP would pass by, or that there is none. Returns whether its ports have to be made anew.
    fn set_bypassed(&mut self, rule: Option<&String>) -> bool {
        if self.bypassed.as_ref() == rule {
            return false;
        }
        let was_xdp = self.xdp();
        self.bypassed = rule.cloned();
        if self.setting == ModeSetting::Auto {
            self.plan = self.plan();
        }
        was_xdp != self.xdp()
    }

    /// Whether AF_XDP would drive it if there were no rules.
    fn heeds_rules(&self) -> bool {
        self.device.as_ref().is_some_and(|device| matches!(plan(self.setting, device, None), Plan::Xdp { .. }))
    }

    /// Takes up what has become of the interface. Returns whether its ports have to be made anew.
    fn follow(&mut self, network: &Network) -> bool {
        let now = network.named(&self.name).cloned();
        if now == self.interface {
            return false;
        }
        let was_xdp = self.xdp();
        let same_device = match (&self.interface, &now) {
            (Some(before), Some(now)) => {
                let ethernet = before.mac.is_some() == now.mac.is_some();
                ethernet && (before.index, before.queues) == (now.index, now.queues)
            }
            _ => false,
        };
        match (&self.interface, &now) {
            (Some(_), None) => tracing::warn!("interface {} is gone; the gateway waits for it", self.name),
            (None, Some(_)) => tracing::info!("interface {} is there", self.name),
            (Some(before), Some(now)) if before.index != now.index => {
                tracing::info!("interface {} is another one now", self.name);
            }
            _ => {}
        }
        self.interface = now;
        if same_device {
            if self.interface.as_ref().is_some_and(|interface| interface.up) {
                self.proof.handle_link_event(Millis::now());
            }
            return false;
        }
        self.proof = Proof::default();
        self.device = self.interface.as_ref().map(Device::of);
        self.plan = self.plan();
        was_xdp || self.xdp()
    }

    /// Whether AF_XDP drives it.
    pub fn xdp(&self) -> bool {
        matches!(self.plan, Plan::Xdp { .. })
    }

    /// Why it is driven as it is.
    pub fn reason(&self) -> &str {
        match &self.plan {
            Plan::Socket(reason) | Plan::Xdp { reason, .. } => reason,
        }
    }

    /// Its index, while it is there.
    pub fn index(&self) -> Option<u32> {
        self.interface.as_ref().map(|interface| interface.index)
    }

    /// The interface that a program is to be attached to, and how.
    fn attachment(&self) -> Option<(&Interface, AttachMode)> {
        match (&self.interface, &self.plan) {
            (Some(interface), Plan::Xdp { attach, .. }) => Some((interface, *attach)),
            _ => None,
        }
    }

    /// Why its frames would be lost, should AF_XDP drive it.
    fn refuse(&mut self, strict: bool) -> Result<()> {
        match self.device.as_ref().filter(|_| self.xdp()).and_then(loses) {
            Some(reason) => self.fall_back(anyhow!("{reason}"), strict),
            None => Ok(()),
        }
    }

    /// Counts the queues again. Returns whether their number is another.
    fn recount(&mut self) -> bool {
        let now = self.interface.as_ref().filter(|_| self.xdp()).map(Device::of);
        match (&mut self.device, now) {
            (Some(device), Some(now)) => std::mem::replace(&mut device.queues, now.queues) != now.queues,
            _ => false,
        }
    }

    /// What its frames have for checksums: generic XDP comes behind receive offload, which leaves partial ones.
    fn checksums(&self, mode: XdpMode) -> Checksums {
        let from_wire = self.device.as_ref().is_some_and(Device::is_wired);
        if from_wire && mode == XdpMode::Native { Checksums::Complete } else { Checksums::MaybePartial }
    }

    fn queues(&self) -> u32 {
        self.device.as_ref().map_or(0, |device| device.queues)
    }

    /// Gives AF_XDP up, if that is allowed: always but at a start with a profile that demands it.
    fn fall_back(&mut self, error: anyhow::Error, strict: bool) -> Result<()> {
        match self.plan {
            Plan::Xdp { optional, .. } if optional || !strict => {
                tracing::warn!("{}: AF_XDP is not possible ({error:#}); sockets instead", self.name);
                self.plan = Plan::Socket(format!("{} does not support AF_XDP: {error:#}", self.name));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// What is wrong with it: it is missing or down, or not driven as the profile demands.
    fn problem(&self) -> Option<(String, &'static str, Severity)> {
        let (sentence, what_to_do) = match &self.interface {
            None if self.name.is_empty() => return None,
            None => (missing(&self.name), "connect or create it, or correct its name in the profile"),
            Some(interface) if !interface.up => {
                (format!("interface {} is down", self.name), "put it up: ip link set dev NAME up")
            }
            Some(_) => match self.lost() {
                Some(lost) => lost,
                None if self.setting == ModeSetting::Xdp && !self.xdp() => {
                    (self.reason().to_owned(), "mend what is named, or set the mode to auto")
                }
                None => {
                    let rule = self.bypassed.as_ref().filter(|_| self.xdp())?;
                    let sentence = format!("what AF_XDP carries on {} passes by {rule}", self.name);
                    return Some((
                        sentence,
                        "set the mode to auto, or say in Firewall what it is for, and remove it",
                        Severity::Warning,
                    ));
                }
            },
        };
        Some((sentence, what_to_do, Severity::Error))
    }
}

/// The interface that AF_XDP ports are bound to, if there are any.
fn ports(drive: &Drive) -> Option<String> {
    drive.xdp().then(|| drive.name.clone())
}

fn missing(name: &str) -> String {
    format!("there is no interface {name}")
}

/// The WAN and the LAN interfaces.
#[derive(Clone, Debug)]
pub struct Drives {
    /// Towards the other sites.
    pub wan: Drive,
    /// Towards this site.
    pub lan: Vec<Drive>,
    /// Why frames are copied whatever the drivers can, if they are.
    pub copies: Option<String>,
    problems: Problems,
}

impl Drives {
    /// Those of the profile, not looked for yet.
    pub fn of(profile: &Profile) -> Self {
        let lan = profile.lan.interfaces.iter().map(|name| Drive::new(name, profile.lan.mode.into()));
        Self {
            wan: Drive::new(&profile.wan.interface, profile.wan.mode.into()),
            lan: lan.collect(),
            copies: None,
            problems: Problems::default(),
        }
    }

    /// None of its own: the kernel carries the tunnel by whatever interface its routes lead out of.
    pub fn none() -> Self {
        let any = Plan::Socket("the kernel's routes lead to the peers".to_owned());
        let wan = Drive { plan: any, ..Drive::new("", ModeSetting::Socket) };
        Self { wan, lan: Vec::new(), copies: None, problems: Problems::default() }
    }

    /// Takes up another profile. An interface that is driven as before stays as it is. Returns whether ports have to
    /// be made anew.
    pub fn reload(&mut self, profile: &Profile, network: &Network) -> bool {
        let Self { wan, lan, copies, problems } = std::mem::replace(self, Self::of(profile));
        let before = (ports(&wan), lan.iter().flat_map(ports).collect::<Vec<_>>());
        let same = |new: &mut Drive, old: &Drive| {
            if (&new.name, new.setting) == (&old.name, old.setting) {
                new.clone_from(old);
            }
        };
        same(&mut self.wan, &wan);
        self.lan.iter_mut().for_each(|new| lan.iter().for_each(|old| same(new, old)));
        (self.copies, self.problems) = (copies, problems);
        self.problems.solved_all_but(&self.all().map(|drive| drive.name.clone()).collect());
        let followed = self.follow(network);
        followed || before != (ports(&self.wan), self.lan.iter().flat_map(ports).collect())
    }

    /// Takes up what has become of the interfaces. Returns whether ports have to be made anew.
    pub fn follow(&mut self, network: &Network) -> bool {
        let stale = self.all_mut().fold(false, |stale, drive| drive.follow(network) | stale);
        self.note_problems();
        stale
    }

    fn note_problems(&mut self) {
        let now = Instant::now();
        for drive in std::iter::once(&self.wan).chain(&self.lan) {
            match drive.problem() {
                Some((sentence, what_to_do, Severity::Error)) => {
                    self.problems.note(now, &drive.name, &sentence, what_to_do);
                }
                Some((sentence, what_to_do, Severity::Warning)) => {
                    self.problems.warn(now, &drive.name, &sentence, what_to_do);
                }
                None => self.problems.solved(&drive.name),
            }
        }
    }

    /// Says how each interface is driven, and why.
    pub fn announce(&mut self) {
        self.note_problems();
        for drive in self.all().filter(|drive| drive.interface.is_some()) {
            let how = if drive.xdp() { "AF_XDP" } else { "sockets" };
            tracing::info!("{}: {how}, because {}", drive.name, drive.reason());
        }
    }

    /// What is wrong with them.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }

    /// The MTU of the WAN interface.
    pub fn link_mtu(&self) -> u16 {
        self.wan.interface.as_ref().map_or(USUAL_WAN_MTU, Interface::largest_packet)
    }

    /// The largest inner packet on any path: `pinned`, else what the WAN leaves.
    pub fn tunnel_mtu(&self, pinned: Option<u16>) -> u16 {
        tunnel_mtu(pinned, self.link_mtu())
    }

    /// Takes up the rules that AF_XDP would pass by. Returns whether ports have to be made anew.
    pub fn set_bypassed(&mut self, bypassed: &Bypassed) -> bool {
        let stale = self.all_mut().fold(false, |stale, drive| {
            let rule = bypassed.get(&drive.name);
            drive.set_bypassed(rule) | stale
        });
        self.note_problems();
        stale
    }

    /// Whether rules that AF_XDP would pass by matter to any interface.
    pub fn heed_rules(&self) -> bool {
        self.all().any(Drive::heeds_rules)
    }

    /// Whether any interface is driven by AF_XDP.
    pub fn any_xdp(&self) -> bool {
        self.all().any(Drive::xdp)
    }

    /// The indices of the LAN interfaces that are there.
    pub fn lan_indices(&self) -> Vec<u32> {
        self.lan.iter().filter_map(Drive::index).collect()
    }

    /// The same of those that AF_XDP drives.
    pub fn lan_xdp(&self) -> Vec<u32> {
        self.lan.iter().filter(|drive| drive.xdp()).filter_map(Drive::index).collect()
    }

    /// Counts the queues of interfaces driven by AF_XDP again. Returns whether any has another number of them.
    pub fn recount(&mut self) -> bool {
        self.all_mut().fold(false, |changed, drive| drive.recount() | changed)
    }

    /// The most receive queues of an interface driven by AF_XDP.
    pub fn queues(&self) -> u32 {
        self.all().filter(|drive| drive.xdp()).map(Drive::queues).max().unwrap_or(0)
    }

    fn all(&self) -> impl Iterator<Item = &Drive> {
        std::iter::once(&self.wan).chain(&self.lan)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Drive> {
        std::iter::once(&mut self.wan).chain(&mut self.lan)
    }

    fn xdp_ports(&self, worker: u32, workers: u32) -> u32 {
        self.all().filter(|d| d.xdp()).map(|d| queues_of(d, worker, workers).count() as u32).sum()
    }
}

fn tunnel_mtu(pinned: Option<u16>, wan: u16) -> u16 {
    pinned.unwrap_or_else(|| wan.saturating_sub(OVERHEAD).max(SMALLEST_MTU)).min(INNER_MAX as u16)
}

/// What the workers get besides the AF_XDP ports, one of each for every worker.
pub struct KernelPorts {
    /// The tunnel's UDP sockets.
    pub udp: Vec<UdpPort>,
    /// The queues of the tun device.
    pub tun: Vec<TunPort>,
}

/// What all ports are told.
#[derive(Clone, Copy, Debug)]
pub struct PortSettings {
    /// The tunnel's UDP port.
    pub local_port: u16,
    /// The tunnel's MTU.
    pub tunnel_mtu: u16,
    /// Never sleep.
    pub busy_poll: bool,
    /// Whether a mode that the profile demands must be had; else sockets take its place.
    pub strict: bool,
}

/// Attaches the programs where AF_XDP is planned, and detaches those that are of no use any more. An interface that
/// cannot is given up if it may be. Workers may run meanwhile: packets are the kernel's until the program has sockets.
///
/// # Errors
/// An interface that must be driven by AF_XDP cannot be.
pub fn attach(drives: &mut Drives, steering: &mut Steering, settings: PortSettings) -> Result<()> {
    let PortSettings { local_port, tunnel_mtu, strict, .. } = settings;
    drives.all_mut().try_for_each(|drive| drive.refuse(strict))?;
    // An interface can have one program, so that the old one goes first.
    steering
        .wan
        .take_if(|wan| drives.wan.attachment().is_none_or(|(interface, mode)| !wan.fits(interface, local_port, mode)));
    let fits =
        |lan: &Lan| drives.lan.iter().filter_map(Drive::attachment).any(|(interface, mode)| lan.fits(interface, mode));
    steering.lan.retain(fits);
    if let (Some((interface, mode)), None) = (drives.wan.attachment(), &steering.wan) {
        match sound(Wan::attach(interface, local_port, mode), interface, |wan| wan.program.mode()) {
            Ok(wan) => {
                announce(&interface.name, wan.program.mode().name(), wan.program.fallback(), mode);
                steering.wan = Some(wan);
            }
            Err(e) => drives.wan.fall_back(e, strict)?,
        }
    }
    for drive in &mut drives.lan {
        let Some((interface, mode)) = drive.attachment() else { continue };
        if steering.lan.iter().any(|lan| lan.fits(interface, mode)) {
            continue;
        }
        let attached = interface
            .mac
            .ok_or_else(|| anyhow!("{} is not an Ethernet device", interface.name))
            .and_then(|mac| sound(Lan::attach(interface, mac, tunnel_mtu, mode), interface, |lan| lan.program.mode()));
        match attached {
            Ok(lan) => {
                announce(&interface.name, lan.program.mode().name(), lan.program.fallback(), mode);
                steering.lan.push(lan);
            }
            Err(e) => drive.fall_back(e, strict)?,
        }
    }
    // Some drivers, virtio_net for one, have more queues once a program is attached.
    drives.recount();
    Ok(())
}

/// A program that the driver did not take is of no use where the driver merges packets.
fn sound<T>(attached: Result<T, AttachError>, interface: &Interface, mode: impl Fn(&T) -> XdpMode) -> Result<T> {
    let refused = match &attached {
        Ok(program) => mode(program) == XdpMode::Generic,
        Err(error) => matches!(error, AttachError::NoNative { .. }),
    };
    match refused.then(|| merges(interface)).flatten() {
        Some(reason) => Err(anyhow!(reason)),
        None => Ok(attached?),
    }
}

fn announce(interface: &str, mode: &str, fallback: Option<&str>, asked: AttachMode) {
    match fallback {
        Some(reason) => tracing::warn!(
            "{interface}: the driver does not do native XDP ({reason}): it runs in GENERIC mode, which is slow"
        ),
        None => tracing::info!("{interface}: {mode} XDP attached (asked for: {asked:?})"),
    }
}

/// Builds every worker's pool and ports, and tells the steering programs the sockets.
///
/// # Errors
/// A socket cannot be bound where AF_XDP is a must, or there is no memory.
pub fn build(
    drives: &mut Drives,
    steering: &mut Steering,
    kernel: KernelPorts,
    settings: PortSettings,
    cores: &[core_affinity::CoreId],
) -> Result<Vec<WorkerSetup>> {
    let workers = kernel.udp.len() as u32;
    let copies = drives.all().filter(|drive| drive.xdp()).find_map(Drive::copies);
    drives.copies = copies;
    let ports = loop {
        match bind_all(drives, steering, settings, workers) {
            Ok(ports) => break ports,
            Err(unbound) if drives.copies.is_none() && unbound.must_copy().is_some() => {
                drives.copies = unbound.must_copy();
                tracing::warn!("{}", drives.copies.as_deref().unwrap_or_default());
            }
            Err(Unbound { index, error, .. }) => {
                let Some(drive) = drives.all_mut().find(|drive| drive.index() == Some(index)) else {
                    return Err(error);
                };
                drive.fall_back(error, settings.strict)?;
                if drives.wan.index() == Some(index) {
                    steering.wan = None;
                }
                steering.lan.retain(|lan| lan.index != index);
            }
        }
    };
    note_bound(drives, steering, &ports);
    if workers < drives.queues() {
        tracing::info!("{workers} workers share {} queues", drives.queues());
    }
    // Unpinned, the scheduler moves a worker away from who shares its core. With AF_XDP the queue's
    // interrupt is bound to a core, and the worker better is too.
    let pinned = drives.any_xdp() || (workers > 1 && workers as usize >= cores.len());
    let mut setups = Vec::new();
    let mut udp = VecDeque::from(kernel.udp);
    let mut tun = VecDeque::from(kernel.tun);
    for (worker, WorkerPorts { pool, mut wan, mut lan }) in ports.into_iter().enumerate() {
        let (Some(udp), Some(tun)) = (udp.pop_front(), tun.pop_front()) else { bail!("a worker lacks its sockets") };
        wan.push(Box::new(udp));
        lan.push(Box::new(tun));
        let core = (pinned && !cores.is_empty()).then(|| cores[worker % cores.len()]);
        setups.push(WorkerSetup { pool, wan, lan, core, busy_poll: settings.busy_poll });
    }
    Ok(setups)
}

struct WorkerPorts {
    pool: Pool,
    wan: Vec<Box<dyn Port>>,
    lan: Vec<Box<dyn Port>>,
}

impl WorkerPorts {
    /// The interface of one of them that does without copies.
    fn zero_copy(&self) -> Option<String> {
        let infos = self.wan.iter().chain(&self.lan).map(|port| port.info());
        infos.into_iter().find(|info| info.zero_copy == Some(true)).map(|info| info.interface)
    }
}

/// A port that cannot be bound.
struct Unbound {
    /// The interface's index and name.
    index: u32,
    name: String,
    error: anyhow::Error,
    /// An interface that does without copies, with which it would share memory.
    zero_copy: Option<String>,
}

impl Unbound {
    /// Why all frames have to be copied, if that is what is wrong: memory that one driver uses without copies cannot be
    /// shared with a driver that copies.
    fn must_copy(&self) -> Option<String> {
        let Self { name, error, zero_copy, .. } = self;
        let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        let other = zero_copy.as_ref().filter(|_| matches!(errno, Some(libc::EINVAL | libc::EOPNOTSUPP)))?;
        Some(format!(
            "all frames are copied, since the driver of {name} cannot do without, as that of {other} can, and the two \
             share their memory"
        ))
    }
}

/// All AF_XDP ports, or the interface that has none and why.
fn bind_all(
    drives: &Drives,
    steering: &mut Steering,
    settings: PortSettings,
    workers: u32,
) -> Result<Vec<WorkerPorts>, Unbound> {
    let blame = drives.all().filter(|d| d.xdp()).find_map(Drive::index).unwrap_or(0);
    (0..workers)
        .map(|worker| {
            let pool = pool(drives.xdp_ports(worker, workers));
            let pool = pool.map_err(|error| Unbound { index: blame, name: String::new(), error, zero_copy: None })?;
            let mut ports = WorkerPorts { pool, wan: Vec::new(), lan: Vec::new() };
            for drive in drives.all().filter(|d| d.xdp()) {
                for queue in queues_of(drive, worker, workers) {
                    let index = drive.index().unwrap_or(0);
                    bind(&mut ports, drive, steering, settings, (queue, drives.copies.is_some())).map_err(|error| {
                        Unbound { index, name: drive.name.clone(), error, zero_copy: ports.zero_copy() }
                    })?;
                }
            }
            Ok(ports)
        })
        .collect()
}

fn bind(
    ports: &mut WorkerPorts,
    drive: &Drive,
    steering: &mut Steering,
    settings: PortSettings,
    (queue, copy): (u32, bool),
) -> Result<()> {
    let Some(Interface { name, index, .. }) = &drive.interface else { bail!(missing(&drive.name)) };
    let failed = || format!("cannot bind an AF_XDP socket to queue {queue} of {name}");
    let pool = &mut ports.pool;
    let at = Binding { interface: name, ifindex: *index, queue, copy };
    if let Some(Lan { program, .. }) = steering.lan.iter_mut().find(|lan| lan.index == *index) {
        let checksums = drive.checksums(program.mode());
        let port = patiently(|| XdpPort::lan(pool, &at, checksums)).with_context(failed)?;
        program.set_socket(queue, port.socket())?;
        ports.lan.push(Box::new(port));
    } else if let Some(Wan { program, .. }) = &mut steering.wan {
        let port = patiently(|| XdpPort::wan(pool, &at, settings.local_port)).with_context(failed)?;
        program.set_socket(queue, port.socket())?;
        ports.wan.push(Box::new(port));
    }
    Ok(())
}

/// The kernel gives a queue free a moment after the last socket on it was closed, so a gateway that
/// follows another has to wait for it.
fn patiently<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..BUSY_TRIES {
        match bind() {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
    bind()
}

fn queues_of(drive: &Drive, worker: u32, workers: u32) -> impl Iterator<Item = u32> {
    (worker..drive.queues()).step_by(workers.max(1) as usize)
}

fn pool(xdp_ports: u32) -> Result<Pool> {
    match NonZeroU32::new(xdp_ports * FRAMES) {
        Some(rings) => Pool::umem(rings.saturating_add(SPARE_FRAMES), RING).context(
            "cannot have packet memory for AF_XDP (missing CAP_NET_RAW, or CAP_IPC_LOCK or a larger limit of locked memory)",
        ),
        None => Ok(Pool::heap(SOCKET_FRAMES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_one_driver_cannot_share_without_copies_is_copied_by_all() {
        let unbound = |errno, zero_copy: Option<&str>| Unbound {
            index: 3,
            name: "eth1".to_owned(),
            error: anyhow::Error::new(io::Error::from_raw_os_error(errno)).context("cannot bind"),
            zero_copy: zero_copy.map(str::to_owned),
        };
        let why = unbound(libc::EINVAL, Some("eth0")).must_copy().unwrap();
        assert!(why.contains("the driver of eth1 cannot do without, as that of eth0 can"), "{why}");
        assert_eq!(unbound(libc::EINVAL, None).must_copy(), None, "nothing else is without copies");
        assert_eq!(unbound(libc::EBUSY, Some("eth0")).must_copy(), None, "another reason");
    }

    #[test]
    fn the_tunnel_leaves_room_for_its_headers() {
        assert_eq!(tunnel_mtu(None, 1500), 1420);
        assert_eq!(tunnel_mtu(Some(1300), 1500), 1300);
        assert_eq!(tunnel_mtu(None, 65535), INNER_MAX as u16, "no port carries more");
        assert_eq!(tunnel_mtu(None, 600), 1280, "a WAN that is too small fragments");
    }
}
