//! AF_XDP ports prove that they carry their packets, and are replaced when they do not.

use crate::support::*;
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Three seconds of traffic to notice it, and some time for a busy machine.
const SECONDS: Duration = Duration::from_secs(15);
/// A peer has to be silent for as long as WireGuard allows, and then has to answer a handshake.
const SILENCE: Duration = Duration::from_secs(60);

/// The first AF_XDP port of an interface; null if it has none.
fn port(gateway: &Gateway, interface: &str) -> Value {
    let status = gateway.status();
    let ports = status["Ports"].as_array().cloned().unwrap_or_default();
    ports.into_iter().find(|port| port["Interface"] == interface && port["Kind"] == "xdp").unwrap_or_default()
}

/// What is wrong with an interface; empty if nothing is.
fn problem(gateway: &Gateway, interface: &str) -> String {
    let status = gateway.status();
    let problems = status["Problems"].as_array().cloned().unwrap_or_default();
    let of = problems.iter().find(|problem| problem["Subject"] == interface);
    of.and_then(|problem| problem["Sentence"].as_str()).unwrap_or_default().to_owned()
}

/// Pings for at most this long, five times a second, until one is answered after `ready` holds.
fn answered_within(limit: Duration, from: &Namespace, to: IpAddr, what: &str, mut ready: impl FnMut() -> bool) {
    eventually(limit, what, || {
        let pinged = ping(from, to, &["-c", "5", "-i", "0.2"]);
        ready() && pinged.received > 0
    });
}

#[test]
fn what_works_is_proven() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    // The first packets would leave through the kernel's socket, which resolves the neighbour.
    ping(&topology.a.gateway, topology.b.wan4.into(), &["-c", "1"]);
    let (a, b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let state = |interface: &str, direction: &str| port(&a, interface)[direction]["State"].clone();
    eventually(SECONDS, "all that can be proven is", || {
        ping(&topology.a.host, topology.b.host4(), &["-c", "1"]);
        state("wan0", "Receiving") == "proven"
            && state("wan0", "Sending") == "proven"
            && state("lan0", "Receiving") == "proven"
    });
    let lan = port(&a, "lan0");
    assert_eq!(lan["Sending"]["State"], "unproven", "{lan:#}");
    assert!(lan["Receiving"]["ProvenSecondsAgo"].as_u64().is_some_and(|seconds| seconds < 60), "{lan:#}");
    let text = a.command(&["status"]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("RECEIVES") && text.contains("  proven "), "{text}");
    if long() {
        // It responded to A's handshake, and initiates one itself to prove that it can send.
        eventually(SILENCE, "the other site's sending is proven", || {
            ping(&topology.a.host, topology.b.host4(), &["-c", "1"]);
            port(&b, "wan0")["Sending"]["State"] == "proven"
        });
    }
}

/// First native XDP swallows frames, then generic XDP does; sockets remain. A link event is a reason to try again.
#[test]
fn a_lan_that_swallows_what_it_receives_gives_way_aloud() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    // Generic XDP needs the veth's other end within reach.
    bridge_lan(&topology.a, "");
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let (gateway, host, target) = (&topology.a.gateway, &topology.a.host, topology.b.host4());
    let swallower = Swallower::new();
    assert_eq!(port(&a, "lan0")["XdpMode"], "native");

    swallower.take_over(gateway, "lan0");
    assert_eq!(ping(host, target, &["-c", "3", "-i", "0.2"]).received, 0);
    answered_within(SECONDS, host, target, "generic XDP takes its place", || port(&a, "lan0")["XdpMode"] == "generic");
    let sentence = problem(&a, "lan0");
    assert!(sentence.contains("redirected to queue 0's socket none arrived"), "{sentence}");
    assert!(sentence.contains("fell back to generic XDP"), "{sentence}");
    assert!(a.process.log().contains("lan0: fell back to generic XDP"), "{}", a.process.log());

    swallower.take_over(gateway, "lan0");
    answered_within(SECONDS, host, target, "sockets take its place", || port(&a, "lan0").is_null());
    assert!(problem(&a, "lan0").contains("fell back to sockets"), "{}", problem(&a, "lan0"));
    assert_eq!(a.status()["LanMode"]["Mode"], "tun");

    gateway.ip("link set lan0 down\n");
    eventually(PATIENCE, "the gateway sees it", || problem(&a, "lan0").contains("is down"));
    gateway.ip("link set lan0 up\n");
    answered_within(SECONDS * 2, host, target, "native XDP is tried again", || port(&a, "lan0")["XdpMode"] == "native");
    assert_eq!(problem(&a, "lan0"), "");
}

#[test]
fn a_wan_that_swallows_what_it_receives_gives_way_within_seconds() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let swallower = Swallower::new();
    swallower.take_over(&topology.a.gateway, "wan0");
    let begun = Instant::now();
    answered_within(SECONDS, &topology.a.host, topology.b.host4(), "sockets take its place", || {
        port(&a, "wan0").is_null()
    });
    assert!(problem(&a, "wan0").contains("none arrived"), "{} after {:?}", problem(&a, "wan0"), begun.elapsed());
}

