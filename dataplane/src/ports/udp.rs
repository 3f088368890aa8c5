//! The WAN over UDP sockets: bundles of datagrams in both directions.
//!
//! Datagrams of equal size to one peer leave as one bundle that the kernel or the NIC splits (UDP_SEGMENT), gathered
//! from their frames; bundles that the kernel made of received datagrams (UDP_GRO) land one datagram in each frame (see
//! [`scatter`]). Several bundles go by one system call.
//!
//! [`scatter`]: super::scatter

#![expect(unsafe_code, reason = "recvmmsg and sendmmsg")]

mod socket;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

pub use socket::{Bundling, Source, UdpConfig, UdpSender};
use socket::{Control, Name, Said, Socket};

use super::scatter::{Prediction, Raw, Scatter};
use super::{BATCH, Batch, Packet, Port, PortInfo};
use crate::drop::{DropReason, Drops};
use crate::frame::Pool;
use crate::work::add;

/// Bytes of Ethernet (14), IPv4 (20) and UDP (8) headers that are left free before each datagram, as
/// if they had been received too.
const HEADERS: usize = 42;
/// Messages in a system call.
const MESSAGES: usize = 64;
/// Datagrams in a bundle: the kernel's UDP_MAX_SEGMENTS before Linux 6.9.
const SEGMENTS_MAX: usize = 64;
/// Bytes in a bundle: what fits an IPv4 packet.
const BUNDLE_MAX: usize = 65_507;

/// One worker's socket on the tunnel's port.
pub struct UdpPort {
    socket: Arc<Socket>,
    interface: String,
    queue: u32,
    received: Received,
    sending: Sending,
}

/// Messages received and not taken yet.
struct Received {
    scatters: Vec<Scatter>,
    names: Vec<Name>,
    controls: Vec<Control>,
    headers: Raw<libc::mmsghdr>,
    list: Raw<libc::iovec>,
    expected: Prediction,
    /// How many scatters are armed.
    armed: usize,
    /// How many messages there are, and which one is being taken.
    count: usize,
    current: usize,
    /// The current message's sender, and what its control messages say, once it is being split.
    from: Option<(SocketAddr, Said)>,
}

/// Messages about to be sent.
struct Sending {
    names: Vec<Name>,
    controls: Vec<Control>,
    headers: Raw<libc::mmsghdr>,
    /// One entry for each packet.
    list: Raw<libc::iovec>,
    /// Packets in each message.
    runs: Vec<usize>,
}

impl UdpPort {
    /// Binds a socket for each worker, all to the same port, for IPv4 and IPv6.
    ///
    /// # Errors
    /// `AddrInUse` if anyone else has the port; `PermissionDenied` or `NotFound` for the interface.
    pub fn bind(config: &UdpConfig) -> io::Result<Vec<UdpPort>> {
        let sockets = Socket::bind(config)?.into_iter().map(|socket| UdpSender(Arc::new(socket)));
        Ok(sockets.enumerate().map(|(queue, sender)| Self::on(&sender, queue as u32, config)).collect())
    }

    /// A port on a socket that is bound already: for a worker that replaces a stopped one.
    pub fn on(sender: &UdpSender, queue: u32, config: &UdpConfig) -> Self {
        Self {
            socket: Arc::clone(&sender.0),
            interface: config.interface.clone().unwrap_or_default(),
            queue,
            received: Received::new(),
            sending: Sending::new(),
        }
    }

    /// The port that the socket is bound to.
    pub fn local_port(&self) -> u16 {
        self.socket.port()
    }

    /// Sends from this port's socket, for other threads.
    pub fn sender(&self) -> UdpSender {
        UdpSender(Arc::clone(&self.socket))
    }
}

impl Received {
    fn new() -> Self {
        Self {
            scatters: (0..MESSAGES).map(|_| Scatter::new(HEADERS, 0)).collect(),
            names: vec![Name::default(); MESSAGES],
            controls: vec![Control::default(); MESSAGES],
            headers: Raw::with_capacity(MESSAGES),
            list: Raw::with_capacity(BATCH + MESSAGES),
            expected: Prediction::singles(),
            armed: 0,
            count: 0,
            current: 0,
            from: None,
        }
    }

