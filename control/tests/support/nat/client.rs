//! A NAT as plain sockets see it.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use penstock_proto::stun::{Discovery, NatReport};
use rand::SeedableRng;

use super::Site;

/// A UDP socket on a port of the gateway's WAN address.
pub fn socket(site: &Site, port: u16) -> UdpSocket {
    let wan = site.wan();
    let socket = site.gateway.enter(|| UdpSocket::bind((wan, port))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    socket
}

/// Runs the discovery of the protocol crate from a socket of the gateway.
pub fn nat_report(socket: &UdpSocket, server: SocketAddr) -> NatReport {
    let local = socket.local_addr().expect("bound");
    let mut discovery = Discovery::new(Instant::now(), &[server], &[local], rand::rngs::StdRng::from_os_rng());
    let end = Instant::now() + Duration::from_secs(20);
    let mut datagram = [0; 1500];
    while Instant::now() < end {
        while let Some(query) = discovery.poll_transmit(Instant::now()) {
            // The kernel refuses to send where the NAT rejects: that counts as silence, too.
            let _ = socket.send_to(&query.bytes, query.to);
        }
        if let Some(report) = discovery.poll_report() {
            return report;
        }
        if let Ok((length, _)) = socket.recv_from(&mut datagram) {
            discovery.handle_datagram(Instant::now(), &datagram[..length]);
        }
    }
    panic!("a discovery ends by itself");
}

/// Hole punching by two sockets that know where a server sees the other: whether each hears the other within `limit`.
/// First both open their own NATs with packets that expire on the way, then both knock, and answer knocks.
pub fn exchange(a: (&UdpSocket, SocketAddr), b: (&UdpSocket, SocketAddr), limit: Duration) -> bool {
    const OPEN: &[u8] = b"open";
    for (socket, to) in [(a.0, b.1), (b.0, a.1)] {
        socket.set_ttl(2).expect("a time to live");
        let _ = socket.send_to(OPEN, to);
        socket.set_ttl(64).expect("a time to live");
    }
    std::thread::sleep(Duration::from_millis(50));
    std::thread::scope(|scope| {
        let sides = [(a.0, b.1), (b.0, a.1)].map(|(socket, to)| scope.spawn(move || knock(socket, to, limit)));
        sides.into_iter().all(|side| side.join().expect("no panic"))
    })
}

/// Whether a knock is answered. Goes on for the whole `limit`, since the other side may still need answers.
fn knock(socket: &UdpSocket, told: SocketAddr, limit: Duration) -> bool {
    let (mut to, mut answered) = (told, false);
    let end = Instant::now() + limit;
    let mut next = Instant::now();
    let mut datagram = [0; 64];
    while Instant::now() < end {
        if Instant::now() >= next {
            next += Duration::from_millis(100);
            let _ = socket.send_to(b"knock", to);
        }
        let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
        match &datagram[..length] {
            b"knock" => {
                // A peer-reflexive address: where the peer actually sends from.
                to = from;
                let _ = socket.send_to(b"answer", from);
            }
            b"answer" => answered = true,
            _ => {}
        }
    }
    answered
}
