//! What was measured, by subject, quantity and round, and the report made of it.

use std::collections::HashMap;

use super::Placement;
use super::subject::Subject;
use crate::report::{Axis, Better, Curve, Measure, Report, Scale, Spread};

/// A quantity that is measured.
#[derive(Debug)]
pub struct Quantity {
    /// Its name in the report.
    pub name: &'static str,
    unit: &'static str,
    better: Better,
    /// The subjects that no gateway is expected to beat. The best of them is the ceiling, which is named after the
    /// first.
    ceilings: &'static [&'static str],
}

const KERNEL: &[&str] = &["kernel"];
/// A polling forwarder takes CPU time from sources and sinks, so on a small machine the sleeping one may carry more.
const FORWARDERS: &[&str] = &["forwarder", "forwarder-busy"];

const fn quantity(
    name: &'static str,
    unit: &'static str,
    better: Better,
    ceilings: &'static [&'static str],
) -> Quantity {
    Quantity { name, unit, better, ceilings }
}

/// What one stream of iperf3 receives.
pub static TCP_1: Quantity = quantity("TCP, 1 stream", "Gbit/s", Better::Higher, KERNEL);
/// What four of them receive together.
pub static TCP_4: Quantity = quantity("TCP, 4 streams", "Gbit/s", Better::Higher, KERNEL);
/// Small packets received.
pub static SMALL: Quantity = quantity("UDP, 64 B", "kpps", Better::Higher, FORWARDERS);
/// Large packets received.
pub static LARGE: Quantity = quantity("UDP, 1434 B", "kpps", Better::Higher, FORWARDERS);
/// The median of a round's pings.
pub static PING: Quantity = quantity("idle ping", "µs", Better::Lower, &[]);
/// One-way latency of small packets under a load that every subject carries.
pub static LATENCY_50: Quantity = quantity("latency at 2 kpps, median", "µs", Better::Lower, &[]);
/// The tail of that latency.
pub static LATENCY_99: Quantity = quantity("latency at 2 kpps, 99th percentile", "µs", Better::Lower, &[]);
/// CPU time of the whole machine.
pub static COST_1: Quantity = quantity("CPU time, TCP, 1 stream", "s/GB", Better::Lower, &[]);
/// The same for four streams.
pub static COST_4: Quantity = quantity("CPU time, TCP, 4 streams", "s/GB", Better::Lower, &[]);
/// The part of the small packets sent that the sink did not receive.
pub static SMALL_LOST: Quantity = quantity("UDP, 64 B, lost", "%", Better::Lower, &[]);
/// The same for large packets.
pub static LARGE_LOST: Quantity = quantity("UDP, 1434 B, lost", "%", Better::Lower, &[]);

/// In the order of the report.
pub(super) static ALL: [&Quantity; 11] =
    [&TCP_1, &TCP_4, &SMALL, &LARGE, &PING, &LATENCY_50, &LATENCY_99, &COST_1, &COST_4, &SMALL_LOST, &LARGE_LOST];

/// A subject's name, and its placement.
type Placed = (String, Placement);

/// All results. A subject may have been measured in several placements: each of its figures is then taken from the
/// placement that is best for that figure, so that no subject profits from where another one happens to run.
#[derive(Debug, Default)]
pub struct Figures {
    rounds: HashMap<(Placed, &'static str), Vec<(usize, f64)>>,
    round_trips: HashMap<Placed, Vec<f64>>,
    /// One curve per round.
    latencies: HashMap<Placed, Vec<Vec<(f64, f64)>>>,
}

impl Figures {
    /// Adds the result of a round. A round that failed is left out.
    pub fn add(&mut self, subject: &Subject, placement: Placement, round: usize, quantity: &Quantity, value: f64) {
        self.rounds.entry((placed(subject, placement), quantity.name)).or_default().push((round, value));
    }

    /// Adds round trips in µs.
    pub fn add_round_trips(&mut self, subject: &Subject, placement: Placement, round_trips: &[f64]) {
        self.round_trips.entry(placed(subject, placement)).or_default().extend(round_trips);
    }

    /// Adds a round's percentiles of latency: pairs of percentile and µs.
    pub fn add_latency(&mut self, subject: &Subject, placement: Placement, percentiles: Vec<(f64, f64)>) {
        self.latencies.entry(placed(subject, placement)).or_default().push(percentiles);
    }

    /// Adds measures and curves to a report, with the subjects in this order.
    pub fn report(&self, subjects: &[&Subject], report: &mut Report) {
        for quantity in ALL {
            let measured = subjects.iter().filter_map(|subject| {
                let samples = self.best(&subject.name, quantity)?.1;
                Some(measure(subject, quantity.name.into(), quantity.unit, quantity.better, samples))
            });
            report.measures.extend(measured);
        }
        for quantity in ALL {
            let Some(name) = ratio_name(quantity) else { continue };
            let Some(ceiling) = self.ceiling(quantity) else { continue };
            let ratios = subjects.iter().filter(|subject| subject.name != ceiling).filter_map(|subject| {
                let samples = self.ratios(subject, quantity, ceiling);
                (!samples.is_empty()).then(|| measure(subject, name.clone(), "", quantity.better, &samples))
            });
            report.measures.extend(ratios);
        }
        report.curves.extend(subjects.iter().filter_map(|subject| self.latency(subject)));
        report.curves.extend(subjects.iter().filter_map(|subject| self.round_trip(subject)));
    }

