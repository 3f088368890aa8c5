//! Ports other than the tunnel's, with which birthday probing gets through a NAT.
//!
//! ```text
//!   peer ──► port ──┬─ probes ──► path agent
//!                   └─ the rest ─► inbound ──► 127.0.0.1, the tunnel's port
//!   peer ◄── port ◄── outbound, a local address of the port's own ◄── the tunnel's socket
//! ```
//! Each port is a UDP socket of its own. Once a peer's path leads through one, it gets a local address that stands for
//! the peer. Datagrams are passed on unchanged, whole and unopened.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use penstock_connect::bind_udp;
use penstock_proto::path::{FIRST_BYTE, PROBE_LENGTH, SocketId};
use penstock_proto::relay::DATAGRAM_LIMIT;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Probes that may wait for the agent; further ones are dropped, as a network would.
const WAITING: usize = 1024;
/// The first byte of WireGuard's transport data.
const DATA: u8 = 4;
/// The most ports at a time: enough for birthday probing with two peers.
const PORTS_MAX: usize = 512;

/// The extra ports.
pub struct Detours {
    local_port: u16,
    mark: u32,
    ports: HashMap<SocketId, Port>,
    next_id: u32,
    /// The socket with which all ports pass datagrams to the tunnel's socket; it exists once there is a port.
    inbound: Option<Arc<UdpSocket>>,
    sender: mpsc::Sender<Received>,
    receiver: mpsc::Receiver<Received>,
}

/// A probe that arrived on one of the ports.
#[derive(Debug)]
pub struct Received {
    /// The port.
    pub socket: SocketId,
    /// Its source; IPv4 addresses are not mapped into IPv6.
    pub from: SocketAddr,
    /// The datagram.
    pub datagram: Vec<u8>,
}

struct Port {
    wan: Arc<UdpSocket>,
    /// The peer, once a path leads through here.
    peer: watch::Sender<Option<SocketAddr>>,
    /// The local address for that peer.
    outbound: Option<SocketAddr>,
    /// The tasks that read; they end with the port.
    tasks: JoinSet<()>,
}

impl Detours {
    /// No ports yet. `local_port` and the firewall mark are the tunnel's.
    pub fn new(local_port: u16, mark: u32) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            local_port,
            mark,
            ports: HashMap::new(),
            next_id: SocketId::TUNNEL.0 + 1,
            inbound: None,
            sender,
            receiver,
        }
    }

    /// Opens up to `count` ports.
    pub fn open(&mut self, count: u16) -> Vec<SocketId> {
        let room = PORTS_MAX.saturating_sub(self.ports.len());
        let mut opened = Vec::new();
        for _ in 0..usize::from(count).min(room) {
            match self.open_one() {
                Ok(id) => opened.push(id),
                Err(e) => {
                    tracing::warn!("no more ports can be opened: {e}");
                    break;
                }
            }
        }
        opened
    }

    fn open_one(&mut self) -> io::Result<SocketId> {
        let inbound = match &self.inbound {
            Some(inbound) => Arc::clone(inbound),
            None => Arc::clone(self.inbound.insert(Arc::new(bind(Ipv4Addr::LOCALHOST, 0)?))),
        };
        let wan = Arc::new(bind(Ipv4Addr::UNSPECIFIED, self.mark)?);
        let id = SocketId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1).max(SocketId::TUNNEL.0 + 1);
        let (peer, of) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(carry_in(id, Arc::clone(&wan), of, self.sender.clone(), inbound, self.tunnel()));
        self.ports.insert(id, Port { wan, peer, outbound: None, tasks });
        Ok(id)
    }

    fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.local_port)
    }

    /// Closes ports.
    pub fn close(&mut self, sockets: &[SocketId]) {
        for socket in sockets {
            self.ports.remove(socket);
        }
    }

    /// Sends from a port.
    ///
    /// # Errors
    /// The kernel's error, or that there is no such port.
    pub fn send(&self, socket: SocketId, to: SocketAddr, datagram: &[u8], ttl: Option<u8>) -> io::Result<()> {
        let port = self.ports.get(&socket).ok_or(io::ErrorKind::NotFound)?;
        let before = ttl.map(|_| port.wan.ttl()).transpose()?;
        if let Some(ttl) = ttl {
            port.wan.set_ttl(u32::from(ttl))?;
        }
        let sent = send_now(&port.wan, datagram, to);
        if let Some(before) = before {
            port.wan.set_ttl(before)?;
        }
        sent
    }

    /// Sends from a port a datagram that nobody on the way may fragment.
    ///
    /// # Errors
    /// As [`Self::send`]; `EMSGSIZE` when the interface itself cannot carry such a packet.
    pub fn send_unfragmented(&self, socket: SocketId, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let port = self.ports.get(&socket).ok_or(io::ErrorKind::NotFound)?;
        let before = sockopt::ip_mtu_discover(&*port.wan)?;
        sockopt::set_ip_mtu_discover(&*port.wan, Ipv4PathMtuDiscovery::PROBE)?;
        let sent = send_now(&port.wan, datagram, to);
        sockopt::set_ip_mtu_discover(&*port.wan, before)?;
        sent
    }

    /// The local address that leads to a peer through this port.
    pub fn lead(&mut self, socket: SocketId, peer: SocketAddr) -> Option<SocketAddr> {
        let tunnel = self.tunnel();
        let port = self.ports.get_mut(&socket)?;
        port.peer.send_replace(Some(peer));
        if port.outbound.is_none() {
            match bind(Ipv4Addr::LOCALHOST, 0).and_then(|outbound| Ok((outbound.local_addr()?, outbound))) {
                Ok((local, outbound)) => {
                    port.tasks.spawn(carry_out(outbound, tunnel, Arc::clone(&port.wan), port.peer.subscribe()));
                    port.outbound = Some(local);
                }
                Err(e) => tracing::warn!("no local address for a path through another port: {e}"),
            }
        }
        port.outbound
    }

    /// The next probe. Cancel safe.
    pub async fn next(&mut self) -> Received {
        match self.receiver.recv().await {
            Some(received) => received,
            // We hold a sender ourselves, so the channel never closes.
            None => std::future::pending().await,
        }
    }
}

