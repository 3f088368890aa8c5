//! Real drivers: site A's WAN and LAN are network cards of the machine (layout B of `scripts/lab`), in each mode.

mod doctor;
mod driver;
mod traffic_control;

use super::support::*;
use super::{note, ports, ready};
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The least that TCP must carry through an emulated card: little, since emulation is slow, and more than the crawl
/// that remains with spoilt offloads.
const LEAST: f64 = 5e5;
/// How long traffic may take to begin: one lost and repeated message, on a slow machine.
const SOON: Duration = Duration::from_secs(20);
/// The same if the gateway first finds out that a card is silent.
const LATE: Duration = Duration::from_secs(60);
/// Frames that the programs see at least of what is sent below: 4 MiB by TCP alone, there and back.
const FRAMES: u64 = 1_000;

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
    let sides = sides(kind);
    are_bound(&topology, &a, sides);
    if sides.iter().flatten().any(|driven| driven.zero_copy) {
        // The gateway restarts a card that receives nothing for this long.
        pause(7_000);
    }
    begins(&topology, &a, &topology.b.hosts(), "the start");
    let before = a.status();
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
    are_bound(&topology, &a, sides);
    carried(&topology, &a, sides, &before);
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

/// The gateway has not started, since AF_XDP is required on a card whose driver merges received packets and cannot be
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

/// How AF_XDP drives a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Driven {
    mode: &'static str,
    zero_copy: bool,
}

/// What the driver of a card can do with this kernel; `None` if it merges received packets for good.
fn driven(card: &str) -> Option<Driven> {
    let linux = linux();
    let (mode, zero_copy) = match card {
        "virtio-net-pci" => ("native", false),
        "virtio-zero-copy" => ("native", linux >= [6, 13]),
        "igb" => ("native", linux >= [6, 14]),
        "vmxnet3" => (if linux >= [6, 6] { "native" } else { "generic" }, false),
        "e1000e" => ("generic", false),
        "virtio-merging" => return None,
        other => panic!("what can {other} do?"),
    };
    Some(Driven { mode, zero_copy })
}

/// How WAN and LAN can be driven; `None` where sockets are to be used. `auto` takes no generic XDP.
fn sides(kind: Kind) -> [Option<Driven>; 2] {
    let Kind::Penstock { wan, lan } = kind else { panic!("{kind:?} has no modes") };
    let card = card();
    let (first, second) = card.split_once('+').unwrap_or((card.as_str(), card.as_str()));
    [(wan, first), (lan, second)].map(|(mode, card)| match mode {
        "xdp" => Some(driven(card).expect("else it is refused")),
        "auto" => driven(card).filter(|driven| driven.mode == "native"),
        _ => None,
    })
}

/// Each side is in the best mode that its driver supports, with a socket on each queue that both receives and sends.
/// The two share their memory, and so its mode: if one of the drivers has no zero-copy, all frames are copied, and the
/// status says so.
fn are_bound(topology: &Topology, a: &Gateway, sides: [Option<Driven>; 2]) {
    let status = a.status();
    let without_copies = || sides.iter().flatten().map(|driven| driven.zero_copy);
    let (zero_copy, told) = (without_copies().all(|yes| yes), without_copies().any(|yes| yes));
    for (interface, driven) in ["wan0", "lan0"].into_iter().zip(sides) {
        let ports = xdp_ports(&status, interface);
        let Some(driven) = driven else {
            assert!(ports.is_empty(), "{interface}: {ports:#?}");
            continue;
        };
        let [receive, send] = doctor::queues_by_direction(&topology.a.gateway, interface);
        assert_eq!(ports.len(), receive.min(send) as usize, "{interface}: {ports:#?}\n{}", a.process.log());
        for port in ports {
            let seen = (port["XdpMode"].as_str(), port["ZeroCopy"].as_bool());
            assert_eq!(seen, (Some(driven.mode), Some(zero_copy)), "{interface}: {port:#}\n{}", a.process.log());
            let reason = port["Reason"].as_str().unwrap_or_default();
            assert_eq!(reason.contains("all frames are copied"), told && !zero_copy, "{interface}: {reason}");
        }
    }
}

fn xdp_ports<'a>(status: &'a Value, interface: &str) -> Vec<&'a Value> {
    let ports = status["Ports"].as_array().expect("ports").iter();
    ports.filter(|port| port["Interface"] == interface && port["Kind"] == "xdp").collect()
}

/// Where AF_XDP drives a side, everything that went through the tunnel since `before` went by it. Only where a card
/// receives on more queues than it sends on, as virtio does when it has queues to spare, a few frames came by queues
/// without a socket and went to the kernel.
fn carried(topology: &Topology, a: &Gateway, sides: [Option<Driven>; 2], before: &Value) {
    // The gateway looks once a second, and may first have to start a session that shows whether sending works.
    for (interface, driven) in ["wan0", "lan0"].into_iter().zip(sides) {
        let directions = if interface == "wan0" { &["Receiving", "Sending"][..] } else { &["Receiving"] };
        for direction in directions.iter().filter(|_| driven.is_some()) {
            eventually(LATE, &format!("{interface}: {direction} is proven"), || {
                ping(&topology.a.host, topology.b.host4(), &["-c", "1"]);
                xdp_ports(&a.status(), interface).iter().any(|port| port[*direction]["State"] == "proven")
            });
        }
    }
    let after = a.status();
    let redirects = [&["redirect"][..], &["redirect_over_v4", "redirect_over_v6"]];
    for (((side, interface), driven), redirects) in
        [("Wan", "wan0"), ("Lan", "lan0")].into_iter().zip(sides).zip(redirects)
    {
        let grown = |verdict: &&str| {
            let count = |status: &Value| status["Steering"][side][verdict].as_u64().unwrap_or(0);
            count(&after).saturating_sub(count(before))
        };
        let redirected: u64 = redirects.iter().map(&grown).sum();
        let left = ["no_socket", "no_headroom"].map(|verdict| grown(&verdict));
        let [receive, send] = doctor::queues_by_direction(&topology.a.gateway, interface);
        note(&format!(
            "{side}, queues that receive {receive}, that send {send}: {redirected} frames redirected; without a socket, \
             without headroom: {left:?}"
        ));
        assert_eq!(redirected >= FRAMES, driven.is_some(), "{side}: {driven:?}: {redirected}; {}", after["Steering"]);
        let few = if receive > send { redirected / 20 } else { 0 };
        assert!(left[0] <= few && left[1] == 0, "{side}: {}", after["Steering"]);
    }
}

/// Traffic begins soon, or the gateway has noticed why not, has fixed it, and says so.
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
