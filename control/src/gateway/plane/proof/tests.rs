//! Ports that fail in every way, seen by what they count.

use super::*;
use penstock_dataplane::loopback::Loopback;

const WAN: Bound = Bound { wan: true, zero_copy: false, native: true, required: true, uncut: false, shown: 0 };
const LAN: Bound = Bound { wan: false, ..WAN };
const SECOND: u64 = 1_000;
/// The way of the ring, and that of the kernel's socket.
const RING_WAY: u64 = 1;
const KERNEL_WAY: u64 = 1 << 63;

/// What a device makes of its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Work,
    SwallowReceived,
    Duplicate,
    Corrupt,
    Merge,
    StallSending,
}

/// A worker between two ports in memory, one of which has a device that works for this many frames, and then does
/// something else. What the worker seals comes back to it through the WAN.
struct Port {
    plane: Loopback,
    side: &'static str,
    works_for: u64,
    then: Does,
    steps: u64,
    redirected: u64,
    /// Messages that are to become one.
    merging: Vec<u8>,
}

impl Port {
    fn new(bound: Bound, works_for: u64, then: Does) -> Self {
        let plane = Loopback::new(4_096).expect("a worker");
        let side = if bound.wan { "wan" } else { "lan" };
        Self { plane, side, works_for, then, steps: 0, redirected: 0, merging: Vec::new() }
    }

    /// Another frame comes and another one is to be sent.
    fn step(&mut self) {
        self.steps += 1;
        let does = if self.steps > self.works_for { self.then } else { Does::Work };
        let (on_wan, stalls) = (self.side == "wan", does == Does::StallSending);
        // What never left does not come back.
        self.redirected += u64::from(!on_wan || !stalls);
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 101, 0, 2, 10, 102, 0, 2];
        packet.resize(28, 0);
        if on_wan || does != Does::SwallowReceived {
            assert!(self.plane.lan.send(self.plane.worker.pool(), self.plane.endpoint, 0, &packet));
        }
        self.plane.worker.turn();
        while !(on_wan && stalls)
            && let Some(message) = self.plane.wan.receive(self.plane.worker.pool())
        {
            for bytes in self.through_device(if on_wan { does } else { Does::Work }, message.bytes) {
                assert!(self.plane.wan.send(self.plane.worker.pool(), self.plane.endpoint, 0, &bytes));
            }
        }
        self.plane.worker.turn();
        if on_wan || !stalls {
            self.plane.lan.discard(self.plane.worker.pool());
        }
    }

    /// The messages that come out of the device when this one goes in.
    fn through_device(&mut self, does: Does, mut message: Vec<u8>) -> Vec<Vec<u8>> {
        match does {
            Does::Work | Does::StallSending => vec![message],
            Does::SwallowReceived => Vec::new(),
            Does::Duplicate => vec![message.clone(), message],
            Does::Corrupt => {
                *message.last_mut().expect("a tag") ^= 1;
                vec![message]
            }
            Does::Merge => {
                self.merging.append(&mut message);
                if self.steps.is_multiple_of(3) { vec![std::mem::take(&mut self.merging)] } else { Vec::new() }
            }
        }
    }

    fn counters(&self) -> Counters {
        let mut ports = self.plane.engine.passed();
        let (_, _, passed) = ports.find(|(_, port, _)| port.interface == self.side).expect("it counts");
        Counters { redirected: self.redirected, passed }
    }
}

/// A proof that is told a port's counters every second.
struct Watch {
    proof: Proof,
    now: u64,
}

impl Watch {
    fn new(bound: Bound) -> Self {
        let mut watch = Self { proof: Proof::default(), now: SECOND };
        watch.proof.bound(Millis(SECOND), Some(bound));
        watch
    }

    fn bind(&mut self, bound: Bound) {
        self.proof.bound(Millis(self.now), Some(bound));
    }

    /// A second with this many frames. Returns whether the ports have to be replaced.
    fn second(&mut self, port: &mut Port, frames: u64) -> bool {
        (0..frames).for_each(|_| port.step());
        self.tell(port)
    }

    fn tell(&mut self, port: &Port) -> bool {
        self.now += SECOND;
        let now = Millis(self.now);
        self.proof.begin(now);
        self.proof.handle_counters(now, 0, port.counters());
        self.proof.handle_timeout(now)
    }

    /// Seconds until the port is given up, if it is within a minute.
    fn falls_after(&mut self, port: &mut Port, frames: u64) -> Option<u64> {
        (1..=60).find(|_| self.second(port, frames))
    }

