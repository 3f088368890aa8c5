//! The results of one trial in one direction.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::laboratory::search::Trial;
use crate::traffic::arrivals::{Arrivals, Counts};
use crate::traffic::generator::Sent;

/// The fraction of the intended packets that may stay unsent before the load counts as not offered.
const UNSENT: f64 = 0.001;

/// The results of a trial in one direction.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What the generator did.
    pub sent: Sent,
    /// What was received.
    pub counts: Counts,
    /// Packets that reached the sink's interface when our socket was full: lost by the tool.
    pub sink_drops: u64,
    /// The received rate in packets a second, from the first batch to the last.
    pub received_rate: f64,
    /// The same in bits of IP packets.
    pub received_bits: f64,
    /// Nanoseconds from the time a packet was due until it was received, for each packet.
    pub latency: Histogram<u64>,
}

impl Outcome {
    pub(super) fn new(sent: Sent, arrivals: &Arrivals, sink_drops: u64) -> Outcome {
        let rate = arrivals.rate();
        Outcome {
            sent,
            counts: arrivals.counts(),
            sink_drops,
            received_rate: rate.packets,
            received_bits: rate.bytes * 8.0,
            latency: arrivals.latency().clone(),
        }
    }

    /// Packets that were sent and not received, or not intact.
    pub fn lost(&self) -> u64 {
        self.sent.packets.saturating_sub(self.counts.distinct)
    }

    /// The lost packets that the tool cannot have lost: neither in a full socket of the sink, nor by a burst of a
    /// generator that had been held up (a burst of n packets makes a queue lose at most n).
    pub fn certainly_lost(&self) -> u64 {
        self.lost().saturating_sub(self.sink_drops + self.sent.late)
    }

    /// Whether the intended load was offered.
    pub fn is_offered(&self) -> bool {
        let intended = self.sent.packets + self.sent.unsent;
        self.sent.packets > 0 && self.sent.unsent as f64 <= intended as f64 * UNSENT
    }

    /// The trial as the searches see it: with the losses of all directions together.
    pub fn trial(outcomes: &[Outcome], load: u64, duration: Duration) -> Trial {
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>() as f64;
        let sent = sum(|o| o.sent.packets).max(1.0);
        Trial {
            load,
            duration,
            loss: sum(Outcome::lost) / sent,
            certain_loss: sum(Outcome::certainly_lost) / sent,
            offered: outcomes.iter().all(Outcome::is_offered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::latency;

    fn outcome(sent: u64, unsent: u64, late: u64, received: u64, sink_drops: u64) -> Outcome {
        let sent = Sent {
            packets: sent,
            unsent,
            seconds: 1.0,
            packets_per_second: 0.0,
            bits_per_second: 0.0,
            most_behind: 0,
            late,
            zero_copy: false,
            lag: latency::histogram(),
        };
        let mut outcome = Outcome::new(sent, &Arrivals::new(0..1, false), sink_drops);
        outcome.counts.distinct = received;
        outcome
    }

    #[test]
    fn loss_is_the_devices_only_as_far_as_it_is_not_ours() {
        let trial = Outcome::trial(&[outcome(1000, 0, 30, 900, 20)], 1000, Duration::from_secs(1));
        assert_eq!((trial.loss, trial.certain_loss, trial.offered), (0.1, 0.05, true));
        let trial = Outcome::trial(&[outcome(1000, 0, 300, 900, 0)], 1000, Duration::from_secs(1));
        assert_eq!((trial.loss, trial.certain_loss), (0.1, 0.0));
    }

    #[test]
    fn both_directions_count_together_and_both_must_be_offered() {
        let trial =
            Outcome::trial(&[outcome(1000, 0, 0, 1000, 0), outcome(1000, 0, 0, 500, 0)], 1000, Duration::from_secs(1));
        assert_eq!((trial.loss, trial.offered), (0.25, true));
        let trial =
            Outcome::trial(&[outcome(1000, 0, 0, 1000, 0), outcome(990, 10, 0, 990, 0)], 1000, Duration::from_secs(1));
        assert_eq!((trial.loss, trial.offered), (0.0, false));
        assert!(!Outcome::trial(&[outcome(0, 0, 0, 0, 0)], 1000, Duration::from_secs(1)).offered);
    }
}
