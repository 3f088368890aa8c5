//! The STUN server: tells a gateway how its NAT makes it look (RFC 8489), and, from up to four corners, how
//! the NAT behaves (RFC 5780, section 7.2).
//!
//! ```text
//!                 port of the first   port of the second
//!   first IP            A                    B
//!   second IP           C                    D
//! ```
//! A server with one address is A. One with two of the same IP is A and B. One whose second address differs
//! in IP and port is all four, and only that tells a NAT's whole behaviour. Nothing is answered that is
//! smaller than its answer, so a forged source gains nobody anything; gateways fill their requests up.
//!
//! The sockets are [`udp`](crate::udp)'s.

use std::net::{IpAddr, SocketAddr};

use penstock_proto::stun::message::{Change, Message, decode, encode_error, encode_success};

/// RFC 8489, section 14.8: an attribute that must be understood and is not; what RFC 5780, section 7.2, has
/// a server answer that cannot change its address.
const UNKNOWN_ATTRIBUTE: u16 = 420;

/// The addresses of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corners {
    /// By place: bit 0 is the second port, bit 1 the second IP.
    addresses: Vec<SocketAddr>,
}

impl Corners {
    /// The corners of a server at `first` and perhaps `second`. `None` when the two are no corners: the
    /// same, of two IP versions, the same port at two IPs, or an IP that is not said.
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

    /// Answers a request that came to corner `at`, at our address `local` if that is known: from which
    /// corner, and what.
    #[must_use]
    pub fn answer(
        &self,
        at: usize,
        local: Option<IpAddr>,
        from: SocketAddr,
        request: &[u8],
    ) -> Option<(usize, Vec<u8>)> {
        let Ok(Message::Request { transaction, change: Change { ip, port } }) = decode(request) else { return None };
        let by = at ^ (usize::from(port) | usize::from(ip) << 1);
        let from = canonical(from);
        let (by, answer) = match self.addresses.get(by) {
            Some(origin) => {
                // A corner at all addresses answers from the one that was asked.
                let local = local.filter(|_| origin.ip().is_unspecified());
                let origin = canonical(SocketAddr::new(local.unwrap_or(origin.ip()), origin.port()));
                (by, encode_success(&transaction, from, origin, self.addresses.get(at ^ 3).copied()))
            }
            None => (at, encode_error(&transaction, UNKNOWN_ATTRIBUTE)),
        };
        (answer.len() <= request.len()).then_some((by, answer))
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_proto::stun::message::encode_request;

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
                let (sender, answer) = corners.answer(at, None, from, &request(ip, port)).expect("an answer");
                assert_eq!(sender, by);
                let Ok(Message::Success { transaction, mapped, other }) = decode(&answer) else { panic!("no success") };
                assert_eq!((transaction, mapped, other), (ID, from, Some(corners.addresses[at ^ 3])));
            }
        }
    }

    #[test]
    fn a_single_address_refuses_to_be_another() {
        let corners = Corners::new(address("[2001:db8::1]:3478"), None).expect("a corner");
        let from = address("[2001:db8::5]:999");
        let (_, answer) = corners.answer(0, None, from, &request(false, false)).expect("an answer");
        assert!(matches!(decode(&answer), Ok(Message::Success { other: None, mapped, .. }) if mapped == from));
        let (_, answer) = corners.answer(0, None, from, &request(true, true)).expect("an answer");
        assert!(matches!(decode(&answer), Ok(Message::Error { code: 420, .. })));
    }

    #[test]
    fn nothing_is_answered_that_is_smaller_than_its_answer() {
        let corners = Corners::new(address("192.0.2.1:3478"), None).expect("a corner");
        let mut bare = request(false, false)[..20].to_vec();
        bare[2..4].fill(0);
        assert!(decode(&bare).is_ok());
        assert_eq!(corners.answer(0, None, address("203.0.113.5:999"), &bare), None);
        // Nor is an answer answered.
        let (_, answer) =
            corners.answer(0, None, address("203.0.113.5:999"), &request(false, false)).expect("an answer");
        assert_eq!(corners.answer(0, None, address("203.0.113.5:999"), &answer), None);
    }

    #[test]
    fn a_server_at_all_addresses_answers_from_the_one_that_was_asked() {
        let corners = Corners::new(address("[::]:3478"), Some(address("[::]:3479"))).expect("corners");
        let local = Some(address("[::ffff:192.0.2.1]:0").ip());
        let (by, answer) = corners.answer(0, local, address("[::ffff:203.0.113.5]:9"), &request(false, true)).unwrap();
        assert_eq!(by, 1);
        let expected = encode_success(&ID, address("203.0.113.5:9"), address("192.0.2.1:3479"), None);
        assert_eq!(answer, expected);
    }
}
