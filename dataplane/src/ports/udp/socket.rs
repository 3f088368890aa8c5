//! The tunnel's UDP sockets: how they are bound, and addresses and control messages as bytes.
//!
//! One dual-stack socket serves both families, so there is one descriptor to poll, one system call to
//! read, and one port number to find. A host without IPv6 gets an IPv4 socket.

#![expect(unsafe_code, reason = "sendmsg")]

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::ports::set_option;

/// Size of the socket buffers: a bundle of 64 KB for each of more than a hundred peers.
const BUFFER: usize = 8 << 20;

/// Which sockets to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// The only interface to use; any if `None`.
    pub interface: Option<String>,
    /// The port; 0 for one that the kernel picks.
    pub port: u16,
    /// Sockets, one for each port; at least one.
    pub workers: usize,
    /// Whether bundles may be sent as one (UDP_SEGMENT). Some NICs damage them.
    pub gso: bool,
    /// The firewall mark of what is sent (SO_MARK); 0 for none.
    pub mark: u32,
}

/// To which destinations bundles may be sent as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundling {
    /// Whether this is allowed for all destinations but the exceptions.
    pub usual: bool,
    /// The destinations for which the opposite holds.
    pub except: Vec<SocketAddr>,
}

impl Bundling {
    /// Whether a bundle may go there as one.
    pub fn allows(&self, to: SocketAddr) -> bool {
        self.usual != self.except.contains(&to)
    }
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    v6: bool,
    port: u16,
    mark: AtomicU32,
    /// Control changes it rarely.
    bundling: RwLock<Bundling>,
    /// Read by the worker while it sends, write-locked while a datagram leaves that must not be fragmented: whether the
    /// kernel fragments is an option of the whole socket.
    fragmenting: RwLock<()>,
    /// The error with which the kernel has refused a bundle; 0 if it has not. Until control clears it, none is sent.
    refused: AtomicI32,
    /// Bundles that its worker has sent as one.
    pub(super) bundles: AtomicU64,
}

/// Sends from a port's socket, on any thread: handshakes, probes.
#[derive(Clone, Debug)]
pub struct UdpSender(pub(super) Arc<Socket>);

/// Our end of an exchange: the address that a datagram was sent to, so that the answer can leave from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// An address of this host; unspecified for the one that the route prefers.
    pub address: IpAddr,
    /// The only interface to leave by; 0 for the route's, or for that of a link-local destination's zone.
    pub interface: u32,
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self { address, interface: 0 }
    }
}

/// What the control messages of a received datagram say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The traffic class.
    pub(super) tos: u8,
    /// The size of segments, if it is a bundle.
    pub(super) segment: Option<usize>,
    /// The address that it was sent to.
    pub(super) local: Option<IpAddr>,
    /// The interface that it came in by; 0 where that is not known.
    pub(super) interface: u32,
}