/// Passes probes to the agent and WireGuard to the tunnel: from the peer whose path leads here and, before there is
/// one, only data, which can cost us no more than an AEAD if somebody guesses the port.
async fn carry_in(
    id: SocketId,
    wan: Arc<UdpSocket>,
    peer: watch::Receiver<Option<SocketAddr>>,
    agent: mpsc::Sender<Received>,
    inbound: Arc<UdpSocket>,
    tunnel: SocketAddr,
) {
    let mut buffer = vec![0; DATAGRAM_LIMIT];
    while let Ok((length, from)) = wan.recv_from(&mut buffer).await {
        let datagram = &buffer[..length];
        let known = *peer.borrow();
        match datagram {
            [FIRST_BYTE, ..] if length >= PROBE_LENGTH => {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                // A full queue means a flood, so the probe is dropped.
                let _ = agent.try_send(Received { socket: id, from, datagram: datagram.to_vec() });
            }
            // A datagram that does not fit the socket's buffer is lost, as on any path.
            [first, ..] if known == Some(from) || (known.is_none() && *first == DATA) => {
                let _ = send_now(&inbound, datagram, tunnel);
            }
            _ => {}
        }
    }
}

/// Passes the tunnel's datagrams to the peer.
async fn carry_out(
    outbound: UdpSocket,
    tunnel: SocketAddr,
    wan: Arc<UdpSocket>,
    peer: watch::Receiver<Option<SocketAddr>>,
) {
    let mut buffer = vec![0; DATAGRAM_LIMIT];
    while let Ok((length, from)) = outbound.recv_from(&mut buffer).await {
        let to = *peer.borrow();
        if let Some(to) = to.filter(|_| from == tunnel) {
            let _ = send_now(&wan, &buffer[..length], to);
        }
    }
}

/// Sends without waiting, whatever tokio believes about the socket's readiness: it knows nothing yet about a new one.
fn send_now(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).send_to(datagram, &to.into()).map(drop)
}

fn bind(address: Ipv4Addr, mark: u32) -> io::Result<UdpSocket> {
    bind_udp((address, 0).into(), mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: u32 = 0x5057;

    #[tokio::test]
    async fn ports_to_the_outside_carry_the_mark_and_local_ones_do_not() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        for mark in [MARK, 0] {
            let mut detours = Detours::new(47_100, mark);
            let opened = detours.open(3);
            assert_eq!(opened.len(), 3);
            for id in opened {
                assert_eq!(SockRef::from(&*detours.ports[&id].wan).mark().unwrap(), mark);
            }
            let inbound = detours.inbound.as_ref().unwrap();
            assert_eq!(SockRef::from(&**inbound).mark().unwrap(), 0);
        }
    }
}
