//! Serves the page over HTTP/1: `GET /metrics` and nothing else, one request per connection.
//!
//! Anyone who can reach the address may ask, so each client gets a connection for a short time and with a small buffer,
//! and there are only a few at once: the others wait in the listener's queue.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections at once.
const CONNECTION_LIMIT: usize = 8;
/// Bytes of a request's head, and lines of it.
const HEAD_LIMIT: usize = 8 << 10;
const HEADER_LIMIT: usize = 64;
/// How long a client may take to send its request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may last in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Serves until dropped, which also closes all connections. `page` makes the current page; it yields none when the
/// program is about to end.
pub async fn serve<P, F>(listener: TcpListener, page: P)
where
    P: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<String>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTION_LIMIT => match accepted {
                Ok((stream, _)) => drop(connections.spawn(timeout(PATIENCE, converse(stream, page.clone())))),
                Err(error) => {
                    tracing::debug!("metrics: {error}");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            },
        }
    }
}

async fn converse<F: Future<Output = Option<String>>>(stream: TcpStream, page: impl Fn() -> F + Clone) {
    let service = service_fn(|request| answer(request, page.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .max_headers(HEADER_LIMIT)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!("metrics: {error}");
    }
}

async fn answer<F: Future<Output = Option<String>>>(
    request: Request<Incoming>,
    page: impl Fn() -> F,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(refusal(StatusCode::NOT_FOUND, "the metrics are at /metrics\n"));
    }
    if request.method() != Method::GET {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return Ok(response);
    }
    let Some(text) = page().await else {
        return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "this program is stopping\n"));
    };
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(super::CONTENT_TYPE));
    Ok(response)
}

fn refusal(code: StatusCode, sentence: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(sentence));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