impl UdpSender {
    /// Sends one datagram with the given traffic class, and with a TTL or hop limit if given. Never blocks.
    ///
    /// # Errors
    /// The kernel's error; `WouldBlock` when the socket's buffer is full.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr, tos: u8, ttl: Option<u8>) -> io::Result<()> {
        self.send(bytes, None, to, tos, ttl, None)
    }

    /// As [`send_to`](Self::send_to), from an address of this host, which must be of the family of `to`.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to), also when the address or the interface is not this host's any more.
    pub fn send_from(&self, source: Source, bytes: &[u8], to: SocketAddr, tos: u8) -> io::Result<()> {
        if source.address.to_canonical().is_ipv4() != to.ip().to_canonical().is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.send(bytes, Some(source), to, tos, None, None)
    }

    /// Sends datagrams of `segment` bytes each as one bundle, as workers do.
    ///
    /// # Errors
    /// As [`send_to`](Self::send_to), also when the kernel sends no bundles there.
    pub fn send_bundle(&self, bytes: &[u8], segment: u16, source: Option<IpAddr>, to: SocketAddr) -> io::Result<()> {
        self.send(bytes, source.map(Source::from), to, 0, None, Some(segment))
    }

    /// Sets to which destinations bundles may go as one.
    pub fn set_bundling(&self, bundling: &Bundling) {
        if *self.0.bundling() != *bundling {
            self.0.bundling.write().unwrap_or_else(PoisonError::into_inner).clone_from(bundling);
        }
    }

    /// Why the kernel has refused a bundle of this port's worker, if it has. The worker then sends no further ones.
    pub fn refused(&self) -> Option<io::Error> {
        self.0.refused().map(io::Error::from_raw_os_error)
    }

    /// Has the worker send bundles again, after the kernel has refused one.
    pub fn forget_refusal(&self) {
        self.0.refused.store(0, Relaxed);
    }

    /// How many bundles have been sent as one.
    pub fn bundles(&self) -> u64 {
        self.0.bundles.load(Relaxed)
    }

    fn send(
        &self,
        bytes: &[u8],
        source: Option<Source>,
        to: SocketAddr,
        tos: u8,
        ttl: Option<u8>,
        segment: Option<u16>,
    ) -> io::Result<()> {
        let mut name = Name::default();
        let mut control = Control::default();
        let mut entry = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: all zeros is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        self.0.address(&mut message, &mut name, to);
        if let Some(ttl) = ttl {
            control.push_ttl(to, ttl);
        }
        if let Some(source) = source {
            control.push_source(source);
        }
        self.0.control(&mut message, &mut control, to, tos, segment);
        (message.msg_iov, message.msg_iovlen) = (&mut entry, 1);
        // SAFETY: the message points to locals and to `bytes`, which the kernel only reads.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &message, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends a datagram that no router may fragment, whatever path MTU the kernel assumes, from an address of this host
    /// if one is given. The worker waits meanwhile. What other threads send at that moment is not fragmented either.
    ///
    /// # Errors
    /// As [`send_from`](Self::send_from); `EMSGSIZE` when the interface itself carries no such packet.
    pub fn send_unfragmented(&self, source: Option<IpAddr>, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        // Linux has this option only per socket, and a separate socket would receive a part of the incoming datagrams.
        let v4 = to.ip().to_canonical().is_ipv4();
        let _waits = self.0.fragmenting.write().unwrap_or_else(PoisonError::into_inner);
        self.0.set_discovery(v4, true)?;
        let sent = self.send(bytes, source.map(Source::from), to, 0, None, None);
        self.0.set_discovery(v4, false)?;
        sent
    }

    /// Whether the kernel may merge received datagrams into bundles. While it may, devices below do it too.
    pub fn set_gro(&self, on: bool) {
        self.0.set_gro(on);
    }

    /// The port it is bound to.
    pub fn local_port(&self) -> u16 {
        self.0.port
    }

    /// The firewall mark of what is sent from it; 0 for none.
    pub fn mark(&self) -> u32 {
        self.0.mark.load(Relaxed)
    }

    /// Gives what is sent from now on another firewall mark; 0 for none.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        set_option(&*self.0, libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes())?;
        self.0.mark.store(mark, Relaxed);
        Ok(())
    }

    /// Binds further sockets to the same port, which then share the incoming datagrams.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn siblings(&self, config: &UdpConfig, count: usize) -> io::Result<Vec<UdpSender>> {
        let siblings = self.0.siblings(config, count)?;
        Ok(siblings.into_iter().map(|socket| UdpSender(Arc::new(socket))).collect())
    }
}

impl Socket {
    /// Binds as many sockets as the configuration asks for, all to the same port.
    ///
    /// The first is bound alone, so that a port that anyone else has, even another gateway with the same options, is
    /// `AddrInUse`; only then does it let its siblings join.
    pub(super) fn bind(config: &UdpConfig) -> io::Result<Vec<Socket>> {
        let first = Socket::open(config, config.port, false)?;
        let siblings = first.siblings(config, config.workers.saturating_sub(1))?;
        Ok(std::iter::once(first).chain(siblings).collect())
    }

    fn siblings(&self, config: &UdpConfig, count: usize) -> io::Result<Vec<Socket>> {
        if count > 0 {
            sockopt::set_socket_reuseport(self, true)?;
        }
        (0..count).map(|_| Socket::open(config, self.port, true)).collect()
    }

