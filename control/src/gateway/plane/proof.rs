//! Whether AF_XDP carries what it is given on an interface, and what replaces it when it does not.
//!
//! ```text
//!   unproven ──► proven ──► failing ──► fallen back ──► tried again: the link has changed, or the wait is over
//! ```
//! That a socket was bound proves nothing. Each queue is proven separately, in each direction:
//!
//! - *Receiving*: what the program redirects comes out of the ring; on the WAN some of it are messages that verify.
//! - *Sending*, on the WAN: a peer sends on a session that we started and whose messages left only through this ring.
//!   The responder of a handshake may not send before it has received something. On the LAN nobody answers us: all
//!   that can be seen is that the driver gives back what it has sent.
//!
//! There is no I/O here, and time is an argument. Counters are to be reported about once a second.

use std::collections::{BTreeMap, BTreeSet};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports::evidence::Passed;
use penstock_dataplane::ports::xdp::RING;

pub use fault::Fault;
pub use silence::Arrivals;

use missed::{Missed, Share};
use silence::{Need, Silence};

mod fault;
mod missed;
mod silence;
#[cfg(test)]
mod tests;

/// How long a frame may take to pass through a ring.
const MOMENT: Millis = Millis(900);
/// How long nothing may come out while frames go in.
const PATIENCE: Millis = Millis(3_000);
/// How long a driver may show the program none of the frames that the kernel counts.
const UNSEEN_PATIENCE: Millis = Millis(5_000);
/// How long a peer may leave data unanswered: WireGuard's 10 s (section 6.5 of its paper), and the round trip.
const ANSWER: Millis = Millis(12_000);
/// Fewer frames or messages than these may have been lost by chance.
const SWALLOWED: u64 = 4;
const DAMAGED: u64 = 8;
const UNANSWERED: u64 = 8;
const UNSEEN: u64 = 16;
const STALLED: u64 = 8;
/// Drivers that do not copy give frames back when part of their own ring is used up.
const STALLED_ZERO_COPY: u64 = RING as u64 / 2;
/// After a gap this long between reports, counters say nothing about the time in between.
const GAP: Millis = Millis(2_500);
/// How long packets may be sent without a proof before a session is started to get one, and before the next one.
const ASK: Millis = Millis(30_000);
const ASK_AGAIN: Millis = Millis(120_000);
/// The wait before another attempt. Each attempt that fails soon doubles it.
const FIRST_WAIT: Millis = Millis(5 * 60_000);
const LONGEST_WAIT: Millis = Millis(6 * 3_600_000);
/// How often a link that flaps may cause the ports to be replaced, at most.
const SETTLING: Millis = Millis(10_000);

/// How an interface is driven, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// By AF_XDP, as well as the driver can.
    #[default]
    Best,
    /// By AF_XDP, with frames copied.
    Copy,
    /// The same, in the kernel's generic path.
    Generic,
    /// By the kernel's sockets.
    Sockets,
}

impl Method {
    /// What is in use now, as the end of a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Best => "AF_XDP as the driver can",
            Self::Copy => "AF_XDP with copies",
            Self::Generic => "generic XDP",
            Self::Sockets => "sockets",
        }
    }
}

/// How the ports of an interface were bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Whether they carry the tunnel, and not the site's packets.
    pub wan: bool,
    /// Whether frames are not copied.
    pub zero_copy: bool,
    /// Whether the program runs in the driver.
    pub native: bool,
    /// Whether the profile requires AF_XDP; then generic mode will do.
    pub required: bool,
    /// Whether generic XDP might see several datagrams as one.
    pub uncut: bool,
    /// Frames that the program had been shown by then.
    pub shown: u64,
}

/// The counters of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that the program redirected to its socket.
    pub redirected: u64,
    /// What has passed its port.
    pub passed: Passed,
}

/// A session with a peer that is reached without a relay.
#[derive(Clone, Debug)]
pub struct DirectSession<'a> {
    /// The peer's name.
    pub peer: &'a str,
    /// Our receiver index of it.
    pub index: u32,
    /// Whether we initiated it.
    pub ours: bool,
    /// The ways by which its messages have left.
    pub left_by: u64,
    /// Those ways at the time when the peer was first heard on it.
    pub answered: Option<u64>,
    /// How many messages were sent on it.
    pub sent: u64,
    /// When data was first sent on it.
    pub first_data: Option<Millis>,
    /// When its handshake was completed.
    pub born: Millis,
    /// The same for the next session with this peer.
    pub next_born: Option<Millis>,
}

