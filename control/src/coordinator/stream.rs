//! The path to a relay where UDP is blocked: datagrams in a WebSocket over TLS.
//!
//! ```text
//!   data plane, relay client                                          relay
//!   127.0.0.1:tunnel_port ◄─ UDP ─► 127.0.0.1:address() ─ frames ─► /v1/relay
//! ```
//! One binary frame is one datagram, unchanged. The tunnel sends to [`RelayStream::address`] as to any relay.
//! While the stream is down, and when the kernel's buffer is full, datagrams are lost, as on any path.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use penstock_connect::{Backoff, Destinations, HttpsUrl, Outbound, Proxy, Socket, Terms, Trust};
use penstock_proto::relay::{DATAGRAM_LIMIT, PATH, SUBPROTOCOL};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{self, Bytes, Message};

use super::connect;

/// The most datagrams that are written together.
const BATCH: usize = 64;
/// Buffer of the UDP socket: everything that waits for the relay, besides [`UNSENT_LIMIT`].
const SOCKET_BUFFER: usize = 1 << 20;
/// Bytes that TCP accepts before it can send them (tcp(7), TCP_NOTSENT_LOWAT): more would only grow old there.
const UNSENT_LIMIT: u32 = 128 << 10;
/// Pauses between two attempts: the first, and the longest, which bounds how long it takes to notice that a relay is
/// back.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
const HURRIED_PAUSE: Duration = Duration::from_millis(300);
/// A connection that lasted this long was a good one: pauses start again with the shortest.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How often the relay is pinged, and after how long a silence it is given up: sooner than a coordinator, since traffic
/// depends on it.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const SILENCE_LIMIT: Duration = Duration::from_secs(12);
/// The same after the network has changed.
const HURRIED_LIMIT: Duration = Duration::from_secs(3);
/// How long after an error the UDP socket is tried again.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// A relay behind a local UDP address. Reconnects by itself until it is dropped.
#[derive(Debug)]
pub struct RelayStream {
    address: SocketAddr,
    shared: Arc<Shared>,
    // Aborted when dropped.
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    up: AtomicBool,
    dropped: AtomicU64,
    hurry: Notify,
}

impl RelayStream {
    /// Opens a path from `127.0.0.1:tunnel_port`, and no other socket, to the relay at `url`, through the proxy that
    /// the environment asks for, with this firewall mark; notes its address. Returns before the relay is connected.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `url` is not an `https` URL, or the socket could not be made.
    pub fn open(url: &str, trust: Trust, tunnel_port: u16, mark: u32, destinations: Destinations) -> io::Result<Self> {
        let outbound = Outbound { destinations, ..Outbound::new(Proxy::of_environment(), mark) };
        Self::open_through(url, trust, tunnel_port, outbound)
    }

    /// As [`open`](Self::open), by way of `outbound`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_through(url: &str, trust: Trust, tunnel_port: u16, outbound: Outbound) -> io::Result<Self> {
        let url: HttpsUrl = url.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let url = url.with_default_path(PATH);
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        // From now on the kernel drops what others send.
        socket.connect((Ipv4Addr::LOCALHOST, tunnel_port))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        // The kernel may grant less.
        let _ = SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
        let socket = UdpSocket::from_std(socket)?;
        let shared = Arc::new(Shared::default());
        let mut task = JoinSet::new();
        let stream = Stream { url, trust, outbound, socket, shared: shared.clone() };
        task.spawn(stream.run());
        Ok(Self { address, shared, _task: task })
    }

    /// The address to which the tunnel sends to reach the relay.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the relay is connected.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.up.load(Relaxed)
    }

    /// Datagrams of the tunnel that were lost because the relay was not connected, or because they were too long.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// The network has changed: an existing connection is tested, a missing one tried soon.
    pub fn hurry(&self) {
        self.shared.hurry.notify_one();
    }
}

struct Stream {
    url: HttpsUrl,
    trust: Trust,
    outbound: Outbound,
    socket: UdpSocket,
    shared: Arc<Shared>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("it closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[from] tungstenite::Error),
    #[error("it was silent for too long")]
    Silent,
    #[error("it sent something other than datagrams")]
    Unexpected,
    #[error("the network has changed")]
    Hurried,
}

impl Stream {
    async fn run(self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut said = String::new();
        loop {
            let start = Instant::now();
            let why = match self.connect().await {
                Ok(socket) => {
                    tracing::info!("the relay {} is connected", self.url);
                    said.clear();
                    self.shared.up.store(true, Relaxed);
                    let Err(end) = self.exchange(socket).await;
                    self.shared.up.store(false, Relaxed);
                    if start.elapsed() >= GOOD_CONNECTION {
                        backoff.reset();
                    }
                    end.to_string()
                }
                Err(why) => why,
            };
            if said != why {
                tracing::warn!("the relay {} is not connected: {why}", self.url);
                said = why;
            }
            let pause = async {
                tokio::select! {
                    () = sleep(backoff.pause()) => {}
                    () = self.shared.hurry.notified() => sleep(HURRIED_PAUSE).await,
                }
            };
            self.dropping_meanwhile(pause).await;
        }
    }

