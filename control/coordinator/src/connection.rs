//! One connection of a gateway or a relay, from the challenge to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use penstock_proto::coordination::limits::{PING_INTERVAL, SILENCE_LIMIT};
use penstock_proto::coordination::{
    Challenger, ChannelBinding, CoordinatorMessage, GatewayMessage, Hello, Reachability, Refusal, RefusalReason,
};
use penstock_proto::path::SiteId;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until, timeout};

use crate::admission::Slot;
use crate::registry::{Outgoing, RelaySession, Session, messages_of};
use crate::server::Server;

/// Shortest time between two pushes to one gateway, so that many changes become one message.
const PUSH_INTERVAL: Duration = Duration::from_millis(200);
/// How long writing a message may take: the largest map over half a Mbit/s takes five minutes, one of a hundred sites a
/// second.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pings in a row that may stay unanswered: three times the other side's limit. A dead gateway costs us little and
/// comes back by itself; a slow one that is cut off while all gateways announce themselves at once would come back as
/// well and make everything slower.
const UNANSWERED_PINGS: u32 = 3 * (SILENCE_LIMIT.as_secs() / PING_INTERVAL.as_secs()) as u32;
/// How long we wait for the other side to close as well.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known about a client before it has proven anything.
pub struct Client {
    /// Its address.
    pub source: SocketAddr,
    /// Which of our names it used.
    pub name: String,
    /// The channel binding of its TLS connection.
    pub channel: Option<ChannelBinding>,
}

/// Serves a WebSocket until it ends.
pub async fn serve(socket: WebSocket, client: Client, slot: Arc<Slot>, server: Arc<Server>) {
    let mut wire = Wire { socket, heard: false };
    let source = client.source;
    let end = match authenticate(&mut wire, &client, &slot, &server).await {
        Ok(Admitted::Site(mut session)) => {
            tracing::info!("{} connected from {source}", session.key());
            let end = converse(&mut wire, &mut session, &server).await;
            server.registry.disconnect(&session);
            tracing::info!("{} disconnected: {end}", session.key());
            end
        }
        Ok(Admitted::Relay(mut session)) => {
            tracing::info!("the relay {} connected from {source}", session.key);
            let end = instruct(&mut wire, &mut session, &server).await;
            server.registry.disconnect_relay(&session);
            tracing::info!("the relay {} disconnected: {end}", session.key);
            end
        }
        Err(end) => {
            slot.refused(end.name());
            if slot.may_log() {
                tracing::info!("{source} is not let in: {end}");
            }
            if matches!(end, End::Late) {
                return;
            }
            end
        }
    };
    wire.finish(end).await;
}

/// A client that has proven its identity.
enum Admitted {
    Site(Session),
    Relay(RelaySession),
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Refused(Refusal),
    #[error("the coordinator is stopping")]
    Stopping,
    #[error("it closed the connection")]
    Closed,
    #[error("it was silent for too long")]
    Silent,
    #[error("it did not prove its key in time")]
    Late,
    #[error("{0}")]
    Broken(axum::Error),
}

impl End {
    /// The reason in a word, for counters.
    fn name(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason.name(),
            Self::Stopping => "stopping",
            Self::Late => "late",
            Self::Closed | Self::Silent | Self::Broken(_) => "gone",
        }
    }
}

impl From<RefusalReason> for End {
    fn from(reason: RefusalReason) -> Self {
        Self::Refused(Refusal { reason, detail: None })
    }
}

