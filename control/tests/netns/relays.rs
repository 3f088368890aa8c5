//! Relays near and far, which die and come back under traffic.

use crate::support::nat::{Kind, Lab};
use crate::support::overlay::{Coordinator, Pair, Relay, now};
use crate::support::*;
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the path agent promises after a path's death.
const FALLBACK: f64 = 5.0;
/// A dead relay is asked again every 15 s by each of the two layers that must find it alive.
const RETURN: Duration = Duration::from_secs(45);

/// A slow path to a server: a middleman delays every datagram, in both directions. (The kernel on which these tests
/// have to run has no netem.)
struct SlowWay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowWay {
    fn start(lab: &Lab, number: u8, server: SocketAddr, delay: Duration) -> Self {
        let address = SocketAddr::new(lab.server(number).into(), server.port());
        let namespace = lab.internet().clone();
        let open = move |address: SocketAddr| {
            let socket = namespace.enter(|| UdpSocket::bind(address)).expect("a socket");
            socket.set_nonblocking(true).expect("nonblocking");
            Arc::new(socket)
        };
        let front = open(address);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sources: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut waiting: VecDeque<(Instant, Arc<UdpSocket>, SocketAddr, Vec<u8>)> = VecDeque::new();
            while !stopped.load(Ordering::Relaxed) {
                let due = Instant::now() + delay;
                while let Some((from, bytes)) = receive(&front) {
                    let back = sources.entry(from).or_insert_with(|| open(SocketAddr::new(address.ip(), 0)));
                    waiting.push_back((due, back.clone(), server, bytes));
                }
                for (source, back) in &sources {
                    while let Some((_, bytes)) = receive(back) {
                        waiting.push_back((due, front.clone(), *source, bytes));
                    }
                }
                while waiting.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
                    let (_, socket, to, bytes) = waiting.pop_front().expect("just seen");
                    // The server may be down, which is the point of this test.
                    let _ = socket.send_to(&bytes, to);
                }
                pause(1);
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for SlowWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn receive(socket: &UdpSocket) -> Option<(SocketAddr, Vec<u8>)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Some((from, buffer[..length].to_vec())),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        // An error about an earlier datagram.
        Err(_) => receive(socket),
    }
}

fn tools() -> bool {
    ready(&["nft", "conntrack"])
}

#[test]
fn the_nearest_is_taken_and_another_when_it_dies() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let mut coordinator = Coordinator::start(&lab);
    let (far, mut near) = (Relay::start(&lab, &coordinator, 3), Relay::start(&lab, &coordinator, 4));
    let slow = SlowWay::start(&lab, 5, far.address, Duration::from_millis(20));
    // In the list's order the far one would come first.
    let relays = [far.listing("far", slow.address), near.listing("near", near.address)];
    coordinator.list_relays(&relays, &["--no-relay"]);
    let extra = json!({ "BirthdayProbing": false });
    let pair = Pair::start(&lab, &coordinator, [Kind::Symmetric, Kind::Symmetric], &extra);
    pair.await_relay("near", PATIENCE);
    let beat = pair.heartbeat();
    pause(2000);
    pair.await_relay("near", Duration::ZERO);
    let states = pair.gateway_a.status()["Relays"].clone();
    let bound = states.as_array().expect("relays").iter().filter(|relay| relay["Bound"] == true).count();
    assert_eq!(bound, 2, "{states}");
    // Paths that are not in use are measured as well, and the middleman delays in both directions.
    let answering = pair.peers()[0]["Answering"].clone();
    let round_trip = |relay: &str| {
        let path = answering.as_array()?.iter().find(|path| path["Path"] == "relay" && path["Relay"] == relay)?;
        path["RoundTripMs"].as_f64()
    };
    let (near_one, far_one) = (round_trip("near"), round_trip("far"));
    assert!(near_one.is_some() && far_one > near_one.map(|millis| millis + 20.0), "{answering}");

    near.process.kill();
    let killed = now();
    pair.await_relay("far", PATIENCE);
    pause(1500);
    let beats = beat.stop();
    let silence = beats.longest_gap();
    assert!(silence <= FALLBACK && beats.answers.last().expect("answers").0 > killed + silence, "{silence:.2} s");

    let beat = pair.heartbeat();
    near.restart();
    pair.await_relay("near", RETURN);
    pause(1000);
    // Nothing has died, so nothing may be lost for longer than a handshake takes.
    let gap = beat.stop().longest_gap();
    assert!(gap <= 1.0, "{gap:.2} s");
}

