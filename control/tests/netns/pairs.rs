//! Two Penstocks: every pair of WAN and LAN modes, both IP versions inside and outside, every packet size.

use crate::support::*;
use std::net::IpAddr;
use std::time::Duration;

/// Everything up to 100 bytes, everything around the MTU, and some sizes in between.
fn sizes() -> impl Iterator<Item = usize> {
    (0..=100).chain((101..1340).step_by(23)).chain(1340..=1472)
}

/// Datagrams that the host fragments.
const BEYOND: [usize; 5] = [1473, 2000, 4000, 9000, 65_000];

/// Carries traffic of all kinds between the sites of one pair of modes, over IPv4 and over IPv6.
fn traffic_passes(kind_a: Kind, kind_b: Kind) {
    if !ready(&[]) {
        return;
    }
    for outer in [Outer::V4, Outer::V6] {
        let topology = Topology::new(Options::default());
        let _gateways = joined(&topology, kind_a, kind_b, outer);
        for inner in 0..2 {
            let (at_a, at_b) = (topology.a.hosts()[inner], topology.b.hosts()[inner]);
            too_big_is_answered(&topology.a.host, at_b);
            too_big_is_answered(&topology.b.host, at_a);

            let echo = UdpEcho::start(&topology.b.host, at_b);
            datagram_sizes(&topology.a.host, echo.address, sizes());
            datagram_sizes(&topology.a.host, echo.address, BEYOND);
            let echo = UdpEcho::start(&topology.a.host, at_a);
            datagram_sizes(&topology.b.host, echo.address, [0, 1, 16, 17, 1300, 1472, 4000]);

            tcp_both_ways(&topology.a.host, &topology.b.host, at_b, 1 << 21);
            tcp_both_ways(&topology.b.host, &topology.a.host, at_a, 1 << 20);
        }
    }
}

/// A packet of the LAN's MTU that must not be fragmented is answered with the tunnel's MTU; one of that size passes,
/// and one byte more does not.
fn too_big_is_answered(host: &Namespace, target: std::net::IpAddr) {
    let headers = if target.is_ipv4() { 28 } else { 48 };
    let whole = (1500 - headers).to_string();
    let refused = ping(host, target, &["-c", "2", "-i", "0.1", "-M", "do", "-s", &whole]);
    let mtu = refused.reported_mtu().unwrap_or_else(|| panic!("no MTU: {}", refused.text));
    assert!((1280..=1440).contains(&mtu), "an MTU of {mtu}");
    assert_eq!(refused.received, 0);
    let fitting = (mtu - headers).to_string();
    let passed = ping(host, target, &["-c", "3", "-i", "0.1", "-M", "do", "-s", &fitting]);
    assert!(passed.all_answered(), "{}", passed.text);
}

macro_rules! pairs {
    ($($name:ident: $wan_a:literal $lan_a:literal, $wan_b:literal $lan_b:literal;)*) => { $(
        #[test]
        fn $name() {
            traffic_passes(
                Kind::Penstock { wan: $wan_a, lan: $lan_a },
                Kind::Penstock { wan: $wan_b, lan: $lan_b },
            );
        }
    )* };
}

pairs! {
    xdp_xdp_with_xdp_xdp: "xdp" "xdp", "xdp" "xdp";
    xdp_xdp_with_xdp_tun: "xdp" "xdp", "xdp" "tun";
    xdp_xdp_with_udp_xdp: "xdp" "xdp", "udp" "xdp";
    xdp_xdp_with_udp_tun: "xdp" "xdp", "udp" "tun";
    xdp_tun_with_xdp_tun: "xdp" "tun", "xdp" "tun";
    xdp_tun_with_udp_xdp: "xdp" "tun", "udp" "xdp";
    xdp_tun_with_udp_tun: "xdp" "tun", "udp" "tun";
    udp_xdp_with_udp_xdp: "udp" "xdp", "udp" "xdp";
    udp_xdp_with_udp_tun: "udp" "xdp", "udp" "tun";
    udp_tun_with_udp_tun: "udp" "tun", "udp" "tun";
    auto_auto_with_auto_auto: "auto" "auto", "auto" "auto";
}