    async fn connect(&self) -> Result<Socket, String> {
        let terms = Terms { subprotocol: SUBPROTOCOL, message_limit: DATAGRAM_LIMIT, silence_limit: SILENCE_LIMIT };
        let connect = async {
            tokio::select! {
                outcome = connect::open(&self.url, &self.trust, &self.outbound, &terms) => {
                    outcome.map_err(|error| error.to_string())
                }
                () = self.shared.hurry.notified() => Err(End::Hurried.to_string()),
            }
        };
        let socket = self.dropping_meanwhile(connect).await?;
        let _ = SockRef::from(penstock_connect::tcp(&socket)).set_tcp_notsent_lowat(UNSENT_LIMIT);
        Ok(socket)
    }

    /// Drops what the tunnel sends until the work is done.
    async fn dropping_meanwhile<T>(&self, work: impl Future<Output = T>) -> T {
        let drop_all = async {
            let mut buffer = [0; 1];
            loop {
                match self.socket.recv(&mut buffer).await {
                    Ok(_) => _ = self.shared.dropped.fetch_add(1, Relaxed),
                    // The tunnel's socket may not exist yet.
                    Err(_) => sleep(ERROR_PAUSE).await,
                }
            }
        };
        tokio::select! {
            outcome = work => outcome,
            never = drop_all => never,
        }
    }

    /// Both directions at the same time: neither waits for the other, or both ends might.
    async fn exchange(&self, socket: Socket) -> Result<std::convert::Infallible, End> {
        let start = Instant::now();
        let heard = AtomicU64::new(0);
        let (sink, stream) = socket.split();
        tokio::select! {
            end = self.to_relay(sink, start, &heard) => end,
            end = self.to_tunnel(stream, start, &heard) => end,
        }
    }

    async fn to_relay(
        &self,
        mut sink: SplitSink<Socket, Message>,
        start: Instant,
        heard: &AtomicU64,
    ) -> Result<std::convert::Infallible, End> {
        let mut buffer = vec![0; DATAGRAM_LIMIT + 1];
        let mut ping = Instant::now() + PING_INTERVAL;
        let mut limit = SILENCE_LIMIT;
        loop {
            tokio::select! {
                received = self.socket.recv(&mut buffer) => {
                    let mut next = received;
                    let mut written = 0;
                    // Everything that waits is written together, and flushed once. An error means that nothing waits,
                    // or that the tunnel's socket does not exist at the moment.
                    while let Ok(length) = next {
                        self.feed(&mut sink, &buffer[..length]).await?;
                        written += 1;
                        if written == BATCH {
                            break;
                        }
                        next = self.socket.try_recv(&mut buffer);
                    }
                    within(SILENCE_LIMIT, sink.flush()).await?;
                }
                () = sleep_until(ping.into()) => {
                    let last = start + Duration::from_millis(heard.load(Relaxed));
                    if last.elapsed() > limit {
                        return Err(End::Silent);
                    }
                    limit = SILENCE_LIMIT;
                    ping = Instant::now() + PING_INTERVAL;
                    within(SILENCE_LIMIT, sink.send(Message::Ping(Bytes::new()))).await?;
                }
                () = self.shared.hurry.notified() => {
                    limit = HURRIED_LIMIT;
                    ping = Instant::now() + HURRIED_LIMIT;
                    within(SILENCE_LIMIT, sink.send(Message::Ping(Bytes::new()))).await?;
                }
            }
        }
    }

    async fn feed(&self, sink: &mut SplitSink<Socket, Message>, datagram: &[u8]) -> Result<(), End> {
        if datagram.is_empty() || datagram.len() > DATAGRAM_LIMIT {
            self.shared.dropped.fetch_add(1, Relaxed);
            return Ok(());
        }
        within(SILENCE_LIMIT, sink.feed(Message::Binary(Bytes::copy_from_slice(datagram)))).await
    }

    async fn to_tunnel(
        &self,
        mut stream: SplitStream<Socket>,
        start: Instant,
        heard: &AtomicU64,
    ) -> Result<std::convert::Infallible, End> {
        loop {
            let message = stream.next().await.ok_or(End::Closed)??;
            heard.store(start.elapsed().as_millis() as u64, Relaxed);
            match message {
                Message::Binary(datagram) => {
                    // The tunnel's socket may not exist, or its buffer may be full.
                    if self.socket.send(&datagram).await.is_err() {
                        self.shared.dropped.fetch_add(1, Relaxed);
                    }
                }
                Message::Close(_) => return Err(End::Closed),
                Message::Text(_) => return Err(End::Unexpected),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

async fn within(limit: Duration, write: impl Future<Output = Result<(), tungstenite::Error>>) -> Result<(), End> {
    timeout(limit, write).await.map_err(|_| End::Silent)?.map_err(End::from)
}
