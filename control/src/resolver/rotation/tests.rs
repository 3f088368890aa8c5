use super::*;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A repetition of an unanswered initiation.
const REPETITION: Duration = Duration::from_millis(5300);

struct Bench {
    rotation: Rotation,
    start: Instant,
    now: Instant,
    endpoint: Option<SocketAddr>,
    asked: Vec<Duration>,
}

fn peer() -> PublicKey {
    PublicKey::from_bytes([7; 32])
}

fn list(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 47_100)).collect()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let mut rotation = Rotation::default();
        rotation.watch(now, peer(), "gateway.example", 47_100);
        Self { rotation, start: now, now, endpoint: None, asked: Vec::new() }
    }

    /// Answers every question that is due.
    fn answer(&mut self, outcome: Outcome) {
        while let Some(question) = self.rotation.poll_question(self.now) {
            self.asked.push(self.now - self.start);
            self.rotation.handle_answer(self.now, &question.peer, question.number, outcome.clone());
        }
        self.take();
    }

    fn take(&mut self) {
        while let Some(change) = self.rotation.poll_change() {
            self.endpoint = Some(change.endpoint);
        }
    }

    fn silence(&mut self) {
        self.rotation.handle_silence(self.now, &peer());
        self.take();
    }

    /// Lets time pass, with the same answer to every question.
    fn run(&mut self, span: Duration, outcome: &Outcome) {
        let end = self.now + span;
        while let Some(due) = self.rotation.poll_timeout().filter(|due| *due <= end) {
            self.now = due;
            self.answer(outcome.clone());
        }
        self.now = end;
    }
}

