//! Machines with more than one gateway, and machines with very many routes.

use crate::support::*;
use penstock::ground::DEFAULT_MARK;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How many routes the router with many routes has: `PENSTOCK_TEST_ROUTES=300000 PENSTOCK_BIN=target/release/penstock`.
const ROUTES: &str = "PENSTOCK_TEST_ROUTES";

/// Starts another gateway on the machine of site A, with a peer that never answers.
fn another(topology: &Topology, number: u16, table: u32, prefix: &str) -> Gateway {
    let mut config = GatewayConfig::elsewhere(Kind::SOCKET, &format!("100.64.9.{number}"));
    config.port = PORT + number;
    config.peers.push(Peer {
        public_key: pubkey(&genkey()),
        preshared_key: None,
        endpoint: Some("192.0.2.99:9".parse().expect("an address")),
        allowed_ips: vec![prefix.to_owned()],
        keepalive: None,
        suite: None,
    });
    let gateway = Gateway::start(&topology.a, config);
    gateway.reload(|profile| profile["Table"] = table.into());
    gateway
}

/// Our routes in all tables, and our rules.
fn ours(topology: &Topology) -> String {
    let gateway = &topology.a.gateway;
    ["rule", "-4 route show table all proto 80", "-6 route show table all proto 80"]
        .map(|what| gateway.ip_show(what))
        .concat()
}

/// The device through which a packet of site A's gateway leaves; `None` if it is blocked.
fn way(topology: &Topology, to: &str) -> Option<String> {
    let (found, text) = topology.a.gateway.attempt(&["ip", "route", "get", to]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "dev").skip(1);
    found.then(|| words.next().expect("a device").to_owned())
}

/// A gateway does not mistake the other's routes and rules for its own when it reads and restores them.
#[test]
fn two_gateways_of_a_machine_each_put_back_their_own() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let second = another(&topology, 1, 47100, "10.200.0.0/16");
    let both = || {
        let text = ours(&topology);
        [a.name(), second.name()].iter().all(|name| text.contains(&format!("dev {name}")))
    };
    eventually(PATIENCE, "both have their routes", both);
    let before = ours(&topology);
    let gateway = &topology.a.gateway;
    let damages: [&[&str]; 4] = [
        &["ip", "route", "flush", "table", "47100"],
        &["ip", "route", "flush", "table", "main", "proto", "80"],
        &["ip", "link", "set", a.name(), "down"],
        &["ip", "link", "set", second.name(), "down"],
    ];
    for damage in damages {
        gateway.run(damage);
        let mut after = String::new();
        let same = holds_within(PATIENCE, || {
            after = ours(&topology);
            after == before
        });
        assert!(same, "{damage:?}: before:\n{before}\nafter:\n{after}");
    }
    await_traffic(&topology);
}

/// The longest prefix wins, in whichever table it is and whichever gateway started first, and stays blocked when its
/// gateway stops.
#[test]
fn nested_prefixes_of_gateways_with_different_tables_go_each_its_way() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let mut inner = another(&topology, 1, 47200, "10.102.0.128/25");
    let outer = another(&topology, 2, 47300, "10.0.0.0/8");
    let goes = |to: &str, by: &str| {
        eventually(PATIENCE, &format!("{to} goes by {by}"), || way(&topology, to).as_deref() == Some(by))
    };
    goes("10.102.0.200", inner.name());
    goes("10.102.0.2", a.name());
    goes("10.50.0.1", outer.name());
    await_traffic(&topology);
    assert!(inner.terminate().success(), "{}", inner.process.log());
    assert_eq!(way(&topology, "10.102.0.200"), None, "what its gateway guards is nobody else's");
    inner.release();
    goes("10.102.0.200", a.name());
}