    /// Reads messages of up to `room` datagrams, if they are as expected; true if there may be more.
    fn read(&mut self, socket: &Socket, pool: &mut Pool, room: usize) -> bool {
        let wanted = (room / self.expected.count()).clamp(1, MESSAGES);
        self.list.clear();
        let mut armed = 0;
        while armed < wanted && self.scatters[armed].arm(pool, &self.expected, room, &mut self.list) {
            armed += 1;
        }
        for scatter in self.scatters.iter_mut().take(self.armed).skip(armed) {
            scatter.keep(0, pool);
        }
        self.armed = armed;
        self.headers.clear();
        let mut entries = &mut self.list[..];
        for i in 0..armed {
            let (mine, rest) = std::mem::take(&mut entries).split_at_mut(self.scatters[i].entries());
            entries = rest;
            let mut message = empty_message();
            message.msg_hdr.msg_name = self.names[i].as_ptr().cast();
            message.msg_hdr.msg_namelen = Name::LEN as libc::socklen_t;
            message.msg_hdr.msg_iov = mine.as_mut_ptr();
            message.msg_hdr.msg_iovlen = mine.len() as _;
            message.msg_hdr.msg_control = self.controls[i].as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = Control::LEN as _;
            self.headers.push(message);
        }
        (self.current, self.from) = (0, None);
        self.count = if armed > 0 { receive_messages(socket, &mut self.headers) } else { 0 };
        self.count > 0 && self.count == wanted
    }

    /// Moves datagrams to the batch as long as there are datagrams, frames and room.
    fn take(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        while self.current < self.count {
            let scatter = &mut self.scatters[self.current];
            let (remote, Said { local, interface, tos, .. }) = match self.from {
                Some(from) => from,
                None => {
                    let message = &self.headers[self.current];
                    let said = self.controls[self.current].read(message.msg_hdr.msg_controllen as _);
                    let len = message.msg_len as usize;
                    if let Err(datagrams) = split(scatter, pool, len, said.segment, &mut self.expected) {
                        drops.count_many(DropReason::Oversized, datagrams);
                        self.current += 1;
                        continue;
                    }
                    let remote = self.names[self.current].address();
                    *self.from.insert((remote, said))
                }
            };
            while batch.room() > 0
                && let Some((_, frame)) = scatter.next(pool)
            {
                batch.push(Packet { remote, local, interface, tos, ..Packet::new(frame) });
            }
            if scatter.pending() > 0 {
                return;
            }
            self.current += 1;
            self.from = None;
        }
    }
}

/// Splits a message into datagrams; returns their number if they do not fit frames.
fn split(
    scatter: &mut Scatter,
    pool: &Pool,
    len: usize,
    segment: Option<usize>,
    expected: &mut Prediction,
) -> Result<(), u64> {
    scatter.front(pool, len).ok_or(1u64)?;
    let size = segment.unwrap_or(len).min(len);
    if size > scatter.largest() {
        return Err(len.div_ceil(size) as u64);
    }
    scatter.split(pool, len, 0, size, expected);
    Ok(())
}

impl Sending {
    fn new() -> Self {
        Self {
            names: vec![Name::default(); BATCH],
            controls: vec![Control::default(); BATCH],
            headers: Raw::with_capacity(BATCH),
            list: Raw::with_capacity(BATCH),
            runs: Vec::with_capacity(BATCH),
        }
    }

    /// Makes messages from packets: bundles of those beyond the first `single` that may be combined.
    fn plan(&mut self, socket: &Socket, pool: &Pool, packets: &[Packet], single: usize) {
        self.list.clear();
        self.runs.clear();
        let mut bytes = 0;
        let bundling = socket.bundling();
        for (i, packet) in packets.iter().enumerate() {
            let len = packet.frame.len();
            let base = pool.pointer(&packet.frame, packet.frame.start()).cast();
            self.list.push(libc::iovec { iov_base: base, iov_len: len });
            if let Some(run) = self.runs.last_mut() {
                let (first, last) = (&packets[i - *run], &packets[i - 1]);
                let joins = i > single
                    && *run < SEGMENTS_MAX
                    && bytes + len <= BUNDLE_MAX
                    && len > 0
                    && len <= first.frame.len()
                    && last.frame.len() == first.frame.len()
                    && packet.endpoint() == first.endpoint()
                    && packet.tos == first.tos
                    && bundling.allows(packet.remote);
                if joins {
                    *run += 1;
                    bytes += len;
                    continue;
                }
            }
            self.runs.push(1);
            bytes = len;
        }
        self.headers.clear();
        let (mut packets, mut list) = (packets, &mut self.list[..]);
        for (i, run) in self.runs.iter().enumerate() {
            let first = &packets[0];
            let mut message = empty_message();
            socket.address(&mut message.msg_hdr, &mut self.names[i], first.remote);
            self.controls[i].clear();
            if let Some(local) = first.local {
                self.controls[i].push_source(local.into());
            }
            let segment = (*run > 1).then_some(first.frame.len() as u16);
            socket.control(&mut message.msg_hdr, &mut self.controls[i], first.remote, first.tos, segment);
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (list.as_mut_ptr(), *run as _);
            self.headers.push(message);
            packets = &packets[*run..];
            list = &mut std::mem::take(&mut list)[*run..];
        }
    }
}

