//! How each interface is driven, and the workers' ports for it.
//!
//! ```text
//!   worker 0:  wan  xdp(q0) xdp(q2) … udp      lan  xdp(q0) xdp(q2) … tun
//!   worker 1:  wan  xdp(q1) xdp(q3) … udp      lan  xdp(q1) xdp(q3) … tun
//! ```
//! The last port of each side is the kernel's, and takes what has no link.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use penstock_dataplane::engine::WorkerSetup;
use penstock_dataplane::frame::Pool;
use penstock_dataplane::ports::tun::TunPort;
use penstock_dataplane::ports::udp::UdpPort;
use penstock_dataplane::ports::xdp::{FRAMES, RING, XdpPort};
use penstock_dataplane::ports::{BATCH, Port};
use penstock_dataplane::steer::{AttachMode, LanSteering, WanSteering};

use super::modes::{Device, Plan, Wish, plan};
use super::steering::Steering;
use crate::netlink::Interface;

/// Frames of a worker besides those in AF_XDP rings: a batch in every hand, and the socket ports'
/// receive buffers.
const SPARE_FRAMES: u32 = 16 * BATCH as u32;
/// Frames of a worker without AF_XDP.
const SOCKET_FRAMES: u32 = 4096;
/// How often a queue that is taken is tried again, and after which pause.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// An interface, and how it is driven.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The interface.
    pub interface: Interface,
    /// What it is.
    pub device: Device,
    /// How it is driven.
    pub plan: Plan,
}

impl Drive {
    /// Decides how to drive an interface.
    pub fn new(interface: &Interface, wish: Wish) -> Self {
        let device = Device::of(interface);
        let plan = plan(wish, &device);
        Self { interface: interface.clone(), device, plan }
    }

    /// Whether AF_XDP does.
    pub fn xdp(&self) -> bool {
        matches!(self.plan, Plan::Xdp { .. })
    }

    /// Why it is driven as it is.
    pub fn reason(&self) -> &str {
        match &self.plan {
            Plan::Socket(reason) | Plan::Xdp { reason, .. } => reason,
        }
    }

