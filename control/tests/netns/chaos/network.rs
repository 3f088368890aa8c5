//! The interfaces, addresses and routes of A's gateway, restored after they were removed.

use crate::support::*;

/// The other uplink of A's gateway: another port of the switch, with its own networks.
pub fn second_uplink(topology: &Topology) {
    topology.a.gateway.ip(&format!(
        "link add wan1 type veth peer name a1 netns {}\n\
         addr add 198.51.100.1/24 dev wan1\n\
         addr add 2001:db8:1::1/64 dev wan1 nodad\n\
         link set wan1 up\n",
        topology.middle().name()
    ));
    topology.middle().ip("addr add 198.51.100.66/24 dev a1\naddr add 2001:db8:1::66/64 dev a1 nodad\nlink set a1 up\n");
}

pub fn wan_again(topology: &Topology, mtu: u32, queues: u32) {
    topology.a.gateway.ip(&format!(
        "link add wan0 mtu {mtu} numrxqueues {queues} numtxqueues {queues} type veth peer name a0 netns {}\n",
        topology.middle().name()
    ));
    topology.middle().ip("link set a0 master br0 up\n");
    topology.a.gateway.ip("addr add 192.0.2.1/24 dev wan0\nlink set wan0 up\n");
    routes_again(topology);
}

pub fn routes_again(topology: &Topology) {
    topology.a.gateway.ip("addr replace 2001:db8::1/64 dev wan0 nodad\n\
         route replace default via 192.0.2.2\n\
         route replace default via 2001:db8::2\n");
}

/// The routes to the networks of the interfaces, which the kernel makes only together with their addresses.
pub fn connected_again(topology: &Topology) {
    let networks = [
        ("wan0", "192.0.2.0/24", "src 192.0.2.1"),
        ("wan0", "2001:db8::/64", ""),
        ("wan1", "198.51.100.0/24", "src 198.51.100.1"),
        ("wan1", "2001:db8:1::/64", ""),
        ("lan0", "10.101.0.0/24", "src 10.101.0.1"),
        ("lan0", "fd00:101::/64", ""),
        ("wan0", "fe80::/64", ""),
        ("wan1", "fe80::/64", ""),
        ("lan0", "fe80::/64", ""),
    ];
    for (device, prefix, source) in networks {
        topology.a.gateway.ip(&format!("route append {prefix} dev {device} proto kernel scope link {source}\n"));
    }
}

pub fn lan_again(topology: &Topology, queues: u32) {
    topology.a.gateway.ip(&format!(
        "link add lan0 numrxqueues {queues} numtxqueues {queues} type veth peer name eth0 netns {}\n",
        topology.a.host.name()
    ));
    topology
        .a
        .gateway
        .ip("addr add 10.101.0.1/24 dev lan0\naddr add fd00:101::1/64 dev lan0 nodad\nlink set lan0 up\n");
    topology.a.host.ip("addr add 10.101.0.2/24 dev eth0\naddr add fd00:101::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 10.101.0.1\nroute add default via fd00:101::1\n");
}
