//! Whether the laboratory's NATs behave as named, checked with the discovery that gateways use and by hole punching
//! with plain sockets. The consequences for gateways are tested elsewhere.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::nat::{Kind, Lab, Site, Stun, UdpTimeouts, exchange, nat_report, socket};
use crate::support::ready;

const TOOLS: [&str; 3] = ["nft", "conntrack", "tinyproxy"];
const PORT: u16 = 47100;

#[test]
fn every_kind_is_what_a_discovery_says() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let sites = lab.sites(&Kind::ALL);
    std::thread::scope(|scope| {
        for site in &sites {
            scope.spawn(|| {
                let report = nat_report(&socket(site, PORT), stun.ipv4);
                let kind = site.kind();
                assert_eq!(report.nat_type(), kind.nat_type(), "{kind:?}: {report:?}");
                if !report.udp_blocked {
                    assert_eq!(report.translated, Some(kind != Kind::None), "{kind:?}");
                    assert_eq!(report.reflexive.expect("an address").ip(), site.public(), "{kind:?}");
                    assert_eq!(report.port_preservation, Some(kind != Kind::Symmetric), "{kind:?}");
                    assert_eq!(report.hairpinning, Some(kind == Kind::None), "{kind:?}");
                }
            });
        }
    });
}

#[test]
fn an_ipv6_address_is_not_translated() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::dual_stack();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::Symmetric, 1);
    let socket = site.gateway.enter(|| std::net::UdpSocket::bind((site.global_ipv6(), PORT))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    let report = nat_report(&socket, stun.ipv6);
    assert_eq!(report.nat_type(), Kind::None.nat_type(), "{report:?}");
    assert_eq!(report.reflexive, Some(SocketAddr::new(site.global_ipv6().into(), PORT)));
}

/// All pairs of kinds in parallel; each pair has its own sites and its own ports.
#[test]
fn hole_punching_works_exactly_where_the_oracle_says() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    // Two of each kind, so that a kind can meet itself.
    let kinds: Vec<Kind> = Kind::ALL.into_iter().chain(Kind::ALL).collect();
    let started = Instant::now();
    let sites = lab.sites(&kinds);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(15), "16 sites took {took:?}");
    let (left, right) = sites.split_at(Kind::ALL.len());
    std::thread::scope(|scope| {
        for (i, a) in left.iter().enumerate() {
            for (j, b) in right.iter().enumerate().skip(i) {
                let port = PORT + (i * Kind::ALL.len() + j) as u16;
                let server = stun.ipv4;
                scope.spawn(move || {
                    let expected = a.kind().direct_works(b.kind());
                    assert_eq!(punch(a, b, port, server), expected, "{:?} and {:?}", a.kind(), b.kind());
                });
            }
        }
    });
}

fn punch(a: &Site, b: &Site, port: u16, server: SocketAddr) -> bool {
    let sockets = [a, b].map(|site| socket(site, port));
    let [Some(a), Some(b)] = sockets.each_ref().map(|socket| reflexive(socket, server)) else { return false };
    exchange((&sockets[0], a), (&sockets[1], b), Duration::from_secs(3))
}

/// The address at which a server sees a socket; repeats the question until there is an answer, for three seconds.
fn reflexive(socket: &std::net::UdpSocket, server: SocketAddr) -> Option<SocketAddr> {
    use penstock_proto::stun::message::{Change, Message, decode, encode_request};
    let mut datagram = [0; 1500];
    for _ in 0..6 {
        let _ = socket.send_to(&encode_request(b"transaction!", Change::default()), server);
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            if let Ok((length, _)) = socket.recv_from(&mut datagram)
                && let Ok(Message::Success { mapped, .. }) = decode(&datagram[..length])
            {
                return Some(mapped);
            }
        }
    }
    None
}

