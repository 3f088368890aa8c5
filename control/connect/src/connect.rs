//! A WebSocket to a coordinator or relay: name, TCP or proxy, TLS 1.3, upgrade. Every step has a time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use penstock_proto::coordination::SUBPROTOCOL;
use penstock_proto::coordination::limits::{COORDINATOR_MESSAGE_LIMIT, HANDSHAKE_TIMEOUT, SILENCE_LIMIT};
use rustls::ClientConfig;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self};

use crate::{ConnectError, HttpsUrl, Proxy};

/// How long resolving a name, and connecting, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much later the next address is tried too (RFC 8305, section 8: Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Most addresses of a name that are tried.
const ADDRESSES_LIMIT: usize = 16;

/// A connection, above TLS and WebSocket.
pub type Socket = WebSocketStream<TlsStream<Heard>>;

/// How a WebSocket is to be.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Its subprotocol.
    pub subprotocol: &'static str,
    /// Longest message, in bytes.
    pub message_limit: usize,
    /// After this long without an acknowledgement TCP gives up (tcp(7), TCP_USER_TIMEOUT).
    pub silence_limit: Duration,
}

impl Terms {
    /// A coordinator's.
    pub const COORDINATOR: Self =
        Self { subprotocol: SUBPROTOCOL, message_limit: COORDINATOR_MESSAGE_LIMIT, silence_limit: SILENCE_LIMIT };
}

/// Opens a WebSocket there. Must be called within a tokio runtime.
///
/// # Errors
/// Why there is none, in one sentence.
pub async fn open(
    url: &HttpsUrl,
    tls: Arc<ClientConfig>,
    proxy: &Proxy,
    terms: &Terms,
) -> Result<Socket, ConnectError> {
    let stream = reach(url, proxy).await?;
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

/// A TCP connection there, directly or through the proxy.
///
/// # Errors
/// Why there is none, in one sentence.
pub async fn reach(url: &HttpsUrl, proxy: &Proxy) -> Result<TcpStream, ConnectError> {
    let Some(hop) = proxy.hop(url)? else { return connect(url.host(), url.port()).await };
    let stream = connect(&hop.host, hop.port).await?;
    let answer = timeout(CONNECT_TIMEOUT, hop.connect(stream, url)).await;
    Ok(answer.map_err(|_| ConnectError::slow(format!("the proxy {hop}"), CONNECT_TIMEOUT))??)
}

/// Connects to the first address of the host that answers, of both families in turn (RFC 8305, section 5).
async fn connect(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let addresses = timeout(CONNECT_TIMEOUT, lookup_host((host, port))).await;
    let addresses = addresses.map_err(|_| ConnectError::slow(format!("resolving {host}"), CONNECT_TIMEOUT))?;
    let addresses = addresses.map_err(|error| ConnectError::Resolve { host: host.to_owned(), error })?;
    let mut attempts = JoinSet::new();
    for (delay, address) in in_turn(addresses).into_iter().enumerate() {
        attempts.spawn(async move {
            sleep(ATTEMPT_DELAY * delay as u32).await;
            TcpStream::connect(address).await
        });
    }
    let first = async {
        let mut failure = ConnectError::NoAddress { host: host.to_owned() };
        while let Some(outcome) = attempts.join_next().await {
            match outcome {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = ConnectError::Tcp { host: host.to_owned(), port, error },
                Err(gone) => std::panic::resume_unwind(gone.into_panic()),
            }
        }
        Err(failure)
    };
    let limit = CONNECT_TIMEOUT;
    timeout(limit, first).await.map_err(|_| ConnectError::slow(format!("connecting to {host}, port {port},"), limit))?
}

/// The families in turn, that of the first address first, as the resolver prefers.
fn in_turn(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.peekable();
    let first_is_v4 = addresses.peek().is_some_and(SocketAddr::is_ipv4);
    let (mut these, mut others): (VecDeque<_>, VecDeque<_>) =
        addresses.partition(|address| address.is_ipv4() == first_is_v4);
    let mut result = Vec::new();
    while result.len() < ADDRESSES_LIMIT && !(these.is_empty() && others.is_empty()) {
        result.extend(these.pop_front());
        result.extend(others.pop_front());
    }
    result
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

/// A TCP stream that knows when it last heard anything: a long message may be on its way for long.
#[derive(Debug)]
pub struct Heard {
    stream: TcpStream,
    at: Instant,
}

/// When anything last came in.
pub fn heard(socket: &Socket) -> Instant {
    socket.get_ref().get_ref().0.at
}

/// The TCP stream below.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let addresses = list(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(in_turn(addresses.into_iter()), list(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(in_turn(std::iter::empty()), []);
        let many = (0..100).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(in_turn(many).len(), ADDRESSES_LIMIT);
    }
}
