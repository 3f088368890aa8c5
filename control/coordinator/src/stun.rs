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

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use penstock_proto::stun::message::{Change, MAX_LENGTH, Message, decode, encode_error, encode_success};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// RFC 8489, section 14.8: an attribute that must be understood and is not; what RFC 5780, section 7.2, has
/// a server answer that cannot change its address.
const UNKNOWN_ATTRIBUTE: u16 = 420;
/// How long after a failed read the next is tried.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

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
        if same_port || first.is_ipv4() != second.is_ipv4() || first.ip().is_unspecified() {
            return None;
        }
        if same_ip {
            return Some(Self { addresses: vec![first, second] });
        }
        let at = |ip: SocketAddr, port: SocketAddr| SocketAddr::new(ip.ip(), port.port());
        Some(Self { addresses: vec![first, at(first, second), at(second, first), second] })
    }

    /// Answers a request that came to corner `at`: from which corner, and what.
    fn answer(&self, at: usize, from: SocketAddr, request: &[u8]) -> Option<(usize, Vec<u8>)> {
        let Ok(Message::Request { transaction, change: Change { ip, port } }) = decode(request) else { return None };
        let by = at ^ (usize::from(port) | usize::from(ip) << 1);
        let (by, answer) = match self.addresses.get(by) {
            Some(origin) => (by, encode_success(&transaction, from, *origin, self.addresses.get(at ^ 3).copied())),
            None => (at, encode_error(&transaction, UNKNOWN_ATTRIBUTE)),
        };
        (answer.len() <= request.len()).then_some((by, answer))
    }
}

/// A server that runs until it is dropped.
pub struct StunServer {
    // Aborts the tasks when dropped.
    _tasks: JoinSet<()>,
}

impl StunServer {
    /// Binds all corners. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// An address cannot be bound; it is named.
    pub async fn start(corners: Corners) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for address in &corners.addresses {
            let socket = UdpSocket::bind(address).await;
            sockets.push(socket.map_err(|error| io::Error::new(error.kind(), format!("{address} (STUN): {error}")))?);
        }
        let (sockets, corners) = (Arc::new(sockets), Arc::new(corners));
        let mut tasks = JoinSet::new();
        for at in 0..sockets.len() {
            tasks.spawn(serve(at, sockets.clone(), corners.clone()));
        }
        Ok(Self { _tasks: tasks })
    }
}

async fn serve(at: usize, sockets: Arc<Vec<UdpSocket>>, corners: Arc<Corners>) {
    let mut request = [0; MAX_LENGTH + 1];
    loop {
        let Ok((len, from)) = sockets[at].recv_from(&mut request).await else {
            // Mostly about an earlier answer, which nobody took.
            tokio::time::sleep(ERROR_PAUSE).await;
            continue;
        };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if let Some((by, answer)) = corners.answer(at, from, &request[..len]) {
            // Who asks loses answers on the way as well, and asks again.
            let _ = sockets[by].try_send_to(&answer, from);
        }
    }
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
                let (sender, answer) = corners.answer(at, from, &request(ip, port)).expect("an answer");
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
        let (_, answer) = corners.answer(0, from, &request(false, false)).expect("an answer");
        assert!(matches!(decode(&answer), Ok(Message::Success { other: None, mapped, .. }) if mapped == from));
        let (_, answer) = corners.answer(0, from, &request(true, true)).expect("an answer");
        assert!(matches!(decode(&answer), Ok(Message::Error { code: 420, .. })));
    }

    #[test]
    fn nothing_is_answered_that_is_smaller_than_its_answer() {
        let corners = Corners::new(address("192.0.2.1:3478"), None).expect("a corner");
        let mut bare = request(false, false)[..20].to_vec();
        bare[2..4].fill(0);
        assert!(decode(&bare).is_ok());
        assert_eq!(corners.answer(0, address("203.0.113.5:999"), &bare), None);
        // Nor is an answer answered.
        let (_, answer) = corners.answer(0, address("203.0.113.5:999"), &request(false, false)).expect("an answer");
        assert_eq!(corners.answer(0, address("203.0.113.5:999"), &answer), None);
    }

    #[tokio::test]
    async fn a_server_answers_on_the_wire() {
        // Whatever ports are free now; another process may take one before we do, so it is tried again.
        for _ in 0..10 {
            let free = async || UdpSocket::bind("127.0.0.1:0").await.and_then(|s| s.local_addr()).expect("a port");
            let (first, second) = (free().await, SocketAddr::new([127, 0, 0, 2].into(), free().await.port()));
            let Some(corners) = Corners::new(first, Some(second)) else { continue };
            let Ok(_server) = StunServer::start(corners).await else { continue };
            let client = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            client.send_to(&request(true, true), first).await.expect("sent");
            let mut answer = [0; 200];
            let (len, from) = client.recv_from(&mut answer).await.expect("an answer");
            assert_eq!(from, second);
            let mapped = client.local_addr().expect("bound");
            assert!(matches!(decode(&answer[..len]), Ok(Message::Success { mapped: m, .. }) if m == mapped));
            return;
        }
        panic!("no free ports");
    }
}
