//! The queues between workers and control. All are bounded: what does not fit is dropped and counted, and nobody ever
//! waits. There is a queue for each kind of notice, and control takes from them in turn, so that a flood of one kind
//! does not keep the others from being heard.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::ports::Endpoint;

/// Notices of each kind that may wait for control.
pub const NOTICES: usize = 2048;
/// Commands that may wait for one worker.
pub const COMMANDS: usize = 4096;

/// What a worker tells control.
#[derive(Debug)]
pub enum Notice {
    /// A datagram that is not transport data: a handshake, a cookie, STUN, a probe.
    Datagram {
        /// Its sender, and the address of ours that it was sent to.
        from: Endpoint,
        /// [`Packet::interface`](crate::ports::Packet::interface).
        interface: u32,
        /// The UDP payload.
        payload: Box<[u8]>,
    },
    /// An inner packet for a peer with which there is no session to send on, or whose address is not known.
    NoSession {
        /// [`crate::peer::PeerCounters::id`].
        peer: u32,
        /// The IP packet.
        packet: Box<[u8]>,
    },
    /// Data from a peer's endpoint for an unknown session: one side has restarted. Not every such message is reported.
    UnknownSession {
        /// Its sender.
        from: SocketAddr,
    },
    /// The first authenticated message on a session for which we were the responder.
    Confirmed {
        /// Our receiver index of it.
        local_index: u32,
        /// Its sender.
        from: Endpoint,
    },
    /// An authenticated message from an address other than the peer's endpoint, or to a different address of ours.
    Roamed {
        /// Our receiver index of the session that it came on.
        local_index: u32,
        /// Its sender.
        from: Endpoint,
    },
    /// A worker has panicked: the packets of its queues are no longer processed.
    WorkerDied {
        /// Its number.
        worker: usize,
    },
}

/// What control tells a worker to do.
#[derive(Debug)]
pub enum Command {
    /// Route this IP packet to its peer and seal it: one that has waited for a session.
    Send(Box<[u8]>),
    /// Send an empty message to this peer ([`crate::peer::PeerCounters::id`]).
    Keepalive(u32),
}

/// The kinds of notices, by who can cause them.
#[derive(Clone, Copy)]
enum Kind {
    /// Authentic messages of sessions, and a worker's end.
    Session,
    /// WireGuard's messages other than data.
    Handshake,
    Stun,
    /// Path probes, and relays' messages.
    Probe,
    /// Packets and data for which there is no session.
    NoSession,
    /// Datagrams that belong to none of our protocols.
    Other,
}

impl Kind {
    const COUNT: usize = Self::Other as usize + 1;

    /// The kind of a datagram on the tunnel's port, by its first bytes.
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

/// The messages that a [`Mailbox`] carries.
pub trait Mail {
    /// The number of queues.
    const QUEUES: usize = 1;

    /// The queue that this message goes into.
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

/// Bounded queues, with a bell that their only reader can poll.
#[derive(Debug)]
pub struct Mailbox<T> {
    queues: Box<[ArrayQueue<T>]>,
    /// The queue whose turn it is.
    next: AtomicUsize,
    bell: OwnedFd,
}

impl<T: Mail> Mailbox<T> {
    /// Empty queues for this many messages each.
    ///
    /// # Errors
    /// The descriptor of the bell could not be created.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let queues = (0..T::QUEUES).map(|_| ArrayQueue::new(capacity)).collect();
        Ok(Self { queues, next: AtomicUsize::new(0), bell })
    }

    /// Appends a message without ringing; `false` when its queue is full.
    #[inline]
    pub fn push(&self, message: T) -> bool {
        self.queues[message.queue()].push(message).is_ok()
    }

    /// Rings the bell, so that the reader's poll returns.
    pub fn ring(&self) {
        // This fails when the counter is full, and then the bell is ringing already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Silences the bell; call this before emptying the queues.
    pub fn silence(&self) {
        // This fails when the bell was silent.
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

    /// Whether no message waits.
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
