//! The sink: receives, counts what carries our payload, and finds loss and disorder by sequence number.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::BATCH;
use crate::latency;
use crate::packet::Datagram;
use crate::payload::{Stamp, now};
use crate::program::{Filter, XdpMode};
use crate::rate::{Rate, Span};
use crate::socket::{self, Batch, Memory, RING_SIZE, SetupError, Socket, SocketDrops};

/// How long a sleeping sink may overlook that it should stop.
const NAP: Duration = Duration::from_millis(50);

/// A sink, already receiving.
#[derive(Debug)]
pub struct Sink {
    socket: Socket,
    batch: Batch,
    free: Batch,
    count: Count,
}

/// What a sink looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// Only packets to this UDP port.
    pub destination_port: Option<u16>,
    /// Verify checksums and every byte of the payload.
    pub verify: bool,
    /// Record how old the packets are.
    pub latency: bool,
}

/// What was received.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Received {
    /// Packets of ours.
    pub packets: u64,
    /// Bytes of their IP packets.
    pub bytes: u64,
    /// From the first batch to the last.
    pub seconds: f64,
    /// Packets a second in that time.
    pub packets_per_second: f64,
    /// IP packets' bits a second in that time.
    pub bits_per_second: f64,
    /// Numbers missing between the lowest and the highest seen. What is lost before the first or behind
    /// the last packet does not show here, and a duplicate hides a loss: compare with the generator.
    pub lost: u64,
    /// Packets that came behind a later one of their flow (source port).
    pub reordered: u64,
    /// Packets with a wrong checksum or payload; only when verifying.
    pub corrupt: u64,
    /// Other packets that reached the socket.
    pub foreign: u64,
}

/// A sink's report.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// What was received.
    #[serde(flatten)]
    pub received: Received,
    /// Time since packets were sent, or were due if the generator was paced: pairs of percentile and µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Vec<(f64, f64)>>,
    /// What the kernel dropped in front of the socket.
    pub drops: SocketDrops,
    /// Mode of the XDP program.
    pub xdp_mode: Option<XdpMode>,
    /// Did the device write our frames itself?
    pub zero_copy: bool,
}

impl Sink {
    /// Starts to receive.
    pub fn new(interface: &str, queue: u32, selection: Selection) -> Result<Sink, SetupError> {
        let (memory, mut free) = Memory::new(2 * RING_SIZE)?;
        let socket = Socket::receiver(&memory, interface, queue, Filter::Udp, &mut free)?;
        Ok(Sink { socket, batch: memory.batch(BATCH), free, count: Count::new(selection) })
    }

    /// The bound socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Receives for `duration` or until `stop`.
    pub fn run(mut self, duration: Duration, stop: &AtomicBool) -> io::Result<Report> {
        let end = now() + duration.as_nanos() as u64;
        loop {
            let received = self.socket.receiver.receive(&mut self.batch, BATCH);
            let time = now();
            if received > 0 {
                let count = &mut self.count;
                self.batch.for_each(|frame| count.packet(frame, time));
                count.end_of_batch(time);
                self.batch.give(&mut self.free, BATCH);
                self.socket.receiver.fill(&mut self.free);
            } else {
                socket::wait([&self.socket.receiver], NAP)?;
            }
            if time >= end || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(Report {
            received: self.count.received(),
            latency: self.count.latency.as_ref().map(latency::percentiles),
            drops: self.socket.receiver.drops()?,
            xdp_mode: self.socket.xdp_mode(),
            zero_copy: self.socket.is_zero_copy(),
        })
    }
}

/// The numbers behind [`Received`].
#[derive(Debug)]
struct Count {
    selection: Selection,
    received: Received,
    lowest: u64,
    highest: u64,
    /// By source port: the sequence number expected at least.
    expected: Box<[u64]>,
    latency: Option<Histogram<u64>>,
    span: Span,
}

impl Count {
    fn new(selection: Selection) -> Count {
        Count {
            selection,
            received: Received::default(),
            lowest: u64::MAX,
            highest: 0,
            expected: vec![0; 1 << 16].into(),
            latency: selection.latency.then(latency::histogram),
            span: Span::default(),
        }
    }

