//! Binding requests and responses on the wire (RFC 8489, sections 5, 14.1 and 14.2; RFC 5780, section 7).
//!
//! ```text
//!  0      2        4        8              20
//!  ├──────┼────────┼────────┼──────────────┼─ attributes: type 2, length 2, value padded to 4 ─┤
//!  │ type │ length │ cookie │ transaction  │
//! ```
//! All numbers are big-endian. Only what a Binding needs is understood. Optional attributes are ignored; a message with
//! an unknown mandatory attribute is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

/// The header's length.
pub const HEADER_LENGTH: usize = 20;
/// The length of the requests that we send: as long as the longest response that we would give, so that a server of
/// ours can answer in full without ever sending more than it got, which would amplify attacks.
pub const REQUEST_LENGTH: usize = 100;
/// The longest message that is read: a request that is padded by an Ethernet frame's payload (RFC 5780, section 7.6).
pub const MAX_LENGTH: usize = 2048;

const COOKIE: u32 = 0x2112_A442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;

const MAPPED_ADDRESS: u16 = 0x0001;
const CHANGE_REQUEST: u16 = 0x0003;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Padding, to make a message as long as its sender wants. Answers carry none.
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const SOFTWARE: u16 = 0x8022;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;
/// Attributes below this one must be understood (RFC 8489, section 14).
const OPTIONAL: u16 = 0x8000;

const CHANGE_IP: u32 = 0b100;
const CHANGE_PORT: u32 = 0b010;

/// The random id of a transaction.
pub type TransactionId = [u8; 12];

/// Which of the server's addresses is to answer (CHANGE-REQUEST, RFC 5780, section 7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The other IP address.
    pub ip: bool,
    /// The other port.
    pub port: bool,
}

/// A Binding message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A client's request.
    Request {
        /// Its transaction.
        transaction: TransactionId,
        /// The server address that is to answer.
        change: Change,
        /// The client's port to answer to, if not the one that the request comes from (RESPONSE-PORT, RFC 5780, section
        /// 7.5).
        response_port: Option<NonZeroU16>,
    },
    /// A server's success response.
    Success {
        /// The request's transaction.
        transaction: TransactionId,
        /// The address that the request came from (XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS of old servers).
        mapped: SocketAddr,
        /// The server's address with both IP and port changed (OTHER-ADDRESS).
        other: Option<SocketAddr>,
    },
    /// A server's error response.
    Error {
        /// The request's transaction.
        transaction: TransactionId,
        /// As in HTTP: 300 to 699.
        code: u16,
    },
}

/// Why bytes are not a Binding message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than [`MAX_LENGTH`], or with lengths that contradict each other.
    #[error("a STUN message with a wrong length")]
    Length,
    /// No magic cookie.
    #[error("not a STUN message")]
    NotStun,
    /// A method other than Binding, or an indication.
    #[error("a STUN message of the unknown type {0:#06x}")]
    Type(u16),
    /// A mandatory attribute that is unknown.
    #[error("a STUN message with the unknown attribute {0:#06x}")]
    Attribute(u16),
    /// An attribute whose value is malformed.
    #[error("a STUN message with a malformed attribute {0:#06x}")]
    Malformed(u16),
    /// A success response without an address, or an error response without a code.
    #[error("a STUN response without an address")]
    Empty,
}

/// Whether a datagram on the tunnel's port is STUN: recognised by the magic cookie, which WireGuard messages and probes
/// have there only if their sender wants it, and by the two zero bits in front.
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LENGTH
        && datagram[0] < 0x40
        && !(datagram[0] <= 4 && datagram[1..4] == [0; 3])
        && datagram[4..8] == COOKIE.to_be_bytes()
}

/// A Binding request of [`REQUEST_LENGTH`] bytes.
#[must_use]
pub fn encode_request(transaction: &TransactionId, change: Change) -> Vec<u8> {
    let mut out = header(BINDING_REQUEST, transaction);
    if change != Change::default() {
        let bits = if change.ip { CHANGE_IP } else { 0 } | if change.port { CHANGE_PORT } else { 0 };
        attribute(&mut out, CHANGE_REQUEST, &bits.to_be_bytes());
    }
    filled(out)
}

/// A Binding request of [`REQUEST_LENGTH`] bytes whose answer is to go to another port of ours.
#[must_use]
pub fn encode_request_for_port(transaction: &TransactionId, response_port: NonZeroU16) -> Vec<u8> {
    let mut out = header(BINDING_REQUEST, transaction);
    let [high, low] = response_port.get().to_be_bytes();
    attribute(&mut out, RESPONSE_PORT, &[high, low, 0, 0]);
    filled(out)
}

