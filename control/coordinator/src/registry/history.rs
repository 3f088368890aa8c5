//! How the rates and round trips of paths, as gateways report them, have changed in the last two hours, for the page.
//!
//! Every [`EVERY`] the latest report of each gateway is read. The history of a path has at most [`POINTS`] points, each
//! the mean of what was read in its time. They are short at first, so that there is something to see soon after the
//! start; whenever there would be more, every two points become one that stands for twice as long, until a point stands
//! for [`LONGEST`] seconds. From then on the oldest is forgotten.
//!
//! Memory is bounded whatever gateways report: there are at most [`PATHS_REMEMBERED`] paths, of which each gateway has
//! an equal share, so that none displaces another's. Nothing is written to disk. Time is an argument.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_proto::coordination::limits::PATHS_LIMIT;
use penstock_proto::coordination::{PathReport, SiteKey};

use super::SITES_LIMIT;

/// How often reports are read: the length of a point at first, and as often as the page refreshes itself.
pub const EVERY: Duration = Duration::from_secs(5);
/// The most points of a path. An even number, since every two become one.
const POINTS: usize = 90;
/// How many seconds a point stands for in the end: two hours in all.
const LONGEST: u64 = 80;
/// The most paths, of 1.2 kB each: 24 MB. It is one for each site of the largest coordinator. If there are no more than
/// 500 sites, everything that they can report is remembered.
const PATHS_REMEMBERED: usize = SITES_LIMIT;

/// The past of a link: its points, the latest last. Those of all links stand for the same times.
#[derive(Debug, Default)]
pub struct Past {
    /// Bytes a second both ways together; `None` where nobody has reported.
    pub rates: Vec<Option<f32>>,
    /// In microseconds.
    pub round_trips: Vec<Option<f32>>,
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct History {
    begun: Instant,
    /// How many seconds a point stands for.
    step: u64,
    /// The number of the present point, from 0 at the start.
    present: u64,
    gateways: HashMap<SiteKey, Vec<Path>>,
}

/// A gateway's path to a peer.
#[derive(Debug)]
struct Path {
    peer: SiteKey,
    reported: Instant,
    /// The last is the present one.
    points: VecDeque<Point>,
}

/// Sums of what was read, and of how many readings.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    rate: f32,
    round_trip: f32,
    rates: u16,
    round_trips: u16,
}

impl History {
    pub fn new(now: Instant) -> Self {
        Self { begun: now, step: EVERY.as_secs(), present: 0, gateways: HashMap::new() }
    }

    /// Reads the latest report of each gateway.
    pub fn record(&mut self, now: Instant, latest: &HashMap<SiteKey, Arc<[PathReport]>>) {
        self.advance(now);
        let span = Duration::from_secs(self.step * POINTS as u64);
        self.gateways.retain(|_, paths| {
            paths.retain(|path| now.saturating_duration_since(path.reported) < span);
            !paths.is_empty()
        });
        for (gateway, _) in latest.iter().filter(|(_, reports)| !reports.is_empty()) {
            if self.gateways.len() < PATHS_REMEMBERED {
                self.gateways.entry(*gateway).or_default();
            }
        }
        let share = (PATHS_REMEMBERED / self.gateways.len().max(1)).min(PATHS_LIMIT);
        for (gateway, paths) in &mut self.gateways {
            for report in latest.get(gateway).iter().flat_map(|reports| reports.iter()).take(share) {
                note(paths, now, report);
            }
            if paths.len() > share {
                paths.sort_by_key(|path| Reverse(path.reported));
                paths.truncate(share);
            }
        }
    }

    /// Starts new points up to the present one.
    fn advance(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.begun).as_secs();
        while self.step < LONGEST && seconds / self.step >= POINTS as u64 {
            self.move_to(POINTS as u64 - 1);
            self.gateways.values_mut().flatten().for_each(Path::halve);
            self.present /= 2;
            self.step *= 2;
        }
        self.move_to(seconds / self.step);
    }

    fn move_to(&mut self, point: u64) {
        // After a long gap nothing is left of what was before.
        let new = point.saturating_sub(self.present).min(POINTS as u64);
        for path in self.gateways.values_mut().flatten() {
            (0..new).for_each(|_| path.begin_point());
        }
        self.present = self.present.max(point);
    }

    /// How many points there are.
    fn length(&self) -> usize {
        usize::try_from(self.present + 1).map_or(POINTS, |points| points.min(POINTS))
    }

    /// How far back the points reach.
    pub fn span(&self) -> Duration {
        Duration::from_secs(self.step * self.length() as u64)
    }

    /// The past of the link between two sites: of what the two report, the higher rate and the shorter round trip.
    pub fn link(&self, [one, other]: [&SiteKey; 2]) -> Past {
        let path = |from: &SiteKey, to: &SiteKey| self.gateways.get(from)?.iter().find(|path| path.peer == *to);
        let paths = [path(one, other), path(other, one)];
        let of_age = |age: usize| {
            let points = paths.into_iter().flatten().filter_map(move |path| path.points.iter().rev().nth(age));
            let rate = points.clone().filter_map(|point| mean(point.rate, point.rates)).reduce(f32::max);
            (rate, points.filter_map(|point| mean(point.round_trip, point.round_trips)).reduce(f32::min))
        };
        let (rates, round_trips) = (0..self.length()).rev().map(of_age).unzip();
        Past { rates, round_trips }
    }
}

