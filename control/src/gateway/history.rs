//! The gateway's memory of recent traffic: once a second it reads the counters, and keeps rates in rings whose points
//! get longer with age.
//!
//! Memory is bounded whatever the number of peers: only [`PEERS_REMEMBERED`] have rings, those with the most recent
//! traffic. Nothing is written to disk, so a gateway starts with empty rings. Time is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Gateway, report};
use crate::history::{History, PeerTraffic, TIERS, Traffic, Wanted};
use crate::key::PublicKey;

/// How often the counters are read: the length of the shortest point.
pub const EVERY: Duration = Duration::from_secs(1);
/// How many peers have rings of their own, of about 16 KiB each.
const PEERS_REMEMBERED: usize = 256;
/// The factor by which a peer's weight shrinks every second: to half in six minutes.
const FADING: f32 = 0.998;
/// A gap of this many seconds pushes everything before it out of every ring, unfinished points included.
const LONGEST: u64 = TIERS[2].seconds as u64 * (TIERS[2].points as u64 + 1);

/// Reads the gateway's counters.
pub fn sample(gateway: &mut Gateway, now: Instant) {
    let counters = Counters {
        peers: gateway
            .handshakes
            .peers
            .iter()
            .map(|peer| (peer.public_key, [peer.received_bytes(), peer.sent_bytes()]))
            .collect(),
        drops: report::drops(gateway),
        slept: gateway.plane.workers().work().iter().map(|work| work.slept).collect(),
    };
    gateway.history.record(now, counters);
}

/// Counters at one moment. They only grow, except those of a peer that was removed and added again.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes received and sent.
    peers: HashMap<PublicKey, [u64; 2]>,
    drops: BTreeMap<String, u64>,
    /// One for each worker.
    slept: Vec<Duration>,
}

/// The rings, and the counters as last read.
#[derive(Debug)]
pub struct Recorder {
    begun: Instant,
    /// When the counters were last read, and how many seconds had been recorded by then.
    seen: Instant,
    seconds: u64,
    before: Counters,
    /// Bytes received and sent per second, packets dropped per second, load of the busiest worker.
    total: Rings<4>,
    peers: HashMap<PublicKey, Remembered>,
    /// Packets dropped in the last second, by reason.
    drops: BTreeMap<String, f32>,
    loads: Vec<f32>,
}

#[derive(Debug)]
struct Remembered {
    /// Bytes received and sent per second.
    rings: Rings<2>,
    /// Its traffic, with older traffic counting less: the peer with the least makes room.
    weight: f32,
}

impl Recorder {
    /// Starts with all counters at zero.
    pub fn new(now: Instant) -> Self {
        Self {
            begun: now,
            seen: now,
            seconds: 0,
            before: Counters::default(),
            total: Rings::default(),
            peers: HashMap::new(),
            drops: BTreeMap::new(),
            loads: Vec::new(),
        }
    }

    /// Records what has passed since the last time. After a gap, each second of it gets the mean.
    pub fn record(&mut self, now: Instant, counters: Counters) {
        let seconds = now.saturating_duration_since(self.begun).as_secs();
        let passed = seconds - self.seconds;
        if passed == 0 {
            return;
        }
        let time = now.saturating_duration_since(self.seen).as_secs_f32();
        let rates = Rates::between(&self.before, &counters, time);
        let recorded = seconds - passed.min(LONGEST)..seconds;
        let busiest = rates.loads.iter().copied().fold(0.0, f32::max);
        let [received, sent] = rates.total;
        self.total.push(recorded.clone(), [received, sent, rates.drops.values().sum(), busiest]);

        self.peers.retain(|key, _| counters.peers.contains_key(key));
        self.make_room(&rates.peers);
        for (key, peer) in &mut self.peers {
            let rate = rates.peers.get(key).copied().unwrap_or_default();
            peer.rings.push(recorded.clone(), rate);
            peer.weight = peer.weight * FADING + rate[0] + rate[1];
        }
        Rates { drops: self.drops, loads: self.loads, .. } = rates;
        (self.before, self.seen, self.seconds) = (counters, now, seconds);
    }

    /// Gives rings to peers that have traffic and none yet, replacing peers with less.
    fn make_room(&mut self, rates: &HashMap<PublicKey, [f32; 2]>) {
        let new = rates.iter().filter(|(key, _)| !self.peers.contains_key(key));
        let mut new: Vec<(PublicKey, f32)> = new.map(|(key, rate)| (*key, rate[0] + rate[1])).collect();
        new.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
        let mut lightest: Vec<(PublicKey, f32)> = Vec::new();
        if self.peers.len() + new.len() > PEERS_REMEMBERED {
            lightest.extend(self.peers.iter().map(|(key, peer)| (*key, peer.weight)));
            lightest.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
        }
        for (key, rate) in new {
            if self.peers.len() >= PEERS_REMEMBERED {
                match lightest.pop() {
                    Some((lighter, weight)) if weight < rate => drop(self.peers.remove(&lighter)),
                    _ => return,
                }
            }
            self.peers.insert(key, Remembered { rings: Rings::default(), weight: 0.0 });
        }
    }

