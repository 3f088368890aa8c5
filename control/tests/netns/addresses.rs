//! Which addresses two gateways use for each other: the one that was sent to, zones, and who may change them.

use crate::support::*;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15);
const OUTERS: [Outer; 2] = [Outer::V4, Outer::V6];

/// The sources of a gateway's datagrams in a capture.
fn sources(frames: &[Frame]) -> Vec<IpAddr> {
    let ours = frames.iter().filter_map(Frame::datagram).filter(|datagram| datagram.source.port() == PORT);
    let mut sources: Vec<IpAddr> = ours.map(|datagram| datagram.source.ip()).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// A gateway with two addresses on its WAN answers from the one that was sent to, as long as it has that address.
#[test]
fn answers_leave_from_the_address_that_was_called() {
    if !ready(&["tcpdump"]) || !is_penstock() {
        return;
    }
    for (kind, outer) in Kind::MODES.into_iter().flat_map(|kind| OUTERS.map(|outer| (kind, outer))) {
        let topology = Topology::new(Options::switch());
        let (called, prefix) = match outer {
            Outer::V4 => ("192.0.2.102", "24"),
            Outer::V6 => ("2001:db8::102", "64 nodad preferred_lft 0"),
        };
        topology.b.gateway.ip(&format!("addr add {called}/{prefix} dev wan0\n"));
        let called: IpAddr = called.parse().expect("an address");
        let (mut a, mut b) = pair_config(&topology, kind, kind, outer);
        a.peers[0].endpoint = Some(SocketAddr::new(called, PORT));
        b.peers[0].endpoint = None;
        let capture = Capture::start(topology.middle(), "b0", "udp and inbound", topology.scratch());
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        let pings = ping(&topology.b.host, topology.a.host4(), &["-c", "20", "-i", "0.02"]);
        assert!(pings.all_answered(), "{kind:?} {outer:?}: {}", pings.text);
        assert_eq!(sources(&capture.stop()), [called], "{kind:?} {outer:?}");
        assert_eq!(a.endpoint(&b.public_key()), Some(SocketAddr::new(called, PORT)));

        // The address is gone: the route chooses another, and A follows.
        topology.b.gateway.ip(&format!("addr del {called}/{} dev wan0\n", &prefix[..2]));
        let endpoint = Some(topology.b.endpoint(outer));
        eventually(LIMIT, &format!("{kind:?} {outer:?}: B is heard from its other address"), || {
            let answered = ping(&topology.b.host, topology.a.host4(), &["-c", "1"]).all_answered();
            answered && a.endpoint(&b.public_key()) == endpoint
        });
    }
}

/// When a peer sends to its second uplink, a gateway answers through it, because a routing rule for that address says
/// so.
#[test]
fn answers_leave_by_the_uplink_that_was_called() {
    if !ready(&["tcpdump"]) || !is_penstock() {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (a_ns, b_ns) = (&topology.a.gateway, &topology.b.gateway);
        a_ns.ip(&format!("link add wan1 type veth peer name wan1 netns {}\n", b_ns.name()));
        // A has one address that both uplinks lead to; B's main table uses the first uplink.
        a_ns.ip("addr add 203.0.113.1/32 dev lo\n\
                 addr add 198.51.100.1/24 dev wan1\n\
                 link set wan1 up\n\
                 route add 198.51.100.2/32 dev wan1 src 203.0.113.1\n");
        b_ns.ip("addr add 198.51.100.2/24 dev wan1\n\
                 link set wan1 up\n\
                 route add 203.0.113.1/32 via 192.0.2.1 dev wan0\n\
                 route add 203.0.113.1/32 via 198.51.100.1 dev wan1 table 100\n\
                 rule add from 198.51.100.2 lookup 100\n");
        for setting in ["all", "wan0", "wan1"] {
            a_ns.sysctl(&format!("net/ipv4/conf/{setting}/rp_filter"), "0");
            b_ns.sysctl(&format!("net/ipv4/conf/{setting}/rp_filter"), "0");
        }
        let called: SocketAddr = format!("198.51.100.2:{PORT}").parse().expect("an endpoint");
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        a.peers[0].endpoint = Some(called);
        b.peers[0].endpoint = None;
        let capture = Capture::start(a_ns, "wan1", "udp and inbound", topology.scratch());
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        let pings = ping(&topology.b.host, topology.a.host4(), &["-c", "20", "-i", "0.02"]);
        assert!(pings.all_answered(), "{kind:?}: {}", pings.text);
        let frames = capture.stop();
        assert_eq!(sources(&frames), [called.ip()], "{kind:?}");
        assert!(count_messages(&frames, TRANSPORT_DATA) >= 20, "{kind:?}: data left by another uplink");
        assert_eq!(a.endpoint(&b.public_key()), Some(called), "{kind:?}");
    }
}

/// Gateways that know each other only by link-local addresses, through rekeys; `wg` names the zone in its own way.
#[test]
fn a_zone_survives_rekeys() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        for (site, address) in [(&topology.a, "fe80::a"), (&topology.b, "fe80::b")] {
            site.gateway.ip(&format!("addr add {address}/64 dev wan0 nodad\n"));
        }
        // B has no other address on its WAN, which is enough for a peer on the link.
        topology.b.gateway.ip("addr flush dev wan0 scope global\n");
        // Without a zone the route would prefer another interface.
        topology.a.gateway.ip("addr add fe80::1:a/64 dev lan0 nodad\n");
        let index = |site: &Site| {
            let text = site.gateway.run(&["ip", "-o", "link", "show", "wan0"]);
            text.split(':').next().and_then(|index| index.trim().parse::<u32>().ok()).expect("an index")
        };
        let endpoint: SocketAddr = format!("[fe80::b%{}]:{PORT}", index(&topology.a)).parse().expect("an endpoint");
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V6);
        a.peers[0].endpoint = Some(endpoint);
        b.peers[0].endpoint = None;
        for config in [&mut a, &mut b] {
            config.rekey_after(2);
        }
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        assert_eq!(b.status()["Health"], "healthy", "{kind:?}: {:#}", b.status()["Problems"]);
        assert!(b.status()["Problems"].to_string().contains("only peers on the same link can call"), "{kind:?}");
        await_traffic(&topology);
        let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "60", "-i", "0.07"]);
        assert!(pings.received >= 59, "{kind:?}: {}", pings.text);
        assert_eq!(a.status()["Peers"][0]["Endpoint"], endpoint.to_string(), "{kind:?}");
        let zone = b.status()["Peers"][0]["Endpoint"].as_str().map(str::to_owned).unwrap_or_default();
        assert!(zone.contains(&format!("%{}]", index(&topology.b))), "{kind:?}: {zone}");
        let in_gateway = |words: &[&str]| topology.a.gateway.run(words);
        let shown = in_gateway(&["wg", "show", a.name(), "endpoints"]);
        assert!(shown.contains(&format!("[fe80::b%wan0]:{PORT}")), "{kind:?}: {shown}");
        let named = format!("[fe80::b%wan0]:{PORT}");
        in_gateway(&["wg", "set", a.name(), "peer", &b.public_key(), "endpoint", &named]);
        assert_eq!(a.status()["Peers"][0]["Endpoint"], endpoint.to_string(), "{kind:?}");
        let pings = ping(&topology.b.host, topology.a.host4(), &["-c", "5", "-i", "0.05"]);
        assert!(pings.all_answered(), "{kind:?}: {}", pings.text);
    }
}

