//! A gateway's side of the protocol: its key, its pin, its connection, its map.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, SinkExt, StreamExt};
use ipnet::IpNet;
use penstock_connect::Trust;
use penstock_proto::coordination::{
    Candidate, CandidateKind, Challenge, ChannelBinding, CoordinatorMessage, Documents, EXPORTER_LABEL, Enrolment,
    EnrolmentKey, Fingerprint, GatewayMessage, Hello, Known, Map, PATH, Proof, Reachability, RefusalReason,
    Registration, RegistrationState, SUBPROTOCOL, SiteKey, prove, prove_bound,
};
use penstock_proto::trust::{AuthorityKey, Contents, Document, Now, State, Verifier};
use penstock_proto::{PublicKey, StaticSecret, generate_private_key};
use rustls::ClientConfig;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// The host name in all tests; the address is given beside it.
pub const HOST: &str = "coordinator.test";
/// Longer than anything takes here, so that only what never comes exceeds it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A site that may connect.
pub struct Gateway {
    pub private: StaticSecret,
    pub key: SiteKey,
    pub name: String,
    pub subnets: Vec<IpNet>,
    pub enrolment: Option<EnrolmentKey>,
    /// The map that it kept from before.
    pub map: Option<Map>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// Before the first message: TCP, TLS or HTTP.
    Before(String),
    /// The coordinator said why.
    Refused(RefusalReason),
    /// The connection ended without a message.
    Ended,
    /// Nothing came in time.
    Silence,
}

/// An authenticated connection, and what came over it.
pub struct Connection {
    pub socket: WebSocketStream<TlsStream<TcpStream>>,
    pub registration: Option<Registration>,
    pub map: Option<Map>,
    pub maps: usize,
    pub updates: usize,
    /// All signed documents.
    pub documents: Vec<Document>,
    stated: BTreeSet<SiteKey>,
    leased: BTreeSet<SiteKey>,
    /// All that was said, as it was said.
    pub texts: Vec<String>,
}

impl Gateway {
    pub fn new(name: &str, subnets: &[&str]) -> Self {
        let private = generate_private_key(&mut rand::rng());
        Self {
            key: PublicKey::from(&private).into(),
            private,
            name: name.into(),
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            enrolment: None,
            map: None,
        }
    }

    pub fn with_key(mut self, key: &EnrolmentKey) -> Self {
        self.enrolment = Some(key.clone());
        self
    }

    pub fn hello(&self, proof: Proof) -> Hello {
        let enrolment = self.enrolment.clone().map(|key| Enrolment { key, name: self.name.parse().unwrap() });
        let known: Option<Known> = self.map.as_ref().map(Map::known);
        Hello { public_key: self.key, proof, subnets: self.subnets.clone(), enrolment, known, bound_proof: None }
    }

    /// Connects as an up-to-date gateway does, directly or through something that ends TLS and passes on what is said.
    pub async fn connect_bound(
        &self,
        through: bool,
        address: SocketAddr,
        pin: Fingerprint,
    ) -> Result<Connection, Failure> {
        let (mut connection, challenge) = challenged(address, pin).await?;
        let (_, tls) = connection.socket.get_ref().get_ref();
        let mut channel = tls.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).unwrap();
        channel[0] ^= u8::from(through);
        let bound_proof = prove_bound(&self.private, &challenge, HOST, &ChannelBinding(channel)).ok();
        let proof = prove(&self.private, &challenge, HOST).unwrap();
        connection.send(&GatewayMessage::Hello(Hello { bound_proof, ..self.hello(proof) })).await;
        connection.next().await?;
        Ok(connection)
    }

    /// Connects, and waits for the first answer.
    pub async fn connect(&self, address: SocketAddr, pin: Fingerprint) -> Result<Connection, Failure> {
        let (mut connection, challenge) = challenged(address, pin).await?;
        let proof = prove(&self.private, &challenge, HOST).unwrap();
        connection.map = self.map.clone();
        connection.send(&GatewayMessage::Hello(self.hello(proof))).await;
        connection.next().await?;
        Ok(connection)
    }
}