#[test]
fn a_site_changes_while_it_runs() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::FullCone, 1);
    let here = socket(&site, PORT);
    let seen = |port| Some(SocketAddr::new(site.public().into(), port));
    assert_eq!(reflexive(&here, stun.ipv4), seen(PORT));

    let moved = site.rebind(PORT);
    assert_eq!(reflexive(&here, stun.ipv4), seen(moved));
    let old = site.public();
    assert_ne!(site.change_external_address(), old);
    assert_eq!(reflexive(&here, stun.ipv4), seen(moved));

    site.cut(lab.server(1));
    assert_eq!(reflexive(&here, stun.ipv4), None);
    let other_corner = SocketAddr::new(lab.server(2).into(), stun.ipv4.port());
    assert_eq!(reflexive(&here, other_corner), seen(moved));
    site.heal();
    assert_eq!(reflexive(&here, stun.ipv4), seen(moved));

    site.set_kind(Kind::Symmetric);
    assert_eq!(nat_report(&here, stun.ipv4).nat_type(), Kind::Symmetric.nat_type());
    drop(here);
    site.set_kind(Kind::None);
    assert_eq!(nat_report(&socket(&site, PORT), stun.ipv4).translated, Some(false));
    site.set_kind(Kind::FullCone);
    site.set_hairpin(true);
    let report = nat_report(&socket(&site, PORT), stun.ipv4);
    assert_eq!((report.nat_type(), report.hairpinning), (Kind::FullCone.nat_type(), Some(true)));
}

/// A server sends to a mapping that was idle for less, and then for more, than its lifetime.
#[test]
fn a_mapping_lives_as_long_as_it_is_told_to() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    std::thread::scope(|scope| {
        let kinds = [Kind::FullCone, Kind::AddressRestricted, Kind::PortRestricted, Kind::Masquerade];
        for (number, kind) in (1..).zip(kinds) {
            let lab = &lab;
            scope.spawn(move || mapping_lifetime(lab, kind, number));
        }
    });
}

fn mapping_lifetime(lab: &Lab, kind: Kind, number: u8) {
    let life = Duration::from_secs(3);
    let server = lab.internet().enter(|| std::net::UdpSocket::bind((lab.server(3), 0))).expect("a server");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let site = lab.site(kind, number);
    site.set_udp_timeouts(UdpTimeouts { unreplied: life, stream: life });
    let inside = socket(&site, PORT);
    let mut datagram = [0; 16];
    let mut arrives_after = |silence: Duration| {
        inside.send_to(b"out", server.local_addr().expect("bound")).expect("sent");
        let (_, from) = server.recv_from(&mut datagram).expect("it arrives");
        std::thread::sleep(silence);
        server.send_to(b"in", from).expect("sent");
        std::thread::sleep(Duration::from_millis(50));
        inside.recv_from(&mut datagram).is_ok()
    };
    assert!(arrives_after(life / 2), "{kind:?}");
    assert!(!arrives_after(life + Duration::from_millis(1500)), "{kind:?}");
}

/// TCP passes every NAT except the one with a proxy, and the proxy takes CONNECT to any port.
#[test]
fn tcp_gets_out_everywhere() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let listener = lab.internet().enter(|| TcpListener::bind((lab.server(3), 443))).expect("a listener");
    let server = listener.local_addr().expect("bound");
    let connect = |site: &Site, to| site.gateway.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
    let mut greeting = [0; 2];
    for (number, kind) in (1..).zip(Kind::ALL) {
        let site = lab.site(kind, number);
        let direct = connect(&site, server);
        assert_eq!(direct.is_ok(), kind != Kind::ProxyOnly, "{kind:?}: {direct:?}");
        let mut stream = match direct {
            Ok(stream) => stream,
            Err(_) => {
                let mut stream = connect(&site, site.proxy()).expect("the proxy");
                write!(stream, "CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n\r\n").expect("sent");
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("an answer") == 1 {
                    head.push(byte[0]);
                }
                assert!(head.starts_with(b"HTTP/1.") && head[8..].starts_with(b" 200"), "{:?}", head.escape_ascii());
                stream
            }
        };
        let (mut accepted, from) = listener.accept().expect("a connection");
        assert_eq!(from.ip(), site.public(), "{kind:?}");
        accepted.write_all(b"hi").expect("sent");
        stream.read_exact(&mut greeting).expect("received");
        assert_eq!(&greeting, b"hi");
    }
}
