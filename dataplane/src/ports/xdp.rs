//! AF_XDP: a socket on one queue of one interface, on a UMEM that the worker's ports share.
//!
//! On the WAN the port removes and adds Ethernet, IP and UDP; on the LAN, Ethernet. A frame that came in by one `xdp`
//! port leaves by another without a copy: see [`crate::frame`] for the geometry.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::sockopt;
use rustix::net::xdp::{XdpOptionsFlags, XdpStatistics};
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue};

use crate::checksum;
use crate::drop::{DropReason, Drops};
use crate::frame::{Frame, Pool};
use crate::inner::{IPV4_HEADER, IPV6_HEADER, Inner, UDP, UDP_HEADER, complete_checksum, has_intact_header};
use crate::ports::evidence::Evidence;
use crate::ports::{BATCH, Batch, Link, Packet, Port, PortInfo, set_option};

/// Entries of each of a socket's rings.
pub const RING: u32 = 2048;
/// Frames that a socket's rings can hold: a pool needs this many for every port, plus a few batches.
pub const FRAMES: u32 = 2 * RING;
/// Places of a WAN's transmit ring that are kept for urgent packets, so that a full uplink does not end BGP and SSH.
const RESERVED: usize = 128;
/// How many packets ahead the first line of a received one is prefetched: these take about as long as a fetch from
/// another core.
const HEADERS_AHEAD: usize = 4;
const SOCKET_BUFFER: usize = 64 << 20;
/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (6.18): frames that one sendto transmits in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// What one sendto transmits where that option is not known.
const DEFAULT_BUDGET: u32 = 32;
const MAC: usize = 6;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const TYPE_VLAN: [u8; 2] = [0x81, 0x00];
const HOPS: u8 = 64;

/// Which headers belong to the port.
#[derive(Clone, Copy, Debug)]
enum Role {
    Wan { local_port: u16, next_id: u16 },
    Lan { checksums: Checksums },
}

/// How far the checksums of TCP and UDP in a LAN interface's frames are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They are complete: the frames come from a wire.
    Complete,
    /// Some are left to the network device, and AF_XDP sees the frames before it.
    MaybePartial,
}

/// Where a socket is bound, and how.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The interface's name.
    pub interface: &'a str,
    /// Its index.
    pub ifindex: u32,
    /// The queue.
    pub queue: u32,
    /// Whether frames are copied even if the driver could do zero-copy.
    pub copy: bool,
}

/// An AF_XDP socket.
#[derive(Debug)]
pub struct XdpPort {
    role: Role,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    /// Frames that the kernel may fill but has not been given, for want of free ones.
    owed: usize,
    /// Packets that were still in the receive ring after the last look.
    waiting: usize,
    descs: Vec<FrameDesc>,
    interface: String,
    ifindex: u32,
    queue: u32,
    zero_copy: bool,
    /// The kernel's counters when they were last read.
    lost: Lost,
    evidence: Arc<Evidence>,
}

impl XdpPort {
    /// A port for the tunnel's datagrams; those it sends come from UDP port `local_port`.
    ///
    /// # Errors
    /// The socket cannot be bound: the queue is taken (EBUSY), there is no such queue or interface, a capability is
    /// missing (EPERM); the pool has a zero-copy socket and this driver has no zero-copy (EINVAL); or the pool is not a
    /// UMEM or has too few frames.
    pub fn wan(pool: &mut Pool, at: &Binding<'_>, local_port: u16) -> io::Result<Self> {
        Self::open(pool, at, Role::Wan { local_port, next_id: 0 })
    }

    /// A port for the site's IP packets.
    ///
    /// # Errors
    /// As [`XdpPort::wan`].
    pub fn lan(pool: &mut Pool, at: &Binding<'_>, checksums: Checksums) -> io::Result<Self> {
        Self::open(pool, at, Role::Lan { checksums })
    }

