//! Ports: where a worker's packets come from and go to.
//!
//! A WAN port carries UDP datagrams: the packet is the UDP payload, and [`Packet::remote`] its peer's
//! address. A LAN port carries IP packets: the packet begins at the IP header. Link and outer headers
//! are the ports' own business, so the worker's stages are the same for all of them.

pub mod evidence;
pub mod memory;
pub mod tun;
pub mod udp;
pub mod xdp;

#[cfg(fuzzing)]
pub mod fuzzing;
mod offload;
mod offload_coalesce;
mod scatter;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use crate::drop::Drops;
use crate::frame::{FRAME_ROOM, Frame, Pool};
use crate::ports::evidence::Evidence;
use crate::session::{DATA_HEADER, TAG};
use penstock_wire::{ETHERNET_LEN, MAX_SHIFT};

/// Packets a worker takes from a port at a time, at most.
pub const BATCH: usize = 128;

/// Bytes of Ethernet (14), IPv4 (20), UDP (8) and WireGuard (16) headers: the room that a LAN port
/// leaves between the anchor and the IP packet, so that the sealed frame begins at the anchor.
pub const EGRESS_ROOM: usize = 58;

/// Largest inner packet that every port takes, in bytes: one in a slot of a UMEM, with the most that a LAN program puts
/// in front of its Ethernet header, and a tag behind it.
pub const INNER_MAX: usize = FRAME_ROOM - MAX_SHIFT - ETHERNET_LEN - TAG;
/// Largest datagram of the tunnel that every port takes, in bytes of UDP payload.
pub const DATAGRAM_MAX: usize = INNER_MAX + DATA_HEADER + TAG;

/// The two ends of a datagram outside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's.
    pub remote: SocketAddr,
    /// Ours: the address that the peer sent to, and from which an answer leaves. `None` leaves it to the route.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Endpoint {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

impl Endpoint {
    /// Whether a datagram with the ends `from` shows that the peer has moved, or sends to another of our addresses. A
    /// datagram whose local end is not known shows nothing about the latter.
    #[inline]
    pub fn is_moved_by(&self, from: &Self) -> bool {
        self.remote != from.remote || (from.local.is_some() && self.local != from.local)
    }
}

/// A packet in a worker's hands.
#[derive(Debug)]
pub struct Packet {
    /// The memory that holds it.
    pub frame: Frame,
    /// On the WAN: whom it is from or to.
    pub remote: SocketAddr,
    /// On the WAN: our address that it was sent to, or leaves from; `None` leaves it to the route.
    pub local: Option<IpAddr>,
    /// Set by the kernel's socket on receive: the interface that it came in by; 0 where that is not known.
    pub interface: u32,
    /// On the WAN: the outer traffic class (DSCP and ECN), as received or to be sent.
    pub tos: u8,
    /// Link to send it by; `None` on receive and for ports that leave it to the kernel.
    pub link: Option<Link>,
    /// On the WAN: whether it goes before others when the device's queue is nearly full.
    pub urgent: bool,
    /// On receive: bytes of the Ethernet header in front of it, if the port has removed one.
    pub ethernet: u8,
}

impl Packet {
    /// A packet of the LAN, or of the WAN before its addresses are known.
    #[inline]
    pub fn new(frame: Frame) -> Self {
        let remote = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self { frame, remote, local: None, interface: 0, tos: 0, link: None, urgent: false, ethernet: 0 }
    }

    /// On the WAN: both ends.
    #[inline]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { remote: self.remote, local: self.local }
    }
}

/// A resolved way out of an interface: its Ethernet header, and our address there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface.
    pub ifindex: u32,
    /// Our address, the source of outer packets.
    pub source: IpAddr,
    /// The interface's MTU, in bytes.
    pub mtu: u16,
    /// Destination and source address and, with 802.1Q, the tag; EtherType not included.
    header: [u8; 16],
    header_len: u8,
}

impl Link {
    /// A link to `destination` from `source_mac`, untagged or in a VLAN.
    pub fn new(ifindex: u32, source: IpAddr, destination: [u8; 6], source_mac: [u8; 6], vlan: Option<u16>) -> Self {
        let mut header = [0; 16];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source_mac);
        let mut header_len = 12;
        if let Some(tag) = vlan {
            header[12..14].copy_from_slice(&0x8100u16.to_be_bytes());
            header[14..16].copy_from_slice(&tag.to_be_bytes());
            header_len = 16;
        }
        Self { ifindex, source, mtu: 1500, header, header_len }
    }

    /// The same link with another MTU than Ethernet's 1500 bytes.
    #[must_use]
    pub fn with_mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }

    /// The header up to the EtherType: 12 bytes, 16 with a tag.
    #[inline]
    pub fn header(&self) -> &[u8] {
        &self.header[..self.header_len as usize]
    }
}

