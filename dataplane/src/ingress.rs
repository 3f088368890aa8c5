//! From the WAN to the LAN: session, open, replay, allowed IPs, next hop.

use std::net::SocketAddr;

use crate::clock::Millis;
use crate::drop::{DropReason, Drops};
use crate::frame::Pool;
use crate::icmp::{self, Limiter};
use crate::inner::{self, Inner};
use crate::ports::{BATCH, Batch, Packet, same};
use crate::session::{DATA_HEADER, TAG};
use crate::slow_path::{Mailbox, Notice};
use crate::table::{SessionEntry, Table};

/// The first four bytes of a transport data message: its type and three reserved zeros.
const DATA: [u8; 4] = [4, 0, 0, 0];
/// Peers that a worker remembers as moved between two tables, at most.
pub(crate) const ROAMED_MAX: usize = 64;
/// Bytes of the Ethernet header that a LAN port may have to write in front of the plaintext.
const ETHERNET: usize = 14;

/// Where the packets of a batch go.
pub(crate) struct Exits<'a> {
    /// By LAN port; the last one is the kernel's.
    pub lan: &'a mut [Batch],
    /// The interface of each LAN port that needs links.
    pub lan_interfaces: &'a [Option<u32>],
    /// Whether the kernel routes behind the last LAN port.
    pub last_routes: bool,
    /// ICMP errors that go back into the tunnel.
    pub errors: &'a mut Batch,
    /// Peers heard from a new address, by place in the table, until control publishes it.
    pub roamed: &'a mut Vec<(u32, SocketAddr)>,
    pub notices: &'a Mailbox<Notice>,
    pub drops: &'a Drops,
    pub limiter: &'a mut Limiter,
}

/// Takes every packet of `received` to one of the exits. Returns whether control has something to read.
pub(crate) fn run(received: &mut Batch, pool: &mut Pool, table: &Table, now: Millis, exits: &mut Exits<'_>) -> bool {
    let mut tally = Tally { entry: None, packets: 0, bytes: 0, data: false };
    let mut noticed = false;
    let mut steps = [Ok(Exit::Consumed); BATCH];
    // Packets stay where they are until all are decided: to move one that was just written stalls the processor.
    let packets = received.as_mut_slice();
    for (i, step) in steps.iter_mut().enumerate().take(packets.len()) {
        if let Some(next) = packets.get(i + 1) {
            pool.prefetch(&next.frame);
        }
        let packet = &mut packets[i];
        let message = pool.packet(&packet.frame);
        *step = match message.first_chunk() {
            Some(&DATA) => open(packet, pool, table, now, &mut tally, exits, &mut noticed)
                .and_then(|peer| deliver(packet, peer, pool, table, now, exits)),
            Some(_) => {
                noticed = true;
                let notice = Notice::Datagram { from: packet.remote, payload: message.into() };
                if exits.notices.push(notice) { Ok(Exit::Consumed) } else { Err(DropReason::SlowPathFull) }
            }
            None => Err(DropReason::Truncated),
        };
    }
    tally.settle(now);
    let steps = &steps[..received.len()];
    if let Some(Ok(Exit::Lan(port))) = same(steps) {
        received.append_to(&mut exits.lan[port]);
        return noticed;
    }
    for (packet, step) in received.drain().zip(steps) {
        match *step {
            Ok(Exit::Lan(port)) => exits.lan[port].push(packet),
            Ok(Exit::Error) => exits.errors.push(packet),
            Ok(Exit::Consumed) => pool.give(packet.frame),
            Err(reason) => {
                exits.drops.count(reason);
                pool.give(packet.frame);
            }
        }
    }
    noticed
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    Lan(usize),
    Error,
    Consumed,
}

