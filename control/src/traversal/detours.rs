//! Ports other than the tunnel's, by which birthday probing gets through a NAT.
//!
//! Each is a UDP socket of its own. Probes that come to it go to the path agent. Once a peer's path leads
//! through one, it gets a local address: what the tunnel's socket sends there goes out by the port, and
//! what the peer sends to the port goes to the tunnel's socket. Nothing is copied or opened but datagrams
//! as they are.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use penstock_proto::path::{FIRST_BYTE, PROBE_LENGTH, SocketId};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Probes that wait for the agent; more are dropped, as a network would.
const WAITING: usize = 1024;
/// The longest datagram that a tunnel over IPv4 sends.
const DATAGRAM_MAX: usize = 65_535;
/// Most ports at a time: two peers' worth of birthday probing.
const PORTS_MAX: usize = 512;

/// The ports.
pub struct Detours {
    local_port: u16,
    ports: HashMap<SocketId, Port>,
    next_id: u32,
    sender: mpsc::Sender<Received>,
    receiver: mpsc::Receiver<Received>,
}

/// A probe that came to one of them.
#[derive(Debug)]
pub struct Received {
    /// Which.
    pub socket: SocketId,
    /// Where from, IPv4 as such.
    pub from: SocketAddr,
    /// The datagram.
    pub datagram: Vec<u8>,
}

struct Port {
    wan: Arc<UdpSocket>,
    /// The tasks that read; they end with the port.
    tasks: JoinSet<()>,
    /// Where the tunnel's socket sends to, once a path leads through here, and the peer's address.
    led: Option<(SocketAddr, SocketAddr)>,
}

impl Detours {
    /// No ports yet. `local_port` is the tunnel's.
    pub fn new(local_port: u16) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { local_port, ports: HashMap::new(), next_id: SocketId::TUNNEL.0 + 1, sender, receiver }
    }

    /// Opens up to `count` ports.
    pub fn open(&mut self, count: u16) -> Vec<SocketId> {
        let room = PORTS_MAX.saturating_sub(self.ports.len());
        let mut opened = Vec::new();
        for _ in 0..usize::from(count).min(room) {
            let wan = match bind(Ipv4Addr::UNSPECIFIED.into()) {
                Ok(wan) => Arc::new(wan),
                Err(e) => {
                    tracing::warn!("no more ports can be opened: {e}");
                    break;
                }
            };
            let id = SocketId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1).max(SocketId::TUNNEL.0 + 1);
            let mut tasks = JoinSet::new();
            tasks.spawn(listen(id, Arc::clone(&wan), self.sender.clone()));
            self.ports.insert(id, Port { wan, tasks, led: None });
            opened.push(id);
        }
        opened
    }

    /// Closes ports.
    pub fn close(&mut self, sockets: &[SocketId]) {
        for socket in sockets {
            self.ports.remove(socket);
        }
    }

    /// Sends by a port.
    ///
    /// # Errors
    /// What the kernel says, or there is no such port.
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

    /// The local address that leads to a peer by this port.
    pub fn lead(&mut self, socket: SocketId, peer: SocketAddr) -> Option<SocketAddr> {
        let tunnel = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.local_port);
        let port = self.ports.get_mut(&socket)?;
        if let Some((local, known)) = port.led
            && known == peer
        {
            return Some(local);
        }
        let led = bind(Ipv4Addr::LOCALHOST.into()).and_then(|inside| Ok((inside.local_addr()?, inside)));
        let (local, inside) = match led {
            Ok(led) => led,
            Err(e) => {
                tracing::warn!("no local address for a path through another port: {e}");
                return None;
            }
        };
        let inside = Arc::new(inside);
        // Who listened for probes alone gives way to who tells probes from traffic.
        port.tasks.abort_all();
        port.tasks.spawn(carry_in(
            Ends { id: socket, wan: Arc::clone(&port.wan), inside: Arc::clone(&inside), tunnel, peer },
            self.sender.clone(),
        ));
        port.tasks.spawn(carry_out(Ends { id: socket, wan: Arc::clone(&port.wan), inside, tunnel, peer }));
        port.led = Some((local, peer));
        Some(local)
    }

    /// The next probe. Cancel safe.
    pub async fn next(&mut self) -> Received {
        match self.receiver.recv().await {
            Some(received) => received,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

/// A port with its local address.
struct Ends {
    id: SocketId,
    wan: Arc<UdpSocket>,
    inside: Arc<UdpSocket>,
    tunnel: SocketAddr,
    peer: SocketAddr,
}

/// Probes to the agent.
async fn listen(id: SocketId, wan: Arc<UdpSocket>, agent: mpsc::Sender<Received>) {
    // One byte more, so that what is too long is seen to be.
    let mut buffer = [0; PROBE_LENGTH + 1];
    while let Ok((length, from)) = wan.recv_from(&mut buffer).await {
        offer(id, from, &buffer[..length], &agent);
    }
}

/// Probes to the agent, the peer's other datagrams to the tunnel.
async fn carry_in(ends: Ends, agent: mpsc::Sender<Received>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    while let Ok((length, from)) = ends.wan.recv_from(&mut buffer).await {
        let datagram = &buffer[..length];
        if datagram.first() == Some(&FIRST_BYTE) {
            offer(ends.id, from, datagram, &agent);
        } else if from == ends.peer {
            // What does not fit is lost, as on any path.
            let _ = send_now(&ends.inside, datagram, ends.tunnel);
        }
    }
}

/// The tunnel's datagrams to the peer.
async fn carry_out(ends: Ends) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    while let Ok((length, from)) = ends.inside.recv_from(&mut buffer).await {
        if from == ends.tunnel {
            let _ = send_now(&ends.wan, &buffer[..length], ends.peer);
        }
    }
}

/// Sends without waiting, whatever tokio has heard of the socket: of a new one it has heard nothing.
fn send_now(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).send_to(datagram, &to.into()).map(drop)
}

fn offer(socket: SocketId, from: SocketAddr, datagram: &[u8], agent: &mpsc::Sender<Received>) {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    // A full queue is a flood: dropped.
    let _ = agent.try_send(Received { socket, from, datagram: datagram.to_vec() });
}

fn bind(address: std::net::IpAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(SocketAddr::new(address, 0))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}
