//! The search on one path: what is probed when, and what follows from the answers.
//!
//! Two trials run side by side, so that searching for a larger size never delays noticing that the path has shrunk: the
//! *climb* looks for larger sizes (or first for somebody who answers at all), the *verification* asks whether the size
//! in use still passes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::RngCore;

use super::constants::{
    ANSWER_LIFETIME, ASK_AGAIN, ASK_ROUNDS, BASE, CLIMB_ROUNDS, CONFIRM, DEFER, GRAIN, HINT_PACE, LADDER,
    MAX_OUTSTANDING, RAISE, VERIFY_ROUNDS, WAIT_MAX, WAIT_MIN, WAIT_UNKNOWN,
};
use super::hint::Hint;
use super::trial::Trial;
use super::{ByteBudget, MtuSource};

/// What else is known about the path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conditions {
    /// The last pings were answered. Otherwise nothing is probed.
    pub alive: bool,
    /// Data flows.
    pub busy: bool,
    pub round_trip: Option<Duration>,
    /// When the last answered ping was sent: the path was alive at that time.
    pub heard: Option<Instant>,
}

/// A probe to be sent, or one that was sent. `size` is that of the outer packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizedProbe {
    /// A random number that the answer repeats.
    pub transaction: u64,
    pub size: u16,
}

pub(crate) struct Search {
    ceiling: u16,
    /// The outer packet around the shortest probe.
    smallest: u16,
    /// What counts while nothing is proven.
    fallback: (u16, MtuSource),
    /// Whether the smallest probe, or another one, was answered.
    answered: bool,
    /// Whether a climb has had a first result.
    settled: bool,
    /// The largest proven size; 0 if there is none that counts.
    low: u16,
    /// The smallest size found too large in the present climb.
    high: Option<u16>,
    climb: Option<Trial>,
    /// When the next climb is due, if data flows; the very first one is due at once.
    climb_at: Option<Instant>,
    verify: Option<Trial>,
    /// When the last answered probe of `low` bytes was sent.
    proven_at: Option<Instant>,
    outstanding: VecDeque<(SizedProbe, Instant)>,
    budget: ByteBudget,
    hint: Hint,
    /// A size that a router reported, which is worth a probe.
    told: Option<u16>,
    told_at: Option<Instant>,
}

impl Search {
    /// A search up to `ceiling`; until it has a result, `previous` counts if it is smaller.
    pub fn new(ceiling: u16, smallest: u16, previous: Option<u16>) -> Self {
        let fallback = match previous.filter(|previous| *previous < ceiling) {
            Some(previous) => (previous, MtuSource::Previous),
            None => (ceiling, MtuSource::Link),
        };
        Self {
            ceiling,
            smallest,
            fallback,
            answered: false,
            settled: false,
            low: 0,
            high: None,
            climb: None,
            climb_at: None,
            verify: None,
            proven_at: None,
            outstanding: VecDeque::new(),
            budget: ByteBudget::of_path(),
            hint: Hint::default(),
            told: None,
            told_at: None,
        }
    }

    /// The outer MTU, and how it is known.
    pub fn value(&self) -> (u16, MtuSource) {
        if self.answered && self.settled {
            return if self.low > 0 { (self.low, MtuSource::Probed) } else { (self.base(), MtuSource::Base) };
        }
        match self.hint.mtu().filter(|told| *told < self.fallback.0) {
            Some(told) => (told, MtuSource::Icmp),
            None => self.fallback,
        }
    }

    fn base(&self) -> u16 {
        BASE.min(self.ceiling)
    }

    /// The link or the pinned size has changed: a smaller ceiling counts at once, with a larger one the search starts
    /// at once.
    pub fn set_ceiling(&mut self, now: Instant, ceiling: u16) {
        let before = std::mem::replace(&mut self.ceiling, ceiling);
        if before == ceiling {
            return;
        }
        let follows = self.fallback.1 == MtuSource::Link;
        self.fallback.0 = if follows { ceiling } else { self.fallback.0.min(ceiling) };
        self.low = self.low.min(ceiling);
        self.outstanding.retain(|(probe, _)| probe.size <= ceiling);
        self.verify = None;
        if self.answered {
            self.high = None;
            self.climb_to(now, self.candidates());
        }
    }

    /// The path is no longer used; what is known about it is kept.
    pub fn pause(&mut self) {
        (self.climb, self.verify) = (None, None);
        self.outstanding.clear();
        if !self.settled {
            (self.answered, self.low, self.climb_at) = (false, 0, None);
        }
    }

    /// Nobody answers any more: what counts is the link, and what ICMP proves.
    pub fn give_up(&mut self) {
        self.fallback = (self.ceiling, MtuSource::Link);
        self.forget_answers();
    }

    fn forget_answers(&mut self) {
        (self.answered, self.settled, self.low) = (false, false, 0);
        self.outstanding.clear();
        (self.climb, self.verify, self.climb_at) = (None, None, None);
    }