/// Has a client prove its key; returns whose it is.
async fn authenticate(wire: &mut Wire, client: &Client, slot: &Slot, server: &Server) -> Result<Admitted, End> {
    let challenger = Challenger::new(&mut rand::rng());
    let challenge = CoordinatorMessage::Challenge(challenger.challenge().clone());
    let hello = async {
        wire.send(&challenge).await?;
        hello(wire).await
    };
    let hello = tokio::select! {
        hello = hello => hello,
        () = slot.over() => return Err(End::Late),
        () = server.stop.stopped() => return Err(End::Stopping),
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(refused @ End::Refused(_)) => return Err(failed(slot, refused).await),
        Err(end) => return Err(end),
    };
    if challenger.verify(&hello.public_key, &client.name, &hello.proof).is_err() {
        return Err(failed(slot, RefusalReason::Proof.into()).await);
    }
    let site = SiteId::of(&hello.public_key.into());
    if let Some(session) = server.registry.connect_relay(hello.public_key) {
        slot.proven(site);
        return Ok(Admitted::Relay(session));
    }
    let bound = match (&hello.bound_proof, &client.channel) {
        (Some(proof), Some(channel)) => {
            challenger.verify_bound(&hello.public_key, &client.name, channel, proof).is_ok()
        }
        _ => false,
    };
    match server.registry.connect(hello, bound).await {
        Ok(session) => {
            slot.proven(site);
            Ok(Admitted::Site(session))
        }
        // Somebody may be guessing secrets.
        Err(refusal) if matches!(refusal.reason, RefusalReason::KeyUnknown | RefusalReason::Proof) => {
            Err(failed(slot, End::Refused(refusal)).await)
        }
        Err(refusal) => Err(End::Refused(refusal)),
    }
}

/// Waits as long as a client that has failed has to; it keeps its slot meanwhile, or loses it.
async fn failed(slot: &Slot, refused: End) -> End {
    match timeout(slot.failed(), slot.over()).await {
        Ok(()) => End::Late,
        Err(_) => refused,
    }
}

async fn hello(wire: &mut Wire) -> Result<Hello, End> {
    match wire.receive().await? {
        GatewayMessage::Hello(hello) => Ok(hello),
        GatewayMessage::Reachability(_) | GatewayMessage::Paths(_) => Err(RefusalReason::Malformed.into()),
    }
}

/// Talks to a site until the connection ends; returns why it did. Once the site has another connection, or is no longer
/// a site, pending writes are abandoned.
async fn converse(wire: &mut Wire, session: &mut Session, server: &Server) -> End {
    let cut = session.cut();
    tokio::select! {
        outcome = exchange(wire, session, server) => {
            let Err(end) = outcome;
            return end;
        }
        () = cut.notified() => {}
        () = server.stop.stopped() => return End::Stopping,
    }
    End::Refused(server.registry.why_cut(session))
}

async fn exchange(wire: &mut Wire, session: &mut Session, server: &Server) -> Result<Infallible, End> {
    let mut pulse = Pulse::new();
    let mut pushed: Option<Instant> = None;
    let mut due = false;
    loop {
        let next_push = pushed.map_or_else(Instant::now, |pushed| pushed + PUSH_INTERVAL);
        tokio::select! {
            message = wire.receive() => {
                let message = message?;
                if !server.registry.may_speak(session) {
                    return Err(RefusalReason::TooMany.into());
                }
                match message {
                    GatewayMessage::Reachability(reachability) => {
                        server.registry.set_reachability(session, sound(reachability));
                    }
                    GatewayMessage::Paths(paths) => server.registry.set_paths(session, paths),
                    GatewayMessage::Hello(_) => return Err(RefusalReason::Malformed.into()),
                }
            }
            () = session.changed(), if !due => due = true,
            () = sleep_until(next_push.into()), if due => {
                due = false;
                match server.registry.outgoing(session) {
                    Outgoing::End(refusal) => return Err(End::Refused(refusal)),
                    Outgoing::Messages(draft) => {
                        for text in draft.texts().await {
                            wire.send_frame(Message::text(text)).await?;
                        }
                        if pushed.is_none()
                            && let Some(reports) = server.registry.wanted_reports()
                        {
                            wire.send(&CoordinatorMessage::Reports(reports)).await?;
                        }
                        pushed = Some(Instant::now());
                    }
                }
            }
            _ = pulse.ticks.tick() => pulse.beat(wire).await?,
        }
    }
}

