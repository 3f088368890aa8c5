//! Coordinated sites in every mode of the data plane, over both IP versions inside and outside, and together with peers
//! of the profile.

use crate::support::nat::{Kind, Lab, Site};
use crate::support::overlay::{Coordinator, Heartbeat, OverlayGateway};
use crate::support::{Gateway, GatewayConfig, PATIENCE, Peer, eventually, pause, ping, ready, tcp_both_ways};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::time::Duration;

/// Modes of WAN and LAN; all other tests with a coordinator use the remaining pair.
const MODES: [(&str, &str); 3] = [("xdp", "xdp"), ("xdp", "tun"), ("udp", "xdp")];
const PATH: Duration = Duration::from_secs(30);

fn tools() -> bool {
    ready(&["nft", "conntrack"])
}

/// The host's inner IPv6 address.
pub fn host6(site: &Site) -> IpAddr {
    Ipv6Addr::new(0xfd00, site.number.into(), 0, 0, 0, 0, 0, 2).into()
}

/// A site with IPv6 inside as well, and its gateway.
pub fn start(lab: &Lab, coordinator: &Coordinator, key: &str, place: (Kind, u8), modes: (&str, &str)) -> End {
    let site = lab.site(place.0, place.1);
    let n = site.number;
    site.gateway.ip(&format!("addr add fd00:{n:x}::1/64 dev lan0 nodad\n"));
    site.host.ip(&format!("addr add {}/64 dev eth0 nodad\nroute add default via fd00:{n:x}::1\n", host6(&site)));
    let subnets = [site.subnet(), format!("fd00:{n:x}::/64")];
    let extra = json!({
        "Wan": { "Interface": "wan0", "Mode": modes.0 },
        "Lan": { "Interfaces": ["lan0"], "Mode": modes.1, "Subnets": subnets },
        "BirthdayProbing": false,
    });
    let gateway = OverlayGateway::start(&site, coordinator, key, &extra);
    End { gateway, site }
}

pub struct End {
    pub gateway: OverlayGateway,
    pub site: Site,
}

/// Traffic of both inner IP versions, in both directions, between sites that find this kind of path.
fn traffic_passes(kinds: [Kind; 2], path: &str, transport: &str) {
    for modes in MODES {
        let lab = Lab::new();
        let coordinator = Coordinator::start(&lab);
        let key = coordinator.key(2, "site");
        let a = start(&lab, &coordinator, &key, (kinds[0], 1), modes);
        let b = start(&lab, &coordinator, &key, (kinds[1], 2), modes);
        a.gateway.await_path(&b.gateway.name, path, PATH);
        b.gateway.await_path(&a.gateway.name, path, PATH);
        for end in [&a, &b] {
            let status = end.gateway.status();
            let bound = (&status["WanMode"]["Mode"], &status["LanMode"]["Mode"]);
            assert_eq!(bound, (&json!(modes.0), &json!(modes.1)), "{status}");
        }
        if path == "relay" {
            // UDP is blocked on A's side, if anywhere.
            assert_eq!(a.gateway.status()["Relays"][0]["Transport"], transport);
        }
        for target in [b.site.host_address(), host6(&b.site)] {
            eventually(PATIENCE, &format!("{modes:?}, {path}: {target} answers"), || {
                ping(&a.site.host, target, &["-c", "1"]).all_answered()
            });
            let pings = ping(&a.site.host, target, &["-c", "20", "-i", "0.02", "-s", "1300"]);
            // As on any path, one packet may be lost when the machine is busy.
            assert!(pings.received >= 19, "{modes:?}, {path}: {}", pings.text);
            tcp_both_ways(&a.site.host, &b.site.host, target, 1 << 20);
        }
        // From gateway to gateway.
        let pings = ping(&a.site.gateway, virtual_address(&a.gateway, &b.gateway), &["-c", "5", "-i", "0.05"]);
        assert!(pings.all_answered(), "{modes:?}, {path}: {}", pings.text);
        // It was this path all the time.
        a.gateway.await_path(&b.gateway.name, path, Duration::ZERO);
    }
}

