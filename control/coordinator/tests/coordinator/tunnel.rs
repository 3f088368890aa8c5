//! A site's WireGuard end at a relay, by UDP or by a stream: real handshakes, and data that is really sealed.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{SinkExt, StreamExt};
use penstock_proto::coordination::{Fingerprint, SiteKey};
use penstock_proto::relay::client::{Progress, RelayClient};
use penstock_proto::relay::{PATH, SUBPROTOCOL};
use penstock_proto::{Event, Gateway, PeerConfig, PeerId, PublicKey, SessionKeys, StaticSecret};
use rand::SeedableRng;
use rand::rngs::StdRng;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::client::{HOST, PATIENCE, encrypt};
use crate::running::Running;

/// How long to wait for a datagram that is not to arrive.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A way to a relay.
pub enum Link {
    Udp(UdpSocket),
    Stream(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

impl Link {
    pub async fn udp(relay: SocketAddr) -> Self {
        let any: SocketAddr = if relay.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { "[::1]:0".parse().unwrap() };
        let socket = UdpSocket::bind(any).await.unwrap();
        socket.connect(relay).await.unwrap();
        Self::Udp(socket)
    }

    pub async fn stream(address: SocketAddr, pin: Fingerprint) -> Self {
        let stream = encrypt(TcpStream::connect(address).await.unwrap(), pin, 0).await.unwrap();
        let mut request = format!("wss://{HOST}{PATH}").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", SUBPROTOCOL.parse().unwrap());
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        Self::Stream(Box::new(socket))
    }

    pub async fn send(&mut self, datagram: &[u8]) {
        match self {
            // A refusal that came back is about an earlier one.
            Self::Udp(socket) => _ = socket.send(datagram).await,
            Self::Stream(socket) => _ = socket.send(Message::binary(datagram.to_vec())).await,
        }
    }

    /// The next datagram; none if the way has ended, or nothing comes for this long.
    pub async fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let next = async {
            match self {
                Self::Udp(socket) => {
                    let mut buffer = vec![0; 65_535];
                    loop {
                        if let Ok(len) = socket.recv(&mut buffer).await {
                            return Some(buffer[..len].to_vec());
                        }
                    }
                }
                Self::Stream(socket) => loop {
                    match socket.next().await? {
                        Ok(Message::Binary(datagram)) => return Some(datagram.to_vec()),
                        Ok(Message::Close(_)) | Err(_) => return None,
                        Ok(_) => {}
                    }
                },
            }
        };
        timeout(patience, next).await.ok().flatten()
    }
}

/// One site at a relay.
pub struct Tunnel {
    pub link: Link,
    pub client: RelayClient,
    pub gateway: Gateway,
    session: Option<SessionKeys>,
    sent: u64,
}

impl Tunnel {
    pub fn new(private: &StaticSecret, relay: SiteKey, link: Link) -> Self {
        let client = RelayClient::new(Instant::now(), private, &relay.into()).unwrap();
        Self { link, client, gateway: gateway(private), session: None, sent: 0 }
    }

    /// Binds this site's source at the relay; none if the relay does not.
    pub async fn try_bind(&mut self) -> Option<Duration> {
        self.client.renew(Instant::now());
        for _ in 0..4 {
            let message = self.client.poll_transmit(Instant::now())?;
            self.link.send(&message).await;
            let answer = self.link.receive(SILENCE).await?;
            assert!(answer.len() < message.len(), "an amplifier");
            if let Some(Progress::Bound { round_trip }) = self.client.handle_datagram(Instant::now(), &answer) {
                return Some(round_trip);
            }
        }
        None
    }

    pub async fn bind(&mut self) {
        let start = Instant::now();
        // The relay hears of a site a moment after the site does.
        while self.try_bind().await.is_none() {
            assert!(start.elapsed() < PATIENCE, "never bound");
        }
    }

    pub fn peer(&mut self, key: SiteKey) -> PeerId {
        let key: PublicKey = key.into();
        self.gateway.peer_of(&key).unwrap_or_else(|| {
            let config = PeerConfig { endpoint: Some(([192, 0, 2, 1], 1).into()), ..PeerConfig::default() };
            self.gateway.add_peer(Instant::now(), key, config).unwrap()
        })
    }

