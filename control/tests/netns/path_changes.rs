//! Paths that change under traffic: found, cut, moved.

use crate::support::nat::{Kind, Lab, MappingServer, Offer, Site};
use crate::support::overlay::{Coordinator, Heartbeat, OverlayGateway, Pair};
use crate::support::*;
use serde_json::json;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// What the path agent promises.
const FALLBACK: f64 = 5.0;

/// Two sites with everything that they need.
struct Scene {
    pair: Pair,
    coordinator: Coordinator,
    _lab: Lab,
}

impl Scene {
    fn new(a: Kind, b: Kind, extra: &serde_json::Value) -> Self {
        let lab = Lab::new();
        let coordinator = Coordinator::start(&lab);
        let pair = Pair::start(&lab, &coordinator, [a, b], extra);
        Self { pair, coordinator, _lab: lab }
    }

    fn await_both(&self, path: &str) {
        self.pair.await_both(path, 4 * PATIENCE);
    }
}

impl Deref for Scene {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        &self.pair
    }
}

impl DerefMut for Scene {
    fn deref_mut(&mut self) -> &mut Pair {
        &mut self.pair
    }
}

fn tools() -> bool {
    ready(&["nft", "conntrack"])
}

#[test]
fn going_direct_loses_nothing() {
    if !tools() {
        return;
    }
    let pair = Scene::new(Kind::PortRestricted, Kind::PortRestricted, &json!({}));
    // Started before there is any path.
    let beat = Heartbeat::start(&pair.a, pair.b.host_address(), Duration::from_millis(20), 100_000);
    pair.await_both("direct");
    pause(1000);
    let beats = beat.stop();
    assert!(beats.answers.len() > 50, "{beats:?}");
    // Answers on the slower path may arrive after later ones on the faster one, but they arrive.
    assert_eq!(beats.lost(), 0, "{beats:?}");
    let log = pair.gateway_a.process.log();
    assert!(log.contains("by relay"), "it went direct without a relay before: {log}");
}

#[test]
fn a_cut_path_falls_back_to_the_relay_and_comes_back() {
    if !tools() {
        return;
    }
    for kinds in [(Kind::PortRestricted, Kind::FullCone), (Kind::None, Kind::Symmetric)] {
        let pair = Scene::new(kinds.0, kinds.1, &json!({}));
        pair.await_both("direct");
        let changes = || pair.gateway_a.peer(&pair.gateway_b.name)["PathChanges"].as_u64().expect("a number");
        let before = changes();
        assert!(before > 0, "the first path is a change");
        let beat = pair.heartbeat();
        pair.a.cut(pair.b.public());
        pair.await_both("relay");
        pause(500);
        let beats = beat.stop();
        assert!(beats.longest_gap() <= FALLBACK, "{kinds:?}: {:.2} s", beats.longest_gap());
        assert_eq!(pair.gateway_a.peer(&pair.gateway_b.name)["Path"], "relay");
        let beat = pair.heartbeat();
        pair.a.heal();
        pair.await_both("direct");
        let beats = beat.stop();
        assert_eq!(beats.lost(), 0, "{kinds:?}: going direct again");
        assert!(changes() >= before + 2, "to the relay and back: {before}, then {}", changes());
    }
}

#[test]
fn a_nat_that_rebinds_is_followed() {
    if !tools() {
        return;
    }
    let pair = Scene::new(Kind::PortRestricted, Kind::PortRestricted, &json!({ "LocalPort": 47100 }));
    pair.await_both("direct");
    let beat = pair.heartbeat();
    pair.b.rebind(47100);
    pause(6000);
    let gap = beat.stop().longest_gap();
    assert!(gap <= FALLBACK, "{gap:.2} s");
    pair.await_both("direct");
}

