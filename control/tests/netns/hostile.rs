//! Bad input: noise, mutations, replays, forged sources, floods. Nothing may panic, nothing may get through that should
//! not, and honest peers are served meanwhile.

use crate::support::*;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MODES: [Kind; 2] = [Kind::XDP, Kind::SOCKET];

/// The attacker sits on the switch between the gateways.
fn attacker(topology: &Topology, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().expect("an address");
    topology.middle().enter(|| UdpSocket::bind(address)).expect("attacker's socket")
}

/// Sends `payload` to `destination` as if it came from `source`.
fn forge(raw: &Socket, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
    let packet = raw_datagram(source, destination, payload);
    // A full transmit queue must not fail the test.
    let _ = raw.send_to(&packet, &destination.into());
}

fn raw_socket(topology: &Topology) -> Socket {
    let protocol = Protocol::from(255);
    topology.middle().enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(protocol))).expect("raw socket")
}

/// What must not change under attack: the counter of authenticated bytes, the endpoint, and the process.
struct Calm {
    received: u64,
    endpoint: Option<SocketAddr>,
}

impl Calm {
    fn of(gateway: &Gateway, peer: &str) -> Self {
        let (received, _) = gateway.transfer(peer);
        Self { received, endpoint: gateway.endpoint(peer) }
    }

    fn assert_kept(&self, gateway: &mut Gateway, peer: &str) {
        pause(200);
        assert!(gateway.process.is_running(), "{}", gateway.process.log());
        assert!(!gateway.process.log().contains("panicked"), "{}", gateway.process.log());
        let (received, _) = gateway.transfer(peer);
        assert_eq!(received, self.received, "bytes were accepted");
        assert_eq!(gateway.endpoint(peer), self.endpoint, "the endpoint roamed");
    }
}

/// Traffic still flows after the attack.
fn assert_alive(topology: &Topology) {
    for target in topology.b.hosts() {
        let echo = UdpEcho::start(&topology.b.host, target);
        let answered = udp_echoes(&topology.a.host, echo.address, 20);
        assert!(answered >= 19, "{answered} of 20 echoes after the attack");
    }
}

#[test]
fn noise_of_every_size() {
    if !ready(&[]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::switch());
        let (a, mut b) = joined(&topology, kind, kind, Outer::V4);
        let key = a.public_key();
        let calm = Calm::of(&b, &key);
        let mut random = Random::new(42);
        for (outer, source) in [(Outer::V4, "192.0.2.66:4000"), (Outer::V6, "[2001:db8::66]:4000")] {
            let socket = attacker(&topology, source);
            let target = topology.b.endpoint(outer);
            for size in (0..=1472).chain([1473, 2000, 3000, 9000, 65_000]) {
                for message_type in 0..=5 {
                    let mut noise = random.bytes(size);
                    // 0: only noise; otherwise with a header that looks right.
                    if message_type > 0 && size >= 4 {
                        noise[..4].copy_from_slice(&[message_type, 0, 0, 0]);
                    }
                    let _ = socket.send_to(&noise, target);
                }
                if size % 64 == 0 {
                    // The aim is to try every size, not to lose most of them in a full queue.
                    pause(2);
                }
            }
        }
        calm.assert_kept(&mut b, &key);
        assert_alive(&topology);
    }
}

/// Captures a handshake and some data between new gateways: the UDP payloads that A sent to B.
fn recorded(topology: &Topology, kind: Kind) -> (Gateway, Gateway, Vec<Vec<u8>>) {
    let capture = Capture::of_wan(topology);
    let (a, mut b) = pair_config(topology, kind, kind, Outer::V4);
    b.peers[0].endpoint = None;
    let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(topology);
    ping(&topology.a.host, topology.b.host4(), &["-c", "20", "-i", "0.01"]);
    let messages = capture
        .stop()
        .iter()
        .filter(|frame| frame.message_type().is_some())
        .filter_map(Frame::datagram)
        .filter(|datagram| datagram.destination == topology.b.endpoint(Outer::V4))
        .map(|datagram| datagram.payload)
        .collect();
    (a, b, messages)
}