/// A router that damages all data packets from the peer.
#[test]
fn a_wan_by_which_all_comes_damaged_gives_way_aloud() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::router());
    topology.middle().nft(
        "table ip faulty { chain forward { type filter hook forward priority 0; \
         iifname \"b0\" udp sport 47100 @th,64,32 0x04000000 @th,192,32 set 0x55555555; }; }",
    );
    let (a, _b) = pair(&topology, Kind::Penstock { wan: "xdp", lan: "tun" }, Kind::SOCKET, Outer::V4);
    eventually(SECONDS * 2, "sockets take its place", || {
        ping(&topology.a.host, topology.b.host4(), &["-c", "5", "-i", "0.2"]);
        port(&a, "wan0").is_null()
    });
    let log = a.process.log();
    assert!(log.contains("wan0: fell back to sockets"), "{log}");
    assert!(problem(&a, "wan0").contains("were damaged"), "{}", problem(&a, "wan0"));
}

#[test]
fn a_wan_whose_data_is_not_answered_gives_way_to_the_kernel_s_socket() {
    data_is_not_answered(false);
}

#[test]
fn the_same_when_it_begins_later() {
    if long() {
        data_is_not_answered(true);
    }
}

/// A router drops what the ring sends, which has no UDP checksum, and passes what the kernel's socket sends.
fn data_is_not_answered(later: bool) {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::router());
    let break_down = || {
        topology.middle().nft(
            "table ip faulty { chain forward { type filter hook forward priority 0; \
             iifname \"a0\" udp checksum 0 counter drop; }; }",
        );
    };
    if !later {
        break_down();
    }
    ping(&topology.a.gateway, topology.b.wan4.into(), &["-c", "1"]);
    let (a, _b) = pair(&topology, Kind::Penstock { wan: "xdp", lan: "tun" }, Kind::SOCKET, Outer::V4);
    assert_eq!(port(&a, "wan0")["Kind"], "xdp");
    if later {
        await_traffic(&topology);
        eventually(SECONDS, "sending is proven", || port(&a, "wan0")["Sending"]["State"] == "proven");
        break_down();
    }
    answered_within(SILENCE, &topology.a.host, topology.b.host4(), "sockets take its place", || {
        port(&a, "wan0").is_null()
    });
    let sentence = problem(&a, "wan0");
    assert!(sentence.contains("were not answered, and peer-0 answers handshakes"), "{sentence}");
    assert!(sentence.contains("fell back to sockets"), "{sentence}");
}

/// Packets that the rings cannot take go through the kernel. If that is most of the traffic, AF_XDP is of no use:
/// `auto` gives it up, and where the profile requires it `status` says so.
#[test]
fn xdp_that_carries_little_is_told() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, mut b) = pair_config(&topology, Kind::XDP, Kind::Penstock { wan: "udp", lan: "auto" }, Outer::V4);
    // Otherwise `auto` does not use AF_XDP on a veth.
    b.environment.push(("PENSTOCK_TEST_CARD", "lan0".to_owned()));
    let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(&topology);
    let handshakes = || [&a, &b].map(|gateway| gateway.status()["Peers"][0]["LastHandshake"].clone());
    let (before, is_card) = (handshakes(), cfg!(debug_assertions));
    if is_card {
        assert_eq!(b.status()["LanMode"]["Mode"], "xdp", "{}", b.process.log());
    }
    let (host, target) = (&topology.a.host, topology.b.host4().to_string());
    let flood = |size| {
        host.spawn(
            &["ping", "-q", "-i", "0.003", "-M", "dont", "-s", size, &target],
            &topology.scratch().join("ping.log"),
        )
    };
    // Larger than the tunnel's MTU, and free to be fragmented, which is the kernel's work.
    let large = flood("1460");
    eventually(2 * SECONDS, "it is told", || problem(&a, "lan0").contains("AF_XDP carries little on lan0"));
    let sentence = problem(&a, "lan0");
    assert!(sentence.contains("went to the kernel") && sentence.contains("needs_fragmenting"), "{sentence}");
    let status = a.status();
    assert_eq!((&status["Health"], &status["LanMode"]["Mode"]), (&"healthy".into(), &"xdp".into()), "{status:#}");
    if is_card {
        let mode = || b.status()["LanMode"].clone();
        eventually(SECONDS, "auto takes sockets", || mode()["Mode"] == "tun");
        let reason = mode()["Reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains("went to the kernel") && reason.contains("needs_fragmenting"), "{reason}");
        answered_within(PATIENCE, host, topology.b.host4(), "the sessions go on", || true);
        assert_eq!(handshakes(), before, "{}", b.process.log());
    }
    drop(large);
    let _small = flood("100");
    eventually(2 * SECONDS, "it is over", || problem(&a, "lan0").is_empty());
}