#[test]
fn another_address_is_followed() {
    if !tools() {
        return;
    }
    let pair = Scene::new(Kind::FullCone, Kind::PortRestricted, &json!({}));
    pair.await_both("direct");
    let beat = pair.heartbeat();
    // The NAT's address changes, unseen by the gateway behind it.
    let new = pair.b.change_external_address();
    pause(6000);
    let gap = beat.stop().longest_gap();
    assert!(gap <= FALLBACK, "{gap:.2} s");
    pair.await_both("direct");
    let endpoint = pair.gateway_a.peer(&pair.gateway_b.name)["Endpoint"].as_str().map(str::to_owned);
    assert!(endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with(&new.to_string())), "{endpoint:?}");
    // The gateway's own address.
    let beat = pair.heartbeat();
    pair.a.set_kind(Kind::None);
    pause(6000);
    let gap = beat.stop().longest_gap();
    assert!(gap <= FALLBACK, "{gap:.2} s");
    pair.await_both("direct");
}

#[test]
fn both_ends_may_move_at_once() {
    if !tools() {
        return;
    }
    let pair = Scene::new(Kind::PortRestricted, Kind::AddressRestricted, &json!({}));
    pair.await_both("direct");
    let beat = pair.heartbeat();
    pair.a.change_external_address();
    pair.b.change_external_address();
    pause(10_000);
    // Neither can reach the other before it has bound to the relay again.
    let gap = beat.stop().longest_gap();
    assert!(gap <= 2.0 * FALLBACK, "{gap:.2} s");
    pair.await_both("direct");
}

#[test]
fn guessed_ports_get_through_a_symmetric_nat() {
    if !tools() {
        return;
    }
    // One attempt fails once in sixty times; that three pairs fail together can be ruled out.
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    coordinator.policy(&json!({ "Links": [["tag:left", "tag:right"]] }));
    let (left, right) = (coordinator.key(3, "left"), coordinator.key(1, "right"));
    let hub = lab.site(Kind::PortRestricted, 1);
    let branches: Vec<Site> = (2..5).map(|number| lab.site(Kind::Symmetric, number)).collect();
    let hub_gateway = OverlayGateway::start(&hub, &coordinator, &right, &json!({}));
    let gateways: Vec<OverlayGateway> =
        branches.iter().map(|site| OverlayGateway::start(site, &coordinator, &left, &json!({}))).collect();
    let direct = || {
        let status = hub_gateway.status();
        let peers = status["Peers"].as_array().expect("peers").clone();
        peers.iter().filter(|peer| peer["Path"] == "direct").count()
    };
    eventually(6 * PATIENCE, "two of three are direct", || direct() >= 2);
    for (site, gateway) in branches.iter().zip(&gateways) {
        let peer = gateway.peer(&hub_gateway.name);
        let pings = ping(&site.host, hub.host_address(), &["-c", "5", "-i", "0.2"]);
        assert!(pings.all_answered(), "{peer}: {}", pings.text);
    }
}

#[test]
fn a_mapped_port_is_a_way_into_a_symmetric_nat() {
    if !ready(&["nft", "conntrack", "miniupnpd"]) {
        return;
    }
    let Scene { mut pair, coordinator: _coordinator, _lab } =
        Scene::new(Kind::PortRestricted, Kind::Symmetric, &json!({ "BirthdayProbing": false }));
    pair.await_both("relay", 4 * PATIENCE);
    let router = MappingServer::start(&pair.b, Offer::ALL);
    // It was asked without success at the start; the next start asks again.
    assert!(pair.gateway_b.process.terminate().success());
    pair.gateway_b.restart();
    pair.await_both("direct", 4 * PATIENCE);
    assert!(!router.mappings().is_empty());
    let pings = ping(&pair.a.host, pair.b.host_address(), &["-c", "3", "-i", "0.2"]);
    assert!(pings.all_answered(), "{}", pings.text);
    assert!(pair.gateway_b.process.terminate().success());
    assert!(router.mappings().is_empty(), "it is given back at the end");
}

#[test]
fn nothing_is_lost_with_the_coordinator() {
    if !tools() {
        return;
    }
    let mut pair = Scene::new(Kind::PortRestricted, Kind::FullCone, &json!({}));
    pair.await_both("direct");
    let beat = pair.heartbeat();
    pair.coordinator.process.kill();
    pause(3000);
    assert_eq!(beat.stop().lost(), 0, "a direct path needs no coordinator");
    // A start without the coordinator uses the previous peers; the NATs still let the answers in.
    assert!(pair.gateway_a.process.terminate().success());
    pair.gateway_a.restart();
    let known = pair.gateway_a.peer(&pair.gateway_b.name);
    assert_eq!(known["Name"], pair.gateway_b.name.as_str());
    pair.coordinator.restart();
    pair.gateway_a.await_path(&pair.gateway_b.name, "direct", 4 * PATIENCE);
    // B sends to the previous port until it has found it dead.
    eventually(Duration::from_secs_f64(FALLBACK), "B has followed", || {
        ping(&pair.a.host, pair.b.host_address(), &["-c", "1"]).all_answered()
    });
    let pings = ping(&pair.a.host, pair.b.host_address(), &["-c", "3", "-i", "0.2"]);
    assert!(pings.all_answered(), "{}", pings.text);
}

