//! What was measured, by subject, quantity and round, and the report that it makes.

use std::collections::HashMap;

use super::subject::Subject;
use crate::report::{Axis, Better, Curve, Measure, Report, Scale, Spread};

/// Something that is measured.
#[derive(Debug)]
pub struct Quantity {
    /// As the report has it.
    pub name: &'static str,
    unit: &'static str,
    better: Better,
    /// The subject that no gateway is expected to beat.
    ceiling: Option<&'static str>,
}

const fn quantity(name: &'static str, unit: &'static str, better: Better, ceiling: Option<&'static str>) -> Quantity {
    Quantity { name, unit, better, ceiling }
}

/// What one stream of iperf3 receives.
pub static TCP_1: Quantity = quantity("TCP, 1 stream", "Gbit/s", Better::Higher, Some("kernel"));
/// What four of them receive together.
pub static TCP_4: Quantity = quantity("TCP, 4 streams", "Gbit/s", Better::Higher, Some("kernel"));
/// Small packets that arrive.
pub static SMALL: Quantity = quantity("UDP, 64 B", "kpps", Better::Higher, Some("forwarder"));
/// Large packets that arrive.
pub static LARGE: Quantity = quantity("UDP, 1434 B", "kpps", Better::Higher, Some("forwarder"));
/// The median of a round's pings.
pub static PING: Quantity = quantity("idle ping", "µs", Better::Lower, None);
/// One-way latency of small packets under a load that all carry.
pub static LATENCY_50: Quantity = quantity("latency at 2 kpps, median", "µs", Better::Lower, None);
/// The tail of the same.
pub static LATENCY_99: Quantity = quantity("latency at 2 kpps, 99th percentile", "µs", Better::Lower, None);
/// CPU time of the machine.
pub static COST_1: Quantity = quantity("CPU time, TCP, 1 stream", "s/GB", Better::Lower, None);
/// CPU time of the machine.
pub static COST_4: Quantity = quantity("CPU time, TCP, 4 streams", "s/GB", Better::Lower, None);
/// What the generator sent and the sink did not receive.
pub static SMALL_LOST: Quantity = quantity("UDP, 64 B, lost", "%", Better::Lower, None);
/// What the generator sent and the sink did not receive.
pub static LARGE_LOST: Quantity = quantity("UDP, 1434 B, lost", "%", Better::Lower, None);

/// In the order of the report.
static ALL: [&Quantity; 11] =
    [&TCP_1, &TCP_4, &SMALL, &LARGE, &PING, &LATENCY_50, &LATENCY_99, &COST_1, &COST_4, &SMALL_LOST, &LARGE_LOST];

/// All that has been measured.
#[derive(Debug, Default)]
pub struct Figures {
    rounds: HashMap<(&'static str, &'static str), Vec<(usize, f64)>>,
    round_trips: HashMap<&'static str, Vec<f64>>,
    /// A curve a round.
    latencies: HashMap<&'static str, Vec<Vec<(f64, f64)>>>,
}

impl Figures {
    /// Adds what a round yielded. A round in which nothing was is left out.
    pub fn add(&mut self, subject: &Subject, round: usize, quantity: &Quantity, value: f64) {
        self.rounds.entry((subject.name, quantity.name)).or_default().push((round, value));
    }

    /// Adds round trips in µs.
    pub fn add_round_trips(&mut self, subject: &Subject, round_trips: &[f64]) {
        self.round_trips.entry(subject.name).or_default().extend(round_trips);
    }

    /// Adds a round's percentiles of latency: pairs of percentile and µs.
    pub fn add_latency(&mut self, subject: &Subject, percentiles: Vec<(f64, f64)>) {
        self.latencies.entry(subject.name).or_default().push(percentiles);
    }

    /// Puts measures and curves into a report, subjects in this order.
    pub fn report(&self, subjects: &[&Subject], report: &mut Report) {
        for quantity in ALL {
            let measured = subjects.iter().filter_map(|subject| {
                let samples = self.rounds.get(&(subject.name, quantity.name))?;
                Some(measure(subject, quantity.name.into(), quantity.unit, quantity.better, samples))
            });
            report.measures.extend(measured);
        }
        for quantity in ALL {
            let Some(ceiling) = quantity.ceiling else { continue };
            let name = ratio_name(quantity);
            let ratios = subjects.iter().filter(|subject| subject.name != ceiling).filter_map(|subject| {
                let samples = self.ratios(subject, quantity, ceiling);
                let name = name.clone().filter(|_| !samples.is_empty())?;
                Some(measure(subject, name, "", quantity.better, &samples))
            });
            report.measures.extend(ratios);
        }
        report.curves.extend(subjects.iter().filter_map(|subject| self.latency(subject)));
        report.curves.extend(subjects.iter().filter_map(|subject| self.round_trip(subject)));
    }

