//! Whether trains of datagrams arrive whole, and to which peers they are sent.
//!
//! ```text
//!   unproven ──► proven ◄──► suspected ──► given up: one by one ──► tried again: the link has changed, or the wait is over
//! ```
//! A train is what one call with UDP_SEGMENT sends: the kernel, a driver or the card cuts it into datagrams, and each
//! of these can be faulty. Then pings get through, TCP crawls, and no counter shows it. So a train of probes is sent by
//! the same call that sends data, and a Penstock at the other end reports which of them have arrived. When some have
//! not, more trains follow, each along with as many probes sent one by one: what only trains lose, always at the same
//! place, is not lost by chance. A path is an address that the tunnel's socket sends to, and each is judged separately.
//!
//! A kernel may also refuse to send any train, for example on a path with IPsec. The socket's worker then sends none to
//! anybody until the refusal is forgotten here.
//!
//! There is no I/O here, and time is an argument.

pub mod testing;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports::udp::Bundling;

use super::proof::{State, Verdict};
use crate::key::PublicKey;

/// The number of datagrams in a test train, and the length of the longest in bytes: as much as one call can send.
pub const LENGTH: usize = 16;
pub const LONGEST: u16 = 4_000;
/// How long answers may take.
const ANSWER: Millis = Millis(1_500);
/// Time between two tests of a path that works, while trains are sent.
const AGAIN: Millis = Millis(10_000);
/// Time between two tests where datagrams sent one by one are lost as well.
const LOSSY: Millis = Millis(5_000);
/// Trains without any answer after which the peer is assumed not to answer, and the wait until it is asked again.
const SILENT: u32 = 3;
const ASK_AGAIN: Millis = Millis(10 * 60_000);
/// Trains in a row that have to lose datagrams at the same place.
const LOST: u32 = 3;
/// Messages that have to be sent to a peer before a test is worth its cost.
const BUSY: u64 = 8;
/// The wait before trains that were given up are tried again. Each failure doubles it.
const FIRST_WAIT: Millis = Millis(5 * 60_000);
const LONGEST_WAIT: Millis = Millis(6 * 3_600_000);
/// The same after the link has changed.
const SETTLING: Millis = Millis(1_000);

/// The wait before a kernel that has refused a train is asked again, and how long trains must then pass before the
/// refusal is forgotten.
const ASK_KERNEL_AGAIN: Millis = Millis(10 * 60_000);
const NOT_REFUSED: Millis = Millis(5_000);

/// Datagrams of a train that have arrived, or have not: one bit each.
type Places = u16;
const ALL: Places = Places::MAX;

/// A test to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Whether as many probes are to be sent one by one as well.
    pub singles: bool,
}

/// All paths. As long as nothing is known, trains are sent.
#[derive(Debug, Default)]
pub struct Trains {
    /// Why no trains are sent as long as nothing is known about a path, if so.
    doubt: Option<&'static str>,
    paths: BTreeMap<PublicKey, PeerPath>,
    refused: Option<Refused>,
}

/// The kernel has refused a train.
#[derive(Debug)]
struct Refused {
    error: String,
    /// When the sockets are to try again.
    next: Millis,
    /// When they were told to, and how many trains had been sent by then.
    asked: Option<(Millis, u64)>,
}

#[derive(Debug)]
struct PeerPath {
    to: SocketAddr,
    proven: Option<Millis>,
    /// When the next test is due.
    next: Millis,
    running: Option<Running>,
    /// Trains in a row that have lost datagrams, and the places at which all of them have.
    against: u32,
    lost: Places,
    /// Trains in a row without any answer.
    silent: u32,
    /// How long trains stay given up, once they are.
    given_up: Option<Millis>,
    /// What had been sent at the last test: messages to the peer, and trains to anybody.
    sent: u64,
    bundles: u64,
}