    /// The part of the history that was asked for.
    pub fn answer(&self, wanted: &Wanted) -> History {
        let tier = TIERS.iter().position(|tier| tier.seconds >= wanted.seconds).unwrap_or(TIERS.len() - 1);
        let traffic = |received, sent| Traffic { received, sent };
        let [received, sent, dropped, load] = self.total.latest(tier, wanted.points);
        let peers = self.peers.iter().map(|(key, peer)| {
            let [received, sent] = peer.rings.latest(tier, wanted.points);
            PeerTraffic { public_key: *key, traffic: traffic(received, sent) }
        });
        History {
            seconds: TIERS[tier].seconds,
            total: traffic(received, sent),
            dropped,
            load,
            peers: peers.collect(),
            drops: self.drops.clone(),
            loads: self.loads.clone(),
        }
    }
}

/// Rates between two readings, per second.
struct Rates {
    total: [f32; 2],
    /// Only of peers with traffic.
    peers: HashMap<PublicKey, [f32; 2]>,
    drops: BTreeMap<String, f32>,
    loads: Vec<f32>,
}

impl Rates {
    fn between(before: &Counters, now: &Counters, seconds: f32) -> Self {
        // A counter that went back has started again.
        let rate = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now) as f32 / seconds;
        let mut total = [0.0; 2];
        let mut peers = HashMap::new();
        for (key, [received, sent]) in &now.peers {
            let [received_before, sent_before] = before.peers.get(key).copied().unwrap_or_default();
            let rates = [rate(received_before, *received), rate(sent_before, *sent)];
            if rates != [0.0; 2] {
                total = [total[0] + rates[0], total[1] + rates[1]];
                peers.insert(*key, rates);
            }
        }
        let drops = now.drops.iter().map(|(reason, count)| {
            (reason.clone(), rate(before.drops.get(reason).copied().unwrap_or_default(), *count))
        });
        let loads = now.slept.iter().enumerate().map(|(worker, slept)| {
            let slept_before = before.slept.get(worker).copied().unwrap_or_default();
            (1.0 - slept.saturating_sub(slept_before).as_secs_f32() / seconds).clamp(0.0, 1.0)
        });
        Self { total, peers, drops: drops.filter(|(_, rate)| *rate > 0.0).collect(), loads: loads.collect() }
    }
}

/// `N` quantities, each in a ring per tier of [`TIERS`].
#[derive(Debug)]
struct Rings<const N: usize> {
    rings: [VecDeque<[f32; N]>; TIERS.len()],
    /// The sums of the points that are not complete yet.
    sums: [[f32; N]; TIERS.len()],
}

impl<const N: usize> Default for Rings<N> {
    fn default() -> Self {
        Self { rings: Default::default(), sums: [[0.0; N]; TIERS.len()] }
    }
}

