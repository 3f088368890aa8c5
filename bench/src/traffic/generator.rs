//! The generator: transmits packets of one [`Template`], at a rate or as fast as the interface takes them.
//!
//! When paced it is an open loop: packet n is due at a fixed time, carries that time, and is sent as soon as the
//! generator gets to it. A generator that was held up sends a burst, and reports it.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::BATCH;
use super::latency;
use super::packet::{ETHERNET_LEN, Template};
use super::payload::{Stamp, now};
use super::schedule::Schedule;
use super::socket::{Batch, Memory, RING_SIZE, Sender, SetupError, Socket};

/// If the next packet is further away than this, the generator sleeps; otherwise it spins.
const SLEEP_AHEAD: Duration = Duration::from_micros(200);
/// The margin for sleeps that take too long.
const WAKE_EARLY: Duration = Duration::from_micros(100);
/// How long packets that are due or queued at the end may take to leave.
const FLUSH: Duration = Duration::from_millis(100);
/// If a generator is behind by more packets than this, it no longer offers its load but a burst, of which short queues
/// lose a part. Smaller bursts are normal: this is half of what NAPI takes at once.
const BURST: u64 = 32;
/// At high rates, 32 packets take less time than any scheduler can guarantee; bursts of this duration are also allowed.
const HICCUP: Duration = Duration::from_millis(1);
/// But no more than the shortest common queue holds: that of veth; network cards have 512 and more.
const LONGEST_BURST: u64 = 256;

/// A generator, ready to run.
#[derive(Debug)]
pub struct Generator {
    sender: Sender,
    template: Template,
    free: Batch,
    batch: Batch,
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Number of the first packet.
    pub first: u64,
    /// When it is due, in [`now`]'s nanoseconds; the past means at once.
    pub start: u64,
    /// How long packets become due.
    pub duration: Duration,
    /// Packets a second; `None`: as fast as possible.
    pub rate: Option<NonZeroU64>,
    /// The most packets to send.
    pub most: u64,
}

/// What was sent.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Sent {
    /// Packets accepted by the kernel. A virtual device may still drop them without saying so.
    pub packets: u64,
    /// Packets that were due but not sent.
    pub unsent: u64,
    /// The duration.
    pub seconds: f64,
    /// Packets a second.
    pub packets_per_second: f64,
    /// IP packets' bits a second.
    pub bits_per_second: f64,
    /// When paced: the most packets that were due and not sent at any time.
    pub most_behind: u64,
    /// Packets that left in bursts because the generator was far behind.
    pub late: u64,
    /// Whether the device reads our frames without a copy.
    pub zero_copy: bool,
    /// The delay in nanoseconds between a packet's due time and its hand-over to the kernel; each batch counts as its
    /// first packet.
    #[serde(skip)]
    pub lag: Histogram<u64>,
}

impl Plan {
    /// The total number of packets, if paced.
    pub fn packets(&self) -> Option<u64> {
        let schedule = Schedule::new(0, self.rate);
        self.rate.map(|_| schedule.due((self.duration.as_nanos() as u64).saturating_sub(1)).min(self.most))
    }
}

impl Generator {
    /// Binds a socket and builds all frames.
    pub fn new(interface: &str, queue: u32, template: Template) -> Result<Generator, SetupError> {
        let (memory, free) = Memory::new(RING_SIZE)?;
        let socket = Socket::sender(&memory, interface, queue)?;
        Ok(Generator::over(socket.sender, memory.batch(BATCH), free, template))
    }

    /// Sends through this socket with the free frames; `batch` is an empty batch of the same memory.
    pub fn over(sender: Sender, batch: Batch, free: Batch, template: Template) -> Generator {
        let mut generator = Generator { sender, template, free, batch };
        generator.prepare();
        generator
    }

