//! The `wg` command on a running gateway, and the socket behind it.

use crate::support::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15);

#[test]
fn show_tells_what_the_profile_says() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, b) = pair_config(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let key = genpsk();
    a.peers[0].preshared_key = Some(key.clone());
    a.peers[0].keepalive = Some(25);
    let (a, peer) = (Gateway::start(&topology.a, a), b.public_key());
    assert!(wg(&["show", "interfaces"]).split_whitespace().any(|name| name == a.name()));
    assert_eq!(wg(&["show", a.name(), "public-key"]).trim(), a.public_key());
    assert_eq!(wg(&["show", a.name(), "private-key"]).trim(), a.config.private_key);
    assert_eq!(wg(&["show", a.name(), "listen-port"]).trim(), PORT.to_string());
    assert_eq!(wg(&["show", a.name(), "peers"]).trim(), peer);
    assert_eq!(a.show("preshared-keys", &peer), key);
    assert_eq!(a.show("persistent-keepalive", &peer), "25");
    assert_eq!(a.endpoint(&peer), Some(topology.b.endpoint(Outer::V4)));
    let mut allowed: Vec<String> = a.show("allowed-ips", &peer).split_whitespace().map(str::to_owned).collect();
    let mut expected = topology.b.allowed_ips();
    allowed.sort();
    expected.sort();
    assert_eq!(allowed, expected);
    assert!(wg(&["showconf", a.name()]).contains(&peer));
}

#[test]
fn handshakes_and_endpoints_show_up() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, mut b) = pair_config(&topology, Kind::XDP, Kind::SOCKET, Outer::V6);
    b.peers[0].endpoint = None;
    let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    assert_eq!(b.latest_handshake(&a.public_key()), 0);
    assert_eq!(b.endpoint(&a.public_key()), None);
    await_traffic(&topology);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    for (gateway, peer) in [(&a, &b), (&b, &a)] {
        let age = now.abs_diff(gateway.latest_handshake(&peer.public_key()));
        assert!(age < 30, "a handshake {age} s ago");
    }
    assert_eq!(b.endpoint(&a.public_key()), Some(topology.a.endpoint(Outer::V6)));
}

/// A peer set on a running gateway works at once, including its routes; when removed it is gone, and packets for it are
/// not sent in the clear.
#[test]
fn peers_come_and_go() {
    if !ready(&["tcpdump"]) {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::switch());
        let (mut a, b) = pair_config(&topology, kind, kind, Outer::V4);
        let peer = a.peers.remove(0);
        let (a, _b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        assert_eq!(wg(&["show", a.name(), "peers"]).trim(), "");
        let allowed = peer.allowed_ips.join(",");
        let endpoint = peer.endpoint.expect("an endpoint").to_string();
        a.set(&["peer", &peer.public_key, "allowed-ips", &allowed, "endpoint", &endpoint]);
        peer.allowed_ips.iter().for_each(|prefix| a.route(prefix));
        await_traffic(&topology);
        let reached = ping(&topology.b.host, topology.a.host4(), &["-c", "2", "-i", "0.1"]);
        assert!(reached.all_answered(), "{kind:?}: {}", reached.text);

        a.set(&["peer", &peer.public_key, "allowed-ips", "10.102.0.0/24"]);
        eventually(LIMIT, "the IPv6 prefix is given back", || {
            ping(&topology.b.host, topology.a.host6(), &["-c", "1", "-W", "0.3"]).received == 0
        });
        let kept = ping(&topology.a.host, topology.b.host4(), &["-c", "2", "-i", "0.1"]);
        assert!(kept.all_answered(), "{kind:?}: {}", kept.text);

        a.set(&["peer", &peer.public_key, "remove"]);
        assert_eq!(wg(&["show", a.name(), "peers"]).trim(), "");
        let gone = ping(&topology.b.host, topology.a.host4(), &["-c", "2", "-i", "0.1"]);
        assert_eq!(gone.received, 0, "{kind:?}: a removed peer still gets through");
    }
}

