//! What AF_XDP passes by: rules of others for routing, connection tracking and the packet filter hold all the same, or it
//! is said that they don't.

use crate::support::*;
use std::time::Duration;

/// What news of the kernel may take to be followed.
const SOON: Duration = Duration::from_secs(5);
/// By its hop limit it is told who has answered.
const OTHER_TTL: &str = "200";

/// A router behind B's gateway that has an address in the same network as B's host.
fn other_router(topology: &Topology) -> Namespace {
    let (gateway, other) = (&topology.b.gateway, Namespace::new("other"));
    gateway.ip(&format!("link add lan1 type veth peer name eth0 netns {}\n", other.name()));
    gateway.ip("addr add 10.104.0.1/24 dev lan1\nlink set lan1 up\n");
    other.ip("addr add 10.104.0.2/24 dev eth0\naddr add 10.103.0.9/32 dev lo\nlink set eth0 up\nlink set lo up\n\
              route add default via 10.104.0.1\n");
    other.sysctl("net/ipv4/ip_default_ttl", OTHER_TTL);
    topology.b.host.ip("addr add 10.103.0.9/32 dev lo\n");
    gateway.ip("route add 10.103.0.0/24 via 10.102.0.2\nroute add 10.103.0.0/24 via 10.104.0.2 table 200\n");
    other
}

/// Rules for what leaves the tunnel: by source and destination B sends it to another router than the main table says.
#[test]
fn rules_by_source_hold_for_what_comes_out_of_the_tunnel() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        let topology = Topology::new(Options::default());
        let _other = other_router(&topology);
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        a.peers[0].allowed_ips.push("10.103.0.0/24".to_owned());
        b.subnets.extend(["10.103.0.0/24", "10.104.0.0/24"].map(str::to_owned));
        let (_a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        b.reload(|profile| profile["Lan"]["Interfaces"] = serde_json::json!(["lan0", "lan1"]));
        await_traffic(&topology);
        let answered_by_the_other = || {
            let pings = ping(&topology.a.host, "10.103.0.9".parse().expect("an address"), &["-c", "3", "-i", "0.05"]);
            let others = pings.text.matches("ttl=19").count();
            (pings.all_answered() && matches!(others, 0 | 3)).then_some(others == 3)
        };
        let rule = "from 10.101.0.0/24 to 10.103.0.0/24 lookup 200";
        for round in 0..2 {
            eventually(SOON, &format!("{kind:?}, round {round}: by the main table"), || {
                answered_by_the_other() == Some(false)
            });
            topology.b.gateway.ip(&format!("rule add {rule}\n"));
            eventually(SOON, &format!("{kind:?}, round {round}: by the rule"), || {
                answered_by_the_other() == Some(true)
            });
            topology.b.gateway.ip(&format!("rule del {rule}\n"));
        }
    }
}

/// Rules for what the LAN sends, that come before the gateway's own.
#[test]
fn rules_that_come_first_hold_for_what_the_lan_sends() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        let topology = Topology::new(Options::default());
        let (_a, _b) = joined(&topology, kind, kind, Outer::V4);
        let [to4, to6] = [topology.b.host4(), topology.b.host6()];
        let passes = |to| ping(&topology.a.host, to, &["-c", "1"]).all_answered();
        topology.a.gateway.ip("rule add from 10.101.0.2 to 10.102.0.0/24 priority 100 blackhole\n");
        eventually(SOON, &format!("{kind:?}: the rule holds"), || !passes(to4));
        assert!(passes(to6), "{kind:?}: of the other family");
        topology.a.gateway.ip("rule del from 10.101.0.2 to 10.102.0.0/24 priority 100 blackhole\n");
        eventually(SOON, &format!("{kind:?}: the rule is gone"), || passes(to4));
    }
}

