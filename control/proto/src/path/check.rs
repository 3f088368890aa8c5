//! One address at which a peer may be reached: the pings sent there, and the answers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::constants::{MAX_OUTSTANDING, PathTimings};
use super::{Path, Relay, SocketId};
use crate::coordination::CandidateKind;
use crate::pmtu::Search;

/// A socket of ours and an address of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub socket: SocketId,
    pub to: SocketAddr,
}

impl Route {
    pub fn tunnel(to: SocketAddr) -> Self {
        Self { socket: SocketId::TUNNEL, to }
    }
}

/// How an address became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Signalled(CandidateKind),
    PeerReflexive,
    Relay(Relay),
    /// It is the peer's only address.
    Given,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing has been received yet.
    Untried,
    /// The last pings were answered.
    Alive { round_trip: Duration },
    /// The last pings were not answered.
    Dead,
}

pub(crate) struct Check {
    pub route: Route,
    pub kind: Kind,
    pub state: State,
    /// Pings since the last one that was answered.
    pub unanswered: u32,
    pub last_sent: Option<Instant>,
    /// When the last answered ping was sent.
    pub heard: Option<Instant>,
    /// What is known about the path's MTU, once the path has been used.
    pub sizes: Option<Search>,
    outstanding: VecDeque<(u64, Instant)>,
}

impl Check {
    pub fn new(route: Route, kind: Kind) -> Self {
        let outstanding = VecDeque::new();
        let state = State::Untried;
        Self { route, kind, state, unanswered: 0, last_sent: None, heard: None, sizes: None, outstanding }
    }

    pub fn is_direct(&self) -> bool {
        !matches!(self.kind, Kind::Relay(_))
    }

    /// Whether it lies behind a NAT that must not see our probe before the peer has sent one.
    pub fn needs_opening(&self) -> bool {
        matches!(self.kind, Kind::Signalled(CandidateKind::ServerReflexive) | Kind::PeerReflexive)
    }

    pub fn round_trip(&self) -> Option<Duration> {
        match self.state {
            State::Alive { round_trip } => Some(round_trip),
            _ => None,
        }
    }

    pub fn is_alive(&self) -> bool {
        self.round_trip().is_some()
    }

    pub fn path(&self) -> Path {
        match self.kind {
            Kind::Relay(Relay { id, kind, address }) => Path::Relay { relay: id, kind, address },
            _ => Path::Direct { socket: self.route.socket, address: self.route.to },
        }
    }

    /// The network has changed, or a new round starts: what was known may no longer hold.
    pub fn forget(&mut self) {
        (self.state, self.unanswered, self.last_sent) = (State::Untried, 0, None);
        (self.heard, self.sizes) = (None, None);
    }

    /// Another session, or another address: whether anybody answers has to be found out again.
    pub fn ask_anew(&mut self) {
        if self.state == State::Dead {
            self.state = State::Untried;
        }
        (self.unanswered, self.last_sent, self.heard) = (0, None, None);
    }

    /// Too many pings were missed.
    pub fn die(&mut self) {
        self.state = State::Dead;
        if let (Kind::Given, Some(search)) = (self.kind, &mut self.sizes) {
            search.pause();
            // Nobody there answers, as opposed to a path that has failed for a while.
            if self.heard.is_none() {
                search.give_up();
            }
        }
    }

    /// Notes a ping. Only a ping that can reach the peer counts as missed when its answer does not come.
    pub fn sent(&mut self, now: Instant, transaction: u64, expects_answer: bool) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((transaction, now));
        self.last_sent = Some(now);
        self.unanswered += u32::from(expects_answer);
    }

    /// Takes a pong; `false` when it answers no ping of ours.
    pub fn answered(&mut self, now: Instant, transaction: u64) -> bool {
        let Some(position) = self.outstanding.iter().position(|(known, _)| *known == transaction) else {
            return false;
        };
        // Answers to older pings may still arrive, but say nothing new.
        let sent = self.outstanding.drain(..=position).next_back().map_or(now, |(_, at)| at);
        self.heard = self.heard.max(Some(sent));
        let sample = now.saturating_duration_since(sent);
        // Smoothed as in RFC 6298, section 2, but only towards slower answers: a slow one may be due to the machines as
        // much as to the path, and if it is the first one, a round of probing is too short to smooth it out.
        let round_trip = match self.round_trip() {
            Some(known) if sample < known => (known + sample) / 2,
            Some(known) => (known * 7 + sample) / 8,
            None => sample,
        };
        self.state = State::Alive { round_trip };
        self.unanswered = self.outstanding.len() as u32;
        true
    }

    /// Whether too many pings were missed for an answer still to be expected.
    pub fn is_lost(&self, timings: &PathTimings) -> bool {
        self.unanswered >= timings.dead_after && self.state != State::Dead
    }

    /// Whether the last ping is long enough ago for an extra one.
    pub fn is_rested(&self, now: Instant, timings: &PathTimings) -> bool {
        self.last_sent.is_none_or(|at| now >= at + timings.retry / 8)
    }

    /// The time between two pings while answers are missing.
    pub fn retry(&self, timings: &PathTimings) -> Duration {
        self.round_trip().map_or(timings.retry, |known| (known * 3 / 2).clamp(timings.retry, timings.retry_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check {
        Check::new(Route::tunnel("192.0.2.1:1".parse().unwrap()), Kind::PeerReflexive)
    }

    #[test]
    fn a_pong_counts_once_and_only_for_what_was_asked() {
        let now = Instant::now();
        let mut check = check();
        check.sent(now, 7, true);
        assert!(!check.answered(now, 8));
        assert!(!check.is_alive());
        assert!(check.answered(now + Duration::from_millis(30), 7));
        assert_eq!(check.round_trip(), Some(Duration::from_millis(30)));
        assert!(!check.answered(now, 7), "a copy");
    }

    #[test]
    fn a_slow_first_answer_is_soon_forgotten_and_a_slow_later_one_counts_little() {
        let now = Instant::now();
        let mut check = check();
        for (transaction, millis) in [100, 10, 10, 10, 10].into_iter().enumerate() {
            check.sent(now, transaction as u64, true);
            check.answered(now + Duration::from_millis(millis), transaction as u64);
        }
        assert!(check.round_trip().unwrap() < Duration::from_millis(16));
        check.sent(now, 9, true);
        check.answered(now + Duration::from_millis(100), 9);
        assert!(check.round_trip().unwrap() < Duration::from_millis(30));
    }

    #[test]
    fn an_answer_forgives_the_pings_before_it_and_not_those_after() {
        let now = Instant::now();
        let mut check = check();
        for transaction in 0..5 {
            check.sent(now, transaction, true);
        }
        check.answered(now, 2);
        assert_eq!(check.unanswered, 2);
        for transaction in 5..100 {
            check.sent(now, transaction, true);
        }
        assert!(check.outstanding.len() <= MAX_OUTSTANDING);
        assert!(check.is_lost(&PathTimings::default()));
    }
}