impl<const N: usize> Rings<N> {
    /// Gives these seconds, counted from the start of the gateway, one value. Points end at multiples of their length,
    /// so that those of all rings stand for the same time.
    fn push(&mut self, seconds: std::ops::Range<u64>, value: [f32; N]) {
        for second in seconds {
            for ((tier, ring), sum) in TIERS.iter().zip(&mut self.rings).zip(&mut self.sums) {
                sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += value);
                if (second + 1).is_multiple_of(tier.seconds.into()) {
                    if ring.len() == tier.points {
                        ring.pop_front();
                    }
                    ring.push_back(std::mem::replace(sum, [0.0; N]).map(|sum| sum / tier.seconds as f32));
                }
            }
        }
    }

    /// The latest points of a tier, by quantity.
    fn latest(&self, tier: usize, points: usize) -> [Vec<f32>; N] {
        let ring = &self.rings[tier];
        let from = ring.len().saturating_sub(points);
        std::array::from_fn(|quantity| ring.range(from..).map(|point| point[quantity]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn counters(peers: impl IntoIterator<Item = (u32, [u64; 2])>) -> Counters {
        Counters {
            peers: peers.into_iter().map(|(number, bytes)| (key(number), bytes)).collect(),
            ..Default::default()
        }
    }

    fn latest(recorder: &Recorder, seconds: u32, points: usize) -> History {
        recorder.answer(&Wanted { seconds, points })
    }

    fn at(begun: Instant, seconds: f64) -> Instant {
        begun + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_second_is_remembered_as_it_was_and_a_minute_by_its_mean() {
        let begun = Instant::now();
        let mut recorder = Recorder::new(begun);
        // 100 bytes in every other second, for two minutes.
        for second in 1..=120u64 {
            recorder.record(at(begun, second as f64), counters([(1, [second.div_ceil(2) * 100, 0])]));
        }
        let seconds = latest(&recorder, 1, 1000);
        assert_eq!((seconds.seconds, seconds.total.received.len()), (1, 120));
        assert_eq!(seconds.total.received[..4], [100.0, 0.0, 100.0, 0.0]);
        assert_eq!(seconds.peers[0].traffic.received, seconds.total.received);
        assert_eq!(latest(&recorder, 10, 3).total.received, [50.0; 3]);
        // There is no tier of half a minute.
        let minutes = latest(&recorder, 30, 1000);
        assert_eq!((minutes.seconds, minutes.total.received), (60, vec![50.0; 2]));
        assert_eq!(latest(&recorder, 3600, 1).seconds, 60);
    }

    #[test]
    fn drops_and_loads_are_those_of_the_last_second() {
        let begun = Instant::now();
        let mut recorder = Recorder::new(begun);
        let counters = |dropped, slept: &[u64]| Counters {
            drops: BTreeMap::from([("replayed".to_owned(), dropped), ("bad-tag".to_owned(), 7)]),
            slept: slept.iter().map(|millis| Duration::from_millis(*millis)).collect(),
            ..Default::default()
        };
        recorder.record(at(begun, 1.0), counters(3, &[1000, 1000]));
        // Two seconds later: 10 packets, and a worker that slept for a quarter of the time.
        recorder.record(at(begun, 3.0), counters(13, &[1500, 3000]));
        let history = latest(&recorder, 1, 10);
        assert_eq!(history.drops, BTreeMap::from([("replayed".to_owned(), 5.0)]));
        assert_eq!(history.loads, [0.75, 0.0]);
        assert_eq!(history.dropped, [10.0, 5.0, 5.0]);
        assert_eq!(history.load, [0.0, 0.75, 0.75]);
    }

    #[test]
    fn a_late_look_a_gap_and_a_counter_that_begins_anew_do_no_harm() {
        let begun = Instant::now();
        let mut recorder = Recorder::new(begun);
        recorder.record(at(begun, 0.9), counters([(1, [500, 0])]));
        recorder.record(at(begun, 1.6), counters([(1, [800, 0])]));
        recorder.record(at(begun, 5.6), counters([(1, [1200, 0])]));
        assert_eq!(latest(&recorder, 1, 10).total.received, [500.0, 100.0, 100.0, 100.0, 100.0]);
        recorder.record(at(begun, 6.6), counters([(1, [70, 0])]));
        assert_eq!(latest(&recorder, 1, 1).total.received, [70.0]);
        // After a month of sleep.
        recorder.record(at(begun, 2_600_000.6), counters([(1, [70, 0])]));
        assert!(latest(&recorder, 60, 1000).total.received.iter().all(|rate| *rate == 0.0));
        recorder.record(at(begun, 2_600_001.6), counters([]));
        assert!(latest(&recorder, 1, 1).peers.is_empty(), "a removed peer is forgotten");
    }

    #[test]
    fn memory_is_bounded_and_the_busiest_peers_are_remembered() {
        const PEERS: u32 = 3000;
        let begun = Instant::now();
        let mut recorder = Recorder::new(begun);
        // All have keepalives every 25 seconds; the last hundred have real traffic, which starts after a minute.
        for second in 1..=120u64 {
            let bytes = |number: u32| match number {
                0..2900 => (second + u64::from(number)) / 25 * 32,
                _ => second.saturating_sub(60) * 10_000,
            };
            recorder.record(at(begun, second as f64), counters((0..PEERS).map(|number| (number, [bytes(number), 0]))));
            assert!(recorder.peers.len() <= PEERS_REMEMBERED);
        }
        assert_eq!(recorder.peers.len(), PEERS_REMEMBERED);
        let forgotten: Vec<u32> = (2900..PEERS).filter(|number| !recorder.peers.contains_key(&key(*number))).collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
        let busy = &recorder.peers[&key(2999)].rings;
        assert_eq!(busy.latest(0, 60)[0], [10_000.0; 60]);

        // After two days.
        recorder.record(at(begun, 172_800.0), counters([(2999, [600_000, 0])]));
        for rings in recorder.peers.values().map(|peer| &peer.rings) {
            let points: Vec<usize> = rings.rings.iter().map(VecDeque::len).collect();
            assert_eq!(points, TIERS.map(|tier| tier.points));
        }
    }
}
