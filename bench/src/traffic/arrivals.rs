//! What a sink finds out about the packets of one trial: which arrived, which arrived twice, in which order, how late.

use std::ops::Range;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::latency;
use super::packet::Datagram;
use super::payload::Stamp;
use super::rate::{Rate, Span};

/// The most packets of one trial in one direction: one bit each, so 256 MiB.
pub const MOST_PACKETS: u64 = 1 << 31;

/// A sink that has not received for longer than this was not asleep but without a core, and packets as old as that may
/// have waited only for it. Sleeps are shorter.
pub const TARDY: Duration = Duration::from_millis(6);

/// The packets of one trial in one direction.
#[derive(Debug, Clone)]
pub struct Arrivals {
    numbers: Range<u64>,
    verify: bool,
    /// One bit per number. The kernel provides memory only for the part that is used.
    seen: Vec<u64>,
    /// By flow, which is the source port: the lowest number that is in order (NextExp of RFC 4737).
    expected: Vec<u64>,
    counts: Counts,
    latency: Histogram<u64>,
    span: Span,
}

/// The results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Different packets of this trial.
    pub distinct: u64,
    /// Bytes of their IP packets.
    pub bytes: u64,
    /// Copies of packets that had arrived before.
    pub duplicates: u64,
    /// Packets that came after a later one of their flow: Type-P-Reordered of RFC 4737, without copies.
    pub reordered: u64,
    /// Packets with a wrong checksum or payload. They are in no other count, so they are lost.
    pub corrupt: u64,
    /// Packets of an earlier trial.
    pub stale: u64,
    /// Other packets that reached the socket.
    pub foreign: u64,
    /// Packets of this trial that waited for a sink without a core: see [`TARDY`].
    pub tardy: u64,
}

impl Arrivals {
    /// Expects the packets with these numbers. `verify`: check checksums and every byte of the payload.
    ///
    /// # Panics
    /// If there are more than [`MOST_PACKETS`] numbers.
    pub fn new(numbers: Range<u64>, verify: bool) -> Arrivals {
        let count = numbers.end - numbers.start;
        assert!(count <= MOST_PACKETS, "{count} packets in one trial");
        Arrivals {
            seen: vec![0; count.div_ceil(64) as usize],
            expected: vec![0; 1 << u16::BITS],
            numbers,
            verify,
            counts: Counts::default(),
            latency: latency::histogram(),
            span: Span::default(),
        }
    }

    /// Takes a frame received at `time`; everything that arrived before `caught_up` has been received.
    #[inline]
    pub fn packet(&mut self, frame: &[u8], time: u64, caught_up: u64) {
        let parsed = Datagram::parse(frame);
        let Some((datagram, stamp)) = parsed.and_then(|d| Some((d, Stamp::read(d.payload())?))) else {
            self.counts.foreign += 1;
            return;
        };
        if self.verify && !datagram.is_intact() {
            self.counts.corrupt += 1;
            return;
        }
        if !self.numbers.contains(&stamp.sequence) {
            self.counts.stale += 1;
            return;
        }
        let number = stamp.sequence - self.numbers.start;
        let (word, bit) = (&mut self.seen[(number / 64) as usize], 1 << (number % 64));
        if *word & bit != 0 {
            self.counts.duplicates += 1;
            return;
        }
        *word |= bit;
        let expected = &mut self.expected[usize::from(datagram.source_port)];
        if stamp.sequence < *expected {
            self.counts.reordered += 1;
        } else {
            *expected = stamp.sequence + 1;
        }
        self.counts.distinct += 1;
        self.counts.bytes += datagram.packet.len() as u64;
        let age = stamp.age(time);
        let waited = age.min(time.saturating_sub(caught_up));
        self.counts.tardy += u64::from(waited > TARDY.as_nanos() as u64);
        latency::record(&mut self.latency, age, 1);
    }

    /// Ends a batch that was received at `time`.
    #[inline]
    pub fn end_of_batch(&mut self, time: u64) {
        self.span.end_of_batch(time, self.counts.distinct, self.counts.bytes);
    }

