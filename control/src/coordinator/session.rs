//! One connection to the coordinator: the proof of our identity, and messages.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use ipnet::IpNet;
use penstock_connect::{CoordinatorUrl, Outbound, Socket, Terms, Trust, channel_binding};
use penstock_proto::coordination::limits::HANDSHAKE_TIMEOUT;
use penstock_proto::coordination::{
    CoordinatorMessage, DecodeError, Enrolment, GatewayMessage, Hello, Known, Refusal, Registration, prove, prove_bound,
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};

use super::connect::{self, OpenError};
use crate::key::PrivateKey;

/// How long a message may take to be written. Ours are short.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Our identity, and the coordinator's.
pub(super) struct Identity<'a> {
    pub url: &'a CoordinatorUrl,
    pub trust: &'a Trust,
    pub outbound: &'a Outbound,
    pub private_key: &'a PrivateKey,
    pub subnets: &'a [IpNet],
}

/// A connection that the coordinator has accepted.
pub(super) struct Session {
    socket: Socket,
}

/// Why a connection ended, or was never made.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Connect(#[from] OpenError),
    #[error("the coordinator closed the connection")]
    Closed,
    #[error("the connection to the coordinator broke: {0}")]
    Broken(Box<tungstenite::Error>),
    #[error("the coordinator was silent for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the network changed while the coordinator was being connected")]
    Hurried,
    #[error("the coordinator sent {0}")]
    Malformed(DecodeError),
    #[error("the coordinator sent an unexpected message: {0}")]
    Unexpected(&'static str),
}

impl From<tungstenite::Error> for End {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::Closed,
            error => Self::Broken(Box::new(error)),
        }
    }
}

impl Session {
    /// Connects, and proves our identity.
    ///
    /// # Errors
    /// Why we are not accepted.
    pub async fn open(
        identity: Identity<'_>,
        enrolment: Option<Enrolment>,
        known: Option<Known>,
    ) -> Result<(Self, Registration), End> {
        let endpoint = identity.url.endpoint();
        let socket = connect::open(endpoint, identity.trust, identity.outbound, &Terms::COORDINATOR).await?;
        let mut session = Self { socket };
        let CoordinatorMessage::Challenge(challenge) = session.answer().await? else {
            return Err(End::Unexpected("the first is not a challenge"));
        };
        let private = identity.private_key.to_secret();
        let proof = prove(&private, &challenge, endpoint.host());
        let hello = Hello {
            public_key: identity.private_key.public_key().as_bytes().to_owned().into(),
            proof: proof.map_err(|_| End::Unexpected("a challenge of low order"))?,
            subnets: identity.subnets.to_vec(),
            enrolment,
            known,
            bound_proof: channel_binding(&session.socket)
                .and_then(|channel| prove_bound(&private, &challenge, endpoint.host(), &channel).ok()),
        };
        session.send(&GatewayMessage::Hello(hello)).await?;
        match session.answer().await? {
            CoordinatorMessage::Registration(registration) => Ok((session, registration)),
            CoordinatorMessage::Refused(refusal) => Err(End::Refused(refusal)),
            _ => Err(End::Unexpected("not a registration after the proof")),
        }
    }

    /// The next message of the handshake, which must come soon.
    async fn answer(&mut self) -> Result<CoordinatorMessage, End> {
        loop {
            match timeout(HANDSHAKE_TIMEOUT, self.receive()).await {
                Ok(Ok(CoordinatorMessage::Unknown)) => {}
                Ok(outcome) => return outcome,
                Err(_) => return Err(End::Silent(HANDSHAKE_TIMEOUT)),
            }
        }
    }

    /// The next message. Nothing is lost if this is cancelled.
    pub async fn receive(&mut self) -> Result<CoordinatorMessage, End> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) => return Err(End::Closed),
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(Message::Text(text))) => return CoordinatorMessage::decode(&text).map_err(End::Malformed),
                Some(Ok(Message::Binary(_))) => return Err(End::Unexpected("bytes instead of text")),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            }
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &GatewayMessage) -> Result<(), End> {
        self.send_frame(Message::text(message.encode())).await
    }

    /// Sends a WebSocket ping.
    pub async fn ping(&mut self) -> Result<(), End> {
        self.send_frame(Message::Ping(tungstenite::Bytes::new())).await
    }

    /// When anything was last received.
    pub fn heard(&self) -> Instant {
        penstock_connect::heard(&self.socket)
    }

    async fn send_frame(&mut self, message: Message) -> Result<(), End> {
        match timeout(WRITE_TIMEOUT, self.socket.send(message)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(End::Silent(WRITE_TIMEOUT)),
        }
    }
}
