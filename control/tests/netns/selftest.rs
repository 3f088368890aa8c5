//! What WireGuard's own network-namespace selftest covers, as far as a gateway with static peers can: counters,
//! roaming, allowed IPs, keys, NAT, loops, leaks.

use crate::support::*;
use std::net::IpAddr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn parallel_streams_in_both_directions_and_both_versions() {
    if !ready(&["iperf3"]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        std::thread::scope(|scope| {
            for inner in 0..2 {
                for options in [["-t", "2", "-P", "4"].as_slice(), &["-t", "2", "-P", "4", "-R"]] {
                    let topology = &topology;
                    scope.spawn(move || {
                        let (from, to) = (&topology.a.host, &topology.b.host);
                        let server = topology.b.hosts()[inner];
                        let rate = iperf3(from, to, server, options, topology.scratch());
                        assert!(rate > 1e6, "{kind:?} {server} {options:?}: {rate:.0} bit/s");
                    });
                }
            }
        });
        pause(300);
        let (a_received, a_sent) = a.transfer(&b.public_key());
        let (b_received, b_sent) = b.transfer(&a.public_key());
        // Rings and sockets may drop under such a load, but nothing is counted that was not sent.
        assert!(b_received <= a_sent && a_received <= b_sent);
        assert!(b_received > a_sent / 2 && a_received > b_sent / 2);
    }
}

/// Ten echo requests of 84 bytes are ten messages of 128; add an initiation of 148, a response of
/// 92, perhaps a keepalive of 32.
#[test]
fn bytes_are_counted_exactly() {
    if !ready(&[]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        b.peers[0].endpoint = None;
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        assert_eq!(a.transfer(&b.public_key()), (0, 0));
        // Slow enough that no answer is late, which would be asked for again.
        let options = ["-c", "10", "-i", "0.2"];
        let pings = ping(&topology.a.host, topology.b.host4(), &options);
        assert!(pings.all_answered(), "{kind:?}: {}", pings.text);
        pause(200);
        let (received, sent) = a.transfer(&b.public_key());
        assert!(received == 1372 || received == 1372 + 32, "{kind:?}: {received} received");
        assert!(sent == 1428 || sent == 1428 + 32, "{kind:?}: {sent} sent");
        assert_eq!(b.transfer(&a.public_key()), (sent, received), "{kind:?}: the other side");
    }
}

#[test]
fn endpoints_roam() {
    if !ready(&[]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        for outer in [Outer::V6, Outer::V4] {
            // wireguard-go and boringtun keep sending from the IPv4 address that is gone, and get ENETUNREACH from
            // today's kernels.
            if outer == Outer::V4 && !is_penstock() {
                continue;
            }
            let topology = Topology::new(Options::switch());
            let (a, b) = joined(&topology, kind, kind, outer);
            let (new, router) = match outer {
                Outer::V4 => ("192.0.2.101", "192.0.2.2"),
                Outer::V6 => ("2001:db8::101", "2001:db8::2"),
            };
            let old = topology.a.endpoint(outer).ip();
            let prefix = if old.is_ipv4() { "24" } else { "64 nodad" };
            topology.a.gateway.ip(&format!(
                "addr del {old}/{} dev wan0\n\
                 addr add {new}/{prefix} dev wan0\n\
                 route replace default via {router} dev wan0\n",
                &prefix[..2]
            ));
            // B learns the new address from an authenticated packet of A, and only from that.
            assert_eq!(b.endpoint(&a.public_key()).map(|end| end.ip()), Some(old));
            eventually(LIMIT, &format!("{kind:?} {outer:?}: A is heard from its new address"), || {
                ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered()
            });
            let new: IpAddr = new.parse().expect("an address");
            // An echo may have been answered before A's control knew of the change.
            eventually(LIMIT, &format!("{kind:?} {outer:?}: B knows A's new address"), || {
                ping(&topology.a.host, topology.b.host4(), &["-c", "1"]);
                b.endpoint(&a.public_key()).map(|end| end.ip()) == Some(new)
            });
            let back = ping(&topology.b.host, topology.a.host6(), &["-c", "3", "-i", "0.1"]);
            assert!(back.all_answered(), "{kind:?} {outer:?}: {}", back.text);
        }
    }
}