    #[inline]
    fn packet(&mut self, frame: &[u8], time: u64) {
        let Some((datagram, stamp)) = self.select(frame) else {
            self.received.foreign += 1;
            return;
        };
        self.received.packets += 1;
        self.received.bytes += datagram.packet.len() as u64;
        if let Some(histogram) = &mut self.latency {
            latency::record(histogram, stamp.age(time), 1);
        }
        self.lowest = self.lowest.min(stamp.sequence);
        self.highest = self.highest.max(stamp.sequence);
        let expected = &mut self.expected[usize::from(datagram.source_port)];
        if stamp.sequence < *expected {
            self.received.reordered += 1;
        } else {
            *expected = stamp.sequence + 1;
        }
        if self.selection.verify && !datagram.is_intact() {
            self.received.corrupt += 1;
        }
    }

    #[inline]
    fn select<'a>(&self, frame: &'a [u8]) -> Option<(Datagram<'a>, Stamp)> {
        let datagram = Datagram::parse(frame)?;
        if self.selection.destination_port.is_some_and(|port| port != datagram.destination_port) {
            return None;
        }
        Some((datagram, Stamp::read(datagram.payload())?))
    }

    fn end_of_batch(&mut self, time: u64) {
        self.span.end_of_batch(time, self.received.packets, self.received.bytes);
    }

    fn received(&self) -> Received {
        let Received { packets, bytes, .. } = self.received;
        if packets == 0 {
            return self.received;
        }
        let Rate { seconds, packets: packets_per_second, bytes: bytes_per_second } = self.span.rate(packets, bytes);
        let numbers = self.highest - self.lowest + 1;
        Received {
            seconds,
            packets_per_second,
            bits_per_second: bytes_per_second * 8.0,
            lost: numbers.saturating_sub(packets),
            ..self.received
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::sample::{frame, template};

    #[test]
    fn loss_disorder_and_damage_are_counted() {
        let template = template(2);
        let mut count = Count::new(Selection { destination_port: Some(2000), verify: true, ..Selection::default() });
        // 7 and 9 are lost; 4 comes behind 6 of its flow, 5 before 11 of the other.
        for sequence in [3, 6, 4, 5, 8, 10, 11] {
            count.packet(&frame(&template, sequence, 0), 0);
        }
        let mut damaged = frame(&template, 12, 0);
        damaged[70] ^= 1;
        count.packet(&damaged, 0);
        count.packet(&[0; 60], 0);
        count.end_of_batch(1_000_000_000);
        let received = count.received();
        assert_eq!((received.packets, received.bytes), (8, 8 * 64));
        assert_eq!((received.lost, received.reordered), (2, 1));
        assert_eq!((received.corrupt, received.foreign), (1, 1));
    }

    #[test]
    fn the_rate_leaves_the_first_batch_out() {
        let template = template(2);
        let mut count = Count::new(Selection::default());
        for batch in 0..11 {
            for n in 0..10 {
                count.packet(&frame(&template, batch * 10 + n, 0), 0);
            }
            count.end_of_batch(5_000_000_000 + batch * 100_000_000);
        }
        let received = count.received();
        assert_eq!(received.seconds, 1.0);
        assert_eq!(received.packets_per_second, 100.0);
        assert_eq!(received.bits_per_second, 100.0 * 64.0 * 8.0);
        assert_eq!(received.lost, 0);
    }

    #[test]
    fn other_ports_are_foreign() {
        let mut count = Count::new(Selection { destination_port: Some(2001), ..Selection::default() });
        count.packet(&frame(&template(2), 0, 0), 0);
        assert_eq!(count.received().foreign, 1);
        assert_eq!(count.received().packets, 0);
    }

    #[test]
    fn ages_are_recorded_when_asked_for() {
        let template = template(2);
        let ages = |latency: bool| {
            let mut count = Count::new(Selection { latency, ..Selection::default() });
            for n in 1..=1000 {
                count.packet(&frame(&template, n, 0), n * 1_000_000);
            }
            count.latency.as_ref().map(latency::percentiles)
        };
        assert_eq!(ages(false), None);
        let ages = ages(true).expect("asked for");
        let (_, median) = ages.iter().find(|(percentile, _)| (percentile - 50.0).abs() < 1e-9).expect("a median");
        assert!((median / 500e3 - 1.0).abs() < 0.002, "{median}");
    }
}