/// The address of `of` in the tunnel, as `by` knows it.
fn virtual_address(by: &OverlayGateway, of: &OverlayGateway) -> IpAddr {
    let peer = by.peer(&of.name);
    let prefixes = peer["AllowedIPs"].as_array().expect("prefixes").iter().filter_map(Value::as_str);
    let mut addresses =
        prefixes.filter(|prefix| prefix.starts_with("100.")).filter_map(|prefix| prefix.split_once('/'));
    let (address, _) = addresses.next().unwrap_or_else(|| panic!("no virtual address: {peer}"));
    address.parse().expect("an address")
}

/// A packet that comes through the tunnel and looks like a probe is no evidence of a path.
#[test]
fn probes_from_inside_are_refused() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let key = coordinator.key(2, "site");
    let a = start(&lab, &coordinator, &key, (Kind::FullCone, 1), ("udp", "tun"));
    let b = start(&lab, &coordinator, &key, (Kind::FullCone, 2), ("udp", "tun"));
    a.gateway.await_path(&b.gateway.name, "direct", PATH);
    b.gateway.await_path(&a.gateway.name, "direct", PATH);
    let target = virtual_address(&b.gateway, &a.gateway);
    eventually(PATIENCE, "B's host reaches A", || ping(&b.site.host, target, &["-c", "1"]).all_answered());
    let port = a.gateway.status()["LocalPort"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    let socket = b.site.host.enter(|| UdpSocket::bind(("0.0.0.0", 0))).expect("a socket");
    for _ in 0..5 {
        socket.send_to(&[0x50; 100], (target, port)).expect("sent");
    }
    eventually(PATIENCE, "they are counted", || a.gateway.status()["Drops"]["probe-from-inside"] == 5);
    a.gateway.await_path(&b.gateway.name, "direct", Duration::ZERO);
}

#[test]
fn direct_through_nats() {
    if tools() {
        traffic_passes([Kind::PortRestricted, Kind::FullCone], "direct", "");
    }
}

#[test]
fn relayed_by_udp() {
    if tools() {
        traffic_passes([Kind::Symmetric, Kind::Symmetric], "relay", "udp");
    }
}

#[test]
fn relayed_by_tls() {
    if tools() {
        traffic_passes([Kind::UdpBlocked, Kind::PortRestricted], "relay", "tls");
    }
}

#[test]
fn ipv6_is_preferred_when_equal() {
    if !tools() {
        return;
    }
    for kinds in [[Kind::None, Kind::FullCone], [Kind::Symmetric, Kind::Symmetric]] {
        let lab = Lab::dual_stack();
        let coordinator = Coordinator::start(&lab);
        let key = coordinator.key(2, "site");
        let (a, b) = (lab.site(kinds[0], 1), lab.site(kinds[1], 2));
        let gateway_a = OverlayGateway::start(&a, &coordinator, &key, &json!({}));
        let gateway_b = OverlayGateway::start(&b, &coordinator, &key, &json!({}));
        for (one, other, address) in
            [(&gateway_a, &gateway_b, b.global_ipv6()), (&gateway_b, &gateway_a, a.global_ipv6())]
        {
            let mut peer = Value::Null;
            eventually(PATIENCE, &format!("{kinds:?}: the path goes to {address}"), || {
                peer = one.peer(&other.name);
                let endpoint = peer["Endpoint"].as_str().unwrap_or_default();
                peer["Path"] == "direct" && endpoint.starts_with(&format!("[{address}]:"))
            });
        }
        let beat = Heartbeat::start(&a, b.host_address(), Duration::from_millis(100), 1000);
        pause(1000);
        // When IPv6 is cut, everything else goes on.
        b.nat.nft("table ip6 cut { chain forward { type filter hook forward priority 0; drop; }; }");
        let path = if kinds[0].direct_works(kinds[1]) { "direct" } else { "relay" };
        for (one, other) in [(&gateway_a, &gateway_b), (&gateway_b, &gateway_a)] {
            eventually(PATIENCE, &format!("{kinds:?}: IPv4 takes over, {path}"), || {
                let peer = one.peer(&other.name);
                peer["Path"] == path && peer["Endpoint"].as_str().is_some_and(|endpoint| !endpoint.starts_with('['))
            });
        }
        pause(1000);
        let gap = beat.stop().longest_gap();
        assert!(gap <= 5.0, "{kinds:?}: {gap:.2} s");
    }
}

