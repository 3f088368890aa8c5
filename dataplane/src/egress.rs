//! From the LAN to the WAN: allowed IPs, session, seal.

use std::net::SocketAddr;
use std::ops::Range;
use std::vec::Drain;

use crate::clock::Millis;
use crate::drop::{DropReason, Drops};
use crate::frame::{Frame, Pool};
use crate::icmp::{self, Limiter};
use crate::inner::{self, Inner};
use crate::ports::{BATCH, Batch, Packet, Port};
use crate::session::{DATA_HEADER, PADDING, Session, TAG};
use crate::slow_path::{Mailbox, Notice};
use crate::table::{PeerEntry, Table};

/// Where the packets of a batch go.
pub(crate) struct Exits<'a> {
    /// By WAN port; the last one is the kernel's socket.
    pub wan: &'a mut [Batch],
    /// The interface of each WAN port that needs links.
    pub wan_interfaces: &'a [Option<u32>],
    /// Peers heard from a new address that the table does not have yet.
    pub roamed: &'a [(u32, SocketAddr)],
    /// The port that the packets came by, and ICMP errors that go back by it.
    pub from: Option<&'a dyn Port>,
    pub errors: &'a mut Batch,
    pub notices: &'a Mailbox<Notice>,
    pub drops: &'a Drops,
    pub limiter: &'a mut Limiter,
}

/// Who has taken the hop from the packets' TTL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// The kernel, or nobody has to.
    Taken,
    /// We are the router.
    ToTake,
}

/// A batch between its two passes: packets to be sealed, and the peer of each.
pub(crate) struct Routed {
    packets: Batch,
    peers: Vec<u32>,
}

impl Default for Routed {
    fn default() -> Self {
        Self { packets: Batch::default(), peers: Vec::with_capacity(BATCH) }
    }
}

/// Takes every packet of `received` to one of the exits. Returns whether control has something to read.
pub(crate) fn run(
    received: &mut Batch,
    routed: &mut Routed,
    hop: Hop,
    pool: &mut Pool,
    table: &Table,
    now: Millis,
    exits: &mut Exits<'_>,
) -> bool {
    let mut noticed = false;
    for mut packet in received.drain() {
        match route(&mut packet, hop, pool, table, now, exits, &mut noticed) {
            Ok(Exit::Peer(peer)) => {
                routed.packets.push(packet);
                routed.peers.push(peer);
            }
            Ok(Exit::Error) => exits.errors.push(packet),
            Ok(Exit::Consumed) => pool.give(packet.frame),
            Err(reason) => {
                exits.drops.count(reason);
                pool.give(packet.frame);
            }
        }
    }
    seal_all(routed, pool, table, now, exits);
    noticed
}

/// Seals an empty message to the peer at `place`: a keepalive.
pub(crate) fn keepalive(
    place: u32,
    frame: Frame,
    routed: &mut Routed,
    pool: &mut Pool,
    table: &Table,
    now: Millis,
    exits: &mut Exits<'_>,
) {
    routed.packets.push(Packet::new(frame));
    routed.peers.push(place);
    seal_all(routed, pool, table, now, exits);
}

enum Exit {
    Peer(u32),
    Error,
    Consumed,
}

/// First pass: whose packet it is, and whether it can be sent.
#[inline]
fn route(
    packet: &mut Packet,
    hop: Hop,
    pool: &mut Pool,
    table: &Table,
    now: Millis,
    exits: &mut Exits<'_>,
    noticed: &mut bool,
) -> Result<Exit, DropReason> {
    let frame = &mut packet.frame;
    let inner = Inner::parse(pool.packet(frame)).ok_or(DropReason::BadInner)?;
    frame.truncate(inner.len);
    let peer = table.route(inner.destination).ok_or(DropReason::NoPeer)?;
    if hop == Hop::ToTake {
        let error = if inner.len > table.mtu {
            Some((icmp::Error::TooBig(table.mtu), DropReason::TooBig))
        } else {
            inner::take_hop(pool.packet_mut(frame)).err().map(|reason| (icmp::Error::TimeExceeded, reason))
        };
        if let Some((error, reason)) = error {
            let due = error == icmp::Error::TimeExceeded || inner.unfragmentable;
            packet.link = exits.from.and_then(|port| port.reply_link(pool, packet));
            let frame = &mut packet.frame;
            let told = due && exits.limiter.allow(now) && icmp::answer(pool, frame, &inner, error, table);
            return if told { Ok(Exit::Error) } else { Err(reason) };
        }
    }
    inner::clamp_mss(pool.packet_mut(frame), &inner, table.mtu);
    packet.tos = inner::outer_tos(inner.tos);

    let entry = &table.peers[peer as usize];
    if !entry.session().is_some_and(|session| session.alive(now)) {
        *noticed = true;
        let notice = Notice::NoSession { peer: entry.peer.id, packet: pool.packet(frame).into() };
        return if exits.notices.push(notice) { Ok(Exit::Consumed) } else { Err(DropReason::SlowPathFull) };
    }
    Ok(Exit::Peer(peer))
}

