//! The queues between workers and control. Both are bounded: what does not fit is dropped and
//! counted, and nobody ever waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::ports::Endpoint;

/// Notices that may wait for control.
pub const NOTICES: usize = 4096;
/// Commands that may wait for a worker.
pub const COMMANDS: usize = 4096;

/// What a worker tells control.
#[derive(Debug)]
pub enum Notice {
    /// A datagram that is not transport data: a handshake, a cookie, STUN, a probe.
    Datagram {
        /// Its sender, and whom of us it called.
        from: Endpoint,
        /// The UDP payload.
        payload: Box<[u8]>,
    },
    /// An inner packet for a peer with which there is no session to send by.
    NoSession {
        /// [`crate::peer::Peer::id`].
        peer: u32,
        /// The IP packet.
        packet: Box<[u8]>,
    },
    /// Data from a peer's endpoint by a session that nobody knows: one of us was started anew. Not every one is told.
    UnknownSession {
        /// Its sender.
        from: SocketAddr,
    },
    /// The first authenticated message on a session of which we were the responder.
    Confirmed {
        /// Our receiver index of it.
        local_index: u32,
        /// Its sender.
        from: Endpoint,
    },
    /// An authenticated message from another address than the peer's endpoint, or to another of ours.
    Roamed {
        /// Our receiver index of the session it came by.
        local_index: u32,
        /// Its sender.
        from: Endpoint,
    },
    /// A worker has ended by a panic: packets of its queues are not served any more.
    WorkerDied {
        /// Which one.
        worker: usize,
    },
}

/// What control asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Route this IP packet to its peer and seal it: one that waited for a session.
    Send(Box<[u8]>),
    /// Send an empty message to this peer ([`crate::peer::Peer::id`]).
    Keepalive(u32),
}

/// A bounded queue with a bell that its reader can poll for.
#[derive(Debug)]
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    bell: OwnedFd,
}

impl<T> Mailbox<T> {
    /// An empty queue.
    ///
    /// # Errors
    /// No descriptor is to be had for the bell.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { queue: ArrayQueue::new(capacity), bell })
    }

    /// Appends without ringing; `false` when the queue is full.
    #[inline]
    pub fn push(&self, message: T) -> bool {
        self.queue.push(message).is_ok()
    }

    /// Rings the bell: the reader's poll returns.
    pub fn ring(&self) {
        // A full counter rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Silences the bell; to be called before the queue is emptied.
    pub fn silence(&self) {
        // Refused when it was silent.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Takes the oldest message.
    #[inline]
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_and_nobody_waits() {
        let mailbox = Mailbox::new(2).unwrap();
        assert!(mailbox.push(1) && mailbox.push(2) && !mailbox.push(3));
        mailbox.ring();
        mailbox.silence();
        mailbox.silence();
        assert_eq!((mailbox.pop(), mailbox.pop(), mailbox.pop()), (Some(1), Some(2), None));
    }
}