fn filled(mut out: Vec<u8>) -> Vec<u8> {
    // SOFTWARE may be any text and may be ignored: the one padding that every server accepts.
    let mut software = b"Penstock".to_vec();
    software.resize(REQUEST_LENGTH - out.len() - 4, b' ');
    attribute(&mut out, SOFTWARE, &software);
    finish(out)
}

/// A success response, at most 92 bytes. `origin` is the address that it is sent from.
#[must_use]
pub fn encode_success(
    transaction: &TransactionId,
    mapped: SocketAddr,
    origin: SocketAddr,
    other: Option<SocketAddr>,
) -> Vec<u8> {
    let mut out = header(BINDING_SUCCESS, transaction);
    attribute(&mut out, XOR_MAPPED_ADDRESS, &encode_address(mapped, &mask(transaction)));
    attribute(&mut out, RESPONSE_ORIGIN, &encode_address(origin, &[0; 16]));
    if let Some(other) = other {
        attribute(&mut out, OTHER_ADDRESS, &encode_address(other, &[0; 16]));
    }
    finish(out)
}

/// The shortest success response, with nothing but the address: 32 bytes, or 44 for IPv6.
#[must_use]
pub fn encode_least_success(transaction: &TransactionId, mapped: SocketAddr) -> Vec<u8> {
    let mut out = header(BINDING_SUCCESS, transaction);
    attribute(&mut out, XOR_MAPPED_ADDRESS, &encode_address(mapped, &mask(transaction)));
    finish(out)
}

/// An error response with an empty reason phrase.
#[must_use]
pub fn encode_error(transaction: &TransactionId, code: u16) -> Vec<u8> {
    let mut out = header(BINDING_ERROR, transaction);
    attribute(&mut out, ERROR_CODE, &[0, 0, (code / 100) as u8, (code % 100) as u8]);
    finish(out)
}

/// Reads a message.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    if bytes.len() > MAX_LENGTH || bytes.len() < HEADER_LENGTH {
        return Err(DecodeError::Length);
    }
    if bytes[4..8] != COOKIE.to_be_bytes() {
        return Err(DecodeError::NotStun);
    }
    let kind = u16_at(bytes, 0);
    if usize::from(u16_at(bytes, 2)) != bytes.len() - HEADER_LENGTH || !bytes.len().is_multiple_of(4) {
        return Err(DecodeError::Length);
    }
    let mut transaction = TransactionId::default();
    transaction.copy_from_slice(&bytes[8..HEADER_LENGTH]);
    if ![BINDING_REQUEST, BINDING_SUCCESS, BINDING_ERROR].contains(&kind) {
        return Err(DecodeError::Type(kind));
    }
    let found = Attributes::read(&bytes[HEADER_LENGTH..], &transaction)?;
    match kind {
        BINDING_REQUEST => {
            Ok(Message::Request { transaction, change: found.change, response_port: found.response_port })
        }
        BINDING_SUCCESS => {
            let mapped = found.xor_mapped.or(found.mapped).ok_or(DecodeError::Empty)?;
            Ok(Message::Success { transaction, mapped, other: found.other })
        }
        _ => Ok(Message::Error { transaction, code: found.code.ok_or(DecodeError::Empty)? }),
    }
}

#[derive(Default)]
struct Attributes {
    change: Change,
    response_port: Option<NonZeroU16>,
    mapped: Option<SocketAddr>,
    xor_mapped: Option<SocketAddr>,
    other: Option<SocketAddr>,
    code: Option<u16>,
}

