use std::time::Duration;

use super::*;

/// As wireguard-tools 1.0.20210914 sends it for
/// `wg set fk1 listen-port 7000 fwmark 0x10 peer … preshared-key … endpoint … allowed-ips …`.
const CAPTURED_SET: &str = "set=1\nlisten_port=7000\nfwmark=16\n\
    public_key=d0c79877a8dfbe1d5788abaabaf685676d7cd3286b20506ad818b2919e1ef41e\n\
    preshared_key=84f1e6df08a4fe83fa9f15799ff135d24c0a8ba04e81c1a6401fccf6474416d4\n\
    endpoint=[fd00::1]:5\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
    allowed_ip=10.0.0.5/24\nallowed_ip=fd00::/8\n\n";

/// As `wg setconf` sends it.
const CAPTURED_SETCONF: &str = "set=1\n\
    private_key=60c98637ea44c3f63c17838f8d2528df108cf49ebb8fe275e3311ce3502e3c67\n\
    listen_port=0\nfwmark=0\nreplace_peers=true\n\
    public_key=440c8dd36c0f42a1e38ccc5bd39efa9e7e2de38f60ccf5090c1248b66a221a37\n\
    replace_allowed_ips=true\nallowed_ip=1.2.3.4/32\n\n";

const KEY: &str = "d0c79877a8dfbe1d5788abaabaf685676d7cd3286b20506ad818b2919e1ef41e";

fn set(text: &str) -> Result<SetDevice, Errno> {
    match parse(text.as_bytes())? {
        Operation::Set(change) => Ok(change),
        Operation::Get => panic!("a get"),
    }
}

/// A request about one peer.
fn set_peer(lines: &str) -> Result<SetPeer, Errno> {
    Ok(set(&format!("set=1\npublic_key={KEY}\n{lines}\n\n"))?.peers.remove(0))
}

#[test]
fn captured_requests() {
    assert_eq!(parse(b"get=1\n\n"), Ok(Operation::Get));
    let change = set(CAPTURED_SET).unwrap();
    assert_eq!((change.listen_port, change.fwmark, change.replace_peers), (Some(7000), Some(16), false));
    assert_eq!(change.private_key, Change::Keep);
    let peer = &change.peers[0];
    assert_eq!(peer.public_key.to_hex(), KEY);
    assert!(matches!(peer.preshared_key, Change::To(_)));
    assert_eq!(peer.endpoint, Some("[fd00::1]:5".parse().unwrap()));
    assert_eq!(peer.persistent_keepalive, Change::To(Duration::from_secs(25)));
    let allowed: Vec<_> = peer.allowed_ips.iter().map(|ip| (ip.prefix.to_string(), ip.remove)).collect();
    assert_eq!(allowed, [("10.0.0.0/24".to_owned(), false), ("fd00::/8".to_owned(), false)]);

    let change = set(CAPTURED_SETCONF).unwrap();
    assert!(matches!(change.private_key, Change::To(_)) && change.replace_peers);
    assert_eq!((change.listen_port, change.fwmark), (Some(0), Some(0)));
    assert_eq!(change.peers.len(), 1);
}

