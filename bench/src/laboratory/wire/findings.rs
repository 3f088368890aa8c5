//! The findings of a session, as parts of a report.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::Outcome;
use crate::laboratory::search::Trial;
use crate::report::{Axis, Better, Curve, Measure, Scale, Spread};
use crate::traffic::latency;
use crate::traffic::packet::Mix;

/// The percentiles of latency that are reported.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];
/// If this fraction of packets waited for the sink, everything beyond 99 % may be the sink's doing.
const TARDY_PART: f64 = 0.01;
/// From this fraction of a latency on, the generator's own lateness is more than a detail.
const OWN_PART: f64 = 0.2;

/// Measures, curves and notes of a session.
#[derive(Debug, Default)]
pub struct Findings {
    /// The figures, one sample per round.
    pub measures: Vec<Measure>,
    /// Latency percentiles and loss.
    pub curves: Vec<Curve>,
    /// What limits them.
    pub notes: Vec<String>,
}

impl Findings {
    /// Adds a sample to a measure.
    pub(super) fn push(&mut self, subject: &str, quantity: &str, unit: &str, better: Better, sample: f64) {
        let same = |m: &&mut Measure| m.subject == subject && m.quantity == quantity;
        match self.measures.iter_mut().find(same) {
            Some(measure) => measure.samples.push(sample),
            None => self.measures.push(Measure::new(subject, quantity, unit, better, vec![sample])),
        }
    }

    /// Adds a sentence, unless it is there already.
    pub(super) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// A rate at which all packets of this mix arrive, as packets and as bits.
    pub(super) fn whole_rate(&mut self, mix: &Mix, quantity: &str, packets: f64) {
        self.rate(mix, quantity, packets, packets * mix.mean() * 8.0);
    }

    /// A rate as packets and as bits. A device with losses may not lose packets of all sizes alike.
    pub(super) fn rate(&mut self, mix: &Mix, quantity: &str, packets: f64, bits: f64) {
        self.push(mix.name(), quantity, "kpps", Better::Higher, packets / 1e3);
        self.push(mix.name(), &format!("{quantity}, IP"), "Gbit/s", Better::Higher, bits / 1e9);
    }

    /// The results of one trial at a fixed rate, in one direction.
    pub(super) fn outcome(&mut self, subject: &str, outcome: &Outcome) {
        let Outcome { sent, counts, sink_drops, received_rate, .. } = outcome;
        self.push(subject, "Offered", "kpps", Better::Higher, sent.packets_per_second / 1e3);
        self.push(subject, "Received", "kpps", Better::Higher, received_rate / 1e3);
        let loss = outcome.lost() as f64 / sent.packets.max(1) as f64;
        self.push(subject, "Loss", "%", Better::Lower, loss * 100.0);
        for (quantity, better, count) in [
            ("Sent", Better::Higher, sent.packets),
            ("Not sent in time", Better::Lower, sent.unsent),
            ("Received, distinct", Better::Higher, counts.distinct),
            ("Lost", Better::Lower, outcome.lost()),
            ("Lost, and not by the tool", Better::Lower, outcome.certainly_lost()),
            ("Duplicates", Better::Lower, counts.duplicates),
            ("Reordered", Better::Lower, counts.reordered),
            ("Corrupt", Better::Lower, counts.corrupt),
            ("Of an earlier trial", Better::Lower, counts.stale),
            ("Not ours", Better::Lower, counts.foreign),
            ("Sent in bursts by a late generator", Better::Lower, sent.late),
            ("Dropped in front of the sink", Better::Lower, *sink_drops),
            ("Found late by the sink", Better::Lower, counts.tardy),
        ] {
            self.push(subject, quantity, "packets", better, count as f64);
        }
        self.latency(subject, "Latency", outcome);
    }

