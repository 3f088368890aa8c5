use super::*;

#[test]
fn the_table_is_readable() {
    let mut status = crate::status::sample();
    status.peers.push(crate::status::PeerStatus {
        name: String::new(),
        statement: None,
        endpoint: None,
        last_handshake: None,
        path: PathKind::None,
        reason: None,
        round_trip_ms: None,
        suite: "chacha20-poly1305".into(),
        mtu: None,
        trains: None,
        suite_reason: "WireGuard's own suite".into(),
        ..status.peers[0].clone()
    });
    status.peers.push(crate::status::PeerStatus {
        name: "cadiz".into(),
        path: PathKind::Relay,
        relay: Some("coordinator".into()),
        reason: Some("UDP is blocked here".into()),
        ..status.peers[0].clone()
    });
    let text = for_people(&status, Duration::from_secs(1_700_000_042));
    let key = status.public_key.to_string();
    let expected = format!(
        "\
amsterdam: Penstock 0.1.0, process 4711
  public key  {key}
  UDP port    47100
  NAT         unknown
  coordinator https://coordinator.example.net as amsterdam: connected
  authority   AuthorityKey
  not offered 10.101.9.0/24, which waits for an administrator of the coordinator: it is larger than what was granted
  tunnel MTU  1420
  workers     2
  cipher      ifma512: the fastest that this CPU supports; aes-256-gcm 7500 MB/s, chacha20-poly1305 4500 MB/s
  WAN         xdp: eth0 has zero-copy
  LAN         tun: asked for

PORT  KIND  QUEUE  WORKER  XDP     ZERO-COPY  RECEIVES        SENDS
eth0  xdp   1      1       native  yes        proven 3 s ago  unproven

RELAY        BY   ADDRESS         BOUND  ROUND TRIP
coordinator  udp  192.0.2.9:3478  yes    0.5 ms

PEER                                          PATH               ROUND TRIP  ENDPOINT         HANDSHAKE  SUITE              MTU   RECEIVED  SENT  LEASE  ALLOWED IPS
berlin                                        direct             1.5 ms      192.0.2.2:47100  42 s ago   aes-256-gcm        1340  1.5 KiB   10 B  7 d    10.102.0.0/24
{key}  none               -           -                never      chacha20-poly1305  -     1.5 KiB   10 B  -      10.102.0.0/24
cadiz                                         relay coordinator  1.5 ms      192.0.2.2:47100  42 s ago   aes-256-gcm        1340  1.5 KiB   10 B  7 d    10.102.0.0/24

problem: eth1: there is no interface eth1
  to fix it: connect it

cadiz is relayed: UDP is blocked here

berlin uses aes-256-gcm: the profile says so

cadiz uses aes-256-gcm: the profile says so

berlin takes packets of 1340 bytes: its path carries 1400, probed

cadiz takes packets of 1340 bytes: its path carries 1400, probed

firewall: 12 of 262144 flows
  1 web: accept 7
  else in: drop 4
  else out: accept 9
  berlin may begin udp/53, by the coordinator: drop 2

dropped: replayed 3

steered, WAN: redirect 8
"
    );
    assert_eq!(text, expected);
}

#[test]
fn sizes_and_ages() {
    assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(u64::MAX)], ["0 B", "1023 B", "1.0 KiB", "16.0 EiB"]);
    assert_eq!([age(59), age(60), age(7200), age(200_000)], ["59 s ago", "1 min ago", "2 h ago", "2 d ago"]);
}

#[test]
fn columns_stay_aligned_whatever_names_are_made_of() {
    let mut table = Table::new(&["PEER", "PATH"]);
    table.row(["東京支店".into(), "direct".into()]);
    table.row(["Büro".into(), "none".into()]);
    assert_eq!(table.to_string(), "PEER      PATH\n東京支店  direct\nBüro      none\n");
}

#[test]
fn long_names_keep_their_ends() {
    assert_eq!(shortened("branch-office-001", 17), "branch-office-001");
    assert_eq!(shortened("branch-office-001", 16), "branch-o…ice-001");
    assert_eq!(shortened("東京支店東京支店-7", 10), "東京…店-7");
}