    #[expect(unsafe_code)]
    fn open(pool: &mut Pool, at: &Binding<'_>, role: Role) -> io::Result<Self> {
        let Binding { interface, ifindex, queue, copy } = *at;
        let Some(umem) = pool.shared_umem() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pool is not a UMEM"));
        };
        let name: Interface = interface.parse().map_err(io::Error::other)?;
        let ring = QueueSize::new(RING).map_err(io::Error::other)?;
        let copy = if copy { BindFlags::XDP_COPY } else { BindFlags::empty() };
        let config = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP | copy)
            .build();
        // SAFETY: the frames belong to the pool, which gives each to one holder at a time.
        let created = unsafe { Socket::new(config, umem, &name, queue) };
        let (tx, rx, rings) = created.map_err(|error| {
            use std::error::Error;
            let errno = error.source().and_then(|s| s.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
            errno.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
        })?;
        let (fill, completion) =
            rings.ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "the queue already has a socket of ours"))?;
        let socket = borrow(&rx);
        // Not essential: without them large bursts take more calls.
        let _ = sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER);
        let _ = set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &RING.to_ne_bytes());
        let zero_copy = sockopt::xdp_options(socket)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        let mut port = Self {
            role,
            rx,
            tx,
            fill,
            completion,
            owed: RING as usize,
            waiting: 0,
            descs: vec![FrameDesc::default(); RING as usize],
            interface: interface.to_owned(),
            ifindex,
            queue,
            zero_copy,
            lost: Lost::default(),
            evidence: Arc::default(),
        };
        port.refill(pool);
        if port.owed > 0 {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the pool has too few frames for the fill ring"));
        }
        Ok(port)
    }

    /// The socket, for the steering program's map.
    pub fn socket(&self) -> BorrowedFd<'_> {
        borrow(&self.rx)
    }

    /// Gives the kernel frames to fill.
    #[expect(unsafe_code)]
    fn refill(&mut self, pool: &mut Pool) {
        let n = self.owed.min(pool.available());
        for desc in &mut self.descs[..n] {
            *desc = pool.take().map(|frame| pool.desc_to_fill(frame)).expect("as many are available");
        }
        // SAFETY: the frames were taken from the pool and their tokens given up.
        let given = unsafe { self.fill.produce(&self.descs[..n]) };
        self.owed -= given;
        for desc in &self.descs[given..n] {
            let frame = pool.frame_of(desc);
            pool.give(frame);
        }
        if self.fill.needs_wakeup() {
            // The next turn asks again.
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
    }

    /// Takes back the frames that were transmitted.
    #[expect(unsafe_code)]
    fn reclaim(&mut self, pool: &mut Pool) {
        // SAFETY: frames from the completion ring are ours again.
        let n = unsafe { self.completion.consume(&mut self.descs) };
        for desc in &self.descs[..n] {
            let frame = pool.frame_of(desc);
            pool.give(frame);
        }
        if n > 0 {
            self.evidence.completed(n);
        }
    }

    /// Makes the kernel transmit the frames in the ring. In copy mode a call takes only a limited number.
    fn kick(&mut self, drops: &Drops) {
        for _ in 0..=BATCH as u32 / DEFAULT_BUDGET {
            if self.tx.nb_free_exact() >= RING || !self.tx.needs_wakeup() {
                return;
            }
            if self.tx.wakeup().is_err() {
                return drops.count(DropReason::TransmitError);
            }
        }
    }

    /// Removes the port's headers; `None` if they are not what steering lets through.
    fn unwrap(&self, mut frame: Frame, pool: &Pool) -> Result<Packet, Frame> {
        match self.role {
            Role::Wan { local_port, .. } => match parse_datagram(pool.packet(&frame), local_port) {
                Some(datagram) => {
                    frame.trim_front(datagram.payload);
                    frame.truncate(datagram.len);
                    let remote = in_zone(datagram.source, self.ifindex);
                    let local = Some(datagram.destination);
                    Ok(Packet { remote, local, tos: datagram.tos, ..Packet::new(frame) })
                }
                None => Err(frame),
            },
            Role::Lan { .. } => {
                let header = penstock_wire::ethernet_offset(pool.packet(&frame))
                    .and_then(|at| Some((at, ethernet_len(pool.packet(&frame).get(at..)?)?)));
                match header {
                    Some((at, len)) if has_intact_header(&pool.packet(&frame)[at + len..]) => {
                        frame.trim_front(at + len);
                        Ok(Packet { ethernet: len as u8, ..Packet::new(frame) })
                    }
                    _ => Err(frame),
                }
            }
        }
    }

    /// Adds the port's headers, and places the frame where AF_XDP wants it.
    fn wrap(&mut self, packet: &mut Packet, pool: &mut Pool) -> bool {
        let Some(link) = packet.link.filter(|link| link.ifindex == self.ifindex) else { return false };
        let frame = &mut packet.frame;
        let written = match &mut self.role {
            Role::Wan { local_port, next_id } => {
                *next_id = next_id.wrapping_add(1);
                write_datagram(pool, frame, &link, packet.remote, packet.tos, *local_port, *next_id)
            }
            Role::Lan { .. } => {
                let ether_type =
                    if pool.packet(frame).first().is_some_and(|b| b >> 4 == 6) { TYPE_IPV6 } else { TYPE_IPV4 };
                write_ethernet(pool, frame, &link, ether_type)
            }
        };
        written && pool.move_to_anchor(frame)
    }
}

