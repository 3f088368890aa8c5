//! Which flow a packet belongs to, and what it does there.
//!
//! Packets come from strangers: nothing is read beyond the packet's end, and what cannot be read is dropped with a
//! reason rather than taken for something else.

use super::Direction;
use super::key::Key;
use crate::drop::DropReason;
use crate::inner::{ICMP, ICMPV6, Inner, TCP, UDP};
use crate::transport::{Transport, transport};

pub(super) const DCCP: u8 = 33;
pub(super) const SCTP: u8 = 132;
pub(super) const UDP_LITE: u8 = 136;

/// Bytes of the shortest header: TCP, and all others that have ports or identifiers.
const TCP_HEADER: usize = 20;
const SHORT_HEADER: usize = 8;
/// What every ICMP error has in front of the packet it quotes.
const ICMP_HEADER: usize = 8;

/// TCP's control bits (RFC 9293, section 3.1); none for other protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u8);

impl Flags {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const SYN: u8 = 0x02;
    pub(super) const RST: u8 = 0x04;
    pub(super) const ACK: u8 = 0x10;

    #[inline]
    pub(super) fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Whether it asks for a new connection.
    #[inline]
    pub(super) fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }
}

/// A packet's role in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It belongs to a flow, or begins it.
    Begins,
    /// It may belong to a flow, but begins none: an echo's reply, the end of a TCP connection.
    Continues,
    /// It is about a flow, or else stands by itself: an ICMP error.
    Error,
    /// It is judged by itself: ICMP that is neither an echo nor an error.
    Alone,
    /// A fragment other than the first.
    LaterFragment,
}

/// What the filter has to know about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// The key of the packet's flow, or of the quoted packet's flow if it is an error.
    pub(super) key: Key,
    pub(super) role: Role,
    pub(super) flags: Flags,
    /// Whether it is a first fragment.
    pub(super) more_fragments: bool,
}

impl Class {
    /// Whether it changes nothing about its flow but the time of its last packet.
    #[inline(always)]
    pub(super) fn is_steady(&self) -> bool {
        matches!(self.role, Role::Begins | Role::Continues)
            && !self.flags.any(Flags::SYN | Flags::FIN | Flags::RST)
            && !self.more_fragments
    }
}

/// Reads the class of a packet that goes in this direction, from or to this peer.
///
/// # Errors
/// Its headers are truncated, or split over fragments.
#[inline(always)]
pub(super) fn classify(packet: &[u8], inner: &Inner, peer: u32, direction: Direction) -> Result<Class, DropReason> {
    let transport =
        transport(packet.get(..inner.len).unwrap_or(packet), inner.header).ok_or(DropReason::FilterMalformed)?;
    let key = Key::new((inner.source, inner.destination), transport.protocol, (peer, direction))
        .ok_or(DropReason::FilterMalformed)?;
    let Some(fragment) = transport.fragment else {
        return whole(&transport, key, direction).ok_or(DropReason::FilterMalformed);
    };
    if fragment.offset == 0 {
        let class = whole(&transport, key, direction).ok_or(DropReason::FilterFragment)?;
        return Ok(Class { more_fragments: true, ..class });
    }
    // RFC 1858, section 3.2.2: such a fragment would overwrite the flags that were judged.
    if transport.protocol == TCP && fragment.offset == 1 {
        return Err(DropReason::FilterFragment);
    }
    Ok(Class { key: key.of_fragments(), role: Role::LaterFragment, flags: Flags::default(), more_fragments: false })
}

