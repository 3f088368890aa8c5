//! The queues between workers and control. All are bounded: what does not fit is dropped and
//! counted, and nobody ever waits. Notices have a queue for each kind, which control empties by turns, so that a flood of
//! one kind keeps no other from being heard.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::ports::Endpoint;

/// Notices of each kind that may wait for control.
pub const NOTICES: usize = 2048;
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

/// The kinds of notices, by who can cause them.
#[derive(Clone, Copy)]
enum Kind {
    /// Authentic messages of sessions, and a worker's end.
    Session,
    /// WireGuard's messages that are not data.
    Handshake,
    Stun,
    /// Path probes, and what relays say.
    Probe,
    /// Packets and data for which there is no session.
    NoSession,
    /// Datagrams that are nothing of ours.
    Other,
}

impl Kind {
    const COUNT: usize = Self::Other as usize + 1;

    /// Of a datagram on the tunnel's port, by its first bytes.
    fn of(datagram: &[u8]) -> Self {
        match datagram {
            [1..=3, 0, 0, 0, ..] => Self::Handshake,
            [0x50, ..] => Self::Probe,
            // The magic cookie (RFC 8489, section 5).
            [_, _, _, _, 0x21, 0x12, 0xa4, 0x42, ..] => Self::Stun,
            _ => Self::Other,
        }
    }
}

/// What a [`Mailbox`] carries.
pub trait Mail {
    /// In how many queues it waits.
    const QUEUES: usize = 1;

    /// In which of them this waits.
    fn queue(&self) -> usize {
        0
    }
}

impl Mail for Command {}

impl Mail for Notice {
    const QUEUES: usize = Kind::COUNT;

    fn queue(&self) -> usize {
        let kind = match self {
            Self::Datagram { payload, .. } => Kind::of(payload),
            Self::NoSession { .. } | Self::UnknownSession { .. } => Kind::NoSession,
            Self::Confirmed { .. } | Self::Roamed { .. } | Self::WorkerDied { .. } => Kind::Session,
        };
        kind as usize
    }
}

/// Bounded queues with a bell that their one reader can poll for.
#[derive(Debug)]
pub struct Mailbox<T> {
    queues: Box<[ArrayQueue<T>]>,
    /// Whose turn it is.
    next: AtomicUsize,
    bell: OwnedFd,
}

impl<T: Mail> Mailbox<T> {
    /// Empty queues for so many messages each.
    ///
    /// # Errors
    /// No descriptor is to be had for the bell.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let queues = (0..T::QUEUES).map(|_| ArrayQueue::new(capacity)).collect();
        Ok(Self { queues, next: AtomicUsize::new(0), bell })
    }

    /// Appends without ringing; `false` when the message's queue is full.
    #[inline]
    pub fn push(&self, message: T) -> bool {
        self.queues[message.queue()].push(message).is_ok()
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

    /// Takes the oldest message of the next queue that has one.
    #[inline]
    pub fn pop(&self) -> Option<T> {
        let first = self.next.load(Ordering::Relaxed);
        let mut queues = (first..first + T::QUEUES).map(|number| number % T::QUEUES);
        let (number, message) = queues.find_map(|number| Some((number, self.queues[number].pop()?)))?;
        self.next.store((number + 1) % T::QUEUES, Ordering::Relaxed);
        Some(message)
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(ArrayQueue::is_empty)
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

    impl Mail for i32 {}

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