#[derive(Debug)]
struct Running {
    begun: Millis,
    /// The transactions of the probes, in the train and of those sent one by one.
    train: Vec<u64>,
    singles: Vec<u64>,
    arrived: Places,
    singles_arrived: Places,
}

impl Trains {
    /// Sets the reason not to send trains where they are not proven, if there is one. Returns whether it is new.
    pub fn set_doubt(&mut self, doubt: Option<&'static str>) -> bool {
        std::mem::replace(&mut self.doubt, doubt) != doubt
    }

    /// Whether trains are sent as long as nothing is known about a path.
    fn usual(&self) -> bool {
        self.doubt.is_none()
    }

    /// The peers to which the sockets may send trains.
    pub fn bundling(&self) -> Bundling {
        let usual = self.usual();
        let excepted = |path: &&PeerPath| path.sends_trains(usual) != usual;
        Bundling { usual, except: self.paths.values().filter(excepted).map(|path| path.to).collect() }
    }

    /// Forgets the paths to all other peers.
    pub fn retain(&mut self, is_there: impl Fn(&PublicKey) -> bool) {
        self.paths.retain(|peer, _| is_there(peer));
    }

    /// Takes the address that a peer's packets go to, how many messages it was sent, and how many trains were sent to
    /// anybody. Returns the test that is due, to be followed by [`begun`](Self::begun) or [`refused`](Self::refused).
    pub fn due(&mut self, now: Millis, peer: &PublicKey, to: SocketAddr, sent: u64, bundles: u64) -> Option<Test> {
        let usual = self.usual();
        if self.paths.get(peer).is_none_or(|path| path.to != to) {
            self.paths.insert(*peer, PeerPath::new(now, to, sent));
        }
        let path = self.paths.get_mut(peer)?;
        // Where no trains are sent, it does not matter whether they would arrive.
        let matters = bundles > path.bundles || !path.sends_trains(usual) || path.against > 0;
        let busy = sent.saturating_sub(path.sent) >= BUSY || path.against > 0;
        (path.running.is_none() && now >= path.next && matters && busy).then_some(Test { singles: path.against > 0 })
    }

    /// Probes with these transactions were sent; `sent` and `bundles` are the counts at that time.
    pub fn begun(&mut self, now: Millis, peer: &PublicKey, names: [Vec<u64>; 2], sent: u64, bundles: u64) {
        let Some(path) = self.paths.get_mut(peer) else { return };
        let [train, singles] = names;
        (path.sent, path.bundles) = (sent, bundles);
        path.running = Some(Running { begun: now, train, singles, arrived: 0, singles_arrived: 0 });
    }

    /// The test could not be sent.
    pub fn refused(&mut self, now: Millis, peer: &PublicKey) {
        if let Some(path) = self.paths.get_mut(peer) {
            path.next = after(now, LOSSY);
        }
    }

    /// The peer has confirmed a probe.
    pub fn handle_arrived(&mut self, peer: &PublicKey, name: u64) {
        if let Some(running) = self.paths.get_mut(peer).and_then(|path| path.running.as_mut()) {
            let place = |names: &[u64]| names.iter().position(|known| *known == name).map_or(0, |place| 1 << place);
            running.arrived |= place(&running.train);
            running.singles_arrived |= place(&running.singles);
        }
    }

    /// Takes the kernel's error, if it has refused a train since the sockets last tried, and how many trains were sent.
    /// Returns whether the sockets are to try again.
    pub fn handle_refusal(&mut self, now: Millis, error: Option<&io::Error>, bundles: u64) -> bool {
        match (error, &mut self.refused) {
            (Some(error), None) => {
                let next = after(now, ASK_KERNEL_AGAIN);
                self.refused = Some(Refused { error: error.to_string(), next, asked: None });
            }
            (Some(error), Some(refused)) => {
                refused.error = error.to_string();
                if now >= refused.next {
                    (refused.asked, refused.next) = (Some((now, bundles)), after(now, ASK_KERNEL_AGAIN));
                    return true;
                }
            }
            (None, Some(Refused { asked: Some((at, before)), .. })) => {
                if bundles > *before && now.since(*at) >= NOT_REFUSED {
                    self.refused = None;
                }
            }
            (None, _) => self.refused = None,
        }
        false
    }

