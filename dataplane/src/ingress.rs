//! From the WAN to the LAN: session, open, replay, allowed IPs, next hop.
//!
//! Passes over a batch: each message's session is found; all messages are opened at once; the authentic ones are
//! checked for replays, in the order in which they came; and the rest are delivered. Only authentic messages touch a
//! replay window, a peer's counters or its address.

use penstock_wire::ETHERNET_LEN;
use smallvec::SmallVec;

use crate::drop::DropReason;
use crate::filter::Direction;
use crate::icmp;
use crate::inner::{self, Inner};
use crate::ports::{BATCH, Batch, Link, Packet};
use crate::prefix::Last;
use crate::session::{DATA, DATA_HEADER, Header, TAG};
use crate::side::Side;
use crate::slow_path::Notice;
use crate::table::SessionEntry;
use crate::turn::{Exit, Turn};

/// How many messages of known sessions verified, and how many did not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opened {
    pub(crate) verified: usize,
    pub(crate) damaged: usize,
}

/// Sends every packet of `received` to a port of the LAN or to control.
pub(crate) fn run(turn: &mut Turn<'_>, received: &mut Batch, lan: &mut Side) -> Opened {
    let packets = received.as_mut_slice();
    let mut messages: SmallVec<[_; BATCH]> = SmallVec::new();
    let mut last = None;
    for i in 0..packets.len() {
        if let Some(next) = packets.get(i + 1) {
            turn.pool.prefetch(&next.frame);
        }
        messages.push(read(&mut packets[i], turn, &mut last));
    }
    let opened = open_all(turn, packets, &mut messages);
    refuse_replays(&mut messages);
    let mut tally = Tally::default();
    let mut lookups = Lookups::default();
    // Packets stay where they are until all are decided on: moving one that was just written stalls the processor.
    let exits: SmallVec<[Exit; BATCH]> = packets
        .iter_mut()
        .zip(&messages)
        .map(|(packet, message)| match message {
            Ok(message) => accept(packet, message, turn, lan, &mut tally, &mut lookups).unwrap_or_else(Exit::from),
            Err(exit) => *exit,
        })
        .collect();
    tally.settle(turn);
    lan.send(turn, received, &exits);
    opened
}

/// A transport data message in its frame.
struct Message<'t> {
    entry: &'t SessionEntry,
    counter: u64,
    /// Where in the frame's packet the ciphertext begins; the plaintext begins with the packet.
    ciphertext: usize,
}

/// Finds the session of a message, and makes room in front of it for its plaintext.
#[inline]
fn read<'t>(
    packet: &mut Packet,
    turn: &mut Turn<'t>,
    last: &mut Option<&'t SessionEntry>,
) -> Result<Message<'t>, Exit> {
    let frame = &mut packet.frame;
    let message = turn.pool.packet(frame);
    if *message.first_chunk().ok_or(DropReason::Truncated)? != DATA {
        let payload = message.into();
        let (from, interface) = (packet.endpoint(), packet.interface);
        return Err(turn.notices.hand_over(Notice::Datagram { from, interface, payload }));
    }
    let Header { index, counter } = Header::read(message).ok_or(DropReason::Truncated)?;
    // Packets of one session come in runs.
    let entry = match *last {
        Some(entry) if entry.session.local_index == index => entry,
        _ => match turn.table.sessions.get(&index) {
            Some(entry) => entry,
            None => return Err(turn.unknown_session(packet.remote).into()),
        },
    };
    *last = Some(entry);
    entry.session.admits(counter, turn.now)?;
    // The plaintext leaves room for an Ethernet header, which a LAN port may write, that begins at the anchor.
    let (start, len) = (frame.start(), frame.len());
    let plain = (turn.pool.anchor(frame) + ETHERNET_LEN).min(start);
    frame.set(plain, start - plain + len);
    Ok(Message { entry, counter, ciphertext: start - plain + DATA_HEADER })
}

/// Opens the messages. Afterwards each packet is its plaintext; those that did not verify are dropped.
fn open_all(turn: &mut Turn<'_>, packets: &mut [Packet], messages: &mut [Result<Message<'_>, Exit>]) -> Opened {
    let frames = packets.iter_mut().zip(&*messages).filter(|(_, message)| message.is_ok()).map(|(p, _)| &mut p.frame);
    let mut openings: SmallVec<[_; BATCH]> = turn
        .pool
        .packets_mut(frames)
        .zip(messages.iter().flatten())
        .map(|(packet, Message { entry, counter, ciphertext })| entry.session.opening(*counter, packet, *ciphertext))
        .collect();
    turn.cipher.open_batch(&mut openings);
    let verified: SmallVec<[bool; BATCH]> = openings.iter().map(|opening| opening.plaintext().is_some()).collect();
    drop(openings);
    let intact = verified.iter().filter(|verified| **verified).count();
    let tally = Opened { verified: intact, damaged: verified.len() - intact };
    let opened = packets.iter_mut().zip(messages).filter(|(_, message)| message.is_ok());
    for ((packet, message), verified) in opened.zip(verified) {
        match message {
            Ok(Message { ciphertext, .. }) if verified => packet.frame.truncate(packet.frame.len() - *ciphertext - TAG),
            _ => *message = Err(DropReason::BadTag.into()),
        }
    }
    tally
}