/// Adds what a gateway reports of a path to its paths.
fn note(paths: &mut Vec<Path>, now: Instant, report: &PathReport) {
    let known = paths.iter().position(|path| path.peer == report.peer).unwrap_or_else(|| {
        let mut points = VecDeque::with_capacity(POINTS);
        points.push_back(Point::default());
        paths.push(Path { peer: report.peer, reported: now, points });
        paths.len() - 1
    });
    let path = &mut paths[known];
    path.reported = now;
    let Some(point) = path.points.back_mut() else { return };
    point.rate += report.received.saturating_add(report.sent) as f32;
    point.rates += 1;
    if let Some(round_trip) = report.round_trip {
        point.round_trip += round_trip as f32;
        point.round_trips += 1;
    }
}

fn mean(sum: f32, count: u16) -> Option<f32> {
    (count > 0).then(|| sum / f32::from(count))
}

impl Path {
    fn begin_point(&mut self) {
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back(Point::default());
    }

    /// Merges every two points into one. The last one is the second of two, since the number of the present point is
    /// odd.
    fn halve(&mut self) {
        let points = self.points.make_contiguous();
        let mut halved: Vec<Point> =
            points.rchunks(2).map(|two| two.iter().copied().fold(Point::default(), Point::and)).collect();
        halved.reverse();
        self.points.clear();
        self.points.extend(halved);
    }
}

