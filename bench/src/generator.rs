//! The generator: transmits packets of one [`Template`], at a rate or as fast as the interface takes them.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::BATCH;
use crate::packet::Template;
use crate::payload::{Stamp, now};
use crate::schedule::Schedule;
use crate::socket::{Batch, Memory, RING_SIZE, SetupError, Socket};

/// Further ahead than this, the generator sleeps until its next packet; nearer, it spins.
const SLEEP_AHEAD: Duration = Duration::from_micros(200);
/// Margin for a sleep that lasts too long.
const WAKE_EARLY: Duration = Duration::from_micros(100);
/// What is still queued at the end gets this long to leave.
const FLUSH: Duration = Duration::from_millis(100);

/// A generator, ready to run.
#[derive(Debug)]
pub struct Generator {
    socket: Socket,
    template: Template,
    free: Batch,
    batch: Batch,
}

/// What was sent.
#[derive(Debug, Clone, Copy, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Sent {
    /// Packets the kernel took. A virtual device may still drop them behind our back.
    pub packets: u64,
    /// How long it took.
    pub seconds: f64,
    /// Packets a second.
    pub packets_per_second: f64,
    /// IP packets' bits a second.
    pub bits_per_second: f64,
    /// Paced and yet late: the most packets that were due and not sent, over the run.
    pub most_behind: u64,
    /// Did the device read our frames itself?
    pub zero_copy: bool,
}

impl Generator {
    /// Binds a socket and builds all frames.
    pub fn new(interface: &str, queue: u32, template: Template) -> Result<Generator, SetupError> {
        let (memory, mut free) = Memory::new(RING_SIZE)?;
        let socket = Socket::sender(&memory, interface, queue)?;
        free.set_packet_len(template.frame_len());
        free.for_each(|frame| template.build(frame));
        let batch = memory.batch(BATCH);
        Ok(Generator { socket, template, free, batch })
    }

    /// The bound socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends for `duration` or until `stop`, `rate` packets a second or unpaced.
    pub fn run(mut self, duration: Duration, rate: Option<NonZeroU64>, stop: &AtomicBool) -> io::Result<Sent> {
        let start = now();
        let end = start + duration.as_nanos() as u64;
        let schedule = Schedule::new(start, rate);
        let mut queued = 0;
        let mut most_behind = 0;
        let mut time = start;
        while time < end && !stop.load(Ordering::Relaxed) {
            let due = schedule.due(time) - queued;
            if rate.is_some() {
                most_behind = most_behind.max(due);
            }
            if due == 0 {
                wait_for(schedule.due_at(queued).unwrap_or(time).min(end), time);
            } else {
                queued += self.send(due, queued, &schedule, time)? as u64;
            }
            time = now();
        }
        self.flush()?;
        let packets = queued - self.socket.sender.queued() as u64;
        let seconds = (time - start) as f64 / 1e9;
        let packets_per_second = packets as f64 / seconds;
        Ok(Sent {
            packets,
            seconds,
            packets_per_second,
            bits_per_second: packets_per_second * self.template.packet_len() as f64 * 8.0,
            most_behind,
            zero_copy: self.socket.is_zero_copy(),
        })
    }

    /// Sends up to a batch of the packets that are due, from number `first` on; returns how many.
    fn send(&mut self, due: u64, first: u64, schedule: &Schedule, time: u64) -> io::Result<usize> {
        self.socket.sender.complete(&mut self.free);
        let room = RING_SIZE as usize - self.socket.sender.in_flight();
        let count = due.min(BATCH as u64) as usize;
        self.free.give(&mut self.batch, count.min(room));
        self.batch.set_packet_len(self.template.frame_len());
        let mut sequence = first;
        let template = &self.template;
        self.batch.for_each(|frame| {
            let sent_at = schedule.due_at(sequence).unwrap_or(time);
            template.stamp(frame, Stamp { sequence, sent_at });
            sequence += 1;
        });
        let queued = self.socket.sender.transmit(&mut self.batch);
        // What did not fit is numbered anew next time.
        self.batch.give(&mut self.free, BATCH);
        self.socket.sender.kick()?;
        if queued == 0 {
            thread::yield_now();
        }
        Ok(queued)
    }

    fn flush(&mut self) -> io::Result<()> {
        let end = now() + FLUSH.as_nanos() as u64;
        while self.socket.sender.in_flight() > 0 && now() < end {
            self.socket.sender.kick()?;
            self.socket.sender.complete(&mut self.free);
            thread::yield_now();
        }
        Ok(())
    }
}

fn wait_for(due_at: u64, time: u64) {
    let ahead = Duration::from_nanos(due_at.saturating_sub(time));
    if ahead > SLEEP_AHEAD {
        thread::sleep(ahead - WAKE_EARLY);
    } else {
        std::hint::spin_loop();
    }
}