/// Marks the counters of authentic messages as seen, in order, and drops those that were seen before. Takes a session's
/// lock once for a run of its messages.
fn refuse_replays(messages: &mut [Result<Message<'_>, Exit>]) {
    let of_one_session = |a: &Result<Message<'_>, Exit>, b: &Result<Message<'_>, Exit>| match (a, b) {
        (Ok(a), Ok(b)) => std::ptr::eq(a.entry, b.entry),
        _ => false,
    };
    for run in messages.chunk_by_mut(of_one_session) {
        let Ok(Message { entry, .. }) = run[0] else { continue };
        let mut window = entry.session.replay();
        for message in run {
            if message.as_ref().is_ok_and(|message| !window.accept(message.counter)) {
                *message = Err(DropReason::Replayed.into());
            }
        }
    }
}

/// Updates counters and the peer's address for an authentic message, then delivers its packet.
#[inline]
fn accept<'t>(
    packet: &mut Packet,
    message: &Message<'t>,
    turn: &mut Turn<'t>,
    lan: &Side,
    tally: &mut Tally<'t>,
    lookups: &mut Lookups<'t>,
) -> Result<Exit, DropReason> {
    let entry = message.entry;
    let SessionEntry { session, peer } = entry;
    let (plaintext, local_index, from) = (packet.frame.len(), session.local_index, packet.endpoint());
    tally.count(entry, plaintext, turn);
    // While the queue is full, the next message reports it again.
    if !session.confirmed() && turn.notices.push(Notice::Confirmed { local_index, from }) {
        session.confirm();
    }
    // The answer takes the new path at once: by the old one, it would look to the peer as if we had moved.
    let known = &turn.table.peers[*peer as usize];
    if known.roams
        && turn.roamed_to(*peer).or(known.endpoint.as_ref()).is_none_or(|known| known.is_moved_by(&from))
        && turn.notices.push(Notice::Roamed { local_index, from })
    {
        turn.roam(*peer, from);
    }
    if plaintext == 0 { Ok(Exit::Consumed) } else { deliver(packet, *peer, turn, lan, lookups) }
}

/// Allowed IPs, transit, firewall, ECN, segment size, next hop.
#[inline]
fn deliver<'t>(
    packet: &mut Packet,
    peer: u32,
    turn: &mut Turn<'t>,
    lan: &Side,
    lookups: &mut Lookups<'t>,
) -> Result<Exit, DropReason> {
    let frame = &mut packet.frame;
    let table = turn.table;
    let inner = &Inner::parse(turn.pool.packet(frame)).ok_or(DropReason::BadInner)?;
    frame.truncate(inner.len);
    if lookups.peer.or_ask(inner.source, |from| table.route(from)) != Some(peer) {
        return Err(DropReason::SpoofedSource);
    }
    let mapped;
    let inner = match &table.mapping {
        Some(mapping) if let Some(real) = mapping.translate(turn.pool.packet_mut(frame), inner, Direction::In) => {
            mapped = Inner { destination: real, ..*inner };
            &mapped
        }
        _ => inner,
    };
    let (admitted, hop) = lookups.hop.or_ask(inner.destination, |to| (table.admits(to), table.hop(to)));
    if !admitted {
        return Err(DropReason::Transit);
    }
    turn.filter(frame, inner, peer, Direction::In)?;
    let packet_bytes = turn.pool.packet_mut(frame);
    inner::merge_ecn(packet_bytes, inner.tos, packet.tos)?;
    // The peer's SYN says what our side may send to it.
    inner::clamp_mss(packet_bytes, inner, table.peers[peer as usize].mtu);

    // All parts of a packet leave through the kernel, whose connection tracking may reassemble them.
    let hop = match hop {
        hop @ Some(link) if inner.len <= usize::from(link.mtu) && !inner.fragment && !inner.has_router_options() => hop,
        _ => &None,
    };
    let port = hop.as_ref().and_then(|link| lan.port_of(link));
    if port.is_none() && lan.kernel_routes() {
        return Ok(Exit::Port(lan.kernel()));
    }
    if let Err(reason) = inner::take_hop(turn.pool.packet_mut(frame)) {
        return Ok(turn.error(frame, inner, icmp::Error::TimeExceeded, reason));
    }
    packet.link = *hop;
    Ok(Exit::Port(port.unwrap_or(lan.kernel())))
}

/// What the table says about the addresses of the last packet.
#[derive(Default)]
struct Lookups<'t> {
    /// The peer that the source belongs to.
    peer: Last<Option<u32>>,
    /// Whether the destination may be reached, and by which link.
    hop: Last<(bool, &'t Option<Link>)>,
}

/// Counts of a run of messages of one session, so that the shared counters are updated once per run.
#[derive(Default)]
struct Tally<'t> {
    entry: Option<&'t SessionEntry>,
    packets: u64,
    bytes: usize,
    data: bool,
}

impl<'t> Tally<'t> {
    #[inline]
    fn count(&mut self, entry: &'t SessionEntry, plaintext: usize, turn: &Turn<'_>) {
        if !self.entry.is_some_and(|counted| std::ptr::eq(counted, entry)) {
            self.settle(turn);
            *self = Tally { entry: Some(entry), ..Tally::default() };
        }
        self.packets += 1;
        self.bytes += DATA_HEADER + plaintext + TAG;
        self.data |= plaintext > 0;
    }

    fn settle(&self, turn: &Turn<'_>) {
        if let Some(entry) = self.entry {
            entry.session.note_received();
            entry.session.peer.received.count(self.packets, self.bytes as u64, self.data, turn.now);
        }
    }
}