/// A firewall of A's host admits nothing but answers, and AF_XDP passes its connection tracking by. A's keepalives do not,
/// so that B may call when it has restarted.
#[test]
fn behind_a_firewall_that_admits_answers_a_restarted_peer_is_answered() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    for outer in [Outer::V4, Outer::V6] {
        let topology = Topology::new(Options::default());
        let gateway = &topology.a.gateway;
        gateway.nft(&format!(
            "table inet fw {{ chain in {{ type filter hook input priority 0; policy accept;\n\
             iifname \"wan0\" ct state established,related accept\n\
             iifname \"wan0\" udp dport {PORT} counter drop\n }}\n}}"
        ));
        // So that a flow is forgotten within the time of a test.
        for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            gateway.sysctl(&format!("net/netfilter/{name}"), "3");
        }
        let (mut a, b) = pair_config(&topology, Kind::XDP, Kind::SOCKET, outer);
        a.peers[0].keepalive = Some(1);
        let (_a, mut b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        std::thread::sleep(Duration::from_secs(5));
        b.kill();
        b.restart();
        eventually(SOON, &format!("{outer:?}: B calls, and is answered"), || {
            ping(&topology.b.host, topology.a.host4(), &["-c", "1"]).all_answered()
        });
    }
}

/// DSCP is shown outside when the profile says so, by AF_XDP as by sockets.
#[test]
fn the_class_of_traffic_is_copied_outward_on_demand() {
    if !ready(&["tcpdump"]) || !is_penstock() {
        return;
    }
    const EXPEDITED: u8 = 0xb8;
    for (kind, outer) in [(Kind::SOCKET, Outer::V4), (Kind::XDP, Outer::V4), (Kind::XDP, Outer::V6)] {
        let topology = Topology::new(Options::switch());
        let (a, _b) = joined(&topology, kind, Kind::SOCKET, outer);
        for copy in [false, true] {
            a.reload(|profile| profile["CopyDscp"] = copy.into());
            let capture =
                Capture::start(topology.middle(), "a0", &format!("inbound and src port {PORT}"), topology.scratch());
            let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "3", "-i", "0.05", "-Q", "0xb8"]);
            assert!(pings.all_answered(), "{kind:?}: {}", pings.text);
            let class = |frame: &Frame| match outer {
                Outer::V4 => frame.bytes[15],
                Outer::V6 => frame.bytes[14] << 4 | frame.bytes[15] >> 4,
            };
            let frames = capture.stop();
            // On a busy machine the last one may not be in the file.
            assert!(frames.len() >= 2, "{kind:?} {outer:?}");
            let expected = if copy { EXPEDITED } else { 0 };
            assert!(frames.iter().all(|frame| class(frame) & 0xfc == expected), "{kind:?} {outer:?}");
        }
    }
}

/// Where the profile demands AF_XDP, `status` names the rules that are not applied to what it carries.
#[test]
fn rules_that_are_not_applied_are_problems() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let gateway = &topology.a.gateway;
    gateway.nft(
        "table inet elsewhere { chain forward { type filter hook forward priority 0; policy accept;\n\
                 iifname \"docker0\" counter drop\n }\n}",
    );
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let problems = || a.status()["Problems"].to_string();
    assert!(!problems().contains("passes by"), "{}", problems());
    for (interface, hook, rule) in [
        ("lan0", "forward", "ip daddr 10.102.0.9 drop"),
        ("lan0", "prerouting", "ip6 saddr fd00:102::/64 meta mark set 7"),
        ("wan0", "input", "udp dport 47100 log"),
    ] {
        gateway.nft(&format!(
            "table inet fw {{ chain c {{ type filter hook {hook} priority 0; policy accept;\n {rule}\n }}\n}}"
        ));
        eventually(SOON, &format!("{rule} is named"), || {
            let told = format!("what AF_XDP carries on {interface} passes by firewall rule handle");
            problems().contains(&told) && problems().contains("of chain c, table inet fw")
        });
        // The profile demands it.
        assert_eq!(a.status()["Health"], "healthy");
        gateway.run(&["nft", "delete", "table", "inet", "fw"]);
        eventually(SOON, &format!("{rule} is gone"), || !problems().contains("passes by"));
    }
    assert!(ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered());
}
