//! A worker's turn: what its stages work with besides the packets of a batch.

use std::net::SocketAddr;

use penstock_aead::Cipher;

use crate::clock::Millis;
use crate::drop::{DropReason, Drops};
use crate::filter::{Direction, FlowCache};
use crate::frame::{Frame, Pool};
use crate::icmp::{self, Limiter};
use crate::inner::Inner;
use crate::ports::{Batch, Endpoint};
use crate::shaper::Shaper;
use crate::slow_path::{Mailbox, Notice};
use crate::table::Table;

/// The most peers that a worker remembers as moved between two tables.
pub(crate) const ROAMED_MAX: usize = 64;

/// Table and time are the same for all packets of the turn; the rest is the worker's and outlives the turn.
pub(crate) struct Turn<'a> {
    pub(crate) pool: &'a mut Pool,
    pub(crate) table: &'a Table,
    pub(crate) cipher: Cipher,
    pub(crate) now: Millis,
    pub(crate) drops: &'a Drops,
    pub(crate) notices: Notices<'a>,
    /// ICMP errors that go back to where their causes came from.
    pub(crate) errors: &'a mut Batch,
    pub(crate) limiter: &'a mut Limiter,
    /// How often control is told about unknown sessions.
    pub(crate) unknown: &'a mut Limiter,
    /// The bit of this worker's AF_XDP rings in [`Session::left_by`](crate::session::Session::left_by).
    pub(crate) ring: u64,
    /// Peers heard from a new address, by place in the table, until control publishes it.
    pub(crate) roamed: &'a mut Vec<(u32, Endpoint)>,
    /// What the worker knows about the flows that the firewall accepted.
    pub(crate) flows: &'a mut FlowCache,
    /// Packets that wait for their time. Exists while there is a rate, or while packets still wait.
    pub(crate) shaper: &'a mut Option<Box<Shaper>>,
}

/// Where a packet leaves the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By this port of the other side. Small, so that an exit stays in a register: copying it through memory right
    /// after it was written in parts would stall the processor for each packet.
    Port(u16),
    /// As an ICMP error about itself, back to its sender.
    Error,
    /// It is done: a keepalive, or a packet of which control has a copy.
    Consumed,
    Dropped(DropReason),
}

impl From<DropReason> for Exit {
    #[inline]
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl Turn<'_> {
    /// Asks the firewall, if there is one, about a packet from or to the peer at this place.
    #[inline]
    pub(crate) fn filter(
        &mut self,
        frame: &Frame,
        inner: &Inner,
        place: u32,
        direction: Direction,
    ) -> Result<(), DropReason> {
        let Some(firewall) = &self.table.firewall else { return Ok(()) };
        let peer = self.table.peers[place as usize].peer.id;
        firewall.admit(self.flows, self.pool.packet(frame), inner, (peer, direction), self.now)
    }

    /// A message has no session. Control is told, but not too often, if it came from a peer's endpoint.
    #[cold]
    pub(crate) fn unknown_session(&mut self, from: SocketAddr) -> DropReason {
        if self.table.endpoints.contains(&from) && self.unknown.allow(self.now) {
            self.notices.push(Notice::UnknownSession { from });
        }
        DropReason::UnknownSession
    }

    /// Turns a packet into the ICMP error that it causes; drops it if none is due or too many were sent.
    pub(crate) fn error(&mut self, frame: &mut Frame, inner: &Inner, error: icmp::Error, reason: DropReason) -> Exit {
        let told = self.limiter.allow(self.now) && icmp::answer(self.pool, frame, inner, error, self.table);
        if told { Exit::Error } else { Exit::Dropped(reason) }
    }

    /// The address that a peer was heard from since the table was published, if it differs from the table's.
    #[inline]
    pub(crate) fn roamed_to(&self, place: u32) -> Option<&Endpoint> {
        self.roamed.iter().find(|(roamed, _)| *roamed == place).map(|(_, endpoint)| endpoint)
    }

    /// Notes that a peer was heard from another address.
    pub(crate) fn roam(&mut self, place: u32, endpoint: Endpoint) {
        self.roamed.retain(|(roamed, _)| *roamed != place);
        if self.roamed.len() < ROAMED_MAX {
            self.roamed.push((place, endpoint));
        }
    }
}

/// The queue to control. Its bell rings once, when the turn ends.
pub(crate) struct Notices<'a> {
    mailbox: &'a Mailbox<Notice>,
    pushed: bool,
}

impl<'a> Notices<'a> {
    pub(crate) fn new(mailbox: &'a Mailbox<Notice>) -> Self {
        Self { mailbox, pushed: false }
    }

    /// Appends a notice; `false` when the queue is full.
    pub(crate) fn push(&mut self, notice: Notice) -> bool {
        self.pushed = true;
        self.mailbox.push(notice)
    }

    /// Leaves a packet to control.
    pub(crate) fn hand_over(&mut self, notice: Notice) -> Exit {
        if self.push(notice) { Exit::Consumed } else { Exit::Dropped(DropReason::SlowPathFull) }
    }
}

impl Drop for Notices<'_> {
    fn drop(&mut self) {
        if self.pushed {
            self.mailbox.ring();
        }
    }
}
