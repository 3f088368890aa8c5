//! The crypto-free forwarder: frames that come in by one interface leave by the other, with only the Ethernet addresses
//! rewritten. Its speed is the ceiling for a gateway on AF_XDP.
//!
//! Both sockets share one UMEM. A frame received on one side is queued on the other, completed there, and
//! goes back to a fill ring; user space copies nothing. (A device without zero-copy still copies in the kernel.)

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::BATCH;
use super::packet::Mac;
use super::payload::now;
use super::socket::{self, Batch, Filter, Memory, RING_SIZE, SetupError, Socket, SocketDrops};

/// How long a sleeping forwarder may take to notice that it should stop.
const NAP: Duration = Duration::from_millis(50);
/// The same while frames are still being sent and must be collected.
const SHORT_NAP: Duration = Duration::from_millis(1);

/// A forwarder, already receiving.
#[derive(Debug)]
pub struct Forwarder {
    forth: Direction,
    back: Direction,
    from: Socket,
    to: Socket,
    batch: Batch,
    free: Batch,
}

/// The Ethernet addresses that packets of one direction are given; `None` leaves them as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rewrite {
    /// New destination.
    pub destination: Option<Mac>,
    /// New source.
    pub source: Option<Mac>,
}

/// The traffic in one direction.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Passed {
    /// Packets queued on the other side.
    pub packets: u64,
    /// Packets dropped because the other side's ring was full.
    pub dropped: u64,
    /// Batches they came in.
    pub batches: u64,
}

/// A forwarder's report.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// The first interface's packets.
    pub forth: Passed,
    /// The second interface's packets.
    pub back: Passed,
    /// What the kernel dropped in front of the first interface's socket.
    pub from_drops: SocketDrops,
    /// What the kernel dropped in front of the second interface's socket.
    pub to_drops: SocketDrops,
}

#[derive(Debug)]
struct Direction {
    rewrite: Rewrite,
    passed: Passed,
}

impl Forwarder {
    /// Starts to receive on both interfaces.
    pub fn new(from: &str, to: &str, queue: u32, forth: Rewrite, back: Rewrite) -> Result<Forwarder, SetupError> {
        // Two fill rings, and as many again for frames in transmission.
        let (memory, mut free) = Memory::new(4 * RING_SIZE)?;
        let from = Socket::receiver(&memory, from, queue, Filter::Ip, &mut free)?;
        let to = Socket::receiver(&memory, to, queue, Filter::Ip, &mut free)?;
        Ok(Forwarder {
            forth: Direction::new(forth),
            back: Direction::new(back),
            from,
            to,
            batch: memory.batch(BATCH),
            free,
        })
    }

    /// The two bound sockets.
    pub fn sockets(&self) -> [&Socket; 2] {
        [&self.from, &self.to]
    }

    /// Forwards until `stop`, or for `duration` if given. With `poll` it never sleeps.
    pub fn run(mut self, duration: Option<Duration>, poll: bool, stop: &AtomicBool) -> io::Result<Report> {
        let end = duration.map_or(u64::MAX, |d| now() + d.as_nanos() as u64);
        while !stop.load(Ordering::Relaxed) && now() < end {
            let Forwarder { forth, back, from, to, batch, free } = &mut self;
            let moved = forth.step(from, to, batch, free)? + back.step(to, from, batch, free)?;
            if moved == 0 && !poll {
                let outstanding = from.sender.in_flight() + to.sender.in_flight();
                socket::wait([&from.receiver, &to.receiver], if outstanding > 0 { SHORT_NAP } else { NAP })?;
            }
        }
        Ok(Report {
            forth: self.forth.passed,
            back: self.back.passed,
            from_drops: self.from.receiver.drops()?,
            to_drops: self.to.receiver.drops()?,
        })
    }
}

impl Direction {
    fn new(rewrite: Rewrite) -> Direction {
        Direction { rewrite, passed: Passed::default() }
    }

    /// Moves one batch; returns its size.
    #[inline]
    fn step(&mut self, from: &mut Socket, to: &mut Socket, batch: &mut Batch, free: &mut Batch) -> io::Result<usize> {
        let received = from.receiver.receive(batch, BATCH);
        if received > 0 {
            let Rewrite { destination, source } = self.rewrite;
            batch.for_each(|frame| {
                if let (Some(mac), Some(field)) = (destination, frame.get_mut(0..6)) {
                    field.copy_from_slice(&mac.0);
                }
                if let (Some(mac), Some(field)) = (source, frame.get_mut(6..12)) {
                    field.copy_from_slice(&mac.0);
                }
            });
            let queued = to.sender.transmit(batch);
            self.passed.packets += queued as u64;
            self.passed.dropped += batch.len() as u64;
            self.passed.batches += 1;
            batch.give(free, BATCH);
        }
        if to.sender.in_flight() > 0 {
            to.sender.kick()?;
            to.sender.complete(free);
        }
        from.receiver.fill(free);
        Ok(received)
    }
}
