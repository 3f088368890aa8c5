//! The LAN over a TUN device: super-packets in both directions, segmented and coalesced here.
//!
//! A port is one queue of a multi-queue device. The kernel delivers TCP and UDP super-packets with unfinished
//! checksums; one `readv` puts each into frames, one segment per frame (see [`scatter`]). In the other direction one
//! `writev` gathers a run of segments from their frames (see [`offload_coalesce`]). User space writes nothing but
//! headers.
//!
//! [`scatter`]: super::scatter
//! [`offload_coalesce`]: super::offload_coalesce

#![expect(unsafe_code, reason = "readv, writev and a borrowed descriptor")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::offload::{Template, VNET_LEN, VnetHeader, Work, work};
use super::offload_coalesce::Coalescer;
use super::scatter::{Prediction, Raw, Scatter};
use super::{BATCH, Batch, EGRESS_ROOM, Packet, Port, PortInfo};
use crate::checksum;
use crate::drop::{DropReason, Drops};
use crate::frame::Pool;

/// Bytes left free after a packet, for WireGuard's padding and tag.
const TAIL_ROOM: usize = 32;

/// The device to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Its name, which no interface may have yet.
    pub name: String,
    /// Its MTU: that of the inside of the tunnel.
    pub mtu: u16,
    /// The number of queues, one for each port; at least one.
    pub queues: usize,
}

/// An open queue of a TUN device. The device disappears with the last of its queues.
#[derive(Clone)]
pub struct TunQueue {
    device: Arc<SyncDevice>,
    name: String,
    ifindex: u32,
    queue: u32,
}

impl TunQueue {
    /// The device's interface index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

/// A worker's end of one queue of a TUN device.
pub struct TunPort {
    queue: TunQueue,
    scatter: Scatter,
    expected: Prediction,
    /// How to finish the segments that wait in the scatter.
    pending: Pending,
    template: Template,
    coalescer: Coalescer,
    list: Raw<libc::iovec>,
}

/// How the message in the scatter is to be finished.
#[derive(Clone, Copy)]
enum Pending {
    Whole(Work),
    Segments,
}

impl TunPort {
    /// Creates a TUN device that is up and has no addresses, and opens its queues.
    ///
    /// # Errors
    /// `AlreadyExists` if an interface has this name, `PermissionDenied` without CAP_NET_ADMIN, and other errors of the
    /// kernel.
    pub fn open(config: &TunConfig) -> io::Result<Vec<TunPort>> {
        // An existing multi-queue device would accept our queues as additional ones.
        if index_of(&config.name).is_ok() {
            let message = format!("an interface named {} exists", config.name);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        let queues = config.queues.max(1);
        let first = DeviceBuilder::new()
            .name(&config.name)
            .mtu(config.mtu)
            .offload(true)
            .multi_queue(queues > 1)
            .build_sync()?;
        let ifindex = index_of(&config.name)?;
        let mut devices = Vec::with_capacity(queues);
        for _ in 1..queues {
            devices.push(first.try_clone()?);
        }
        devices.insert(0, first);
        let port = |(queue, device): (usize, SyncDevice)| {
            device.set_nonblocking(true)?;
            let device = Arc::new(device);
            Ok(Self::on(TunQueue { device, name: config.name.clone(), ifindex, queue: queue as u32 }))
        };
        devices.into_iter().enumerate().map(port).collect()
    }

    /// A port on a queue that is already open: for a worker that replaces a stopped one.
    pub fn on(queue: TunQueue) -> Self {
        Self {
            coalescer: Coalescer::new(queue.device.udp_gso()),
            queue,
            scatter: Scatter::new(EGRESS_ROOM, TAIL_ROOM),
            expected: Prediction::singles(),
            pending: Pending::Segments,
            template: Template::empty(),
            list: Raw::with_capacity(BATCH + 2),
        }
    }

    /// The queue, which stays open as long as anybody holds it.
    pub fn queue(&self) -> &TunQueue {
        &self.queue
    }

    /// The device's interface index.
    pub fn ifindex(&self) -> u32 {
        self.queue.ifindex
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.queue.name
    }

    /// Reads the next message into the scatter; false when there is none, or no frame for it.
    fn read(&mut self, pool: &mut Pool, room: usize, drops: &Drops) -> bool {
        let mut header = [0; VNET_LEN];
        self.list.clear();
        self.list.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: VNET_LEN });
        if !self.scatter.arm(pool, &self.expected, room, &mut self.list) {
            return false;
        }
        let Ok(read) = readv(self.queue.device.as_raw_fd(), &self.list) else { return false };
        if let Err((reason, segments)) = self.accept(pool, &header, read.saturating_sub(VNET_LEN)) {
            drops.count_many(reason, segments);
        }
        true
    }