impl Point {
    fn and(self, other: Self) -> Self {
        Self {
            rate: self.rate + other.rate,
            round_trip: self.round_trip + other.round_trip,
            rates: self.rates + other.rates,
            round_trips: self.round_trips + other.round_trips,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_proto::coordination::PathKind;

    fn key(number: u32) -> SiteKey {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes.into()
    }

    fn report(peer: u32, rate: u64, round_trip: impl Into<Option<u32>>) -> PathReport {
        let (path, reason, round_trip) = (PathKind::Direct, String::new(), round_trip.into());
        PathReport { peer: key(peer), path, relay: None, reason, round_trip, received: rate, sent: 0 }
    }

    type Reports = HashMap<SiteKey, Arc<[PathReport]>>;

    fn reports<const N: usize>(of: [(u32, Vec<PathReport>); N]) -> Reports {
        of.into_iter().map(|(gateway, paths)| (key(gateway), paths.into())).collect()
    }

    /// A history, and how many seconds of it have passed.
    struct Recorded {
        history: History,
        begun: Instant,
        seconds: u64,
    }

    impl Recorded {
        fn new() -> Self {
            let begun = Instant::now();
            Self { history: History::new(begun), begun, seconds: 0 }
        }

        /// Records the same for this long.
        fn during(&mut self, seconds: u64, latest: &Reports) {
            let end = self.seconds + seconds;
            while self.seconds < end {
                self.history.record(self.begun + Duration::from_secs(self.seconds), latest);
                self.seconds += EVERY.as_secs();
            }
        }

        fn link(&self, one: u32, other: u32) -> Past {
            self.history.link([&key(one), &key(other)])
        }
    }

    #[test]
    fn the_better_of_what_both_ends_report_is_shown_and_silence_is_a_gap() {
        let mut recorded = Recorded::new();
        recorded.during(5, &reports([(1, vec![report(2, 100, 9_000)]), (2, vec![report(1, 300, 12_000)])]));
        recorded.during(5, &reports([(1, vec![report(2, 100, 9_000)])]));
        recorded.during(5, &reports([]));
        recorded.during(5, &reports([(2, vec![report(1, 0, None)])]));
        let past = recorded.link(2, 1);
        assert_eq!(past.rates, [Some(300.0), Some(100.0), None, Some(0.0)]);
        assert_eq!(past.round_trips, [Some(9_000.0), Some(9_000.0), None, None]);
        assert_eq!(recorded.link(1, 3).rates, [None; 4]);
        assert_eq!(recorded.history.span(), Duration::from_secs(20));
    }

    #[test]
    fn points_get_longer_until_they_reach_back_two_hours() {
        let mut recorded = Recorded::new();
        // A path from the first minute on, after which the rate doubles every half hour.
        recorded.during(60, &reports([(1, vec![report(3, 7, 1)])]));
        for half_hour in 0..4 {
            recorded.during(1800, &reports([(1, vec![report(2, 100 << half_hour, 5_000), report(3, 7, 1)])]));
            let past = recorded.link(1, 2);
            let known: Vec<f32> = past.rates.iter().copied().flatten().collect();
            assert!(past.rates.len() <= POINTS && known.len() >= POINTS / 2 - 3, "{past:?}");
            assert_eq!(known.last(), Some(&((100 << half_hour) as f32)));
            // Means lie between what was reported, and go up.
            assert!(known[0] == 100.0 && known.is_sorted(), "{known:?}");
            assert_eq!(recorded.link(1, 3).rates, vec![Some(7.0); past.rates.len()]);
        }
        assert_eq!(recorded.history.span(), Duration::from_secs(7200));
        recorded.during(7200, &reports([(1, vec![report(2, 1, 5_000)])]));
        assert_eq!(recorded.link(1, 2).rates, vec![Some(1.0); POINTS]);
        assert!(recorded.link(1, 3).rates.iter().all(Option::is_none) && recorded.history.gateways[&key(1)].len() == 1);
    }

    #[test]
    fn a_month_without_a_reading_leaves_nothing() {
        let mut recorded = Recorded::new();
        recorded.during(100, &reports([(1, vec![report(2, 100, 9_000)])]));
        recorded.seconds += 30 * 86_400;
        recorded.during(5, &reports([(2, vec![report(1, 5, 1)])]));
        let past = recorded.link(1, 2).rates;
        assert_eq!((past.len(), past.iter().flatten().count(), past.last()), (POINTS, 1, Some(&Some(5.0))));
        assert!(!recorded.history.gateways.contains_key(&key(1)));
    }

    #[test]
    fn absurd_reports_stay_numbers() {
        let mut recorded = Recorded::new();
        let absurd = PathReport { sent: u64::MAX, ..report(2, u64::MAX, u32::MAX) };
        // The same peer as often as a report has room for.
        recorded.during(8000, &reports([(1, vec![absurd; PATHS_LIMIT])]));
        let past = recorded.link(1, 2);
        let is_sound = |value: &Option<f32>| value.is_some_and(|value| value.is_finite() && value > 0.0);
        assert!(past.rates.iter().chain(&past.round_trips).all(is_sound), "{past:?}");
        assert_eq!(recorded.history.gateways[&key(1)].len(), 1);
    }

    #[test]
    fn a_gateway_that_reports_ever_new_peers_displaces_only_its_own() {
        let mut recorded = Recorded::new();
        let mut most = 0;
        for round in 0..20 {
            let invented = (0..PATHS_LIMIT as u32).map(|peer| report(1000 + round * 40 + peer, 9, 1)).collect();
            recorded.during(5, &reports([(1, invented), (2, vec![report(3, 100, 1)])]));
            most = most.max(recorded.history.gateways[&key(1)].len());
        }
        assert_eq!(most, PATHS_LIMIT);
        assert_eq!(recorded.link(2, 3).rates, [Some(100.0); 20]);
    }

    #[test]
    fn the_largest_coordinator_remembers_the_busiest_path_of_each_site() {
        let some = |gateway: u32, count: u32| {
            let paths = (0..count).map(|peer| report(gateway + 1 + peer, 9, 1)).collect();
            (key(gateway), paths)
        };
        let mut latest: Reports = (0..400).map(|gateway| some(gateway, PATHS_LIMIT as u32)).collect();
        let mut recorded = Recorded::new();
        let count = |recorded: &Recorded| recorded.history.gateways.values().map(Vec::len).sum::<usize>();
        recorded.during(5, &latest);
        assert_eq!(count(&recorded), 400 * PATHS_LIMIT);
        // More than can be sites at a time: those that were removed meanwhile are among them.
        latest.extend((400..SITES_LIMIT as u32 + 50).map(|gateway| some(gateway, 2)));
        recorded.during(10, &latest);
        assert_eq!(count(&recorded), PATHS_REMEMBERED);
        assert_eq!(recorded.link(7, 8).rates.len(), 3);
        assert_eq!(recorded.link(7, 8).rates[0], Some(9.0), "the first that is reported is the busiest");
        assert!(recorded.history.gateways.values().all(|paths| paths.len() == 1));
    }
}