    /// The sending half of the socket.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// What it sends.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Sends other packets from now on.
    ///
    /// # Errors
    /// Frames of the earlier packets do not leave.
    pub fn change(&mut self, template: Template) -> io::Result<()> {
        self.flush()?;
        if self.sender.in_flight() > 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "packets stay in the transmit ring"));
        }
        self.template = template;
        self.prepare();
        Ok(())
    }

    fn prepare(&mut self) {
        let template = &self.template;
        self.free.write_each(|_, frame| {
            template.prepare(frame);
            frame.len()
        });
    }

    /// Sends as planned, or until `stop`.
    pub fn run(&mut self, plan: Plan, stop: &AtomicBool) -> io::Result<Sent> {
        while now() + (SLEEP_AHEAD.as_nanos() as u64) < plan.start && !stop.load(Ordering::Relaxed) {
            wait_for(plan.start, now());
        }
        let start = now().max(plan.start);
        let end = start + plan.duration.as_nanos() as u64;
        let schedule = Schedule::new(start, plan.rate);
        let total = plan.packets().unwrap_or(plan.most);
        // When paced, packets still due at the end may leave a little later.
        let end = if plan.rate.is_some() { end + FLUSH.as_nanos() as u64 } else { end };
        let burst = plan
            .rate
            .map_or(u64::MAX, |rate| ((rate.get() as f64 * HICCUP.as_secs_f64()) as u64).clamp(BURST, LONGEST_BURST));
        let mut lag = latency::histogram();
        let (mut queued, mut most_behind, mut late) = (0, 0, 0);
        let mut time = now();
        while queued < total && time < end && !stop.load(Ordering::Relaxed) {
            let due = schedule.due(time).min(total) - queued;
            if due == 0 {
                wait_for(schedule.due_at(queued).unwrap_or(time), time);
            } else {
                let sent = self.send(due, queued, plan.first, &schedule, time)? as u64;
                if let Some(due_at) = schedule.due_at(queued) {
                    most_behind = most_behind.max(due);
                    late += if due > burst { sent } else { 0 };
                    latency::record(&mut lag, time.saturating_sub(due_at), sent);
                }
                queued += sent;
            }
            time = now();
        }
        self.flush()?;
        let packets = queued - self.sender.queued() as u64;
        let seconds = match plan.rate {
            // Packets sent a little early or late belong to the whole duration.
            Some(_) if queued == total => plan.duration.as_secs_f64().max(seconds_since(start, time)),
            Some(_) => seconds_since(start, time),
            None => seconds_since(start, now()),
        };
        Ok(Sent {
            packets,
            unsent: plan.packets().map_or(0, |planned| planned - packets),
            seconds,
            packets_per_second: packets as f64 / seconds,
            bits_per_second: self.template.bytes(plan.first, packets) as f64 / seconds * 8.0,
            most_behind,
            late,
            zero_copy: self.sender.is_zero_copy(),
            lag,
        })
    }

    /// The least that any generator must do: hand frames to the kernel as they are, all of the mean length, and take
    /// them back. Returns packets a second. The difference from [`Generator::run`] is the price of building packets.
    pub fn transmit_bare(&mut self, duration: Duration, stop: &AtomicBool) -> io::Result<f64> {
        let (template, len) = (&self.template, self.template.mix().mean() as usize + ETHERNET_LEN);
        self.free.write_each(|n, frame| template.write(frame, Stamp { sequence: n as u64, sent_at: 0 }));
        let start = now();
        let end = start + duration.as_nanos() as u64;
        let (mut packets, mut time) = (0, start);
        while time < end && !stop.load(Ordering::Relaxed) {
            self.sender.complete(&mut self.free);
            let room = RING_SIZE as usize - self.sender.in_flight();
            self.free.give(&mut self.batch, BATCH.min(room));
            self.batch.set_packet_len(len);
            packets += self.sender.transmit(&mut self.batch);
            self.batch.give(&mut self.free, BATCH);
            self.sender.kick()?;
            time = now();
        }
        self.flush()?;
        let packets = packets - self.sender.queued();
        Ok(packets as f64 / seconds_since(start, now()))
    }

    /// Sends at most a batch of the packets that are due, from number `first` of the run on; returns how many.
    fn send(&mut self, due: u64, first: u64, offset: u64, schedule: &Schedule, time: u64) -> io::Result<usize> {
        self.sender.complete(&mut self.free);
        let room = RING_SIZE as usize - self.sender.in_flight();
        let count = due.min(BATCH as u64) as usize;
        self.free.give(&mut self.batch, count.min(room));
        let template = &self.template;
        self.batch.write_each(|n, frame| {
            let number = first + n as u64;
            let sent_at = schedule.due_at(number).unwrap_or(time);
            template.write(frame, Stamp { sequence: offset + number, sent_at })
        });
        let queued = self.sender.transmit(&mut self.batch);
        // What did not fit gets new numbers next time.
        self.batch.give(&mut self.free, BATCH);
        self.sender.kick()?;
        if queued == 0 {
            thread::yield_now();
        }
        Ok(queued)
    }

    fn flush(&mut self) -> io::Result<()> {
        let end = now() + FLUSH.as_nanos() as u64;
        while self.sender.in_flight() > 0 && now() < end {
            self.sender.kick()?;
            self.sender.complete(&mut self.free);
            thread::yield_now();
        }
        Ok(())
    }
}

/// Never 0, so that rates are numbers.
fn seconds_since(start: u64, time: u64) -> f64 {
    time.saturating_sub(start).max(1) as f64 / 1e9
}

fn wait_for(due_at: u64, time: u64) {
    let ahead = Duration::from_nanos(due_at.saturating_sub(time));
    if ahead > SLEEP_AHEAD {
        thread::sleep(ahead - WAKE_EARLY);
    } else {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_the_packets_that_are_due_before_its_end() {
        let plan = |rate, millis| Plan {
            first: 0,
            start: 0,
            duration: Duration::from_millis(millis),
            rate: NonZeroU64::new(rate),
            most: 1000,
        };
        assert_eq!(plan(100, 1000).packets(), Some(100));
        assert_eq!(plan(3, 1000).packets(), Some(3));
        assert_eq!(plan(100, 5).packets(), Some(1));
        assert_eq!(plan(100, 11).packets(), Some(2));
        assert_eq!(plan(1_000_000, 1000).packets(), Some(1000));
        assert_eq!(plan(0, 1000).packets(), None);
    }
}
