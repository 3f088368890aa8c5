//! Cases of WireGuard's own test script (`netns.sh` of the Linux kernel) that no other module covers;
//! `docs/scenarios.md` lists where each case is tested.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use crate::support::*;

const LIMIT: Duration = Duration::from_secs(15);
/// Less than the time after which paths are looked for in any case.
const FOLLOWED: Duration = Duration::from_secs(8);

/// Two WireGuard devices on the hosts reach each other through the gateways' tunnel: WireGuard in WireGuard. Then the
/// inner tunnel becomes its own route: its endpoint lies inside it, and its packets must not loop.
#[test]
fn a_tunnel_runs_through_the_tunnel() {
    if !ready(&["wireguard-go"]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (a, _b) = joined(&topology, kind, kind, Outer::V4);
        let inner = |address: &str| GatewayConfig::elsewhere(Kind::WireguardGo, address);
        let (mut config_a, mut config_b) = (inner("10.55.0.1"), inner("10.55.0.2"));
        let peer = |of: &GatewayConfig, host: IpAddr| Peer {
            public_key: of.public_key(),
            preshared_key: None,
            endpoint: Some((host, PORT).into()),
            allowed_ips: vec![format!("{}/32", of.virtual_address)],
            keepalive: None,
            suite: None,
        };
        config_a.peers.push(peer(&config_b, topology.b.host6()));
        config_b.peers.push(peer(&config_a, topology.a.host6()));
        let inner_a = Gateway::start_in(&topology.a.host, topology.scratch(), config_a);
        let inner_b = Gateway::start_in(&topology.b.host, topology.scratch(), config_b);
        for (site, gateway) in [(&topology.a, &inner_a), (&topology.b, &inner_b)] {
            site.host.ip(&format!("link set {} mtu 1340\n", gateway.name()));
        }
        let far = IpAddr::from([10, 55, 0, 2]);
        eventually(LIMIT, &format!("{kind:?}: the inner tunnel carries a ping"), || {
            ping(&topology.a.host, far, &["-c", "1"]).all_answered()
        });
        tcp_both_ways(&topology.a.host, &topology.b.host, far, 1 << 20);

        let endpoint = format!("{far}:{PORT}");
        inner_a.set(&["peer", &inner_b.public_key(), "endpoint", &endpoint]);
        let sent = |gateway: &Gateway| -> u64 {
            gateway.config.peers.iter().map(|peer| gateway.transfer(&peer.public_key).1).sum()
        };
        let before = sent(&a);
        // They are lost, unless the far end has sent something before and so announced its outer address again.
        ping(&topology.a.host, far, &["-c", "20", "-i", "0.01", "-W", "1"]);
        assert!(sent(&a) - before < 70_000, "{kind:?}: it went round");
    }
}

/// A socket bound to the tunnel's device, and packets that get a mark after they were routed.
#[test]
fn bound_sockets_and_marked_packets_pass() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (a, _b) = joined(&topology, kind, kind, Outer::V4);
        let (gateway, target) = (&topology.a.gateway, topology.b.host4());
        let answered = |what: &str, options: &[&str]| {
            let pings = ping(gateway, target, &[&["-c", "2", "-i", "0.1"], options].concat());
            assert!(pings.all_answered(), "{kind:?}, {what}: {}", pings.text);
        };
        answered("bound", &["-I", a.name()]);
        gateway.nft(
            "table inet marks {
                chain output {
                    type route hook output priority mangle
                    icmp type echo-request meta mark set 1
                }
            }\n",
        );
        answered("marked", &[]);
        answered("marked and bound", &["-I", a.name()]);
    }
}

