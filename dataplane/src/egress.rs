//! From the LAN to the WAN: allowed IPs, session, seal.
//!
//! Three passes over a batch: which peer each packet is for, and whether it can be sent; then runs of packets for one
//! peer are addressed, with a block of its session's counters; then all are sealed at once. With a rate, packets wait
//! between the first pass and the others ([`crate::shaper`]).

use std::iter::repeat_n;
use std::net::IpAddr;

use smallvec::SmallVec;

use crate::clock;
use crate::drop::DropReason;
use crate::filter::Direction;
use crate::frame::Frame;
use crate::icmp;
use crate::inner::{self, Inner};
use crate::ports::{BATCH, Batch, Endpoint, Packet, Port};
use crate::prefix::Last;
use crate::session::{BY_KERNEL, DATA_HEADER, PADDING, Session, TAG};
use crate::shaper::{self, Waiting};
use crate::side::Side;
use crate::slow_path::Notice;
use crate::turn::{Exit, Turn};
use crate::work::Work;

/// Where the packets of a batch came from.
struct Source<'a> {
    /// The port that they came in by; `None`: they are our own.
    port: Option<&'a dyn Port>,
    /// Whether we route them. Where the kernel does, it has decremented the TTL.
    routes_here: bool,
    /// The peers of their destinations.
    peers: Last<Option<u32>>,
}

/// Sends every packet of `received` to a port of the WAN or to control. They came in by the port `from`, or are our
/// own.
pub(crate) fn run(turn: &mut Turn<'_>, received: &mut Batch, from: Option<&dyn Port>, wan: &mut Side) {
    let packets = received.as_mut_slice();
    let mut routes: SmallVec<[_; BATCH]> = SmallVec::new();
    // Asked once, since it is a call that cannot be inlined.
    let routes_here = from.is_some_and(|port| !port.kernel_routes());
    let mut source = Source { port: from, routes_here, peers: Last::default() };
    for i in 0..packets.len() {
        if let Some(next) = packets.get(i + 1) {
            turn.pool.prefetch(&next.frame);
        }
        routes.push(route(&mut packets[i], &mut source, turn));
    }
    if turn.table.wan_rate.is_some() {
        hold(turn, received, &routes, wan);
    } else {
        seal(turn, received, &routes, wan);
    }
}

/// Queues packets that can be sent until it is their time; the others go to their exits.
fn hold(turn: &mut Turn<'_>, received: &mut Batch, routes: &[Result<u32, Exit>], wan: &mut Side) {
    for (packet, route) in received.drain().zip(routes) {
        match (route, turn.shaper.as_mut(), Inner::parse(turn.pool.packet(&packet.frame))) {
            (Ok(place), Some(shaper), Some(inner)) => {
                let entry = &turn.table.peers[*place as usize];
                let Packet { frame, tos, .. } = packet;
                let bytes = turn.pool.packet(&frame);
                let (bytes, remote) = (&bytes[..inner.len], entry.endpoint.map(|endpoint| endpoint.remote));
                shaper.push(Waiting { frame, tos, peer: entry.peer.id }, bytes, &inner, remote);
                while let Some(refused) = shaper.overflow() {
                    turn.drops.count(DropReason::ShaperFull);
                    turn.pool.give(refused.frame);
                }
            }
            (route, ..) => wan.take(turn, packet, route.err().unwrap_or(DropReason::BadInner.into())),
        }
    }
}

/// Sends waiting packets whose time has come, up to a batch; returns how many those were. `packets` is empty, before
/// and after.
pub(crate) fn release(turn: &mut Turn<'_>, packets: &mut Batch, wan: &mut Side, work: &Work) -> usize {
    let Some(mut shaper) = turn.shaper.take() else { return 0 };
    let now = clock::nanos();
    let rate = turn.table.wan_rate.as_deref();
    let mut routes: SmallVec<[_; BATCH]> = SmallVec::new();
    while packets.room() > 0
        && let Some((Waiting { frame, tos, peer }, bytes)) = shaper.pop(rate, now)
    {
        let mut packet = Packet { tos, ..Packet::new(frame) };
        match route_again(&mut packet, peer, turn) {
            Ok(place) => {
                work.shaped(bytes);
                packets.push(packet);
                routes.push(Ok(place));
            }
            Err(exit) => {
                shaper.refund(bytes);
                wan.take(turn, packet, exit);
            }
        }
    }
    seal(turn, packets, &routes, wan);
    let waiting = shaper.waiting();
    work.waiting(waiting);
    if rate.is_some() || waiting.0 > 0 {
        *turn.shaper = Some(shaper);
    }
    routes.len()
}

