//! An end of a cable on which raw frames are sent and received.

use super::Namespace;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Of linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `struct virtio_net_hdr`: in front of every frame, since the options are on.
const OFFLOADS: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
/// For all frames of a burst, with the kernel's overhead for each.
const BUFFER: usize = 8 << 20;

/// A packet socket on one interface.
pub struct Wire(Socket);

/// Where a checksum is left to the device: the sum begins at the first, and is stored this many bytes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    pub start: u16,
    pub offset: u16,
}

impl Wire {
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        namespace.enter(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("a packet socket");
            let index = rustix::net::netdevice::name_to_index(&socket, interface).expect("an interface");
            for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
                switch_on(&socket, option);
            }
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).expect("a buffer");
            socket.bind(&all_of(index)).expect("bound");
            socket.set_nonblocking(true).expect("a socket");
            Self(socket)
        })
    }

    /// Sends a frame. The kernel is told where a checksum is left to the device.
    pub fn send(&self, frame: &[u8], partial: Option<Partial>) {
        let mut bytes = vec![0; OFFLOADS];
        if let Some(Partial { start, offset }) = partial {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        bytes.extend(frame);
        let sent = (&self.0).write(&bytes);
        assert_eq!(sent.as_ref().ok(), Some(&bytes.len()), "{sent:?}: {frame:02x?}");
    }

    /// The next frame, if one comes in time.
    pub fn receive(&self, wait: Duration) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        let wait = Timespec::try_from(wait).expect("a short time");
        let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&wait)).expect("poll");
        let len = (ready > 0).then(|| (&self.0).read(&mut buffer).expect("a frame"))?;
        Some(buffer[OFFLOADS..len].to_vec())
    }
}

#[expect(unsafe_code, reason = "an option that no crate here offers")]
fn switch_on(socket: &Socket, option: libc::c_int) {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an integer, which outlives the call.
    let set = unsafe {
        let len = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), len)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// The address of everything that an interface receives.
#[expect(unsafe_code, reason = "an address family that no crate here offers")]
fn all_of(index: u32) -> SockAddr {
    // SAFETY: the storage holds any address, and is filled with one of the given length.
    let made = unsafe {
        SockAddr::try_init(|storage, len| {
            *storage.cast::<libc::sockaddr_ll>() = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
                sll_ifindex: index as i32,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    };
    made.expect("an address").1
}
