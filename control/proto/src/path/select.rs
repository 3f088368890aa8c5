//! Which of the live addresses a peer's datagrams go to, and why.

use std::time::Duration;

use super::agent::Shared;
use super::check::{Check, Kind, State};
use super::peer::Peer;
use super::rounds::Phase;
use super::{Path, Reason, RelayKind, SocketId};

/// Round trips that differ by less than this, or by a tenth, count as equal.
const EQUAL: Duration = Duration::from_millis(2);
/// A path must be quicker than the selected one by this much, or by a fifth, to replace it.
const HYSTERESIS: Duration = Duration::from_millis(5);
/// How much worse TLS is at the same round trip: a lost segment delays everything behind it.
const TLS_HANDICAP: Duration = Duration::from_millis(50);

impl Peer {
    pub fn select(&mut self, shared: &mut Shared) {
        if self.given.is_some() {
            return;
        }
        let current = self.selected.and_then(|route| self.check(route));
        let allowed = |check: &Check| self.birthday.allows(check.route.socket);
        let usable = |check: &Check| check.is_direct() && check.is_alive() && allowed(check);
        let theirs = self.birthday.chosen().and_then(|route| self.check(route)).filter(|check| usable(check));
        let direct = theirs.or_else(|| best(&self.checks, current, usable));
        let agreed = || {
            let check = self.check(self.peers_relay.filter(|_| !self.chooses_relay(shared))?)?;
            (!check.is_direct() && check.state != State::Dead).then_some(check)
        };
        let relay = || agreed().or_else(|| best(&self.checks, current, |check| !check.is_direct() && check.is_alive()));
        // Nothing has answered yet: the relay is the safest bet.
        let untried = || {
            let hopeful = |check: &&Check| !check.is_direct() && check.state == State::Untried;
            self.checks.iter().find(|check| hopeful(check))
        };
        let chosen = direct.or_else(relay).or_else(untried);
        let (route, is_direct) = (chosen.map(|check| check.route), chosen.is_some_and(Check::is_direct));
        self.died &= !is_direct;
        if self.selected != route
            && !is_direct
            && let Some(check) = self.checks.iter_mut().find(|check| Some(check.route) == route)
        {
            // The side that follows is told at once.
            check.last_sent = None;
        }
        self.selected = route;
        if is_direct {
            self.settle_birthday(shared, route.map_or(SocketId::TUNNEL, |route| route.socket));
        }
    }

    /// Whether we decide through which relay both sides send. A relay can only forward to a site that has shaken hands
    /// through it, so both sides must use the same one: the site with the lower id chooses, and the other follows.
    pub fn chooses_relay(&self, shared: &Shared) -> bool {
        shared.site < self.site
    }

    pub fn reason(&self, shared: &Shared, path: Path) -> Reason {
        let impossible = Reason::against_direct(&shared.nat, &self.nat);
        match path {
            Path::Direct { .. } => Reason::Answered,
            Path::None if self.rounds.phase == Phase::Idle => Reason::PeerSilent,
            _ => match impossible {
                Some(reason) => reason,
                None if self.died => Reason::DirectDied,
                None if self.rounds.phase != Phase::Idle => Reason::Probing,
                None if !self.checks.iter().any(Check::is_direct) => Reason::NoCandidates,
                None => Reason::NoAnswer,
            },
        }
    }
}

/// The best of the eligible addresses; the current one if it is eligible and no other is clearly better.
fn best<'a>(checks: &'a [Check], current: Option<&'a Check>, eligible: impl Fn(&Check) -> bool) -> Option<&'a Check> {
    let mut chosen = current.filter(|check| eligible(check));
    for check in checks.iter().filter(|check| eligible(check)) {
        if chosen.is_none_or(|known| is_better(check, known)) {
            chosen = Some(check);
        }
    }
    chosen
}

fn is_better(new: &Check, old: &Check) -> bool {
    let (new_cost, old_cost) = (cost(new), cost(old));
    let equal = new_cost <= old_cost + EQUAL.max(old_cost / 10) && old_cost <= new_cost + EQUAL.max(new_cost / 10);
    let family = new.route.to.is_ipv6() != old.route.to.is_ipv6();
    if family && equal && new.is_direct() {
        return new.route.to.is_ipv6();
    }
    new_cost + HYSTERESIS.max(old_cost / 5) < old_cost
}

fn cost(check: &Check) -> Duration {
    let handicap = match check.kind {
        Kind::Relay(relay) if relay.kind == RelayKind::Tls => TLS_HANDICAP,
        _ => Duration::ZERO,
    };
    check.round_trip().unwrap_or_default() + handicap
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::check::Route;

    fn check(address: &str, millis: u64) -> Check {
        let mut check = Check::new(Route::tunnel(address.parse().unwrap()), Kind::PeerReflexive);
        check.state = State::Alive { round_trip: Duration::from_millis(millis) };
        check
    }

    #[test]
    fn ipv6_wins_when_equal_and_stays() {
        let (v4, v6) = (check("192.0.2.1:1", 20), check("[2001:db8::1]:1", 21));
        assert!(is_better(&v6, &v4));
        assert!(!is_better(&v4, &v6));
        let slow = check("[2001:db8::1]:1", 40);
        assert!(!is_better(&slow, &v4));
        assert!(is_better(&v4, &slow));
    }

    #[test]
    fn a_little_quicker_is_not_enough() {
        let (old, new) = (check("192.0.2.1:1", 20), check("192.0.2.1:2", 16));
        assert!(!is_better(&new, &old));
        assert!(is_better(&check("192.0.2.1:2", 10), &old));
        let checks = [check("192.0.2.1:2", 16), check("192.0.2.1:3", 3), check("192.0.2.1:4", 2)];
        let chosen = best(&checks, Some(&old), |_| true).unwrap();
        assert_eq!(chosen.route.to.port(), 3, "and among the rest the same holds");
    }
}