    /// The results so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Numbers missing between the lowest and the highest received: all that can be said about loss if the number sent
    /// is unknown.
    pub fn gaps(&self) -> u64 {
        let behind_highest = self.expected.iter().copied().max().unwrap_or(0);
        let words = self.seen.iter().zip(0_u64..).find(|(word, _)| **word != 0);
        words.map_or(0, |(word, n)| {
            let lowest = self.numbers.start + n * u64::from(u64::BITS) + u64::from(word.trailing_zeros());
            behind_highest - lowest - self.counts.distinct
        })
    }

    /// Nanoseconds from the time each packet was due until its batch was received.
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// The received rate, from the first batch to the last.
    pub fn rate(&self) -> Rate {
        self.span.rate()
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::Template;
    use super::super::packet::sample::{frame, template};
    use super::*;

    fn arrive(arrivals: &mut Arrivals, template: &Template, numbers: &[u64]) {
        for &number in numbers {
            arrivals.packet(&frame(template, number, 0), 0, 0);
        }
    }

    #[test]
    fn each_packet_counts_once_as_what_it_is() {
        let template = template(1);
        let mut arrivals = Arrivals::new(100..300, true);
        // 102 and 101 come late, 103 twice: the second one is a copy, and not out of order.
        arrive(&mut arrivals, &template, &[100, 103, 102, 103, 101, 299]);
        // Numbers before and after those of the trial.
        arrive(&mut arrivals, &template, &[99, 300, 7]);
        let mut damaged = frame(&template, 150, 0);
        damaged[70] ^= 1;
        arrivals.packet(&damaged, 0, 0);
        arrivals.packet(&[0; 60], 0, 0);
        let counts = Counts {
            distinct: 5,
            bytes: 5 * 64,
            duplicates: 1,
            reordered: 2,
            corrupt: 1,
            stale: 3,
            foreign: 1,
            tardy: 0,
        };
        assert_eq!(arrivals.counts(), counts);
        // The damaged one does not count as received; the intact one may still arrive.
        arrive(&mut arrivals, &template, &[150]);
        assert_eq!(arrivals.counts().distinct, 6);
    }

    #[test]
    fn order_is_a_matter_of_the_flow() {
        let template = template(3);
        let mut arrivals = Arrivals::new(0..100, true);
        // Flows: 0 1 2 0 1 2. Flow 2 is ahead of the others, each is in order.
        arrive(&mut arrivals, &template, &[2, 5, 8, 0, 1, 3, 4]);
        assert_eq!(arrivals.counts().reordered, 0);
        arrive(&mut arrivals, &template, &[10, 7]);
        assert_eq!(arrivals.counts().reordered, 1);
    }

    #[test]
    fn gaps_are_between_the_lowest_and_the_highest() {
        let template = template(2);
        let mut arrivals = Arrivals::new(100..1000, true);
        assert_eq!(arrivals.gaps(), 0);
        // The highest number belongs to one flow, and was not received last.
        arrive(&mut arrivals, &template, &[170, 173, 180, 171, 171]);
        assert_eq!(arrivals.gaps(), 11 - 4);
    }

    #[test]
    fn a_packet_is_as_old_as_its_intended_send_time() {
        let template = template(1);
        let mut arrivals = Arrivals::new(0..10, true);
        arrivals.packet(&frame(&template, 0, 1_000), 6_000, 0);
        arrivals.packet(&frame(&template, 1, 2_000), 2_002_000, 0);
        assert_eq!(arrivals.latency().len(), 2);
        assert!((4_990..=5_010).contains(&arrivals.latency().min()));
        assert!((1_998_000..=2_002_000).contains(&arrivals.latency().max()));
    }

    #[test]
    fn packets_that_waited_for_the_sink_are_known() {
        const MS: u64 = 1_000_000;
        let template = template(1);
        let mut arrivals = Arrivals::new(0..10, true);
        // Each is received at 100 ms. Old, but the sink has just received; young, but the sink was away; both.
        for (number, due, caught_up) in [(0, 50, 95), (1, 97, 50), (2, 50, 60)] {
            arrivals.packet(&frame(&template, number, due * MS), 100 * MS, caught_up * MS);
        }
        assert_eq!(arrivals.counts().tardy, 1);
    }
}
