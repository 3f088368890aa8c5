//! A LAN that is a veth whose other end is in a bridge with VLANs: frames that the bridge hands over for another VLAN
//! are none of the gateway's business.

use super::ready;
use super::support::*;

/// The echo requests that B's host has received.
fn echoes(topology: &Topology) -> u64 {
    let snmp = topology.b.host.run(&["cat", "/proc/net/snmp"]);
    let mut icmp = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (icmp.next().expect("names"), icmp.next().expect("values"));
    let echoes = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InEchos").expect("a counter");
    echoes.1.parse().expect("a number")
}

/// A bridge puts a tag beside the frame, and the veth passes it on like this: XDP sees a frame without a tag. So the
/// other end has to put the tag into the frame.
#[test]
fn frames_of_another_vlan_stay_out() {
    if !ready(&["ethtool", "bridge"]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        bridge_lan(&topology.a, "vlan_filtering 1");
        let (a, _b) = joined(&topology, kind, Kind::SOCKET, Outer::V4);
        await_traffic(&topology);
        let (host, gateway) = (&topology.a.host, &topology.a.gateway);
        let router = gateway.run(&["cat", "/sys/class/net/lan0/address"]);
        host.run(&["ip", "neigh", "replace", "10.101.0.1", "lladdr", router.trim(), "dev", "eth0"]);
        // The host is in VLAN 10 from now on, and the gateway's port carries that with its tag.
        for words in ["del dev port0 vid 1", "add dev port0 vid 10 pvid untagged", "add dev lan0b vid 10"] {
            let command = ["bridge", "vlan"].into_iter().chain(words.split(' '));
            gateway.run(&command.collect::<Vec<_>>());
        }
        let before = echoes(&topology);
        ping(host, topology.b.host4(), &["-c", "5", "-i", "0.2", "-W", "1"]);
        assert_eq!(echoes(&topology), before, "{kind:?}: another VLAN's packets came through; {}", a.process.log());
        if kind == Kind::XDP {
            // What would happen without this.
            gateway.run(&["ethtool", "-K", "lan0b", "tx-vlan-offload", "on"]);
            ping(host, topology.b.host4(), &["-c", "5", "-i", "0.2", "-W", "1"]);
            assert!(echoes(&topology) > before, "nothing comes through in any case: the test shows nothing");
        }
    }
}
