//! Networks that delay, lose, reorder, duplicate and corrupt. The queueing discipline stands in the switch between
//! the gateways, since what leaves by AF_XDP passes those of its own device by.

use super::support::*;
use super::{note, ready};

/// Least part of kernel WireGuard's TCP throughput, in the same network, that Penstock must reach. Where the network
/// is the bottleneck both do alike; one second of TCP through loss varies by half from run to run.
const RATIO: f64 = 0.4;

/// Both ways of the WAN treated by netem.
fn disturb(topology: &Topology, netem: &str) {
    for port in ["a0", "b0"] {
        let words = ["tc", "qdisc", "add", "dev", port, "root", "netem"];
        topology.middle().run(&words.into_iter().chain(netem.split(' ')).collect::<Vec<_>>());
    }
}

/// Of one stream there, and of one back.
fn throughput(topology: &Topology) -> [f64; 2] {
    let (from, to) = (&topology.a.host, &topology.b.host);
    [["-t", "6", "-O", "1"].as_slice(), &["-t", "6", "-O", "1", "-R"]]
        .map(|options| iperf3(from, to, topology.b.host4(), options, topology.scratch()))
}

fn kernel_throughput(netem: &str) -> [f64; 2] {
    let topology = Topology::new(Options::switch());
    let (a, b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let _gateways = (KernelWireguard::start(&topology.a, a), KernelWireguard::start(&topology.b, b));
    await_traffic(&topology);
    disturb(&topology, netem);
    throughput(&topology)
}

/// TCP there and back, by AF_XDP and by sockets, compared with kernel WireGuard on both sides.
fn tcp_keeps_up(netem: &str) {
    if !ready(&["iperf3", "tc"]) {
        return;
    }
    let kernel = kernel_throughput(netem);
    note(&format!("netem {netem}: kernel WireGuard {:.1?} Mbit/s", kernel.map(|rate| rate / 1e6)));
    let mut slow = Vec::new();
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::switch());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        disturb(&topology, netem);
        let rates = throughput(&topology);
        // Whatever the network does to packets, what arrives is what was sent.
        tcp_both_ways(&topology.a.host, &topology.b.host, topology.b.host6(), 1 << 18);
        let ratios = [rates[0] / kernel[0], rates[1] / kernel[1]];
        note(&format!("netem {netem}: {kind:?} {:.1?} Mbit/s, {ratios:.2?} of it", rates.map(|rate| rate / 1e6)));
        if ratios.iter().any(|ratio| *ratio < RATIO) {
            slow.push(kind);
        }
    }
    assert!(slow.is_empty(), "less than {RATIO} of kernel WireGuard's throughput: {slow:?}");
}

#[test]
fn delay() {
    tcp_keeps_up("delay 20ms 2ms");
}

#[test]
fn loss() {
    tcp_keeps_up("delay 5ms loss 1%");
}

#[test]
fn reordering() {
    tcp_keeps_up("delay 10ms reorder 25% 50%");
}

#[test]
fn duplication() {
    tcp_keeps_up("delay 5ms duplicate 5%");
}

#[test]
fn corruption() {
    tcp_keeps_up("delay 5ms corrupt 1%");
}