impl Attributes {
    fn read(mut rest: &[u8], transaction: &TransactionId) -> Result<Self, DecodeError> {
        let mut found = Self::default();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at_checked(4).ok_or(DecodeError::Length)?;
            let (kind, length) = (u16_at(head, 0), usize::from(u16_at(head, 2)));
            let padded = tail.split_at_checked(length.next_multiple_of(4)).ok_or(DecodeError::Length)?;
            found.take(kind, &padded.0[..length], transaction)?;
            rest = padded.1;
        }
        Ok(found)
    }

    fn take(&mut self, kind: u16, value: &[u8], transaction: &TransactionId) -> Result<(), DecodeError> {
        let malformed = DecodeError::Malformed(kind);
        let address = |mask: &[u8; 16]| decode_address(value, mask).ok_or(malformed);
        // Of several attributes of the same type, the first counts (RFC 8489, section 14).
        match kind {
            MAPPED_ADDRESS => _ = self.mapped.get_or_insert(address(&[0; 16])?),
            XOR_MAPPED_ADDRESS => _ = self.xor_mapped.get_or_insert(address(&mask(transaction))?),
            OTHER_ADDRESS => _ = self.other.get_or_insert(address(&[0; 16])?),
            CHANGE_REQUEST => {
                let bits = u32::from_be_bytes(value.try_into().map_err(|_| malformed)?);
                self.change = Change { ip: bits & CHANGE_IP != 0, port: bits & CHANGE_PORT != 0 };
            }
            RESPONSE_PORT => {
                // Some implementations count its two bytes of padding in the length, others do not.
                let (&[high, low] | &[high, low, _, _]) = value else { return Err(malformed) };
                let port = NonZeroU16::new(u16::from_be_bytes([high, low])).ok_or(malformed)?;
                self.response_port.get_or_insert(port);
            }
            ERROR_CODE => {
                let &[_, _, class, number, ..] = value else { return Err(malformed) };
                self.code.get_or_insert(u16::from(class & 7) * 100 + u16::from(number));
            }
            PADDING => {}
            _ if kind < OPTIONAL => return Err(DecodeError::Attribute(kind)),
            _ => {}
        }
        Ok(())
    }
}

fn header(kind: u16, transaction: &TransactionId) -> Vec<u8> {
    let mut out = Vec::with_capacity(REQUEST_LENGTH);
    out.extend(kind.to_be_bytes());
    out.extend([0, 0]);
    out.extend(COOKIE.to_be_bytes());
    out.extend(transaction);
    out
}

