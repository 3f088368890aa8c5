//! Penstock with other WireGuard implementations.

use crate::support::*;
use std::time::Duration;

const MODES: [Kind; 2] = [Kind::XDP, Kind::SOCKET];

/// Traffic in both directions when `kind` initiates, and when the other does. A side without an endpoint for its peer
/// cannot initiate.
fn joins_whoever_initiates(other: Kind) {
    if !ready(&[other.program().expect("another implementation"), "iperf3"]) {
        return;
    }
    for (kind, outer) in MODES.into_iter().flat_map(|kind| [(kind, Outer::V4), (kind, Outer::V6)]) {
        for penstock_initiates in [true, false] {
            let topology = Topology::new(Options::default());
            let (mut a, mut b) = pair_config(&topology, kind, other, outer);
            let silent = if penstock_initiates { &mut b } else { &mut a };
            silent.peers[0].endpoint = None;
            let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
            let (from, to) = if penstock_initiates { (&topology.a, &topology.b) } else { (&topology.b, &topology.a) };
            for target in to.hosts() {
                eventually(Duration::from_secs(15), "the first packet's way is open", || {
                    ping(&from.host, target, &["-c", "1"]).all_answered()
                });
            }
            for (from, to) in [(&topology.a, &topology.b), (&topology.b, &topology.a)] {
                for target in to.hosts() {
                    let echo = UdpEcho::start(&to.host, target);
                    let sizes = (0..40).chain([1300, 1392, 1472, 3000]);
                    datagram_sizes(&from.host, echo.address, sizes);
                    tcp_both_ways(&from.host, &to.host, target, 1 << 20);
                }
            }
            assert_eq!(a.endpoint(&b.public_key()), Some(topology.b.endpoint(outer)));
            assert_eq!(b.endpoint(&a.public_key()), Some(topology.a.endpoint(outer)));
        }
    }
}

#[test]
fn wireguard_go_joins_whoever_initiates() {
    joins_whoever_initiates(Kind::WireguardGo);
}

#[test]
fn boringtun_joins_whoever_initiates() {
    joins_whoever_initiates(Kind::Boringtun);
}

/// Pings through rekeys at a shortened interval: none may be lost, whatever the other end is.
fn traffic_survives_rekeys(kind: Kind, other: Kind) {
    let program = other.program().into_iter().chain(["tcpdump"]).collect::<Vec<_>>();
    if !ready(&program) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (mut a, mut b) = pair_config(&topology, kind, other, Outer::V4);
    a.rekey_after(3);
    // So that A stays the initiator.
    b.peers[0].endpoint = None;
    let _gateways = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(&topology);
    let capture = Capture::of_wan(&topology);
    let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "400", "-i", "0.05"]);
    let frames = capture.stop();
    assert!(pings.all_answered(), "{}", pings.text);
    let initiations = count_messages(&frames, HANDSHAKE_INITIATION);
    let responses = count_messages(&frames, HANDSHAKE_RESPONSE);
    assert!(initiations >= 2 && responses >= 2, "{initiations} initiations, {responses} responses");
    assert_no_clear_text(&frames, &topology);
}

#[test]
fn wireguard_go_through_rekeys_with_xdp() {
    traffic_survives_rekeys(Kind::XDP, Kind::WireguardGo);
}

#[test]
fn wireguard_go_through_rekeys_with_sockets() {
    traffic_survives_rekeys(Kind::SOCKET, Kind::WireguardGo);
}

#[test]
fn boringtun_through_rekeys_with_xdp() {
    traffic_survives_rekeys(Kind::XDP, Kind::Boringtun);
}

#[test]
fn boringtun_through_rekeys_with_sockets() {
    traffic_survives_rekeys(Kind::SOCKET, Kind::Boringtun);
}

#[test]
fn penstock_through_rekeys() {
    traffic_survives_rekeys(Kind::XDP, Kind::XDP);
}

