//! What other sites may reach through a gateway: this site's prefixes and the gateway itself, unless the profile allows
//! more.

use crate::support::*;
use std::net::IpAddr;

/// A network behind B's gateway that is not part of B's LAN, with a host; A routes it to B.
fn with_another_network(topology: &Topology) -> Namespace {
    let other = Namespace::new("other");
    let gateway = &topology.b.gateway;
    gateway.ip(&format!("link add other0 type veth peer name eth0 netns {}\n", other.name()));
    gateway.ip("addr add 10.200.0.1/24 dev other0\naddr add fd00:200::1/64 dev other0 nodad\nlink set other0 up\n");
    other.ip("addr add 10.200.0.2/24 dev eth0\naddr add fd00:200::2/64 dev eth0 nodad\nlink set eth0 up\n\
              route add default via 10.200.0.1\nroute add default via fd00:200::1\n");
    other
}

fn all_answer(topology: &Topology, targets: &[&str]) -> bool {
    let answers = |target: &&str| {
        let target: IpAddr = target.parse().expect("an address");
        ping(&topology.a.host, target, &["-c", "2", "-i", "0.1", "-W", "1"]).all_answered()
    };
    targets.iter().all(answers)
}

#[test]
fn other_networks_are_reached_only_where_the_profile_says_so() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _other = with_another_network(&topology);
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        a.peers[0].allowed_ips.extend(["10.200.0.0/24".to_owned(), "fd00:200::/64".to_owned()]);
        b.workers = 1;
        let (_a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        // The data plane alone, without the packet filter's layer.
        topology.b.gateway.run(&["nft", "flush", "ruleset"]);
        assert!(all_answer(&topology, &["10.200.0.1", "fd00:200::1"]), "{kind:?}: B's own addresses");
        let before = b.drops("transit");
        topology.b.gateway.run(&["nft", "flush", "ruleset"]);
        for target in ["10.200.0.2", "fd00:200::2"] {
            let pings =
                ping(&topology.a.host, target.parse().expect("an address"), &["-c", "2", "-i", "0.1", "-W", "1"]);
            assert_eq!(pings.received, 0, "{kind:?} {target}: {}", pings.text);
        }
        assert!(b.drops("transit") >= before + 4, "{kind:?}");

        let mut config = b.config.clone();
        drop(b);
        config.transit = true;
        let _b = Gateway::start(&topology.b, config);
        await_traffic(&topology);
        assert!(all_answer(&topology, &["10.200.0.1", "10.200.0.2", "fd00:200::1", "fd00:200::2"]), "{kind:?}");
    }
}

/// A and a third site, 100.64.0.3, which reach each other through B.
fn hub(topology: &Topology, kind: Kind, transit: bool) -> [Gateway; 3] {
    let (mut a, mut b) = pair_config(topology, kind, kind, Outer::V4);
    let mut third = GatewayConfig::elsewhere(Kind::WireguardGo, "100.64.0.3");
    third.add_peer(&topology.b, &b, Some(Outer::V4));
    third.peers[0].allowed_ips.extend(topology.a.subnets());
    third.peers[0].keepalive = Some(1);
    b.transit = transit;
    b.peers.push(Peer {
        public_key: third.public_key(),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec!["100.64.0.3/32".to_owned()],
        keepalive: None,
        suite: None,
    });
    a.peers[0].allowed_ips.push("100.64.0.3/32".to_owned());
    let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    let third = Gateway::start_in(topology.middle(), topology.scratch(), third);
    await_traffic(topology);
    eventually(PATIENCE, "the third site is connected", || b.latest_handshake(&third.public_key()) > 0);
    [a, b, third]
}

/// Going from one tunnel into another through a hub is transit too.
#[test]
fn a_hub_lets_sites_through_only_where_the_profile_says_so() {
    if !ready(&["wireguard-go"]) || !is_penstock() {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        for transit in [false, true] {
            let topology = Topology::new(Options::switch());
            let [_a, b, _third] = hub(&topology, kind, transit);
            // B must not answer in place of the hop: A's host asks, the third site answers.
            let pings = ping(&topology.a.host, "100.64.0.3".parse().expect("an address"), &["-c", "5", "-i", "0.1"]);
            assert_eq!(pings.received > 0, transit, "{kind:?}: {}", pings.text);
            assert_eq!(b.drops("transit") >= 5, !transit, "{kind:?}");
        }
    }
}

/// ICMP does not tell sites that talk through a hub to bypass it.
#[test]
fn a_hub_sends_no_redirects() {
    if !ready(&["wireguard-go", "tcpdump"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::switch());
    let gateway = &topology.b.gateway;
    gateway.sysctl("net/ipv4/conf/all/send_redirects", "1");
    let [_a, b, _third] = hub(&topology, Kind::SOCKET, true);
    let redirects = || {
        let capture = Capture::start(&topology.a.host, "eth0", "icmp[icmptype] == icmp-redirect", topology.scratch());
        let pings = ping(&topology.a.host, "100.64.0.3".parse().expect("an address"), &["-c", "5", "-i", "0.1"]);
        assert!(pings.received > 0, "{}", pings.text);
        capture.stop().len()
    };
    assert_eq!(redirects(), 0);
    // Somebody switches redirects on.
    for interface in ["all", b.name()] {
        gateway.sysctl(&format!("net/ipv4/conf/{interface}/send_redirects"), "1");
    }
    assert!(redirects() > 0, "nothing would be seen");
}