#[test]
fn replays_are_dropped() {
    if !ready(&["tcpdump"]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::switch());
        let (a, mut b, messages) = recorded(&topology, kind);
        assert!(messages.len() > 20, "{} messages", messages.len());
        let key = a.public_key();
        let calm = Calm::of(&b, &key);
        let arrivals = Capture::start(&topology.b.host, "eth0", "icmp or icmp6", topology.scratch());
        let answers = Capture::start(topology.middle(), "b0", "udp and dst host 192.0.2.66", topology.scratch());
        let socket = attacker(&topology, "192.0.2.66:4000");
        let raw = raw_socket(&topology);
        let target = topology.b.endpoint(Outer::V4);
        for message in messages.iter().chain(messages.iter().rev()) {
            let _ = socket.send_to(message, target);
            forge(&raw, topology.a.endpoint(Outer::V4), target, message);
            pause(1);
        }
        calm.assert_kept(&mut b, &key);
        // Neighbour discovery is local to the link; what came through the tunnel would be an echo request.
        let echoes = arrivals.stop().iter().filter(|frame| is_echo(frame)).count();
        assert_eq!(echoes, 0, "{kind:?}: replays reached the host");
        assert_eq!(answers.stop().len(), 0, "{kind:?}: the attacker got an answer");
        assert_alive(&topology);
    }
}

fn is_echo(frame: &Frame) -> bool {
    frame.ip().is_some_and(|(_, _, protocol, body)| match protocol {
        1 => body.first() == Some(&8),
        58 => body.first() == Some(&128),
        _ => false,
    })
}

/// Each message of a real exchange: with each byte changed, truncated at each length, and extended.
#[test]
fn mutations_are_dropped() {
    if !ready(&["tcpdump"]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::switch());
        let (a, mut b, messages) = recorded(&topology, kind);
        let key = a.public_key();
        let mut kinds = Vec::new();
        for wanted in [HANDSHAKE_INITIATION, TRANSPORT_DATA] {
            kinds.extend(messages.iter().find(|message| message[0] == wanted));
        }
        assert_eq!(kinds.len(), 2);
        let calm = Calm::of(&b, &key);
        let raw = raw_socket(&topology);
        let (source, target) = (topology.a.endpoint(Outer::V4), topology.b.endpoint(Outer::V4));
        let mut random = Random::new(7);
        for message in kinds {
            for at in 0..message.len() {
                let mut changed = message.clone();
                changed[at] ^= 1 << random.below(8);
                forge(&raw, source, target, &changed);
                forge(&raw, source, target, &message[..at]);
                pause(1);
            }
            for extra in [1, 4, 15, 16, 17, 64, 1000, 1472 - message.len()] {
                let mut longer = message.clone();
                longer.extend(random.bytes(extra));
                forge(&raw, source, target, &longer);
            }
        }
        calm.assert_kept(&mut b, &key);
        assert_alive(&topology);
    }
}

/// The other messages of the handshake, cookie replies, and data for indices never given out, to both sides, as if from
/// the peer.
#[test]
fn forged_answers_leave_a_handshake_alone() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (a, b) = pair_config(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let mut a = Gateway::start(&topology.a, a);
    let raw = raw_socket(&topology);
    let (source, target) = (topology.b.endpoint(Outer::V4), topology.a.endpoint(Outer::V4));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(3);
            while !stop.load(Ordering::Relaxed) {
                for (kind, size) in [(HANDSHAKE_RESPONSE, 92), (COOKIE_REPLY, 64), (4, 96)] {
                    let mut message = random.bytes(size);
                    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
                    forge(&raw, source, target, &message);
                }
                pause(1);
            }
        });
        let _b = Gateway::start(&topology.b, b);
        let joined = std::panic::catch_unwind(|| await_traffic(&topology));
        stop.store(true, Ordering::Relaxed);
        assert!(joined.is_ok(), "no handshake beside forged answers");
    });
    assert!(a.process.is_running());
}