#[test]
fn a_revoked_site_is_cut_off_on_its_peers_too() {
    if !tools() {
        return;
    }
    let pair = Scene::new(Kind::FullCone, Kind::UdpBlocked, &json!({}));
    pair.await_both("relay");
    let beat = pair.heartbeat();
    pair.coordinator.run(&["site", "revoke", &pair.gateway_b.name]);
    let revoked = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs_f64();
    eventually(Duration::from_secs(3), "the peer is gone", || pair.gateway_a.peer(&pair.gateway_b.name).is_null());
    pause(1500);
    let last = beat.stop().answers.last().expect("answers").0;
    assert!(last < revoked + 2.0, "an answer {:.1} s after the revocation", last - revoked);
    let pings = ping(&pair.b.host, pair.a.host_address(), &["-c", "2", "-i", "0.2"]);
    assert_eq!(pings.received, 0, "{}", pings.text);
}

/// A reload that does not touch the port leaves the coordinator's peers alone; the coordinator is told of changed
/// subnets. After a change of port the paths are found again. Without a coordinator its peers are gone.
#[test]
fn a_reload_keeps_the_paths() {
    if !tools() {
        return;
    }
    let pair = Scene::new(Kind::PortRestricted, Kind::PortRestricted, &json!({ "BirthdayProbing": true }));
    pair.await_both("direct");
    let beat = Heartbeat::start(&pair.a, pair.b.host_address(), Duration::from_millis(20), 100_000);
    eventually(PATIENCE, "the first answer", || !beat.beats().answers.is_empty());
    let handshake = pair.peers()[0]["LastHandshake"].clone();
    let said = pair.gateway_a.reload(|profile| {
        profile["BirthdayProbing"] = json!(false);
        profile["PortMapping"] = json!(false);
        profile["Accept"] = json!(["10.0.0.0/8", "192.168.0.0/16", "100.64.0.0/10"]);
        profile["Lan"]["Subnets"] = json!([pair.a.subnet(), "10.99.0.0/24"]);
    });
    assert!(said.contains("Lan.Subnets"), "{said}");
    // A changed offer waits until it is granted.
    let subnets = format!("{},10.99.0.0/24", pair.a.subnet());
    let granted = || {
        let (done, _) = pair.coordinator.attempt(&["site", "approve", &pair.gateway_a.name, "--subnets", &subnets]);
        done
    };
    eventually(PATIENCE, "the offer is granted", granted);
    let hears = || pair.peers()[1]["AllowedIPs"].to_string().contains("10.99.0.0/24");
    eventually(PATIENCE, "B hears of the other subnet", hears);
    let beats = beat.stop();
    assert_eq!(beats.lost(), 0, "longest gap {} s", beats.longest_gap());
    assert_eq!(pair.peers()[0]["LastHandshake"], handshake);
    assert_eq!(pair.peers()[0]["Path"], "direct");

    for (field, value) in [("LocalPort", json!(47_155)), ("FwMark", json!(4711))] {
        pair.gateway_a.reload(|profile| profile[field] = value);
        pair.await_both("direct");
        let answers = || ping(&pair.a.host, pair.b.host_address(), &["-c", "1"]).all_answered();
        eventually(PATIENCE, &format!("B answers after another {field}"), answers);
    }
    let said = pair.gateway_a.reload(|profile| profile["Coordinator"] = json!(null));
    assert!(said.contains("Coordinator.Url"), "{said}");
    assert_eq!(pair.gateway_a.status()["Peers"], json!([]));
    assert!(!ping(&pair.a.host, pair.b.host_address(), &["-c", "1"]).all_answered());
}
