//! Real drivers: site A's WAN and LAN are network cards of the machine (layout B of `scripts/lab`), in each mode.

mod driver;

use super::support::*;
use super::{note, ports, ready};
use std::time::Duration;

/// What TCP must carry at least through an emulated card: little, since emulation is slow, and more than the crawl that
/// is left where offloads are spoilt.
const LEAST: f64 = 5e5;

fn carries(kind: Kind) {
    if !ready(&["iperf3"]) {
        return;
    }
    assert!(has_cards(), "this machine has no cards: scripts/lab run KERNEL/CARD");
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, kind, Kind::SOCKET, Outer::V4);
    // One for each queue that the card has.
    a.workers = 0;
    let a = Gateway::start(&topology.a, a);
    let _b = Gateway::start(&topology.b, b);
    note(&format!("{kind:?}: {}", ports(&a.status())));
    await_traffic(&topology);
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
        eventually(Duration::from_secs(20), &format!("traffic after {interface} was down"), || {
            ping(at_a, topology.b.host4(), &["-c", "1"]).all_answered()
        });
    }
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