    fn open(config: &UdpConfig, port: u16, join: bool) -> io::Result<Self> {
        let open = |family| socket_with(family, SocketType::DGRAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None);
        let (fd, v6) = match open(AddressFamily::INET6) {
            Err(Errno::AFNOSUPPORT) => (open(AddressFamily::INET)?, false),
            opened => (opened?, true),
        };
        let bundling = Bundling { usual: config.gso, except: Vec::new() };
        let mut socket = Self {
            fd,
            v6,
            port,
            mark: AtomicU32::new(config.mark),
            bundling: RwLock::new(bundling),
            fragmenting: RwLock::new(()),
            refused: AtomicI32::new(0),
            bundles: AtomicU64::new(0),
        };
        socket.configure(config)?;
        if join {
            sockopt::set_socket_reuseport(&socket, true)?;
        }
        let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from([0; 4]) };
        bind(&socket, &SocketAddr::new(any, port))?;
        socket.port = SocketAddr::try_from(getsockname(&socket)?)?.port();
        Ok(socket)
    }

    fn configure(&self, config: &UdpConfig) -> io::Result<()> {
        if let Some(interface) = &config.interface {
            set_option(self, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes())?;
        }
        if config.mark != 0 {
            set_option(self, libc::SOL_SOCKET, libc::SO_MARK, &config.mark.to_ne_bytes())?;
        }
        sockopt::set_socket_recv_buffer_size_force(self, BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(self, BUFFER))?;
        sockopt::set_socket_send_buffer_size_force(self, BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(self, BUFFER))?;
        self.set_discovery(true, false)?;
        sockopt::set_ip_recvtos(self, true)?;
        set_option(self, libc::IPPROTO_IP, libc::IP_PKTINFO, &1i32.to_ne_bytes())?;
        if self.v6 {
            sockopt::set_ipv6_v6only(self, false)?;
            self.set_discovery(false, false)?;
            sockopt::set_ipv6_recvtclass(self, true)?;
            set_option(self, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1i32.to_ne_bytes())?;
        }
        self.set_gro(true);
        Ok(())
    }

    /// Whether packets sent over IPv4, or over IPv6, discover the path MTU. Otherwise they may be fragmented: a size
    /// that turns out to be too large costs speed, but loses no packets.
    fn set_discovery(&self, v4: bool, asks: bool) -> io::Result<()> {
        match (v4, asks) {
            (true, true) => sockopt::set_ip_mtu_discover(self, Ipv4PathMtuDiscovery::PROBE),
            (true, false) => sockopt::set_ip_mtu_discover(self, Ipv4PathMtuDiscovery::DONT),
            (false, true) => sockopt::set_ipv6_mtu_discover(self, Ipv6PathMtuDiscovery::PROBE),
            (false, false) => sockopt::set_ipv6_mtu_discover(self, Ipv6PathMtuDiscovery::DONT),
        }?;
        Ok(())
    }

    fn set_gro(&self, on: bool) {
        // Before Linux 5.0, bundles arrive as single datagrams; nothing else depends on it.
        let _ = set_option(self, libc::SOL_UDP, libc::UDP_GRO, &i32::from(on).to_ne_bytes());
    }

    /// To which destinations bundles may go as one.
    pub(super) fn bundling(&self) -> RwLockReadGuard<'_, Bundling> {
        self.bundling.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel fragment packets where necessary until the guard is dropped.
    pub(super) fn fragmenting(&self) -> RwLockReadGuard<'_, ()> {
        self.fragmenting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error by which the kernel has refused a bundle, if it has.
    pub(super) fn refused(&self) -> Option<c_int> {
        Some(self.refused.load(Relaxed)).filter(|error| *error != 0)
    }

    /// The kernel has refused a bundle with this error.
    pub(super) fn refuse(&self, error: c_int) {
        self.refused.store(error, Relaxed);
    }

    /// The port it is bound to.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Addresses a message to `to`; `name` holds the address.
    pub(super) fn address(&self, message: &mut libc::msghdr, name: &mut Name, to: SocketAddr) {
        name.set(to, self.v6);
        (message.msg_name, message.msg_namelen) = (name.as_ptr().cast(), name.len);
    }

    /// Gives a message its traffic class and, if it is a bundle, the size of its segments, behind what `control`
    /// already holds.
    pub(super) fn control(
        &self,
        message: &mut libc::msghdr,
        control: &mut Control,
        to: SocketAddr,
        tos: u8,
        segment: Option<u16>,
    ) {
        if tos != 0 {
            let (level, kind) = match to.ip().to_canonical() {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            control.push(level, kind, &c_int::from(tos).to_ne_bytes());
        }
        if let Some(size) = segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        message.msg_control = if control.len > 0 { control.bytes.as_mut_ptr().cast() } else { std::ptr::null_mut() };
        message.msg_controllen = control.len as _;
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> c_int {
        self.fd.as_raw_fd()
    }
}

/// A socket address as the kernel reads and writes it: `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
pub(super) struct Name {
    bytes: [u8; Name::LEN],
    len: libc::socklen_t,
}

impl Name {
    /// Size of the larger one, `sockaddr_in6`.
    pub(super) const LEN: usize = 28;
    const V4_LEN: libc::socklen_t = 16;

    pub(super) fn as_ptr(&mut self) -> *mut libc::sockaddr {
        self.bytes.as_mut_ptr().cast()
    }

    /// The address, for a socket of either family; a v6 socket reaches IPv4 by mapped addresses.
    fn set(&mut self, address: SocketAddr, v6: bool) {
        self.bytes = [0; Self::LEN];
        let (ip, scope) = match address {
            SocketAddr::V4(v4) if v6 => (IpAddr::V6(v4.ip().to_ipv6_mapped()), 0),
            SocketAddr::V4(v4) => (IpAddr::V4(*v4.ip()), 0),
            SocketAddr::V6(v6) => (IpAddr::V6(*v6.ip()), v6.scope_id()),
        };
        self.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let family = match ip {
            IpAddr::V4(ip) => {
                self.bytes[4..8].copy_from_slice(&ip.octets());
                self.len = Self::V4_LEN;
                libc::AF_INET
            }
            IpAddr::V6(ip) => {
                self.bytes[8..24].copy_from_slice(&ip.octets());
                self.bytes[24..28].copy_from_slice(&scope.to_ne_bytes());
                self.len = Self::LEN as libc::socklen_t;
                libc::AF_INET6
            }
        };
        self.bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    }

    /// The address that the kernel wrote, a mapped one as IPv4.
    pub(super) fn address(&self) -> SocketAddr {
        let bytes = &self.bytes;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        if u16::from_ne_bytes([bytes[0], bytes[1]]) == libc::AF_INET as u16 {
            return SocketAddr::new(IpAddr::from([bytes[4], bytes[5], bytes[6], bytes[7]]), port);
        }
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[8..24]);
        let ip = Ipv6Addr::from(octets);
        match ip.to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), port),
            IpAddr::V6(ip) => {
                let scope = u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
                SocketAddrV6::new(ip, port, 0, scope).into()
            }
        }
    }
}