impl Port for UdpPort {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        let before = batch.room();
        let mut more = true;
        // Bounded, in case everything that comes is dropped.
        for _ in 0..BATCH {
            self.received.take(pool, batch, drops);
            let room = batch.room();
            // A bundle that would not fit waits in the socket, which saves a copy.
            let crowded = room < before && room < self.received.expected.count();
            if self.received.current < self.received.count || room == 0 || crowded || !more {
                return;
            }
            more = self.received.read(&self.socket, pool, room);
        }
    }

    fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        let (mut done, mut single) = (0, 0);
        while done < batch.len() {
            let packets = &batch.as_slice()[done..];
            let alone = if self.socket.refused().is_none() { single } else { packets.len() };
            self.sending.plan(&self.socket, pool, packets, alone);
            let run = self.sending.runs[0];
            let error = match send_messages(&self.socket, &mut self.sending.headers) {
                Ok(messages) => {
                    let sent = self.sending.runs.iter().take(messages).sum::<usize>();
                    let bundles = self.sending.runs.iter().take(messages).filter(|run| **run > 1).count();
                    add(&self.socket.bundles, bundles as u64);
                    done += sent;
                    single = single.saturating_sub(sent);
                    continue;
                }
                Err(error) => error.raw_os_error().unwrap_or(0),
            };
            let (reason, lost) = match error {
                libc::EINTR => continue,
                // The address that the peer sent to is not ours any more: the route chooses one.
                libc::EINVAL | libc::EADDRNOTAVAIL if packets[0].local.is_some() => {
                    batch.as_mut_slice()[done..done + run].iter_mut().for_each(|packet| packet.local = None);
                    continue;
                }
                // Larger than this path's MTU: the kernel fragments datagrams, but not bundles.
                libc::EMSGSIZE if run > 1 => {
                    single = run;
                    continue;
                }
                libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT if run > 1 => {
                    self.socket.refuse(error);
                    continue;
                }
                libc::EAGAIN => (DropReason::TransmitFull, packets.len()),
                libc::ENOBUFS => (DropReason::TransmitFull, run),
                _ => (DropReason::TransmitError, run),
            };
            drops.count_many(reason, lost as u64);
            done += lost;
            single = single.saturating_sub(lost);
        }
        batch.drain().for_each(|packet| pool.give(packet.frame));
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn info(&self) -> PortInfo {
        PortInfo { interface: self.interface.clone(), kind: "udp", queue: self.queue, zero_copy: None }
    }
}

fn empty_message() -> libc::mmsghdr {
    // SAFETY: all zeros is a valid mmsghdr.
    unsafe { std::mem::zeroed() }
}

/// Receives messages; returns how many.
fn receive_messages(socket: &Socket, headers: &mut [libc::mmsghdr]) -> usize {
    let (fd, count) = (socket.as_raw_fd(), headers.len() as u32);
    // SAFETY: the headers point to names, control buffers and scatter lists of `Received`, and those to
    // frames and tail buffers of its scatters, none of which anything else touches meanwhile.
    let received = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
    usize::try_from(received).unwrap_or(0)
}

/// Sends messages; returns how many, or why not even the first one was sent.
fn send_messages(socket: &Socket, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let (fd, count) = (socket.as_raw_fd(), headers.len() as u32);
    let _fragmenting = socket.fragmenting();
    // SAFETY: the headers point to names, control buffers and lists of `Sending`, and those to packets
    // of the batch being sent; the kernel only reads them.
    let sent = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
