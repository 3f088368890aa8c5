//! Takes connections: TCP, TLS 1.3, the upgrade to a WebSocket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Extension, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use penstock_proto::coordination::limits::GATEWAY_MESSAGE_LIMIT;
use penstock_proto::coordination::{ChannelBinding, EXPORTER_LABEL, PATH, SUBPROTOCOL};
use penstock_proto::relay;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::acme::challenge;
use crate::admission::{Door, Slot};
use crate::connection::{self, Client};
use crate::pulse::Called;
use crate::registry::Registry;
use crate::relay::{RelayServer, stream};
use crate::udp::Sockets;

/// How long after a failed accept the next is tried: file descriptors may have run out.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Longest head of a request: an upgrade with a few headers of a proxy.
const HEAD_LIMIT: usize = 16 << 10;
/// Buffer of a WebSocket for reading. Gateways say little.
const READ_BUFFER: usize = 4 << 10;
/// Buffer of a WebSocket for writing; a longer message passes whole.
const WRITE_BUFFER: usize = 4 << 10;

/// Buffers of a stream, each way: some datagrams.
const STREAM_BUFFER: usize = 16 << 10;

/// What all connections of the coordinator share.
pub struct Server {
    /// What the coordinator knows.
    pub registry: Arc<Registry>,
    /// The names by which gateways reach it, in lower case.
    pub names: Vec<String>,
    /// When connections are to end.
    pub stop: Stop,
}

/// What all streams of a relay share.
pub struct Streams {
    /// Decides about datagrams.
    pub relay: Arc<RelayServer>,
    /// For sites that are reached by UDP.
    pub udp: Option<Arc<Sockets>>,
    /// When streams are to end.
    pub stop: Stop,
}

/// Tells when connections are to end.
#[derive(Clone)]
pub struct Stop(pub watch::Receiver<bool>);

impl Stop {
    /// Returns when connections are to end.
    pub async fn stopped(&self) {
        // An error means that the program is ending already.
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}

/// What is served at which path.
pub fn router(server: Option<Arc<Server>>, streams: Option<Arc<Streams>>) -> Router {
    let mut router = Router::new();
    if let Some(server) = server {
        router = router.route(PATH, any(upgrade).with_state(server));
    }
    if let Some(streams) = streams {
        router = router.route(relay::PATH, any(upgrade_stream).with_state(streams));
    }
    router
}

/// Takes connections until told to stop, and answers calls in between. The certificate may change meanwhile.
pub async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    router: Router,
    door: Arc<Door>,
    mut called: Called,
    stop: Stop,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(answer) = called.recv() => {
                let _ = answer.send(());
                continue;
            }
            () = stop.stopped() => return,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("no connection can be taken: {error}");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        // Refused without an answer, which costs us least.
        match door.admit(source.ip(), Instant::now()) {
            Ok(slot) => {
                let tls = TlsAcceptor::from(tls.borrow().clone());
                let slot = Arc::new(slot);
                let handshake = handshake(stream, source, slot.clone(), tls, router.clone());
                let stop = stop.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = handshake => {}
                        () = slot.over() => {
                            slot.refused("late");
                            tracing::debug!("{source} took too long, or too many came after it");
                        }
                        () = stop.stopped() => {}
                    }
                });
            }
            Err(reason) => tracing::debug!("{source} is refused: {reason}"),
        }
    }
}

/// TLS and HTTP, for as long as there is a slot.
async fn handshake(stream: TcpStream, source: SocketAddr, slot: Arc<Slot>, tls: TlsAcceptor, router: Router) {
    // Messages are written whole; waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    let mut stream = match tls.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            slot.refused("tls");
            return tracing::debug!("{source}: TLS: {error}");
        }
    };
    if stream.get_ref().1.alpn_protocol() == Some(challenge::PROTOCOL) {
        if slot.may_log() {
            tracing::info!("{source} has checked that a name is ours");
        }
        let _ = stream.shutdown().await;
        return;
    }
    // Without one, sites that have to use channel binding are not let in.
    let (_, tls) = stream.get_ref();
    let channel = tls.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).ok().map(ChannelBinding);
    let router = router.layer(Extension(slot)).layer(Extension(source)).layer(Extension(channel));
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    // Ends with the upgrade, whose WebSocket has a task of its own.
    if let Err(error) = connection.await {
        tracing::debug!("{source}: HTTP: {error}");
    }
}

async fn upgrade(
    State(server): State<Arc<Server>>,
    Extension(slot): Extension<Arc<Slot>>,
    Extension(source): Extension<SocketAddr>,
    Extension(channel): Extension<Option<ChannelBinding>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(host_of).unwrap_or_default();
    // The proof will be for this name, so it must be ours: otherwise a proof for another could be passed on to us.
    let Some(name) = server.names.iter().find(|name| **name == host).cloned() else {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    };
    let upgrade = upgrade.protocols([SUBPROTOCOL]);
    if upgrade.selected_protocol().is_none() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(GATEWAY_MESSAGE_LIMIT)
        .max_frame_size(GATEWAY_MESSAGE_LIMIT)
        .on_upgrade(move |socket| {
            let client = Client { source, name, channel };
            connection::serve(socket, client, slot, server)
        })
}

async fn upgrade_stream(
    State(streams): State<Arc<Streams>>,
    Extension(slot): Extension<Arc<Slot>>,
    Extension(source): Extension<SocketAddr>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let upgrade = upgrade.protocols([relay::SUBPROTOCOL]);
    if upgrade.selected_protocol().is_none() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    upgrade
        .read_buffer_size(STREAM_BUFFER)
        .write_buffer_size(STREAM_BUFFER)
        .max_message_size(relay::DATAGRAM_LIMIT)
        .max_frame_size(relay::DATAGRAM_LIMIT)
        .on_upgrade(move |socket| {
            let Streams { relay, udp, stop } = &*streams;
            stream::serve(socket, source, slot, relay.clone(), udp.clone(), stop.clone())
        })
}

/// The host of a `Host` header without its port and brackets, in lower case (RFC 9110, section 7.2).
fn host_of(authority: &str) -> String {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    host.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_without_port_and_brackets() {
        for (authority, host) in [
            ("Coordinator.Example.net:443", "coordinator.example.net"),
            ("192.0.2.1", "192.0.2.1"),
            ("[2001:DB8::1]:443", "2001:db8::1"),
            ("[::1]", "::1"),
            ("", ""),
            ("[", "["),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
