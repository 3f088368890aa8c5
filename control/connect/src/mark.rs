//! Sockets with a firewall mark (SO_MARK), by which `ip rule` and nftables tell our own traffic from what the tunnel
//! carries. Mark 0 means no mark.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// Gives a socket its mark. This must happen before the socket looks up a route. Needs CAP_NET_ADMIN unless `mark` is
/// 0.
///
/// # Errors
/// `PermissionDenied`.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    if mark == 0 { Ok(()) } else { SockRef::from(&socket).set_mark(mark) }
}

/// A marked TCP connection.
///
/// # Errors
/// The kernel's error.
pub async fn connect_tcp(to: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    tcp_socket(to, mark)?.connect(to).await
}

/// A marked TCP socket of the family of `to`, not connected yet.
pub(crate) fn tcp_socket(to: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    set_mark(&socket, mark)?;
    Ok(socket)
}

/// A marked UDP socket on this address. Must be called within a tokio runtime.
///
/// # Errors
/// The kernel's error.
pub fn bind_udp(address: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    set_mark(&socket, mark)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}