impl Port for XdpPort {
    #[expect(unsafe_code)]
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        self.reclaim(pool);
        let room = batch.room();
        // SAFETY: frames from the receive ring are ours.
        let n = unsafe { self.rx.consume(&mut self.descs[..room]) };
        let partial = matches!(self.role, Role::Lan { checksums: Checksums::MaybePartial });
        // If the ring had less than was asked for, nothing is left in it, and it need not be read again.
        self.waiting = if n < room { 0 } else { self.rx.nb_avail_exact() as usize };
        for i in 0..n {
            if let Some(soon) = self.descs[..n].get(i + HEADERS_AHEAD) {
                pool.prefetch_header(soon);
            }
            let frame = pool.frame_of(&self.descs[i]);
            match self.unwrap(frame, pool) {
                Ok(packet) => {
                    if partial {
                        complete_checksum(pool.packet_mut(&packet.frame));
                    }
                    batch.push(packet);
                }
                Err(frame) => {
                    drops.count(DropReason::BadInner);
                    pool.give(frame);
                }
            }
        }
        if n > 0 {
            self.evidence.received(n);
        }
        self.owed += n;
        if self.owed > 0 {
            self.refill(pool);
        }
    }

    #[expect(unsafe_code)]
    fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        self.reclaim(pool);
        let room = self.tx.nb_free((BATCH + RESERVED) as u32) as usize;
        let reserved = if matches!(self.role, Role::Wan { .. }) { RESERVED } else { 0 };
        let mut n = 0;
        for mut packet in batch.drain() {
            let refused = if n >= room_for(packet.urgent, room, reserved) {
                Some(DropReason::TransmitFull)
            } else if !self.wrap(&mut packet, pool) {
                Some(DropReason::TransmitError)
            } else {
                None
            };
            if let Some(reason) = refused {
                drops.count(reason);
                pool.give(packet.frame);
                continue;
            }
            self.descs[n] = pool.desc_of(packet.frame);
            n += 1;
        }
        // SAFETY: the frames' tokens were given up; room for all of them was asked for.
        let sent = unsafe { self.tx.produce(&self.descs[..n]) };
        self.evidence.sent(sent);
        for desc in &self.descs[sent..n] {
            drops.count(DropReason::TransmitFull);
            let frame = pool.frame_of(desc);
            pool.give(frame);
        }
        self.kick(drops);
    }

    fn count_losses(&mut self, drops: &Drops) -> bool {
        if let Ok(now) = sockopt::xdp_statistics(self.socket()) {
            self.lost.count(&now, self.zero_copy, drops);
        }
        true
    }

    fn evidence(&self) -> Option<Arc<Evidence>> {
        Some(Arc::clone(&self.evidence))
    }

    fn waiting(&self) -> Option<usize> {
        Some(self.waiting)
    }

    fn unsent(&mut self) -> bool {
        !self.zero_copy && self.tx.nb_free_exact() < RING
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket())
    }

    fn cheap_to_ask(&self) -> bool {
        true
    }

    fn link_interface(&self) -> Option<u32> {
        Some(self.ifindex)
    }

    fn reply_link(&self, pool: &Pool, packet: &Packet) -> Option<Link> {
        let at = packet.frame.start().checked_sub(usize::from(packet.ethernet))?;
        // The Ethernet header still stands in front of the packet.
        link_back(self.ifindex, &pool.slot(&packet.frame)[at..packet.frame.start()])
    }

    fn info(&self) -> PortInfo {
        PortInfo { interface: self.interface.clone(), kind: "xdp", queue: self.queue, zero_copy: Some(self.zero_copy) }
    }
}