/// A peer may send only from its allowed IPs, and not from this site's own.
#[test]
fn lies_about_inner_sources_stop_at_the_gateway() {
    if !ready(&["tcpdump", "wireguard-go"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (a, _b) = joined(&topology, kind, Kind::WireguardGo, Outer::V4);
        topology.b.host.ip("addr add 10.99.0.2/32 dev eth0\n\
             addr add 10.101.0.77/32 dev eth0\n\
             addr add fd00:99::2/128 dev eth0 nodad\n");
        let drops = is_penstock().then(|| total_drops(&a));
        let capture = Capture::start(&topology.a.host, "eth0", "ip or ip6", topology.scratch());
        for (source, target) in
            [("10.99.0.2", topology.a.host4()), ("10.101.0.77", topology.a.host4()), ("fd00:99::2", topology.a.host6())]
        {
            let options = ["-I", source, "-c", "5", "-i", "0.05", "-W", "0.2"];
            ping(&topology.b.host, target, &options);
        }
        let lies = ["10.99.0.2", "10.101.0.77", "fd00:99::2"].map(|lie| lie.parse::<IpAddr>().expect("an address"));
        for frame in capture.stop() {
            let source = frame.ip().map(|(source, ..)| source);
            assert!(!source.is_some_and(|source| lies.contains(&source)), "{kind:?}: {source:?}");
        }
        if let Some(before) = drops {
            assert!(total_drops(&a) >= before + 15, "{kind:?}: drops are counted");
        }
        await_traffic(&topology);
    }
}

fn total_drops(gateway: &Gateway) -> u64 {
    let status = gateway.status();
    let reasons = status["Drops"].as_object().expect("Drops is an object");
    reasons.values().filter_map(serde_json::Value::as_u64).sum()
}

/// Thousands of initiations per second with a valid MAC1 put the gateway under load: it answers with cookies, and an
/// honest peer that comes now gets its handshake.
#[test]
fn an_honest_peer_connects_during_a_flood() {
    const RATE: usize = 8_000;
    if !ready(&[]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::switch());
        let (a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        b.peers[0].endpoint = None;
        let mut b = Gateway::start(&topology.b, b);
        let victim = b.public_key();
        let target = topology.b.endpoint(Outer::V4);
        let socket = attacker(&topology, "192.0.2.66:4000");
        socket.set_nonblocking(true).expect("nonblocking");
        let (stop, cookies) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random::new(11);
                let (start, mut sent, mut buffer) = (Instant::now(), 0, [0; 256]);
                while !stop.load(Ordering::Relaxed) {
                    let ephemeral = random.bytes(32).try_into().expect("32 bytes");
                    let _ = socket.send_to(&initiation(&victim, &ephemeral, &mut random), target);
                    sent += 1;
                    while let Ok(64) = socket.recv(&mut buffer) {
                        cookies.fetch_add(usize::from(buffer[0] == COOKIE_REPLY), Ordering::Relaxed);
                    }
                    if sent % 100 == 0 {
                        let due = Duration::from_secs_f64(sent as f64 / RATE as f64);
                        std::thread::sleep(due.saturating_sub(start.elapsed()));
                    }
                }
            });
            pause(1000);
            let attempt = std::panic::catch_unwind(|| {
                let a = Gateway::start(&topology.a, a);
                await_traffic(&topology);
                let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "20", "-i", "0.05"]);
                assert!(pings.received >= 18, "{}", pings.text);
                a
            });
            stop.store(true, Ordering::Relaxed);
            assert!(attempt.is_ok(), "{kind:?}: the honest peer was shut out");
        });
        let cookies = cookies.into_inner();
        assert!(cookies > 100, "{kind:?}: {cookies} cookie replies");
        assert!(b.process.is_running(), "{}", b.process.log());
    }
}
