//! The UDP sockets: STUN and the relay share a port, and are told apart by STUN's magic cookie.
//!
//! The kernel gathers datagrams of one source into one buffer (UDP GRO) and hands over several buffers at a
//! time (`recvmmsg`); what goes on to one receiver leaves by one `sendmsg` from the same memory (UDP GSO).
//! A datagram that cannot leave at once is dropped and counted: its sender has congestion control.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use penstock_proto::relay::Source;
use penstock_proto::stun::message::is_stun;
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use socket2::{Domain, Protocol, Socket as Socket2, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::admission::Rates;
use crate::admission::limits::LARGER_ANSWERS;
use crate::relay::counters::Loss;
use crate::relay::{Decision, RelayServer};
use crate::stun::{Answer, Corners};

/// Buffers that are received at a time.
const BATCH: usize = 16;
/// The size of each: the largest that UDP GRO makes (ip(7): a datagram's length has 16 bits).
const BUFFER: usize = 65_535;
/// The most bytes of one send (udp(7)): a datagram's limit without the headers.
const SEND_LIMIT: usize = 65_507 - 40;
/// The kernel's buffers of a socket, each way, if `net.core.rmem_max` and `wmem_max` let us: a burst of
/// 30 ms at 1 Gbit/s.
const SOCKET_BUFFER: usize = 4 << 20;
/// How long after a failed read the next is tried.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Where a datagram came in, and so from where its source is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    socket: usize,
    local: Option<IpAddr>,
}

/// All sockets.
pub struct Sockets {
    all: Vec<Socket>,
    corners: Vec<Corners>,
    /// STUN requests that were answered.
    pub stun_answers: AtomicU64,
    /// STUN messages that were not.
    pub stun_drops: AtomicU64,
    /// Answers that are larger than their question, by receiver.
    larger: Mutex<Rates>,
}

struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    address: SocketAddr,
    /// Which corner it is, of which of the [`Sockets::corners`].
    corner: Option<(usize, usize)>,
}

/// What a server listens at, for one IP version or, at all addresses, for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// One or two addresses of the same port; of all addresses, one.
    pub addresses: Vec<SocketAddr>,
    /// How others reach them, if differently.
    pub public: Vec<SocketAddr>,
    /// The other port of a STUN server; none without STUN.
    pub alternate_port: Option<u16>,
}

/// Binds the sockets. Must be called within a tokio runtime.
///
/// # Errors
/// An address cannot be bound; it is named.
pub fn bind(listens: &[Listen]) -> io::Result<Sockets> {
    let (mut all, mut corners) = (Vec::new(), Vec::new());
    for Listen { addresses, public, alternate_port } in listens {
        let first = all.len();
        for address in addresses {
            all.push(Socket::bind(*address)?);
            if let Some(port) = alternate_port {
                all.push(Socket::bind(SocketAddr::new(address.ip(), *port))?);
            }
        }
        if alternate_port.is_none() {
            continue;
        }
        let bound: Vec<SocketAddr> = all[first..].iter().map(|socket| socket.address).collect();
        let told = |at: usize| {
            let ip = public.get(at / 2).map_or(bound[at].ip(), SocketAddr::ip);
            let port = public.get(at / 2).filter(|_| at.is_multiple_of(2)).map_or(bound[at].port(), SocketAddr::port);
            SocketAddr::new(ip, port)
        };
        let server = Corners::new(told(0), Some(told(bound.len() - 1)));
        let server = server.ok_or_else(|| io::Error::other("the addresses of the STUN server are no corners"))?;
        for (corner, socket) in all[first..].iter_mut().enumerate() {
            socket.corner = Some((corners.len(), corner));
        }
        corners.push(server);
    }
    let larger = Mutex::new(Rates::new(LARGER_ANSWERS));
    Ok(Sockets { all, corners, stun_answers: AtomicU64::new(0), stun_drops: AtomicU64::new(0), larger })
}

/// Serves all sockets until the tasks are dropped.
pub fn serve(sockets: &Arc<Sockets>, relay: Option<&Arc<RelayServer>>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for number in 0..sockets.all.len() {
        tasks.spawn(receive(number, sockets.clone(), relay.cloned()));
    }
    tasks
}

impl Socket {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let bound = || -> io::Result<Self> {
            let socket = Socket2::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(!address.ip().is_unspecified())?;
            }
            let _ = (socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER));
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            let io = UdpSocket::from_std(socket.into())?;
            let state = UdpSocketState::new((&io).into())?;
            // The library forbids fragments, as QUIC wants. We pass on datagrams whose size others chose.
            set_ip_mtu_discover(&io, Ipv4PathMtuDiscovery::DONT)?;
            let address = io.local_addr()?;
            Ok(Self { io, state, address, corner: None })
        };
        bound().map_err(|error| io::Error::new(error.kind(), format!("{address} (UDP): {error}")))
    }
}

