//! Sites that use the same addresses: each sees the other's hosts under another prefix.

use crate::support::*;
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const BYTES: usize = 300_000;

/// A site's host, by its own address in each family, and the prefix under which the other sees site `number`.
struct Numbering {
    gateway: &'static str,
    host: &'static str,
    length: &'static str,
    prefix: &'static str,
    shown: fn(u8) -> String,
    shown_host: fn(u8) -> String,
}

const NUMBERINGS: [Numbering; 2] = [
    Numbering {
        gateway: "192.168.1.1",
        host: "192.168.1.5",
        length: "/24",
        prefix: "192.168.1.0/24",
        shown: |site| format!("10.77.{site}.0/24"),
        shown_host: |site| format!("10.77.{site}.5"),
    },
    Numbering {
        gateway: "fd00:192::1",
        host: "fd00:192::5",
        length: "/64 nodad",
        prefix: "fd00:192::/64",
        shown: |site| format!("fd00:77{site}::/64"),
        shown_host: |site| format!("fd00:77{site}::5"),
    },
];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Sends from one host to the other and back.
fn tcp(from: &Namespace, to: &Namespace, own: IpAddr, shown: IpAddr) {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(own, 9000)).expect("a port"));
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("all");
        stream.write_all(&all).expect("the same");
    });
    let mut stream = from
        .enter(|| TcpStream::connect_timeout(&SocketAddr::new(shown, 9000), PATIENCE).expect("the other host listens"));
    let sent: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    stream.write_all(&sent).expect("all");
    stream.shutdown(Shutdown::Write).expect("a socket");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("all of it");
    assert!(back == sent, "{} of {BYTES} bytes", back.len());
    echo.join().expect("an echo");
}

/// Sends to a port where nobody listens: the error that comes back quotes the datagram as it was sent.
fn refused(from: &Namespace, shown: IpAddr) {
    let error = from.enter(|| {
        let any = if shown.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(SocketAddr::new(shown, 9)).expect("a route");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
        socket.send(b"x").expect("sent");
        socket.recv(&mut [0; 9]).expect_err("nobody listens")
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

/// Gives both sites the same networks, each shown to the other as another one.
fn alike(topology: &Topology, kind: Kind) -> (Gateway, Gateway) {
    for site in [&topology.a, &topology.b] {
        for Numbering { gateway, host, length, .. } in &NUMBERINGS {
            site.gateway.ip(&format!("addr add {gateway}{length} dev lan0\n"));
            site.host.ip(&format!("addr add {host}{length} dev eth0\n"));
            // Otherwise the host would use its address in the other network.
            let family = if host.contains(':') { "-6 " } else { "" };
            site.host.run(&["sh", "-c", &format!("ip {family}route replace default via {gateway} src {host}")]);
        }
    }
    let (a, b) = pair(topology, kind, kind, Outer::V4);
    for (gateway, own, other) in [(&a, 1, 2), (&b, 2, 1)] {
        gateway.reload(|profile| {
            let mapped = NUMBERINGS.iter().map(|n| json!({ "Prefix": n.prefix, "As": (n.shown)(own) }));
            profile["Lan"]["Subnets"] = mapped.collect();
            profile["Peers"][0]["AllowedIPs"] = NUMBERINGS.iter().map(|n| json!((n.shown)(other))).collect();
        });
    }
    (a, b)
}

#[test]
fn hosts_with_the_same_addresses_talk_both_ways() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let _gateways = alike(&topology, kind);
        for n in &NUMBERINGS {
            let own = address(n.host);
            for (from, to, number) in [(&topology.a, &topology.b, 2), (&topology.b, &topology.a, 1)] {
                let shown = address(&(n.shown_host)(number));
                eventually(PATIENCE, &format!("{kind:?}: {shown} answers"), || {
                    ping(&from.host, shown, &["-c", "1"]).all_answered()
                });
                tcp(&from.host, &to.host, own, shown);
                refused(&from.host, shown);
            }
        }
    }
}

/// Hosts reach others of their own site by the site's own addresses only. Packets to the mapped ones go where the
/// gateway's other routes lead, unchanged.
#[test]
fn a_site_s_own_hosts_are_not_reached_by_the_addresses_for_others() {
    if !ready(&["tcpdump"]) || !is_penstock() {
        return;
    }
    for kind in [Kind::SOCKET, Kind::XDP] {
        let topology = Topology::new(Options::default());
        let _gateways = alike(&topology, kind);
        for n in &NUMBERINGS {
            let (own, shown) = (address(n.host), address(&(n.shown_host)(1)));
            let from_the_other_site = || {
                eventually(PATIENCE, &format!("{kind:?}: {shown} answers"), || {
                    ping(&topology.b.host, shown, &["-c", "1"]).all_answered()
                });
            };
            from_the_other_site();
            let capture = Capture::start(&topology.a.gateway, "wan0", "", topology.scratch());
            let pings = ping(&topology.a.host, shown, &["-c", "2", "-W", "1"]);
            let left = |frame: &Frame| frame.ip().is_some_and(|(from, to, ..)| (from, to) == (own, shown));
            assert!(capture.stop().iter().any(left), "{kind:?}: {shown}");
            assert_eq!(pings.received, 0, "{kind:?}: {}", pings.text);
            // As the documentation advises.
            topology.a.gateway.ip(&format!("route add unreachable {}\n", (n.shown)(1)));
            let pings = ping(&topology.a.host, shown, &["-c", "2", "-W", "1"]);
            assert!(pings.text.contains("nreachable"), "{kind:?}: {}", pings.text);
            from_the_other_site();
        }
    }
}