/// The place in the table of a waiting packet's peer. The table may have been replaced since the packet was queued.
fn route_again(packet: &mut Packet, peer: u32, turn: &mut Turn<'_>) -> Result<u32, Exit> {
    let frame = &packet.frame;
    let inner = Inner::parse(turn.pool.packet(frame)).ok_or(DropReason::BadInner)?;
    let place = turn.table.route(inner.destination).ok_or(DropReason::NoPeer)?;
    if turn.table.peers[place as usize].peer.id != peer {
        return Err(DropReason::NoPeer.into());
    }
    packet.urgent = shaper::is_urgent_or_small(&inner);
    depart(frame, &inner, place, turn)?;
    Ok(place)
}

/// Seals packets for the peers of these places and transmits them; others go to their exits.
pub(crate) fn seal(turn: &mut Turn<'_>, packets: &mut Batch, routes: &[Result<u32, Exit>], wan: &mut Side) {
    let mut exits: SmallVec<[Exit; BATCH]> = SmallVec::new();
    let mut keys: SmallVec<[_; BATCH]> = SmallVec::new();
    let mut rest = packets.as_mut_slice();
    for run in routes.chunk_by(|a, b| a == b) {
        let (packets, behind) = rest.split_at_mut(run.len());
        let exit = match run[0] {
            Ok(place) => address(packets, place, turn, wan, &mut keys).unwrap_or_else(Exit::from),
            Err(exit) => exit,
        };
        exits.extend(repeat_n(exit, run.len()));
        rest = behind;
    }
    let sent = packets.as_mut_slice().iter_mut().zip(&exits).filter(|(_, exit)| matches!(exit, Exit::Port(_)));
    let mut sealings: SmallVec<[_; BATCH]> = turn
        .pool
        .packets_mut(sent.map(|(packet, _)| &mut packet.frame))
        .zip(keys)
        .map(|(message, (session, counter))| session.sealing(counter, message))
        .collect();
    turn.cipher.seal_batch(&mut sealings);
    drop(sealings);
    wan.send(turn, packets, &exits);
}

/// Why a packet is dropped whose destination belongs to no peer.
#[cold]
fn no_peer(destination: IpAddr) -> DropReason {
    if destination.is_multicast() { DropReason::NoPeerMulticast } else { DropReason::NoPeer }
}

/// First pass: the place of the peer that the packet is for, if it can be sent.
#[inline]
fn route(packet: &mut Packet, source: &mut Source<'_>, turn: &mut Turn<'_>) -> Result<u32, Exit> {
    let (frame, table) = (&mut packet.frame, turn.table);
    let inner = Inner::parse(turn.pool.packet(frame)).ok_or(DropReason::BadInner)?;
    frame.truncate(inner.len);
    let peer =
        source.peers.or_ask(inner.destination, |to| table.route(to)).ok_or_else(|| no_peer(inner.destination))?;
    let mtu = table.peers[peer as usize].mtu;
    if let Some(port) = source.port {
        let refused = if source.routes_here && inner.is_at_end(turn.pool.packet(frame)) {
            Some((icmp::Error::TimeExceeded, DropReason::HopLimit))
        } else if inner.len > mtu {
            Some((icmp::Error::TooBig(mtu), DropReason::TooBig))
        } else {
            None
        };
        // Before the firewall, as a kernel does: a packet that is not forwarded starts no flow.
        if let Some((error, reason)) = refused {
            if error != icmp::Error::TimeExceeded && !inner.unfragmentable {
                return Err(reason.into());
            }
            packet.link = port.reply_link(turn.pool, packet);
            return Err(turn.error(&mut packet.frame, &inner, error, reason));
        }
    }
    turn.filter(frame, &inner, peer, Direction::Out)?;
    if source.routes_here {
        inner::take_hop(turn.pool.packet_mut(frame))?;
    }
    inner::clamp_mss(turn.pool.packet_mut(frame), &inner, mtu);
    packet.tos = inner::outer_tos(inner.tos, table.copy_dscp);
    packet.urgent = shaper::is_urgent_or_small(&inner);
    // With a rate this is checked when the packet's time has come.
    if table.wan_rate.is_none() {
        depart(frame, &inner, peer, turn)?;
    }
    Ok(peer)
}

