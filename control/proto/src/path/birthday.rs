//! Birthday probing: a direct path where one NAT has endpoint-dependent mapping and the other filters by port.
//!
//! ```text
//!   hard side: 256 sockets, each opens a mapping          easy side: 1024 pings to random ports
//!   to the easy side's address by a probe with a          of the hard side's address
//!   short TTL; waits                                      ◄─ one that hits is answered: a path
//! ```
//! One socket on the hard side would have one mapping, and so one port among 64,512 to be guessed. With 256 a hit is
//! likely ([`BIRTHDAY_SOCKETS`]); the shell then carries the peer's datagrams between that socket and the data plane.
//! It is tried after a round that failed, by agreement over the relay, at most once in ten minutes, and ever more
//! rarely as long as no candidates change.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::agent::Shared;
use super::check::{Check, Kind, Route};
use super::constants::{BIRTHDAY_PROBES, BIRTHDAY_SOCKETS, OPENING_TTL};
use super::peer::Peer;
use super::probe::Ping;
use super::reason::{filters_by_port, is_endpoint_dependent};
use super::{PathEvent, SocketId};
use crate::coordination::{CandidateKind, NatType};

/// Guesses that may still be answered: those of 5 s at the normal pace.
const MAX_GUESSES: usize = 512;

/// The most guesses that are made up for at once.
const MOST_LATE: u32 = 5;

#[derive(Default)]
pub(crate) struct Birthday {
    state: State,
    guesses: VecDeque<(u64, SocketAddr)>,
    /// The extra socket of a path that was won.
    won: Option<SocketId>,
    /// On the easy side: where the peer's pings came from after it had chosen. Several guesses may have hit, and the
    /// hard side keeps one socket.
    chosen: Option<Route>,
    /// When the last attempt started.
    last: Option<Instant>,
    /// Attempts since our network or the peer's last changed.
    attempts: u32,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Asked,
    Holding {
        sockets: Vec<SocketId>,
        until: Instant,
    },
    /// One socket is chosen. Others were hit as well, and the peer may use one of them until it learns of the choice.
    Parting {
        sockets: Vec<SocketId>,
        until: Instant,
    },
    Spraying {
        ports: Vec<SocketAddr>,
        due: Instant,
    },
}

impl Birthday {
    pub fn is_holding(&self) -> bool {
        matches!(self.state, State::Holding { .. })
    }

    pub fn is_guess(&self, from: SocketAddr, transaction: u64) -> bool {
        self.guesses.contains(&(transaction, from))
    }

    /// Our network or the peer's has changed, so another attempt may have another outcome. It has to wait all the same,
    /// since a peer can claim at any time that its addresses have changed.
    pub fn change(&mut self) {
        self.attempts = 0;
    }

    pub fn chosen(&self) -> Option<Route> {
        self.chosen
    }

    /// Whether a path may use this socket: while the winner lives, the others are about to be closed.
    pub fn allows(&self, socket: SocketId) -> bool {
        socket == SocketId::TUNNEL || self.won.is_none_or(|won| won == socket)
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Idle | State::Asked => None,
            State::Holding { until, .. } | State::Parting { until, .. } => Some(until),
            State::Spraying { due, .. } => Some(due),
        }
    }

    /// Whether an attempt may start; if so, it is counted.
    fn begin(&mut self, now: Instant, interval: Duration) -> bool {
        let pause = interval * 2u32.saturating_pow(self.attempts.saturating_sub(1).min(8));
        let allowed = matches!(self.state, State::Idle) && self.last.is_none_or(|last| now >= last + pause);
        if allowed {
            self.last = Some(now);
            self.attempts += 1;
        }
        allowed
    }
}

/// Whether `hard` gives every destination a different port, and `easy` has one port that only known ports can reach.
fn can_win(hard: &NatType, easy: &NatType) -> bool {
    let blocked = hard.udp_blocked || easy.udp_blocked;
    is_endpoint_dependent(hard)
        && easy.mapping.is_some()
        && !is_endpoint_dependent(easy)
        && filters_by_port(easy)
        && !blocked
}

impl Peer {
    /// On the hard side, after a round that found no direct path.
    fn consider_birthday(&mut self, now: Instant, shared: &mut Shared) {
        if shared.config.birthday
            && self.rounds.is_fruitless()
            && !self.is_direct()
            && can_win(&shared.nat, &self.nat)
            && self.birthday.begin(now, shared.config.timings.birthday_interval)
        {
            self.birthday.state = State::Asked;
            let event = PathEvent::OpenSockets { peer: self.public_key, count: BIRTHDAY_SOCKETS };
            shared.events.push_back(event);
        }
    }

    pub fn hold_sockets(&mut self, now: Instant, shared: &mut Shared, mut sockets: Vec<SocketId>) {
        let surplus = sockets.split_off(sockets.len().min(usize::from(BIRTHDAY_SOCKETS)));
        close(shared, surplus);
        let target = self.reflexive();
        let (State::Asked, Some(to), false) = (&self.birthday.state, target, sockets.is_empty()) else {
            if matches!(self.birthday.state, State::Asked) {
                self.birthday.state = State::Idle;
            }
            return close(shared, sockets);
        };
        let until = now + shared.config.timings.birthday_hold;
        self.birthday.state = State::Holding { sockets: sockets.clone(), until };
        for socket in sockets {
            let transaction = shared.random();
            self.send_ping(shared, Route { socket, to }, Some(OPENING_TTL), transaction);
        }
        for check in self.checks.iter_mut().filter(|check| !check.is_direct()) {
            check.last_sent = None;
        }
    }

