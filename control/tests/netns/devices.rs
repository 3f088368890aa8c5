//! Interfaces that change while AF_XDP drives them.

use crate::chaos::network::lan_again;
use crate::support::overlay::Heartbeat;
use crate::support::*;
use std::time::Duration;

/// Longer than the interval at which queues are counted.
const LIMIT: Duration = Duration::from_secs(30);

/// The longest outage, in seconds, that rebuilding ports may cause.
const OUTAGE: f64 = 0.2;

/// Each queue of an interface has a socket, including one added later.
#[test]
fn a_queue_that_comes_later_gets_a_socket() {
    if !ready(&["ethtool"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options { queues: 2, ..Options::default() });
    // An XDP program on a veth needs as many receive queues as its peer has for sending.
    topology.b.gateway.run(&["ethtool", "-L", "wan0", "tx", "1"]);
    topology.a.gateway.run(&["ethtool", "-L", "wan0", "rx", "1"]);
    let (a, _b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let queues = || {
        let status = a.status();
        let ports = status["Ports"].as_array().cloned().unwrap_or_default();
        ports.iter().filter(|port| port["Interface"] == "wan0" && port["Kind"] == "xdp").count()
    };
    assert_eq!(queues(), 1);
    topology.a.gateway.run(&["ethtool", "-L", "wan0", "rx", "2"]);
    eventually(LIMIT, "the second queue has a socket", || queues() == 2);
    await_traffic(&topology);
}

/// Frames to another MAC address on a LAN are not ours, and the LAN's own address may change. Neither makes sockets
/// bind again.
#[test]
fn another_mac_of_the_lan_is_followed() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let steered = |verdict: &str| a.status()["Steering"]["Lan"][verdict].as_u64().unwrap_or_default();
    let (before, program_before) = (steered("redirect_over_v4"), program(&topology.a.gateway, "lan0"));
    topology.a.gateway.ip("link set lan0 address 02:00:00:00:00:99\n");
    topology.a.host.ip("neigh flush dev eth0\n");
    let host = &topology.a.host;
    eventually(Duration::from_secs(1), "the program knows the new address", || {
        // One that is lost does not take all of the second.
        ping(host, topology.b.host4(), &["-c", "1", "-W", "0.2"]);
        steered("redirect_over_v4") > before
    });
    let pinged = ping(host, topology.b.host4(), &["-c", "5", "-i", "0.1"]);
    assert!(pinged.all_answered(), "{}", pinged.text);
    assert_eq!(program(&topology.a.gateway, "lan0"), program_before);
    assert!(steered("redirect_over_v4") >= before + 6, "{before}, then {}", steered("redirect_over_v4"));
}

/// An XDP program of somebody else's keeps AF_XDP from an interface only as long as it is there.
#[test]
fn af_xdp_takes_over_when_another_program_is_gone() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let gateway = &topology.a.gateway;
    attach_foreign_program(gateway, "wan0", "xdpdrv");
    a.edit_profile(|profile| profile["Wan"]["Mode"] = "xdp".into());
    let refused = a.command(&["reload"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("occupied"), "{refused:?}");
    let mode = || a.status()["WanMode"]["Mode"].clone();
    assert_eq!(mode(), "udp");
    await_traffic(&topology);
    // Seen at least once before it goes.
    pause(1500);
    gateway.run(&["ip", "link", "set", "dev", "wan0", "xdpdrv", "off"]);
    eventually(Duration::from_secs(5), "AF_XDP drives the WAN", || mode() == "xdp");
    await_traffic(&topology);
}

/// Packets from an address outside the site's subnets go through the kernel, and so through its rules.
#[test]
fn other_sources_are_the_kernel_s() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let steered = |verdict: &str| a.status()["Steering"]["Lan"][verdict].as_u64().unwrap_or_default();
    let redirected = steered("redirect_over_v4");
    assert!(redirected > 0 && steered("other_source") == 0);
    // One of the other site's.
    let host = &topology.a.host;
    host.ip("addr add 10.102.0.99/32 dev lo\n");
    ping(host, topology.b.host4(), &["-c", "3", "-i", "0.1", "-I", "10.102.0.99"]);
    assert_eq!((steered("other_source"), steered("redirect_over_v4")), (3, redirected));
}

/// When a LAN interface goes away and comes back as another device, only its ports are rebuilt: the WAN's ports and the
/// sessions stay, and traffic that has nothing to do with the LAN passes meanwhile.
#[test]
fn a_lan_is_made_anew_within_200_ms() {
    if !ready(&["ethtool"]) || !is_penstock() {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        let peer = b.public_key();
        let wan_ports = || {
            let ports = a.status()["Ports"].as_array().cloned().unwrap_or_default();
            let mut ports: Vec<_> = ports.into_iter().filter(|port| port["Interface"] == "wan0").collect();
            // The time since they were last proven keeps growing.
            for port in ports.iter_mut().filter_map(|port| port.as_object_mut()) {
                port.retain(|field, _| field != "Sending" && field != "Receiving");
            }
            ports
        };
        let (handshake, received, ports) = (a.latest_handshake(&peer), a.transfer(&peer).0, wan_ports());
        let target = topology.a.virtual_address();
        let every = Duration::from_millis(10);
        let beat = Heartbeat::start_in(&topology.b.host, &topology.b.scratch, target, every, 100_000);
        eventually(PATIENCE, "the gateway answers", || beat.beats().answers.len() > 10);

        topology.a.gateway.ip("link del lan0\n");
        let problems = || a.status()["Problems"].to_string();
        eventually(PATIENCE, "it is told", || problems().contains("there is no interface lan0"));
        lan_again(&topology, 2);
        await_traffic(&topology);
        eventually(PATIENCE, "all is well", || a.status()["Health"] == "healthy");

        // AF_XDP ports share their packet memory, so all of a worker's are rebuilt together.
        let beats = beat.stop();
        assert!(beats.longest_gap() <= OUTAGE, "{kind:?}: longest gap {} s", beats.longest_gap());
        assert!(kind == Kind::XDP || beats.lost() == 0, "{kind:?}: {} were lost", beats.lost());
        assert_eq!(a.latest_handshake(&peer), handshake, "{kind:?}: another session");
        assert!(a.transfer(&peer).0 > received, "{kind:?}: other counters");
        assert_eq!(wan_ports(), ports, "{kind:?}");
    }
}