#[test]
fn tcp_streams_flow_both_ways_in_each_mode() {
    if !ready(&["iperf3"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        for server in topology.b.hosts() {
            for options in [["-t", "1"].as_slice(), &["-t", "1", "-R"]] {
                let (from, to) = (&topology.a.host, &topology.b.host);
                let rate = iperf3(from, to, server, options, topology.scratch());
                assert!(rate > 10e6, "{kind:?} {server} {options:?}: {rate:.0} bit/s");
            }
        }
    }
}

#[test]
fn two_queues_and_two_workers_in_each_mode() {
    if !ready(&["iperf3"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options { queues: 2, ..Options::default() });
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        for server in topology.b.hosts() {
            let echo = UdpEcho::start(&topology.b.host, server);
            // One flow each: source ports spread them over the queues.
            for _ in 0..16 {
                datagram_sizes(&topology.a.host, echo.address, [0, 64, 1200]);
            }
            for options in [["-t", "1", "-P", "4"].as_slice(), &["-t", "1", "-P", "4", "-R"]] {
                let (from, to) = (&topology.a.host, &topology.b.host);
                let rate = iperf3(from, to, server, options, topology.scratch());
                assert!(rate > 10e6, "{kind:?} {server} {options:?}: {rate:.0} bit/s");
            }
            tcp_both_ways(&topology.a.host, &topology.b.host, server, 1 << 21);
        }
        // No working port was declared failing.
        for gateway in [a, b].iter().filter(|_| is_penstock()) {
            assert_eq!(gateway.status()["Health"], "healthy", "{kind:?}: {:#}", gateway.status()["Problems"]);
            assert!(!gateway.process.log().contains("fell back to"), "{}", gateway.process.log());
        }
    }
}

/// The path is host, gateway, gateway, host: each gateway decrements the hop limit and reports when it is used up.
#[test]
fn hop_limits_are_counted_and_answered() {
    if !ready(&[]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        for target in topology.b.hosts() {
            let mut reporters = Vec::new();
            for hops in ["1", "2"] {
                let expired = ping(&topology.a.host, target, &["-c", "1", "-t", hops]);
                let reporter = expired.reporter();
                assert!(reporter.is_some(), "{kind:?} {hops} hops to {target}: {}", expired.text);
                assert_eq!(expired.received, 0);
                reporters.push(reporter);
            }
            assert_ne!(reporters[0], reporters[1], "{kind:?}: one gateway answered for both");
            let arrived = ping(&topology.a.host, target, &["-c", "1", "-t", "3"]);
            assert!(arrived.all_answered(), "{kind:?}: {}", arrived.text);
        }
    }
}

/// A router fragments IPv4 packets where that is allowed.
#[test]
fn what_may_be_split_passes_whole() {
    if !ready(&[]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        let options = ["-c", "3", "-i", "0.1", "-M", "dont", "-s", "1472"];
        let split = ping(&topology.a.host, topology.b.host4(), &options);
        assert!(split.all_answered(), "{kind:?}: {}", split.text);
    }
}

/// The gateways themselves can talk through the tunnel, whatever the LAN's mode.
#[test]
fn the_gateways_own_traffic_passes() {
    if !ready(&[]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        for (from, target) in [
            (&topology.a.gateway, topology.b.virtual_address()),
            (&topology.a.gateway, topology.b.host4()),
            (&topology.b.host, topology.a.virtual_address()),
            (&topology.a.host, std::net::IpAddr::from([10, 102, 0, 1])),
        ] {
            let answered = ping(from, target, &["-c", "2", "-i", "0.1"]);
            assert!(answered.all_answered(), "{kind:?} to {target}: {}", answered.text);
        }
    }
}

#[test]
fn status_tells_the_modes_the_peers_and_the_drops() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let Kind::Penstock { wan, lan } = kind else { unreachable!() };
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        let status = a.status();
        assert_eq!(status["LocalPort"], PORT);
        let port = |interface: &str| {
            status["Ports"]
                .as_array()
                .and_then(|ports| ports.iter().find(|port| port["Interface"] == interface))
                .unwrap_or_else(|| panic!("no port {interface}: {status:#}"))
        };
        assert_eq!(port("wan0")["Kind"], wan, "{status:#}");
        if wan == "xdp" {
            assert_eq!(port("wan0")["XdpMode"], "native", "{status:#}");
            assert_eq!(port("wan0")["ZeroCopy"], false, "{status:#}");
        }
        if lan == "xdp" {
            assert_eq!(port("lan0")["Kind"], lan, "{status:#}");
        }
        let peer = &status["Peers"][0];
        assert_eq!(peer["PublicKey"], b.public_key());
        assert_eq!(peer["Path"], "direct", "{status:#}");
        assert_eq!(peer["Endpoint"], topology.b.endpoint(Outer::V4).to_string());
        assert!(peer["RxBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{status:#}");
        assert!(peer["TxBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{status:#}");
        assert!(status["Drops"].is_object(), "{status:#}");
    }
}

/// A's port is different at each start; B, which only answers, learns it every time.
#[test]
fn a_random_port_is_another_at_each_start() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        a.port = 0;
        b.peers[0].endpoint = None;
        let b = Gateway::start(&topology.b, b);
        let mut a = Gateway::start(&topology.a, a);
        let mut ports = std::collections::BTreeSet::new();
        for start in 0..3 {
            if start > 0 {
                a.restart();
            }
            await_traffic(&topology);
            let port = a.status()["LocalPort"].as_u64().expect("a port");
            let learnt = b.status()["Peers"][0]["Endpoint"].as_str().map(str::to_owned);
            assert!(learnt.is_some_and(|e| e.ends_with(&format!(":{port}"))), "{kind:?}: {port}, {:#}", b.status());
            ports.insert(port);
            a.terminate();
        }
        assert!(ports.len() > 1 && !ports.contains(&0), "{kind:?}: always {ports:?}");
    }
}

