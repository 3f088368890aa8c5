//! Searches over links that drop what is too large, with loss, delay, ICMP and changes, on a virtual clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::constants::*;
use super::*;

const SMALLEST: u16 = 120;

/// One direction of a path, from a sender that searches to a receiver that answers.
struct Link {
    now: Instant,
    start: Instant,
    search: Search,
    total: ByteBudget,
    mtu: u16,
    tells: bool,
    /// The receiver knows padded probes.
    answers: bool,
    /// Nothing gets through.
    cut: bool,
    busy: bool,
    loss: f64,
    delay: Duration,
    heard: Option<Instant>,
    /// When the next ping of the path agent is due.
    ping: Instant,
    arriving: BTreeMap<(Instant, u64), Arrival>,
    /// Bytes of probes sent.
    bytes: u64,
    sent: Vec<(Instant, SizedProbe)>,
    values: Vec<(Instant, u16, MtuSource)>,
    rng: StdRng,
    number: u64,
}

enum Arrival {
    Answer(SizedProbe),
    Pong(Instant),
    TooBig(u16),
}

impl Link {
    fn new(seed: u64, ceiling: u16, mtu: u16) -> Self {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            now,
            start: now,
            search: Search::new(ceiling, SMALLEST, None),
            total: ByteBudget::of_all(),
            mtu,
            tells: false,
            answers: true,
            cut: false,
            busy: true,
            loss: 0.0,
            delay: Duration::from_millis(rng.random_range(1..100)),
            heard: None,
            ping: now,
            arriving: BTreeMap::new(),
            bytes: 0,
            sent: vec![],
            values: vec![],
            rng,
            number: 0,
        }
    }

    fn conditions(&self) -> Conditions {
        Conditions { alive: true, busy: self.busy, round_trip: Some(self.delay * 2), heard: self.heard }
    }

    fn arrive(&mut self, arrival: Arrival) {
        // Loss in each direction; an answer is as small as a pong.
        if self.cut || self.rng.random_bool(self.loss) || self.rng.random_bool(self.loss) {
            return;
        }
        let jitter = self.delay / 4 * self.rng.random_range(0..2);
        self.number += 1;
        self.arriving.insert((self.now + self.delay * 2 + jitter, self.number), arrival);
    }

    fn advance(&mut self) {
        let conditions = self.conditions();
        for probe in self.search.advance(self.now, &conditions, &mut self.total, &mut self.rng) {
            self.bytes += u64::from(probe.size);
            self.sent.push((self.now, probe));
            if probe.size <= self.mtu && self.answers {
                self.arrive(Arrival::Answer(probe));
            } else if self.tells && probe.size > self.mtu {
                self.arrive(Arrival::TooBig(self.mtu));
            }
        }
        let (size, source) = self.search.value();
        if self.values.last().is_none_or(|(_, known, by)| (*known, *by) != (size, source)) {
            self.values.push((self.now, size, source));
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.advance();
            let deadline = self.search.deadline(self.now, &self.conditions());
            assert!(deadline.is_none_or(|at| at > self.now), "what is due is done");
            let arrival = self.arriving.keys().next().map(|(at, _)| *at);
            let next = [deadline, arrival, Some(self.ping)].into_iter().flatten().min().unwrap();
            if next > end {
                break;
            }
            self.now = next.max(self.now);
            if self.ping <= self.now {
                // As the path agent does while data flows.
                self.ping = self.now + Duration::from_secs(1);
                self.arrive(Arrival::Pong(self.now));
            }
            while let Some(entry) = self.arriving.first_entry().filter(|entry| entry.key().0 <= self.now) {
                match entry.remove() {
                    Arrival::Answer(probe) => _ = self.search.handle_answer(self.now, probe),
                    Arrival::Pong(sent) => self.heard = Some(sent),
                    Arrival::TooBig(mtu) => self.search.handle_hint(self.now, mtu, true),
                }
            }
        }
        self.now = end;
    }

    /// Whether the size found suits the link: not too large, and too small by less than a grain.
    fn is_found(&self) -> bool {
        let (size, source) = self.search.value();
        let most = self.mtu.min(self.search_ceiling());
        source == MtuSource::Probed && size <= most && most - size < GRAIN
    }

    fn search_ceiling(&self) -> u16 {
        1500.max(self.mtu)
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("PENSTOCK_TEST_SEEDS").ok().and_then(|number| number.parse().ok());
    0..asked.unwrap_or(count)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn every_size_is_found_soon_and_nothing_larger_is_believed() {
    for mtu in BASE..=1500 {
        for tells in [false, true] {
            let mut link = Link::new(u64::from(mtu), 1500, mtu);
            link.tells = tells;
            link.run(seconds(5));
            assert!(link.is_found(), "{mtu}: {:?}", link.search.value());
            assert!(link.values.iter().all(|(.., size, source)| *source != MtuSource::Probed || *size <= mtu));
            // A link that reports what it carries is found to the byte.
            assert!(!tells || link.search.value().0 == mtu, "{mtu}: {:?}", link.search.value());
        }
    }
}

#[test]
fn a_usual_path_is_known_after_two_round_trips() {
    for mtu in [1500, 9000] {
        let mut link = Link::new(1, mtu, mtu);
        link.run(link.delay * 5 + Duration::from_millis(1));
        assert_eq!(link.search.value(), (mtu, MtuSource::Probed));
    }
    // With another one in between, after the first wait.
    for mtu in LADDER.into_iter().filter(|mtu| *mtu < 1500) {
        let mut link = Link::new(1, 1500, mtu);
        link.run(link.delay * 6 + Duration::from_millis(100));
        assert_eq!(link.search.value(), (mtu, MtuSource::Probed));
        // And it was not announced step by step, which would leave hosts with a smaller one for minutes.
        assert_eq!(link.values.len(), 2, "{:?}", link.values);
    }
}

#[test]
fn jumbo_frames_are_found_too() {
    for seed in seeds(300) {
        let mut link = Link::new(seed, 9000, 0);
        link.mtu = link.rng.random_range(1500..=9000);
        link.run(seconds(25));
        assert!(link.is_found(), "seed {seed}: {} {:?}", link.mtu, link.search.value());
    }
}

#[test]
fn a_lossy_path_ends_at_the_right_size() {
    let mut missed = 0;
    for seed in seeds(1000) {
        let mut link = Link::new(seed, 1500, 0);
        link.mtu = link.rng.random_range(BASE..=1500);
        link.loss = 0.1;
        link.tells = seed % 2 == 0;
        link.run(seconds(100));
        let largest = link.mtu;
        assert!(link.values.iter().all(|(.., size, source)| *source != MtuSource::Probed || *size <= largest));
        missed += u64::from(!link.is_found());
    }
    // A probe may be lost in every round; then a later attempt finds more.
    assert!(missed * 50 <= seeds(1000).end, "{missed} ended too low");
    println!("{missed} ended too low");
}

#[test]
fn a_path_that_shrinks_under_traffic_is_noticed_within_two_seconds() {
    let mut late = 0;
    for seed in seeds(1000) {
        let mut link = Link::new(seed, 1500, 0);
        link.mtu = link.rng.random_range(1300..=1500);
        link.tells = seed % 4 < 2;
        link.loss = if seed % 2 == 0 { 0.0 } else { 0.1 };
        link.run(Duration::from_millis(10_000 + seed % 700));
        link.mtu = link.rng.random_range(600..link.mtu);
        let fits = |link: &Link| link.search.value().0 <= link.mtu.max(BASE);
        link.run(seconds(2));
        // Where more is lost than what is too large, that may take another round.
        assert!(fits(&link) || link.loss > 0.0, "seed {seed}: {} {:?}", link.mtu, link.search.value());
        late += u64::from(!fits(&link));
        link.run(seconds(2));
        assert!(fits(&link), "seed {seed}: {} {:?}", link.mtu, link.search.value());
        let fallen = (BASE, MtuSource::Base);
        assert!(link.mtu >= BASE || link.search.value() == fallen, "seed {seed}: {:?}", link.search.value());
        link.run(seconds(60));
        assert!(link.loss > 0.0 || link.mtu < BASE || link.is_found(), "seed {seed}");
    }
    assert!(late * 100 <= seeds(1000).end, "{late} were late");
    println!("{late} were late");
}

#[test]
fn a_path_that_grows_is_found_within_a_minute() {
    for seed in seeds(1000) {
        let mut link = Link::new(seed, 1500, 0);
        link.mtu = link.rng.random_range(600..1480);
        link.run(seconds(20 + seed % 30));
        link.mtu = link.rng.random_range(BASE.max(link.mtu) + GRAIN..=1500);
        link.run(seconds(60));
        assert!(link.is_found(), "seed {seed}: {} {:?}", link.mtu, link.search.value());
    }
}

#[test]
fn silence_is_no_black_hole() {
    for seed in seeds(200) {
        let mut link = Link::new(seed, 1500, 1400);
        link.run(seconds(10));
        let before = link.search.value();
        link.cut = true;
        link.run(Duration::from_millis(500 + seed * 20));
        assert_eq!(link.search.value(), before, "seed {seed}");
        link.cut = false;
        link.run(seconds(5));
        assert_eq!(link.search.value(), before, "seed {seed}");
    }
}

#[test]
fn who_does_not_know_such_probes_is_sent_few_and_keeps_the_link() {
    let mut link = Link::new(1, 1500, 1500);
    link.answers = false;
    link.run(seconds(600));
    assert_eq!(link.values.iter().map(|(_, size, by)| (*size, *by)).collect::<Vec<_>>(), [(1500, MtuSource::Link)]);
    assert!(link.sent.iter().all(|(_, probe)| probe.size == SMALLEST));
    assert!(link.sent.len() <= 6 * 21, "{}", link.sent.len());
    // A router's report counts for a while, and forgotten peers may come back.
    link.search.handle_hint(link.now, 1400, false);
    assert_eq!(link.search.value().0, 1500, "nobody has proven it");
    link.search.handle_hint(link.now, 1400, true);
    assert_eq!(link.search.value(), (1400, MtuSource::Icmp));
    link.search.handle_hint(link.now, 100, true);
    assert_eq!(link.search.value(), (BASE, MtuSource::Icmp));
    link.run(HINT_LIFETIME);
    assert_eq!(link.search.value(), (1500, MtuSource::Link));
    (link.answers, link.mtu) = (true, 1452);
    link.run(seconds(40));
    assert_eq!(link.search.value(), (1452, MtuSource::Probed));
    // A peer that forgets them is left with what was found, and then with the link's MTU.
    link.answers = false;
    link.run(seconds(1));
    assert!(link.search.value().0 == 1452);
    link.run(seconds(40));
    assert_eq!(link.search.value(), (1500, MtuSource::Link));
}

#[test]
fn an_answer_proves_one_probe_and_only_the_one_that_it_names() {
    let mut link = Link::new(1, 1500, 1500);
    link.answers = false;
    link.run(Duration::from_millis(100));
    let (_, probe) = link.sent[0];
    for forged in [
        SizedProbe { size: 1500, ..probe },
        SizedProbe { size: probe.size - 1, ..probe },
        SizedProbe { transaction: probe.transaction ^ 1, ..probe },
    ] {
        assert!(!link.search.handle_answer(link.now, forged));
    }
    assert!(link.search.handle_answer(link.now, probe));
    assert!(!link.search.handle_answer(link.now, probe), "a copy");
    link.run(Duration::from_millis(50));
    let late = link.sent.iter().find(|(_, probe)| probe.size == 1500).unwrap().1;
    assert!(!link.search.handle_answer(link.now + ANSWER_LIFETIME, late));
    assert_ne!(link.search.value().1, MtuSource::Probed);
}

#[test]
fn an_answer_from_before_a_fall_does_not_undo_it() {
    let mut link = Link::new(1, 1500, 1500);
    link.run(seconds(5));
    link.mtu = 1400;
    let shrunk = link.now;
    link.run(seconds(2));
    assert_eq!(link.search.value(), (1400, MtuSource::Probed));
    // It was sent when the path was larger, as far as we know, and took long to arrive.
    let late = link.sent.iter().filter(|(at, probe)| *at >= shrunk && probe.size == 1500);
    let late: Vec<SizedProbe> = late.map(|(_, probe)| *probe).collect();
    assert!(late.len() >= usize::from(VERIFY_ROUNDS));
    late.into_iter().for_each(|probe| assert!(!link.search.handle_answer(link.now, probe)));
    assert_eq!(link.search.value(), (1400, MtuSource::Probed));
}

#[test]
fn routers_words_make_us_look_and_nothing_more() {
    let mut link = Link::new(1, 1500, 1500);
    link.run(seconds(5));
    let before = link.bytes;
    for _ in 0..10_000 {
        link.search.handle_hint(link.now, 1300, true);
        link.run(Duration::from_millis(1));
        assert_eq!(link.search.value(), (1500, MtuSource::Probed));
    }
    let rate = (link.bytes - before) / 10;
    assert!(rate < 20_000, "{rate} bytes a second");
    // Nor do they keep us from noticing the truth.
    (link.delay, link.mtu) = (Duration::from_millis(200), 1400);
    for _ in 0..300 {
        link.search.handle_hint(link.now, 1300, true);
        link.run(Duration::from_millis(10));
    }
    assert!(link.search.value().0 <= 1400, "{:?}", link.search.value());
}

#[test]
fn bytes_are_bounded_whatever_the_path_does() {
    for seed in seeds(100) {
        let mut link = Link::new(seed, 9000, 9000);
        link.loss = link.rng.random_range(0.0..0.6);
        link.tells = true;
        for _ in 0..60 {
            link.mtu = link.rng.random_range(500..=9000);
            let span = link.rng.random_range(1..3000);
            link.run(Duration::from_millis(span));
        }
        let span = (link.now - link.start).as_secs() + 1;
        assert!(link.bytes <= u64::from(PATH_BURST) + span * u64::from(PATH_BYTES_PER_SECOND), "seed {seed}");
    }
    // Not even somebody who keeps changing the link's MTU makes it more.
    let mut link = Link::new(1, 9000, 1500);
    for step in 0..2000 {
        link.search.set_ceiling(link.now, 9000 - step % 2);
        link.run(Duration::from_millis(1));
    }
    assert!(link.bytes <= u64::from(PATH_BURST) + 2 * u64::from(PATH_BYTES_PER_SECOND), "{}", link.bytes);
    // Nor does a path that is smaller than the link: its size twice a second, and one more step every 30 s.
    let mut link = Link::new(1, 1500, 1400);
    link.run(seconds(10));
    let before = link.bytes;
    link.run(seconds(100));
    assert!(link.bytes - before < 100 * 2 * 1400 + 4 * 3 * 1416, "{}", link.bytes - before);
    // And it is little when nothing happens: 1500 bytes twice a second.
    let mut link = Link::new(1, 1500, 1500);
    link.run(seconds(100));
    assert!(link.bytes < 100 * 3200, "{}", link.bytes);
    link.busy = false;
    link.run(seconds(10));
    let before = link.bytes;
    link.run(seconds(1000));
    assert_eq!(link.bytes, before, "an idle path is left alone");
}

#[test]
fn the_ceiling_acts_at_once_both_ways() {
    let mut link = Link::new(1, 1500, 1500);
    link.run(seconds(5));
    link.search.set_ceiling(link.now, 1400);
    assert_eq!(link.search.value(), (1400, MtuSource::Probed));
    link.run(seconds(5));
    link.search.set_ceiling(link.now, 1500);
    link.run(link.delay * 3);
    assert_eq!(link.search.value(), (1500, MtuSource::Probed));
    link.search.set_ceiling(link.now, 1000);
    assert_eq!(link.search.value().0, 1000);
    link.run(seconds(60));
    assert_eq!(link.search.value().0, 1000);
    assert!(link.sent.iter().rev().take(5).all(|(_, probe)| probe.size <= 1000));
}

#[test]
fn the_inside_keeps_1280_unless_less_is_pinned() {
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let inside = |to, outer, pinned| {
        let mtu = PathMtu::new(to, outer, MtuSource::Link, pinned);
        (mtu.inner, mtu.fragmented)
    };
    assert_eq!(inside(v4, 1500, None), (1440, false));
    assert_eq!(inside(v6, 1500, None), (1420, false));
    assert_eq!(inside(v4, 1340, None), (1280, false));
    assert_eq!(inside(v4, 1339, None), (1280, true));
    assert_eq!(inside(v6, 1359, None), (1280, true));
    assert_eq!(inside(v4, 68, None), (1280, true));
    assert_eq!(inside(v4, 1500, Some(1400)), (1400, false));
    assert_eq!(inside(v4, 1300, Some(1400)), (1280, true));
    assert_eq!(inside(v4, 1280, Some(1000)), (1000, false));
    assert_eq!((ceiling(v4, 1500, Some(1400)), ceiling(v6, 1500, Some(1420))), (1460, 1500));
    assert_eq!(ceiling(v6, 1500, Some(u16::MAX)), 1500);
}

#[test]
fn the_longest_prefix_names_the_link() {
    let link = |network: &str, mtu| LinkMtu { network: network.parse().unwrap(), mtu };
    let links = Links::new(&[link("0.0.0.0/0", 1500), link("10.0.0.0/8", 9000), link("10.1.0.0/16", 1400)]);
    let mtu = |ip: &str| links.mtu(ip.parse().unwrap());
    assert_eq!(
        (mtu("192.0.2.1"), mtu("10.9.9.9"), mtu("10.1.2.3"), mtu("::1")),
        (Some(1500), Some(9000), Some(1400), None)
    );
}