    async fn flush(&mut self) {
        while let Some(event) = self.gateway.poll_event() {
            if let Event::SessionEstablished { session, .. } = event {
                (self.session, self.sent) = (Some(*session), 0);
            }
        }
        while let Some(transmit) = self.gateway.poll_transmit() {
            self.link.send(&transmit.contents).await;
        }
    }

    fn aead(key: &penstock_proto::Key) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes()).unwrap())
    }

    fn nonce(counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// A sealed packet with this many bytes of content.
    pub fn seal(&mut self, contents: &[u8]) -> Vec<u8> {
        let session = self.session.as_ref().expect("a session");
        let mut sealed = contents.to_vec();
        sealed.resize(sealed.len().next_multiple_of(16), 0);
        let key = Self::aead(&session.send);
        key.seal_in_place_append_tag(Self::nonce(self.sent), Aad::empty(), &mut sealed).unwrap();
        let head = [&[4, 0, 0, 0][..], &session.remote_index.to_le_bytes(), &self.sent.to_le_bytes()].concat();
        self.sent += 1;
        [head, sealed].concat()
    }

    /// Opens a packet of the session.
    pub fn open(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let session = self.session.as_ref()?;
        let counter = u64::from_le_bytes(*datagram.get(8..)?.first_chunk()?);
        (datagram[0] == 4 && datagram[4..8] == session.local_index.to_le_bytes()).then_some(())?;
        let mut body = datagram[16..].to_vec();
        let opened = Self::aead(&session.receive).open_in_place(Self::nonce(counter), Aad::empty(), &mut body);
        opened.ok().map(|opened| opened.to_vec())
    }

    /// Takes a handshake message, and answers it.
    async fn handle(&mut self, datagram: &[u8]) {
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        self.gateway.handle_datagram(Instant::now(), from, datagram).unwrap();
        self.flush().await;
    }
}

fn gateway(private: &StaticSecret) -> Gateway {
    Gateway::new(private.clone(), StdRng::from_os_rng(), Instant::now(), SystemTime::now())
}

/// A handshake from `a` to `b`; whether it came through.
pub async fn handshake(a: &mut Tunnel, b: &mut Tunnel) -> bool {
    for tunnel in [&mut *a, &mut *b] {
        // As after a restart: nothing is left of a handshake that went nowhere, which would be repeated later.
        tunnel.gateway = gateway(tunnel.gateway.private_key());
    }
    let key = |tunnel: &Tunnel| SiteKey::from(*tunnel.gateway.public_key());
    let peer = a.peer(key(b));
    b.peer(key(a));
    a.gateway.handle_wanted(Instant::now(), peer);
    a.flush().await;
    let Some(initiation) = b.link.receive(SILENCE).await else { return false };
    b.handle(&initiation).await;
    let Some(response) = a.link.receive(SILENCE).await else { return false };
    a.handle(&response).await;
    true
}

/// Sends `contents` and tells whether they came out at the other end.
pub async fn passes(from: &mut Tunnel, to: &mut Tunnel, contents: &[u8]) -> bool {
    let datagram = from.seal(contents);
    from.link.send(&datagram).await;
    let Some(came) = to.link.receive(SILENCE).await else { return false };
    assert_eq!(came, datagram, "not a byte is changed");
    to.open(&came).is_some_and(|opened| opened.starts_with(contents))
}

impl Running {
    /// An enrolled site that may bind itself, by UDP or by a stream.
    pub async fn tunnel(&self, name: &str, udp: bool) -> Tunnel {
        let (site, connection) = self.site(name, &[], &[]).await;
        let relay = connection.map.as_ref().unwrap().relays[0].public_key;
        self.tunnel_of(&site.private, relay, udp).await
    }

    pub async fn tunnel_of(&self, private: &StaticSecret, relay: SiteKey, udp: bool) -> Tunnel {
        let link = if udp { Link::udp(self.udp).await } else { Link::stream(self.address, self.pin).await };
        Tunnel::new(private, relay, link)
    }
}
