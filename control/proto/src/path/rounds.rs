//! Rounds of probing: when direct addresses are tried, and in which order.
//!
//! ```text
//!   Idle ──► Opening: our NAT is opened by probes with a short TTL, and the relay tells the peer so
//!     ▲         │ the peer says so too, about our present candidates
//!     │         ▼
//!     └───── Checking: every address is probed, 3 s
//! ```
//! The side that starts a round names it; the peer joins once per name. Without a working relay, and from the second
//! failed round in a row, the peer's announcement is not waited for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::agent::Shared;
use super::check::{Check, Kind, Route, State};
use super::limits::Prompted;
use super::peer::Peer;
use super::probe::Ping;
use crate::coordination::Candidate;
use crate::noise::hash;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Idle,
    Opening {
        until: Instant,
    },
    Checking {
        until: Instant,
    },
}

#[derive(Default)]
pub(crate) struct Rounds {
    pub phase: Phase,
    /// The name of the present or last round.
    pub id: u32,
    /// The last name that the peer announced.
    heard: Option<u32>,
    next: Option<Instant>,
    /// Failed rounds since the candidates last changed.
    fruitless: u32,
    prompted: Prompted,
}

/// A digest of these candidates' addresses: what a site's NAT is opened towards.
pub(crate) fn digest(candidates: &[Candidate]) -> u32 {
    let sound = candidates.iter().filter(|candidate| candidate.is_sound());
    let canonical =
        |candidate: &Candidate| SocketAddr::new(candidate.address.ip().to_canonical(), candidate.address.port());
    digest_of(sound.map(canonical).collect())
}

fn digest_of(mut addresses: Vec<SocketAddr>) -> u32 {
    addresses.sort();
    addresses.dedup();
    let text: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let [a, b, c, d, ..] = hash(&[text.join(" ").as_bytes()]);
    u32::from_be_bytes([a, b, c, d])
}

impl Rounds {
    /// Whether our pings announce that our NAT is open.
    pub fn announces(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Whether a round has failed, and no other is under way.
    pub fn is_fruitless(&self) -> bool {
        self.phase == Phase::Idle && self.fruitless > 0
    }

    /// The digest of what we know of the peer's candidates.
    pub fn remote_digest(&self, checks: &[Check]) -> u32 {
        let signalled = checks.iter().filter(|check| matches!(check.kind, Kind::Signalled(_)));
        digest_of(signalled.map(|check| check.route.to).collect())
    }

    /// Whether the peer may cause a round now; if not, when it may.
    pub fn prompted(&mut self, now: Instant, shared: &Shared) -> Result<(), Instant> {
        self.prompted.allow(now, shared.config.timings.round_interval)
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle => self.next,
            Phase::Opening { until } | Phase::Checking { until } => Some(until),
        }
    }
}

impl Peer {
    /// Starts a round, under a new name or one that the peer has announced.
    pub fn start_round(&mut self, now: Instant, shared: &mut Shared, name: Option<u32>) {
        let timings = shared.config.timings;
        let wait = if shared.relays.is_empty() { timings.opening_without_relay } else { timings.opening };
        if name.is_none() {
            self.rounds.fruitless = 0;
        }
        self.name_round(shared, name);
        self.rounds.phase = Phase::Opening { until: now + wait };
        self.rounds.next = None;
        let mut closed: Vec<Route> = Vec::new();
        for check in self.checks.iter_mut().filter(|check| check.is_direct() && !check.is_alive()) {
            check.forget();
            if check.needs_opening() {
                closed.push(check.route);
            }
        }
        for route in closed {
            self.open_towards(now, shared, route);
        }
        // The relay passes the announcement on at once.
        for check in self.checks.iter_mut().filter(|check| !check.is_direct()) {
            check.last_sent = None;
        }
    }

    fn name_round(&mut self, shared: &mut Shared, name: Option<u32>) {
        self.rounds.id = name.unwrap_or_else(|| shared.random() as u32);
    }

    /// The peer has started a round, or continues one.
    pub fn peer_opened(&mut self, now: Instant, shared: &mut Shared, ping: &Ping) {
        let known = self.rounds.heard == Some(ping.round) || self.rounds.id == ping.round;
        self.rounds.heard = Some(ping.round);
        if self.rounds.phase == Phase::Idle && !known && self.rounds.prompted(now, shared).is_ok() {
            let fruitless = self.rounds.fruitless;
            self.start_round(now, shared, Some(ping.round));
            self.rounds.fruitless = fruitless;
        }
        if ping.opened.is_none() || ping.opened != shared.local {
            return;
        }
        let (until, phase) = (now + shared.config.timings.checking, self.rounds.phase);
        match phase {
            Phase::Opening { .. } => self.begin_checking(until),
            Phase::Checking { .. } if !known && self.rounds.prompted(now, shared).is_ok() => {
                self.rounds.phase = Phase::Checking { until };
            }
            Phase::Checking { .. } | Phase::Idle => {}
        }
    }

    fn begin_checking(&mut self, until: Instant) {
        self.rounds.phase = Phase::Checking { until };
        for check in self.checks.iter_mut().filter(|check| check.is_direct() && !check.is_alive()) {
            check.last_sent = None;
        }
    }

    pub fn advance_round(&mut self, now: Instant, shared: &mut Shared) {
        let Some(due) = self.rounds.deadline().filter(|at| *at <= now) else {
            return;
        };
        match self.rounds.phase {
            Phase::Idle => {
                let fruitless = self.rounds.fruitless;
                self.start_round(now, shared, None);
                self.rounds.fruitless = fruitless;
            }
            Phase::Opening { .. } => {
                let relayed = self.checks.iter().any(|check| !check.is_direct() && check.is_alive());
                if relayed && self.rounds.fruitless == 0 {
                    self.end_round(now, shared);
                } else {
                    self.begin_checking(due + shared.config.timings.checking);
                }
            }
            Phase::Checking { .. } => self.end_round(now, shared),
        }
    }

    fn end_round(&mut self, now: Instant, shared: &mut Shared) {
        self.rounds.phase = Phase::Idle;
        let selected = self.selected;
        self.checks
            .retain(|check| check.kind != Kind::PeerReflexive || check.is_alive() || selected == Some(check.route));
        for check in self.checks.iter_mut().filter(|check| check.is_direct() && selected != Some(check.route)) {
            check.unanswered = 0;
            if check.is_alive() {
                // It has not been watched since, and nothing depends on it.
                check.state = State::Untried;
            }
        }
        if self.is_direct() {
            self.rounds.fruitless = 0;
            return;
        }
        let timings = &shared.config.timings;
        let doubled = timings.round_interval * 2u32.saturating_pow(self.rounds.fruitless.min(16));
        // If both sides started at the same moment, their rounds would cross; a little apart, one starts and the other
        // joins.
        let jitter = Duration::from_millis(shared.random() % 1000);
        self.rounds.next = Some(now + doubled.min(shared.config.timings.round_interval_max) + jitter);
        self.rounds.fruitless += 1;
    }
}