    /// When [`advance`](Self::advance) is to be called next.
    pub fn deadline(&self, now: Instant, conditions: &Conditions) -> Option<Instant> {
        let due = [self.climb_due(now, conditions), self.verify_due(now, conditions), self.hint.deadline()];
        due.into_iter().flatten().min()
    }

    fn climb_due(&self, now: Instant, conditions: &Conditions) -> Option<Instant> {
        match (&self.climb, self.climb_at) {
            _ if !conditions.alive => None,
            (Some(trial), _) => Some(trial.due),
            (None, None) => Some(now),
            (None, Some(at)) => (conditions.busy && self.may_grow()).then_some(at),
        }
    }

    fn may_grow(&self) -> bool {
        !self.answered || self.low < self.ceiling
    }

    fn verify_due(&self, now: Instant, conditions: &Conditions) -> Option<Instant> {
        match &self.verify {
            _ if !conditions.alive => None,
            Some(trial) => Some(trial.due),
            None if !conditions.busy || !self.settled || self.low == 0 => None,
            None => Some(self.proven_at.map_or(now, |at| at + CONFIRM)),
        }
    }

    /// Does what is due; returns the probes to send.
    pub fn advance(
        &mut self,
        now: Instant,
        conditions: &Conditions,
        total: &mut ByteBudget,
        rng: &mut dyn RngCore,
    ) -> Vec<SizedProbe> {
        self.hint.expire(now);
        self.outstanding.retain(|(_, at)| now < *at + ANSWER_LIFETIME);
        let mut turn = Turn { now, conditions, total, rng, probes: Vec::new() };
        self.advance_verify(&mut turn);
        self.advance_climb(&mut turn);
        turn.probes
    }

    fn advance_verify(&mut self, turn: &mut Turn<'_>) {
        let (now, conditions) = (turn.now, turn.conditions);
        if !conditions.busy {
            self.verify = None;
        }
        if self.verify_due(now, conditions).is_none_or(|at| at > now) {
            return;
        }
        let mut trial = self.verify.take().unwrap_or_else(|| self.verification(now, true));
        if trial.rounds >= VERIFY_ROUNDS && self.judge(now, conditions, &trial) {
            return;
        }
        let wait = wait(conditions);
        if self.send(turn, trial.round(), true) {
            // The first answer is waited for; once that is missed, several probes are sent within one wait.
            let hurried = (1..VERIFY_ROUNDS - 1).contains(&trial.rounds);
            trial.sent(now + if hurried { (wait / 3).max(WAIT_MIN / 3) } else { wait });
        } else {
            trial.due = now + DEFER;
        }
        self.verify = Some(trial);
    }

    /// A trial of the size in use, and of the smaller ones to fall back to.
    fn verification(&self, now: Instant, narrow: bool) -> Trial {
        let below = LADDER.into_iter().chain(self.told).chain([self.base(), self.smallest]);
        let sizes = below.filter(|size| *size < self.low).chain([self.low]).collect();
        Trial { narrow, ..Trial::new(now, sizes) }
    }

    /// The size in use was not answered. Returns whether that is certain to mean something.
    fn judge(&mut self, now: Instant, conditions: &Conditions, trial: &Trial) -> bool {
        if trial.best >= self.base() {
            self.fall(now, trial.best);
        } else if trial.best > 0 {
            self.fall(now, 0);
        } else if conditions.heard.is_some_and(|at| at >= trial.began) {
            // Pings are answered, but no padded probe of any size: whoever is there now does not know them.
            self.fallback = (self.low, MtuSource::Previous);
            self.forget_answers();
        } else {
            return false;
        }
        true
    }

    fn fall(&mut self, now: Instant, to: u16) {
        self.high = Some(self.low);
        (self.low, self.proven_at) = (to, Some(now));
        self.outstanding.retain(|(probe, _)| probe.size <= to);
        self.climb_to(now, self.candidates());
    }

    fn advance_climb(&mut self, turn: &mut Turn<'_>) {
        let (now, conditions) = (turn.now, turn.conditions);
        // When one trial ends, the next may start.
        while self.climb_due(now, conditions).is_some_and(|at| at <= now) {
            let mut trial = self.climb.take().unwrap_or_else(|| self.next_climb(now));
            let rounds = if self.answered { CLIMB_ROUNDS } else { ASK_ROUNDS };
            // After the first wait, what was answered so far counts; the rest may take its time.
            self.settled |= self.low > 0 && trial.rounds > 0;
            if trial.rounds >= rounds {
                self.end_climb(now, conditions, &trial);
                continue;
            }
            if self.send(turn, trial.round(), false) {
                trial.sent(now + wait(conditions));
            } else {
                trial.due = now + DEFER;
            }
            self.climb = Some(trial);
        }
    }

    /// Asks whether anybody answers, or whether a little more than the known size passes.
    fn next_climb(&mut self, now: Instant) -> Trial {
        (self.high, self.told) = (None, None);
        let first = if !self.answered {
            self.smallest
        } else if self.low == 0 {
            self.base()
        } else {
            self.low.saturating_add(GRAIN).min(self.ceiling)
        };
        Trial::new(now, vec![first])
    }

