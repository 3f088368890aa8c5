//! Where the gateway's metrics are served: the listener that the profile asks for. An address that cannot be bound is a
//! problem, and is tried again.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use penstock_metrics::http;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::metrics::page;
use crate::problem::{Problem, Problems};
use crate::status::Status;

/// A request for the gateway's state.
pub type Ask = oneshot::Sender<Status>;

/// The subject of the problem that metrics cannot be served.
const METRICS: &str = "Metrics";

/// The listener, and the requests that come through it.
pub struct Metrics {
    wanted: Option<SocketAddr>,
    /// The address where they are served, and the task that serves them, which is aborted when dropped.
    serving: Option<(SocketAddr, JoinSet<()>)>,
    ask: mpsc::Sender<Ask>,
    asked: mpsc::Receiver<Ask>,
    problems: Problems,
}

impl Metrics {
    /// Metrics to be served at this address, from the first [`Self::follow`] on.
    pub fn new(wanted: Option<SocketAddr>) -> Self {
        let (ask, asked) = mpsc::channel(1);
        Self { wanted, serving: None, ask, asked, problems: Problems::default() }
    }

    /// Takes up another profile.
    pub fn reload(&mut self, now: Instant, wanted: Option<SocketAddr>) {
        self.wanted = wanted;
        self.problems.try_now(now);
        self.follow(now);
    }

    /// Listens at the wanted address, unless it already does. Must be called within a tokio runtime.
    pub fn follow(&mut self, now: Instant) {
        if self.serving.as_ref().map(|(address, _)| *address) != self.wanted {
            self.serving = None;
        }
        let Some(wanted) = self.wanted else { return self.problems.solved(METRICS) };
        if self.serving.is_some() || !self.problems.may_try(now, METRICS) {
            return;
        }
        match listen(wanted) {
            Ok(listener) => {
                let mut task = JoinSet::new();
                let ask = self.ask.clone();
                task.spawn(http::serve(listener, move || self::ask(ask.clone())));
                self.serving = Some((wanted, task));
                self.problems.solved(METRICS);
                tracing::info!("metrics are served at http://{wanted}/metrics");
            }
            Err(error) => {
                let sentence = format!("metrics cannot be served at {wanted}: {error}");
                self.problems.failed(now, METRICS, &sentence, "free the address, or set another and reload");
            }
        }
    }

    /// Waits until somebody asks. Cancel safe.
    pub async fn asked(&mut self) -> Option<Ask> {
        self.asked.recv().await
    }

    /// When to retry what has failed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.problems.poll_timeout()
    }

    /// What is wrong.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }
}

/// The current page. A gateway that is shutting down does not answer.
async fn ask(ask: mpsc::Sender<Ask>) -> Option<String> {
    let (reply, status) = oneshot::channel();
    // When the request is refused its reply is dropped, which shows below.
    let _ = ask.send(reply).await;
    page(status.await.ok()?).ok()
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
