//! AF_XDP sockets and the frames they pass around.
//!
//! **Who owns a frame.** Every frame is in exactly one place: a [`Batch`], or one of the rings of a
//! [`Socket`], where it belongs to the kernel. Frames move only through the methods here, a batch cannot be
//! copied, and a batch is refused by a socket of another UMEM; that is what makes the byte access sound.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

use crate::program::{Filter, Redirect, XdpMode};

/// Bytes of a frame.
const FRAME_SIZE: u32 = 2048;
/// Bytes of a frame that can hold a packet; the rest is the XDP program's headroom.
pub const FRAME_ROOM: usize = FRAME_SIZE as usize - libxdp_sys::XDP_PACKET_HEADROOM as usize;
/// Entries of each of a socket's four rings.
pub const RING_SIZE: u32 = 2048;

/// Packets one `sendto` transmits in copy mode; the kernel's default is 32. Linux 6.17 and newer, net/xdp/xsk.c.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
const TX_BUDGET: u32 = 512;
/// Every packet on its way through copy mode is charged to the socket's send buffer.
const SEND_BUFFER: i32 = 64 << 20;

/// Why a socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no such interface in this network namespace.
    #[error("there is no interface \"{0}\" in this network namespace")]
    NoInterface(String),
    /// The UMEM could not be registered.
    #[error("cannot register the packet memory: {}", explain(.0))]
    Memory(io::Error),
    /// The XDP program could not be loaded or attached.
    #[error("cannot attach the XDP program to {interface}: {}", explain(source))]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket could not be bound.
    #[error("cannot bind an AF_XDP socket to {interface} queue {queue}: {}", explain(source))]
    Bind {
        /// The interface.
        interface: String,
        /// Its queue.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The packet memory (UMEM) that sockets share, so that a frame received by one leaves by another.
#[derive(Debug)]
pub struct Memory {
    umem: Umem,
    id: u64,
}

/// Frames owned by user space, in order.
#[derive(Debug)]
pub struct Batch {
    umem: Umem,
    id: u64,
    frames: Vec<FrameDesc>,
}

/// An AF_XDP socket on one queue of an interface.
#[derive(Debug)]
pub struct Socket {
    // Detached before the rings go.
    redirect: Option<Redirect>,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    id: u64,
    in_flight: usize,
    zero_copy: bool,
}

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
}

impl Memory {
    /// Registers memory for this many frames and returns them.
    pub fn new(frames: u32) -> Result<(Memory, Batch), SetupError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let invalid = |error: &dyn std::fmt::Display| {
            SetupError::Memory(io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
        };
        let frames = NonZeroU32::new(frames).ok_or_else(|| invalid(&"no frames"))?;
        let ring_size = QueueSize::new(RING_SIZE).map_err(|e| invalid(&e))?;
        let config = UmemConfig::builder()
            .frame_size(FRAME_SIZE.try_into().map_err(|e| invalid(&e))?)
            .fill_queue_size(ring_size)
            .comp_queue_size(ring_size)
            .build()
            .map_err(|e| invalid(&e))?;
        let (umem, frames) = Umem::new(config, frames, false).map_err(|e| SetupError::Memory(os_error(&e)))?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let memory = Memory { umem, id };
        let batch = Batch { frames, ..memory.batch(0) };
        Ok((memory, batch))
    }

    /// An empty batch.
    pub fn batch(&self, capacity: usize) -> Batch {
        Batch { umem: self.umem.clone(), id: self.id, frames: Vec::with_capacity(capacity) }
    }
}

impl Batch {
    /// Frames in the batch.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// No frames?
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Moves up to `count` frames, the last ones, to the end of `into`: those used last are the ones still
    /// in the cache.
    pub fn give(&mut self, into: &mut Batch, count: usize) {
        assert_eq!(self.id, into.id, "batches of different memories");
        let from = self.frames.len().saturating_sub(count);
        into.frames.extend_from_slice(&self.frames[from..]);
        self.frames.truncate(from);
    }