/// What has replaced the best way to drive an interface, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallen {
    /// What is in use now.
    pub method: Method,
    /// What was seen.
    pub fault: Fault,
    since: Millis,
    /// When the best way is tried again.
    pub retry: Millis,
}

/// The verdict on one direction of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is proven, unproven, or about to be given up.
    pub state: State,
    /// When it was last proven.
    pub proven: Option<Millis>,
    /// What was seen, in a sentence.
    pub seen: String,
}

/// See [`Verdict::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Unproven,
    Proven,
    Failing,
}

impl State {
    /// Its name in `status --json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Proven => "proven",
            Self::Failing => "failing",
        }
    }

    fn of(proven: Option<Millis>, failing: bool) -> Self {
        match proven {
            _ if failing => Self::Failing,
            Some(_) => Self::Proven,
            None => Self::Unproven,
        }
    }
}

/// The proofs of an interface.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// What is bound, and since when.
    bound: Option<(Bound, Millis)>,
    queues: BTreeMap<u32, Queue>,
    /// Frames that arrived at the interface, and those that the program was shown.
    shown: Flow,
    /// Whether any frame has arrived since the ports were bound.
    silence: Silence,
    /// Whether the card is to be restarted.
    restart: bool,
    /// What share of the tunnel's packets reaches the rings.
    share: Share,
    told: Millis,
    /// When a session was last started to get a proof.
    asked: Option<Millis>,
    fault: Option<Fault>,
    fallen: Option<Fallen>,
    wait: Millis,
}

impl Proof {
    /// The ports were replaced by these; `None`: by sockets.
    pub fn bound(&mut self, now: Millis, bound: Option<Bound>) {
        self.bound = bound.map(|bound| (bound, now));
        self.queues.clear();
        (self.shown, self.silence, self.share) = (Flow::default(), Silence::default(), Share::default());
        (self.asked, self.fault, self.restart) = (None, None, false);
    }

    /// How the interface is to be driven.
    pub fn method(&self) -> Method {
        self.fallen.as_ref().map_or(Method::Best, |fallen| fallen.method)
    }

    /// What has replaced the best way, and why.
    pub fn fallen(&self) -> Option<&Fallen> {
        self.fallen.as_ref()
    }

    /// Whether frames are not copied.
    pub fn zero_copy(&self) -> bool {
        self.bound.is_some_and(|(bound, _)| bound.zero_copy)
    }

    /// Whether generic XDP drives an interface where it might see several datagrams as one.
    pub fn comes_uncut(&self) -> bool {
        self.bound.is_some_and(|(bound, _)| bound.uncut && !bound.native)
    }

    /// To be called before the counters of this time are reported.
    pub fn begin(&mut self, now: Millis) {
        if now.since(self.told) >= GAP {
            self.queues.values_mut().for_each(Queue::forgive);
            self.shown.stuck = None;
            self.silence.forgive();
            self.share.forgive();
        }
        self.queues.values_mut().for_each(|queue| (queue.overdue, queue.may_prove) = (false, false));
        self.told = now;
    }

    /// Takes the counters of a queue.
    pub fn handle_counters(&mut self, now: Millis, queue: u32, counters: Counters) {
        let Some((bound, _)) = self.bound else { return };
        let seen = self.queues.entry(queue).or_default().handle_counters(now, queue, bound, counters);
        self.fault = self.fault.take().or(seen);
    }

    /// Takes what has arrived at the interface.
    pub fn handle_arrivals(&mut self, now: Millis, arrivals: Arrivals) {
        let Some((bound @ Bound { zero_copy: true, .. }, _)) = self.bound else { return };
        match self.silence.handle(now, bound.shown, arrivals) {
            Some(Need::Restart) => self.restart = true,
            // The hosts of a silent LAN may be switched off.
            Some(Need::Copy { calls }) if bound.wan => _ = self.fault.get_or_insert(Fault::Silent { calls }),
            _ => {}
        }
        let lost = self.shown.handle(now, arrivals.counted, arrivals.shown);
        if let Some((frames, _)) = lost.filter(|(frames, time)| *frames >= UNSEEN && *time >= UNSEEN_PATIENCE) {
            self.fault.get_or_insert(Fault::Unseen { frames });
        }
    }

    /// Whether the card is to be restarted, because nothing has arrived since the ports were bound. True only once.
    pub fn take_restart(&mut self) -> bool {
        std::mem::take(&mut self.restart)
    }

