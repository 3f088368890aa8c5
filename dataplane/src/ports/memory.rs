//! A port with two queues in memory instead of a device, for tests, fuzzing and benchmarks.
//!
//! Like a device, its far side holds frames of the worker's pool and reads and writes them in place: the worker copies
//! nothing, and what a test copies in and out does not count as the worker's time. It counts as an AF_XDP port does.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::drop::Drops;
use crate::frame::{ANCHOR, Pool};
use crate::ports::evidence::Evidence;
use crate::ports::{Batch, EGRESS_ROOM, Packet, Port, PortInfo};

/// A packet outside a worker: its address (meaningful on the WAN), its outer traffic class, its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is from or for.
    pub remote: SocketAddr,
    /// The outer traffic class.
    pub tos: u8,
    /// UDP payload or IP packet.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Queues {
    to_worker: Vec<Packet>,
    from_worker: Vec<Packet>,
    evidence: Arc<Evidence>,
}

/// The device's side of a memory port. The pool that its methods take is the worker's
/// ([`Worker::pool`](crate::worker::Worker::pool)).
#[derive(Clone, Debug, Default)]
pub struct Wire(Arc<Mutex<Queues>>);

impl Wire {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a packet where the worker will receive it; `false` if it does not fit a frame or the pool is empty.
    pub fn send(&self, pool: &mut Pool, remote: SocketAddr, tos: u8, bytes: &[u8]) -> bool {
        let start = ANCHOR + EGRESS_ROOM;
        if start + bytes.len() > pool.frame_size() {
            return false;
        }
        let Some(mut frame) = pool.take() else { return false };
        frame.set(start, bytes.len());
        pool.packet_mut(&frame).copy_from_slice(bytes);
        self.queues().to_worker.push(Packet { remote, tos, ..Packet::new(frame) });
        true
    }

    /// Takes the oldest packet that the worker has transmitted.
    pub fn receive(&self, pool: &mut Pool) -> Option<Message> {
        let mut queues = self.queues();
        if queues.from_worker.is_empty() {
            return None;
        }
        let packet = queues.from_worker.remove(0);
        queues.evidence.completed(1);
        let bytes = pool.packet(&packet.frame).to_vec();
        pool.give(packet.frame);
        Some(Message { remote: packet.remote, tos: packet.tos, bytes })
    }

    /// Lets the worker receive what it has transmitted, from `remote`. Returns how many packets that are.
    pub fn turn_around(&self, remote: SocketAddr) -> usize {
        let Queues { to_worker, from_worker, evidence } = &mut *self.queues();
        let count = from_worker.len();
        evidence.completed(count);
        to_worker.extend(from_worker.drain(..).map(|packet| Packet { remote, ..packet }));
        count
    }

    /// Throws away what the worker has transmitted. Returns how many packets that were.
    pub fn discard(&self, pool: &mut Pool) -> usize {
        let Queues { from_worker, evidence, .. } = &mut *self.queues();
        let count = from_worker.len();
        evidence.completed(count);
        from_worker.drain(..).for_each(|packet| pool.give(packet.frame));
        count
    }
}

/// The worker's side.
#[derive(Debug)]
pub struct MemoryPort {
    wire: Wire,
    name: String,
}

impl MemoryPort {
    /// A port on a wire.
    pub fn new(name: &str, wire: Wire) -> Self {
        Self { wire, name: name.to_owned() }
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, _pool: &mut Pool, batch: &mut Batch, _drops: &Drops) {
        let Queues { to_worker, evidence, .. } = &mut *self.wire.queues();
        let count = to_worker.len().min(batch.room());
        evidence.received(count);
        if count == to_worker.len() {
            // In one piece: one by one, each move waits for the stores of the one before it.
            batch.packets.append(to_worker);
        } else {
            batch.packets.extend(to_worker.drain(..count));
        }
    }

    fn transmit(&mut self, _pool: &mut Pool, batch: &mut Batch, _drops: &Drops) {
        let Queues { from_worker, evidence, .. } = &mut *self.wire.queues();
        evidence.sent(batch.len());
        from_worker.append(&mut batch.packets);
    }

    fn evidence(&self) -> Option<Arc<Evidence>> {
        Some(Arc::clone(&self.wire.queues().evidence))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn cheap_to_ask(&self) -> bool {
        true
    }

    fn info(&self) -> PortInfo {
        PortInfo { interface: self.name.clone(), kind: "memory", queue: 0, zero_copy: None }
    }
}