/// Outer packets go where the system's rules and routes send their mark, port or class, also by AF_XDP.
#[test]
fn outer_packets_follow_rules_and_routes_for_them() {
    if !ready(&["tcpdump"]) || !is_penstock() {
        return;
    }
    let rule = |selector: &str| {
        format!("route add 192.0.2.2 via 198.51.100.2 dev wan1 table 200\nrule add {selector} table 200\n")
    };
    let (mark, port) = (rule(&format!("fwmark {DEFAULT_MARK}")), rule(&format!("ipproto udp dport {PORT}")));
    let (class, route) = (rule("tos 0x10"), "route add 192.0.2.2 tos 0x10 via 198.51.100.2 dev wan1\n".to_owned());
    let everywhere = [&mark, &port, &class, &route].into_iter().flat_map(|how| [(Kind::XDP, how), (Kind::SOCKET, how)]);
    for (kind, how) in everywhere {
        let topology = Topology::new(Options::default());
        let (a, b) = (&topology.a.gateway, &topology.b.gateway);
        a.ip(&format!("link add wan1 type veth peer name wan1 netns {}\n", b.name()));
        a.ip("addr add 198.51.100.1/24 dev wan1\nlink set wan1 up\n");
        b.ip("addr add 198.51.100.2/24 dev wan1\nlink set wan1 up\n");
        a.ip(how);
        for (namespace, interface) in [(a, "all"), (a, "wan1"), (b, "all"), (b, "wan0"), (b, "wan1")] {
            namespace.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        }
        let (ours, _b) = joined(&topology, kind, kind, Outer::V4);
        let by_class = how.contains("tos");
        if by_class {
            ours.reload(|profile| profile["CopyDscp"] = true.into());
        }
        let capture = Capture::start(b, "wan1", "udp and inbound", topology.scratch());
        // The first packet, which waits for its next hop's address, is missing in captures.
        ping(&topology.a.host, topology.b.host4(), &["-c", "1", "-Q", "0x10"]);
        let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "30", "-i", "0.02", "-Q", "0x10"]);
        assert!(pings.all_answered(), "{kind:?}, {how}: {}", pings.text);
        let so_sent = count_messages(&capture.stop(), TRANSPORT_DATA);
        assert!(so_sent >= 30, "{kind:?}, {how}: {so_sent} packets went there");
        let told = ours.status()["Problems"].to_string().contains("for one traffic class");
        assert_eq!(told, by_class && kind == Kind::XDP, "{kind:?}, {how}");
    }
}

/// Routes come and go a thousand times a second on a router with many: control keeps up without using most of a core.
#[test]
fn a_flapping_route_among_many_costs_little() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    // Unoptimised, reading a thousand routes takes 10 ms.
    let many = std::env::var(ROUTES).ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(20_000);
    const WATCHED: Duration = Duration::from_secs(2);
    /// Changes per batch, which is sent in a tenth of a second.
    const BATCH: usize = 100;
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let gateway = &topology.a.gateway;
    let script = (0..many).fold(String::new(), |mut script, number| {
        let [_, high, middle, low] = number.to_be_bytes();
        let _ = writeln!(script, "route add {}.{middle}.{low}.0/24 via 192.0.2.2 dev wan0", 20 + high);
        script
    });
    gateway.ip(&script);
    let flapping = [
        ("of the WAN", "20.0.7.0/24 via 192.0.2.2 dev wan0"),
        ("of the LAN", "10.77.0.0/24 via 10.101.0.2 dev lan0"),
        ("of the LAN, IPv6", "fd00:77::/64 via fd00:101::2 dev lan0"),
    ];
    for (which, route) in flapping {
        let batch = format!("route replace {route}\nroute del {route}\n").repeat(BATCH / 2);
        // The earlier changes have been processed when an interval costs nothing.
        eventually(PATIENCE, "control has read the routes", || {
            let before = a.process.cpu_time();
            pause(300);
            a.process.cpu_time() - before < Duration::from_millis(15)
        });
        let flap = |time: Duration| {
            let (begun, mut changes) = (Instant::now(), 0);
            while begun.elapsed() < time {
                let next = Instant::now() + Duration::from_millis(100);
                gateway.ip(&batch);
                changes += BATCH;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            changes
        };
        // The first changes are examined at once.
        flap(2 * WATCHED);
        let (before, begun) = (a.process.cpu_time(), Instant::now());
        let changes = flap(WATCHED);
        let (used, passed) = (a.process.cpu_time() - before, begun.elapsed());
        println!("{many} routes, one {which} with {changes} changes in {passed:.1?}: {used:.1?} of a core");
        assert!(used < passed / 2, "{which}: {used:?} of {passed:?} for {changes} changes");
    }
    await_traffic(&topology);
}