/// Session, AEAD and replay window. The frame holds the plaintext afterwards; returns the peer's place.
#[inline]
fn open<'a>(
    packet: &mut Packet,
    pool: &mut Pool,
    table: &'a Table,
    now: Millis,
    tally: &mut Tally<'a>,
    exits: &mut Exits<'_>,
    noticed: &mut bool,
) -> Result<u32, DropReason> {
    let Packet { frame, remote, .. } = packet;
    let bytes = frame.len();
    if bytes < DATA_HEADER + TAG {
        return Err(DropReason::Truncated);
    }
    let index = pool.packet(frame)[4..8].try_into().map(u32::from_le_bytes).expect("four bytes");
    // Packets of a batch come in runs of one session.
    let entry = match tally.entry {
        Some(entry) if entry.session.local_index == index => entry,
        _ => table.sessions.get(&index).ok_or(DropReason::UnknownSession)?,
    };
    let SessionEntry { session, peer } = entry;
    // The plaintext lands where an Ethernet header in front of it begins at the anchor.
    let start = frame.start();
    let plain = (pool.anchor(frame) + ETHERNET).min(start);
    let end = start + bytes;
    let len = session.open(&mut pool.slot_mut(frame)[plain..end], start - plain, now)?;
    frame.set(plain, len);

    tally.count(entry, bytes as u64, len > 0, now);
    // While the queue is full, the next message says it again.
    if !session.confirmed() && exits.notices.push(Notice::Confirmed { local_index: index }) {
        session.confirm();
        *noticed = true;
    }
    // The answer goes to the new address already, or the peer would take our old path for a move.
    let known = exits.roamed.iter().position(|(place, _)| place == peer);
    let entry = &table.peers[*peer as usize];
    let endpoint = known.map_or(entry.endpoint.as_ref(), |i| Some(&exits.roamed[i].1));
    if endpoint != Some(remote)
        && entry.roams
        && exits.notices.push(Notice::Roamed { local_index: index, from: *remote })
    {
        *noticed = true;
        match known {
            Some(i) => exits.roamed[i].1 = *remote,
            None if exits.roamed.len() < ROAMED_MAX => exits.roamed.push((*peer, *remote)),
            None => {}
        }
    }
    Ok(*peer)
}

/// Allowed IPs, ECN, next hop.
#[inline]
fn deliver(
    packet: &mut Packet,
    peer: u32,
    pool: &mut Pool,
    table: &Table,
    now: Millis,
    exits: &mut Exits<'_>,
) -> Result<Exit, DropReason> {
    let frame = &mut packet.frame;
    if frame.len() == 0 {
        return Ok(Exit::Consumed);
    }
    let inner = Inner::parse(pool.packet(frame)).ok_or(DropReason::BadInner)?;
    frame.truncate(inner.len);
    if table.route(inner.source) != Some(peer) {
        return Err(DropReason::SpoofedSource);
    }
    inner::merge_ecn(pool.packet_mut(frame), inner.tos, packet.tos)?;

    let last = exits.lan.len() - 1;
    let hop = match table.hop(inner.destination) {
        hop @ Some(link) if inner.len <= usize::from(link.mtu) => hop,
        _ => &None,
    };
    let port = hop.and_then(|link| exits.lan_interfaces.iter().position(|i| *i == Some(link.ifindex)));
    if port.is_none() && exits.last_routes {
        return Ok(Exit::Lan(last));
    }
    if let Err(reason) = inner::take_hop(pool.packet_mut(frame)) {
        let told = exits.limiter.allow(now) && icmp::answer(pool, frame, &inner, icmp::Error::TimeExceeded, table);
        return if told { Ok(Exit::Error) } else { Err(reason) };
    }
    packet.link = *hop;
    Ok(Exit::Lan(port.unwrap_or(last)))
}

/// Counts of a run of messages by one session, so that the shared counters are touched once a run.
struct Tally<'a> {
    entry: Option<&'a SessionEntry>,
    packets: u64,
    bytes: u64,
    data: bool,
}

impl<'a> Tally<'a> {
    #[inline]
    fn count(&mut self, entry: &'a SessionEntry, bytes: u64, data: bool, now: Millis) {
        if !self.entry.is_some_and(|counted| std::ptr::eq(counted, entry)) {
            self.settle(now);
            *self = Tally { entry: Some(entry), packets: 0, bytes: 0, data: false };
        }
        self.packets += 1;
        self.bytes += bytes;
        self.data |= data;
    }

    fn settle(&self, now: Millis) {
        if let Some(entry) = self.entry {
            entry.session.peer.received.count(self.packets, self.bytes, self.data, now);
        }
    }
}