/// Control messages (`cmsg(3)`), read and written as bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control {
    bytes: [u8; Control::LEN],
    len: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; Self::LEN], len: 0 }
    }
}

impl Control {
    /// Room for every message that is requested, and some more.
    pub(super) const LEN: usize = 192;
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const WORD: usize = size_of::<usize>();

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    fn push(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let len = Self::HEADER + data.len();
        let at = &mut self.bytes[self.len..self.len + len];
        at[..Self::WORD].copy_from_slice(&len.to_ne_bytes());
        at[Self::WORD..Self::WORD + 4].copy_from_slice(&level.to_ne_bytes());
        at[Self::WORD + 4..Self::HEADER].copy_from_slice(&kind.to_ne_bytes());
        at[Self::HEADER..].copy_from_slice(data);
        self.len += len.next_multiple_of(Self::WORD);
    }

    fn push_ttl(&mut self, to: SocketAddr, ttl: u8) {
        let (level, kind) = match to.ip().to_canonical() {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
        };
        self.push(level, kind, &c_int::from(ttl).to_ne_bytes());
    }

    /// `struct in_pktinfo` (ip(7)) or `struct in6_pktinfo` (RFC 3542, section 6.2).
    pub(super) fn push_source(&mut self, source: Source) {
        let interface = source.interface.to_ne_bytes();
        match source.address.to_canonical() {
            IpAddr::V4(ip) => {
                let data = [interface, ip.octets(), [0; 4]].concat();
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
            }
            IpAddr::V6(ip) => {
                let data = [&ip.octets()[..], &interface].concat();
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            }
        }
    }

