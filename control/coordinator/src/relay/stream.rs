//! A relay's stream: a WebSocket over TLS whose binary frames are datagrams, for sites whose UDP is blocked.
//!
//! A stream has to bind itself like a UDP source, and to renew its binding: without one it ends. A site is bound at one
//! address, so its streams are bounded by the sites; streams without a proof are bounded by [`admission`], and end when
//! their slot there does.
//!
//! [`admission`]: crate::admission

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use futures_util::SinkExt;
use penstock_proto::relay::binding::BINDING_LIFETIME;
use penstock_proto::relay::{RelayDrop, Source};
use tokio::time::{sleep_until, timeout};

use super::{Decision, RelayServer, StreamReceiver};
use crate::admission::Slot;
use crate::server::Stop;
use crate::udp::Sockets;

/// How long a write may take: a stream that accepts nothing for so long is dead, and its queue full of datagrams that
/// nobody waits for any more.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many datagrams are written before the stream is flushed.
const WRITE_BATCH: usize = 32;

/// Serves a stream until it ends.
pub async fn serve(
    socket: WebSocket,
    from: SocketAddr,
    slot: Arc<Slot>,
    relay: Arc<RelayServer>,
    udp: Option<Arc<Sockets>>,
    stop: Stop,
) {
    let (source, queue) = relay.open_stream();
    let stream = Stream { socket, queue, source, until: None };
    let end = tokio::select! {
        end = stream.run(&slot, &relay, udp.as_deref()) => end,
        () = stop.stopped() => "the relay is stopping",
    };
    relay.close_stream(source);
    tracing::debug!("the stream from {from} ends: {end}");
}

/// Returns when the binding is over or, if there is none yet, when the stream has lost its slot.
async fn over(until: Option<Instant>, slot: &Slot) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => slot.over().await,
    }
}

struct Stream {
    socket: WebSocket,
    queue: StreamReceiver,
    source: Source,
    /// When it ends unless its binding is renewed; `None` before the first binding.
    until: Option<Instant>,
}

impl Stream {
    async fn run(mut self, slot: &Slot, relay: &RelayServer, udp: Option<&Sockets>) -> &'static str {
        loop {
            let outcome = tokio::select! {
                message = self.socket.recv() => match message {
                    Some(Ok(Message::Binary(datagram))) => self.take(&datagram, slot, relay, udp).await,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                    Some(Ok(Message::Text(_))) => Err("it sends text"),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => Err("it closed the connection"),
                },
                datagram = self.queue.recv() => match datagram {
                    Some(datagram) => self.give(datagram).await,
                    None => Err("its site is elsewhere, or none any more"),
                },
                () = over(self.until, slot) => {
                    if self.until.is_none() {
                        slot.refused("late");
                    }
                    Err("it has no binding")
                }
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    /// Handles a datagram from the stream.
    async fn take(
        &mut self,
        datagram: &Bytes,
        slot: &Slot,
        relay: &RelayServer,
        udp: Option<&Sockets>,
    ) -> Result<(), &'static str> {
        let now = Instant::now();
        let decision = relay.lock().decide(now, self.source, None, datagram);
        match decision {
            Ok(Decision::Udp(to, origin)) => match udp {
                Some(sockets) => sockets.forward(relay, to, origin, datagram),
                None => relay.counters.dropped(RelayDrop::UnboundReceiver),
            },
            Ok(Decision::Stream(stream)) => relay.queue(&stream, datagram),
            Ok(Decision::Answer(answer, bound)) => {
                if let Some(site) = bound {
                    if self.until.is_none() {
                        slot.proven(site);
                    }
                    self.until = Some(now + BINDING_LIFETIME);
                }
                return self.give(answer.into()).await;
            }
            Err(reason) => {
                relay.counters.dropped(reason);
                if reason == RelayDrop::BadProof {
                    slot.refused("proof");
                    let delay = slot.failed();
                    let _ = timeout(delay, slot.over()).await;
                    return Err("its proof is wrong");
                }
            }
        }
        Ok(())
    }

    /// Writes a datagram and those that wait behind it.
    async fn give(&mut self, first: Bytes) -> Result<(), &'static str> {
        let all = async {
            self.socket.feed(Message::Binary(first)).await?;
            for _ in 1..WRITE_BATCH {
                let Some(datagram) = self.queue.try_recv() else { break };
                self.socket.feed(Message::Binary(datagram)).await?;
            }
            self.socket.flush().await
        };
        match timeout(WRITE_TIMEOUT, all).await {
            Ok(written) => written.map_err(|_| "it closed the connection"),
            Err(_) => Err("it accepts no data"),
        }
    }
}