/// How many packets fit a transmit ring that has room for `room`, if some of that is reserved for urgent ones.
#[inline]
fn room_for(urgent: bool, room: usize, reserved: usize) -> usize {
    if urgent { room } else { room.saturating_sub(reserved) }
}

/// The kernel's counters (XDP_STATISTICS) at the last reading.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    dropped: u64,
    ring_full: u64,
    fill_empty: u64,
    invalid: u64,
}

impl Lost {
    /// Counts the losses since the last reading. In copy mode, the dropped packets include those for which there was no
    /// free frame.
    fn count(&mut self, now: &XdpStatistics, zero_copy: bool, drops: &Drops) {
        let now = Self {
            dropped: now.rx_dropped,
            ring_full: now.rx_ring_full.unwrap_or(0),
            fill_empty: now.rx_fill_ring_empty_descs.unwrap_or(0),
            invalid: now.rx_invalid_descs + now.tx_invalid_descs,
        };
        let before = std::mem::replace(self, now);
        let empty = now.fill_empty.saturating_sub(before.fill_empty);
        let mut refused = now.dropped.saturating_sub(before.dropped);
        if !zero_copy {
            refused = refused.saturating_sub(empty);
        }
        drops.count_many(DropReason::RingFull, now.ring_full.saturating_sub(before.ring_full));
        drops.count_many(DropReason::FillRingEmpty, empty);
        drops.count_many(DropReason::SocketRefused, refused);
        drops.count_many(DropReason::InvalidDescriptor, now.invalid.saturating_sub(before.invalid));
    }
}

/// The socket of a ring.
#[expect(unsafe_code)]
fn borrow(rx: &RxQueue) -> BorrowedFd<'_> {
    // SAFETY: the socket is open for as long as the ring is.
    unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) }
}

/// The link back to the sender of a frame with this Ethernet header.
fn link_back(ifindex: u32, header: &[u8]) -> Option<Link> {
    let (to, from) = (*header.first_chunk()?, *header.get(MAC..)?.first_chunk()?);
    let vlan = match ethernet_len(header)? {
        18 => Some(u16::from_be_bytes([header[14], header[15]])),
        _ => None,
    };
    Some(Link::new(ifindex, IpAddr::from([0, 0, 0, 0]), from, to, vlan))
}

/// Bytes of the Ethernet header, with a tag or without; `None` if the frame is shorter.
fn ethernet_len(frame: &[u8]) -> Option<usize> {
    let len = if frame.get(12..14)? == TYPE_VLAN { 18 } else { 14 };
    (frame.len() >= len).then_some(len)
}

/// What the headers in front of a datagram say.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where in the Ethernet frame the UDP payload begins.
    pub payload: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Its sender, without a zone.
    pub source: SocketAddr,
    /// The address that it was sent to.
    pub destination: IpAddr,
    /// The traffic class: DSCP and ECN.
    pub tos: u8,
}