/// From IPv4 to IPv6 and back by `wg set`, without a restart.
#[test]
fn endpoints_change_version() {
    if !ready(&[]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        for outer in [Outer::V6, Outer::V4] {
            let endpoint = topology.b.endpoint(outer);
            a.set(&["peer", &b.public_key(), "endpoint", &endpoint.to_string()]);
            let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "5", "-i", "0.1"]);
            assert!(pings.received >= 4, "{kind:?} {outer:?}: {}", pings.text);
            assert_eq!(b.endpoint(&a.public_key()), Some(topology.a.endpoint(outer)));
        }
    }
}

/// A third peer gets one address from the second's prefix, and with it the right to send from it.
#[test]
fn a_more_specific_allowed_ip_takes_traffic_over() {
    if !ready(&["wireguard-go"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::switch());
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        let mut third = GatewayConfig::elsewhere(Kind::WireguardGo, "100.64.0.3");
        third.add_peer(&topology.a, &a.config, Some(Outer::V4));
        let third = Gateway::start_in(topology.middle(), topology.scratch(), third);
        topology.middle().ip(&format!("addr add 10.102.0.2/32 dev {}\n", third.name()));
        let third_key = third.public_key();
        let target = topology.b.host4();
        let reaches = || ping(&topology.a.host, target, &["-c", "1"]).all_answered();

        let endpoint = format!("192.0.2.66:{PORT}");
        let allowed = ["allowed-ips", "10.102.0.2/32"];
        a.set(&[&["peer", &third_key, "endpoint", &endpoint], allowed.as_slice()].concat());
        a.route("10.102.0.2/32");
        let (before, _) = b.transfer(&a.public_key());
        eventually(LIMIT, "the third peer answers", reaches);
        let (after, _) = b.transfer(&a.public_key());
        assert_eq!(before, after, "{kind:?}: the second peer still gets packets");
        let stolen = ping(&topology.b.host, topology.a.host4(), &["-c", "2", "-i", "0.1"]);
        assert_eq!(stolen.received, 0, "{kind:?}: the second peer still owns the address");

        a.set(&["peer", &third_key, "remove"]);
        eventually(LIMIT, "the second peer answers again", reaches);
        assert!(b.transfer(&a.public_key()).0 > after, "{kind:?}");
    }
}

#[test]
fn the_private_key_changes_live() {
    if !ready(&[]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (mut a, b) = joined(&topology, kind, kind, Outer::V4);
        let old = a.public_key();
        a.config.private_key = genkey();
        let file = a.secret_file("new.key", &a.config.private_key);
        a.set(&["private-key", &file]);
        assert_eq!(wg(&["show", a.name(), "public-key"]).trim(), a.public_key());
        let new = a.public_key();
        let allowed = topology.a.allowed_ips().join(",");
        let endpoint = topology.a.endpoint(Outer::V4).to_string();
        b.set(&["peer", &old, "remove"]);
        b.set(&["peer", &new, "allowed-ips", &allowed, "endpoint", &endpoint]);
        await_traffic(&topology);
        assert!(b.latest_handshake(&new) > 0, "{kind:?}");
    }
}