    /// The sentence that the kernel sends no trains, if it refuses to.
    pub fn refusal(&self) -> Option<String> {
        let error = &self.refused.as_ref()?.error;
        Some(format!(
            "the kernel refuses to send trains of datagrams: {error}; they are sent one by one until the interface changes, \
             or for some minutes"
        ))
    }

    /// The interface has changed, or has come up again: a cause of spoilt trains may be gone, or new.
    pub fn handle_link_event(&mut self, now: Millis) {
        for path in self.paths.values_mut() {
            path.next = after(now, SETTLING);
            path.bundles = 0;
            path.silent = 0;
        }
        if let Some(refused) = &mut self.refused {
            refused.next = after(now, SETTLING);
        }
    }

    /// Ends tests that have been answered, or have waited long enough.
    pub fn handle_timeout(&mut self, now: Millis) {
        self.paths.values_mut().for_each(|path| path.handle_timeout(now));
    }

    /// The verdict on the path to a peer, if there is anything to say.
    pub fn verdict(&self, peer: &PublicKey) -> Option<Verdict> {
        let without_proof = |state, seen| Some(Verdict { state, proven: None, seen });
        if let Some(seen) = self.refusal() {
            return without_proof(State::Failing, seen);
        }
        let Some(path) = self.paths.get(peer).filter(|path| path.was_tested() || self.doubt.is_some()) else {
            let doubt = self.doubt?;
            return without_proof(State::Unproven, unknown("the peer cannot tell", Some(doubt)));
        };
        let state = match (path.given_up, path.proven) {
            (Some(_), _) => State::Failing,
            (None, Some(_)) => State::Proven,
            (None, None) => State::Unproven,
        };
        Some(Verdict { state, proven: path.proven, seen: path.seen(self.doubt) })
    }

    /// The peers to which datagrams go one by one because trains were spoilt, and what was seen.
    pub fn given_up(&self) -> impl Iterator<Item = (&PublicKey, String)> + '_ {
        let paths = self.paths.iter().filter(|(_, path)| path.given_up.is_some());
        paths.map(|(peer, path)| (peer, path.seen(self.doubt)))
    }
}

impl PeerPath {
    fn new(now: Millis, to: SocketAddr, sent: u64) -> Self {
        Self {
            to,
            proven: None,
            next: now,
            running: None,
            against: 0,
            lost: 0,
            silent: 0,
            given_up: None,
            sent,
            bundles: 0,
        }
    }

    fn was_tested(&self) -> bool {
        self.proven.is_some() || self.given_up.is_some() || self.against > 0 || self.silent > 0
    }

    fn sends_trains(&self, usual: bool) -> bool {
        self.given_up.is_none() && (usual || self.proven.is_some())
    }

    fn handle_timeout(&mut self, now: Millis) {
        let Some(running) = self.running.take_if(|running| running.is_over(now)) else { return };
        let Running { singles, arrived, singles_arrived, .. } = &running;
        if *arrived == ALL {
            (self.proven, self.given_up) = (Some(now), None);
            (self.against, self.silent) = (0, 0);
            self.next = after(now, AGAIN);
        } else if singles.is_empty() {
            self.suspect(!arrived);
            self.next = now;
        } else if *singles_arrived == ALL {
            self.silent = 0;
            self.suspect(!arrived);
            self.next = now;
            if self.against >= LOST {
                self.give_up(now);
            }
        } else if *arrived | *singles_arrived == 0 {
            self.silent += 1;
            let asks = self.silent < SILENT;
            self.next = after(now, if asks { LOSSY } else { self.given_up.unwrap_or(ASK_AGAIN) });
            if !asks {
                self.against = 0;
            }
        } else {
            // Nothing can be concluded.
            self.next = after(now, LOSSY);
        }
    }

