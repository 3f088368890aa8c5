//! A gateway restarts while the other site is sending: traffic flows again within a second.

use crate::support::*;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an outage may last, from the moment at which the gateway answers again.
const LIMIT: Duration = Duration::from_secs(1);

/// Sends a datagram to an echo server every few milliseconds, and notes when the last echo came.
struct Stream {
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    sender: Option<std::thread::JoinHandle<()>>,
}

impl Stream {
    fn start(namespace: &Namespace, server: SocketAddr) -> Self {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
            socket.connect(server).expect("a route");
            socket
        });
        let socket = Arc::new(socket);
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let (sending, stopped) = (Arc::clone(&socket), Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = sending.send(&[7; 100]);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { socket, stop, sender: Some(sender) }
    }

    /// Waits for an echo that arrives after now.
    fn await_echo(&self) {
        let mut buffer = [0; 200];
        self.socket.set_nonblocking(true).expect("a socket");
        while self.socket.recv(&mut buffer).is_ok() {}
        self.socket.set_nonblocking(false).expect("a socket");
        self.socket.recv(&mut buffer).expect("an echo in time");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Terminated,
    Killed,
}

/// Which host sends while B's gateway restarts.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Other,
    Restarted,
}

/// B restarts, and knows A's address only from A's earlier packets.
fn traffic_flows_within_a_second(kind: Kind, other: Kind) {
    if !ready(&other.program().into_iter().collect::<Vec<_>>()) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, mut b) = pair_config(&topology, other, kind, Outer::V4);
    b.peers[0].endpoint = None;
    let (a, mut b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(&topology);
    let endpoint = topology.a.endpoint(Outer::V4);
    assert_eq!(b.endpoint(&a.public_key()), Some(endpoint));
    // The file of endpoints is written a moment after they change.
    let file = topology.b.scratch.join(format!("{}.endpoints", b.name()));
    eventually(PATIENCE, "the endpoint is kept", || {
        std::fs::read(&file).is_ok_and(|file| String::from_utf8_lossy(&file).contains(&endpoint.to_string()))
    });
    for end in [End::Terminated, End::Killed] {
        for sender in [Sender::Other, Sender::Restarted] {
            let (from, to) = match sender {
                Sender::Other => (&topology.a, &topology.b),
                Sender::Restarted => (&topology.b, &topology.a),
            };
            let echo = UdpEcho::start(&to.host, to.host4());
            let stream = Stream::start(&from.host, echo.address);
            stream.await_echo();
            match end {
                End::Terminated => assert!(b.terminate().success()),
                End::Killed => b.kill(),
            }
            b.restart();
            let up = Instant::now();
            stream.await_echo();
            let outage = up.elapsed();
            assert!(outage < LIMIT, "{kind:?} {end:?}, {sender:?} sends: {outage:?}");
        }
    }
}

/// The same without the file of last endpoints, from the profile alone: data of an unknown session makes a gateway
/// initiate a handshake with its sender.
fn data_calls(kind: Kind) {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (_a, mut b) = joined(&topology, kind, kind, Outer::V4);
    let echo = UdpEcho::start(&topology.b.host, topology.b.host4());
    let stream = Stream::start(&topology.a.host, echo.address);
    stream.await_echo();
    b.kill();
    let _ = std::fs::remove_file(topology.b.scratch.join(format!("{}.endpoints", b.name())));
    b.restart();
    let up = Instant::now();
    stream.await_echo();
    let outage = up.elapsed();
    assert!(outage < LIMIT, "{kind:?}: {outage:?}");
    assert!(b.drops("unknown-session") > 0);
}

#[test]
fn by_what_the_other_sends_with_sockets() {
    data_calls(Kind::SOCKET);
}

#[test]
fn by_what_the_other_sends_with_xdp() {
    data_calls(Kind::XDP);
}

#[test]
fn with_sockets() {
    traffic_flows_within_a_second(Kind::SOCKET, Kind::SOCKET);
}

#[test]
fn with_xdp() {
    traffic_flows_within_a_second(Kind::XDP, Kind::XDP);
}

#[test]
fn beside_wireguard_go() {
    traffic_flows_within_a_second(Kind::XDP, Kind::WireguardGo);
}

#[test]
fn beside_boringtun() {
    traffic_flows_within_a_second(Kind::SOCKET, Kind::Boringtun);
}
