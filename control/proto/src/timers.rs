//! A peer's timers (paper section 6): deadlines and nothing else. `send` does what is due when one has passed.

use std::time::Instant;

use crate::constants::Timings;

#[derive(Default)]
pub(crate) struct Timers {
    /// When the handshake under way is tried again, or for the first time.
    pub retry: Option<Instant>,
    /// When the handshake under way is given up.
    pub give_up: Option<Instant>,
    /// No initiation is sent before this: the last handshake message must have had its chance.
    pub quiet_until: Option<Instant>,
    /// Data was received, and nothing sent since: an empty packet is due.
    pub keepalive: Option<Instant>,
    /// More data was received while `keepalive` was pending.
    pub another_keepalive: bool,
    /// Data was sent, and nothing received since: a new handshake is due.
    pub unanswered: Option<Instant>,
    /// When something authentic was last received.
    pub heard: Option<Instant>,
    /// The persistent keepalive.
    pub persistent: Option<Instant>,
    /// The current session has already asked for its successor because of its age on receipt.
    pub asked_on_receive: bool,
}

impl Timers {
    pub fn next(&self) -> Option<Instant> {
        let deadlines = [self.retry, self.give_up, self.keepalive, self.unanswered, self.persistent];
        deadlines.into_iter().flatten().min()
    }

    /// Anything authenticated was sent, including keepalives and handshake messages.
    pub fn any_sent(&mut self) {
        self.keepalive = None;
        self.another_keepalive = false;
    }

    pub fn data_sent(&mut self, now: Instant, timings: &Timings) {
        self.unanswered.get_or_insert(now + timings.unanswered());
    }

    /// Anything authenticated was received, including keepalives and handshake messages.
    pub fn any_received(&mut self, now: Instant) {
        self.unanswered = None;
        self.heard = Some(now);
    }

    /// Nothing authentic has come for longer than a live peer that we send to may be silent.
    pub fn is_silent(&self, now: Instant, timings: &Timings) -> bool {
        self.heard.is_none_or(|at| now >= at + timings.unanswered())
    }

    pub fn data_received(&mut self, now: Instant, timings: &Timings) {
        if self.keepalive.is_some() {
            self.another_keepalive = true;
        } else {
            self.keepalive = Some(now + timings.keepalive_timeout);
        }
    }

    pub fn keepalive_sent(&mut self, now: Instant, timings: &Timings) {
        self.keepalive = self.another_keepalive.then(|| now + timings.keepalive_timeout);
        self.another_keepalive = false;
    }

    pub fn handshake_complete(&mut self) {
        self.retry = None;
        self.give_up = None;
        self.asked_on_receive = false;
    }
}

/// Takes a deadline if it has passed.
pub(crate) fn due(deadline: &mut Option<Instant>, now: Instant) -> bool {
    deadline.take_if(|at| *at <= now).is_some()
}