/// Two lists of prefixes: a prefix belongs to the peer that it was last given to.
#[test]
fn a_prefix_has_one_peer() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = pair_config(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let (a, first, second) = (Gateway::start(&topology.a, a), b.public_key(), pubkey(&genkey()));
    a.set(&["peer", &second, "allowed-ips", "10.102.0.0/24,10.77.0.0/16"]);
    assert!(!a.show("allowed-ips", &first).contains("10.102.0.0/24"));
    assert!(a.show("allowed-ips", &first).contains("fd00:102::/64"));
    assert!(a.show("allowed-ips", &second).contains("10.102.0.0/24"));
}

#[test]
fn a_preshared_key_set_live_takes_effect() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = joined(&topology, Kind::XDP, Kind::SOCKET, Outer::V4);
    let key = genpsk();
    let file = a.secret_file("live.psk", &key);
    for (gateway, peer) in [(&a, &b), (&b, &a)] {
        gateway.set(&["peer", &peer.public_key(), "preshared-key", &file]);
        assert_eq!(gateway.show("preshared-keys", &peer.public_key()), key);
    }
    await_traffic(&topology);
}

/// `wg syncconf` brings a gateway to a file's state; `wg show NAME dump` is parseable throughout.
#[test]
fn syncconf_replaces_the_peers() {
    if !ready(&[]) {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let other = pubkey(&genkey());
    let mut conf = wg(&["showconf", a.name()]);
    conf += &format!("\n[Peer]\nPublicKey = {other}\nAllowedIPs = 10.77.0.0/16\n");
    let file = a.secret_file("sync.conf", &conf);
    wg(&["syncconf", a.name(), &file]);
    let peers = wg(&["show", a.name(), "peers"]);
    assert!(peers.contains(&b.public_key()) && peers.contains(&other), "{peers}");
    let dump = wg(&["show", a.name(), "dump"]);
    assert_eq!(dump.lines().count(), 3, "{dump}");
    assert!(dump.lines().skip(1).all(|line| line.split('\t').count() == 8), "{dump}");
    await_traffic(&topology);
}

/// Nonsense on the socket is answered with an error number, and the next request is served.
#[test]
fn nonsense_on_the_socket_is_refused() {
    // The requests and errors are those in the description of the cross-platform interface.
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::XDP, Kind::XDP, Outer::V4);
    let zero = "0".repeat(64);
    for request in [
        "hello\n\n".to_owned(),
        "set=1\nprivate_key=12\n\n".to_owned(),
        "set=1\nlisten_port=99999\n\n".to_owned(),
        "set=1\nallowed_ip=10.0.0.0/8\n\n".to_owned(),
        "set=1\ncolour=blue\n\n".to_owned(),
        format!("set=1\npublic_key={zero}\nendpoint=nowhere\n\n"),
        format!("set=1\npublic_key={zero}\nallowed_ip=10.0.0.0/33\n\n"),
        format!("set=1\n{}\n\n", "x".repeat(100_000)),
    ] {
        let mut stream = UnixStream::connect(socket(a.name())).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        // The gateway may hang up in the middle of the long one.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = [0; 256];
        let length = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..length]);
        let shown = &request[..request.len().min(60)];
        assert!(!answer.contains("errno=0"), "{shown:?} was taken");
    }
    // A client that sends nothing does not keep others waiting.
    let _silent = UnixStream::connect(socket(a.name())).expect("connected");
    wg(&["show", a.name()]);
    assert!(a.process.is_running());
    await_traffic(&topology);
}

#[test]
fn keys_of_the_command_line_are_those_of_wg() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let namespace = Namespace::new("keys");
    let output = penstock(&namespace, &["genkey"]);
    assert!(output.status.success());
    let private = String::from_utf8(output.stdout).expect("UTF-8");
    let private = private.trim();
    let expected = pubkey(private);
    let mut child = std::process::Command::new(penstock_binary().expect("checked"))
        .arg("pubkey")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("penstock starts");
    let mut input = child.stdin.take().expect("piped");
    writeln!(input, "{private}").expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
}
