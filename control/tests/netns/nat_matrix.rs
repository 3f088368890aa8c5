//! Every kind of NAT against every other, with real gateways: direct where the oracle says so, relayed elsewhere, soon,
//! with the reason, and with traffic that does not stop.

use crate::support::nat::{Kind, Lab, Site};
use crate::support::overlay::{Coordinator, Heartbeat, OverlayGateway};
use crate::support::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Counted from the start of both gateways.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// The longest interruption that traffic may have, in seconds.
const GAP: f64 = 1.0;

/// A site, its gateway and its name at the other sites.
struct End {
    site: Site,
    gateway: OverlayGateway,
    kind: Kind,
}

/// One gateway behind each kind of NAT on either side; all of one side are peers of all of the other, so that the whole
/// matrix is tested at once.
#[test]
fn every_pair_of_nats_finds_the_path_that_the_oracle_allows() {
    if !ready(&["nft", "conntrack", "tinyproxy"]) {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    coordinator.policy(&json!({ "Links": [["tag:left", "tag:right"]] }));
    let kinds: Vec<Kind> = Kind::ALL.into_iter().chain(Kind::ALL).collect();
    let sites = lab.sites(&kinds);
    let keys = ["left", "right"].map(|side| coordinator.key(Kind::ALL.len(), side));
    // Ports are not guessed here: another test covers that.
    let extra = json!({ "BirthdayProbing": false });
    let mut ends: Vec<End> = std::thread::scope(|scope| {
        let starts: Vec<_> = sites
            .into_iter()
            .enumerate()
            .map(|(index, site)| {
                let (coordinator, key, extra) = (&coordinator, &keys[index / Kind::ALL.len()], &extra);
                scope.spawn(move || {
                    let gateway = OverlayGateway::start(&site, coordinator, key, extra);
                    End { kind: site.kind(), site, gateway }
                })
            })
            .collect();
        starts.into_iter().map(|start| start.join().expect("a gateway")).collect()
    });
    let right = ends.split_off(Kind::ALL.len());
    let left = ends;

    let started = Instant::now();
    let mut wrong = Vec::new();
    while started.elapsed() < FOUND_WITHIN {
        wrong = wrong_paths(&left, &right);
        wrong.extend(wrong_paths(&right, &left));
        if wrong.is_empty() {
            break;
        }
        pause(200);
    }
    assert!(wrong.is_empty(), "after {:?}:\n{}", started.elapsed(), wrong.join("\n"));
    eprintln!("all {} paths found {:?} after the last gateway's start", 2 * 64, started.elapsed());

    // Sixteen processes share two cores here, and each cell has few packets.
    let long = std::env::var_os("PENSTOCK_TEST_LONG").is_some();
    let count = if long { 300 } else { 30 };
    let interval = Duration::from_millis(200);
    let mut beats: Vec<(Kind, Kind, Heartbeat)> = Vec::new();
    for one in &left {
        for other in &right {
            let beat = Heartbeat::start(&one.site, other.site.host_address(), interval, count);
            beats.push((one.kind, other.kind, beat));
        }
    }
    let patience = interval * count + PATIENCE;
    let mut silent = Vec::new();
    for (one, other, beat) in beats {
        let beats = beat.finish(patience);
        let (gap, answers) = (beats.longest_gap(), beats.answers.len());
        // The first packets may have to wait for a handshake.
        if gap > GAP || (answers as u32) < count - 5 {
            silent.push(format!("{one:?} to {other:?}: {answers} of {count} answered, the longest gap {gap:.2} s"));
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
    // No path has been given up meanwhile.
    let wrong = wrong_paths(&left, &right);
    assert!(wrong.is_empty(), "after traffic:\n{}", wrong.join("\n"));

    for one in &left {
        let status = one.gateway.status();
        let found = (&status["Nat"]["Mapping"], &status["Nat"]["Filtering"], &status["Nat"]["UdpBlocked"]);
        let wanted = serde_json::to_value(one.kind.nat_type()).expect("JSON");
        let expected = (&wanted["Mapping"], &wanted["Filtering"], &wanted["UdpBlocked"]);
        assert_eq!(found, expected, "{:?}: {}", one.kind, status["NatType"]);
    }
    for one in &left {
        for other in &right {
            check_reason(one, other);
        }
    }
}

/// The pairs whose path differs from the oracle's.
fn wrong_paths(from: &[End], to: &[End]) -> Vec<String> {
    let mut wrong = Vec::new();
    for one in from {
        let status = one.gateway.status();
        for other in to {
            let expected = if one.kind.direct_works(other.kind) { "direct" } else { "relay" };
            let peers = status["Peers"].as_array().expect("peers");
            let peer = peers.iter().find(|peer| peer["Name"] == other.gateway.name).cloned().unwrap_or_default();
            if peer["Path"] != expected {
                let (path, reason) = (&peer["Path"], &peer["Reason"]);
                wrong.push(format!("{:?} to {:?}: {path} ({reason}), not {expected}", one.kind, other.kind));
            }
        }
    }
    wrong
}

/// A relayed peer has a reason, in words for whoever could change it.
fn check_reason(one: &End, other: &End) {
    if one.kind.direct_works(other.kind) {
        return;
    }
    let blocked = |kind| matches!(kind, Kind::UdpBlocked | Kind::ProxyOnly);
    let words = match (one.kind, other.kind) {
        (here, _) if blocked(here) => "UDP is blocked here",
        (_, there) if blocked(there) => "UDP is blocked at the peer",
        (Kind::Symmetric, Kind::Symmetric) => "both NATs",
        (Kind::Symmetric, _) => "the NAT here uses a different port for every destination",
        _ => "the peer's NAT uses a different port for every destination",
    };
    let mut peer = Value::Null;
    eventually(PATIENCE, &format!("{:?} to {:?} says {words:?}", one.kind, other.kind), || {
        peer = one.gateway.peer(&other.gateway.name);
        peer["Reason"].as_str().is_some_and(|reason| reason.contains(words))
    });
    let relay = &peer["Relay"];
    assert!(relay.is_string(), "{relay}");
}
