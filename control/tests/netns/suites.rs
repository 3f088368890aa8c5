//! The second suite: used between two Penstocks that agree, not between those that do not, and never with a plain
//! WireGuard peer; and how the cipher is chosen.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::nat::{Kind as Nat, Lab};
use crate::support::overlay::{Coordinator, OverlayGateway, Pair};
use crate::support::*;

const AES: &str = "aes-256-gcm";
const CHACHA: &str = "chacha20-poly1305";

/// Two gateways with these suites for each other in their profiles, not started yet.
fn configs(topology: &Topology, kind: Kind, suites: [&'static str; 2]) -> [GatewayConfig; 2] {
    let (mut a, mut b) = pair_config(topology, kind, kind, Outer::V4);
    for (config, suite) in [&mut a, &mut b].into_iter().zip(suites) {
        config.peers[0].suite = Some(suite);
    }
    [a, b]
}

fn start(topology: &Topology, [a, b]: [GatewayConfig; 2]) -> [Gateway; 2] {
    [Gateway::start(&topology.a, a), Gateway::start(&topology.b, b)]
}

fn suite(gateway: &Gateway) -> Value {
    gateway.status()["Peers"][0]["Suite"].clone()
}

#[test]
fn aes_256_gcm_carries_traffic_in_each_mode_and_through_rekeys() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let mut configs = configs(&topology, kind, [AES, AES]);
        configs.iter_mut().for_each(|config| config.rekey_after(2));
        let gateways = start(&topology, configs);
        await_traffic(&topology);
        for gateway in &gateways {
            let peer = &gateway.status()["Peers"][0];
            assert_eq!((&peer["Suite"], &peer["SuiteReason"]), (&json!(AES), &json!("the profile says so")));
        }
        let first = gateways[0].latest_handshake(&gateways[1].public_key());
        for target in topology.b.hosts() {
            let echo = UdpEcho::start(&topology.b.host, target);
            datagram_sizes(&topology.a.host, echo.address, (0..64).chain([1300, 1392, 1472, 4000]));
            tcp_both_ways(&topology.a.host, &topology.b.host, target, 1 << 20);
        }
        let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "100", "-i", "0.05"]);
        assert!(pings.received >= 99, "{kind:?}: {}", pings.text);
        assert!(gateways[0].latest_handshake(&gateways[1].public_key()) > first, "{kind:?}: no rekey");
        assert_eq!(gateways.each_ref().map(suite), [AES, AES]);
    }
}

#[test]
fn sites_that_disagree_say_so_and_pass_nothing() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let mut gateways = start(&topology, configs(&topology, Kind::SOCKET, [AES, CHACHA]));
    // Both begin handshakes, so both notice.
    assert_eq!(ping(&topology.a.host, topology.b.host4(), &["-c", "1", "-W", "1"]).received, 0);
    assert_eq!(ping(&topology.b.host, topology.a.host4(), &["-c", "1", "-W", "1"]).received, 0);
    for (gateway, theirs, ours) in [(&gateways[0], CHACHA, AES), (&gateways[1], AES, CHACHA)] {
        eventually(PATIENCE, &format!("{} tells of {theirs}", gateway.name()), || {
            gateway.status()["Problems"].as_array().is_some_and(|problems| {
                let sentence = format!("peer-0 wants {theirs}, and this site's profile has {ours} for it");
                problems.iter().any(|problem| {
                    problem["Subject"] == "suite of peer-0"
                        && problem["Sentence"].as_str().is_some_and(|told| told.starts_with(&sentence))
                })
            })
        });
        assert_eq!(gateway.latest_handshake(&gateway.config.peers[0].public_key), 0);
        assert!(gateway.drops("handshake-suite") > 0);
    }

    // One of them gives in, and the problem is gone.
    gateways[1].terminate();
    gateways[1].config.peers[0].suite = Some("auto");
    let config = gateways[1].config.clone();
    let [a, b] = gateways;
    drop(b);
    let b = Gateway::start(&topology.b, config);
    await_traffic(&topology);
    for gateway in [&a, &b] {
        assert_eq!(gateway.status()["Problems"], json!([]), "{}", gateway.name());
        assert_eq!(suite(gateway), AES);
    }
}

#[test]
fn a_plain_wireguard_is_never_offered_another_suite() {
    for kind in [Kind::Boringtun, Kind::WireguardGo] {
        if !ready(&[kind.program().expect("another implementation")]) || !is_penstock() {
            return;
        }
        let topology = Topology::new(Options::default());
        let (mut a, b) = pair_config(&topology, Kind::SOCKET, kind, Outer::V4);
        a.peers[0].suite = Some("auto");
        let (a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        tcp_both_ways(&topology.a.host, &topology.b.host, topology.b.host4(), 1 << 18);
        let status = a.status();
        assert_eq!(status["Peers"][0]["Suite"], CHACHA, "{status:#}");
        let reason = status["Peers"][0]["SuiteReason"].as_str().unwrap_or_default();
        assert!(reason.contains("has announced no speeds"), "{reason}");
    }
}

#[test]
fn coordinated_sites_take_what_is_faster_for_both() {
    if !ready(&["nft", "conntrack"]) || !is_penstock() {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let mut pair = Pair::start(&lab, &coordinator, [Nat::None, Nat::None], &json!({}));
    pair.await_both("direct", Duration::from_secs(30));
    eventually(PATIENCE, "both know both speeds", || {
        let known =
            |peer: &Value| peer["SuiteReason"].as_str().is_some_and(|told| told.contains("the slower site does"));
        pair.peers().iter().all(known)
    });
    // The first handshake may have been faster than the announcement; the next one uses the right suite.
    assert!(pair.gateway_a.process.terminate().success());
    pair.gateway_a.restart();
    let speed = |suite: &str| {
        let of = |gateway: &OverlayGateway| gateway.status()["Cipher"]["Speeds"][suite].as_u64().expect(suite);
        of(&pair.gateway_a).min(of(&pair.gateway_b))
    };
    let expected = if speed(AES) * 8 > speed(CHACHA) * 9 { AES } else { CHACHA };
    eventually(PATIENCE, expected, || pair.peers().iter().all(|peer| peer["Suite"] == expected));
    let target = pair.b.host_address();
    eventually(PATIENCE, "B's host answers", || ping(&pair.a.host, target, &["-c", "1"]).all_answered());
    for peer in pair.peers() {
        let reason = peer["SuiteReason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("auto: the slower site does"), "{peer}");
    }
}

#[test]
fn the_implementation_is_chosen_and_told() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, mut b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    a.environment.push(("PENSTOCK_CIPHER_IMPLEMENTATION", "ring".to_owned()));
    b.environment.push(("PENSTOCK_CIPHER_IMPLEMENTATION", "auto".to_owned()));
    let gateways = start(&topology, [a, b]);
    await_traffic(&topology);
    let [ring, auto] = gateways.each_ref().map(|gateway| gateway.status()["Cipher"].clone());
    assert_eq!((&ring["Implementation"], &ring["Reason"]), (&json!("ring"), &json!("the profile asks for it")));
    assert_eq!(auto["Reason"], "the fastest that this CPU supports");
    for gateway in &gateways {
        assert_eq!(gateway.status()["Problems"], json!([]));
    }
}