/// Tells a relay who may talk, until the connection ends; returns why it did.
async fn instruct(wire: &mut Wire, session: &mut RelaySession, server: &Server) -> End {
    let gone = session.gone.clone();
    let told = async {
        let mut pulse = Pulse::new();
        let mut told = None;
        loop {
            let common = server.registry.common();
            if told.replace(common.number) != Some(common.number) {
                for message in messages_of(common.documents.to_vec()) {
                    wire.send(&message).await?;
                }
            }
            while let Some(access) = server.registry.access(&mut session.reader) {
                wire.send(&CoordinatorMessage::Access(access)).await?;
            }
            tokio::select! {
                // Relays do not send messages.
                message = wire.receive() => return message.and(Err(RefusalReason::Malformed.into())),
                () = session.reader.changed() => {}
                _ = pulse.ticks.tick() => pulse.beat(wire).await?,
            }
        }
    };
    let outcome: Result<Infallible, End> = tokio::select! {
        told = told => told,
        () = gone.notified() => Err(RefusalReason::Replaced.into()),
        () = server.stop.stopped() => Err(End::Stopping),
    };
    let Err(end) = outcome;
    end
}

/// Sends pings, and notices when nothing comes back.
struct Pulse {
    ticks: Interval,
    unanswered: u32,
}

impl Pulse {
    fn new() -> Self {
        let mut ticks = interval(PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        Self { ticks, unanswered: 0 }
    }

    /// Counts pings and not time, since gateways are not silent just because the coordinator was too busy to read.
    async fn beat(&mut self, wire: &mut Wire) -> Result<(), End> {
        self.unanswered = if std::mem::take(&mut wire.heard) { 0 } else { self.unanswered + 1 };
        if self.unanswered > UNANSWERED_PINGS {
            return Err(End::Silent);
        }
        wire.send_frame(Message::Ping(axum::body::Bytes::new())).await
    }
}

/// Removes candidates that would make peers send to addresses where no site can be.
fn sound(mut reachability: Reachability) -> Reachability {
    reachability.candidates.retain(penstock_proto::coordination::Candidate::is_sound);
    reachability
}

/// A WebSocket for our messages.
struct Wire {
    socket: WebSocket,
    /// Whether something was received since the last ping.
    heard: bool,
}

impl Wire {
    /// The next message. Nothing is lost if this is cancelled.
    async fn receive(&mut self) -> Result<GatewayMessage, End> {
        loop {
            let message = match self.socket.recv().await {
                None => return Err(End::Closed),
                // A frame or message beyond the limit ends up here too.
                Some(Err(error)) => return Err(End::Broken(error)),
                Some(Ok(message)) => message,
            };
            self.heard = true;
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

    async fn send(&mut self, message: &CoordinatorMessage) -> Result<(), End> {
        self.send_frame(Message::text(message.encode())).await
    }

    async fn send_frame(&mut self, message: Message) -> Result<(), End> {
        match timeout(WRITE_TIMEOUT, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(End::Broken),
            Err(_) => Err(End::Silent),
        }
    }

    /// Sends the reason, closes, and lets the other side close too.
    async fn finish(mut self, end: End) {
        let (refusal, code) = match end {
            End::Refused(refusal) => (Some(refusal), close_code::POLICY),
            End::Stopping => (None, close_code::AWAY),
            End::Silent | End::Late => (None, close_code::POLICY),
            End::Closed | End::Broken(_) => (None, close_code::NORMAL),
        };
        let closing = async {
            if let Some(refusal) = refusal {
                self.send(&CoordinatorMessage::Refused(refusal)).await?;
            }
            self.send_frame(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await?;
            while let Some(Ok(_)) = self.socket.recv().await {}
            Ok::<(), End>(())
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}
