//! Real drivers: site A's WAN and LAN are network cards of the machine (layout B of `scripts/lab`), in each mode.

mod doctor;
mod driver;

use super::support::*;
use super::{note, ports, ready};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// What TCP must carry at least through an emulated card: little, since emulation is slow, and more than the crawl that
/// is left where offloads are spoilt.
const LEAST: f64 = 5e5;
/// How long traffic may take to begin: a message lost and repeated, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// The same where the gateway finds out first that a card is silent.
const LATE: Duration = Duration::from_secs(60);

fn carries(kind: Kind) {
    if !ready(&["iperf3"]) {
        return;
    }
    assert!(has_cards(), "this machine has no cards: scripts/lab run KERNEL/CARD");
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, kind, Kind::SOCKET, Outer::V4);
    // One for each queue that the card has.
    a.workers = 0;
    let a = match Gateway::try_start_in(&topology.a.gateway, &topology.a.scratch, a) {
        Ok(a) => a,
        Err((_, log)) => return refused(&topology, kind, &log),
    };
    let _b = Gateway::start(&topology.b, b);
    note(&format!("{kind:?}: {}", ports(&a.status())));
    if card().contains('+') {
        copies_for_the_other(&a);
    }
    if a.status()["Ports"].as_array().expect("ports").iter().any(|port| port["ZeroCopy"] == true) {
        // A card by which nothing comes for so long is started anew.
        pause(7_000);
    }
    begins(&topology, &a, &topology.b.hosts(), "the start");
    let (at_a, at_b) = (&topology.a.host, &topology.b.host);
    for (from, to, server) in [(at_a, at_b, topology.b.host4()), (at_b, at_a, topology.a.host6())] {
        let echo = UdpEcho::start(to, server);
        datagram_sizes(from, echo.address, [0, 1, 15, 16, 17, 64, 500, 1391, 1392, 1393, 1472, 1473, 4000]);
        tcp_both_ways(from, to, server, 1 << 20);
    }
    for options in [["-t", "3"].as_slice(), &["-t", "3", "-R"], &["-t", "3", "-P", "4"]] {
        let rate = iperf3(at_a, at_b, topology.b.host4(), options, topology.scratch());
        note(&format!("{kind:?}: iperf3 {options:?}: {:.1} Mbit/s", rate / 1e6));
        assert!(rate > LEAST, "{options:?}: {rate:.0} bit/s; drops: {}", a.status()["Drops"]);
    }
    note(&format!("{kind:?}, after that: {}", ports(&a.status())));
    // The link goes and comes back.
    for interface in ["wan0", "lan0"] {
        topology.a.gateway.ip(&format!("link set {interface} down\n"));
        pause(500);
        topology.a.gateway.ip(&format!("link set {interface} up\n"));
        if interface == "wan0" {
            topology.a.gateway.ip("route replace default via 192.0.2.2\n");
        }
        // An interface that goes down loses its IPv6 addresses.
        begins(&topology, &a, &[topology.b.host4()], &format!("{interface} was down"));
    }
}

/// The cards of this machine, as scripts/lab names them.
fn card() -> String {
    std::env::var("PENSTOCK_LAB_CARD").unwrap_or_default()
}

/// The gateway has not started, since AF_XDP is demanded of a card whose driver merges what it receives and cannot be
/// told not to: it names the offload.
fn refused(topology: &Topology, kind: Kind, log: &str) {
    let sentence = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    note(&format!("{kind:?}: refused: {sentence}"));
    assert!(card() == "virtio-merging" && format!("{kind:?}").contains("xdp"), "{log}");
    let offloads = topology.a.gateway.run(&["ethtool", "-k", "wan0"]);
    assert!(offloads.lines().any(|line| line.trim() == "rx-gro-hw: on [fixed]"), "{offloads}");
    for words in ["the driver of ", "merges received packets (rx-gro-hw)", "use sockets"] {
        assert!(sentence.contains(words), "{log}");
    }
}

/// Two different cards share their memory, and so its use: where AF_XDP drives both and only one of the drivers can do
/// without copies, all frames are copied, and it is told which driver needs that.
fn copies_for_the_other(a: &Gateway) {
    let status = a.status();
    let ports = status["Ports"].as_array().expect("ports").iter().filter(|port| port["Kind"] == "xdp");
    let told = |port: &Value| port["Reason"].as_str().is_some_and(|reason| reason.contains("all frames are copied"));
    let ports: Vec<&Value> = ports.collect();
    let sides: BTreeSet<&str> = ports.iter().filter_map(|port| port["Interface"].as_str()).collect();
    let zero_copy = ports.iter().any(|port| port["ZeroCopy"] == true);
    note(&format!("AF_XDP on {sides:?}: {}", ports.first().map_or(&Value::Null, |port| &port["Reason"])));
    assert_eq!(sides.len() == 2, !zero_copy && ports.iter().all(|port| told(port)), "{ports:#?}");
}

/// Traffic begins soon, or the gateway has noticed why not, has mended it, and says so.
fn begins(topology: &Topology, a: &Gateway, targets: &[IpAddr], after: &str) {
    let begun = Instant::now();
    for target in targets {
        eventually(LATE, &format!("{target} answers after {after}"), || {
            ping(&topology.a.host, *target, &["-c", "1"]).all_answered()
        });
    }
    let (took, problems) = (begun.elapsed(), a.status()["Problems"].clone());
    let restarts = a.process.log().matches("its card is started anew").count();
    note(&format!("traffic {took:.1?} after {after}; cards started anew: {restarts}; problems: {problems}"));
    let told = |problem: &Value| problem["Sentence"].as_str().is_some_and(|said| said.contains("fell back to"));
    assert!(took < SOON || problems.as_array().is_some_and(|problems| problems.iter().any(told)), "{took:?}");
}

#[test]
fn auto() {
    carries(Kind::Penstock { wan: "auto", lan: "auto" });
}

#[test]
fn xdp_xdp() {
    carries(Kind::XDP);
}

#[test]
fn xdp_tun() {
    carries(Kind::Penstock { wan: "xdp", lan: "tun" });
}

#[test]
fn udp_xdp() {
    carries(Kind::Penstock { wan: "udp", lan: "xdp" });
}

#[test]
fn udp_tun() {
    carries(Kind::SOCKET);
}