    /// Gives AF_XDP up, if that is allowed.
    fn fall_back(&mut self, error: anyhow::Error) -> Result<()> {
        let name = &self.interface.name;
        match self.plan {
            Plan::Xdp { optional: true, .. } => {
                tracing::warn!("{name}: AF_XDP is not possible ({error:#}); sockets instead");
                self.plan = Plan::Socket(format!("{name} does not support AF_XDP: {error:#}"));
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// The WAN and the LAN interfaces.
#[derive(Clone, Debug)]
pub struct Drives {
    /// Towards the other sites.
    pub wan: Drive,
    /// Towards this site.
    pub lan: Vec<Drive>,
}

impl Drives {
    /// Whether any interface is driven by AF_XDP.
    pub fn any_xdp(&self) -> bool {
        self.all().any(Drive::xdp)
    }

    /// The most receive queues of an interface driven by AF_XDP.
    pub fn queues(&self) -> u32 {
        self.all().filter(|d| d.xdp()).map(|d| d.device.queues).max().unwrap_or(0)
    }

    fn all(&self) -> impl Iterator<Item = &Drive> {
        std::iter::once(&self.wan).chain(&self.lan)
    }

    fn xdp_ports(&self, worker: u32, workers: u32) -> u32 {
        self.all().filter(|d| d.xdp()).map(|d| queues_of(d, worker, workers).count() as u32).sum()
    }
}

/// What the workers get besides the AF_XDP ports, one of each for every worker.
pub struct KernelPorts {
    /// The tunnel's UDP sockets.
    pub udp: Vec<UdpPort>,
    /// The queues of the tun device.
    pub tun: Vec<TunPort>,
}

/// What all workers are told.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The tunnel's UDP port.
    pub local_port: u16,
    /// The tunnel's MTU.
    pub tunnel_mtu: u16,
    /// Never sleep.
    pub busy_poll: bool,
}

/// Attaches the programs where AF_XDP is planned. An interface that cannot is given up if it may be.
///
/// # Errors
/// An interface that must be driven by AF_XDP cannot be.
pub fn attach(drives: &mut Drives, manner: Manner) -> Result<Steering> {
    let mut steering = Steering::default();
    let wan = &mut drives.wan;
    if let Plan::Xdp { attach, .. } = wan.plan {
        let Interface { name, index, .. } = &wan.interface;
        match WanSteering::attach(name, *index, manner.local_port, attach) {
            Ok(program) => {
                announce(name, program.mode().name(), program.fallback(), attach);
                steering.wan = Some(program);
            }
            Err(e) => wan.fall_back(e.into())?,
        }
    }
    for lan in &mut drives.lan {
        let Plan::Xdp { attach, .. } = lan.plan else { continue };
        let Interface { name, index, mac, .. } = &lan.interface;
        let attached = mac
            .ok_or_else(|| anyhow!("{name} is not an Ethernet device"))
            .and_then(|mac| Ok(LanSteering::attach(name, *index, mac, manner.tunnel_mtu, attach)?));
        match attached {
            Ok(program) => {
                announce(name, program.mode().name(), program.fallback(), attach);
                steering.lan.push((*index, program));
            }
            Err(e) => lan.fall_back(e)?,
        }
    }
    Ok(steering)
}

fn announce(interface: &str, mode: &str, fallback: Option<&str>, wish: AttachMode) {
    match fallback {
        Some(reason) => tracing::warn!(
            "{interface}: the driver does not do native XDP ({reason}): it runs in GENERIC mode, which is slow"
        ),
        None => tracing::info!("{interface}: {mode} XDP attached (wish: {wish:?})"),
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
    manner: Manner,
    cores: &[core_affinity::CoreId],
) -> Result<Vec<WorkerSetup>> {
    let workers = kernel.udp.len() as u32;
    let ports = loop {
        match bind_all(drives, steering, manner, workers) {
            Ok(ports) => break ports,
            Err((index, error)) => {
                let drive = std::iter::once(&mut drives.wan)
                    .chain(&mut drives.lan)
                    .find(|d| d.interface.index == index)
                    .ok_or_else(|| anyhow!("{error:#}"))?;
                drive.fall_back(error)?;
                if index == drives.wan.interface.index {
                    steering.wan = None;
                }
                steering.lan.retain(|(lan, _)| *lan != index);
            }
        }
    };
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
        setups.push(WorkerSetup { pool, wan, lan, core, busy_poll: manner.busy_poll });
    }
    Ok(setups)
}

struct WorkerPorts {
    pool: Pool,
    wan: Vec<Box<dyn Port>>,
    lan: Vec<Box<dyn Port>>,
}

/// All AF_XDP ports, or the interface that has none and why.
fn bind_all(
    drives: &Drives,
    steering: &mut Steering,
    manner: Manner,
    workers: u32,
) -> Result<Vec<WorkerPorts>, (u32, anyhow::Error)> {
    let blame = drives.all().find(|d| d.xdp()).map_or(0, |d| d.interface.index);
    (0..workers)
        .map(|worker| {
            let pool = pool(drives.xdp_ports(worker, workers)).map_err(|e| (blame, e))?;
            let mut ports = WorkerPorts { pool, wan: Vec::new(), lan: Vec::new() };
            for drive in drives.all().filter(|d| d.xdp()) {
                for queue in queues_of(drive, worker, workers) {
                    let index = drive.interface.index;
                    bind(&mut ports, drive, steering, manner, queue).map_err(|e| (index, e))?;
                }
            }
            Ok(ports)
        })
        .collect()
}

fn bind(ports: &mut WorkerPorts, drive: &Drive, steering: &mut Steering, manner: Manner, queue: u32) -> Result<()> {
    let Interface { name, index, .. } = &drive.interface;
    let failed = || format!("cannot bind an AF_XDP socket to queue {queue} of {name}");
    let pool = &mut ports.pool;
    if let Some((_, program)) = steering.lan.iter_mut().find(|(lan, _)| lan == index) {
        let port = patiently(|| XdpPort::lan(pool, name, *index, queue)).with_context(failed)?;
        program.set_socket(queue, port.socket())?;
        ports.lan.push(Box::new(port));
    } else if let Some(program) = &mut steering.wan {
        let port = patiently(|| XdpPort::wan(pool, name, *index, queue, manner.local_port)).with_context(failed)?;
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
    (worker..drive.device.queues).step_by(workers.max(1) as usize)
}

fn pool(xdp_ports: u32) -> Result<Pool> {
    match NonZeroU32::new(xdp_ports * FRAMES) {
        Some(rings) => Pool::umem(rings.saturating_add(SPARE_FRAMES), RING).context(
            "cannot have packet memory for AF_XDP (missing CAP_NET_RAW, or CAP_IPC_LOCK or a larger limit of locked memory)",
        ),
        None => Ok(Pool::heap(SOCKET_FRAMES)),
    }
}