    /// The latency of one trial: percentiles, and in the first round the curve.
    pub(super) fn latency(&mut self, subject: &str, quantity: &str, outcome: &Outcome) {
        self.percentiles(subject, quantity, &PERCENTILES, &outcome.latency);
        // The part of the latency that may be our own.
        self.percentiles(subject, &format!("{quantity}: generator's lateness"), &[99.0], &outcome.sent.lag);
        let [whole, own] =
            [&outcome.latency, &outcome.sent.lag].map(|times| times.value_at_percentile(99.0) as f64 / 1e3);
        if own >= whole * OWN_PART && own > 0.0 {
            self.note(format!(
                "{subject}, {quantity}: limited by the tool: at 99 % the latency is {whole:.0} µs, and the generator's \
                 own lateness {own:.0} µs."
            ));
        }
        let tardy = outcome.counts.tardy as f64 / outcome.counts.distinct.max(1) as f64;
        if tardy >= TARDY_PART {
            self.note(format!(
                "{subject}, {quantity}: limited by the tool: the sink had no core for a while, and {:.0} % of the \
                 packets waited for it.",
                tardy * 100.0
            ));
        }
        let points = latency::percentiles(&outcome.latency);
        if points.len() > 1 && !self.curves.iter().any(|c| c.subject == subject && c.quantity == quantity) {
            self.curves.push(Curve {
                subject: subject.into(),
                quantity: quantity.into(),
                x: Axis::new("Percentile", "%", Scale::Percentile),
                y: Axis::new("Latency", "µs", Scale::Logarithmic),
                points,
            });
        }
    }

    /// These percentiles, as far as there are enough samples for them, and the maximum.
    fn percentiles(&mut self, subject: &str, quantity: &str, wanted: &[f64], times: &Histogram<u64>) {
        let mut push = |name: String, nanoseconds: u64| {
            self.push(subject, &format!("{quantity}, {name}"), "µs", Better::Lower, nanoseconds as f64 / 1e3);
        };
        for &percentile in wanted {
            if latency::supports(times, percentile) {
                push(format!("{percentile} %"), times.value_at_percentile(percentile));
            }
        }
        if !times.is_empty() {
            push("highest".into(), times.max());
        }
    }

    /// The curve of loss against offered load: at each load the median of its trials.
    pub(super) fn losses(&mut self, subject: &str, trials: &[&Trial]) {
        let mut loads: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for trial in trials {
            loads.entry(trial.load).or_default().push(trial.loss * 100.0);
        }
        let median = |losses: Vec<f64>| Spread::of(&losses).median;
        let points: Vec<_> = loads.into_iter().map(|(load, losses)| (load as f64 / 1e3, median(losses))).collect();
        if points.len() > 1 {
            self.curves.push(Curve {
                subject: subject.into(),
                quantity: "Loss against offered load".into(),
                x: Axis::new("Offered load", "kpps", Scale::Linear),
                y: Axis::new("Loss", "%", Scale::Linear),
                points,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::traffic::arrivals::Arrivals;
    use crate::traffic::generator::Sent;

    #[test]
    fn latency_that_is_the_generators_says_so() {
        for (lag, marked) in [(1_000, false), (19_000, false), (21_000, true), (99_000, true)] {
            let mut sent = Sent {
                packets: 1000,
                unsent: 0,
                seconds: 1.0,
                packets_per_second: 1000.0,
                bits_per_second: 0.0,
                most_behind: 1,
                late: 0,
                zero_copy: false,
                lag: latency::histogram(),
            };
            latency::record(&mut sent.lag, lag, 1000);
            let mut outcome = Outcome::new(sent, &Arrivals::new(0..1, false), 0);
            latency::record(&mut outcome.latency, 100_000, 1000);
            let mut findings = Findings::default();
            findings.latency("64 B", "Latency", &outcome);
            assert_eq!(findings.notes.iter().any(|note| note.contains("limited by the tool")), marked, "{lag}");
            let median = findings.measures.iter().find(|m| m.quantity == "Latency, 50 %").expect("told");
            assert!((median.samples[0] / 100.0 - 1.0).abs() < 0.001);
            // Of a thousand samples one is beyond 99.9 %: too few to report.
            assert!(!findings.measures.iter().any(|m| m.quantity == "Latency, 99.9 %"));
        }
    }

    #[test]
    fn losses_are_medians_of_the_devices_trials() {
        let duration = Duration::from_secs(1);
        let trial = |load, loss, offered| Trial { load, duration, loss, certain_loss: loss, offered };
        let mut trials = vec![trial(1000, 0.0, true), trial(3000, 0.9, false)];
        trials.extend([0.5, 0.25, 1.0].map(|loss| trial(2000, loss, true)));
        let mut findings = Findings::default();
        findings.losses("64 B", &trials.iter().filter(|trial| trial.offered).collect::<Vec<_>>());
        assert_eq!(findings.curves[0].points, [(1.0, 0.0), (2.0, 50.0)]);
    }
}