/// Values are short, so their lengths fit.
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn finish(mut out: Vec<u8>) -> Vec<u8> {
    let length = (out.len() - HEADER_LENGTH) as u16;
    out[2..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// The mask of XOR-MAPPED-ADDRESS, cookie and transaction, which keeps NATs from rewriting the address.
fn mask(transaction: &TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(transaction);
    mask
}

fn encode_address(address: SocketAddr, mask: &[u8; 16]) -> Vec<u8> {
    let port = address.port() ^ u16_at(mask, 0);
    let (family, ip) = match address.ip().to_canonical() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut out = vec![0, family];
    out.extend(port.to_be_bytes());
    out.extend(ip.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    out
}

fn decode_address(value: &[u8], mask: &[u8; 16]) -> Option<SocketAddr> {
    let (head, ip) = value.split_at_checked(4)?;
    let port = u16_at(head, 2) ^ u16_at(mask, 0);
    let unmasked = || ip.iter().zip(mask).map(|(byte, mask)| byte ^ mask);
    let ip: IpAddr = match (head[1], ip.len()) {
        (1, 4) => {
            let mut octets = [0; 4];
            octets.iter_mut().zip(unmasked()).for_each(|(octet, byte)| *octet = byte);
            Ipv4Addr::from(octets).into()
        }
        (2, 16) => {
            let mut octets = [0; 16];
            octets.iter_mut().zip(unmasked()).for_each(|(octet, byte)| *octet = byte);
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: TransactionId = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn addresses() -> [SocketAddr; 2] {
        ["192.0.2.1:32853".parse().unwrap(), "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap()]
    }

    /// The addresses masked as in the samples of RFC 5769, sections 2.2 and 2.3.
    #[test]
    fn the_samples_of_rfc_5769() {
        let [v4, v6] = addresses();
        assert_eq!(encode_address(v4, &mask(&NAME)), [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let expected = [
            0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9,
            0xd9,
        ];
        assert_eq!(encode_address(v6, &mask(&NAME)), expected);
    }

    #[test]
    fn messages_are_read_as_written() {
        for change in [(false, false), (true, false), (false, true), (true, true)] {
            let change = Change { ip: change.0, port: change.1 };
            let bytes = encode_request(&NAME, change);
            assert_eq!(bytes.len(), REQUEST_LENGTH);
            assert!(is_stun(&bytes));
            assert_eq!(decode(&bytes), Ok(Message::Request { transaction: NAME, change, response_port: None }));
        }
        let response_port = NonZeroU16::new(47_100);
        let bytes = encode_request_for_port(&NAME, response_port.unwrap());
        assert_eq!(bytes.len(), REQUEST_LENGTH);
        let expected = Message::Request { transaction: NAME, change: Change::default(), response_port };
        assert_eq!(decode(&bytes), Ok(expected));
        for mapped in addresses() {
            for other in [None, Some(addresses()[0]), Some(addresses()[1])] {
                let bytes = encode_success(&NAME, mapped, addresses()[1], other);
                assert!(bytes.len() <= REQUEST_LENGTH, "an answer is no larger than the question");
                assert_eq!(decode(&bytes), Ok(Message::Success { transaction: NAME, mapped, other }));
            }
        }
        let bytes = encode_error(&NAME, 420);
        assert_eq!(decode(&bytes), Ok(Message::Error { transaction: NAME, code: 420 }));
    }

    #[test]
    fn a_message_cut_or_lengthened_anywhere_is_refused() {
        for whole in [
            encode_request(&NAME, Change { ip: true, port: true }),
            encode_request_for_port(&NAME, NonZeroU16::MAX),
            encode_success(&NAME, addresses()[1], addresses()[0], Some(addresses()[0])),
        ] {
            for length in 0..whole.len() {
                let mut cut = whole[..length].to_vec();
                assert!(decode(&cut).is_err());
                // The same with a header that admits the length: the attributes must still add up.
                if length >= HEADER_LENGTH && length % 4 == 0 {
                    cut[2..4].copy_from_slice(&((length - HEADER_LENGTH) as u16).to_be_bytes());
                    _ = decode(&cut);
                }
            }
            let longer = [&whole[..], &[0; 4]].concat();
            assert_eq!(decode(&longer), Err(DecodeError::Length));
        }
        assert_eq!(decode(&[0; MAX_LENGTH + 1]), Err(DecodeError::Length));
    }

    #[test]
    fn a_response_port_has_two_bytes_with_or_without_padding_and_is_none_of_zero() {
        let read = |value: &[u8]| {
            let mut bytes = header(BINDING_REQUEST, &NAME);
            attribute(&mut bytes, RESPONSE_PORT, value);
            decode(&finish(bytes)).map(|message| match message {
                Message::Request { response_port, .. } => response_port.map(NonZeroU16::get),
                _ => None,
            })
        };
        assert_eq!(read(&[0xb7, 0xfc]), Ok(Some(47_100)));
        assert_eq!(read(&[0xb7, 0xfc, 0, 0]), Ok(Some(47_100)));
        for wrong in [&[0, 0][..], &[0; 4], &[], &[1], &[1, 2, 3], &[0, 1, 0, 0, 0, 0]] {
            assert_eq!(read(wrong), Err(DecodeError::Malformed(RESPONSE_PORT)), "{wrong:?}");
        }
    }

    #[test]
    fn the_least_answer_says_the_address_and_padding_is_none() {
        for (mapped, length) in addresses().into_iter().zip([32, 44]) {
            let bytes = encode_least_success(&NAME, mapped);
            assert_eq!(bytes.len(), length);
            assert_eq!(decode(&bytes), Ok(Message::Success { transaction: NAME, mapped, other: None }));
        }
        let mut bytes = header(BINDING_REQUEST, &NAME);
        attribute(&mut bytes, PADDING, &[0; 1500]);
        let expected = Message::Request { transaction: NAME, change: Change::default(), response_port: None };
        assert_eq!(decode(&finish(bytes)), Ok(expected));
    }

    #[test]
    fn what_must_be_understood_and_is_not_is_refused() {
        let mut bytes = header(BINDING_SUCCESS, &NAME);
        attribute(&mut bytes, XOR_MAPPED_ADDRESS, &encode_address(addresses()[0], &mask(&NAME)));
        attribute(&mut bytes, 0x8777, b"five!");
        assert!(decode(&finish(bytes.clone())).is_ok());
        attribute(&mut bytes, 0x0777, b"five!");
        assert_eq!(decode(&finish(bytes)), Err(DecodeError::Attribute(0x0777)));
        let empty = finish(header(BINDING_SUCCESS, &NAME));
        assert_eq!(decode(&empty), Err(DecodeError::Empty));
        let other_method = finish(header(0x0003, &NAME));
        assert_eq!(decode(&other_method), Err(DecodeError::Type(3)));
    }

    #[test]
    fn wireguard_is_not_stun() {
        for kind in 1..=4 {
            let mut datagram = [0; 148];
            datagram[0] = kind;
            datagram[4..8].copy_from_slice(&COOKIE.to_be_bytes());
            assert!(!is_stun(&datagram), "a WireGuard message whose index is STUN's cookie");
        }
        assert!(!is_stun(&[0; 19]));
    }
}