/// Packets on their way from one stage to the next; never more than the capacity.
#[derive(Debug)]
pub struct Batch {
    packets: Vec<Packet>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { packets: Vec::with_capacity(BATCH) }
    }
}

impl Batch {
    /// How many more packets fit.
    #[inline]
    pub fn room(&self) -> usize {
        BATCH - self.packets.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Appends a packet.
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub fn push(&mut self, packet: Packet) {
        assert!(self.packets.len() < BATCH, "batch is full");
        self.packets.push(packet);
    }

    /// The packets, in order.
    #[inline]
    pub fn as_slice(&self) -> &[Packet] {
        &self.packets
    }

    /// The packets, in order, mutable.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [Packet] {
        &mut self.packets
    }

    /// Moves all packets, in order, to the end of another batch; at no cost if that is empty.
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub(crate) fn append_to(&mut self, other: &mut Batch) {
        if other.is_empty() {
            std::mem::swap(self, other);
            return;
        }
        assert!(self.len() <= other.room(), "batch is full");
        other.packets.append(&mut self.packets);
    }

    /// Takes all packets out, in order.
    #[inline]
    pub fn drain(&mut self) -> std::vec::Drain<'_, Packet> {
        self.packets.drain(..)
    }
}

/// What a port is, and how it was actually bound; shown by `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Name of the interface; of the WAN interface for `udp`.
    pub interface: String,
    /// `xdp`, `udp`, `tun` or `memory`.
    pub kind: &'static str,
    /// The queue of the interface.
    pub queue: u32,
    /// AF_XDP only: whether frames go without a copy between driver and UMEM.
    pub zero_copy: Option<bool>,
}

/// A worker's end of a device queue.
pub trait Port: Send {
    /// Appends received packets to `batch`, as many as there are, as fit, and as the pool has frames for. Never blocks.
    /// Broken packets are given back to the pool and counted.
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops);

    /// Sends all of `batch` in order and leaves it empty. Never blocks: packets that the device does not take are
    /// dropped and counted. Frames return to the pool now or when the device is done with them.
    fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops);

    /// Counts the packets that the kernel has lost in front of or behind this port since the last call: a system call.
    /// Returns whether the port can tell.
    fn count_losses(&mut self, _drops: &Drops) -> bool {
        false
    }

    /// What has passed through the port, if it may lose packets silently.
    fn evidence(&self) -> Option<Arc<Evidence>> {
        None
    }

    /// Packets still in the receive ring after the last receive; `None` if there is no ring.
    fn waiting(&self) -> Option<usize> {
        None
    }

    /// Whether packets wait in the transmit ring for a device that was busy, and the kernel sends them only when it is
    /// asked: polling the descriptor does.
    fn unsent(&mut self) -> bool {
        false
    }

    /// The descriptor to poll for received packets.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether asking for packets costs no system call, so that a worker may ask on every turn.
    fn cheap_to_ask(&self) -> bool {
        false
    }

    /// Whether the kernel routes on this port's other side, and so decrements TTL and hop limit.
    fn kernel_routes(&self) -> bool {
        false
    }

    /// The interface that a [`Link`] must name to leave by this port; `None` if it needs no link.
    fn link_interface(&self) -> Option<u32> {
        None
    }

    /// The link by which an answer to a received packet goes back to its sender on this link, for the rare packet that
    /// is answered with an ICMP error; `None` if the port needs no link.
    fn reply_link(&self, _pool: &Pool, _packet: &Packet) -> Option<Link> {
        None
    }

    /// What the port is.
    fn info(&self) -> PortInfo;
}

/// Sets a socket option that rustix does not have.
///
/// # Errors
/// The kernel refuses.
#[expect(unsafe_code)]
pub fn set_option(socket: impl AsFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let (fd, len) = (socket.as_fd().as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: the value is `len` readable bytes.
    let set = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), len) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_appended_in_order() {
        let mut pool = Pool::heap(4);
        let mut batch = |lens: &[usize]| {
            let mut batch = Batch::default();
            for len in lens {
                let mut frame = pool.take().expect("free");
                frame.set(0, *len);
                batch.push(Packet::new(frame));
            }
            batch
        };
        let lens = |batch: &Batch| batch.as_slice().iter().map(|p| p.frame.len()).collect::<Vec<_>>();
        let (mut first, mut second, mut all) = (batch(&[1, 2]), batch(&[3]), Batch::default());
        first.append_to(&mut all);
        second.append_to(&mut all);
        assert_eq!((lens(&first), lens(&second), lens(&all)), (vec![], vec![], vec![1, 2, 3]));
        assert_eq!(all.room(), BATCH - 3);
    }
}