/// The last checks before a packet is sealed: room for the message, a session, the peer's address, a mapping.
///
/// The peer's address may be missing here although its first message has arrived: another worker may just have received
/// that message, or this table may be older than it. Control learns of the message before the packet, and sends the
/// packet again.
#[inline]
fn depart(frame: &Frame, inner: &Inner, place: u32, turn: &mut Turn<'_>) -> Result<(), Exit> {
    let table = turn.table;
    let entry = &table.peers[place as usize];
    if frame.start() + padded(frame.len(), entry.mtu) + TAG > turn.pool.frame_size() {
        return Err(DropReason::Oversized.into());
    }
    let reachable = entry.endpoint.is_some() || turn.roamed_to(place).is_some();
    if !reachable || !entry.session().is_some_and(|session| session.alive(turn.now)) {
        let packet = turn.pool.packet(frame).into();
        return Err(turn.notices.hand_over(Notice::NoSession { peer: entry.peer.id, packet }));
    }
    // Last, since a packet that waits for a session comes here again.
    if let Some(mapping) = &table.mapping {
        mapping.translate(turn.pool.packet_mut(frame), inner, Direction::Out);
    }
    Ok(())
}

/// Second pass: makes packets for one peer into messages that are yet to be sealed, appends the session and counter of
/// each to `keys`, and returns the port by which they leave.
fn address<'t>(
    packets: &mut [Packet],
    place: u32,
    turn: &mut Turn<'t>,
    wan: &Side,
    keys: &mut SmallVec<[(&'t Session, u64); BATCH]>,
) -> Result<Exit, DropReason> {
    let entry = &turn.table.peers[place as usize];
    let session = entry.session().ok_or(DropReason::ExpiredSession)?;
    let roamed = turn.roamed_to(place).copied();
    let endpoint = roamed.or(entry.endpoint).ok_or(DropReason::NoEndpoint)?;
    // The link of an old endpoint is not that of the new one.
    let link = entry.link.filter(|_| roamed.is_none());
    let count = packets.len() as u64;
    let data = packets.iter().any(|packet| packet.frame.len() > 0);
    // The kernel's socket sends keepalives: its connection tracking does not see what AF_XDP carries, and a firewall
    // that has forgotten the flow does not let the peer in. The first one of a session proves the ring instead.
    let by_ring = data || session.answered().is_none();
    let port = link.as_ref().filter(|_| by_ring).and_then(|link| wan.port_of(link));
    let mut bytes = 0;
    for packet in packets {
        bytes += enclose(&mut packet.frame, turn, entry.mtu);
        Endpoint { remote: packet.remote, local: packet.local } = endpoint;
        packet.link = port.and(link);
    }
    let first = session.reserve(count, bytes)?;
    session.leaves_by(if port.is_some() { turn.ring } else { BY_KERNEL }, data, turn.now);
    keys.extend((first..first + count).map(|counter| (&**session, counter)));
    entry.peer.sent.count(count, bytes, data, turn.now);
    Ok(Exit::Port(port.unwrap_or(wan.kernel())))
}

/// Pads the packet, and extends it to the message, with room for header and tag. Returns its length.
#[inline]
fn enclose(frame: &mut Frame, turn: &mut Turn<'_>, mtu: usize) -> u64 {
    let (start, len) = (frame.start(), frame.len());
    let padded = padded(len, mtu);
    if padded > len {
        // A constant length is one store instead of a call; the tag overwrites the excess.
        turn.pool.slot_mut(frame)[start + len..][..PADDING].fill(0);
    }
    frame.set(start - DATA_HEADER, DATA_HEADER + padded + TAG);
    frame.len() as u64
}

/// Padding may not make a packet larger than the path's MTU.
#[inline]
fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu.max(len))
}
