//! The steering programs, and the workers' ports.
//!
//! ```text
//!   worker 0:  wan  xdp(q0) xdp(q2) … udp      lan  xdp(q0) xdp(q2) … tun
//!   worker 1:  wan  xdp(q1) xdp(q3) … udp      lan  xdp(q1) xdp(q3) … tun
//! ```
//! The last port of each side is the kernel's, and takes packets whose next hop has no link.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use penstock_dataplane::engine::WorkerSetup;
use penstock_dataplane::frame::Pool;
use penstock_dataplane::ports::tun::TunPort;
use penstock_dataplane::ports::udp::UdpPort;
use penstock_dataplane::ports::xdp::{Binding, FRAMES, RING, XdpPort};
use penstock_dataplane::ports::{BATCH, Port};
use penstock_dataplane::steer::{AttachError, AttachMode, XdpMode};

use super::drives::proving::note_bound;
use super::drives::{Drive, Drives, errno, missing};
use super::modes::merges;
use super::steering::{Lan, Steering, Wan};
use crate::netlink::Interface;

/// A worker's frames besides those in AF_XDP rings: for the batches in progress, and for the socket ports' receive
/// buffers.
const SPARE_FRAMES: u32 = 16 * BATCH as u32;
/// A worker's frames without AF_XDP.
const SOCKET_FRAMES: u32 = 4096;
/// How often what is in use is tried again, and the pause in between: a second in all.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The ports that workers get besides AF_XDP's, one of each per worker.
pub struct KernelPorts {
    /// The tunnel's UDP sockets.
    pub udp: Vec<UdpPort>,
    /// The queues of the tun device.
    pub tun: Vec<TunPort>,
}

/// Settings of all ports.
#[derive(Clone, Copy, Debug)]
pub struct PortSettings {
    /// The tunnel's UDP port.
    pub local_port: u16,
    /// The tunnel's MTU.
    pub tunnel_mtu: u16,
    /// Whether workers never sleep.
    pub busy_poll: bool,
    /// Whether a mode that the profile requires must be possible; otherwise sockets replace it.
    pub strict: bool,
}

/// Attaches the programs where AF_XDP is planned, and detaches those that are no longer needed. An interface where that
/// fails is given up, if allowed. Workers may run meanwhile: as long as a program has no sockets, packets go to the
/// kernel.
///
/// # Errors
/// Attaching failed for an interface that must be driven by AF_XDP.
pub fn attach(drives: &mut Drives, steering: &mut Steering, settings: PortSettings) -> Result<()> {
    let PortSettings { local_port, tunnel_mtu, strict, .. } = settings;
    drives.all_mut().try_for_each(|drive| drive.refuse(strict))?;
    // An interface can have only one program, so the old one is detached first.
    steering
        .wan
        .take_if(|wan| drives.wan.attachment().is_none_or(|(interface, mode)| !wan.fits(interface, local_port, mode)));
    let fits =
        |lan: &Lan| drives.lan.iter().filter_map(Drive::attachment).any(|(interface, mode)| lan.fits(interface, mode));
    steering.lan.retain(fits);
    if let (Some((interface, mode)), None) = (drives.wan.attachment(), &steering.wan) {
        let attached = sound(Wan::attach(interface, local_port, mode), interface, |wan| wan.program.mode());
        match attached.and_then(|wan| wan.with_offloads(interface, drives.wan.is_required())) {
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
            .and_then(|mac| sound(Lan::attach(interface, mac, tunnel_mtu, mode), interface, |lan| lan.program.mode()))
            .and_then(|lan| lan.with_offloads(interface, drive.is_required()));
        match attached {
            Ok(lan) => {
                announce(&interface.name, lan.program.mode().name(), lan.program.fallback(), mode);
                steering.lan.push(lan);
            }
            Err(e) => drive.fall_back(e, strict)?,
        }
    }
    // Some drivers, such as virtio_net, have more queues once a program is attached.
    drives.recount();
    Ok(())
}

/// Rejects a program in generic mode where the driver merges packets.
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

/// Makes every worker's pool and ports, and tells the steering programs about the sockets.
///
/// # Errors
/// A socket cannot be bound where AF_XDP is required, or there is not enough memory.
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
                let is_wan = drives.wan.index() == Some(index);
                let Some(drive) = drives.all_mut().find(|drive| drive.index() == Some(index)) else {
                    return Err(error);
                };
                drive.fall_back(error, settings.strict)?;
                if is_wan {
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
    // If it is not pinned, the scheduler moves a worker away from whatever shares its core. With AF_XDP the queue's
    // interrupt is bound to a core, so the worker is too.
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

/// A worker's packet memory, and its AF_XDP ports.
pub struct WorkerPorts {
    pool: Pool,
    /// Of the WAN.
    pub wan: Vec<Box<dyn Port>>,
    /// Of the LAN.
    pub lan: Vec<Box<dyn Port>>,
}

impl WorkerPorts {
    /// The interface of one of the ports that works without copies.
    fn zero_copy(&self) -> Option<String> {
        let infos = self.wan.iter().chain(&self.lan).map(|port| port.info());
        infos.into_iter().find(|info| info.zero_copy == Some(true)).map(|info| info.interface)
    }
}

/// A port that could not be bound.
struct Unbound {
    /// The interface's index and name.
    index: u32,
    name: String,
    error: anyhow::Error,
    /// An interface that works without copies, with which it would share memory.
    zero_copy: Option<String>,
}

impl Unbound {
    /// Why all frames have to be copied, if that is why the port could not be bound: memory that one driver uses
    /// without copying cannot be shared with a driver that copies.
    fn must_copy(&self) -> Option<String> {
        let Self { name, error, zero_copy, .. } = self;
        let other = zero_copy.as_ref().filter(|_| matches!(errno(error), Some(libc::EINVAL | libc::EOPNOTSUPP)))?;
        Some(format!(
            "all frames are copied, since the driver of {name} needs that, unlike that of {other}, and the two \
             share their memory"
        ))
    }
}

/// Binds all AF_XDP ports; the error names the interface that failed, and why.
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
                for queue in drive.queues_of(worker, workers) {
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

/// Waits for what a closed socket or device still holds: the kernel releases it a moment after the last copy of the
/// descriptor was closed, and a child process that another thread is just starting has copies of all until its exec.
///
/// # Errors
/// The last one.
pub fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..BUSY_TRIES {
        match open() {
            Err(e) if matches!(e.kind(), ErrorKind::ResourceBusy | ErrorKind::AlreadyExists) => {
                std::thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
    open()
}

fn pool(xdp_ports: u32) -> Result<Pool> {
    match NonZeroU32::new(xdp_ports * FRAMES) {
        Some(rings) => Pool::umem(rings.saturating_add(SPARE_FRAMES), RING).context(
            "cannot allocate packet memory for AF_XDP (missing CAP_NET_RAW, or CAP_IPC_LOCK or a larger limit of locked memory)",
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
        assert!(why.contains("the driver of eth1 needs that, unlike that of eth0"), "{why}");
        assert_eq!(unbound(libc::EINVAL, None).must_copy(), None, "nothing else is without copies");
        assert_eq!(unbound(libc::EBUSY, Some("eth0")).must_copy(), None, "another reason");
    }
}