    /// The hard side has its sockets open: starts guessing.
    pub fn spray(&mut self, now: Instant, shared: &mut Shared) {
        let Some(to) = self.reflexive() else { return };
        if !shared.config.birthday
            || self.is_direct()
            || !can_win(&self.nat, &shared.nat)
            || !self.birthday.begin(now, shared.config.timings.birthday_interval)
        {
            return;
        }
        // NATs do not assign ports below 1024 (RFC 4787, section 4.2.1 keeps the ranges apart).
        let mut ports = Vec::with_capacity(usize::from(BIRTHDAY_PROBES));
        let mut taken = vec![false; 1 << 16];
        while ports.len() < usize::from(BIRTHDAY_PROBES) {
            let port = shared.rng.random_range(1024..=u16::MAX);
            if !std::mem::replace(&mut taken[usize::from(port)], true) {
                ports.push(SocketAddr::new(to.ip(), port));
            }
        }
        self.birthday.state = State::Spraying { ports, due: now };
    }

    pub fn advance_birthday(&mut self, now: Instant, shared: &mut Shared) {
        // Checked here because the NAT types may become known only after the round.
        self.consider_birthday(now, shared);
        match &mut self.birthday.state {
            State::Holding { sockets, until } | State::Parting { sockets, until } if *until <= now => {
                let sockets = std::mem::take(sockets);
                self.birthday.state = State::Idle;
                // A hit at the last moment that has not proven itself yet cannot do so without its socket.
                self.checks.retain(|check| !sockets.contains(&check.route.socket));
                close(shared, sockets);
            }
            State::Spraying { ports, due } if *due <= now => {
                // Late guesses are made up for, a few at once: the other side holds its sockets only for a while.
                let pace = shared.config.timings.birthday_pace;
                *due = (*due + pace).max(now - MOST_LATE * pace);
                match ports.pop() {
                    Some(to) => self.guess(now, shared, to),
                    None => self.birthday.state = State::Idle,
                }
            }
            _ => {}
        }
        self.drop_dead_socket(shared);
    }

    /// A direct path was selected: sockets that were kept for another are no longer needed.
    pub fn settle_birthday(&mut self, shared: &mut Shared, winner: SocketId) {
        match std::mem::take(&mut self.birthday.state) {
            State::Holding { sockets, until } => {
                let hit = |socket: &SocketId| self.checks.iter().any(|check| check.route.socket == *socket);
                let (hit, missed): (Vec<SocketId>, _) =
                    sockets.into_iter().filter(|socket| *socket != winner).partition(hit);
                close(shared, missed);
                self.birthday.won = (winner != SocketId::TUNNEL).then_some(winner);
                if !hit.is_empty() {
                    self.birthday.state = State::Parting { sockets: hit, until };
                }
            }
            State::Parting { mut sockets, until } => {
                if let Some(place) = sockets.iter().position(|socket| *socket == winner) {
                    self.birthday.won = Some(sockets.swap_remove(place));
                }
                self.birthday.state = State::Parting { sockets, until };
            }
            // Sockets that are still to come are closed when they do.
            State::Asked | State::Spraying { .. } | State::Idle => {}
        }
    }

    /// On the easy side: a ping came, so the hard side uses this route, or still asks for guesses.
    pub fn hear_choice(&mut self, shared: &Shared, route: Route, ping: &Ping) {
        let direct = self.check(route).is_some_and(Check::is_direct);
        if direct && !ping.birthday && can_win(&self.nat, &shared.nat) {
            self.birthday.chosen = Some(route);
        }
    }

    /// The peer is removed or the network has changed.
    pub fn close_sockets(&mut self, shared: &mut Shared) {
        if let State::Holding { sockets, .. } | State::Parting { sockets, .. } =
            std::mem::take(&mut self.birthday.state)
        {
            close(shared, sockets);
        }
        self.birthday.chosen = None;
        close(shared, self.birthday.won.take().into_iter().collect());
        self.checks.retain(|check| check.route.socket == SocketId::TUNNEL);
    }

    fn guess(&mut self, now: Instant, shared: &mut Shared, to: SocketAddr) {
        if !shared.targets.allow(now, to.ip()) || !shared.budget.searching(now) {
            return;
        }
        let transaction = shared.random();
        if self.birthday.guesses.len() == MAX_GUESSES {
            self.birthday.guesses.pop_front();
        }
        self.birthday.guesses.push_back((transaction, to));
        self.send_ping(shared, Route::tunnel(to), None, transaction);
    }

    fn drop_dead_socket(&mut self, shared: &mut Shared) {
        let Some(won) = self.birthday.won else { return };
        let lives = |route: Route| route.socket == won;
        if !self.selected.is_some_and(lives) {
            self.birthday.won = None;
            self.checks.retain(|check| check.route.socket != won);
            close(shared, vec![won]);
        }
    }

    /// The peer's address outside its NAT. IPv4 first, since that is where NATs are.
    fn reflexive(&self) -> Option<SocketAddr> {
        let reflexive = self.checks.iter().filter(|check| {
            matches!(check.kind, Kind::Signalled(CandidateKind::ServerReflexive | CandidateKind::PortMapped))
        });
        reflexive.map(|check| check.route.to).min_by_key(SocketAddr::is_ipv6)
    }
}

fn close(shared: &mut Shared, sockets: Vec<SocketId>) {
    if !sockets.is_empty() {
        shared.events.push_back(PathEvent::CloseSockets { sockets });
    }
}