    /// Each round's ratio, so that a slow minute slows both.
    fn ratios(&self, subject: &Subject, quantity: &Quantity, ceiling: &'static str) -> Vec<(usize, f64)> {
        let of = |name: &'static str| self.rounds.get(&(name, quantity.name)).map_or(&[][..], Vec::as_slice);
        let ceilings: HashMap<usize, f64> = of(ceiling).iter().copied().filter(|(_, value)| *value > 0.0).collect();
        of(subject.name).iter().filter_map(|(round, value)| Some((*round, value / ceilings.get(round)?))).collect()
    }

    /// At each percentile that all rounds have, the median of the rounds.
    fn latency(&self, subject: &Subject) -> Option<Curve> {
        let rounds = self.latencies.get(subject.name)?;
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

    /// The part of the pings, of all rounds, that were faster than each.
    fn round_trip(&self, subject: &Subject) -> Option<Curve> {
        let mut sorted = self.round_trips.get(subject.name)?.clone();
        sorted.sort_by(f64::total_cmp);
        let of = sorted.len() as f64;
        let points = sorted.iter().enumerate().map(|(n, time)| (100.0 * n as f64 / of, *time)).collect();
        Some(curve(subject, PING.name, "round trip", points))
    }
}

/// A measure of samples with their rounds, which count from 0 here.
fn measure(subject: &Subject, quantity: String, unit: &str, better: Better, samples: &[(usize, f64)]) -> Measure {
    let (rounds, samples) = samples.iter().map(|(round, value)| (round + 1, *value)).unzip();
    Measure::new(subject.name, quantity, unit, better, samples).of_rounds(rounds)
}

fn curve(subject: &Subject, quantity: &str, label: &str, points: Vec<(f64, f64)>) -> Curve {
    Curve {
        subject: subject.name.into(),
        quantity: quantity.into(),
        x: Axis::new("percentile", "%", Scale::Percentile),
        y: Axis::new(label, "µs", Scale::Logarithmic),
        points,
    }
}

/// "TCP, 1 stream, of kernel": a quantity as a part of its ceiling's; `None` without one.
pub fn ratio_name(quantity: &Quantity) -> Option<String> {
    Some(format!("{}, of {}", quantity.name, quantity.ceiling?))
}

#[cfg(test)]
mod tests {
    use super::super::subject;
    use super::*;

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let [kernel, other] = ["kernel", "wireguard-go"].map(|name| subject::find(name).expect("a subject"));
        let mut figures = Figures::default();
        // The machine was half as fast in round 1; in round 2 the ceiling failed, in round 3 the other.
        for (round, value) in [(0, 10.0), (1, 5.0), (3, 10.0)] {
            figures.add(kernel, round, &TCP_1, value);
        }
        for (round, value) in [(0, 4.0), (1, 2.0), (2, 7.0)] {
            figures.add(other, round, &TCP_1, value);
        }
        figures.add_round_trips(other, &[30.0, 10.0]);
        figures.add_round_trips(other, &[20.0, 40.0]);
        let mut report = Report::new("Comparison", vec![]);
        figures.report(&[kernel, other], &mut report);
        assert_eq!(report.check(), Ok(()));
        assert_eq!(report.samples("wireguard-go", "TCP, 1 stream"), Some(&[4.0, 2.0, 7.0][..]));
        assert_eq!(report.samples("wireguard-go", "TCP, 1 stream, of kernel"), Some(&[0.4, 0.4][..]));
        assert_eq!(report.samples("kernel", "TCP, 1 stream, of kernel"), None);
        let rounds = |n: usize| report.measures[n].by_round().map(|(round, _)| round).collect::<Vec<_>>();
        assert_eq!([rounds(0), rounds(1), rounds(2)], [vec![1, 2, 4], vec![1, 2, 3], vec![1, 2]]);
        assert_eq!(report.curves[0].points, [(0.0, 10.0), (25.0, 20.0), (50.0, 30.0), (75.0, 40.0)]);
    }

    #[test]
    fn latency_is_the_median_of_the_rounds_at_each_percentile() {
        let kernel = subject::find("kernel").expect("a subject");
        let mut figures = Figures::default();
        for round in [[(0.0, 10.0), (50.0, 30.0), (90.0, 50.0)], [(0.0, 12.0), (50.0, 20.0), (99.0, 99.0)]] {
            figures.add_latency(kernel, round.into());
        }
        figures.add_latency(kernel, vec![(0.0, 90.0), (50.0, 90.0), (90.0, 90.0)]);
        let mut report = Report::new("Comparison", vec![]);
        figures.report(&[kernel], &mut report);
        assert_eq!(report.curves[0].points, [(0.0, 12.0), (50.0, 30.0)]);
        assert_eq!(report.check(), Ok(()));
    }
}