    fn session(&mut self, session: &DirectSession<'_>) -> bool {
        self.now += SECOND;
        let now = Millis(self.now);
        self.proof.begin(now);
        self.proof.handle_session(now, 0, RING_WAY, session);
        self.proof.handle_timeout(now)
    }

    fn states(&self) -> [State; 2] {
        self.proof.verdicts(0).map(|verdicts| verdicts.map(|verdict| verdict.state)).expect("bound, and told of")
    }

    fn fault(&self) -> &Fault {
        &self.proof.fallen().expect("it has fallen").fault
    }
}

fn session(index: u32, born: u64) -> DirectSession<'static> {
    DirectSession {
        peer: "berlin",
        index,
        ours: true,
        left_by: RING_WAY,
        answered: None,
        sent: 10,
        first_data: Some(Millis(born)),
        born: Millis(born),
        next_born: None,
    }
}

#[test]
fn what_works_is_proven_and_stays() {
    for bound in [WAN, LAN] {
        let mut watch = Watch::new(bound);
        let mut port = Port::new(bound, u64::MAX, Does::Work);
        assert_eq!(watch.proof.verdicts(0), None);
        assert!(!watch.tell(&port));
        assert_eq!(watch.states(), [State::Unproven; 2], "nothing has passed");
        assert_eq!(watch.falls_after(&mut port, 5), None);
        assert_eq!(watch.states(), [State::Proven, State::Unproven], "nobody has answered");
        assert_eq!(watch.falls_after(&mut port, 0), None);
        assert_eq!(watch.states()[0], State::Proven, "an idle port is no faulty one");
    }
}

#[test]
fn each_way_to_fail_is_seen_within_seconds_also_when_it_begins_late() {
    for (does, bound, works_for, limit) in [
        (Does::SwallowReceived, WAN, 0, 6),
        (Does::SwallowReceived, LAN, 0, 6),
        (Does::SwallowReceived, LAN, 1_000, 60),
        (Does::Corrupt, WAN, 0, 6),
        (Does::Merge, WAN, 0, 6),
        (Does::StallSending, WAN, 0, 6),
        (Does::StallSending, LAN, 1_000, 60),
    ] {
        let mut watch = Watch::new(bound);
        let mut port = Port::new(bound, works_for, does);
        watch.tell(&port);
        let fell = watch.falls_after(&mut port, 20).unwrap_or_else(|| panic!("{does:?} is not seen"));
        assert!(fell >= 3 && fell <= limit, "{does:?} after {fell} s");
        assert!(works_for == 0 || fell - works_for / 20 <= 6, "{does:?} after {fell} s");
        let sentence = watch.fault().to_string();
        let word = match does {
            Does::SwallowReceived => "none arrived",
            Does::StallSending => "has sent none",
            _ => "were damaged",
        };
        assert!(sentence.contains(word) && sentence.contains("queue 0"), "{sentence}");
    }
}

#[test]
fn what_does_no_harm_is_left_alone() {
    // A duplicate is a replay. Damage after intact messages may be the work of anybody on the path.
    for (does, works_for) in [(Does::Duplicate, 0), (Does::Corrupt, 40)] {
        let mut watch = Watch::new(WAN);
        let mut port = Port::new(WAN, works_for, does);
        watch.tell(&port);
        assert_eq!(watch.falls_after(&mut port, 20), None, "{does:?}");
    }
    // Three frames may be lost by chance.
    let mut watch = Watch::new(LAN);
    let mut port = Port::new(LAN, 0, Does::SwallowReceived);
    watch.tell(&port);
    watch.second(&mut port, 3);
    assert_eq!(watch.falls_after(&mut port, 0), None);
    assert_eq!(watch.states()[0], State::Failing);
    // Nothing is known about a time without reports.
    watch.now += 60 * SECOND;
    assert!(!watch.second(&mut port, 20));
    assert_eq!(watch.states()[0], State::Unproven);
}

#[test]
fn frames_redirected_before_the_socket_was_bound_are_not_missed() {
    let mut watch = Watch::new(LAN);
    let mut port = Port::new(LAN, u64::MAX, Does::Work);
    port.redirected = 1_000_000;
    assert_eq!(watch.falls_after(&mut port, 1), None);
}