    /// Another train has lost datagrams at these places.
    fn suspect(&mut self, lost: Places) {
        let always = self.lost & lost;
        let first = self.against == 0 || always == 0;
        (self.against, self.lost) = if first { (1, lost) } else { (self.against + 1, always) };
    }

    fn give_up(&mut self, now: Millis) {
        let wait = self.given_up.map_or(FIRST_WAIT, |wait| Millis(wait.0 * 2).min(LONGEST_WAIT));
        (self.given_up, self.next) = (Some(wait), after(now, wait));
        self.against = 0;
    }

    fn seen(&self, doubt: Option<&str>) -> String {
        match (self.given_up, self.proven) {
            (Some(_), _) => format!(
                "of trains of {LENGTH} datagrams the same {} were lost again and again, and none of {LENGTH} sent one by \
                 one; datagrams go one by one until the interface changes, or for some minutes",
                self.lost.count_ones()
            ),
            (None, Some(_)) => format!("all {LENGTH} datagrams of a train have arrived"),
            (None, None) if self.silent >= SILENT => unknown("the peer does not tell", doubt),
            (None, None) => unknown("nothing has been tested yet", doubt),
        }
    }
}

fn unknown(why: &str, doubt: Option<&str>) -> String {
    match doubt {
        None => format!("{why}; trains are still sent"),
        Some(doubt) => format!("{why}; datagrams go one by one, since {doubt}"),
    }
}

impl Running {
    fn is_over(&self, now: Millis) -> bool {
        let answered = self.arrived == ALL && (self.singles.is_empty() || self.singles_arrived == ALL);
        answered || now.since(self.begun) >= ANSWER
    }
}