/// The others insist on two minutes, so this takes five.
#[test]
fn rekeys_of_wireguard_go_at_its_own_pace() {
    if !ready(&["wireguard-go", "tcpdump"]) || !long() {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (mut a, b) = pair_config(&topology, Kind::XDP, Kind::WireguardGo, Outer::V4);
    a.peers[0].endpoint = None;
    let _gateways = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    let capture = Capture::of_wan(&topology);
    eventually(Duration::from_secs(15), "B's host reaches A's", || {
        ping(&topology.b.host, topology.a.host4(), &["-c", "1"]).all_answered()
    });
    let pings = ping(&topology.b.host, topology.a.host4(), &["-c", "2700", "-i", "0.1"]);
    let frames = capture.stop();
    assert!(pings.all_answered(), "{}", pings.text);
    assert!(count_messages(&frames, HANDSHAKE_RESPONSE) >= 3);
}

/// Without the same key no handshake completes; with it, traffic flows.
fn preshared_keys_must_match(other: Kind) {
    if !ready(&[other.program().expect("another implementation")]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::default());
        let (mut a, mut b) = pair_config(&topology, kind, other, Outer::V4);
        let right = genpsk();
        a.peers[0].preshared_key = Some(genpsk());
        b.peers[0].preshared_key = Some(right.clone());
        // Only A initiates: the other side keeps no record of failures that would delay what follows.
        b.peers[0].endpoint = None;
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        let refused = ping(&topology.a.host, topology.b.host4(), &["-c", "2"]);
        assert_eq!(refused.received, 0, "{kind:?}: traffic in spite of two keys");
        assert_eq!(a.latest_handshake(&b.public_key()), 0);
        let file = a.secret_file("psk", &right);
        a.set(&["peer", &b.public_key(), "preshared-key", &file]);
        await_traffic(&topology);
    }
}

#[test]
fn wireguard_go_with_a_preshared_key() {
    preshared_keys_must_match(Kind::WireguardGo);
}

#[test]
fn boringtun_with_a_preshared_key() {
    preshared_keys_must_match(Kind::Boringtun);
}

/// A side with a persistent keepalive of one second sends an empty message per second, and the other counts them.
fn keepalives_are_sent_and_counted(other: Kind) {
    if !ready(&[other.program().expect("another implementation"), "tcpdump"]) {
        return;
    }
    for penstock_sends in [true, false] {
        let topology = Topology::new(Options::switch());
        let (mut a, mut b) = pair_config(&topology, Kind::XDP, other, Outer::V4);
        let sender = if penstock_sends { &mut a } else { &mut b };
        sender.peers[0].keepalive = Some(1);
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        let (sender, receiver) = if penstock_sends { (&a, &b) } else { (&b, &a) };
        eventually(Duration::from_secs(15), "a keepalive makes a handshake", || {
            receiver.latest_handshake(&sender.public_key()) > 0
        });
        pause(500);
        let (before, _) = receiver.transfer(&sender.public_key());
        let capture = Capture::of_wan(&topology);
        pause(4200);
        let frames = capture.stop();
        let (after, _) = receiver.transfer(&sender.public_key());
        let empty = frames
            .iter()
            .filter(|frame| frame.message_type() == Some(TRANSPORT_DATA))
            .filter(|frame| frame.datagram().is_some_and(|datagram| datagram.payload.len() == 32))
            .count();
        assert!((3..=6).contains(&empty), "{empty} keepalives in 4 s");
        // boringtun counts the inner packets' bytes, of which there are none.
        if penstock_sends && other == Kind::Boringtun {
            assert_eq!(before, after);
        } else {
            assert!(after - before >= 3 * 32, "{before} bytes became {after}");
        }
    }
}

#[test]
fn wireguard_go_with_keepalives() {
    keepalives_are_sent_and_counted(Kind::WireguardGo);
}

#[test]
fn boringtun_with_keepalives() {
    keepalives_are_sent_and_counted(Kind::Boringtun);
}
