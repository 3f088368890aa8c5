//! How long a NAT keeps an idle mapping (RFC 5780, section 4.6).
//!
//! ```text
//!   X ── where do I show? ──────────► server      twice, some seconds apart: a mapping of a flow both ways
//!   X    silent for T
//!   Y ── answer to X's mapped port ─► server      RESPONSE-PORT
//!   X ◄───────────────────── answer ─ server      it came: the mapping has lived for T
//! ```
//! X sends nothing once the silence has begun: a NAT that preserves ports would give it the same mapping again, and a
//! dead mapping would look alive. An answer that comes in may itself renew the mapping, so every T has an X of its own.
//! So all T are tried at the same time, and the first one that a mapping does not survive ends the run; a binary
//! search, one T after the other, would take longer for the same result.
//!
//! First the same is tried without a silence, at each server: a later silence means nothing from a server that never
//! answers to another port.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use rand::{CryptoRng, RngCore};

use super::Query;
use super::discovery::MAX_SERVERS;
use super::message::Change;
use super::transaction::{Outcome, Transaction};

/// Silences that are tried; further ones are ignored.
pub const MAX_SILENCES: usize = 16;
/// The longest silence: twice what RFC 4787, section 4.3 (REQ-5) recommends.
pub const MAX_SILENCE: Duration = Duration::from_secs(600);
/// The most that a run takes besides the longest silence: five transactions of three seconds, the warm-up, and an
/// allowance for a busy machine.
pub const OVERHEAD: Duration = Duration::from_secs(20);

/// Time between the two requests of an X. Linux gives a flow the longer timeout of a conversation only after packets in
/// both directions for more than two seconds (nf_conntrack_proto_udp.c); a tunnel's flows are such flows.
const WARMING_UP: Duration = Duration::from_millis(2500);
/// The socket of Y; those of the Xs follow.
const ASKER: usize = 0;

/// The result: a mapping survives a silence of `from`, but not one of `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bracket {
    /// The longest silence that was survived; zero for none.
    pub from: Duration,
    /// The shortest silence, longer than `from`, that was not survived; `None` if all were.
    pub to: Option<Duration>,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifetimeError {
    /// No server answers.
    #[error("no STUN server answers")]
    Blocked,
    /// No server answers to another port, or the NAT gives different sockets different addresses.
    #[error("no STUN server answers to another port (RESPONSE-PORT)")]
    Unsupported,
    /// Answers that had come before failed to come, or the NAT changed meanwhile.
    #[error("the network was unstable")]
    Unsteady,
}

/// One run, from the first request to the bracket. The shell provides the [`sockets`](Self::sockets): fresh ones, each
/// on a port of its own and of the servers' IP version.
pub struct Lifetime {
    rng: Box<dyn CryptoRng + Send>,
    silences: Vec<Duration>,
    servers: usize,
    step: Step,
    outcome: Option<Result<Bracket, LifetimeError>>,
}

enum Step {
    /// The server that answers to another port.
    Control(Vec<Trial>),
    /// In order of the silences.
    Silences(Vec<Trial>),
    Done,
}

impl Lifetime {
    /// Starts the run. `silences` may be in any order, none longer than [`MAX_SILENCE`].
    pub fn new(
        now: Instant,
        servers: &[SocketAddr],
        silences: &[Duration],
        rng: impl CryptoRng + Send + 'static,
    ) -> Self {
        let mut rng: Box<dyn CryptoRng + Send> = Box::new(rng);
        let mut silences: Vec<Duration> = silences.iter().map(|silence| (*silence).min(MAX_SILENCE)).collect();
        silences.sort_unstable();
        silences.dedup();
        silences.truncate(MAX_SILENCES);
        let servers = &servers[..servers.len().min(MAX_SERVERS)];
        let trials =
            (ASKER + 1..).zip(servers).map(|(socket, server)| Trial::new(now, socket, *server, None, &mut rng));
        let step = Step::Control(trials.collect());
        Self { servers: servers.len(), rng, silences, step, outcome: None }
    }

