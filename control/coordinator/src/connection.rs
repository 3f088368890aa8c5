//! One gateway's connection, from the challenge to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use penstock_proto::Bucket;
use penstock_proto::coordination::limits::{HANDSHAKE_TIMEOUT, PING_INTERVAL, SILENCE_LIMIT};
use penstock_proto::coordination::{
    Challenger, CoordinatorMessage, GatewayMessage, Hello, Reachability, Refusal, RefusalReason,
};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use crate::admission::Place;
use crate::registry::{Outgoing, Session};
use crate::server::Server;

/// Shortest time between two pushes to one gateway, so that many changes become one message.
const PUSH_INTERVAL: Duration = Duration::from_millis(200);
/// How long a message may take to be written: the largest map over half a Mbit/s takes five minutes,
/// one of a hundred sites a second.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How many messages a gateway may send in a row, and how long until it may send one more. It speaks
/// when its addresses change.
const MESSAGE_BURST: u32 = 20;
const MESSAGE_INTERVAL: Duration = Duration::from_secs(2);
/// How long we wait for the other's half of the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves a WebSocket until it ends.
pub async fn serve(socket: WebSocket, source: SocketAddr, name: String, place: Arc<Place>, server: Arc<Server>) {
    let mut wire = Wire { socket, heard: Instant::now() };
    match greet(&mut wire, &name, &place, &server).await {
        Ok(mut session) => {
            tracing::info!("{} connected from {source}", session.key());
            let end = converse(&mut wire, &mut session, &server).await;
            server.registry.disconnect(&session);
            tracing::info!("{} disconnected: {end}", session.key());
            wire.finish(end).await;
        }
        Err(end) => {
            tracing::info!("{source} is not let in: {end}");
            wire.finish(end).await;
        }
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Refused(Refusal),
    #[error("the coordinator stops")]
    Stopping,
    #[error("it closed the connection")]
    Closed,
    #[error("it was silent for too long")]
    Silent,
    #[error("{0}")]
    Broken(axum::Error),
}

impl From<RefusalReason> for End {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(Refusal { reason, detail: None })
    }
}

async fn greet(wire: &mut Wire, name: &str, place: &Place, server: &Server) -> Result<Session, End> {
    let challenger = Challenger::new(&mut rand::rng());
    wire.say(&CoordinatorMessage::Challenge(challenger.challenge().clone())).await?;
    let hello = tokio::select! {
        hello = timeout(HANDSHAKE_TIMEOUT, hello(wire)) => hello.map_err(|_| End::Silent)?,
        () = server.stopped() => return Err(End::Stopping),
    };
    let hello = hello.inspect_err(|end| {
        if matches!(end, End::Refused(_)) {
            place.failed(Instant::now());
        }
    })?;
    if challenger.verify(&hello.public_key, name, &hello.proof).is_err() {
        place.failed(Instant::now());
        return Err(RefusalReason::Proof.into());
    }
    let session = server.registry.connect(hello).await.map_err(|refusal| {
        // A secret was guessed, or may have been.
        if refusal.reason == RefusalReason::KeyUnknown {
            place.failed(Instant::now());
        }
        End::Refused(refusal)
    })?;
    place.proven();
    Ok(session)
}

async fn hello(wire: &mut Wire) -> Result<Hello, End> {
    match wire.hear().await? {
        GatewayMessage::Hello(hello) => Ok(hello),
        GatewayMessage::Reachability(_) => Err(RefusalReason::Malformed.into()),
    }
}

/// Talks to a site until the connection ends; says why it did.
async fn converse(wire: &mut Wire, session: &mut Session, server: &Server) -> End {
    match exchange(wire, session, server).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn exchange(wire: &mut Wire, session: &mut Session, server: &Server) -> Result<std::convert::Infallible, End> {
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    // Messages that may still come.
    let mut budget = Bucket::default();
    let mut pushed: Option<Instant> = None;
    let mut due = false;
    loop {
        let next_push = pushed.map_or_else(Instant::now, |pushed| pushed + PUSH_INTERVAL);
        tokio::select! {
            message = wire.hear() => {
                let message = message?;
                if !budget.take(Instant::now(), MESSAGE_INTERVAL, MESSAGE_INTERVAL * MESSAGE_BURST) {
                    return Err(RefusalReason::TooMany.into());
                }
                match message {
                    GatewayMessage::Reachability(reachability) => {
                        server.registry.set_reachability(session, sound(reachability));
                    }
                    GatewayMessage::Hello(_) => return Err(RefusalReason::Malformed.into()),
                }
            }
            () = session.changed(), if !due => due = true,
            () = sleep_until(next_push.into()), if due => {
                due = false;
                match server.registry.outgoing(session) {
                    Outgoing::End(refusal) => return Err(End::Refused(refusal)),
                    Outgoing::Messages(messages) => {
                        for message in &messages {
                            wire.say(message).await?;
                        }
                        pushed = Some(Instant::now());
                    }
                }
            }
            _ = ping.tick() => {
                if wire.heard.elapsed() > SILENCE_LIMIT {
                    return Err(End::Silent);
                }
                wire.send(Message::Ping(axum::body::Bytes::new())).await?;
            }
            () = server.stopped() => return Err(End::Stopping),
        }
    }
}

/// Without candidates that would send peers to where no site can be.
fn sound(mut reachability: Reachability) -> Reachability {
    reachability.candidates.retain(penstock_proto::coordination::Candidate::is_sound);
    reachability
}

/// A WebSocket that speaks our messages.
struct Wire {
    socket: WebSocket,
    /// When anything last came in.
    heard: Instant,
}

impl Wire {
    /// The next message. Nothing is lost if this is cancelled.
    async fn hear(&mut self) -> Result<GatewayMessage, End> {
        loop {
            let message = match self.socket.recv().await {
                None => return Err(End::Closed),
                // A frame or message beyond the limit ends here too.
                Some(Err(error)) => return Err(End::Broken(error)),
                Some(Ok(message)) => message,
            };
            self.heard = Instant::now();
            match message {
                Message::Text(text) => {
                    return GatewayMessage::decode(&text).map_err(|error| {
                        let detail = Some(error.to_string());
                        End::Refused(Refusal { reason: RefusalReason::Malformed, detail })
                    });
                }
                Message::Binary(_) => return Err(RefusalReason::Malformed.into()),
                Message::Close(_) => return Err(End::Closed),
                Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }

    async fn say(&mut self, message: &CoordinatorMessage) -> Result<(), End> {
        self.send(Message::text(message.encode())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match timeout(WRITE_TIMEOUT, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(End::Broken),
            Err(_) => Err(End::Silent),
        }
    }

    /// Says why, closes, and lets the other close too.
    async fn finish(mut self, end: End) {
        let (refusal, code) = match end {
            End::Refused(refusal) => (Some(refusal), close_code::POLICY),
            End::Stopping => (None, close_code::AWAY),
            End::Silent => (None, close_code::POLICY),
            End::Closed | End::Broken(_) => (None, close_code::NORMAL),
        };
        let farewell = async {
            if let Some(refusal) = refusal {
                self.say(&CoordinatorMessage::Refused(refusal)).await?;
            }
            self.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await?;
            while let Some(Ok(_)) = self.socket.recv().await {}
            Ok::<(), End>(())
        };
        let _ = timeout(CLOSE_TIMEOUT, farewell).await;
    }
}