/// The class of a packet that contains its transport header.
#[inline(always)]
fn whole(transport: &Transport<'_>, key: Key, direction: Direction) -> Option<Class> {
    let Transport { protocol, payload, .. } = *transport;
    let class = |key, role| Class { key, role, flags: Flags::default(), more_fragments: false };
    match protocol {
        UDP => Some(class(with_ports(key, payload.get(..SHORT_HEADER)?, direction)?, Role::Begins)),
        TCP => {
            let header = payload.get(..TCP_HEADER)?;
            let flags = Flags(header[13]);
            let role = if flags.any(Flags::FIN | Flags::RST) { Role::Continues } else { Role::Begins };
            Some(Class { flags, ..class(with_ports(key, header, direction)?, role) })
        }
        ICMP | ICMPV6 if (protocol == ICMPV6) == key.is_v6() => icmp(payload, key, direction),
        _ => Some(class(of_others(protocol, payload, key, direction)?, Role::Begins)),
    }
}

#[inline(always)]
fn with_ports(key: Key, payload: &[u8], direction: Direction) -> Option<Key> {
    let [a, b, c, d] = *payload.first_chunk()?;
    Some(key.with_ports(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), direction))
}

#[inline(never)]
fn of_others(protocol: u8, payload: &[u8], key: Key, direction: Direction) -> Option<Key> {
    match protocol {
        DCCP | SCTP | UDP_LITE => with_ports(key, payload.get(..SHORT_HEADER)?, direction),
        _ => Some(key),
    }
}

#[inline(never)]
fn icmp(payload: &[u8], key: Key, direction: Direction) -> Option<Class> {
    let header: &[u8; ICMP_HEADER] = payload.first_chunk()?;
    let class = |key, role| Class { key, role, flags: Flags::default(), more_fragments: false };
    match Message::of(header[0], key.is_v6()) {
        Message::Request => Some(class(key.with_echo(identifier(header), direction), Role::Begins)),
        Message::Reply => Some(class(key.with_echo(identifier(header), direction.opposite()), Role::Continues)),
        // An error that quotes no flow is an error all the same, and the rules may accept it.
        Message::Error => Some(match quoted(&payload[ICMP_HEADER..], &key, direction) {
            Some(about) => class(about, Role::Error),
            None => class(key, Role::Alone),
        }),
        Message::Other => Some(class(key, Role::Alone)),
    }
}

fn identifier(header: &[u8; ICMP_HEADER]) -> u16 {
    u16::from_be_bytes([header[4], header[5]])
}

/// The kinds of ICMP that the filter distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Request,
    Reply,
    /// About a packet that it quotes (RFC 792, RFC 4443). Not a redirect: routers send that on their own link.
    Error,
    Other,
}

impl Message {
    fn of(kind: u8, v6: bool) -> Self {
        match (v6, kind) {
            (false, 8) | (true, 128) => Self::Request,
            (false, 0) | (true, 129) => Self::Reply,
            (false, 3 | 4 | 11 | 12) | (true, 1..=4) => Self::Error,
            _ => Self::Other,
        }
    }
}

/// The flow of the packet that an error with the key `error` quotes. That packet went the other way, and the error goes
/// to its sender. The quotation may end anywhere behind the ports.
fn quoted(packet: &[u8], error: &Key, direction: Direction) -> Option<Key> {
    let went = direction.opposite();
    let Inner { source, destination, header, .. } = Inner::parse_header(packet)?;
    if source != error.addresses(direction).1 {
        return None;
    }
    let Transport { protocol, payload, fragment, .. } = transport(packet, header)?;
    if fragment.is_some_and(|fragment| fragment.offset > 0) {
        return None;
    }
    let key = Key::new((source, destination), protocol, (error.peer(), went))?;
    match protocol {
        TCP | UDP | DCCP | SCTP | UDP_LITE => with_ports(key, payload, went),
        ICMP | ICMPV6 if (protocol == ICMPV6) == key.is_v6() => {
            let header: &[u8; ICMP_HEADER] = payload.first_chunk()?;
            match Message::of(header[0], key.is_v6()) {
                Message::Request => Some(key.with_echo(identifier(header), went)),
                Message::Reply => Some(key.with_echo(identifier(header), direction)),
                Message::Error | Message::Other => None,
            }
        }
        _ => Some(key),
    }
}