/// While packets flow, a better route appears that leads through another interface, and goes again.
#[test]
fn a_better_route_is_followed_under_traffic() {
    if !ready(&[]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (a_ns, b_ns) = (&topology.a.gateway, &topology.b.gateway);
        a_ns.ip(&format!("link add wan1 type veth peer name wan1 netns {}\n", b_ns.name()));
        for (namespace, address) in [(a_ns, "198.51.100.1/24"), (b_ns, "198.51.100.2/24")] {
            namespace.ip(&format!("addr add {address} dev wan1\nlink set wan1 up\n"));
            for setting in ["all", "wan0", "wan1"] {
                namespace.sysctl(&format!("net/ipv4/conf/{setting}/rp_filter"), "0");
            }
        }
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        let sent = |interface: &str| -> u64 {
            let file = format!("/sys/class/net/{interface}/statistics/tx_packets");
            a_ns.run(&["cat", &file]).trim().parse().expect("a number")
        };
        for (change, by) in [("add", "wan1"), ("del", "wan0")] {
            a_ns.ip(&format!("route {change} 192.0.2.2/32 via 198.51.100.2 dev wan1\n"));
            let before = sent(by);
            eventually(FOLLOWED, &format!("{kind:?}: {by} carries the tunnel"), || {
                let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "20", "-i", "0.02"]);
                pings.all_answered() && sent(by) >= before + 20
            });
            let endpoint = Some(topology.a.endpoint(Outer::V4));
            assert_eq!(b.endpoint(&a.public_key()), endpoint, "{kind:?}: it sends from the address that B calls");
        }
    }
}

/// Answers of `wg show` that take many reads, and requests that take many writes.
#[test]
fn large_configurations_pass_over_the_socket() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (config, _) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let gateway = Gateway::start(&topology.a, config);
    let set_configuration = |peers: &str| {
        let text = format!("[Interface]\nPrivateKey = {}\n{peers}", gateway.config.private_key);
        let file = gateway.secret_file("large.conf", &text);
        wg(&["setconf", gateway.name(), &file]);
    };
    let prefixes = || {
        let lines = wg(&["show", gateway.name(), "allowed-ips"]);
        lines.lines().map(|line| line.split_whitespace().count() - 1).collect::<Vec<_>>()
    };

    let mut one = format!("[Peer]\nPublicKey = {}\n", pubkey(&genkey()));
    for (a, b) in (1..=50).flat_map(|a| (0..=255).map(move |b| (a, b))) {
        writeln!(one, "AllowedIPs = {a}.{b}.0.0/16,fd{a:02x}::{b:x}/128").expect("a string");
    }
    set_configuration(&one);
    assert_eq!(prefixes(), [50 * 256 * 2]);

    let mut many = String::new();
    for a in 1..=40 {
        let prefixes: Vec<String> = (1..=52).map(|b| format!("10.{a}.{b}.0/24")).collect();
        writeln!(many, "[Peer]\nPublicKey = {}\nAllowedIPs = {}", pubkey(&genkey()), prefixes.join(","))
            .expect("a string");
    }
    set_configuration(&many);
    assert_eq!(prefixes(), [52; 40]);
}

/// What `wg set` says about keys: none, one of a peer's, and one whose bits are not clamped.
#[test]
fn keys_are_set_as_the_kernel_sets_them() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (config, _) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let gateway = Gateway::start(&topology.a, config);
    let shows = |field: &str| wg(&["show", gateway.name(), field]).trim().to_owned();
    let peer = gateway.config.peers[0].public_key.clone();

    let preshared = genpsk();
    gateway.set(&["peer", &peer, "preshared-key", &gateway.secret_file("one.psk", &preshared)]);
    assert_eq!(shows("preshared-keys"), format!("{peer}\t{preshared}"));
    gateway.set(&["peer", &peer, "preshared-key", "/dev/null"]);
    assert_eq!(shows("preshared-keys"), format!("{peer}\t(none)"));

    let private = genkey();
    let own = pubkey(&private);
    gateway.set(&["peer", &own]);
    gateway.set(&["private-key", &gateway.secret_file("own.key", &private)]);
    assert_eq!(shows("public-key"), own);
    assert_eq!(shows("peers"), peer, "a peer with the gateway's own key goes");
    gateway.set(&["peer", &own]);
    assert_eq!(shows("peers"), peer, "and does not come");

    // The bits that every key of this curve has are set.
    let raw = format!("/{}", &private[1..]);
    gateway.set(&["private-key", &gateway.secret_file("raw.key", &raw)]);
    assert_eq!(shows("private-key"), format!("+{}", &private[1..]));
}