    /// The best placement by its median, and its samples.
    fn best(&self, subject: &str, quantity: &Quantity) -> Option<(Placement, &[(usize, f64)])> {
        let measured = Placement::ALL.into_iter().filter_map(|placement| {
            let samples = self.rounds.get(&((subject.into(), placement), quantity.name))?.as_slice();
            Some(((placement, samples), median(samples)))
        });
        best(quantity.better, measured)
    }

    /// The subject that is the ceiling, if any was measured.
    fn ceiling(&self, quantity: &Quantity) -> Option<&'static str> {
        let measured = quantity.ceilings.iter().filter_map(|name| Some((*name, median(self.best(name, quantity)?.1))));
        best(quantity.better, measured)
    }

    /// The figures that a subject reached pinned: "TCP, 1 stream; idle ping".
    pub fn pinned(&self, subject: &Subject) -> Option<String> {
        let is_pinned = |quantity: &&&Quantity| {
            self.best(&subject.name, quantity).is_some_and(|(placement, _)| placement == Placement::Pinned)
        };
        let names: Vec<&str> = ALL.iter().filter(is_pinned).map(|quantity| quantity.name).collect();
        (!names.is_empty()).then(|| names.join("; "))
    }

    /// The ratio in each round, so that a slow minute affects both alike.
    fn ratios(&self, subject: &Subject, quantity: &Quantity, ceiling: &str) -> Vec<(usize, f64)> {
        let of = |name: &str| self.best(name, quantity).map_or(&[][..], |(_, samples)| samples);
        let ceilings: HashMap<usize, f64> = of(ceiling).iter().copied().filter(|(_, value)| *value > 0.0).collect();
        of(&subject.name).iter().filter_map(|(round, value)| Some((*round, value / ceilings.get(round)?))).collect()
    }

    /// The median over the rounds, at each percentile that all rounds have.
    fn latency(&self, subject: &Subject) -> Option<Curve> {
        let (placement, _) = self.best(&subject.name, &LATENCY_50)?;
        let rounds = self.latencies.get(&placed(subject, placement))?;
        let (first, others) = rounds.split_first()?;
        let of_all = |(percentile, time): &(f64, f64)| {
            let at = |round: &Vec<(f64, f64)>| round.iter().find(|(p, _)| p == percentile).map(|(_, time)| *time);
            let mut times = others.iter().map(at).collect::<Option<Vec<f64>>>()?;
            times.push(*time);
            Some((*percentile, Spread::of(&times).median))
        };
        let points: Vec<(f64, f64)> = first.iter().filter_map(of_all).collect();
        (!points.is_empty()).then(|| curve(subject, "latency at 2 kpps", "one way", points))
    }

    /// For each round trip the fraction of all pings that were at least as fast.
    fn round_trip(&self, subject: &Subject) -> Option<Curve> {
        let (placement, _) = self.best(&subject.name, &PING)?;
        let mut sorted = self.round_trips.get(&placed(subject, placement))?.clone();
        sorted.sort_by(f64::total_cmp);
        let of = sorted.len() as f64;
        let points = sorted.iter().enumerate().map(|(n, time)| (100.0 * n as f64 / of, *time)).collect();
        Some(curve(subject, PING.name, "round trip", points))
    }
}

fn median(samples: &[(usize, f64)]) -> f64 {
    Spread::of(&samples.iter().map(|(_, value)| *value).collect::<Vec<_>>()).median
}

/// The first of the best.
fn best<T>(better: Better, mut measured: impl Iterator<Item = (T, f64)>) -> Option<T> {
    let first = measured.next()?;
    let best = measured.fold(first, |best, other| match better {
        Better::Higher if other.1 > best.1 => other,
        Better::Lower if other.1 < best.1 => other,
        _ => best,
    });
    Some(best.0)
}

fn placed(subject: &Subject, placement: Placement) -> Placed {
    (subject.name.to_string(), placement)
}

/// A measure from samples with the numbers of their rounds, which count from 0 here.
fn measure(subject: &Subject, quantity: String, unit: &str, better: Better, samples: &[(usize, f64)]) -> Measure {
    let (rounds, samples) = samples.iter().map(|(round, value)| (round + 1, *value)).unzip();
    Measure::new(&*subject.name, quantity, unit, better, samples).of_rounds(rounds)
}

fn curve(subject: &Subject, quantity: &str, label: &str, points: Vec<(f64, f64)>) -> Curve {
    Curve {
        subject: subject.name.to_string(),
        quantity: quantity.into(),
        x: Axis::new("percentile", "%", Scale::Percentile),
        y: Axis::new(label, "µs", Scale::Logarithmic),
        points,
    }
}

