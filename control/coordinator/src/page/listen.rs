//! Accepts browsers' connections: a few at a time, each for a short time, with small buffers. Waiting ones cost
//! nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::admission::address;

/// The most connections at a time.
const CONNECTION_LIMIT: usize = 64;
/// The most of these from one address of another machine.
const ADDRESS_LIMIT: usize = 16;
/// How long TLS may take, and then each request's head.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last in total.
const LIFETIME: Duration = Duration::from_secs(120);
/// Longest head of a request, in bytes.
const HEAD_LIMIT: usize = 16 << 10;
const HEADER_LIMIT: usize = 64;
/// How long to wait after a failed accept.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Serves until dropped, which also closes all connections.
pub(super) async fn serve(listener: TcpListener, tls: Option<watch::Receiver<Arc<ServerConfig>>>, router: Router) {
    let mut connections: JoinSet<IpNet> = JoinSet::new();
    let mut of_address: HashMap<IpNet, usize> = HashMap::new();
    loop {
        tokio::select! {
            Some(ended) = connections.join_next() => {
                let source = ended.expect("connections do not panic");
                let count = of_address.entry(source).or_default();
                *count = count.saturating_sub(1);
                of_address.retain(|_, count| *count > 0);
            }
            accepted = listener.accept(), if connections.len() < CONNECTION_LIMIT => match accepted {
                Ok((stream, source)) => {
                    let address = address(source.ip());
                    let count = of_address.entry(address).or_default();
                    if *count == ADDRESS_LIMIT && !source.ip().is_loopback() {
                        continue;
                    }
                    *count += 1;
                    let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.borrow().clone()));
                    let conversation = timeout(LIFETIME, converse(stream, source, tls, router.clone()));
                    connections.spawn(async move {
                        let _ = conversation.await;
                        address
                    });
                }
                Err(error) => {
                    tracing::debug!("page: {error}");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            },
        }
    }
}

async fn converse(stream: TcpStream, source: SocketAddr, tls: Option<TlsAcceptor>, router: Router) {
    let Some(tls) = tls else { return answer(stream, source, router).await };
    match timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => answer(stream, source, router).await,
        Ok(Err(error)) => tracing::debug!("page: {source}: TLS: {error}"),
        Err(_) => {}
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, source: SocketAddr, router: Router) {
    let service = TowerToHyperService::new(router.layer(Extension(source)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(HEADER_LIMIT)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!("page: {source}: HTTP: {error}");
    }
}