#[test]
fn every_key_of_a_peer() {
    let zeros = "0".repeat(64);
    let peer = set_peer(&format!(
        "update_only=true\nremove=true\npreshared_key={zeros}\npersistent_keepalive_interval=0\n\
         allowed_ip=-10.0.0.0/8\nallowed_ip=+10.1.0.0/16\nallowed_ip=fd00::1\nprotocol_version=1"
    ))
    .unwrap();
    assert!(peer.update_only && peer.remove && !peer.replace_allowed_ips);
    assert_eq!((peer.preshared_key, peer.persistent_keepalive), (Change::Clear, Change::Clear));
    let allowed: Vec<_> = peer.allowed_ips.iter().map(|ip| (ip.prefix.to_string(), ip.remove)).collect();
    let expected = [("10.0.0.0/8", true), ("10.1.0.0/16", false), ("fd00::1/128", false)];
    assert!(allowed.iter().map(|(prefix, remove)| (prefix.as_str(), *remove)).eq(expected));
    // The newer way of writing a link-local endpoint.
    assert!(set_peer("endpoint=[fe80::1%2]:5").is_ok());
    assert!(set_peer("endpoint=[fe80::1%lo]:5").is_ok());
    for wrong in ["[fe80::1%nosuch0]:5", "[fe80::1%]:5", "[fe80::1%lo]:0", "[fe80::1%lo]", "[1.2.3.4%lo]:5"] {
        assert!(set_peer(&format!("endpoint={wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn a_peer_may_occur_twice_in_order() {
    let change = set(&format!("set=1\npublic_key={KEY}\nremove=true\npublic_key={KEY}\nallowed_ip=10.0.0.0/8\n\n"));
    let peers = change.unwrap().peers;
    assert!(peers[0].remove && !peers[1].remove && peers[1].allowed_ips.len() == 1);
}

#[test]
fn wrong_requests() {
    for (text, errno) in [
        ("", Errno::Protocol),
        ("\n", Errno::Protocol),
        ("get=2\n\n", Errno::Invalid),
        ("listen_port=1\n\n", Errno::Protocol),
        ("get=1\nlisten_port=1\n\n", Errno::Protocol),
        ("set=1\nlisten_port\n\n", Errno::Protocol),
        ("set=1\nlisten_port=65536\n\n", Errno::Invalid),
        ("set=1\nlisten_port=+1\n\n", Errno::Invalid),
        ("set=1\nlisten_port=\n\n", Errno::Invalid),
        ("set=1\nfwmark=0x+1\n\n", Errno::Invalid),
        ("set=1\nprivate_key=00\n\n", Errno::Invalid),
        ("set=1\nreplace_peers=false\n\n", Errno::Invalid),
        ("set=1\nendpoint=1.2.3.4:5\n\n", Errno::Protocol),
        ("set=1\npublic_key=xyz\n\n", Errno::Invalid),
        ("set=1\nset=1\n\n", Errno::Protocol),
    ] {
        assert_eq!(parse(text.as_bytes()), Err(errno), "{text:?}");
    }
    for line in [
        "endpoint=1.2.3.4",
        "endpoint=1.2.3.4:0",
        "endpoint=0.0.0.0:1",
        "endpoint=host:1",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=--10.0.0.0/8",
        "allowed_ip=x",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "protocol_version=2",
        "remove=1",
        "preshared_key=ff",
    ] {
        assert_eq!(set_peer(line).err(), Some(Errno::Invalid), "{line}");
    }
    assert_eq!(set_peer("listen_port=1").err(), Some(Errno::Protocol));
}

#[test]
fn limits() {
    let long = format!("set=1\nfwmark={}\n\n", "0".repeat(LINE_LIMIT));
    assert_eq!(parse(long.as_bytes()), Err(Errno::Invalid));
    let peers = format!("set=1\n{}\n", format!("public_key={KEY}\n").repeat(PEER_LIMIT));
    assert_eq!(set(&peers).unwrap().peers.len(), PEER_LIMIT);
    let peers = format!("set=1\n{}\n", format!("public_key={KEY}\n").repeat(PEER_LIMIT + 1));
    assert_eq!(parse(peers.as_bytes()), Err(Errno::TooLarge));
    let prefixes = "allowed_ip=::/0\n".repeat(ALLOWED_IP_LIMIT + 1);
    assert_eq!(set_peer(prefixes.trim_end()).err(), Some(Errno::TooLarge));
    let endless = format!("set=1\n{}", "listen_port=1\n".repeat(REQUEST_LIMIT / 14 + 1));
    assert_eq!(parse(endless.as_bytes()), Err(Errno::TooLarge));
}

#[test]
fn a_parser_takes_request_after_request() {
    let mut parser = Parser::default();
    assert_eq!(parser.line(b"set=1"), Progress::More);
    assert_eq!(parser.line(b"nonsense"), Progress::More);
    assert_eq!(parser.line(b"listen_port=1"), Progress::More);
    assert_eq!(parser.line(b""), Progress::Done(Err(Errno::Protocol)));
    assert_eq!(parser.line(b"get=1"), Progress::More);
    assert_eq!(parser.line(b""), Progress::Done(Ok(Operation::Get)));
}

#[test]
fn no_cut_or_changed_request_panics() {
    let mut random = 1u32;
    for cut in 0..CAPTURED_SET.len() {
        let _ = parse(&CAPTURED_SET.as_bytes()[..cut]);
        let mut text = CAPTURED_SET.as_bytes().to_vec();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text[cut] = (random >> 24) as u8;
        let _ = parse(&text);
    }
}

#[test]
fn requests_show_no_secrets() {
    let shown = format!("{:?}", set(CAPTURED_SET).unwrap());
    assert!(!shown.contains("84f1e6df") && !shown.contains("132, 241"), "{shown}");
}

#[test]
fn an_empty_device() {
    assert_eq!(*format_get(&Device::default()), "errno=0\n\n");
    assert_eq!(format_errno(Ok(())), "errno=0\n\n");
    // wg shows "Unknown error -22" for a positive one.
    assert_eq!(format_errno(Err(Errno::Invalid)), "errno=-22\n\n");
}
