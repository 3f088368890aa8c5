//! A WebSocket to a coordinator or relay: name, TCP or proxy, TLS 1.3, upgrade. Every step has a time limit.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use penstock_proto::coordination::limits::{COORDINATOR_MESSAGE_LIMIT, HANDSHAKE_TIMEOUT, SILENCE_LIMIT};
use penstock_proto::coordination::{ChannelBinding, EXPORTER_LABEL, SUBPROTOCOL};
use rustls::ClientConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self};

use crate::mark::connect_tcp;
use crate::{ConnectError, HttpsUrl, Outbound};

/// How long connecting may take, all addresses together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much later the next address is tried as well (RFC 8305, section 8: Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A connection, with TLS and WebSocket set up.
pub type Socket = WebSocketStream<TlsStream<Heard>>;

/// The channel binding of the connection's TLS: both ends know it and neither can choose it. `None` only if TLS is not
/// 1.3, or cannot export it.
#[must_use]
pub fn channel_binding(socket: &Socket) -> Option<ChannelBinding> {
    let (_, tls) = socket.get_ref().get_ref();
    tls.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).ok().map(ChannelBinding)
}

/// Parameters of a WebSocket.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Its subprotocol.
    pub subprotocol: &'static str,
    /// Longest message, in bytes.
    pub message_limit: usize,
    /// How long sent data may stay unacknowledged before TCP gives up (tcp(7), TCP_USER_TIMEOUT).
    pub silence_limit: Duration,
}

impl Terms {
    /// For a coordinator.
    pub const COORDINATOR: Self =
        Self { subprotocol: SUBPROTOCOL, message_limit: COORDINATOR_MESSAGE_LIMIT, silence_limit: SILENCE_LIMIT };
}

/// Opens a WebSocket to this URL. Must be called within a tokio runtime.
///
/// # Errors
/// Why it failed, in one sentence.
pub async fn open(
    url: &HttpsUrl,
    tls: Arc<ClientConfig>,
    outbound: &Outbound,
    terms: &Terms,
) -> Result<Socket, ConnectError> {
    let stream = reach(url, outbound).await?;
    // Messages are written whole; waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(terms.silence_limit));
    let host = || url.host().to_owned();
    let stream = Heard { stream, at: Instant::now() };
    let tls = TlsConnector::from(tls).connect(url.server_name(), stream);
    let tls = timeout(HANDSHAKE_TIMEOUT, tls).await.map_err(|_| ConnectError::slow(host(), HANDSHAKE_TIMEOUT))?;
    let tls = tls.map_err(|error| ConnectError::tls(host(), error))?;
    let socket = timeout(HANDSHAKE_TIMEOUT, upgrade(url, tls, terms)).await;
    socket.map_err(|_| ConnectError::slow(host(), HANDSHAKE_TIMEOUT))?
}

/// A TCP connection to this URL's host, directly or through the proxy.
///
/// # Errors
/// Why it failed, in one sentence.
pub async fn reach(url: &HttpsUrl, outbound: &Outbound) -> Result<TcpStream, ConnectError> {
    let Some(hop) = outbound.proxy.hop(url)? else { return connect(url.host(), url.port(), outbound).await };
    let stream = connect(&hop.host, hop.port, outbound).await?;
    let answer = timeout(CONNECT_TIMEOUT, hop.connect(stream, url)).await;
    Ok(answer.map_err(|_| ConnectError::slow(format!("the proxy {hop}"), CONNECT_TIMEOUT))??)
}

/// Connects to the first address of the host that answers; the next is tried as well when one fails or takes long (RFC
/// 8305, section 5).
async fn connect(host: &str, port: u16, outbound: &Outbound) -> Result<TcpStream, ConnectError> {
    let answer = outbound.names.resolve(host, outbound.mark).await;
    let answer = answer.map_err(|error| ConnectError::Resolve { host: host.to_owned(), error })?;
    outbound.destinations.note(host, &answer.addresses);
    let limit = CONNECT_TIMEOUT;
    match timeout(limit, connect_to_one(answer.addresses, port, outbound.mark)).await {
        Ok(outcome) => outcome.map_err(|error| ConnectError::Tcp { host: host.to_owned(), port, error }),
        Err(_) => Err(ConnectError::slow(format!("connecting to {host}, port {port},"), limit)),
    }
}

async fn connect_to_one(addresses: Vec<IpAddr>, port: u16, mark: u32) -> io::Result<TcpStream> {
    let mut left = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failure = io::ErrorKind::AddrNotAvailable.into();
    loop {
        if let Some(address) = left.next() {
            attempts.spawn(connect_tcp(SocketAddr::new(address, port), mark));
        }
        tokio::select! {
            outcome = attempts.join_next() => match outcome {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failure = error,
                Some(Err(gone)) => std::panic::resume_unwind(gone.into_panic()),
                None => return Err(failure),
            },
            () = sleep(ATTEMPT_DELAY), if left.len() > 0 => {}
        }
    }
}

async fn upgrade(url: &HttpsUrl, tls: TlsStream<Heard>, terms: &Terms) -> Result<Socket, ConnectError> {
    let host = || url.host().to_owned();
    let address = format!("wss://{}{}", url.authority(), url.path());
    let failed = |error| match error {
        tungstenite::Error::Http(response) if response.status() == StatusCode::MISDIRECTED_REQUEST => {
            ConnectError::Misdirected { host: host() }
        }
        tungstenite::Error::Http(response) => ConnectError::Status { host: host(), status: response.status() },
        tungstenite::Error::Protocol(error) => ConnectError::Protocol { host: host(), error },
        error => ConnectError::Upgrade { host: host(), error: Box::new(error) },
    };
    let mut request = address.into_client_request().map_err(failed)?;
    let subprotocol = HeaderValue::from_static(terms.subprotocol);
    request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol);
    let config = WebSocketConfig::default()
        .max_message_size(Some(terms.message_limit))
        .max_frame_size(Some(terms.message_limit));
    let upgraded = tokio_tungstenite::client_async_with_config(request, tls, Some(config)).await;
    upgraded.map(|(socket, _)| socket).map_err(failed)
}

/// A TCP stream that remembers when it last received anything, since a long message may take long to arrive.
#[derive(Debug)]
pub struct Heard {
    stream: TcpStream,
    at: Instant,
}

/// When anything was last received.
pub fn heard(socket: &Socket) -> Instant {
    socket.get_ref().get_ref().0.at
}

/// The TCP stream underneath.
pub fn tcp(socket: &Socket) -> &TcpStream {
    &socket.get_ref().get_ref().0.stream
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.at = Instant::now();
        }
        outcome
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
