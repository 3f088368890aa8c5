//! AF_XDP sockets and the frames they pass around.
//!
//! **Who owns a frame.** Every frame is in exactly one place: a [`Batch`], or one of the rings of a
//! [`Socket`], where it belongs to the kernel. Frames move only through the methods here, a batch cannot be
//! copied, and a batch is refused by a socket of another UMEM; that is what makes the byte access sound.
#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use penstock_dataplane::ports::set_option;
use penstock_dataplane::steer::{AttachError, AttachMode, BenchSteering, SteerError, XdpMode};
pub use penstock_dataplane::steer::{BenchFilter as Filter, MAX_QUEUES};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt;
use rustix::net::xdp::XdpOptionsFlags;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};

mod memory;
mod rings;

pub use memory::{Batch, Memory};
pub use rings::{Receiver, Sender};

/// Bytes of a frame.
const FRAME_SIZE: u32 = 2048;
/// Bytes of a frame that can hold a packet; the rest is the XDP program's headroom.
pub const FRAME_ROOM: usize = FRAME_SIZE as usize - XDP_PACKET_HEADROOM;
/// What the kernel leaves free in front of a packet (linux/bpf.h).
const XDP_PACKET_HEADROOM: usize = 256;
/// Entries of each of a socket's four rings, where nothing else is chosen.
pub const RING_SIZE: u32 = 2048;

/// Packets one `sendto` transmits in copy mode; the kernel's default is 32. Linux 6.17 and newer, net/xdp/xsk.c.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
const TX_BUDGET: u32 = 512;
/// Every packet on its way through copy mode is charged to the socket's send buffer.
const SEND_BUFFER: usize = 64 << 20;

/// Why a socket could not be set up. The messages contain the kernel's error, so it is not their source (`r#source`):
/// otherwise whoever prints the chain would print it twice.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no such interface in this network namespace.
    #[error("there is no interface \"{0}\" in this network namespace")]
    NoInterface(String),
    /// The UMEM could not be registered.
    #[error("cannot register the packet memory: {}", explain(.0))]
    Memory(io::Error),
    /// The XDP program could not be loaded or attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The XDP program could not be given the socket.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// The socket could not be bound.
    #[error("cannot bind an AF_XDP socket to {interface} queue {queue}: {}", explain(source))]
    Bind {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// The kernel's error.
        r#source: io::Error,
    },
}

/// An AF_XDP socket on one queue of an interface: two halves that two threads may own.
#[derive(Debug)]
pub struct Socket {
    /// Receives.
    pub receiver: Receiver,
    /// Sends.
    pub sender: Sender,
}

/// The attached program that sends packets to the sockets of one interface. It is detached with the last of them.
pub type Steering = Arc<Mutex<BenchSteering>>;

/// What the kernel counted for a socket (`struct xdp_statistics`).
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SocketDrops {
    /// Packets that found no room in the receive ring.
    pub receive_ring_full: u64,
    /// Packets that found the fill ring empty.
    pub fill_ring_empty: u64,
    /// Packets lost for other reasons, such as being longer than a frame.
    pub other: u64,
}

impl SocketDrops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.receive_ring_full + self.fill_ring_empty + self.other
    }

    /// The sum of each with those of another socket, or of another time.
    #[must_use]
    pub fn with(&self, other: &SocketDrops, each: impl Fn(u64, u64) -> u64) -> SocketDrops {
        SocketDrops {
            receive_ring_full: each(self.receive_ring_full, other.receive_ring_full),
            fill_ring_empty: each(self.fill_ring_empty, other.fill_ring_empty),
            other: each(self.other, other.other),
        }
    }
}

impl Socket {
    /// A socket that only sends. No program is attached.
    pub fn sender(memory: &Memory, interface: &str, queue: u32) -> Result<Socket, SetupError> {
        Socket::bind(memory, interface, queue, None)
    }

    /// A socket that also receives what `filter` selects, from now on, into frames taken from `frames`.
    pub fn receiver(
        memory: &Memory,
        interface: &str,
        queue: u32,
        filter: Filter,
        frames: &mut Batch,
    ) -> Result<Socket, SetupError> {
        Socket::shared_receiver(memory, interface, queue, &Socket::attach(interface, filter)?, frames)
    }

    /// The program that [`Socket::shared_receiver`]s of one interface need.
    pub fn attach(interface: &str, filter: Filter) -> Result<Steering, SetupError> {
        let steering = BenchSteering::attach(interface, index_of(interface)?, filter, AttachMode::Auto)?;
        Ok(Arc::new(Mutex::new(steering)))
    }