#[test]
fn the_ladder_is_climbed_down_and_up_again() {
    let mut watch = Watch::new(Bound { zero_copy: true, ..LAN });
    let mut port = Port::new(LAN, 0, Does::SwallowReceived);
    let mut methods = Vec::new();
    for bound in [Bound { zero_copy: true, ..LAN }, LAN, Bound { native: false, ..LAN }] {
        watch.bind(bound);
        watch.tell(&port);
        assert!(watch.falls_after(&mut port, 20).is_some());
        methods.push(watch.proof.method());
    }
    assert_eq!(methods, [Method::Copy, Method::Generic, Method::Sockets]);
    watch.proof.bound(Millis(watch.now), None);
    let fallen = watch.proof.fallen().expect("it has").clone();
    assert_eq!(fallen.retry, after(fallen.since, FIRST_WAIT));
    watch.now = fallen.retry.0 - SECOND;
    assert!(!watch.proof.handle_timeout(Millis(watch.now)));
    assert!(watch.proof.handle_timeout(fallen.retry), "the wait is over");
    assert_eq!(watch.proof.method(), Method::Best);
}

#[test]
fn generic_mode_takes_the_place_of_native_only_where_it_will_do() {
    for bound in [Bound { required: false, ..LAN }, Bound { uncut: true, ..LAN }] {
        let mut watch = Watch::new(bound);
        let mut port = Port::new(LAN, 0, Does::SwallowReceived);
        watch.tell(&port);
        assert!(watch.falls_after(&mut port, 20).is_some());
        assert_eq!(watch.proof.method(), Method::Sockets);
    }
}

#[test]
fn tries_that_fail_soon_become_rare_and_a_link_event_is_a_reason_for_one() {
    let mut watch = Watch::new(LAN);
    let mut waits = Vec::new();
    for _ in 0..9 {
        let mut port = Port::new(LAN, 0, Does::SwallowReceived);
        watch.bind(Bound { native: false, ..LAN });
        watch.tell(&port);
        assert!(watch.falls_after(&mut port, 20).is_some());
        let Fallen { since, retry, .. } = *watch.proof.fallen().expect("it has");
        waits.push(retry.since(since));
        watch.now = retry.0;
        assert!(watch.proof.handle_timeout(retry));
    }
    assert_eq!(waits[..3], [FIRST_WAIT, Millis(FIRST_WAIT.0 * 2), Millis(FIRST_WAIT.0 * 4)]);
    assert_eq!(waits[8], LONGEST_WAIT);

    watch.bind(LAN);
    let mut port = Port::new(LAN, 0, Does::SwallowReceived);
    watch.tell(&port);
    assert!(watch.falls_after(&mut port, 20).is_some());
    watch.proof.handle_link_event(Millis(watch.now));
    assert!(!watch.proof.handle_timeout(Millis(watch.now)), "it may flap");
    watch.now += SETTLING.0;
    assert!(watch.proof.handle_timeout(Millis(watch.now)));
}

/// Where most frames go to the kernel all the same, `auto` takes sockets for some time; AF_XDP that the profile requires
/// stays.
#[test]
fn rings_that_carry_little_are_given_up_where_that_is_allowed() {
    let mut frames = 0;
    let mut second = |watch: &mut Watch| {
        (watch.now, frames) = (watch.now + SECOND, frames + 1_000);
        let now = Millis(watch.now);
        watch.proof.begin(now);
        watch.proof.handle_missed(now, frames / 10, &[("no_headroom", frames)].into());
        watch.proof.handle_timeout(now)
    };
    let mut watch = Watch::new(LAN);
    assert_eq!((1..=60).find(|_| second(&mut watch)), None);
    assert_eq!(watch.proof.missed().map(|missed| missed.verdict), Some("no_headroom"));

    let auto = Bound { required: false, zero_copy: true, ..LAN };
    let mut watch = Watch::new(auto);
    let mut waits = Vec::new();
    for _ in 0..3 {
        assert!((1..=30).any(|_| second(&mut watch)), "it is given up");
        let fallen = watch.proof.fallen().expect("given up").clone();
        assert!(fallen.fault.to_string().ends_with("most because of no_headroom"), "{}", fallen.fault);
        assert_eq!(fallen.method, Method::Sockets);
        watch.proof.bound(Millis(watch.now), None);
        waits.push((fallen.retry.0 - watch.now) / 60_000);
        watch.now = fallen.retry.0;
        assert!(watch.proof.handle_timeout(Millis(watch.now)), "it is tried again");
        watch.bind(auto);
    }
    assert_eq!(waits, [5, 10, 20], "minutes");
}