/// Kills the coordinator and its relay for this long, under traffic; returns the silence after its restart. Afterwards
/// the relay is used over one of these transports.
fn silence_after_restart(kinds: [Kind; 2], transports: &[&str], outage: Duration) -> f64 {
    let lab = Lab::new();
    let mut coordinator = Coordinator::start(&lab);
    let pair = Pair::start(&lab, &coordinator, kinds, &json!({ "BirthdayProbing": false }));
    pair.await_both("relay", 2 * PATIENCE);
    let beat = pair.heartbeat();
    coordinator.process.kill();
    std::thread::sleep(outage);
    coordinator.restart();
    let restarted = now();
    let silence = || beat.beats().silence_after(restarted);
    holds_within(Duration::from_secs(60), || silence() < f64::INFINITY);
    pair.await_both("relay", PATIENCE);
    let relay = pair.gateway_a.status()["Relays"][0].clone();
    let transport = relay["Transport"].as_str().expect("a transport");
    assert!(transports.contains(&transport) && relay["Bound"] == true, "{relay}");
    eventually(PATIENCE * 3, "the coordinator is connected again", || {
        pair.gateway_a.status()["Coordinator"]["Connected"] == true
    });
    silence()
}

#[test]
fn the_coordinator_s_relay_may_restart() {
    if !tools() {
        return;
    }
    // Where the relay was not heard for long, TLS is tried too, and kept for a while.
    for (seconds, transports) in [(0, &["udp"][..]), (3, &["udp"]), (15, &["udp", "tls"])] {
        let outage = Duration::from_secs(seconds);
        let silence = silence_after_restart([Kind::Symmetric, Kind::Symmetric], transports, outage);
        eprintln!("{silence:.2} s of silence after {outage:?} without a relay");
        assert!(silence <= FALLBACK, "after {outage:?}: {silence:.2} s");
    }
}

#[test]
fn a_relay_by_tls_may_restart() {
    if !tools() {
        return;
    }
    for outage in [0, 10].map(Duration::from_secs) {
        let silence = silence_after_restart([Kind::UdpBlocked, Kind::FullCone], &["tls"], outage);
        eprintln!("{silence:.2} s of silence after {outage:?} without a relay by TLS");
        assert!(silence <= 10.0, "after {outage:?}: {silence:.2} s");
    }
}

#[test]
fn a_relay_elsewhere_carries_on_without_the_coordinator() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let mut coordinator = Coordinator::start(&lab);
    let relay = Relay::start(&lab, &coordinator, 3);
    let listing = relay.listing("elsewhere", relay.address);
    coordinator.list_relays(&[listing], &[]);
    let extra = json!({ "BirthdayProbing": false });
    let mut pair = Pair::start(&lab, &coordinator, [Kind::Symmetric, Kind::PortRestricted], &extra);
    pair.await_both("relay", PATIENCE);
    eventually(PATIENCE, "both relays are bound", || {
        let bound = |gateway: &overlay::OverlayGateway| {
            let status = gateway.status();
            status["Relays"].as_array().expect("relays").iter().all(|relay| relay["Bound"] == true)
        };
        bound(&pair.gateway_a) && bound(&pair.gateway_b)
    });
    let beat = pair.heartbeat();
    coordinator.process.kill();
    pair.await_relay("elsewhere", PATIENCE);
    pause(2000);
    let gap = beat.stop().longest_gap();
    assert!(gap <= FALLBACK, "{gap:.2} s");
    // A gateway that starts now has its map, and the relay its list of who may talk.
    assert!(pair.gateway_a.process.terminate().success());
    pair.gateway_a.restart();
    pair.await_relay("elsewhere", 2 * PATIENCE);
    let pings = ping(&pair.a.host, pair.b.host_address(), &["-c", "10", "-i", "0.2"]);
    assert!(pings.received >= 9, "{}", pings.text);
}
