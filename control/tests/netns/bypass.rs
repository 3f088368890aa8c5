//! What AF_XDP bypasses: other people's rules for routing, connection tracking and the packet filter apply all the
//! same, or the status says that they do not.

use crate::support::*;
use rustix::process::{ForeignRawFd, Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// How long the gateway may take to follow the kernel's notifications.
const SOON: Duration = Duration::from_secs(5);
/// The hop limit shows who has answered.
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

/// Rules and routes for packets that leave the tunnel: by source and destination B sends them to a router other than
/// that of the main table.
#[test]
fn rules_by_source_hold_for_what_comes_out_of_the_tunnel() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _other = other_router(&topology);
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        a.peers[0].allowed_ips.push("10.103.0.0/24".to_owned());
        b.subnets.extend(["10.103.0.0/24", "10.104.0.0/24"].map(str::to_owned));
        let (_a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        b.reload(|profile| profile["Lan"]["Interfaces"] = serde_json::json!(["lan0", "lan1"]));
        await_traffic(&topology);
        let to = "10.103.0.9".parse().expect("an address");
        let answered_by_the_other = |class| {
            let pings = ping(&topology.a.host, to, &["-c", "3", "-i", "0.05", "-Q", class]);
            let others = pings.text.matches("ttl=19").count();
            (pings.all_answered() && matches!(others, 0 | 3)).then_some(others == 3)
        };
        let rule = "from 10.101.0.0/24 to 10.103.0.0/24 lookup 200";
        for round in 0..2 {
            eventually(SOON, &format!("{kind:?}, round {round}: by the main table"), || {
                answered_by_the_other("0") == Some(false)
            });
            topology.b.gateway.ip(&format!("rule add {rule}\n"));
            eventually(SOON, &format!("{kind:?}, round {round}: by the rule"), || {
                answered_by_the_other("0") == Some(true)
            });
            topology.b.gateway.ip(&format!("rule del {rule}\n"));
        }
        // So do routes for some packets of a prefix, and a route's MTU.
        let gateway = &topology.b.gateway;
        gateway.ip("route add 10.103.0.0/24 tos 0x10 via 10.104.0.2\n");
        eventually(SOON, &format!("{kind:?}: by the route for a class"), || {
            answered_by_the_other("0x10") == Some(true) && answered_by_the_other("0") == Some(false)
        });
        gateway.ip("route del 10.103.0.0/24 tos 0x10\nroute replace 10.103.0.0/24 via 10.102.0.2 mtu 1000\n");
        eventually(SOON, &format!("{kind:?}: the route's MTU is told"), || {
            ping(&topology.a.host, to, &["-c", "1", "-M", "do", "-s", "1100"]).reported_mtu() == Some(1000)
        });
    }
}

/// Rules for packets from the LAN, with priorities before the gateway's own.
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
        let gateway = &topology.a.gateway;
        gateway.ip("route add blackhole 10.102.0.0/24 table 200\nrule add priority 5000 lookup 200\n");
        for (family, rule, held, other) in [
            ("-4", "from 10.101.0.2 to 10.102.0.0/24 priority 100 blackhole", to4, to6),
            ("-6", "from fd00:101::2 to fd00:102::/64 priority 100 blackhole", to6, to4),
            ("-4", "iif lan0 priority 100 goto 5000", to4, to6),
        ] {
            let change = |how: &str| {
                let words = ["ip", family, "rule", how].into_iter().chain(rule.split(' '));
                gateway.run(&words.collect::<Vec<_>>());
            };
            change("add");
            eventually(SOON, &format!("{kind:?}: {rule}: it holds"), || !passes(held));
            assert!(passes(other), "{kind:?}: {rule}: of the other family");
            change("del");
            eventually(SOON, &format!("{kind:?}: {rule}: it is gone"), || passes(held));
        }
    }
}

/// A firewall on A's host admits nothing but answers, and AF_XDP bypasses its connection tracking. A's keepalives do
/// not, so B can initiate after a restart.
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

/// DSCP is copied outward when the profile says so, with AF_XDP as with sockets.
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
            // Path probes are among them.
            let mut frames = capture.stop();
            frames.retain(|frame| frame.message_type() == Some(TRANSPORT_DATA));
            // On a busy machine the last one may not have reached the file.
            assert!(frames.len() >= 2, "{kind:?} {outer:?}");
            let expected = if copy { EXPEDITED } else { 0 };
            assert!(frames.iter().all(|frame| class(frame) & 0xfc == expected), "{kind:?} {outer:?}");
        }
    }
}