    /// How many sockets are needed.
    #[must_use]
    pub fn sockets(&self) -> usize {
        1 + self.servers + self.silences.len()
    }

    /// Takes a datagram that arrived on a socket.
    pub fn handle_datagram(&mut self, now: Instant, socket: usize, datagram: &[u8]) {
        for trial in self.step.trials() {
            trial.handle(socket, datagram);
        }
        self.advance(now);
    }

    /// Returns what is due: what to send from which socket. Call it until it returns `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(usize, Query)> {
        let query = self.step.trials().iter_mut().find_map(|trial| trial.poll(now));
        if query.is_none() {
            self.advance(now);
        }
        query.or_else(|| self.step.trials().iter_mut().find_map(|trial| trial.poll(now)))
    }

    /// When [`poll_transmit`](Self::poll_transmit) is next to be called; `None` when all is done.
    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        self.step.trials().iter().filter_map(Trial::timeout).min()
    }

    /// The longest silence that is known to have been survived.
    #[must_use]
    pub fn survived(&self) -> Option<Duration> {
        let Step::Silences(trials) = &self.step else { return None };
        trials.iter().filter(|trial| trial.verdict == Some(Verdict::Alive)).filter_map(|trial| trial.silence).max()
    }

    /// The result, once.
    pub fn poll_outcome(&mut self) -> Option<Result<Bracket, LifetimeError>> {
        self.outcome.take()
    }

    fn advance(&mut self, now: Instant) {
        for trial in self.step.trials() {
            trial.advance(now, &mut self.rng);
        }
        self.step = match std::mem::replace(&mut self.step, Step::Done) {
            Step::Control(trials) => self.controlled(now, trials),
            Step::Silences(trials) => match bracket(&trials) {
                Some(outcome) => self.end(outcome),
                None => Step::Silences(trials),
            },
            Step::Done => Step::Done,
        };
    }

    fn controlled(&mut self, now: Instant, trials: Vec<Trial>) -> Step {
        let good = trials.iter().find(|trial| trial.verdict == Some(Verdict::Alive));
        if let Some((server, mapped)) = good.and_then(|trial| Some((trial.server, trial.mapped?))) {
            let sockets = ASKER + 1 + self.servers..;
            let begin = |(socket, silence): (usize, &Duration)| {
                Trial::new(now, socket, server, Some((*silence, mapped.ip())), &mut self.rng)
            };
            return Step::Silences(sockets.zip(&self.silences).map(begin).collect());
        }
        if trials.iter().any(|trial| trial.verdict.is_none()) {
            return Step::Control(trials);
        }
        let heard = trials.iter().any(|trial| trial.mapped.is_some() || trial.verdict == Some(Verdict::Refused));
        self.end(Err(if heard { LifetimeError::Unsupported } else { LifetimeError::Blocked }))
    }

    fn end(&mut self, outcome: Result<Bracket, LifetimeError>) -> Step {
        self.outcome = Some(outcome);
        Step::Done
    }
}

/// The bracket, once no further verdict can change it. An answer proves that a mapping lived, but silence may have been
/// packet loss: so the longest survivor counts, whatever shorter silence seemed deadly.
fn bracket(trials: &[Trial]) -> Option<Result<Bracket, LifetimeError>> {
    let of = |verdict| trials.iter().rposition(|trial| trial.verdict == Some(verdict));
    let survivor = of(Verdict::Alive);
    let beyond = survivor.map_or(0, |at| at + 1);
    let deadly = trials[beyond..].iter().position(|trial| trial.verdict == Some(Verdict::Dead)).map(|at| beyond + at);
    let undecided = &trials[beyond..deadly.unwrap_or(trials.len())];
    if undecided.iter().any(|trial| trial.verdict.is_none()) {
        return None;
    }
    if survivor.is_none() && deadly.is_none() {
        return Some(Err(LifetimeError::Unsteady));
    }
    let silence = |at: usize| trials[at].silence.unwrap_or_default();
    Some(Ok(Bracket { from: survivor.map(silence).unwrap_or_default(), to: deadly.map(silence) }))
}

