//! Packets that were merged, or not cut yet, before generic XDP sees them. What a ring cannot take goes to the kernel
//! and is counted, so that TCP flows where pings do; datagrams that XDP could not tell apart come one by one.
//!
//! A's LAN is `lan0`, a veth whose other end is the port of a bridge. It takes no native program, as it has fewer
//! receive queues than its other end sends by.

use crate::support::*;
use penstock_dataplane::ports::set_option;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

/// Bytes of each transfer.
const BYTES: usize = 1_000_000;

/// Two gateways of which A's LAN takes generic XDP only. With `merging` it is the bridge's port to the host that
/// merges.
fn generic(kind: Kind, merging: bool) -> (Topology, Gateway, Gateway) {
    let topology = Topology::new(Options::default());
    let gateway = &topology.a.gateway;
    bridge_lan(&topology.a, "");
    gateway.run(&["ethtool", "-L", "lan0b", "tx", "2"]);
    if merging {
        topology.a.host.run(&["ethtool", "-K", "eth0", "tso", "off", "gso", "off"]);
        gateway.run(&["ethtool", "-K", "port0", "gro", "on", "rx-udp-gro-forwarding", "on"]);
    }
    let (a, b) = joined(&topology, kind, Kind::SOCKET, Outer::V4);
    let status = a.status();
    let ports = status["Ports"].as_array().cloned().unwrap_or_default();
    let is_generic = ports.iter().any(|port| port["Interface"] == "lan0" && port["XdpMode"] == "generic");
    assert_eq!(is_generic, by_xdp(kind), "{kind:?}: {}", a.process.log());
    (topology, a, b)
}

fn by_xdp(kind: Kind) -> bool {
    matches!(kind, Kind::Penstock { lan: "xdp", .. })
}

/// Frames that hosts on this machine have not cut, and those that a device below has merged.
#[test]
fn what_was_merged_below_generic_xdp_is_no_loss() {
    if !ready(&["ethtool"]) || !is_penstock() {
        return;
    }
    for (kind, merging) in Kind::MODES.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let (topology, mut a, _b) = generic(kind, merging);
        let merged = || a.status()["Steering"]["Lan"]["merged"].as_u64().unwrap_or_default();
        let (before, near, far) = (merged(), &topology.a, &topology.b);
        for (target, source) in far.hosts().into_iter().zip(near.hosts()) {
            tcp_both_ways(&near.host, &far.host, target, BYTES);
            datagrams_stay_apart(&near.host, &far.host, target);
            datagrams_stay_apart(&far.host, &near.host, source);
        }
        assert_eq!(merged() > before, by_xdp(kind), "{kind:?}, merging: {merging}");
        let cuts = || near.gateway.run(&["ethtool", "-k", "lan0b"]).contains("tx-udp-segmentation: off");
        assert_eq!(cuts(), by_xdp(kind), "{kind:?}");
        assert!(a.terminate().success());
        assert!(!cuts(), "after the end: {}", a.process.log());
    }
}

/// A veth's other end in another namespace cannot be told to cut what it sends. Where the profile demands AF_XDP all
/// the same, `status` says so.
#[test]
fn generic_xdp_is_warned_of_where_datagrams_may_come_uncut() {
    if !ready(&["ethtool"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options { queues: 2, ..Options::default() });
    topology.a.gateway.run(&["ethtool", "-L", "wan0", "rx", "1"]);
    let (mut a, _b) = pair_config(&topology, Kind::Penstock { wan: "xdp", lan: "tun" }, Kind::SOCKET, Outer::V4);
    a.workers = 1;
    let a = Gateway::start(&topology.a, a);
    eventually(PATIENCE, "a warning", || {
        let problems = a.status()["Problems"].clone();
        let told = "the other end of wan0 is in another network namespace and may send several datagrams as one";
        let all = problems.as_array().expect("problems");
        all.iter().any(|p| p["Severity"] == "warning" && p["Sentence"].as_str().is_some_and(|text| text.contains(told)))
    });
}

/// Sends many small datagrams at once, and cut by the kernel as late as it can.
fn datagrams_stay_apart(from: &Namespace, to: &Namespace, address: IpAddr) {
    const SIZE: usize = 100;
    let receiver = to.enter(|| UdpSocket::bind((address, 0)).expect("a socket"));
    receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sender = from.enter(|| UdpSocket::bind(any).expect("a socket"));
    sender.connect(receiver.local_addr().expect("bound")).expect("a route");
    set_option(&sender, libc::SOL_UDP, libc::UDP_SEGMENT, &(SIZE as i32).to_ne_bytes()).expect("since Linux 4.18");
    (0..10).for_each(|_| assert_eq!(sender.send(&[7; 10 * SIZE]).expect("sent"), 10 * SIZE));
    let mut buffer = [0; 2000];
    for _ in 0..100 {
        assert_eq!(receiver.recv(&mut buffer).expect("a datagram arrives"), SIZE, "{address}");
    }
}