/// Connects, up to the challenge.
pub async fn challenged(address: SocketAddr, pin: Fingerprint) -> Result<(Connection, Challenge), Failure> {
    let stream = TcpStream::connect(address).await.map_err(before)?;
    let socket = upgrade(encrypt(stream, pin, 0).await?, HOST).await?;
    challenge(socket).await
}

pub async fn challenge(socket: WebSocketStream<TlsStream<TcpStream>>) -> Result<(Connection, Challenge), Failure> {
    let mut connection = Connection {
        socket,
        registration: None,
        map: None,
        maps: 0,
        updates: 0,
        documents: Vec::new(),
        stated: BTreeSet::new(),
        leased: BTreeSet::new(),
        texts: Vec::new(),
    };
    match connection.next().await? {
        CoordinatorMessage::Challenge(challenge) => Ok((connection, challenge)),
        other => panic!("no challenge but {other:?}"),
    }
}

/// A TCP connection from one of our own addresses.
pub async fn from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(address).await.unwrap()
}

/// TLS by a client whose clock is wrong by this many seconds.
pub async fn encrypt(stream: TcpStream, pin: Fingerprint, clock: i64) -> Result<TlsStream<TcpStream>, Failure> {
    let mut config = ClientConfig::clone(&*Trust::Pinned(pin).client_config().unwrap());
    config.time_provider = Arc::new(Clock(clock));
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::try_from(HOST).unwrap(), stream).await.map_err(before)
}

pub async fn upgrade(
    stream: TlsStream<TcpStream>,
    host: &str,
) -> Result<WebSocketStream<TlsStream<TcpStream>>, Failure> {
    let mut request = format!("wss://{host}{PATH}").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", SUBPROTOCOL.parse().unwrap());
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(before)?;
    Ok(socket)
}

fn before(error: impl ToString) -> Failure {
    Failure::Before(error.to_string())
}

impl Connection {
    pub async fn send(&mut self, message: &GatewayMessage) {
        self.say_text(&message.encode()).await;
    }

    pub async fn say_text(&mut self, text: &str) {
        // An error shows when the answer is read.
        let _ = self.socket.send(Message::text(text)).await;
    }

    pub async fn say_address(&mut self, address: &str) {
        let candidate = Candidate { kind: CandidateKind::Host, address: address.parse().unwrap() };
        let reachability = Reachability { candidates: vec![candidate], ..Reachability::default() };
        self.send(&GatewayMessage::Reachability(reachability)).await;
    }