    /// Reads `len` bytes of received control messages.
    pub(super) fn read(&self, len: usize) -> Said {
        let mut said = Said::default();
        let mut rest = &self.bytes[..len.min(Self::LEN)];
        while let Some((header, _)) = rest.split_at_checked(Self::HEADER) {
            let mut word = [0; Self::WORD];
            word.copy_from_slice(&header[..Self::WORD]);
            let len = usize::from_ne_bytes(word);
            let int = |at: usize| c_int::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (level, kind) = (int(Self::WORD), int(Self::WORD + 4));
            let Some(data) = rest.get(Self::HEADER..len) else { break };
            match (level, kind, data) {
                (libc::IPPROTO_IP, libc::IP_TOS, [value, ..]) => said.tos = *value,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, [a, b, c, d]) => {
                    said.tos = c_int::from_ne_bytes([*a, *b, *c, *d]) as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO, [a, b, c, d]) => {
                    let size = usize::try_from(c_int::from_ne_bytes([*a, *b, *c, *d])).ok();
                    said.segment = size.filter(|size| *size > 0);
                }
                // The interface, the address that an answer may leave from, and the one that it was sent to. For a
                // datagram to an address of this host they are the same.
                (libc::IPPROTO_IP, libc::IP_PKTINFO, [i, j, k, l, a, b, c, d, ..]) => {
                    said.interface = u32::from_ne_bytes([*i, *j, *k, *l]);
                    said.local = Some(IpAddr::from([*a, *b, *c, *d]));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, data) => {
                    let address = data.first_chunk::<16>().map(|octets| IpAddr::from(*octets).to_canonical());
                    said.local = said.local.or(address);
                    let interface = data.get(16..).and_then(|rest| rest.first_chunk()).copied();
                    said.interface = interface.map_or(said.interface, u32::from_ne_bytes);
                }
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(Self::WORD)..).unwrap_or_default();
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(port: u16, workers: usize) -> UdpConfig {
        UdpConfig { interface: None, port, workers, gso: true, mark: 0 }
    }

    #[test]
    fn a_port_is_shared_by_siblings_and_nobody_else() {
        for workers in [1, 3] {
            let sockets = Socket::bind(&config(0, workers)).unwrap();
            assert_eq!(sockets.len(), workers);
            let port = sockets[0].port();
            assert!(port != 0 && sockets.iter().all(|socket| socket.port() == port));
            for others in [1, 3] {
                let error = Socket::bind(&config(port, others)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            }
            drop(sockets);
            Socket::bind(&config(port, workers)).unwrap();
        }
    }

    #[test]
    fn an_ipv4_socket_on_the_port_is_noticed() {
        let other = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = other.local_addr().unwrap().port();
        assert_eq!(Socket::bind(&config(port, 2)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn names_of_both_families() {
        for text in ["192.0.2.1:5", "[2001:db8::1]:65535", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut name = Name::default();
            name.set(address, true);
            assert_eq!(name.address(), address);
            assert_eq!(name.len, 28);
            name.set(address, false);
            assert_eq!(name.address(), address);
        }
    }

    fn address_bytes(address: IpAddr) -> [u8; 16] {
        let IpAddr::V6(address) = address else { panic!("{address} is of IPv4") };
        address.octets()
    }

    #[test]
    fn control_messages_of_any_content_are_read() {
        let mut control = Control::default();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[0xb8]);
        control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &3i32.to_ne_bytes());
        let local = IpAddr::from([192, 0, 2, 1]);
        control.push_source(Source { address: local, interface: 3 });
        let segment = Some(1452);
        assert_eq!(control.read(48), Said { tos: 0xb8, segment, local: None, interface: 0 });
        assert_eq!(control.read(control.len), Said { tos: 3, segment, local: Some(local), interface: 3 });
        assert_eq!(control.read(0), Said::default());
        for text in ["2001:db8::1", "fe80::1", "::ffff:192.0.2.1"] {
            let address: IpAddr = text.parse().unwrap();
            control.clear();
            let data = [&address_bytes(address)[..], &7u32.to_ne_bytes()].concat();
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            let said = control.read(control.len);
            assert_eq!((said.local, said.interface), (Some(address.to_canonical()), 7));
        }
        let mut state = 5u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            control.bytes[(state >> 8) as usize % Control::LEN] = (state >> 24) as u8;
            control.read((state >> 3) as usize % 200);
        }
    }
}