#[test]
fn zero_copy_that_shows_no_frame_becomes_copy() {
    let mut watch = Watch::new(Bound { zero_copy: true, ..WAN });
    let fell = (1..60).find(|second| {
        watch.now += SECOND;
        let now = Millis(watch.now);
        watch.proof.begin(now);
        watch.proof.handle_counters(now, 0, Counters::default());
        watch.proof.handle_arrivals(now, Arrivals { counted: second * 10, ..Arrivals::default() });
        watch.proof.handle_timeout(now)
    });
    assert!(fell.is_some_and(|seconds| seconds <= 8), "{fell:?}");
    assert_eq!((watch.proof.method(), watch.fault()), (Method::Copy, &Fault::Unseen { frames: 60 }));
    // Where frames are copied, or where some are shown, it is no sign.
    for (bound, shown) in [(WAN, 0), (Bound { zero_copy: true, ..WAN }, 1)] {
        let mut watch = Watch::new(bound);
        for second in 1..60 {
            watch.now += SECOND;
            watch.proof.begin(Millis(watch.now));
            let arrivals = Arrivals { counted: second * 10, shown: second * shown, calls: 0 };
            watch.proof.handle_arrivals(Millis(watch.now), arrivals);
            assert!(!watch.proof.handle_timeout(Millis(watch.now)), "{bound:?}");
        }
    }
}

/// What silence leads to: after how many seconds the card is restarted, and after how many the port is given up.
fn silence(bound: Bound, arrivals: impl Fn(u64) -> Arrivals) -> [Option<u64>; 2] {
    let mut watch = Watch::new(bound);
    let (mut restarted, mut fell) = (None, None);
    for second in 1..60 {
        watch.now += SECOND;
        let now = Millis(watch.now);
        watch.proof.begin(now);
        watch.proof.handle_arrivals(now, arrivals(second));
        if watch.proof.take_restart() {
            assert_eq!(restarted.replace(second), None, "it is started anew once");
        }
        if watch.proof.handle_timeout(now) {
            fell = Some(second);
            break;
        }
    }
    if fell.is_some() {
        assert_eq!((watch.proof.method(), watch.fault()), (Method::Copy, &Fault::Silent { calls: 3 }));
        let retry = watch.proof.fallen().map(|fallen| fallen.retry);
        watch.proof.handle_link_event(Millis(watch.now));
        assert_eq!(watch.proof.fallen().map(|fallen| fallen.retry), retry, "the link is no reason to try it again");
    }
    [restarted, fell]
}

#[test]
fn a_card_from_which_nothing_comes_is_started_anew_and_then_copied_from() {
    let quiet = |_: u64| Arrivals { counted: 7, shown: 3, calls: 0 };
    // One handshake every 5 s, as long as nobody answers.
    let calling = |second: u64| Arrivals { calls: 5 + second / 5, ..quiet(second) };
    let zero_copy = Bound { zero_copy: true, shown: 3, ..WAN };
    assert_eq!(silence(zero_copy, calling), [Some(6), Some(20)]);
    // The restart has helped.
    assert_eq!(silence(zero_copy, |s| Arrivals { counted: 7 + (s / 8).min(1), ..calling(s) }), [Some(6), None]);
    // A peer that is gone, and one with which nobody starts a handshake.
    assert_eq!(silence(zero_copy, |s| Arrivals { calls: 2 + s.min(6), ..quiet(s) }), [Some(6), None]);
    assert_eq!(silence(zero_copy, quiet), [Some(6), None]);
    // On a LAN all hosts may be switched off.
    assert_eq!(silence(Bound { wan: false, ..zero_copy }, calling), [Some(6), None]);
    // One frame is enough, whoever has counted it, and also before the first report.
    assert_eq!(silence(zero_copy, |s| Arrivals { counted: 7 + (s / 3).min(1), ..calling(s) }), [None, None]);
    assert_eq!(silence(zero_copy, |s| Arrivals { shown: 3 + s / 3, ..calling(s) }), [None, None]);
    assert_eq!(silence(Bound { shown: 2, ..zero_copy }, calling), [None, None]);
    // Where frames are copied it is no sign.
    assert_eq!(silence(WAN, calling), [None, None]);
}

/// Nothing is known about a time without reports, as when the link was down.
#[test]
fn silence_is_measured_anew_after_a_gap() {
    let mut watch = Watch::new(Bound { zero_copy: true, ..WAN });
    for calls in 0..60 {
        watch.now += 3 * SECOND;
        let now = Millis(watch.now);
        watch.proof.begin(now);
        watch.proof.handle_arrivals(now, Arrivals { calls, ..Arrivals::default() });
        assert!(!watch.proof.take_restart() && !watch.proof.handle_timeout(now), "after {calls} calls");
    }
}