/// Reads Ethernet, IP and UDP in front of a datagram to `local_port`.
#[inline]
pub fn parse_datagram(frame: &[u8], local_port: u16) -> Option<Datagram> {
    let ethernet = ethernet_len(frame)?;
    let ip = &frame[ethernet..];
    let outer = Inner::parse(ip)?;
    let udp = ip.get(outer.header..outer.len)?;
    if outer.protocol != UDP || udp.len() < UDP_HEADER || udp[2..4] != local_port.to_be_bytes() {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    (len >= UDP_HEADER && len <= udp.len()).then(|| Datagram {
        payload: ethernet + outer.header + UDP_HEADER,
        len: len - UDP_HEADER,
        source: SocketAddr::new(outer.source, u16::from_be_bytes([udp[0], udp[1]])),
        destination: outer.destination,
        tos: outer.tos,
    })
}

/// A sender with the zone of its link-local address, as the kernel's sockets report it.
fn in_zone(source: SocketAddr, ifindex: u32) -> SocketAddr {
    match source {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.ip(), v6.port(), 0, ifindex).into()
        }
        _ => source,
    }
}

/// Writes the Ethernet header in front of the packet.
fn write_ethernet(pool: &mut Pool, frame: &mut Frame, link: &Link, ether_type: [u8; 2]) -> bool {
    let header = link.header();
    let (end, len) = (frame.start(), frame.len());
    let Some(start) = end.checked_sub(header.len() + 2) else { return false };
    let slot = pool.slot_mut(frame);
    slot[start..end - 2].copy_from_slice(header);
    slot[end - 2..end].copy_from_slice(&ether_type);
    frame.set(start, end - start + len);
    true
}