    /// Makes every packet this long, at most [`FRAME_ROOM`]. A frame that was never written is zero, others
    /// hold what they held.
    pub fn set_packet_len(&mut self, len: usize) {
        for frame in &mut self.frames {
            // SAFETY: the batch owns the frame (see the top of the file) and is borrowed exclusively.
            let mut data = unsafe { self.umem.data_mut(frame) };
            data.cursor().set_pos(len);
        }
    }

    /// Calls `each` with every packet's bytes, in order.
    #[inline]
    pub fn for_each(&mut self, mut each: impl FnMut(&mut [u8])) {
        for frame in &mut self.frames {
            // SAFETY: the batch owns the frame (see the top of the file) and is borrowed exclusively.
            let mut data = unsafe { self.umem.data_mut(frame) };
            each(data.contents_mut());
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
        let attach_error = |source| SetupError::Attach { interface: interface.into(), source };
        let redirect = Redirect::attach(index_of(interface)?, filter).map_err(attach_error)?;
        let mut socket = Socket::bind(memory, interface, queue, Some(redirect))?;
        socket.fill(frames);
        if let Some(redirect) = &socket.redirect {
            redirect.insert(queue, socket.as_fd()).map_err(attach_error)?;
        }
        Ok(socket)
    }

    fn bind(memory: &Memory, interface: &str, queue: u32, redirect: Option<Redirect>) -> Result<Socket, SetupError> {
        index_of(interface)?;
        let bind_error = |source| SetupError::Bind { interface: interface.into(), queue, source };
        let name: Interface = interface.parse().map_err(|_| SetupError::NoInterface(interface.into()))?;
        let ring_size = QueueSize::new(RING_SIZE).map_err(|e| bind_error(io::Error::other(e.to_string())))?;
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
        let fd = rx.fd().as_raw_fd();
        // Old kernels have no such option and unprivileged processes may not force the buffer: both only
        // cost speed.
        let _ = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, TX_BUDGET.cast_signed());
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER);
        Ok(Socket { redirect, rx, tx, fill, completion, id: memory.id, in_flight: 0, zero_copy: is_zero_copy(fd) })
    }

    /// Moves up to `most` received packets to the end of `into`.
    #[inline]
    pub fn receive(&mut self, into: &mut Batch, most: usize) -> usize {
        assert_eq!(self.id, into.id, "a batch of another memory");
        let ready = (self.rx.nb_avail(most as u32) as usize).min(most);
        let had = into.frames.len();
        into.frames.resize_with(had + ready, FrameDesc::default);
        // SAFETY: the descriptors are placeholders, overwritten by those of this socket's own UMEM.
        let received = unsafe { self.rx.consume(&mut into.frames[had..]) };
        into.frames.truncate(had + received);
        received
    }

    /// Gives frames to the kernel to receive into, as many as its ring takes. The ring can look fuller than
    /// it is: the kernel publishes received packets before it publishes that it took their frames
    /// (xsk_flush in net/xdp/xsk.c). So some may stay behind, and must not be mistaken for packets.
    #[inline]
    pub fn fill(&mut self, from: &mut Batch) -> usize {
        assert_eq!(self.id, from.id, "a batch of another memory");
        let room = self.fill.nb_free(RING_SIZE) as usize;
        let keep = from.frames.len().saturating_sub(room);
        // SAFETY: the frames are of this socket's UMEM, owned by the batch, and leave it in the next line.
        let filled = unsafe { self.fill.produce(&from.frames[keep..]) };
        from.frames.truncate(from.frames.len() - filled);
        filled
    }

    /// Queues packets, first to last, as many as fit. They leave with the next [`Socket::kick`].
    #[inline]
    pub fn transmit(&mut self, from: &mut Batch) -> usize {
        assert_eq!(self.id, from.id, "a batch of another memory");
        let wanted = from.frames.len();
        let fitting = wanted.min(self.tx.nb_free(wanted as u32) as usize);
        // SAFETY: the frames are of this socket's UMEM, owned by the batch, and leave it in the next line.
        let queued = unsafe { self.tx.produce(&from.frames[..fitting]) };
        from.frames.drain(..queued);
        self.in_flight += queued;
        queued
    }

    /// Moves the frames of packets that have left to the end of `into`. Without this, transmission stops.
    #[inline]
    pub fn complete(&mut self, into: &mut Batch) -> usize {
        assert_eq!(self.id, into.id, "a batch of another memory");
        if self.in_flight == 0 {
            return 0;
        }
        let ready = self.completion.nb_avail(RING_SIZE) as usize;
        let had = into.frames.len();
        into.frames.resize_with(had + ready, FrameDesc::default);
        // SAFETY: the descriptors are placeholders, overwritten by those of this socket's own UMEM.
        let completed = unsafe { self.completion.consume(&mut into.frames[had..]) };
        into.frames.truncate(had + completed);
        self.in_flight -= completed;
        completed
    }

    /// Has the kernel transmit what is queued. One call does only a budget's worth, and a device that
    /// drops a packet ends it too, so it is repeated while the queue gets shorter.
    #[inline]
    pub fn kick(&mut self) -> io::Result<()> {
        let mut queued = self.queued();
        while queued > 0 && self.tx.needs_wakeup() {
            self.tx.wakeup()?;
            let left = self.queued();
            if left == queued {
                break;
            }
            queued = left;
        }
        Ok(())
    }

    /// Packets queued that the kernel has not taken yet.
    pub fn queued(&mut self) -> usize {
        (RING_SIZE - self.tx.nb_free_exact()) as usize
    }

    /// Frames queued or on their way, not completed yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Does the device read and write our frames itself?
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Mode of the program; `None` for a socket that only sends.
    pub fn xdp_mode(&self) -> Option<XdpMode> {
        self.redirect.as_ref().map(Redirect::mode)
    }

    /// What the kernel dropped on the way to this socket.
    pub fn drops(&self) -> io::Result<SocketDrops> {
        let statistics = self.rx.fd().xdp_statistics()?;
        Ok(SocketDrops {
            receive_ring_full: statistics.rx_ring_full(),
            fill_ring_empty: statistics.rx_fill_ring_empty_descs(),
            // The kernel counts an empty fill ring here too.
            other: statistics.rx_dropped().saturating_sub(statistics.rx_fill_ring_empty_descs()),
        })
    }

    /// One line for people: modes that were really bound.
    pub fn describe(&self) -> String {
        let copy = if self.zero_copy { "zero-copy" } else { "copy" };
        match self.xdp_mode() {
            None => copy.into(),
            Some(XdpMode::Native) => format!("native XDP, {copy}"),
            Some(XdpMode::Generic) => format!("generic XDP (the driver has no native XDP), {copy}"),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the fd lives as long as the rings, which self holds.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }
}

/// Sleeps until one of the sockets has a packet, a signal came or the time is over.
pub fn wait<const N: usize>(sockets: [&Socket; N], most: Duration) -> io::Result<()> {
    let most = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
    let fds = sockets.map(|socket| socket.as_fd());
    let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
    match rustix::event::poll(&mut fds, Some(&most)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn index_of(interface: &str) -> Result<u32, SetupError> {
    let missing = || SetupError::NoInterface(interface.into());
    let name = CString::new(interface).map_err(|_| missing())?;
    // SAFETY: the name is a C string that lives during the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}

fn set_option(fd: i32, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an int that lives during the call, and its size is given.
    let result = unsafe { libc::setsockopt(fd, level, option, ptr::from_ref(&value).cast(), size_of::<i32>() as u32) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_zero_copy(fd: i32) -> bool {
    let mut flags = 0_u32;
    let mut len = size_of::<u32>() as u32;
    // SAFETY: struct xdp_options is one u32; value and length live during the call.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_OPTIONS, ptr::from_mut(&mut flags).cast(), &mut len) };
    result == 0 && flags & libc::XDP_OPTIONS_ZEROCOPY != 0
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
