//! A relay's connection to the coordinator: proves its key and is told who may talk.
//!
//! Without the connection the relay continues with its [`Snapshot`], after a restart too: while the
//! coordinator is down, nothing is lost, and changes wait until it is back. A relay that knows the authority's key
//! passes on what it has [`Kept`], whatever the coordinator shows.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use penstock_connect::{Backoff, ConnectError, CoordinatorUrl, Outbound, Proxy, Socket, Terms};
use penstock_proto::coordination::limits::{HANDSHAKE_TIMEOUT, SILENCE_LIMIT};
use penstock_proto::coordination::{CoordinatorMessage, GatewayMessage, Hello, RefusalReason, prove, prove_bound};
use penstock_proto::trust::Document;
use penstock_proto::{PublicKey, StaticSecret};
use rustls::ClientConfig;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::RelayServer;
use super::access::{FollowError, Follower, is_common};
use super::kept::Kept;
use super::snapshot::{Snapshot, SnapshotFile};

/// The first pause between the end of a connection and the next attempt; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// The coordinator as the relay knows it.
pub struct Uplink {
    /// Where it is. The proof is for the host name.
    pub url: CoordinatorUrl,
    /// The TLS configuration for it, and so which certificates are accepted.
    pub tls: Arc<ClientConfig>,
    /// The relay's key.
    pub private_key: StaticSecret,
    /// What the authority has signed, if its key is known.
    pub kept: Option<Kept>,
    /// Otherwise, what the coordinator showed last.
    pub shown: Vec<Document>,
    /// What the coordinator told last, for the next start.
    pub file: SnapshotFile,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Connect(Box<ConnectError>),
    #[error("{0}")]
    WebSocket(Box<tokio_tungstenite::tungstenite::Error>),
    #[error("it refuses: {0}")]
    Refused(penstock_proto::coordination::Refusal),
    #[error("{0}")]
    Decode(#[from] penstock_proto::coordination::DecodeError),
    #[error("{0}")]
    Follow(#[from] FollowError),
    #[error("it has no valid key")]
    Unsound,
    #[error("it was silent for too long")]
    Silent,
    #[error("it closed the connection")]
    Closed,
    #[error("it takes this relay's key for a gateway's")]
    NoRelay,
    #[error("it does not know this relay: name the relay's public key in the coordinator's configuration")]
    Unknown,
}

impl From<ConnectError> for End {
    fn from(error: ConnectError) -> Self {
        Self::Connect(Box::new(error))
    }
}

impl From<tokio_tungstenite::tungstenite::Error> for End {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

impl Uplink {
    /// Gives the relay what the coordinator told it before the restart, if that was stored.
    pub fn recall(&mut self, relay: &Arc<RelayServer>) {
        let mut follower = Follower::new(relay.clone());
        match self.file.read() {
            Ok(None) => {}
            Ok(Some(Snapshot { documents, access })) => {
                self.shown = documents;
                match access.into_iter().try_for_each(|part| follower.take(part)) {
                    Ok(()) => tracing::info!("sites known from before the start: {}", relay.count().0),
                    Err(error) => tracing::warn!("{}: {error}", self.file.path().display()),
                }
            }
            Err(error) => {
                let path = self.file.path().display();
                tracing::warn!("{path}: {error}: no site is known until the coordinator is reached");
            }
        }
        self.pass_on(&follower);
    }

    /// Keeps the relay up to date with the coordinator, connecting again whenever the connection ends.
    pub async fn run(mut self, relay: Arc<RelayServer>) {
        // Keeps relays from all coming back at the same moment.
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        loop {
            match timeout(HANDSHAKE_TIMEOUT, self.connect()).await.unwrap_or(Err(End::Silent)) {
                Ok(socket) => {
                    tracing::info!("connected to the coordinator");
                    let end = self.follow(socket, Follower::new(relay.clone()), &mut backoff).await;
                    tracing::warn!("no connection to the coordinator, the relay continues with what it knows: {end}");
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
            match receive(&mut socket).await? {
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
        let mut unwritten = false;
        loop {
            let heard = tokio::select! {
                biased;
                received = receive(&mut socket) => received,
                // Nothing more has come yet.
                () = ready(()), if unwritten => {
                    self.store(&follower).await;
                    unwritten = false;
                    continue;
                }
            };
            match heard.and_then(|message| self.take(message, &mut follower)) {
                Ok(()) => unwritten = follower.is_whole(),
                Err(end) => {
                    // An invalid change may have been made in part.
                    if follower.is_whole() {
                        self.store(&follower).await;
                    }
                    return end;
                }
            }
            if unwritten {
                backoff.reset();
            }
        }
    }

    fn take(&mut self, message: CoordinatorMessage, follower: &mut Follower) -> Result<(), End> {
        match message {
            CoordinatorMessage::Access(access) => follower.take(access)?,
            CoordinatorMessage::Documents(more) => {
                match &mut self.kept {
                    Some(kept) => kept.learn(&more.documents),
                    // They come in one message, ahead of the statements of relays, which may take another.
                    None if more.documents.iter().any(is_common) => self.shown = more.documents,
                    None => {}
                }
                self.pass_on(follower);
            }
            CoordinatorMessage::Refused(refusal) if refusal.reason == RefusalReason::NotEnrolled => {
                return Err(End::Unknown);
            }
            CoordinatorMessage::Refused(refusal) => return Err(End::Refused(refusal)),
            CoordinatorMessage::Map(_) | CoordinatorMessage::Registration(_) => return Err(End::NoRelay),
            _ => {}
        }
        Ok(())
    }

    /// Has documents passed on: the newest that the authority has signed, or those that the coordinator showed.
    fn pass_on(&self, follower: &Follower) {
        match &self.kept {
            Some(kept) => follower.pass_on(kept.documents()),
            None => follower.pass_on(&self.shown),
        }
    }

    /// Keeps what was told for the next start.
    async fn store(&self, follower: &Follower) {
        let (file, follower, documents) = (self.file.clone(), follower.clone(), self.shown.clone());
        // Writing all of a large overlay to a slow disk may take a second.
        let write = move || file.write(&Snapshot { documents, access: follower.whole() });
        let written = tokio::task::spawn_blocking(write).await;
        if let Err(error) = written.map_err(std::io::Error::other).flatten() {
            let path = self.file.path().display();
            tracing::error!("{path}: {error}: after a restart the relay needs the coordinator before it knows a site");
        }
    }
}

/// The next message. A coordinator that is silent for longer than [`SILENCE_LIMIT`] is gone.
async fn receive(socket: &mut Socket) -> Result<CoordinatorMessage, End> {
    loop {
        match timeout(SILENCE_LIMIT, socket.next()).await.map_err(|_| End::Silent)? {
            Some(Ok(Message::Text(text))) => return Ok(CoordinatorMessage::decode(&text)?),
            Some(Ok(Message::Close(_))) | None => return Err(End::Closed),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
}