    fn end_climb(&mut self, now: Instant, conditions: &Conditions, trial: &Trial) {
        if self.answered {
            self.settled = true;
            self.high = trial.sizes.iter().copied().filter(|size| *size > self.low).min().or(self.high);
            return self.climb_to(now, self.candidates());
        }
        let alive = conditions.heard.is_some_and(|at| at >= trial.began);
        if alive {
            self.fallback = (self.ceiling, MtuSource::Link);
        }
        self.climb_at = Some(now + if alive { RAISE } else { ASK_AGAIN });
    }

    /// Tries these sizes next, or rests if there are none.
    fn climb_to(&mut self, now: Instant, sizes: Vec<u16>) {
        self.climb = (!sizes.is_empty()).then(|| Trial::new(now, sizes));
        self.climb_at = Some(now + RAISE);
    }

    /// The sizes still to be tried between what passes and what does not.
    fn candidates(&self) -> Vec<u16> {
        let Some(high) = self.high else {
            let steps = LADDER.into_iter().filter(|size| (self.base()..self.ceiling).contains(size));
            return steps.chain([self.ceiling]).filter(|size| *size > self.low).collect();
        };
        let told = self.told.filter(|told| (self.low..high).contains(told));
        match told {
            _ if self.low == 0 => vec![],
            Some(told) if told > self.low => vec![told],
            Some(_) => vec![],
            None if high - self.low > GRAIN => vec![self.low.midpoint(high)],
            None => vec![],
        }
    }

    /// Notes the probes of a round, if all of them may be sent.
    fn send(&mut self, turn: &mut Turn<'_>, sizes: &[u16], urgent: bool) -> bool {
        let now = turn.now;
        let bytes = sizes.iter().map(|size| u32::from(*size)).sum();
        let allowed = self.budget.take(now, bytes, urgent) && turn.total.take(now, bytes, urgent);
        if allowed {
            for size in sizes {
                let probe = SizedProbe { transaction: turn.rng.next_u64(), size: *size };
                if self.outstanding.len() == MAX_OUTSTANDING {
                    self.outstanding.pop_front();
                }
                self.outstanding.push_back((probe, now));
                turn.probes.push(probe);
            }
        }
        allowed
    }

    /// Takes an answer; `false` when it answers no probe of ours of this size.
    pub fn handle_answer(&mut self, now: Instant, answer: SizedProbe) -> bool {
        let fresh = |at: Instant| now < at + ANSWER_LIFETIME;
        let Some(found) = self.outstanding.iter().position(|(probe, at)| *probe == answer && fresh(*at)) else {
            return false;
        };
        let at = self.outstanding.remove(found).map_or(now, |(_, at)| at);
        let size = answer.size;
        if size >= self.base() && size >= self.low {
            // Answers may overtake each other.
            self.proven_at = if size == self.low { self.proven_at.max(Some(at)) } else { Some(at) };
            self.low = size;
            self.high = self.high.filter(|high| *high > size);
        }
        if !self.answered {
            (self.answered, self.high) = (true, None);
            self.climb_to(now, self.candidates());
            return true;
        }
        if let Some(trial) = &mut self.verify {
            trial.answered(size);
            if trial.sizes.is_empty() {
                self.verify = None;
            }
        }
        if let Some(trial) = &mut self.climb {
            trial.answered(size);
            if trial.sizes.is_empty() {
                self.settled = true;
                self.climb_to(now, self.candidates());
            }
        }
        true
    }

    /// Takes a router's message; `proven` if only somebody who has seen our data can have sent it.
    pub fn handle_hint(&mut self, now: Instant, mtu: u16, proven: bool) {
        if mtu >= self.value().0 {
            return;
        }
        if !self.answered {
            if proven {
                self.hint.take(now, mtu);
            }
            return;
        }
        self.told = Some(mtu.max(self.base()));
        let rested = self.told_at.is_none_or(|at| now >= at + HINT_PACE);
        if rested && self.settled && mtu < self.low {
            self.told_at = Some(now);
            // A verification under way continues, or whoever sends such messages could keep it from ever ending.
            match &mut self.verify {
                Some(trial) => trial.widen(mtu.max(BASE)),
                None => self.verify = Some(self.verification(now, false)),
            }
        }
    }
}

/// One call of [`Search::advance`].
struct Turn<'a> {
    now: Instant,
    conditions: &'a Conditions,
    /// The budget of all paths together.
    total: &'a mut ByteBudget,
    rng: &'a mut dyn RngCore,
    probes: Vec<SizedProbe>,
}

/// How long to wait for an answer.
fn wait(conditions: &Conditions) -> Duration {
    let expected = |round_trip: Duration| round_trip * 3 / 2 + Duration::from_millis(30);
    conditions.round_trip.map_or(WAIT_UNKNOWN, expected).clamp(WAIT_MIN, WAIT_MAX)
}