#[test]
fn sending_is_proven_by_a_session_of_ours_that_left_by_this_ring_alone() {
    let answered = |ways| DirectSession { answered: Some(ways), ..session(1, 2 * SECOND) };
    for (what, proves) in [
        (answered(RING_WAY), true),
        (answered(RING_WAY | KERNEL_WAY), false),
        (answered(KERNEL_WAY), false),
        (answered(2), false),
        (DirectSession { ours: false, ..answered(RING_WAY) }, false),
        (DirectSession { born: Millis(1), ..answered(RING_WAY) }, false),
    ] {
        let mut watch = Watch::new(WAN);
        watch.tell(&Port::new(WAN, 0, Does::Work));
        assert!(!watch.session(&what));
        assert_eq!(watch.states()[1] == State::Proven, proves, "{what:?}");
    }
}

#[test]
fn a_session_is_begun_when_nothing_else_proves_sending() {
    let asks = |port: &Port, what: Option<DirectSession<'_>>| {
        let mut watch = Watch::new(WAN);
        let seconds = (1..=200).filter(|_| {
            watch.tell(port);
            let now = Millis(watch.now);
            what.iter().for_each(|session| watch.proof.handle_session(now, 0, RING_WAY, session));
            watch.proof.asks(now)
        });
        seconds.collect::<Vec<_>>()
    };
    let mut busy = Port::new(WAN, u64::MAX, Does::Work);
    assert!(asks(&busy, None).is_empty(), "nothing is sent");
    busy.step();
    let mixed = DirectSession { left_by: RING_WAY | KERNEL_WAY, answered: Some(KERNEL_WAY), ..session(1, 2 * SECOND) };
    for what in [None, Some(mixed.clone()), Some(DirectSession { ours: false, left_by: RING_WAY, ..mixed })] {
        assert_eq!(asks(&busy, what.clone()), [30, 150], "{what:?}");
    }
    for ways in [None, Some(RING_WAY)] {
        assert!(asks(&busy, Some(DirectSession { answered: ways, ..session(1, 2 * SECOND) })).is_empty(), "{ways:?}");
    }
}

#[test]
fn data_that_is_not_answered_between_two_handshakes_was_not_sent() {
    let (begin, late) = (2 * SECOND, 17 * SECOND);
    let successor = |at| Some(Millis(at));
    for (what, falls) in [
        (DirectSession { next_born: successor(late), ..session(1, begin) }, true),
        // The network may be down, or the peer.
        (session(1, begin), false),
        // The peer sends on the newer one.
        (DirectSession { next_born: successor(begin + 1_000), ..session(1, begin) }, false),
        (DirectSession { next_born: successor(late), answered: Some(RING_WAY), ..session(1, begin) }, false),
        (DirectSession { next_born: successor(late), left_by: RING_WAY | KERNEL_WAY, ..session(1, begin) }, false),
        (DirectSession { next_born: successor(late), ours: false, ..session(1, begin) }, false),
        (DirectSession { next_born: successor(late), first_data: None, ..session(1, begin) }, false),
        (DirectSession { next_born: successor(late), sent: 7, ..session(1, begin) }, false),
    ] {
        let mut watch = Watch::new(WAN);
        let fell = (0..40).any(|_| watch.session(&what));
        assert_eq!(fell, falls, "{what:?}");
        if fell {
            assert_eq!(watch.proof.method(), Method::Sockets, "generic mode sends by the same ring");
            assert!(watch.fault().to_string().contains("berlin answers handshakes"), "{}", watch.fault());
        }
    }
}

#[test]
fn few_messages_of_several_sessions_add_up_until_one_is_answered() {
    let unanswered =
        |index, born| DirectSession { sent: 5, next_born: Some(Millis(born + 15_000)), ..session(index, born) };
    let mut watch = Watch::new(WAN);
    assert!(!watch.session(&unanswered(1, 2 * SECOND)) && !watch.session(&unanswered(1, 2 * SECOND)));
    assert!(!watch.session(&DirectSession { answered: Some(RING_WAY), ..session(2, 17 * SECOND) }));
    assert!(!watch.session(&unanswered(3, 32 * SECOND)));
    assert!(watch.session(&unanswered(4, 47 * SECOND)));
}