/// "TCP, 1 stream, of kernel": a quantity as a fraction of its ceiling; `None` if it has none.
pub fn ratio_name(quantity: &Quantity) -> Option<String> {
    Some(format!("{}, of {}", quantity.name, quantity.ceilings.first()?))
}

#[cfg(test)]
mod tests {
    use super::super::subject;
    use super::*;

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let [kernel, other] = ["kernel", "wireguard-go"].map(|name| subject::find(name).expect("a subject"));
        let mut figures = Figures::default();
        // The machine was half as fast in round 1; the ceiling failed in round 2, the other subject in round 3.
        for (round, value) in [(0, 10.0), (1, 5.0), (3, 10.0)] {
            figures.add(kernel, Placement::Scheduler, round, &TCP_1, value);
        }
        for (round, value) in [(0, 4.0), (1, 2.0), (2, 7.0)] {
            figures.add(other, Placement::Pinned, round, &TCP_1, value);
        }
        // The scheduler's placement is worse for TCP and better for pings.
        figures.add(other, Placement::Scheduler, 0, &TCP_1, 3.0);
        for (placement, round, ping, round_trips) in [
            (Placement::Pinned, 0, 31.0, [31.0, 31.0]),
            (Placement::Scheduler, 0, 20.0, [30.0, 10.0]),
            (Placement::Scheduler, 1, 30.0, [20.0, 40.0]),
        ] {
            figures.add(other, placement, round, &PING, ping);
            figures.add_round_trips(other, placement, &round_trips);
        }
        assert_eq!(figures.pinned(other).as_deref(), Some("TCP, 1 stream"));
        assert_eq!(figures.pinned(kernel), None);
        let mut report = Report::new("Comparison", vec![]);
        figures.report(&[kernel, other], &mut report);
        assert_eq!(report.check(), Ok(()));
        assert_eq!(report.samples("wireguard-go", "TCP, 1 stream"), Some(&[4.0, 2.0, 7.0][..]));
        assert_eq!(report.samples("wireguard-go", "TCP, 1 stream, of kernel"), Some(&[0.4, 0.4][..]));
        assert_eq!(report.samples("kernel", "TCP, 1 stream, of kernel"), None);
        let rounds = |n: usize| report.measures[n].by_round().map(|(round, _)| round).collect::<Vec<_>>();
        assert_eq!([rounds(0), rounds(1), rounds(3)], [vec![1, 2, 4], vec![1, 2, 3], vec![1, 2]]);
        assert_eq!(report.curves[0].points, [(0.0, 10.0), (25.0, 20.0), (50.0, 30.0), (75.0, 40.0)]);
    }

    #[test]
    fn the_better_forwarder_is_the_ceiling() {
        let [sleeping, busy, other] =
            ["forwarder", "forwarder-busy", "wireguard-go"].map(|name| subject::find(name).expect("a subject"));
        let mut figures = Figures::default();
        for (subject, value) in [(sleeping, 100.0), (busy, 80.0), (other, 50.0)] {
            figures.add(subject, Placement::Pinned, 0, &SMALL, value);
            figures.add(subject, Placement::Pinned, 0, &LARGE, 1000.0 / value);
        }
        let mut report = Report::new("Comparison", vec![]);
        figures.report(&[sleeping, busy, other], &mut report);
        for (subject, quantity, ratio) in [
            ("wireguard-go", "UDP, 64 B, of forwarder", 0.5),
            ("forwarder-busy", "UDP, 64 B, of forwarder", 0.8),
            ("wireguard-go", "UDP, 1434 B, of forwarder", 1.6),
            ("forwarder", "UDP, 1434 B, of forwarder", 0.8),
        ] {
            assert_eq!(report.samples(subject, quantity), Some(&[ratio][..]), "{subject}, {quantity}");
        }
        assert_eq!(report.samples("forwarder", "UDP, 64 B, of forwarder"), None);
    }

    #[test]
    fn latency_is_the_median_of_the_rounds_at_each_percentile() {
        let kernel = subject::find("kernel").expect("a subject");
        let mut figures = Figures::default();
        for round in [[(0.0, 10.0), (50.0, 30.0), (90.0, 50.0)], [(0.0, 12.0), (50.0, 20.0), (99.0, 99.0)]] {
            figures.add_latency(kernel, Placement::Scheduler, round.into());
        }
        figures.add(kernel, Placement::Scheduler, 0, &LATENCY_50, 20.0);
        figures.add_latency(kernel, Placement::Scheduler, vec![(0.0, 90.0), (50.0, 90.0), (90.0, 90.0)]);
        let mut report = Report::new("Comparison", vec![]);
        figures.report(&[kernel], &mut report);
        assert_eq!(report.curves[0].points, [(0.0, 12.0), (50.0, 30.0)]);
        assert_eq!(report.check(), Ok(()));
    }
}
