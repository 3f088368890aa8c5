//! The STUN server: tells a gateway its external address (RFC 8489) and, from up to four corners, how its NAT behaves
//! (RFC 5780, section 7.2).
//!
//! ```text
//!                 port of the first   port of the second
//!   first IP            A                    B
//!   second IP           C                    D
//! ```
//! A server with one address is A. One with two of the same IP is A and B. One whose second address differs in IP and
//! port is all four, and only that allows measuring a NAT completely.
//!
//! No answer is larger than its question, so forging a source gains nobody anything; gateways pad their requests, and
//! others can, too. There is one exception, since other clients ask with 20 bytes: the shortest answer, which has the
//! address and nothing else. [`Answer::is_larger`] marks it, and [`udp`](crate::udp) limits the rate of those per
//! prefix.
//!
//! A request may ask for an answer to another port (RFC 5780, section 7.5, RESPONSE-PORT), but never to another IP than
//! its source. So the answer reaches nobody that the same request with a forged source port would not have reached, and
//! a client that cannot forge reaches only itself.
//!
//! The sockets are [`udp`](crate::udp)'s.

use std::net::{IpAddr, SocketAddr};

use penstock_proto::stun::message::{Change, Message, decode, encode_error, encode_least_success, encode_success};

/// RFC 8489, section 14.8: an attribute that must be understood is not; RFC 5780, section 7.2, lets a server that
/// cannot change its address answer with it.
const UNKNOWN_ATTRIBUTE: u16 = 420;

/// The addresses of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corners {
    /// By index: bit 0 means the second port, bit 1 the second IP.
    addresses: Vec<SocketAddr>,
}

/// An answer to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The corner to send it from.
    pub by: usize,
    /// The destination: always the IP that the request came from.
    pub to: SocketAddr,
    /// The message.
    pub bytes: Vec<u8>,
    /// Whether it is larger than the request, though as small as an answer can be.
    pub is_larger: bool,
}

impl Corners {
    /// The corners of a server at `first` and perhaps `second`. `None` when the two cannot be corners: they are the
    /// same, of two IP versions, have the same port at two IPs, or an unspecified IP.
    #[must_use]
    pub fn new(first: SocketAddr, second: Option<SocketAddr>) -> Option<Self> {
        let Some(second) = second else { return Some(Self { addresses: vec![first] }) };
        let (same_ip, same_port) = (first.ip() == second.ip(), first.port() == second.port());
        if same_port || first.is_ipv4() != second.is_ipv4() || (!same_ip && first.ip().is_unspecified()) {
            return None;
        }
        if same_ip {
            return Some(Self { addresses: vec![first, second] });
        }
        let at = |ip: SocketAddr, port: SocketAddr| SocketAddr::new(ip.ip(), port.port());
        Some(Self { addresses: vec![first, at(first, second), at(second, first), second] })
    }

