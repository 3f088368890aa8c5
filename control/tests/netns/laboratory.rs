//! Whether the instruments measure: two implementations known to be right pass, and a missing tunnel is noticed.

use crate::support::*;

#[test]
fn wireguard_go_and_boringtun_pass_every_check() {
    if !ready(&["wireguard-go", "boringtun-cli", "tcpdump", "iperf3"]) {
        return;
    }
    let topology = Topology::new(Options::switch());
    let capture = Capture::of_wan(&topology);
    let (a, b) = joined(&topology, Kind::WireguardGo, Kind::Boringtun, Outer::V4);
    for inner in 0..2 {
        let server = topology.b.hosts()[inner];
        let echo = UdpEcho::start(&topology.b.host, server);
        datagram_sizes(&topology.a.host, echo.address, [0, 1, 16, 1300, 1392, 1472, 4000]);
        tcp_both_ways(&topology.a.host, &topology.b.host, server, 1 << 20);
    }
    let server = topology.b.host4();
    let rate = iperf3(&topology.a.host, &topology.b.host, server, &["-t", "1"], topology.scratch());
    assert!(rate > 1e6, "{rate} bit/s");
    assert!(a.latest_handshake(&b.public_key()) > 0);
    let frames = capture.stop();
    assert!(count_messages(&frames, TRANSPORT_DATA) > 100);
    assert!(count_messages(&frames, HANDSHAKE_INITIATION) >= 1);
    assert_no_clear_text(&frames, &topology);
}

/// The control for every "no clear text" test in this suite: without gateways, clear text is there and is found.
#[test]
fn a_missing_tunnel_is_clear_text_on_the_wan() {
    if !ready(&["tcpdump"]) {
        return;
    }
    let topology = Topology::new(Options::switch());
    topology.b.gateway.ip("route add 10.101.0.0/24 via 192.0.2.1\n");
    topology.a.gateway.ip("route add 10.102.0.0/24 via 192.0.2.2\n");
    let echo = UdpEcho::start(&topology.b.host, topology.b.host4());
    let capture = Capture::of_wan(&topology);
    assert_eq!(udp_echoes(&topology.a.host, echo.address, 3), 3);
    let leaks = capture.stop().iter().filter(|frame| frame.is_clear_text(&topology)).count();
    assert_eq!(leaks, 6);
}

/// A namespace and its processes are removed after a panic, too.
#[test]
fn a_panic_leaves_nothing() {
    if !ready(&[]) {
        return;
    }
    let name = std::sync::Mutex::new(String::new());
    let outcome = std::panic::catch_unwind(|| {
        let namespace = Namespace::new("panic");
        *name.lock().expect("not poisoned") = namespace.name().to_owned();
        let log = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(namespace.name());
        let _sleeper = namespace.spawn(&["sleep", "1000"], &log);
        std::fs::remove_file(&log).expect("log");
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(outcome.is_err());
    let path = std::path::Path::new("/run/netns").join(name.into_inner().expect("not poisoned"));
    assert!(!path.exists(), "{}", path.display());
}