fn after(at: Millis, wait: Millis) -> Millis {
    Millis(at.0.saturating_add(wait.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;

    /// What happens to a train, and to datagrams sent one by one.
    type Link = fn(train: usize) -> (Places, Places);

    /// A peer that we send to, examined five times a second.
    struct Bench {
        trains: Trains,
        now: Millis,
        peer: PublicKey,
        tests: usize,
        singles: usize,
    }

    impl Bench {
        fn new(doubt: Option<&'static str>) -> Self {
            let peer = PublicKey::from_bytes([7; 32]);
            let mut trains = Trains::default();
            trains.set_doubt(doubt);
            Self { trains, now: Millis(SECOND), peer, tests: 0, singles: 0 }
        }

        fn to() -> SocketAddr {
            ([192, 0, 2, 2], 47_100).into()
        }

        /// Runs until the condition holds, with ten messages and a train at each step; returns the seconds that it
        /// took, up to an hour.
        fn runs_until(&mut self, link: Link, done: impl Fn(&Self) -> bool) -> Option<u64> {
            let begun = self.now;
            for _ in 0..5 * 3_600 {
                self.now = Millis(self.now.0 + SECOND / 5);
                let traffic = self.now.0;
                self.turn(link, traffic, traffic);
                if done(self) {
                    return Some(self.now.since(begun).0 / SECOND);
                }
            }
            None
        }

        fn turn(&mut self, link: Link, sent: u64, bundles: u64) {
            let (now, peer) = (self.now, &self.peer);
            self.trains.handle_timeout(now);
            let Some(test) = self.trains.due(now, peer, Self::to(), sent, bundles) else { return };
            let names = |first: u64| (0..LENGTH as u64).map(|i| first + i).collect::<Vec<_>>();
            let singles = if test.singles { names(100) } else { Vec::new() };
            self.trains.begun(now, peer, [names(0), singles], sent, bundles);
            let (train, single) = link(self.tests);
            for place in 0..LENGTH as u64 {
                if train & 1 << place != 0 {
                    self.trains.handle_arrived(peer, place);
                }
                if single & 1 << place != 0 {
                    self.trains.handle_arrived(peer, 100 + place);
                }
            }
            self.tests += 1;
            self.singles += usize::from(test.singles);
        }

        fn is(&self, state: State) -> bool {
            self.trains.verdict(&self.peer).is_some_and(|verdict| verdict.state == state)
        }

        fn sends_trains(&self) -> bool {
            self.trains.bundling().allows(Self::to())
        }
    }

    const WORKS: Link = |_| (ALL, ALL);

    #[test]
    fn trains_that_arrive_are_proven_again_and_again_at_little_cost() {
        let mut bench = Bench::new(None);
        assert_eq!(bench.runs_until(WORKS, |bench| bench.is(State::Proven)), Some(0));
        bench.runs_until(WORKS, |bench| bench.now >= Millis(101 * SECOND));
        assert!((9..=11).contains(&bench.tests) && bench.singles == 0, "{} tests", bench.tests);
        assert!(bench.sends_trains());
        // Where no trains are sent, none is tested; nor where hardly anything is sent.
        let tests = bench.tests;
        for turn in 1..1_000 {
            bench.now = Millis(bench.now.0 + SECOND);
            bench.turn(WORKS, 1_000_000 + turn, 101 * SECOND);
        }
        assert!(bench.tests <= tests + 1, "{} more tests", bench.tests - tests);
    }

    #[test]
    fn each_way_to_spoil_a_train_is_seen_within_seconds_also_when_it_begins_late() {
        let links: [Link; 4] =
            [|_| (1, ALL), |_| (0, ALL), |_| (ALL >> 1, ALL), |train| (if train < 3 { ALL } else { !2 }, ALL)];
        for (number, link) in links.into_iter().enumerate() {
            let mut bench = Bench::new(None);
            let took = bench.runs_until(link, |bench| bench.is(State::Failing));
            let limit = if number == 3 { 36 } else { 6 };
            assert!(took.is_some_and(|seconds| seconds <= limit), "{number}: {took:?}");
            assert!(!bench.sends_trains());
            let (_, seen) = bench.trains.given_up().next().expect("it is given up");
            assert!(seen.contains(["the same 15", "the same 16", "the same 1", "the same 1"][number]), "{seen}");
        }
    }

    #[test]
    fn what_the_network_loses_by_chance_is_no_sign() {
        // A datagram of each train, at a different place each time; or of both; or everything.
        let links: [Link; 3] = [|train| (!(1 << (train % 16)), ALL), |_| (!1, !2), |_| (0, 0)];
        for (number, link) in links.into_iter().enumerate() {
            let mut bench = Bench::new(None);
            assert_eq!(bench.runs_until(link, |bench| bench.is(State::Failing)), None, "{number}");
            assert!(bench.sends_trains() && !bench.is(State::Proven));
        }
        // A peer that never answers is left alone.
        let mut bench = Bench::new(None);
        bench.runs_until(|_| (0, 0), |bench| bench.now >= Millis(3_600 * SECOND));
        assert!(bench.tests <= 4 * 6, "{} tests", bench.tests);
    }

    #[test]
    fn what_was_given_up_is_tried_again_later_and_when_the_link_has_changed() {
        let mut bench = Bench::new(None);
        bench.runs_until(|_| (0, ALL), |bench| bench.is(State::Failing)).expect("it fails");
        let took = bench.runs_until(WORKS, |bench| bench.is(State::Proven));
        assert!(took.is_some_and(|seconds| (299..=303).contains(&seconds)), "{took:?}");
        assert!(bench.sends_trains());

        bench.runs_until(|_| (0, ALL), |bench| bench.is(State::Failing)).expect("it fails");
        bench.trains.handle_link_event(bench.now);
        let took = bench.runs_until(WORKS, |bench| bench.is(State::Proven));
        assert!(took.is_some_and(|seconds| seconds <= 2), "{took:?}");

        // Each failed attempt doubles the wait.
        bench.runs_until(|_| (0, ALL), |bench| bench.is(State::Failing)).expect("it fails");
        let tests = bench.tests;
        bench.runs_until(|_| (0, ALL), |_| false);
        assert!(bench.tests - tests <= 3 * 4, "{}", bench.tests - tests);
    }

    #[test]
    fn where_trains_are_known_to_be_spoilt_none_are_sent_until_they_are_proven() {
        let mut bench = Bench::new(Some("this kernel spoils them"));
        assert!(!bench.sends_trains());
        bench.runs_until(|_| (0, 0), |bench| bench.now >= Millis(20 * SECOND));
        assert!(!bench.sends_trains());
        let seen = bench.trains.verdict(&bench.peer).unwrap().seen;
        assert!(seen.contains("does not tell") && seen.contains("this kernel spoils"), "{seen}");
        // Nor to peers that are never tested.
        let seen = bench.trains.verdict(&PublicKey::from_bytes([8; 32])).unwrap().seen;
        assert!(seen.contains("cannot tell") && seen.contains("this kernel spoils"), "{seen}");
        assert!(!bench.trains.bundling().allows(([192, 0, 2, 8], 47_100).into()));
        bench.trains.handle_link_event(bench.now);
        assert!(bench.runs_until(WORKS, |bench| bench.is(State::Proven)).is_some());
        assert!(bench.sends_trains());
        assert!(bench.runs_until(|_| (1, ALL), |bench| bench.is(State::Failing)).is_some());
        assert!(!bench.sends_trains());
    }

    #[test]
    fn a_kernel_that_refuses_trains_is_asked_again_and_believed_when_it_sends_some() {
        let mut trains = Trains::default();
        let error = io::Error::from_raw_os_error(libc::EIO);
        let minutes = |minutes: u64| Millis(minutes * 60 * SECOND);
        assert!(!trains.handle_refusal(minutes(1), None, 7) && trains.refusal().is_none());
        assert!(!trains.handle_refusal(minutes(1), Some(&error), 7));
        assert!(trains.refusal().is_some_and(|said| said.contains("Input/output error")));
        assert!(!trains.handle_refusal(minutes(10), Some(&error), 7));
        // It refuses again, and is not asked at every call.
        assert!(trains.handle_refusal(minutes(11), Some(&error), 7));
        assert!(!trains.handle_refusal(after(minutes(11), Millis(500)), None, 7) && trains.refusal().is_some());
        assert!(!trains.handle_refusal(minutes(12), Some(&error), 7) && trains.refusal().is_some());
        // The link changes. Without trains nothing is known, and other sockets' trains count only after a while.
        trains.handle_link_event(minutes(13));
        let asked = after(minutes(13), SETTLING);
        assert!(trains.handle_refusal(asked, Some(&error), 7));
        assert!(!trains.handle_refusal(minutes(14), None, 7) && trains.refusal().is_some());
        assert!(!trains.handle_refusal(after(asked, Millis(500)), None, 8) && trains.refusal().is_some());
        assert!(!trains.handle_refusal(after(asked, NOT_REFUSED), None, 8) && trains.refusal().is_none());
    }

    #[test]
    fn another_address_is_another_way() {
        let mut bench = Bench::new(None);
        bench.runs_until(|_| (0, ALL), |bench| bench.is(State::Failing)).expect("it fails");
        let elsewhere = ([192, 0, 2, 3], 47_100).into();
        bench.trains.due(bench.now, &bench.peer, elsewhere, 0, 0);
        assert_eq!(bench.trains.verdict(&bench.peer), None);
        assert!(bench.trains.bundling().except.is_empty());
        bench.runs_until(|_| (0, ALL), |bench| bench.is(State::Failing)).expect("it fails");
        bench.trains.retain(|_| false);
        assert_eq!(bench.trains.given_up().count(), 0);
    }
}