/// One X.
struct Trial {
    socket: usize,
    server: SocketAddr,
    /// `None`: a control, which neither warms up nor waits.
    silence: Option<Duration>,
    /// The IP address at which X must appear for Y's request to mean anything.
    expected: Option<IpAddr>,
    stage: Stage,
    transaction: Transaction,
    /// The address at which X appears.
    mapped: Option<SocketAddr>,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    First,
    Second,
    /// Y has asked.
    Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Alive,
    Dead,
    Refused,
    /// The trial proves nothing.
    Void,
}

impl Trial {
    fn new(
        now: Instant,
        socket: usize,
        server: SocketAddr,
        silence: Option<(Duration, IpAddr)>,
        rng: &mut impl RngCore,
    ) -> Self {
        Self {
            socket,
            server,
            silence: silence.map(|(silence, _)| silence),
            expected: silence.map(|(_, ip)| ip),
            stage: Stage::First,
            transaction: Transaction::new(now, server, Change::default(), rng),
            mapped: None,
            verdict: None,
        }
    }

    fn handle(&mut self, socket: usize, datagram: &[u8]) {
        let asked = self.stage == Stage::Asked;
        if self.verdict.is_some() || !(socket == self.socket || asked && socket == ASKER) {
            return;
        }
        if self.transaction.handle(datagram) && asked && socket == ASKER {
            // The answer came back to the sender: the server ignores, or refuses, the other port.
            self.verdict = Some(Verdict::Refused);
        }
    }

    fn poll(&mut self, now: Instant) -> Option<(usize, Query)> {
        let by = if self.stage == Stage::Asked { ASKER } else { self.socket };
        let query = self.verdict.is_none().then(|| self.transaction.poll(now)).flatten()?;
        Some((by, query))
    }

    fn timeout(&self) -> Option<Instant> {
        self.transaction.timeout().filter(|_| self.verdict.is_none())
    }

    fn advance(&mut self, now: Instant, rng: &mut impl RngCore) {
        if self.verdict.is_some() {
            return;
        }
        match (self.stage, self.transaction.outcome) {
            (_, Outcome::Waiting) => {}
            (Stage::Asked, Outcome::Answered { .. }) => self.verdict = Some(Verdict::Alive),
            (Stage::Asked, Outcome::Silence) => self.verdict = Some(Verdict::Dead),
            (_, Outcome::Refused) => self.verdict = Some(Verdict::Refused),
            (_, Outcome::Silence) => self.verdict = Some(Verdict::Void),
            (stage, Outcome::Answered { mapped, .. }) => self.answered(now, stage, mapped, rng),
        }
    }

    fn answered(&mut self, now: Instant, stage: Stage, mapped: SocketAddr, rng: &mut impl RngCore) {
        let moved = self.mapped.replace(mapped).is_some_and(|before| before != mapped);
        let elsewhere = self.expected.is_some_and(|ip| ip != mapped.ip());
        let Some(port) = NonZeroU16::new(mapped.port()).filter(|_| !moved && !elsewhere) else {
            self.verdict = Some(Verdict::Void);
            return;
        };
        (self.stage, self.transaction) = match (stage, self.silence) {
            (Stage::First, Some(_)) => {
                (Stage::Second, Transaction::new(now + WARMING_UP, self.server, Change::default(), rng))
            }
            (_, silence) => {
                let at = now + silence.unwrap_or_default();
                (Stage::Asked, Transaction::for_port(at, self.server, port, rng))
            }
        };
    }
}

impl Step {
    fn trials(&mut self) -> &mut [Trial] {
        match self {
            Self::Control(trials) | Self::Silences(trials) => trials,
            Self::Done => &mut [],
        }
    }
}

#[cfg(test)]
mod tests;