/// After a restart, earlier initiations are new to a gateway. Whoever replays one gets a useless answer and is not
/// taken for the peer.
#[test]
fn a_replayed_initiation_moves_no_endpoint() {
    if !ready(&["tcpdump"]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::switch());
        let (a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        b.peers[0].endpoint = None;
        let capture = Capture::of_wan(&topology);
        let (mut a, mut b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        let frames = capture.stop();
        let is_initiation = |frame: &&Frame| frame.message_type() == Some(HANDSHAKE_INITIATION);
        let initiation = frames.iter().find(is_initiation).and_then(Frame::datagram).expect("an initiation");
        a.kill();
        b.kill();
        let _ = std::fs::remove_file(topology.b.scratch.join(format!("{}.endpoints", b.name())));
        b.restart();
        let thief = topology.middle().enter(|| UdpSocket::bind("192.0.2.66:4000")).expect("a socket");
        thief.set_read_timeout(Some(LIMIT)).expect("a timeout");
        thief.send_to(&initiation.payload, topology.b.endpoint(Outer::V4)).expect("sent");
        let mut response = [0; 200];
        assert_eq!(thief.recv(&mut response).expect("a response"), 92, "{kind:?}");
        ping(&topology.b.host, topology.a.host4(), &["-c", "1"]);
        assert_eq!(b.endpoint(&a.public_key()), None, "{kind:?}");
        a.restart();
        await_traffic(&topology);
        assert_eq!(b.endpoint(&a.public_key()), Some(topology.a.endpoint(Outer::V4)), "{kind:?}");
    }
}