    /// Handles a message of `len` bytes that was just read.
    fn accept(&mut self, pool: &Pool, header: &[u8; VNET_LEN], len: usize) -> Result<(), (DropReason, u64)> {
        let header = VnetHeader::parse(header);
        let largest = self.scatter.largest();
        let front = self.scatter.front(pool, len).ok_or((DropReason::Oversized, 1))?;
        let work = work(&header, front, len).map_err(|_| (DropReason::BadOffload, 1))?;
        let (head, size) = match work {
            Work::Segment { head, size } => {
                self.template.load(front, &header, len, head);
                self.pending = Pending::Segments;
                (head, size.min(len - head))
            }
            work => {
                self.pending = Pending::Whole(work);
                (len, 0)
            }
        };
        if head + size > largest {
            return Err((DropReason::Oversized, (len - head).div_ceil(size.max(1)).max(1) as u64));
        }
        self.scatter.split(pool, len, head, size, &mut self.expected);
        Ok(())
    }

    /// Moves segments from the scatter to the batch as long as there are segments, frames and room.
    fn take(&mut self, pool: &mut Pool, batch: &mut Batch) {
        while batch.room() > 0
            && let Some((index, frame)) = self.scatter.next(pool)
        {
            let bytes = pool.packet_mut(&frame);
            match self.pending {
                Pending::Segments => self.template.write(index, bytes),
                Pending::Whole(Work::Checksum { start, field }) => checksum::complete(bytes, start, field),
                Pending::Whole(_) => {}
            }
            batch.push(Packet::new(frame));
        }
    }
}

impl Port for TunPort {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        let before = batch.room();
        // Bounded, in case only bad messages come.
        for _ in 0..BATCH {
            self.take(pool, batch);
            let room = batch.room();
            // A super-packet that does not fit waits in the device, which saves a copy.
            let crowded = room < before && room < self.expected.count();
            if self.scatter.pending() > 0 || room == 0 || crowded || !self.read(pool, room, drops) {
                return;
            }
        }
    }

    fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        let packets = batch.as_slice();
        self.coalescer.sort(packets.len(), |i| pool.packet(&packets[i].frame));
        for run in self.coalescer.runs() {
            let mut header = VnetHeader::default();
            let mut skip = 0;
            self.list.clear();
            self.list.push(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: VNET_LEN });
            for i in self.coalescer.packets(run) {
                let frame = &packets[i].frame;
                if skip == 0 && run.count() > 1 {
                    header = run.finish(pool.packet_mut(frame));
                }
                let base = pool.pointer(frame, frame.start() + skip).cast();
                self.list.push(libc::iovec { iov_base: base, iov_len: frame.len() - skip });
                skip = run.head();
            }
            let mut header = header.emit();
            self.list[0].iov_base = header.as_mut_ptr().cast();
            if let Err(error) = writev(self.queue.device.as_raw_fd(), &self.list) {
                let full = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS));
                let reason = if full { DropReason::TransmitFull } else { DropReason::TransmitError };
                drops.count_many(reason, run.count() as u64);
            }
        }
        batch.drain().for_each(|packet| pool.give(packet.frame));
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the device keeps its descriptor open for as long as it is borrowed here.
        Some(unsafe { BorrowedFd::borrow_raw(self.queue.device.as_raw_fd()) })
    }

    fn kernel_routes(&self) -> bool {
        true
    }

    fn info(&self) -> PortInfo {
        PortInfo { interface: self.queue.name.clone(), kind: "tun", queue: self.queue.queue, zero_copy: None }
    }
}

/// Reads one message.
fn readv(fd: RawFd, list: &[libc::iovec]) -> io::Result<usize> {
    // SAFETY: the entries were made from a local header, from frames that the scatter owns and from its tail buffer,
    // none of which anything else accesses meanwhile.
    let read = unsafe { libc::readv(fd, list.as_ptr(), list.len() as libc::c_int) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes one message.
fn writev(fd: RawFd, list: &[libc::iovec]) -> io::Result<()> {
    // SAFETY: the entries were made from a local header and from packets that the batch owns; the
    // kernel only reads them.
    let written = unsafe { libc::writev(fd, list.as_ptr(), list.len() as libc::c_int) };
    usize::try_from(written).map(|_| ()).map_err(|_| io::Error::last_os_error())
}

/// The index of the interface with this name.
fn index_of(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    Ok(name_to_index(socket, name)?)
}