    /// A [`Socket::receiver`] beside others on the same interface.
    pub fn shared_receiver(
        memory: &Memory,
        interface: &str,
        queue: u32,
        steering: &Steering,
        frames: &mut Batch,
    ) -> Result<Socket, SetupError> {
        let mut socket = Socket::bind(memory, interface, queue, Some(steering.clone()))?;
        socket.receiver.fill(frames);
        // Its fill ring already has frames.
        let mut steering = steering.lock().unwrap_or_else(PoisonError::into_inner);
        steering.set_socket(queue, socket.receiver.as_fd())?;
        Ok(socket)
    }

    fn bind(memory: &Memory, interface: &str, queue: u32, steering: Option<Steering>) -> Result<Socket, SetupError> {
        index_of(interface)?;
        let bind_error = |source| SetupError::Bind { interface: interface.into(), queue, source };
        let name: Interface = interface.parse().map_err(|_| SetupError::NoInterface(interface.into()))?;
        let ring_size = QueueSize::new(memory.ring_size).map_err(|e| bind_error(io::Error::other(e.to_string())))?;
        let config = SocketConfig::builder()
            .rx_queue_size(ring_size)
            .tx_queue_size(ring_size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: no program is loaded by libxdp, which is what the contract of `new` is about.
        let (tx, rx, rings) =
            unsafe { xsk_rs::Socket::new(config, &memory.umem, &name, queue) }.map_err(|e| bind_error(os_error(&e)))?;
        let (fill, completion) = rings.ok_or_else(|| bind_error(io::Error::from_raw_os_error(libc::EBUSY)))?;
        let receiver = Receiver { steering, rx, fill, id: memory.id, ring_size: memory.ring_size };
        // Old kernels have no such option and unprivileged processes may not force the buffer: both only
        // cost speed.
        let _ = set_option(receiver.as_fd(), libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET.to_ne_bytes());
        let _ = sockopt::set_socket_send_buffer_size_force(receiver.as_fd(), SEND_BUFFER);
        let options = sockopt::xdp_options(receiver.as_fd()).unwrap_or(XdpOptionsFlags::empty());
        let zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        let sender = Sender { tx, completion, id: memory.id, ring_size: memory.ring_size, in_flight: 0, zero_copy };
        Ok(Socket { receiver, sender })
    }

    /// Does the device read and write our frames itself?
    pub fn is_zero_copy(&self) -> bool {
        self.sender.is_zero_copy()
    }

    /// Mode of the program; `None` for a socket that only sends.
    pub fn xdp_mode(&self) -> Option<XdpMode> {
        self.receiver.xdp_mode()
    }

    /// One line for people: the modes that were actually bound.
    pub fn describe(&self) -> String {
        let copy = if self.is_zero_copy() { "zero-copy" } else { "copy" };
        match self.xdp_mode() {
            None => copy.into(),
            Some(XdpMode::Native) => format!("native XDP, {copy}"),
            Some(XdpMode::Generic) => format!("generic XDP (the driver has no native XDP), {copy}"),
        }
    }
}

/// Sleeps until one of the sockets has a packet, a signal came or the time is over.
pub fn wait<'a>(sockets: impl IntoIterator<Item = &'a Receiver>, most: Duration) -> io::Result<()> {
    let most = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
    let fds = sockets.into_iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
    let mut fds: Vec<_> = fds.collect();
    match rustix::event::poll(&mut fds, Some(&most)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn index_of(interface: &str) -> Result<u32, SetupError> {
    // Any socket of this namespace serves.
    let found = UdpSocket::bind("0.0.0.0:0").map(|socket| name_to_index(socket, interface));
    found.ok().and_then(Result::ok).ok_or_else(|| SetupError::NoInterface(interface.into()))
}

/// xsk-rs hides the errno one level down.
fn os_error(error: &dyn std::error::Error) -> io::Error {
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
        .map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

fn explain(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ": run as root or with CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK"
        }
        Some(libc::ENOBUFS | libc::ENOMEM) => ": raise RLIMIT_MEMLOCK (ulimit -l) or grant CAP_IPC_LOCK",
        Some(libc::EBUSY | libc::EEXIST) => ": another program or socket has it already",
        Some(libc::EINVAL) => ": is there such a queue?",
        _ => "",
    };
    format!("{error}{hint}")
}