#[test]
fn a_plain_wireguard_peer_works_beside_the_coordinator_s() {
    if !tools() || !ready(&["wireguard-go"]) {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let key = coordinator.key(2, "site");
    let (a, b, c) = (lab.site(Kind::PortRestricted, 1), lab.site(Kind::FullCone, 2), lab.site(Kind::None, 3));
    let mut plain = GatewayConfig::elsewhere(crate::support::Kind::WireguardGo, "100.127.0.3");
    let extra = json!({ "Peers": [{
        "Name": "plain",
        "PublicKey": plain.public_key(),
        "Endpoint": format!("{}:{}", c.wan(), plain.port),
        "AllowedIPs": [c.subnet()],
        "PersistentKeepalive": 25,
    }] });
    let mut gateway_a = OverlayGateway::start(&a, &coordinator, &key, &extra);
    let gateway_b = OverlayGateway::start(&b, &coordinator, &key, &json!({}));
    plain.peers.push(Peer {
        public_key: gateway_a.status()["PublicKey"].as_str().expect("a key").to_owned(),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec![a.subnet()],
        keepalive: None,
        suite: None,
    });
    let _plain = Gateway::start_in(&c.gateway, &c.scratch, plain);
    let both = |gateway_a: &OverlayGateway| {
        gateway_a.await_path(&gateway_b.name, "direct", PATH);
        for (host, target) in [(&a, &b), (&a, &c), (&b, &a), (&c, &a)] {
            let what = format!("{} answers {}", target.host_address(), host.host_address());
            eventually(PATIENCE, &what, || ping(&host.host, target.host_address(), &["-c", "1"]).all_answered());
        }
        assert_eq!(gateway_a.peer("plain")["Path"], "direct");
    };
    both(&gateway_a);
    // Revoking a site does not affect the profile's peers.
    coordinator.run(&["site", "revoke", &gateway_b.name]);
    eventually(PATIENCE, "the other is gone", || gateway_a.peer(&gateway_b.name).is_null());
    let pings = ping(&a.host, c.host_address(), &["-c", "5", "-i", "0.1"]);
    assert!(pings.all_answered(), "{}", pings.text);
    assert!(gateway_a.process.terminate().success());
    gateway_a.restart();
    eventually(PATIENCE, "after a restart", || ping(&a.host, c.host_address(), &["-c", "1"]).all_answered());
}

#[test]
fn the_coordinator_s_address_answers_and_stays() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let mut coordinator = Coordinator::start(&lab);
    let key = coordinator.key(2, "site");
    let (a, b) = (lab.site(Kind::FullCone, 1), lab.site(Kind::PortRestricted, 2));
    let gateway_a = OverlayGateway::start(&a, &coordinator, &key, &json!({}));
    let mut gateway_b = OverlayGateway::start(&b, &coordinator, &key, &json!({}));
    gateway_a.await_path(&gateway_b.name, "direct", PATH);
    let address = virtual_address(&gateway_a, &gateway_b);
    let answers = || {
        for from in [&a.host, &a.gateway] {
            eventually(PATIENCE, &format!("{address} answers"), || ping(from, address, &["-c", "1"]).all_answered());
        }
    };
    answers();
    let has = || b.gateway.ip_show("-br addr show");
    let before = has();
    assert!(before.contains(&address.to_string()), "{before}");
    for coordinator_too in [false, true] {
        assert!(gateway_b.process.terminate().success());
        if coordinator_too {
            // Its address is in the cached map.
            coordinator.process.kill();
        }
        gateway_b.restart();
        eventually(PATIENCE, "it is up", || has().contains(&address.to_string()));
        answers();
        if coordinator_too {
            coordinator.restart();
            eventually(4 * PATIENCE, "connected", || gateway_b.status()["Coordinator"]["Connected"] == true);
            answers();
        }
        assert_eq!(virtual_address(&gateway_a, &gateway_b), address);
        assert_eq!(has().matches("100.").count(), before.matches("100.").count(), "{}", has());
    }
}
