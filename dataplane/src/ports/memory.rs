//! A port with two queues in memory instead of a device, for tests, fuzzing and benchmarks.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::drop::{Drop, Drops};
use crate::frame::{ANCHOR, FRAME_SIZE, Pool};
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
    to_worker: VecDeque<Message>,
    from_worker: VecDeque<Message>,
    /// Buffers to be used again, so that a wire in steady use allocates nothing.
    spare: Vec<Vec<u8>>,
}

impl Queues {
    fn message(&mut self, remote: SocketAddr, tos: u8, contents: &[u8]) -> Message {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(contents);
        Message { remote, tos, bytes }
    }
}

/// The device's side of a memory port.
#[derive(Clone, Debug, Default)]
pub struct Wire(Arc<Mutex<Queues>>);

impl Wire {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a packet where the worker will receive it.
    pub fn send(&self, remote: SocketAddr, tos: u8, bytes: &[u8]) {
        let mut queues = self.queues();
        let message = queues.message(remote, tos, bytes);
        queues.to_worker.push_back(message);
    }

    /// Takes the oldest packet that the worker has transmitted.
    pub fn receive(&self) -> Option<Message> {
        self.queues().from_worker.pop_front()
    }

    /// Gives a message's buffer back.
    pub fn recycle(&self, message: Message) {
        self.queues().spare.push(message.bytes);
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
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        let mut queues = self.wire.queues();
        while batch.room() > 0 {
            let Some(message) = queues.to_worker.pop_front() else { return };
            let start = ANCHOR + EGRESS_ROOM;
            if start + message.bytes.len() > FRAME_SIZE {
                drops.count(Drop::Oversized);
            } else if let Some(mut frame) = pool.take() {
                frame.set(start, message.bytes.len());
                pool.packet_mut(&frame).copy_from_slice(&message.bytes);
                batch.push(Packet { remote: message.remote, tos: message.tos, ..Packet::new(frame) });
            } else {
                drops.count(Drop::NoFrame);
            }
            queues.spare.push(message.bytes);
        }
    }

    fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch, _drops: &Drops) {
        let mut queues = self.wire.queues();
        for packet in batch.drain() {
            let message = queues.message(packet.remote, packet.tos, pool.packet(&packet.frame));
            queues.from_worker.push_back(message);
            pool.give(packet.frame);
        }
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