/// Writes UDP, IP and Ethernet in front of the payload; `false` when link and remote are of different families. IPv4
/// datagrams carry no UDP checksum, since the AEAD protects them; over IPv6 it must be there.
#[inline]
pub fn write_datagram(
    pool: &mut Pool,
    frame: &mut Frame,
    link: &Link,
    remote: SocketAddr,
    tos: u8,
    local_port: u16,
    id: u16,
) -> bool {
    let (payload, len) = (frame.start(), frame.len());
    let udp_len = UDP_HEADER + len;
    let udp = payload - UDP_HEADER;
    let slot = pool.slot_mut(frame);
    slot[udp..udp + 2].copy_from_slice(&local_port.to_be_bytes());
    slot[udp + 2..udp + 4].copy_from_slice(&remote.port().to_be_bytes());
    slot[udp + 4..udp + 6].copy_from_slice(&(udp_len as u16).to_be_bytes());
    slot[udp + 6..payload].fill(0);
    let (ip, ether_type) = match (link.source, remote.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip = udp - IPV4_HEADER;
            let h = &mut slot[ip..udp];
            h[..2].copy_from_slice(&[0x45, tos]);
            h[2..4].copy_from_slice(&((IPV4_HEADER + udp_len) as u16).to_be_bytes());
            h[4..6].copy_from_slice(&id.to_be_bytes());
            h[6..12].copy_from_slice(&[0, 0, HOPS, UDP, 0, 0]);
            h[12..16].copy_from_slice(&source.octets());
            h[16..20].copy_from_slice(&destination.octets());
            let sum = checksum::ipv4_header(h);
            h[10..12].copy_from_slice(&sum.to_be_bytes());
            (ip, TYPE_IPV4)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = udp - IPV6_HEADER;
            let h = &mut slot[ip..udp];
            h[..4].copy_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0]);
            h[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
            h[6..8].copy_from_slice(&[UDP, HOPS]);
            h[8..24].copy_from_slice(&source.octets());
            h[24..40].copy_from_slice(&destination.octets());
            let pseudo = checksum::pseudo_header(&h[8..40], UDP, udp_len);
            let sum = !checksum::fold(checksum::sum(&slot[udp..payload + len]) + pseudo);
            let sum = if sum == 0 { 0xffff } else { sum };
            slot[udp + 6..payload].copy_from_slice(&sum.to_be_bytes());
            (ip, TYPE_IPV6)
        }
        _ => return false,
    };
    frame.set(ip, payload + len - ip);
    write_ethernet(pool, frame, link, ether_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::ANCHOR;
    use crate::inner::tests::naive;

    /// What one port writes, another can read; checksums are correct; truncated frames are refused.
    #[test]
    fn datagrams_are_written_and_read_back() {
        for (source, remote, vlan) in [
            ("192.0.2.1", "192.0.2.2:5", None),
            ("2001:db8::1", "[2001:db8::2]:5", None),
            ("192.0.2.1", "192.0.2.2:5", Some(7)),
        ] {
            for len in [0, 1, 32, 1452] {
                let mut pool = Pool::heap(1);
                let mut frame = pool.take().unwrap();
                frame.set(ANCHOR + 80, len);
                pool.packet_mut(&frame).fill(0xa5);
                let link = Link::new(1, source.parse().unwrap(), [1; 6], [2; 6], vlan);
                let remote: SocketAddr = remote.parse().unwrap();
                assert!(write_datagram(&mut pool, &mut frame, &link, remote, 3, 47100, 9));
                let bytes = pool.packet(&frame);
                let datagram = parse_datagram(bytes, 5).unwrap();
                assert_eq!((datagram.len, datagram.tos), (len, 3));
                assert_eq!(datagram.source, SocketAddr::new(link.source, 47100));
                assert_eq!(datagram.destination, remote.ip());
                let ethernet = ethernet_len(bytes).unwrap();
                if remote.is_ipv4() {
                    assert_eq!(naive(&bytes[ethernet..ethernet + 20]), 0);
                } else {
                    let ip = &bytes[ethernet..];
                    let pseudo = [&ip[8..40], &[0, 0], &ip[4..6], &[0, 0, 0, UDP], &ip[40..]].concat();
                    assert_eq!(naive(&pseudo), 0);
                }
                for cut in 0..bytes.len() {
                    assert_eq!(parse_datagram(&bytes[..cut], 5), None);
                }
                assert_eq!(parse_datagram(bytes, 6), None, "another port");
            }
        }
    }

    #[test]
    fn only_link_local_senders_are_in_a_zone() {
        let zoned = |text: &str| in_zone(text.parse().unwrap(), 7).to_string();
        assert_eq!(zoned("[fe80::1]:5"), "[fe80::1%7]:5");
        assert_eq!(zoned("[2001:db8::1]:5"), "[2001:db8::1]:5");
        assert_eq!(zoned("192.0.2.1:5"), "192.0.2.1:5");
    }

    /// Bytes of a MAC address that look like a tag's type are not taken for one.
    #[test]
    fn answers_go_back_to_every_mac() {
        let (to, from) = ([2, 0, 0, 0, 0, 1], [2, 0, 0x81, 0, 0, 5]);
        for (vlan, rest) in [(None, &[8, 0][..]), (Some(10), &[0x81, 0, 0, 10, 8, 0])] {
            let header = [&to[..], &from, rest].concat();
            let expected = Link::new(1, IpAddr::from([0, 0, 0, 0]), from, to, vlan);
            assert_eq!(format!("{:?}", link_back(1, &header)), format!("{:?}", Some(expected)));
            assert!(link_back(1, &header[..header.len() - 1]).is_none());
        }
    }

    #[test]
    fn a_nearly_full_ring_takes_what_is_urgent() {
        let takes = |urgent| [0, 1, RESERVED, RESERVED + 1].map(|room| room_for(urgent, room, RESERVED));
        assert_eq!((takes(false), takes(true)), ([0, 0, 0, 1], [0, 1, RESERVED, RESERVED + 1]));
    }

    #[test]
    fn families_do_not_mix() {
        let mut pool = Pool::heap(1);
        let mut frame = pool.take().unwrap();
        let link = Link::new(1, "192.0.2.1".parse().unwrap(), [1; 6], [2; 6], None);
        assert!(!write_datagram(&mut pool, &mut frame, &link, "[::1]:5".parse().unwrap(), 0, 1, 1));
    }
}
