//! Networks that delay, lose, reorder, duplicate and corrupt. The queueing discipline is in the switch between the
//! gateways, since AF_XDP bypasses that of its own device.

use super::support::*;
use super::{note, ready};

/// The least that TCP carries if it does not stall, in bit/s. The comparison with kernel WireGuard in the same network
/// is only noted: seconds of TCP through loss vary by half from run to run, and with how busy the machine is.
const STALLED: f64 = 100_000.0;

/// Both directions of the WAN treated by netem.
fn disturb(topology: &Topology, netem: &str) {
    for port in ["a0", "b0"] {
        let words = ["tc", "qdisc", "add", "dev", port, "root", "netem"];
        topology.middle().run(&words.into_iter().chain(netem.split(' ')).collect::<Vec<_>>());
    }
}

/// The throughput of one stream there, and of one back.
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

/// TCP there and back, by AF_XDP and by sockets, beside kernel WireGuard on both sides.
fn tcp_goes_on(netem: &str) {
    if !ready(&["iperf3", "tc"]) {
        return;
    }
    let kernel = kernel_throughput(netem);
    note(&format!("netem {netem}: kernel WireGuard {:.1?} Mbit/s", kernel.map(|rate| rate / 1e6)));
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::switch());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        disturb(&topology, netem);
        let rates = throughput(&topology);
        // Whatever the network does to packets, the data that arrives is the data that was sent.
        tcp_both_ways(&topology.a.host, &topology.b.host, topology.b.host6(), 1 << 18);
        let ratios = [rates[0] / kernel[0], rates[1] / kernel[1]];
        note(&format!("netem {netem}: {kind:?} {:.1?} Mbit/s, {ratios:.2?} of it", rates.map(|rate| rate / 1e6)));
        assert!(rates.iter().all(|rate| *rate > STALLED), "{kind:?}: TCP stalls: {rates:?}");
    }
}

#[test]
fn delay() {
    tcp_goes_on("delay 20ms 2ms");
}

#[test]
fn loss() {
    tcp_goes_on("delay 5ms loss 1%");
}

#[test]
fn loss_far_away() {
    tcp_goes_on("delay 20ms loss 1%");
}

#[test]
fn reordering() {
    tcp_goes_on("delay 10ms reorder 25% 50%");
}

#[test]
fn duplication() {
    tcp_goes_on("delay 5ms duplicate 5%");
}

#[test]
fn corruption() {
    tcp_goes_on("delay 5ms corrupt 1%");
}