    /// Answers a request that came to corner `at`, at our address `local` if that is known.
    #[must_use]
    pub fn answer(&self, at: usize, local: Option<IpAddr>, from: SocketAddr, request: &[u8]) -> Option<Answer> {
        let Ok(Message::Request { transaction, change, response_port }) = decode(request) else { return None };
        let Change { ip, port } = change;
        let mut to = from;
        if let Some(port) = response_port {
            to.set_port(port.get());
        }
        let by = at ^ (usize::from(port) | usize::from(ip) << 1);
        let from = canonical(from);
        let plain = change == Change::default() && response_port.is_none();
        let (by, bytes) = match self.addresses.get(by) {
            Some(origin) => {
                // A corner bound to all addresses answers from the one that was asked.
                let local = local.filter(|_| origin.ip().is_unspecified());
                let origin = canonical(SocketAddr::new(local.unwrap_or(origin.ip()), origin.port()));
                (by, encode_success(&transaction, from, origin, self.addresses.get(at ^ 3).copied()))
            }
            None => (at, encode_error(&transaction, UNKNOWN_ATTRIBUTE)),
        };
        if bytes.len() <= request.len() {
            return Some(Answer { by, to, bytes, is_larger: false });
        }
        let least = encode_least_success(&transaction, from);
        let is_larger = least.len() > request.len();
        plain.then_some(Answer { by, to, bytes: least, is_larger })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_proto::stun::message::{REQUEST_LENGTH, encode_request, encode_request_for_port};
    use std::num::NonZeroU16;

    const ID: [u8; 12] = *b"transaction!";

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn request(ip: bool, port: bool) -> Vec<u8> {
        encode_request(&ID, Change { ip, port })
    }

    #[test]
    fn what_makes_corners() {
        let corners = |first, second| Corners::new(address(first), Some(address(second))).map(|c| c.addresses.len());
        assert_eq!(corners("192.0.2.1:3478", "192.0.2.2:3479"), Some(4));
        assert_eq!(corners("192.0.2.1:3478", "192.0.2.1:3479"), Some(2));
        for (first, second) in [
            ("192.0.2.1:3478", "192.0.2.1:3478"),
            ("192.0.2.1:3478", "192.0.2.2:3478"),
            ("192.0.2.1:3478", "[2001:db8::1]:3479"),
            ("0.0.0.0:3478", "192.0.2.2:3479"),
        ] {
            assert_eq!(corners(first, second), None, "{first} {second}");
        }
    }

    #[test]
    fn each_corner_answers_from_where_it_was_asked_to() {
        let corners = Corners::new(address("192.0.2.1:3478"), Some(address("192.0.2.2:3479"))).expect("corners");
        let from = address("203.0.113.5:999");
        for at in 0..4 {
            for (ip, port, by) in
                [(false, false, at), (false, true, at ^ 1), (true, false, at ^ 2), (true, true, at ^ 3)]
            {
                let answer = corners.answer(at, None, from, &request(ip, port)).expect("an answer");
                assert_eq!((answer.by, answer.to), (by, from));
                let Ok(Message::Success { transaction, mapped, other }) = decode(&answer.bytes) else {
                    panic!("no success")
                };
                assert_eq!((transaction, mapped, other), (ID, from, Some(corners.addresses[at ^ 3])));
            }
        }
    }

    #[test]
    fn a_single_address_refuses_to_be_another() {
        let corners = Corners::new(address("[2001:db8::1]:3478"), None).expect("a corner");
        let from = address("[2001:db8::5]:999");
        let answer = corners.answer(0, None, from, &request(false, false)).expect("an answer");
        assert!(matches!(decode(&answer.bytes), Ok(Message::Success { other: None, mapped, .. }) if mapped == from));
        let answer = corners.answer(0, None, from, &request(true, true)).expect("an answer");
        assert!(matches!(decode(&answer.bytes), Ok(Message::Error { code: 420, .. })));
    }

    #[test]
    fn a_plain_request_has_the_least_answer_and_nothing_else_that_is_larger() {
        let corners = Corners::new(address("192.0.2.1:3478"), Some(address("192.0.2.2:3479"))).expect("corners");
        for (from, length) in [("203.0.113.5:999", 32), ("[2001:db8::5]:999", 44)] {
            let from = address(from);
            // Without padding, and with more and more of it.
            for filler in [0, 4, 12, 16, 24, 40, 76] {
                let mut asked = request(false, false)[..20 + filler].to_vec();
                asked[2..4].copy_from_slice(&(filler as u16).to_be_bytes());
                if let Some(value) = filler.checked_sub(4) {
                    asked[22..24].copy_from_slice(&(value as u16).to_be_bytes());
                }
                let answer = corners.answer(0, None, from, &asked).expect("an answer");
                let Ok(Message::Success { mapped, other, .. }) = decode(&answer.bytes) else { panic!("no success") };
                assert_eq!(mapped, from);
                assert_eq!(answer.is_larger, answer.bytes.len() > asked.len());
                assert_eq!(other.is_none(), answer.bytes.len() == length, "the whole, or the least");
                assert!(!answer.is_larger || answer.bytes.len() == length);
            }
            // From another corner, no answer is larger.
            for change in [(true, false), (false, true), (true, true)] {
                let bare = &mut request(change.0, change.1)[..28];
                bare[2..4].copy_from_slice(&8_u16.to_be_bytes());
                assert_eq!(corners.answer(0, None, from, bare), None);
            }
        }
        // And an answer is never answered.
        let from = address("203.0.113.5:999");
        let answer = corners.answer(0, None, from, &request(false, false)).expect("an answer");
        assert_eq!(corners.answer(0, None, from, &answer.bytes), None);
    }

    #[test]
    fn another_port_is_answered_of_the_same_address_only_and_with_no_more_bytes() {
        let corners = Corners::new(address("192.0.2.1:3478"), Some(address("192.0.2.2:3479"))).expect("corners");
        for from in ["203.0.113.5:999", "[2001:db8::5]:999", "[fe80::5%7]:999"].map(address) {
            for port in [1, 53, 999, 3478, 47_100, u16::MAX] {
                let request = encode_request_for_port(&ID, NonZeroU16::new(port).expect("a port"));
                let answer = corners.answer(0, None, from, &request).expect("an answer");
                let mut expected = from;
                expected.set_port(port);
                assert_eq!((answer.by, answer.to), (0, expected), "from where it was asked, so that filters let it in");
                assert!(answer.bytes.len() <= request.len());
                let Ok(Message::Success { mapped, .. }) = decode(&answer.bytes) else { panic!("no success") };
                assert_eq!(mapped.port(), 999, "the asker's own");
            }
        }
        // One that is smaller than its answer.
        let mut bare = encode_request_for_port(&ID, NonZeroU16::MAX)[..28].to_vec();
        bare[2..4].copy_from_slice(&8_u16.to_be_bytes());
        assert!(matches!(decode(&bare), Ok(Message::Request { response_port: Some(_), .. })));
        assert_eq!(corners.answer(0, None, address("203.0.113.5:999"), &bare), None);
        assert!(REQUEST_LENGTH > bare.len());
    }

    #[test]
    fn a_server_at_all_addresses_answers_from_the_one_that_was_asked() {
        let corners = Corners::new(address("[::]:3478"), Some(address("[::]:3479"))).expect("corners");
        let local = Some(address("[::ffff:192.0.2.1]:0").ip());
        let from = address("[::ffff:203.0.113.5]:9");
        let answer = corners.answer(0, local, from, &request(false, true)).unwrap();
        assert_eq!((answer.by, answer.to), (1, from));
        let expected = encode_success(&ID, address("203.0.113.5:9"), address("192.0.2.1:3479"), None);
        assert_eq!(answer.bytes, expected);
    }
}
