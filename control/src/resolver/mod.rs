//! Endpoints given by name: asks name servers, with the tunnel's firewall mark, and tells which address to try.
//! [`rotation`] decides; this is its shell.
//!
//! The gateway owns one, and does this:
//!
//! ```text
//!   a peer has Endpoint::Host                   watch(now, peer, name, port)
//!   a peer has an address, none, or is removed  forget(peer)
//!   Event::PathSilent                           handle_silence(now, peer)
//!   next() in the gateway's select!             if the peer's endpoint is another:
//!                                                 proto.set_endpoint(id, Some(change.endpoint))
//!                                                 proto.handle_path(now, id, false)
//!                                                 the data plane's path is rebuilt
//! ```
//! Peers of the coordinator's map are the path agent's business.

pub mod rotation;

use std::net::SocketAddr;
use std::time::Instant;

use penstock_connect::{Answer, NameError, Names};
use tokio::task::JoinSet;

use crate::key::PublicKey;
use rotation::{Change, Question, Rotation};

/// Questions under way at a time: each one reads the hosts file and has sockets of its own.
const QUESTIONS_MAX: usize = 16;

/// Keeps track of the endpoints that have names.
#[derive(Debug)]
pub struct Resolver {
    rotation: Rotation,
    names: Names,
    mark: u32,
    questions: JoinSet<(Question, Result<Answer, NameError>)>,
}

impl Resolver {
    /// No endpoints yet. `mark` is that of the sockets that ask name servers; 0 for none.
    #[must_use]
    pub fn new(names: Names, mark: u32) -> Self {
        Self { rotation: Rotation::default(), names, mark, questions: JoinSet::new() }
    }

    /// A peer's endpoint has this name from now on. The same name again changes nothing.
    pub fn watch(&mut self, now: Instant, peer: PublicKey, name: &str, port: u16) {
        self.rotation.watch(now, peer, name, port);
    }

    /// A peer's endpoint no longer has a name, or the peer is gone.
    pub fn forget(&mut self, peer: &PublicKey) {
        self.rotation.forget(peer);
    }

    /// The peer does not answer at its present address. Peers whose endpoint has no name are ignored.
    pub fn handle_silence(&mut self, now: Instant, peer: &PublicKey) {
        self.rotation.handle_silence(now, peer);
    }

    /// The next change of an endpoint. Cancel safe. Must be called within a tokio runtime.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.rotation.poll_change() {
                return change;
            }
            while self.questions.len() < QUESTIONS_MAX
                && let Some(question) = self.rotation.poll_question(Instant::now())
            {
                let (names, mark) = (self.names.clone(), self.mark);
                self.questions.spawn(async move {
                    let answer = names.resolve(&question.name, mark).await;
                    (question, answer)
                });
            }
            let due = self.rotation.poll_timeout().filter(|_| self.questions.len() < QUESTIONS_MAX);
            tokio::select! {
                Some(answered) = self.questions.join_next() => match answered {
                    Ok((question, answer)) => self.handle_answer(&question, answer),
                    Err(gone) => std::panic::resume_unwind(gone.into_panic()),
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    fn handle_answer(&mut self, question: &Question, answer: Result<Answer, NameError>) {
        let Question { peer, name, number } = question;
        let Some(port) = self.rotation.port(peer) else { return };
        let (outcome, error) = match answer {
            Ok(Answer { addresses, ttl }) => {
                let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
                (Some((addresses, ttl)), None)
            }
            Err(error) => (None, Some(error)),
        };
        let failures = self.rotation.handle_answer(Instant::now(), peer, *number, outcome);
        match error {
            Some(error) if failures == 1 => tracing::warn!("endpoint {name} does not resolve: {error}"),
            Some(error) => tracing::debug!("endpoint {name} does not resolve: {error}"),
            None => {}
        }
    }
}