/// Where the profile requires AF_XDP, `status` names the rules that are not applied.
#[test]
fn rules_that_are_not_applied_are_problems() {
    if !ready(&["nft", "iptables-nft", "iptables-legacy"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let gateway = &topology.a.gateway;
    // As Docker's.
    gateway.nft(
        "table inet elsewhere {\n\
         map jumps { type ifname : verdict; elements = { \"docker0\" : jump docker0 }; }\n\
         set blocked { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 }; }\n\
         chain docker0 { counter drop\n }\n\
         chain forward { type filter hook forward priority 0; policy accept;\n\
         iifname \"docker1\" counter drop\n oifname vmap @jumps\n ip saddr @blocked drop\n }\n}",
    );
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let problems = || a.status()["Problems"].to_string();
    assert!(!problems().contains("bypasses"), "{}", problems());
    for (interface, hook, rule) in [
        ("lan0", "forward", "ip daddr 10.102.0.9 drop"),
        ("lan0", "prerouting", "ip6 saddr fd00:102::/64 meta mark set 7"),
        ("wan0", "input", "udp dport 47100 log"),
        ("lan0", "prerouting", "ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.102.0.2"),
        ("wan0", "prerouting", "udp dport 53 redirect to :47100"),
    ] {
        let kind = if rule.contains(" to ") { "nat" } else { "filter" };
        gateway.nft(&format!(
            "table inet fw {{ chain c {{ type {kind} hook {hook} priority 0; policy accept;\n {rule}\n }}\n}}"
        ));
        eventually(SOON, &format!("{rule} is named"), || {
            let told = format!("what AF_XDP carries on {interface} bypasses firewall rule handle");
            problems().contains(&told) && problems().contains("of chain c, table inet fw")
        });
        // The profile demands it.
        assert_eq!(a.status()["Health"], "healthy");
        gateway.run(&["nft", "delete", "table", "inet", "fw"]);
        eventually(SOON, &format!("{rule} is gone"), || !problems().contains("bypasses"));
    }
    // A mere warning does not make a reload fail.
    gateway.nft(
        "table inet fw { chain c { type filter hook forward priority 0; policy accept;\n ip daddr 10.102.0.9 drop\n }\n}",
    );
    for mode in ["tun", "xdp"] {
        a.reload(|profile| profile["Lan"]["Mode"] = mode.into());
    }
    eventually(SOON, "the rule is named again", || problems().contains("of chain c, table inet fw"));
    gateway.run(&["nft", "delete", "table", "inet", "fw"]);
    // Elements of a set.
    let blocked = |how: &str| gateway.run(&["nft", how, "element", "inet", "elsewhere", "blocked", "{ 10.102.0.9 }"]);
    blocked("add");
    eventually(SOON, "an element is noticed", || problems().contains("of chain forward, table inet elsewhere"));
    blocked("delete");
    eventually(SOON, "it is gone", || !problems().contains("bypasses"));
    // Changes that nftables does not report are noticed at its next report.
    let tun = a.name();
    // Somebody's chain in a table of iptables, which iptables does not print.
    let others = "table ip filter { chain mine { type filter hook forward priority 5; ip daddr 10.102.0.8 drop; }; }";
    let shaper = format!("tc qdisc add dev {tun} root tbf rate 1gbit burst 1m latency 9ms");
    for (set, rule, unset) in [
        (
            "iptables-legacy -A FORWARD -d 10.102.0.9 -j DROP",
            "firewall rule -A FORWARD -d 10.102.0.9/32 -j DROP, table filter of iptables-legacy",
            "iptables-legacy -D FORWARD -d 10.102.0.9 -j DROP",
        ),
        (
            "iptables-nft -A FORWARD -d 10.102.0.9 -m length --length 9 -j DROP",
            "firewall rule -A FORWARD -d 10.102.0.9/32 -m length --length 9 -j DROP, table filter of iptables",
            "iptables-nft -R FORWARD 1 -s 10.103.0.9 -m length --length 9 -j DROP",
        ),
        (&format!("nft {others}"), "of chain mine, table ip filter", "nft delete table ip filter"),
        (
            "ip xfrm policy add src 10.101.0.0/24 dst 10.102.0.0/24 dir out tmpl proto esp mode transport",
            "policy src 10.101.0.0/24 dst 10.102.0.0/24, table IPsec",
            "ip xfrm policy flush",
        ),
        (
            "ip xfrm policy setdefault fwd block",
            "the firewall's policy of chain fwd, table IPsec",
            "ip xfrm policy setdefault fwd accept",
        ),
        (&shaper, &format!("the queueing discipline tbf of {tun}"), &format!("tc qdisc del dev {tun} root")),
    ] {
        let read_anew = |command: &str| {
            gateway.run(&command.split(' ').collect::<Vec<_>>());
            gateway.nft("table inet fw { }");
            gateway.run(&["nft", "delete", "table", "inet", "fw"]);
        };
        read_anew(set);
        let told = || {
            let problems = problems();
            problems.contains("what AF_XDP carries on lan0 bypasses") && problems.contains(rule)
        };
        eventually(SOON, &format!("{rule} is named"), told);
        read_anew(unset);
        eventually(SOON, &format!("{rule} is gone"), || !problems().contains("bypasses"));
    }
    // A bridge's rules, and those for the bridge itself.
    gateway.ip("link add br9 type bridge\nlink set lan0 master br9\n");
    eventually(SOON, "the bridge is named", || problems().contains("lan0 is a port of another device (bridge)"));
    gateway.ip("link del br9\n");
    eventually(SOON, "the bridge is gone", || !problems().contains("lan0 is a port"));
    await_traffic(&topology);
}

/// In mode `auto` a rule that could match takes effect as soon as it is there: sockets take over, and give the
/// interface back when it is gone. The sessions go on.
#[test]
fn auto_gives_way_to_a_rule_and_comes_back() {
    // Without these it does not treat any veth as a card.
    if !ready(&["nft"]) || !is_penstock() || !cfg!(debug_assertions) {
        return;
    }
    let topology = Topology::new(Options::default());
    let auto = Kind::Penstock { wan: "udp", lan: "auto" };
    let (mut a, b) = pair_config(&topology, auto, Kind::SOCKET, Outer::V4);
    a.environment.push(("PENSTOCK_TEST_CARD", "lan0".to_owned()));
    let (a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    await_traffic(&topology);
    let status = |field: &str| a.status()[field].clone();
    let (gateway, session) = (&topology.a.gateway, status("Peers")[0]["LastHandshake"].clone());
    for (family, host) in ["ip", "ip6"].into_iter().zip(topology.b.hosts()) {
        let passes = || ping(&topology.a.host, host, &["-c", "1"]).all_answered();
        assert_eq!(status("LanMode")["Mode"], "xdp", "{}", a.process.log());
        gateway.nft(&format!(
            "table inet fw {{ chain c {{ type filter hook forward priority 0; policy accept;\n\
             {family} daddr {host} drop\n }}\n}}"
        ));
        eventually(SOON, "sockets take over", || status("LanMode")["Mode"] == "tun");
        let reason = status("LanMode")["Reason"].to_string();
        assert!(reason.contains("of chain c, table inet fw"), "{reason}");
        assert!(!passes(), "{family}: the rule holds");
        gateway.run(&["nft", "delete", "table", "inet", "fw"]);
        eventually(SOON, "AF_XDP is back", || status("LanMode")["Mode"] == "xdp");
        eventually(SOON, "the rule is gone", passes);
    }
    assert_eq!(status("Peers")[0]["LastHandshake"], session, "{}", a.process.log());
}

/// All parts of a packet go one way, so that connection tracking, which reassembles them, misses none: those that the
/// LAN sends, and those that come out of the tunnel while their host's address is being resolved.
#[test]
fn the_parts_of_a_packet_stay_together() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        let topology = Topology::new(Options::default());
        let (_a, _b) = joined(&topology, kind, kind, Outer::V4);
        for target in topology.b.hosts() {
            // The host learns the tunnel's MTU.
            ping(&topology.a.host, target, &["-c", "2", "-i", "0.1", "-s", "1440"]);
        }
        for tracked in [false, true] {
            if tracked {
                for site in [&topology.a, &topology.b] {
                    site.gateway.nft(
                        "table inet tracked { chain forward { type filter hook forward priority 0; policy accept;\n\
                         ct state new accept\n }\n}",
                    );
                }
            }
            for target in topology.b.hosts() {
                for size in ["1500", "3000", "9000"] {
                    topology.b.gateway.run(&["ip", "neigh", "flush", "dev", "lan0"]);
                    let pings = ping(&topology.a.host, target, &["-c", "3", "-i", "0.2", "-s", size, "-M", "dont"]);
                    assert!(pings.all_answered(), "{kind:?}, tracked: {tracked}: {}", pings.text);
                }
            }
        }
    }
}

/// Which of these offloads of a device are on.
fn are_on(namespace: &Namespace, device: &str, offloads: [&str; 2]) -> [bool; 2] {
    let features = namespace.run(&["ethtool", "-k", device]);
    offloads.map(|offload| features.contains(&format!("{offload}: on")))
}

/// A veth whose other end is a bridge's port gets tags beside the frames, where XDP sees none. That end puts them into
/// the frames while AF_XDP drives the LAN, and no longer afterwards.
#[test]
fn the_other_end_of_a_veth_puts_tags_into_frames_while_xdp_drives_the_lan() {
    if !ready(&["ethtool"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    bridge_lan(&topology.a, "");
    let beside = || are_on(&topology.a.gateway, "lan0b", ["tx-vlan-offload", "tx-vlan-stag-hw-insert"]);
    assert_eq!(beside(), [true; 2], "this kernel's veth has the offloads");
    let (mut a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    assert_eq!(beside(), [false; 2], "{}", a.process.log());
    await_traffic(&topology);
    a.reload(|profile| profile["Lan"]["Mode"] = "tun".into());
    assert_eq!(beside(), [true; 2], "{}", a.process.log());
    await_traffic(&topology);
    a.reload(|profile| profile["Lan"]["Mode"] = "xdp".into());
    assert_eq!(beside(), [false; 2], "{}", a.process.log());
    assert!(a.terminate().success());
    assert_eq!(beside(), [true; 2], "after the end: {}", a.process.log());
}

/// A card that removes VLAN tags tells the kernel about them, but not XDP: it leaves them in the frames while AF_XDP
/// drives the LAN, and removes them again afterwards.
#[test]
fn tags_stay_in_the_frames_while_xdp_drives_the_lan() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let stripping = || are_on(&topology.a.gateway, "lan0", ["rx-vlan-offload", "rx-vlan-stag-hw-parse"]);
    assert_eq!(stripping(), [true; 2], "this kernel's veth has the offloads");
    let (mut a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    assert_eq!(stripping(), [false; 2], "{}", a.process.log());
    for (mode, expected) in [("tun", true), ("xdp", false)] {
        a.reload(|profile| profile["Lan"]["Mode"] = mode.into());
        assert_eq!(stripping(), [expected; 2], "{mode}: {}", a.process.log());
        assert!(ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered(), "{mode}");
    }
    assert!(a.terminate().success());
    assert_eq!(stripping(), [true; 2], "after the end: {}", a.process.log());
}

/// For each of the gateway's sockets on the tunnel's port: whether the kernel may merge what it receives (UDP_GRO).
fn may_be_merged(gateway: &Gateway) -> Vec<bool> {
    let pid = gateway.process.pid();
    let process = pidfd_open(Pid::from_raw(pid as i32).expect("a process"), PidfdFlags::empty()).expect("it runs");
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("root may").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<ForeignRawFd>().ok());
    let files = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    files.filter(is_of_the_tunnel).map(|socket| udp_gro(&socket)).collect()
}

fn is_of_the_tunnel(file: &OwnedFd) -> bool {
    let is_udp = rustix::net::sockopt::socket_type(file) == Ok(rustix::net::SocketType::DGRAM);
    let bound = || std::net::UdpSocket::from(file.try_clone().expect("a copy")).local_addr();
    is_udp && bound().is_ok_and(|address| address.port() == PORT)
}

#[expect(unsafe_code, reason = "an option that no crate here offers")]
fn udp_gro(socket: &OwnedFd) -> bool {
    let mut on: libc::c_int = 0;
    let mut len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel writes an integer of the length that it is told; both outlive the call.
    let got = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, (&raw mut on).cast(), &raw mut len)
    };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    on != 0
}

/// A socket that takes merged datagrams makes devices merge them, in front of generic XDP too, whose program would get
/// frames that are too large for it. So the tunnel's sockets take none while AF_XDP drives the WAN.
#[test]
fn no_socket_asks_for_merged_datagrams_while_xdp_drives_the_wan() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options { queues: 2, ..Options::default() });
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    assert_eq!(may_be_merged(&a), [false; 2]);
    for (mode, expected) in [("udp", true), ("xdp", false)] {
        a.reload(|profile| profile["Wan"]["Mode"] = mode.into());
        eventually(SOON, &format!("{mode}: it is {expected}"), || may_be_merged(&a) == [expected; 2]);
    }
}
