//! A relay's connection to the coordinator: proves its key and is told who may talk.
//!
//! Without the connection it goes on by what it was told last: a coordinator that is down takes nothing
//! away, and changes wait until it is back. A relay that knows the authority's key passes on what it has
//! [`Kept`], whatever the coordinator shows.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use penstock_connect::{Backoff, ConnectError, CoordinatorUrl, Outbound, Proxy, Socket, Terms};
use penstock_proto::coordination::limits::{HANDSHAKE_TIMEOUT, SILENCE_LIMIT};
use penstock_proto::coordination::{CoordinatorMessage, GatewayMessage, Hello, prove, prove_bound};
use penstock_proto::trust::Document;
use penstock_proto::{PublicKey, StaticSecret};
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::RelayServer;
use super::access::{FollowError, Follower};
use super::kept::Kept;

/// How long after a connection ended the next is tried, at first; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// The coordinator as the relay knows it.
pub struct Uplink {
    /// Where it is. The proof is for the host name.
    pub url: CoordinatorUrl,
    /// TLS to it, and so whom to take for it.
    pub tls: Arc<ClientConfig>,
    /// The relay's key.
    pub private_key: StaticSecret,
    /// What the authority has signed, if its key is known.
    pub kept: Option<Kept>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}")]
    WebSocket(Box<tokio_tungstenite::tungstenite::Error>),
    #[error("it refuses: {0}")]
    Refused(penstock_proto::coordination::Refusal),
    #[error("{0}")]
    Decode(#[from] penstock_proto::coordination::DecodeError),
    #[error("{0}")]
    Follow(#[from] FollowError),
    #[error("it has no sound key")]
    Unsound,
    #[error("it was silent for too long")]
    Silent,
    #[error("it closed the connection")]
    Closed,
    #[error("it takes this relay's key for a gateway's")]
    NoRelay,
}

impl From<tokio_tungstenite::tungstenite::Error> for End {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

impl Uplink {
    /// Keeps the relay to what the coordinator says, for ever.
    pub async fn run(mut self, relay: Arc<RelayServer>) {
        // So that not all relays come back at the same moment.
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        loop {
            match timeout(HANDSHAKE_TIMEOUT, self.connect()).await.unwrap_or(Err(End::Silent)) {
                Ok(socket) => {
                    tracing::info!("connected to the coordinator");
                    let end = self.follow(socket, Follower::new(relay.clone()), &mut backoff).await;
                    tracing::warn!("the coordinator is gone, the relay goes on by what it knows: {end}");
                }
                Err(end) => tracing::warn!("no connection to the coordinator: {end}"),
            }
            sleep(backoff.pause()).await;
        }
    }

    /// Connects and proves who we are.
    async fn connect(&self) -> Result<Socket, End> {
        let endpoint = self.url.endpoint();
        let mut socket =
            penstock_connect::open(endpoint, self.tls.clone(), &Outbound::new(Proxy::none(), 0), &Terms::COORDINATOR)
                .await?;
        let challenge = loop {
            match hear(&mut socket).await? {
                CoordinatorMessage::Challenge(challenge) => break challenge,
                CoordinatorMessage::Refused(refusal) => return Err(End::Refused(refusal)),
                _ => {}
            }
        };
        let proof = prove(&self.private_key, &challenge, endpoint.host()).map_err(|_| End::Unsound)?;
        let public_key = PublicKey::from(&self.private_key).into();
        let channel = penstock_connect::channel_binding(&socket);
        let bound = |channel| prove_bound(&self.private_key, &challenge, endpoint.host(), &channel).ok();
        let bound_proof = channel.and_then(bound);
        let hello = Hello { public_key, proof, subnets: Vec::new(), enrolment: None, known: None, bound_proof };
        socket.send(Message::text(GatewayMessage::Hello(hello).encode())).await?;
        Ok(socket)
    }

    /// Takes what the coordinator says until the connection ends.
    async fn follow(&mut self, mut socket: Socket, mut follower: Follower, backoff: &mut Backoff) -> End {
        self.pass_on(&follower, &[]);
        loop {
            match hear(&mut socket).await {
                Ok(CoordinatorMessage::Access(access)) => match follower.take(access) {
                    Ok(()) => backoff.reset(),
                    Err(error) => return error.into(),
                },
                Ok(CoordinatorMessage::Documents(more)) => self.pass_on(&follower, &more.documents),
                Ok(CoordinatorMessage::Refused(refusal)) => return End::Refused(refusal),
                Ok(CoordinatorMessage::Map(_) | CoordinatorMessage::Registration(_)) => return End::NoRelay,
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    }

    /// Has documents passed on: those that the coordinator shows, or the newest that the authority has signed.
    fn pass_on(&mut self, follower: &Follower, shown: &[Document]) {
        match &mut self.kept {
            Some(kept) => {
                kept.learn(shown);
                follower.pass_on(kept.documents());
            }
            None => follower.pass_on(shown),
        }
    }
}

/// The next message. Whoever is silent for longer than his pings are apart is gone.
async fn hear(socket: &mut Socket) -> Result<CoordinatorMessage, End> {
    loop {
        match timeout(SILENCE_LIMIT, socket.next()).await.map_err(|_| End::Silent)? {
            Some(Ok(Message::Text(text))) => return Ok(CoordinatorMessage::decode(&text)?),
            Some(Ok(Message::Close(_))) | None => return Err(End::Closed),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
}