impl Sockets {
    /// The addresses of the first port of each listened address, as bound.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let first = |socket: &&Socket| socket.corner.is_none_or(|(_, corner)| corner.is_multiple_of(2));
        self.all.iter().filter(first).map(|socket| socket.address)
    }

    /// Sends on somebody else's datagram, or drops it.
    pub fn forward(&self, relay: &RelayServer, to: SocketAddr, origin: Origin, datagram: &[u8]) {
        let run = Run { to, origin, ecn: None, stride: datagram.len(), whole: true };
        self.send(Some(relay), &run, datagram);
    }

    /// Sends datagrams of the same length, the last perhaps shorter.
    fn send(&self, relay: Option<&RelayServer>, run: &Run, bytes: &[u8]) {
        let socket = &self.all[run.origin.socket];
        let mut rest = bytes;
        while !rest.is_empty() {
            let segments = socket.state.max_gso_segments().min(SEND_LIMIT / run.stride).max(1);
            let (contents, tail) = rest.split_at(rest.len().min(segments * run.stride));
            let count = contents.len().div_ceil(run.stride);
            let transmit = Transmit {
                destination: run.to,
                ecn: run.ecn,
                contents,
                segment_size: (count > 1).then_some(run.stride),
                src_ip: run.origin.local,
            };
            let sent = socket.io.try_io(Interest::WRITABLE, || socket.state.try_send((&socket.io).into(), &transmit));
            if let Some(relay) = relay {
                match sent {
                    Ok(()) => relay.counters.forwarded(count, contents.len()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        relay.counters.lost(Loss::Congested, count);
                    }
                    Err(_) => relay.counters.lost(Loss::SendFailed, count),
                }
            }
            rest = tail;
        }
    }

    fn stun(&self, from: SocketAddr, origin: Origin, request: &[u8]) -> Option<Send> {
        let (server, corner) = self.all[origin.socket].corner?;
        let answer = self.corners[server].answer(corner, origin.local, from, request)?;
        let Answer { by, to, bytes, is_larger } = answer;
        if is_larger {
            let mut larger = self.larger.lock().unwrap_or_else(PoisonError::into_inner);
            larger.allow(Instant::now(), to.ip()).then_some(())?;
        }
        // From another IP the kernel chooses the address, which is the socket's own.
        let local = origin.local.filter(|_| (by ^ corner) & 2 == 0);
        Some(Send::Answer(to, Origin { socket: origin.socket - corner + by, local }, bytes))
    }
}

/// Datagrams to one receiver, one behind the other.
#[derive(Clone, Copy)]
struct Run {
    to: SocketAddr,
    origin: Origin,
    ecn: Option<EcnCodepoint>,
    /// The length of each but perhaps the last.
    stride: usize,
    /// The last is not shorter.
    whole: bool,
}

enum Send {
    Forward(Run, Range<usize>),
    Answer(SocketAddr, Origin, Vec<u8>),
}

async fn receive(number: usize, sockets: Arc<Sockets>, relay: Option<Arc<RelayServer>>) {
    let socket = &sockets.all[number];
    let mut memory = vec![0; BATCH * BUFFER];
    let mut metas = [RecvMeta::default(); BATCH];
    let mut sends = Vec::new();
    loop {
        let received = socket.io.async_io(Interest::READABLE, || {
            let mut buffers = memory.chunks_exact_mut(BUFFER);
            let mut slices: [IoSliceMut<'_>; BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
            socket.state.recv((&socket.io).into(), &mut slices, &mut metas)
        });
        let Ok(count) = received.await else {
            // Usually an error about an earlier datagram that nobody received.
            tokio::time::sleep(ERROR_PAUSE).await;
            continue;
        };
        let batch = Batch { number, sockets: &sockets, relay: relay.as_deref() };
        batch.decide(&memory, &metas[..count], &mut sends);
        for send in sends.drain(..) {
            match send {
                Send::Forward(run, range) => sockets.send(batch.relay, &run, &memory[range]),
                Send::Answer(to, origin, answer) => {
                    let run = Run { to, origin, ecn: None, stride: answer.len(), whole: true };
                    // Answers get lost on the way as well, and clients ask again.
                    sockets.send(None, &run, &answer);
                }
            }
        }
    }
}

struct Batch<'a> {
    number: usize,
    sockets: &'a Sockets,
    relay: Option<&'a RelayServer>,
}

impl Batch<'_> {
    /// Decides about all datagrams of a batch, with the relay locked once.
    fn decide(&self, memory: &[u8], metas: &[RecvMeta], sends: &mut Vec<Send>) {
        let now = Instant::now();
        let mut hub = self.relay.map(RelayServer::lock);
        for (number, meta) in metas.iter().enumerate() {
            let origin = Origin { socket: self.number, local: meta.dst_ip };
            let end = number * BUFFER + meta.len.min(BUFFER);
            let mut at = number * BUFFER;
            while at < end {
                let range = at..end.min(at + meta.stride.max(1));
                at = range.end;
                let datagram = &memory[range.clone()];
                if is_stun(datagram) {
                    let answer = self.sockets.stun(meta.addr, origin, datagram);
                    let counter = if answer.is_some() { &self.sockets.stun_answers } else { &self.sockets.stun_drops };
                    counter.fetch_add(1, Ordering::Relaxed);
                    sends.extend(answer);
                    continue;
                }
                let (Some(relay), Some(hub)) = (self.relay, &mut hub) else { continue };
                match hub.decide(now, Source::Udp(meta.addr), Some(origin), datagram) {
                    Ok(Decision::Udp(to, origin)) => forward(sends, to, origin, meta.ecn, range),
                    Ok(Decision::Stream(stream)) => relay.queue(&stream, datagram),
                    Ok(Decision::Answer(answer, _)) => sends.push(Send::Answer(meta.addr, origin, answer)),
                    Err(reason) => relay.counters.dropped(reason),
                }
            }
        }
    }
}

/// Adds a datagram to the run before it, if it fits there.
fn forward(sends: &mut Vec<Send>, to: SocketAddr, origin: Origin, ecn: Option<EcnCodepoint>, range: Range<usize>) {
    if let Some(Send::Forward(run, before)) = sends.last_mut() {
        let same = (run.to, run.origin, run.ecn) == (to, origin, ecn) && before.end == range.start;
        if same && run.whole && range.len() <= run.stride {
            run.whole = range.len() == run.stride;
            before.end = range.end;
            return;
        }
    }
    let run = Run { to, origin, ecn, stride: range.len(), whole: true };
    sends.push(Send::Forward(run, range));
}