#[test]
fn addresses_are_tried_in_turn_while_there_is_silence() {
    let addresses = list(&["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
    let mut bench = Bench::new();
    bench.answer(Some((addresses.clone(), seconds(600))));
    for turn in 0..7 {
        assert_eq!(bench.endpoint, Some(addresses[turn % 3]), "{turn}");
        bench.now += REPETITION;
        bench.silence();
    }
}

#[test]
fn a_path_that_works_is_not_left_for_another_answer() {
    let mut bench = Bench::new();
    bench.answer(Some((list(&["192.0.2.1"]), seconds(60))));
    bench.run(seconds(200), &Some((list(&["192.0.2.2", "192.0.2.3"]), seconds(60))));
    assert_eq!(bench.endpoint, Some(list(&["192.0.2.1"])[0]));
    bench.silence();
    assert_eq!(bench.endpoint, Some(list(&["192.0.2.2"])[0]), "the last answer is there when it is needed");
}

#[test]
fn a_silent_path_gets_the_new_address_with_the_answer() {
    let mut bench = Bench::new();
    bench.answer(Some((list(&["192.0.2.1"]), seconds(3600))));
    bench.now += seconds(1000);
    bench.silence();
    assert_eq!(bench.endpoint, Some(list(&["192.0.2.1"])[0]), "there is no other yet");
    bench.answer(Some((list(&["192.0.2.9"]), seconds(3600))));
    assert_eq!(bench.asked, [seconds(0), seconds(1000)], "silence asks again before the time to live is over");
    assert_eq!(bench.endpoint, Some(list(&["192.0.2.9"])[0]));
}

#[test]
fn lasting_silence_asks_every_30_seconds() {
    let same = Some((list(&["192.0.2.1"]), seconds(3600)));
    let mut bench = Bench::new();
    bench.answer(same.clone());
    for _ in 0..60 {
        bench.run(REPETITION, &same);
        bench.silence();
    }
    for pair in bench.asked.windows(2) {
        assert!((seconds(30)..seconds(36)).contains(&(pair[1] - pair[0])), "{:?}", bench.asked);
    }
    assert!(bench.asked.len() > 9);
}

#[test]
fn the_time_to_live_is_respected_within_bounds() {
    for (ttl, asked) in [(0, 10), (60, 60), (86_400, 3600)] {
        let answer = Some((list(&["192.0.2.1"]), seconds(ttl)));
        let mut bench = Bench::new();
        bench.run(seconds(7200), &answer);
        let expected: Vec<_> = (0..=7200 / asked).map(|n| seconds(n * asked)).collect();
        assert_eq!(bench.asked, expected);
    }
}

#[test]
fn a_name_that_does_not_resolve_is_asked_ever_more_rarely_whatever_the_silence() {
    let mut bench = Bench::new();
    for _ in 0..200 {
        bench.run(REPETITION, &None);
        bench.silence();
    }
    let expected = [0, 5, 15, 35, 75, 155, 315, 615, 915].map(seconds);
    assert_eq!(bench.asked, expected);
    bench.run(seconds(300), &Some((list(&["192.0.2.1"]), seconds(60))));
    assert_eq!(bench.endpoint, Some(list(&["192.0.2.1"])[0]));
}

#[test]
fn what_is_known_is_kept_when_the_name_servers_fail() {
    let mut bench = Bench::new();
    bench.answer(Some((list(&["192.0.2.1", "192.0.2.2"]), seconds(60))));
    bench.run(seconds(3600), &None);
    bench.silence();
    assert_eq!(bench.endpoint, Some(list(&["192.0.2.2"])[0]));
}

#[test]
fn a_question_under_way_is_not_repeated_and_an_old_answer_is_ignored() {
    let mut bench = Bench::new();
    let old = bench.rotation.poll_question(bench.now).unwrap();
    bench.now += seconds(600);
    bench.silence();
    assert_eq!(bench.rotation.poll_question(bench.now), None);
    assert_eq!(bench.rotation.poll_timeout(), None);
    bench.rotation.watch(bench.now, peer(), "other.example", 1);
    let new = bench.rotation.poll_question(bench.now).unwrap();
    assert_eq!((new.name.as_str(), bench.rotation.port(&peer())), ("other.example", Some(1)));
    let answer = |text| Some((list(&[text]), seconds(60)));
    bench.rotation.handle_answer(bench.now, &peer(), old.number, answer("192.0.2.1"));
    assert_eq!(bench.rotation.poll_change(), None);
    bench.rotation.handle_answer(bench.now, &peer(), new.number, answer("192.0.2.2"));
    assert_eq!(bench.rotation.poll_change(), Some(Change { peer: peer(), endpoint: list(&["192.0.2.2"])[0] }));
    bench.rotation.forget(&peer());
    assert_eq!(bench.rotation.poll_timeout(), None);
}

/// Whatever happens in whatever order: at most one question per peer, none too soon, and a live address is found.
#[test]
fn a_live_address_is_found_whatever_happened_before() {
    for seed in 0..2000 {
        let mut random = StdRng::seed_from_u64(seed);
        let all = list(&["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        let some = |random: &mut StdRng| -> Outcome {
            let count = random.random_range(0..=all.len());
            let chosen: Vec<_> = all.choose_multiple(random, count).copied().collect();
            (count > 0).then(|| (chosen, seconds(random.random_range(0..4000))))
        };
        let mut bench = Bench::new();
        for _ in 0..random.random_range(0..40) {
            match random.random_range(0..4) {
                0 => bench.silence(),
                1 => bench.rotation.watch(bench.now, peer(), "gateway.example", 47_100),
                _ => {
                    let outcome = some(&mut random);
                    bench.run(Duration::from_millis(random.random_range(0..100_000)), &outcome);
                }
            }
        }
        let live = *all.choose(&mut random).unwrap();
        let last = Some((all.clone(), seconds(3600)));
        // The longest pause after failures, and then a round through all addresses.
        bench.run(RETRY_MAX, &last);
        let mut silences = 0;
        while bench.endpoint != Some(live) {
            silences += 1;
            assert!(silences <= all.len() + 1, "seed {seed}: {:?}", bench.endpoint);
            bench.run(REPETITION, &last);
            bench.silence();
        }
        assert!(bench.asked.windows(2).all(|pair| pair[1] - pair[0] >= RETRY), "seed {seed}: {:?}", bench.asked);
    }
}