/// Second pass: runs of packets for one peer are sealed with a block of counters.
fn seal_all(routed: &mut Routed, pool: &mut Pool, table: &Table, now: Millis, exits: &mut Exits<'_>) {
    let Routed { packets, peers } = routed;
    let mut packets = packets.drain();
    for run in peers.chunk_by(|a, b| a == b) {
        let entry = &table.peers[run[0] as usize];
        match way(entry, run.len()) {
            Ok(way) => seal_run(&mut packets, way, run[0], pool, table, now, exits),
            Err(reason) => packets.by_ref().take(run.len()).for_each(|packet| {
                exits.drops.count(reason);
                pool.give(packet.frame);
            }),
        }
    }
    drop(packets);
    peers.clear();
}

/// What a run of packets is sealed with and sent to.
struct Way<'a> {
    session: &'a Session,
    counters: Range<u64>,
    endpoint: SocketAddr,
}

/// The way to a peer for `n` packets.
fn way(entry: &PeerEntry, n: usize) -> Result<Way<'_>, DropReason> {
    let endpoint = entry.endpoint.ok_or(DropReason::NoEndpoint)?;
    let session = entry.session().ok_or(DropReason::ExpiredSession)?;
    let first = session.reserve(n as u64)?;
    Ok(Way { session, counters: first..first + n as u64, endpoint })
}

fn seal_run(
    packets: &mut Drain<'_, Packet>,
    Way { session, counters, endpoint }: Way<'_>,
    place: u32,
    pool: &mut Pool,
    table: &Table,
    now: Millis,
    exits: &mut Exits<'_>,
) {
    let entry = &table.peers[place as usize];
    let roamed = exits.roamed.iter().find(|(roamed, _)| *roamed == place).map(|(_, endpoint)| *endpoint);
    let remote = roamed.unwrap_or(endpoint);
    // The link of an old endpoint is not that of the new one.
    let link = entry.link.filter(|_| roamed.is_none());
    let port = link.and_then(|link| exits.wan_interfaces.iter().position(|i| *i == Some(link.ifindex)));
    let (link, port) = (port.and(link), port.unwrap_or(exits.wan.len() - 1));
    let (mut sent, mut bytes, mut data) = (0, 0, false);
    for counter in counters {
        let Some(mut packet) = packets.next() else { break };
        if let Some(next) = packets.as_slice().first() {
            pool.prefetch(&next.frame);
        }
        let plaintext = packet.frame.len();
        if !seal(&mut packet.frame, session, counter, pool, table.mtu) {
            exits.drops.count(DropReason::Oversized);
            pool.give(packet.frame);
            continue;
        }
        sent += 1;
        bytes += packet.frame.len() as u64;
        data |= plaintext > 0;
        packet.remote = remote;
        packet.link = link;
        exits.wan[port].push(packet);
    }
    entry.peer.sent.count(sent, bytes, data, now);
}

/// Makes the IP packet in the frame a transport data message. `false` when the frame is too small.
#[inline]
fn seal(frame: &mut Frame, session: &Session, counter: u64, pool: &mut Pool, mtu: usize) -> bool {
    let (start, len) = (frame.start(), frame.len());
    // Padding may not make a packet larger than the tunnel's MTU.
    let padded = len.next_multiple_of(PADDING).min(mtu.max(len));
    let (head, end) = (start - DATA_HEADER, start + padded + TAG);
    let slot = pool.slot_mut(frame);
    if end > slot.len() {
        return false;
    }
    slot[start + len..start + padded].fill(0);
    session.seal(counter, &mut slot[head..end]);
    frame.set(head, end - head);
    true
}