/// Public keys whose products are zero (RFC 7748, 7; the list is the curve's): a peer with one of them must hear
/// nothing. Two of them are non-canonical encodings of small points.
#[test]
fn low_order_public_keys_hear_silence() {
    const LOW_ORDER: [&str; 9] = [
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "7P///////////////////////////////////////38=",
        "7f///////////////////////////////////////38=",
        "7v///////////////////////////////////////38=",
        "7f////////////////////////////////////////8=",
        "7v////////////////////////////////////////8=",
        "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
        "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    ];
    if !ready(&["tcpdump"]) {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (a, b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let capture = Capture::start(topology.middle(), "a0", "udp and host 192.0.2.66", topology.scratch());
    for (index, key) in LOW_ORDER.iter().enumerate() {
        let prefix = format!("10.200.{index}.0/24");
        let target = ["endpoint", "192.0.2.66:9", "persistent-keepalive", "1"];
        a.set(&[["peer", key, "allowed-ips", &prefix].as_slice(), &target].concat());
        a.route(&prefix);
        let address = IpAddr::from([10, 200, index as u8, 1]);
        assert_eq!(ping(&topology.a.host, address, &["-c", "1", "-W", "0.2"]).received, 0);
    }
    pause(1500);
    let heard = capture.stop();
    assert!(heard.is_empty(), "{} packets to peers with such keys", heard.len());

    // In the other direction: an initiation with such an ephemeral key gets no answer.
    let socket = topology.middle().enter(|| std::net::UdpSocket::bind("192.0.2.66:0"));
    let socket = socket.expect("socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    let message = initiation(&b.public_key(), &[0; 32], &mut Random::new(1));
    for _ in 0..3 {
        socket.send_to(&message, topology.b.endpoint(Outer::V4)).expect("sent");
        assert!(socket.recv(&mut [0; 256]).is_err(), "an answer to a low-order key");
    }
    await_traffic(&topology);
}

/// The NAT forgets an idle mapping after two seconds. With a keepalive of one second B still reaches A; without it B
/// does not, which shows that the NAT forgets.
#[test]
fn keepalives_hold_a_nat_mapping_open() {
    if !ready(&["nft"]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::nat());
        for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            topology.middle().sysctl(&format!("net/netfilter/{name}"), "2");
        }
        let (a, b) = pair_config(&topology, kind, kind, Outer::V4);
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        let key = b.public_key();
        a.set(&["peer", &key, "persistent-keepalive", "1"]);
        eventually(LIMIT, "the tunnel is up", || a.latest_handshake(&key) > 0);
        await_traffic(&topology);
        let seen = b.endpoint(&a.public_key()).map(|end| end.ip());
        assert_eq!(seen, Some(IpAddr::from([192, 0, 2, 254])));
        pause(4000);
        let reached = ping(&topology.b.host, topology.a.host4(), &["-c", "2", "-i", "0.2"]);
        assert!(reached.all_answered(), "{kind:?}: {}", reached.text);
        a.set(&["peer", &key, "persistent-keepalive", "off"]);
        // The path is probed for 3 s after the last packet.
        pause(6500);
        let lost = ping(&topology.b.host, topology.a.host4(), &["-c", "1"]);
        assert_eq!(lost.received, 0, "{kind:?}: the NAT should have forgotten");
    }
}

/// The peer's endpoint lies in its own allowed IPs: packets to it must not loop.
#[test]
fn a_tunnel_in_itself_makes_no_loop() {
    if !ready(&[]) {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options::default());
        let (mut a, b) = pair_config(&topology, kind, kind, Outer::V4);
        a.peers[0].allowed_ips.push("192.0.2.2/32".into());
        let (mut a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        let sent = || -> u64 {
            let file = "/sys/class/net/wan0/statistics/tx_bytes";
            topology.a.gateway.run(&["cat", file]).trim().parse().expect("a number")
        };
        let before = sent();
        let options = ["-c", "50", "-i", "0.01", "-W", "1"];
        ping(&topology.a.host, "192.0.2.2".parse().expect("an address"), &options);
        ping(&topology.a.host, topology.b.host4(), &options);
        let bytes = sent() - before;
        assert!(bytes < 100_000, "{kind:?}: a hundred echo requests became {bytes} bytes");
        assert!(a.process.is_running(), "{kind:?}");
    }
}

/// Everything through one peer: the default routes go to the tunnel, its own packets don't.
#[test]
fn a_default_route_through_the_tunnel() {
    // With other implementations this is up to the administrator.
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (mut a, b) = pair_config(&topology, kind, kind, Outer::V4);
        a.peers[0].allowed_ips = vec!["0.0.0.0/0".into(), "::/0".into()];
        let _gateways = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        tcp_both_ways(&topology.a.host, &topology.b.host, topology.b.host4(), 1 << 20);
    }
}
