//! The path to a relay over TLS, against a small WebSocket server that sends every datagram back.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use penstock::coordinator::RelayStream;
use penstock_connect::{Destinations, Outbound, Proxy, Trust, fingerprint};
use penstock_proto::coordination::Fingerprint;
use penstock_proto::relay::SUBPROTOCOL;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::hop::{Hop, Manner};
use super::laboratory::{PATIENCE, eventually};

/// An echo at `/v1/relay`. Its connections end when it is dropped.
struct Echo {
    tasks: JoinSet<()>,
}

pub struct Certificate {
    pub config: Arc<ServerConfig>,
    pin: Fingerprint,
}

impl Certificate {
    pub fn new() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&pair).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(pair.serialize_der().into()))
            .unwrap();
        Self { config: Arc::new(config), pin: fingerprint(certificate.der()) }
    }

    pub fn pin(&self) -> Fingerprint {
        self.pin
    }

    pub fn trust(&self) -> Trust {
        Trust::Pinned(self.pin)
    }
}

impl Echo {
    async fn start(certificate: &Certificate, address: SocketAddr) -> (Self, SocketAddr) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = TlsAcceptor::from(certificate.config.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let tls = tls.clone();
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, check).await else { return };
                    while let Some(Ok(message)) = socket.next().await {
                        let answer = match message {
                            // Asks for a text message, to see that it is refused.
                            Message::Binary(bytes) if &bytes[..] == b"text" => Message::text("text"),
                            Message::Binary(bytes) => Message::Binary(bytes),
                            _ => continue,
                        };
                        if socket.send(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (Self { tasks }, address)
    }

    async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

#[expect(clippy::result_large_err)]
fn check(
    request: &Request,
    mut response: Response,
) -> Result<Response, tokio_tungstenite::tungstenite::handshake::server::ErrorResponse> {
    assert_eq!(request.uri().path(), "/v1/relay");
    let subprotocol = request.headers().get("Sec-WebSocket-Protocol").cloned();
    assert_eq!(subprotocol, Some(HeaderValue::from_static(SUBPROTOCOL)));
    response.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol.unwrap());
    Ok(response)
}

/// The tunnel's socket.
async fn tunnel() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

pub fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.expect("a datagram").unwrap();
    buffer.truncate(length);
    (buffer, from)
}

async fn up(stream: &RelayStream) {
    eventually("the relay is connected", || stream.is_up()).await;
}

fn open(certificate: &Certificate, address: SocketAddr, port: u16, proxy: Proxy) -> RelayStream {
    let url = format!("https://{address}/v1/relay");
    RelayStream::open_through(&url, certificate.trust(), port, Outbound::new(proxy, 0)).unwrap()
}

#[tokio::test]
async fn datagrams_go_and_come_as_they_are() {
    let certificate = Certificate::new();
    let (_echo, address) = Echo::start(&certificate, any_port()).await;
    let (tunnel, port) = tunnel().await;
    let stream = open(&certificate, address, port, Proxy::none());
    up(&stream).await;
    assert!(stream.address().ip().is_loopback());
    for length in [1, 32, 148, 1452, 1500, 9000] {
        let datagram: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        tunnel.send_to(&datagram, stream.address()).await.unwrap();
        let (back, from) = receive(&tunnel).await;
        assert_eq!((back, from), (datagram, stream.address()));
    }
    // A burst, in order: it is small enough for the kernel's buffers.
    for number in 0..200_u32 {
        tunnel.send_to(&number.to_be_bytes(), stream.address()).await.unwrap();
    }
    for number in 0..200_u32 {
        assert_eq!(receive(&tunnel).await.0, number.to_be_bytes());
    }

    // Neither strangers' datagrams nor long ones get through.
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    stranger.send_to(b"stranger", stream.address()).await.unwrap();
    tunnel.send_to(&[0; 9001], stream.address()).await.unwrap();
    tunnel.send_to(b"last", stream.address()).await.unwrap();
    assert_eq!(receive(&tunnel).await.0, b"last");
    assert_eq!(stream.dropped(), 1);
}

#[tokio::test]
async fn it_connects_again_and_counts_what_is_lost_meanwhile() {
    let certificate = Certificate::new();
    let (echo, address) = Echo::start(&certificate, any_port()).await;
    let (tunnel, port) = tunnel().await;
    let stream = open(&certificate, address, port, Proxy::none());
    up(&stream).await;
    echo.stop().await;
    eventually("the loss is seen", || !stream.is_up()).await;
    for _ in 0..5 {
        tunnel.send_to(b"lost", stream.address()).await.unwrap();
    }
    eventually("the loss is counted", || stream.dropped() == 5).await;
    let (_echo, _) = Echo::start(&certificate, address).await;
    stream.hurry();
    up(&stream).await;
    tunnel.send_to(b"again", stream.address()).await.unwrap();
    assert_eq!(receive(&tunnel).await.0, b"again");

    // A message that is not a datagram ends the connection, and it is made again.
    tunnel.send_to(b"text", stream.address()).await.unwrap();
    eventually("it is left", || !stream.is_up()).await;
    up(&stream).await;
}

#[tokio::test]
async fn a_tunnel_that_is_away_does_no_harm() {
    let certificate = Certificate::new();
    let (_echo, address) = Echo::start(&certificate, any_port()).await;
    let (first, port) = tunnel().await;
    let stream = open(&certificate, address, port, Proxy::none());
    up(&stream).await;
    for _ in 0..50 {
        first.send_to(b"and gone", stream.address()).await.unwrap();
    }
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let again = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    assert!(stream.is_up());
    again.send_to(b"back", stream.address()).await.unwrap();
    while receive(&again).await.0 != b"back" {}
}

#[tokio::test]
async fn it_goes_through_a_proxy_and_insists_on_the_pin() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let (_echo, address) = Echo::start(&certificate, any_port()).await;
    let (tunnel, port) = tunnel().await;
    let hop = Hop::start(Manner::Forward);
    let stream = open(&certificate, address, port, Proxy::new(&hop.url(), ""));
    up(&stream).await;
    tunnel.send_to(b"through", stream.address()).await.unwrap();
    assert_eq!(receive(&tunnel).await.0, b"through");
    assert_eq!(hop.requests().len(), 1);

    let stream = open(&other, address, port, Proxy::none());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!stream.is_up());
    let bad = RelayStream::open("http://127.0.0.1/", certificate.trust(), port, 0, Destinations::default());
    assert_eq!(bad.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

/// Both directions are full at the same time: neither may wait for the other.
#[tokio::test]
async fn both_directions_at_once_do_not_block() {
    let certificate = Certificate::new();
    let (_echo, address) = Echo::start(&certificate, any_port()).await;
    let (tunnel, port) = tunnel().await;
    let stream = open(&certificate, address, port, Proxy::none());
    up(&stream).await;
    let tunnel = Arc::new(tunnel);
    let sender = tunnel.clone();
    let destination = stream.address();
    let sending = tokio::spawn(async move {
        for _ in 0..20_000 {
            sender.send_to(&[7; 1400], destination).await.unwrap();
        }
    });
    let mut back = 0_u32;
    while timeout(Duration::from_secs(1), receive(&tunnel)).await.is_ok() {
        back += 1;
    }
    sending.await.unwrap();
    assert!(back > 1000, "{back}");
    assert!(stream.is_up());
    tunnel.send_to(b"alive", destination).await.unwrap();
    while receive(&tunnel).await.0 != b"alive" {}
}