    /// Takes how many frames the program has redirected, and how many of the tunnel's it has left to the kernel, by
    /// verdict. In `auto` AF_XDP is given up when most were left to the kernel. Returns whether [`Self::missed`] has
    /// changed.
    pub fn handle_missed(&mut self, now: Millis, redirected: u64, left: &BTreeMap<&'static str, u64>) -> bool {
        let Some((bound, _)) = self.bound else { return false };
        let changed = self.share.handle(now, redirected, left);
        if !bound.required
            && let Some(missed) = &self.share.missed
        {
            self.fault.get_or_insert(Fault::Missed(missed.clone()));
        }
        changed
    }

    /// The finding that AF_XDP carries little, if it still drives the interface.
    pub fn missed(&self) -> Option<&Missed> {
        self.share.missed.as_ref()
    }

    /// Takes the state of a session. `way` is that of the ring with which `queue` sends.
    pub fn handle_session(&mut self, now: Millis, queue: u32, way: u64, session: &DirectSession<'_>) {
        // What began before the ring was bound proves nothing about it.
        if !self.bound.is_some_and(|(bound, since)| bound.wan && session.born >= since) {
            return;
        }
        let seen = self.queues.entry(queue).or_default().handle_session(now, queue, way, session);
        self.fault = self.fault.take().or(seen);
    }

    /// Whether a session should be started with a peer that we send to, because no other session proves sending or is
    /// about to.
    pub fn asks(&mut self, now: Millis) -> bool {
        let Some((_, since)) = self.bound.filter(|(bound, _)| bound.wan) else { return false };
        let due = self.asked.map_or(after(since, ASK), |asked| after(asked, ASK_AGAIN));
        let sends = self.queues.values().any(|queue| queue.counters.passed.sent > 0);
        let asks =
            now >= due && sends && self.queues.values().all(|queue| queue.answered.is_none() && !queue.may_prove);
        if asks {
            self.asked = Some(now);
        }
        asks
    }

    /// The interface has changed, or has come up again: what failed may work now. This does not apply to a silent card:
    /// binding made it silent.
    pub fn handle_link_event(&mut self, now: Millis) {
        if let Some(fallen) = self.fallen.as_mut().filter(|fallen| !matches!(fallen.fault, Fault::Silent { .. })) {
            fallen.retry = fallen.retry.min(now.max(after(fallen.since, SETTLING)));
        }
    }

    /// Gives up what has failed, and retries what is due. Returns whether the ports have to be replaced.
    pub fn handle_timeout(&mut self, now: Millis) -> bool {
        if let Some(fault) = self.fault.take()
            && let Some((bound, since)) = self.bound.take()
        {
            self.fall(now, fault, bound, since);
            return true;
        }
        self.fallen.take_if(|fallen| fallen.retry <= now).is_some()
    }

    fn fall(&mut self, now: Millis, fault: Fault, bound: Bound, since: Millis) {
        let method = match &fault {
            Fault::Missed(_) => Method::Sockets,
            _ if bound.zero_copy => Method::Copy,
            fault if fault.of_receiving() && bound.native && bound.required && !bound.uncut => Method::Generic,
            _ => Method::Sockets,
        };
        if self.method() == Method::Best {
            let soon = self.wait > Millis(0) && now.since(since) < self.wait;
            self.wait = if soon { Millis(self.wait.0 * 2).min(LONGEST_WAIT) } else { FIRST_WAIT };
        }
        self.fallen = Some(Fallen { method, fault, since: now, retry: after(now, self.wait) });
    }

    /// The verdicts on a queue: receiving, sending.
    pub fn verdicts(&self, queue: u32) -> Option<[Verdict; 2]> {
        let (bound, _) = self.bound?;
        let of = self.queues.get(&queue)?;
        Some([of.receiving(self.told, bound.wan, &self.shown), of.sending(self.told, bound.wan)])
    }
}

/// A queue of the interface.
#[derive(Clone, Debug, Default)]
struct Queue {
    counters: Counters,
    /// Frames redirected, and frames that came out of the ring.
    taken: Flow,
    /// Damaged messages, and messages that verified.
    intact: Flow,
    /// Frames put into the ring, and frames that came back.
    completed: Flow,
    received: Option<Millis>,
    /// When the peer was first heard on a session that proves sending, and when that session began.
    answered: Option<(Millis, Millis)>,
    /// Messages of sessions that ended without an answer, and the indices of these sessions.
    unanswered: u64,
    counted: BTreeSet<u32>,
    /// Whether a session has waited for an answer for too long.
    overdue: bool,
    /// Whether a session may still prove something.
    may_prove: bool,
}