/// Workers sleep while there is nothing to do, and control wakes up rarely.
#[test]
fn an_idle_gateway_uses_less_than_two_percent_of_a_core() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    const WATCHED: Duration = Duration::from_secs(3);
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (a, _b) = joined(&topology, kind, kind, Outer::V4);
        // The last answers, and work that follows a start.
        std::thread::sleep(Duration::from_secs(1));
        let before = a.process.cpu_time();
        std::thread::sleep(WATCHED);
        let used = a.process.cpu_time() - before;
        assert!(used < WATCHED / 50, "{kind:?} used {used:?} of {WATCHED:?}");
    }
}

/// Hosts have a tunnel of their own through ours, and leave the checksums inside it to a device.
#[test]
fn tunnels_of_hosts_carry_tcp_in_each_mode() {
    if !ready(&[]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _gateways = joined(&topology, kind, kind, Outer::V4);
        let sites = [&topology.a, &topology.b];
        for (n, site) in sites.into_iter().enumerate() {
            let (own, far) = (site.host4(), sites[1 - n].host4());
            // The port that Linux chooses by itself, and the RFC's.
            for (network, port) in [8472, 4789].into_iter().enumerate() {
                site.host.ip(&format!(
                    "link add vx{network} type vxlan id 7 remote {far} local {own} dstport {port}\n\
                     link set vx{network} mtu 1300 up\n\
                     addr add 172.30.{network}.{}/24 dev vx{network}\n",
                    n + 1
                ));
            }
        }
        for network in 0..2 {
            let server = IpAddr::from([172, 30, network, 2]);
            tcp_both_ways(&topology.a.host, &topology.b.host, server, 1 << 18);
        }
    }
}
