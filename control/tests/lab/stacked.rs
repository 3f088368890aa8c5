//! A WAN or LAN that is no port but a device above one. AF_XDP on it carries traffic, or the gateway says in a sentence
//! why it will not start; it must not start and then lose packets.

use super::support::*;
use super::{note, ports, ready};

/// The least that TCP must carry: little, since emulation is slow, and more than what remains if super-packets reach
/// AF_XDP.
const LEAST: f64 = 1e6;

/// Makes a device in the place of an interface, with its name, above it: by commands that call it NAME and the
/// interface `below`.
fn stack(namespace: &Namespace, interface: &str, above: &str) {
    namespace.ip(&format!("link set {interface} down\naddr flush dev {interface}\nlink set {interface} name below\n"));
    namespace.run(&["sh", "-ec", &above.replace("NAME", interface)]);
    namespace.ip("link set below up\n");
}

/// A's WAN is stacked; B's is treated alike if it must.
fn as_wan(word: &str, b_too: bool, above: &str) {
    if !ready(&["iperf3", "teamd"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    stack(&topology.a.gateway, "wan0", above);
    topology.address_wan_again();
    if b_too {
        stack(&topology.b.gateway, "wan0", above);
        topology
            .b
            .gateway
            .ip("addr add 192.0.2.2/24 dev wan0\nlink set wan0 up\nroute replace default via 192.0.2.1\n");
    }
    eventually(PATIENCE, "the WAN works without a gateway", || {
        ping(&topology.a.gateway, topology.b.wan4.into(), &["-c", "1"]).all_answered()
    });
    works_or_says_why(&topology, word, "wan0", |mode| Kind::Penstock { wan: mode, lan: "tun" });
}

/// A's LAN is stacked; its host's end is treated alike if it must.
fn as_lan(word: &str, host_too: bool, above: &str) {
    if !ready(&["iperf3", "teamd"]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let Site { host, gateway, .. } = &topology.a;
    stack(gateway, "lan0", above);
    topology.a.address_lan();
    if host_too {
        stack(host, "eth0", above);
        topology.a.address_host();
    }
    for target in topology.a.hosts() {
        eventually(PATIENCE, "the LAN works without a gateway", || ping(gateway, target, &["-c", "1"]).all_answered());
    }
    works_or_says_why(&topology, word, "lan0", |mode| Kind::Penstock { wan: "udp", lan: mode });
}

/// Tries A's stacked interface by AF_XDP, and by what `auto` chooses.
fn works_or_says_why(topology: &Topology, word: &str, interface: &str, kind: fn(&'static str) -> Kind) {
    let (a, b) = pair_config(topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let _b = Gateway::start(&topology.b, b);
    for mode in ["xdp", "auto"] {
        // The same gateway each time: one that is refused leaves the other site's prefixes blocked for all others.
        let config = GatewayConfig { kind: kind(mode), ..a.clone() };
        let a = match Gateway::try_start_in(&topology.a.gateway, &topology.a.scratch, config) {
            Ok(a) => a,
            Err((_, log)) => {
                let sentence = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
                note(&format!("{word}, {mode}: refused: {sentence}"));
                assert!(mode == "xdp" && sentence.contains(interface) && sentence.contains(word), "{log}");
                continue;
            }
        };
        note(&format!("{word}, {mode}: {}", ports(&a.status())));
        await_traffic(topology);
        for options in [["-t", "3"].as_slice(), &["-t", "3", "-R"]] {
            let (from, to) = (&topology.a.host, &topology.b.host);
            let rate = iperf3(from, to, topology.b.host4(), options, topology.scratch());
            note(&format!("{word} as {interface}, {mode}: iperf3 {options:?}: {:.1} Mbit/s", rate / 1e6));
            assert!(rate > LEAST, "{options:?}: {rate:.0} bit/s; drops: {}", a.status()["Drops"]);
        }
    }
}

macro_rules! stacked {
    ($($side:ident { $($name:ident: $word:literal, $too:literal, $above:expr;)* })*) => { $( $(
        #[test]
        fn $name() {
            $side($word, $too, $above);
        }
    )* )* };
}

const BOND: &str = "ip link add NAME type bond mode active-backup miimon 100; ip link set below master NAME";
const VLAN: &str = "ip link add link below name NAME type vlan id 50";
const BRIDGE: &str = "ip link add NAME type bridge forward_delay 0; ip link set below master NAME";
const MACVLAN: &str = "ip link add link below name NAME type macvlan mode bridge";

stacked! {
    as_wan {
        bond: "bond", false, BOND;
        bond_802_3ad: "bond", true,
            "ip link add NAME type bond mode 802.3ad miimon 100 lacp_rate fast; ip link set below master NAME";
        team: "team", false,
            r#"teamd -d -c '{"device": "NAME", "runner": {"name": "activebackup"}, "link_watch": {"name": "ethtool"},
            "ports": {"below": {}}}'"#;
        vlan: "VLAN", true, VLAN;
        bridge: "bridge", false, BRIDGE;
        macvlan: "macvlan", false, MACVLAN;
        ipvlan: "ipvlan", false, "ip link add link below name NAME type ipvlan mode l2";
        // Without Ethernet, like PPP.
        gre: "Ethernet", true,
            "case $(ip -4 -o addr show lan0) in *10.101.*) own=1 far=2 ;; *) own=2 far=1 ;; esac; \
            ip addr add 172.16.0.$own/24 dev below; \
            ip link add NAME type gre local 172.16.0.$own remote 172.16.0.$far ttl 64";
        vxlan: "vxlan", true,
            "case $(ip -4 -o addr show lan0) in *10.101.*) own=1 far=2 ;; *) own=2 far=1 ;; esac; \
            ip addr add 172.16.0.$own/24 dev below; \
            ip link add NAME type vxlan id 7 dstport 4789 local 172.16.0.$own remote 172.16.0.$far";
        // It only has the address; packets go by the device below.
        dummy: "dummy", false,
            "ip link add NAME type dummy; ip addr add 192.0.2.1 dev NAME; ip link set NAME up; ip link set below up; \
            ip route add 192.0.2.2 dev below src 192.0.2.1";
    }
    as_lan {
        lan_bond: "bond", false, BOND;
        lan_vlan: "VLAN", true, VLAN;
        lan_bridge: "bridge", false, BRIDGE;
        lan_macvlan: "macvlan", false, MACVLAN;
    }
}

/// In a VRF the WAN has its own routes, which the tunnel's socket does not use: the gateway warns. With a route in the
/// main table, and sockets that receive from VRFs, the tunnel works.
#[test]
fn vrf() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let gateway = &topology.a.gateway;
    gateway.ip("link add vrf0 type vrf table 7\nlink set vrf0 up\nlink set wan0 master vrf0\n");
    let (a, _b) = pair(&topology, Kind::Penstock { wan: "auto", lan: "tun" }, Kind::SOCKET, Outer::V4);
    let told = || tells_of_vrf(&a, "wan0");
    eventually(PATIENCE, "it is told", told);
    gateway.sysctl("net/ipv4/udp_l3mdev_accept", "1");
    gateway.ip("route add 192.0.2.2 dev wan0\n");
    await_traffic(&topology);
    gateway.ip("link set wan0 nomaster\n");
    eventually(PATIENCE, "it is solved", || !told());
}

fn tells_of_vrf(gateway: &Gateway, interface: &str) -> bool {
    gateway.status()["Problems"].as_array().expect("problems").iter().any(|problem| {
        problem["Subject"] == interface && problem["Sentence"].as_str().is_some_and(|said| said.contains("VRF"))
    })
}

/// Packets from a LAN in a VRF follow the VRF's routes, and the main table does not lead to its hosts: the gateway
/// warns. With a route each way traffic passes, by sockets and by AF_XDP.
#[test]
fn vrf_around_the_lan() {
    if !ready(&[]) {
        return;
    }
    for lan in ["auto", "xdp"] {
        let topology = Topology::new(Options::default());
        let gateway = &topology.a.gateway;
        gateway.ip("link add vrf0 type vrf table 7\nlink set vrf0 up\nlink set lan0 master vrf0\n");
        let (a, _b) = pair(&topology, Kind::Penstock { wan: "auto", lan }, Kind::SOCKET, Outer::V4);
        eventually(PATIENCE, "it is told", || tells_of_vrf(&a, "lan0"));
        let passes = || ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered();
        note(&format!("LAN in a VRF, {lan}: {}; without routes it passes: {}", ports(&a.status()), passes()));
        let tunnel = a.name();
        gateway.ip(&format!("route add 10.102.0.0/24 dev {tunnel} table 7\nroute add 10.101.0.0/24 dev lan0\n"));
        eventually(PATIENCE, "traffic passes", passes);
        for (from, to) in [(&topology.a, &topology.b), (&topology.b, &topology.a)] {
            tcp_both_ways(&from.host, &to.host, to.host4(), 1 << 20);
        }
        gateway.ip("link set lan0 nomaster\n");
        eventually(PATIENCE, "it is solved", || !tells_of_vrf(&a, "lan0"));
    }
}