    /// The next message, taken into account.
    pub async fn next(&mut self) -> Result<CoordinatorMessage, Failure> {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.map_err(|_| Failure::Silence)?;
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Failure::Ended),
                Some(Ok(_)) => continue,
            };
            self.texts.push(text.to_string());
            let message = CoordinatorMessage::decode(&text).unwrap();
            match &message {
                CoordinatorMessage::Refused(refusal) => {
                    return Err(Failure::Refused(refusal.reason));
                }
                CoordinatorMessage::Registration(registration) => self.registration = Some(registration.clone()),
                CoordinatorMessage::Map(map) => {
                    self.are_vouched_for(map.peers.keys());
                    self.maps += 1;
                    self.map = Some(map.clone());
                }
                CoordinatorMessage::Update(update) => {
                    self.are_vouched_for(update.upsert.keys());
                    self.updates += 1;
                    self.map.as_mut().expect("an update without a map").apply(update.clone()).unwrap();
                }
                CoordinatorMessage::Documents(Documents { documents }) => {
                    for document in documents {
                        match document.contents() {
                            Contents::Site(statement) => drop(self.stated.insert(statement.grant.public_key)),
                            Contents::Lease(lease) => drop(self.leased.insert(lease.site)),
                            _ => {}
                        }
                    }
                    self.documents.extend(documents.iter().cloned());
                }
                CoordinatorMessage::Challenge(_)
                | CoordinatorMessage::Access(_)
                | CoordinatorMessage::Reports(_)
                | CoordinatorMessage::Unknown => {}
            }
            return Ok(message);
        }
    }

    /// Takes what has come already.
    pub async fn next_now(&mut self) -> Result<(), Failure> {
        while let Some(outcome) = self.next().now_or_never() {
            outcome?;
        }
        Ok(())
    }

    /// Reads until the condition holds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            if let Err(failure) = self.next().await {
                panic!("waiting until {what}: {failure:?}, with {:?} and {:?}", self.registration, self.map);
            }
        }
    }

    /// Reads until the connection ends; says how.
    pub async fn end(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.next().await {
                return failure;
            }
        }
    }

    /// Reads until the names of the peers are these.
    pub async fn until_peers(&mut self, names: &[&str]) {
        self.until(&format!("the peers are {names:?}"), |connection| {
            connection.map.is_some() && connection.peers() == names
        })
        .await;
    }

    /// Checks that nothing is said for a while except signed documents that concern everybody.
    pub async fn stays_silent(&mut self) {
        let silence = async {
            loop {
                let said = self.next().await;
                if !matches!(said, Ok(CoordinatorMessage::Documents(_))) {
                    return said;
                }
            }
        };
        let said = timeout(Duration::from_millis(600), silence).await;
        assert!(said.is_err(), "{said:?}");
    }

    /// What the coordinator showed and the authority has signed, as a gateway understands it. None of it may be
    /// wrong.
    pub fn verifier(&self, own: SiteKey, authority: AuthorityKey) -> Verifier {
        let now = Now { instant: std::time::Instant::now(), wall: SystemTime::now().into() };
        let mut verifier = Verifier::new(now.instant, own, State::new(authority));
        for document in &self.documents {
            assert_eq!(verifier.learn(now, [document]).refused, [], "{document:?}");
        }
        verifier
    }

    /// Whom a gateway believes to be a peer, in order of their names, each with what may be routed to it.
    pub fn admitted(&self, own: SiteKey, authority: AuthorityKey) -> Vec<(String, Vec<IpNet>)> {
        let now = Now { instant: std::time::Instant::now(), wall: SystemTime::now().into() };
        let map = self.map.as_ref().expect("there is a map");
        let admission = self.verifier(own, authority).admit(now, &map.peers);
        assert_eq!(admission.refused, [].into());
        assert_eq!(admission.prefixes, []);
        let mut admitted: Vec<_> =
            admission.peers.into_values().map(|peer| (peer.name.to_string(), peer.prefixes)).collect();
        admitted.sort();
        admitted
    }

    /// Checks that a statement and a lease of each new peer came before it.
    fn are_vouched_for<'a>(&self, peers: impl Iterator<Item = &'a SiteKey>) {
        for peer in peers {
            assert!(self.stated.contains(peer) && self.leased.contains(peer), "nobody vouches for {peer}");
        }
    }

    /// The names of the peers, in order.
    pub fn peers(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.map.iter().flat_map(|map| map.peers.values()).map(|peer| peer.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// The addresses of a peer.
    pub fn addresses(&self, key: &SiteKey) -> Vec<String> {
        let peer = self.map.as_ref().and_then(|map| map.peers.get(key));
        let candidates = peer.and_then(|peer| peer.reachability.as_ref()).map(|reachability| &reachability.candidates);
        candidates.into_iter().flatten().map(|candidate| candidate.address.to_string()).collect()
    }

    pub fn state(&self) -> RegistrationState {
        self.registration.as_ref().expect("no registration yet").state
    }
}

impl Failure {
    pub fn reason(&self) -> RefusalReason {
        match self {
            Self::Refused(reason) => *reason,
            other => panic!("not refused but {other:?}"),
        }
    }
}

/// Why `connect` was refused; panics if it was not.
pub fn refusal(outcome: Result<Connection, Failure>) -> RefusalReason {
    match outcome {
        Ok(connection) => panic!("let in: {:?}", connection.registration),
        Err(failure) => failure.reason(),
    }
}

#[derive(Debug)]
struct Clock(i64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().checked_add_signed(self.0).unwrap())))
    }
}