impl Queue {
    fn handle_counters(&mut self, now: Millis, queue: u32, bound: Bound, counters: Counters) -> Option<Fault> {
        let Counters { redirected, passed } = counters;
        let before = std::mem::replace(&mut self.counters, counters).passed;
        let good = |passed: Passed| if bound.wan { passed.verified } else { passed.received };
        if good(passed) > good(before) {
            self.received = Some(now);
        }
        let lost = self.taken.handle(now, redirected, passed.received);
        if let Some((frames, _)) = lost.filter(|(frames, time)| *frames >= SWALLOWED && *time >= PATIENCE) {
            return Some(Fault::Swallowed { queue, frames });
        }
        let damaged = self.intact.handle(now, passed.damaged, passed.verified);
        // Later, somebody on the path may be damaging messages, and sockets would fare no better.
        let damaged = damaged.filter(|(messages, time)| *messages >= DAMAGED && *time >= PATIENCE);
        if let Some((messages, _)) = damaged.filter(|_| self.received.is_none()) {
            return Some(Fault::Damaged { queue, messages });
        }
        let stalled = self.completed.handle(now, passed.sent, passed.completed);
        let enough = if bound.zero_copy { STALLED_ZERO_COPY } else { STALLED };
        stalled
            .filter(|(frames, time)| *frames >= enough && *time >= PATIENCE)
            .map(|(frames, _)| Fault::Stalled { queue, frames })
    }

    fn handle_session(&mut self, now: Millis, queue: u32, way: u64, session: &DirectSession<'_>) -> Option<Fault> {
        if !session.ours {
            return None;
        }
        if let Some(ways) = session.answered {
            if ways == way && self.answered.is_none_or(|(_, born)| born < session.born) {
                self.answered = Some((now, session.born));
                (self.unanswered, self.overdue) = (0, false);
                self.counted.clear();
            }
            return None;
        }
        self.may_prove |= session.left_by & !way == 0;
        let due = after(session.first_data.filter(|_| session.left_by == way)?, ANSWER);
        match session.next_born {
            // The peer could be reached both before and after it.
            Some(next) if next >= due => {
                if self.counted.insert(session.index) {
                    self.unanswered += session.sent;
                }
            }
            Some(_) => {}
            None => self.overdue |= now >= due,
        }
        let fault = Fault::Unanswered { queue, messages: self.unanswered, peer: session.peer.to_owned() };
        (self.unanswered >= UNANSWERED).then_some(fault)
    }

    /// Discards the state, because nothing is known about the time that has passed.
    fn forgive(&mut self) {
        [&mut self.taken, &mut self.intact, &mut self.completed].into_iter().for_each(|flow| flow.stuck = None);
    }

    fn receiving(&self, now: Millis, wan: bool, shown: &Flow) -> Verdict {
        let Counters { redirected, passed: Passed { received, verified, damaged, .. } } = self.counters;
        let failing = shown.is_stuck(now) || self.taken.is_stuck(now);
        let mut seen = format!("the program redirected {redirected} frames, and {received} came out of the ring");
        if wan {
            seen += &format!("; {verified} messages were intact, {damaged} damaged");
        }
        Verdict { state: State::of(self.received, failing), proven: self.received, seen }
    }

    fn sending(&self, now: Millis, wan: bool) -> Verdict {
        let Passed { sent, completed, .. } = self.counters.passed;
        let proven = self.answered.map(|(at, _)| at);
        let answer = match proven {
            _ if !wan => "no host of a LAN answers to us",
            Some(_) => "a peer has answered by a session whose messages left by this queue alone",
            None => "no peer has answered by a session whose messages left by this queue alone",
        };
        let seen = format!("{sent} frames were put into the ring, and {completed} came back; {answer}");
        let failing = self.overdue || self.completed.is_stuck(now);
        Verdict { state: State::of(proven, failing), proven, seen }
    }
}

/// Something that goes in, and has to come out.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// What had gone in when something last came out, or when nothing was outstanding.
    put: Option<u64>,
    came: u64,
    /// Since when something goes in and nothing comes out.
    stuck: Option<Millis>,
}

impl Flow {
    /// How much has gone in since something last came out, and since when it is stuck.
    fn handle(&mut self, now: Millis, put: u64, came: u64) -> Option<(u64, Millis)> {
        let before = self.put.filter(|before| self.came == came && *before < put);
        let Some(before) = before else {
            *self = Self { put: Some(put), came, stuck: None };
            return None;
        };
        let since = *self.stuck.get_or_insert(now);
        Some((put - before, now.since(since)))
    }

    /// Whether it has been stuck for longer than a frame may take.
    fn is_stuck(&self, now: Millis) -> bool {
        self.stuck.is_some_and(|since| now.since(since) >= MOMENT)
    }
}

fn after(at: Millis, wait: Millis) -> Millis {
    Millis(at.0.saturating_add(wait.0))
}
