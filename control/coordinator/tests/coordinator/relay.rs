//! The relay over real sockets: whose datagrams it forwards, whose not, and how soon that changes.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use penstock_coordinator::admin::{Answer, Request, StatusReport};
use penstock_coordinator::admission::limits::LARGER_ANSWERS;
use penstock_proto::path::SiteId;
use penstock_proto::relay::{BIND_LENGTH, RelayLimits};
use penstock_proto::stun::message::{Change, Message, decode, encode_request, encode_request_for_port, is_stun};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::client::PATIENCE;
use crate::running::Running;
use crate::tunnel::{Link, SILENCE, Tunnel, handshake, passes};

impl Running {
    pub async fn status(&self) -> StatusReport {
        match self.ask(Request::Status).await {
            Answer::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn drops(&self, reason: &str) -> u64 {
        self.status().await.relay.unwrap().drops[reason]
    }
}

/// Handshake and data both ways, in datagrams of many sizes.
async fn talk(a: &mut Tunnel, b: &mut Tunnel) {
    assert!(handshake(a, b).await);
    assert!(passes(a, b, b"").await, "the keepalive that ends a handshake");
    for length in [1, 100, 1420, 8960] {
        assert!(passes(a, b, &vec![7; length]).await, "{length}");
        assert!(passes(b, a, &vec![8; length]).await, "{length}");
    }
}

#[tokio::test]
async fn sites_talk_by_udp_by_streams_and_by_one_of_each() {
    let running = Running::start().await;
    let mut tunnels = Vec::new();
    for (number, (one, other)) in [(true, true), (false, false), (true, false)].into_iter().enumerate() {
        let mut a = running.tunnel(&format!("a{number}"), one).await;
        let mut b = running.tunnel(&format!("b{number}"), other).await;
        a.bind().await;
        b.bind().await;
        talk(&mut a, &mut b).await;
        tunnels.extend([a, b]);
    }
    let relay = running.status().await.relay.unwrap();
    assert_eq!((relay.sites, relay.bindings), (6, 6));
    assert_eq!(relay.datagrams, 3 * (2 + 1 + 8));
    assert!(relay.bytes > 3 * 2 * (1420 + 8960), "{}", relay.bytes);
    assert_eq!(relay.drops["unknown-receiver"], 0);
}

#[tokio::test]
async fn a_server_at_all_addresses_serves_both_ip_versions() {
    let mut document = crate::running::document(tempfile::tempdir().unwrap().path());
    document.udp_listen = Some(vec!["[::]:0".parse().unwrap()]);
    document.names = Some(vec![crate::client::HOST.into(), "192.0.2.1".into()]);
    let running = Running::start_with(crate::running::directory(), document).await;
    let port = running.udp.port();
    let mut tunnels = Vec::new();
    for (name, at) in [("a", "127.0.0.1"), ("b", "[::1]")] {
        let at = format!("{at}:{port}").parse().unwrap();
        let (site, connection) = running.site(name, &[], &[]).await;
        let relay = connection.map.unwrap().relays[0].public_key;
        let mut tunnel = Tunnel::new(&site.private, relay, Link::udp(at).await);
        tunnel.bind().await;
        tunnels.push(tunnel);
        // The same port tells what it sees, by the same IP version.
        let Link::Udp(socket) = Link::udp(at).await else { panic!("by UDP") };
        socket.send(&encode_request(b"transaction!", Change::default())).await.unwrap();
        let mut answer = [0; 200];
        let length = timeout(PATIENCE, socket.recv(&mut answer)).await.unwrap().unwrap();
        let mapped = socket.local_addr().unwrap();
        assert!(matches!(decode(&answer[..length]), Ok(Message::Success { mapped: seen, .. }) if seen == mapped));
    }
    let [a, b] = &mut tunnels[..] else { panic!("two") };
    talk(a, b).await;
}

#[tokio::test]
async fn stun_answers_to_another_port_of_the_same_address_only() {
    let running = Running::start().await;
    let bind = async |at: &str| UdpSocket::bind(at).await.unwrap();
    let (x, y) = (bind("127.0.0.1:0").await, bind("127.0.0.1:0").await);
    let port = x.local_addr().unwrap().port();
    let elsewhere = bind(&format!("127.0.0.2:{port}")).await;
    let request = encode_request_for_port(b"transaction!", NonZeroU16::new(port).unwrap());
    y.send_to(&request, running.udp).await.unwrap();
    let mut answer = [0; 200];
    let (length, from) = timeout(PATIENCE, x.recv_from(&mut answer)).await.unwrap().unwrap();
    assert_eq!(from, running.udp, "which the asker has sent to");
    assert!(length <= request.len());
    let mapped = y.local_addr().unwrap();
    assert!(matches!(decode(&answer[..length]), Ok(Message::Success { mapped: seen, .. }) if seen == mapped));
    for other in [x, y, elsewhere] {
        assert!(timeout(SILENCE, other.recv(&mut answer)).await.is_err(), "one answer to one place");
    }
}

#[tokio::test]
async fn policy_and_revocation_cut_within_a_second() {
    let running = Running::start().await;
    let mut a = running.tunnel("a", true).await;
    let mut b = running.tunnel("b", false).await;
    let mut hidden = running.tunnel("hidden", true).await;
    for tunnel in [&mut a, &mut b, &mut hidden] {
        tunnel.bind().await;
    }
    assert!(handshake(&mut a, &mut b).await && passes(&mut a, &mut b, b"before").await);
    running.policy(r#"{"Links": [["a", "b"]]}"#).await;
    cut(&running, "hidden", &mut hidden, &mut a).await;
    assert!(passes(&mut b, &mut a, b"untouched").await);
    running.policy(r#"{"Links": []}"#).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!passes(&mut a, &mut b, b"parted").await);
    assert!(!handshake(&mut a, &mut b).await);

    running.policy(r#"{"Links": [["*", "*"]]}"#).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(handshake(&mut a, &mut b).await && passes(&mut a, &mut b, b"joined again").await);
    let start = Instant::now();
    running.done(Request::Revoke("b".into())).await;
    // The stream of a revoked site ends.
    assert_eq!(b.link.receive(PATIENCE).await, None);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(!passes(&mut a, &mut b, b"revoked").await);
    assert_eq!(running.status().await.relay.unwrap().sites, 2);
    let mut again = Link::stream(running.address, running.pin).await;
    std::mem::swap(&mut b.link, &mut again);
    assert_eq!(b.try_bind().await, None);
    assert!(running.drops("unknown-site").await > 0);
}

/// A site that policy hides reaches nobody: neither by an initiation nor by a probe.
async fn cut(running: &Running, name: &str, from: &mut Tunnel, to: &mut Tunnel) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = running.drops("unknown-receiver").await;
    assert!(!handshake(from, to).await, "{name}");
    let mut probe = vec![0; penstock_proto::path::PROBE_LENGTH];
    probe[..4].copy_from_slice(&[0x50, 1, 1, 0]);
    probe[4..12].copy_from_slice(&SiteId::of(to.gateway.public_key()).0);
    from.link.send(&probe).await;
    assert_eq!(to.link.receive(SILENCE).await, None, "{name}");
    assert_eq!(running.drops("unknown-receiver").await, before + 2, "{name}");
}

#[tokio::test]
async fn nobody_takes_the_place_of_a_site() {
    let running = Running::start().await;
    let mut a = running.tunnel("a", true).await;
    let mut b = running.tunnel("b", true).await;
    b.bind().await;
    // What the victim said to bind itself, recorded on the way.
    let mut recorded = Vec::new();
    a.client.renew(Instant::now());
    while !a.client.is_bound(Instant::now()) {
        let message = a.client.poll_transmit(Instant::now()).unwrap();
        recorded.push(message);
        a.link.send(&message).await;
        let answer = a.link.receive(PATIENCE).await.unwrap();
        a.client.handle_datagram(Instant::now(), &answer);
    }
    assert_eq!(recorded.len(), 2);
    for mut thief in [Link::udp(running.udp).await, Link::stream(running.address, running.pin).await] {
        for message in &recorded {
            thief.send(message).await;
            let challenge = thief.receive(PATIENCE).await.unwrap();
            assert_eq!(challenge.len(), penstock_proto::relay::CHALLENGE_LENGTH);
            // With the cookie that is right for the thief, and a proof that is not.
            let mut forged = *message;
            forged[12..28].copy_from_slice(&challenge[12..28]);
            let before = running.drops("bad-proof").await;
            thief.send(&forged).await;
            assert_eq!(thief.receive(SILENCE).await, None);
            assert_eq!(running.drops("bad-proof").await, before + 1);
            if let Link::Stream(_) = thief {
                break;
            }
        }
    }
    assert!(handshake(&mut b, &mut a).await, "the victim is where it was");
}

#[tokio::test]
async fn before_the_proof_no_answer_exceeds_its_request_but_a_few_of_stun() {
    let running = Running::start().await;
    let mut site = running.tunnel("a", true).await;
    site.bind().await;
    let mut stranger = Link::udp(running.udp).await;
    let bind = {
        let mut client = running.tunnel("b", true).await;
        client.client.poll_transmit(Instant::now()).unwrap()
    };
    let mut heads: Vec<Vec<u8>> = (0..=6).map(|kind| vec![0x50, kind, 1, 0]).collect();
    heads.extend((0..=5).map(|kind| vec![kind, 0, 0, 0]));
    heads.push(bind.to_vec());
    heads.push(encode_request(b"transaction!", Change { ip: true, port: true }));
    heads.push(encode_request(b"transaction!", Change::default())[..20].to_vec());
    let (mut answered, mut larger) = (0, 0);
    for head in heads {
        for length in (0..200).chain([512, 1472, 9000, 20_000]) {
            let mut datagram = head.clone();
            datagram.resize(length, 0);
            // A STUN message says its own length; SOFTWARE is an attribute of any length.
            if datagram.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42]) && length >= head.len() + 4 {
                datagram[2..4].copy_from_slice(&((length - 20) as u16).to_be_bytes());
                datagram[head.len()..head.len() + 2].copy_from_slice(&[0x80, 0x22]);
                datagram[head.len() + 2..head.len() + 4]
                    .copy_from_slice(&((length - head.len() - 4) as u16).to_be_bytes());
            }
            stranger.send(&datagram).await;
            while let Some(answer) = stranger.receive(Duration::from_millis(1)).await {
                answered += 1;
                let is_least = is_stun(&answer) && answer.len() == 32;
                larger += u32::from(is_least && answer.len() > length);
                assert!(
                    answer.len() <= length || is_least,
                    "{length} bytes {:?} make {}",
                    &datagram[..4.min(length)],
                    answer.len()
                );
            }
        }
    }
    let Some(more) = stranger.receive(SILENCE).await else {
        assert!(answered > 20, "{answered}: the test must get answers");
        assert!((1..=LARGER_ANSWERS.burst).contains(&larger), "{larger}");
        let drops = running.status().await.relay.unwrap().drops;
        assert!(drops["unbound-source"] > 500 && drops["malformed"] > 10, "{drops:?}");
        assert_eq!(bind.len(), BIND_LENGTH);
        return;
    };
    panic!("{more:?} came late");
}

#[tokio::test]
async fn no_pair_carries_more_than_its_share() {
    let running = Running::start().await;
    let mut a = running.tunnel("a", true).await;
    let mut b = running.tunnel("b", true).await;
    a.bind().await;
    b.bind().await;
    assert!(handshake(&mut a, &mut b).await);
    let RelayLimits { pair_burst, pair_bytes_per_second } = RelayLimits::default();
    let datagram = a.seal(&[1; 8000]);
    let start = Instant::now();
    let before = running.status().await.relay.unwrap().bytes;
    let mut offered = 0;
    while offered < 3 * pair_burst {
        a.link.send(&datagram).await;
        offered += datagram.len() as u64;
        // No faster than it is received and counted.
        if offered % (64 << 10) < datagram.len() as u64 {
            tokio::task::yield_now().await;
            while b.link.receive(Duration::from_millis(1)).await.is_some() {}
        }
    }
    while b.link.receive(SILENCE).await.is_some() {}
    let relay = running.status().await.relay.unwrap();
    let (carried, seconds) = (relay.bytes - before, start.elapsed().as_secs_f64());
    let allowed = pair_burst as f64 + pair_bytes_per_second as f64 * seconds;
    assert!((carried as f64) < allowed, "{carried} of {allowed} in {seconds} s");
    assert!(carried > pair_burst / 2, "{carried}");
    // Small next to what is dropped at once when the bucket is empty, whatever time passes.
    if offered as f64 > allowed {
        assert!(relay.drops["over-budget"] > 0, "{:?}", relay.drops);
    }
    assert!(handshake(&mut b, &mut a).await, "the other direction has its own share");
}

#[tokio::test]
async fn after_a_restart_clients_bind_again_and_traffic_goes_on() {
    let running = Running::start().await;
    let mut a = running.tunnel("a", true).await;
    let (site, connection) = running.site("b", &[], &[]).await;
    let key = connection.map.as_ref().unwrap().relays[0].public_key;
    drop(connection);
    let mut b = running.tunnel_of(&site.private, key, false).await;
    a.bind().await;
    b.bind().await;
    talk(&mut a, &mut b).await;
    let running = Running::start_in(running.stop().await).await;
    assert_eq!(b.link.receive(PATIENCE).await, None, "the stream ended with the relay");
    assert!(!passes(&mut a, &mut b, b"unbound").await);
    b.link = Link::stream(running.address, running.pin).await;
    a.bind().await;
    b.bind().await;
    // The relay learns the sessions' indices from handshakes, so it takes one.
    assert!(!passes(&mut a, &mut b, b"old session").await);
    talk(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_stream_that_never_binds_ends_and_so_does_the_one_that_was_left() {
    let running = Running::start().await;
    let mut a = running.tunnel("a", false).await;
    a.bind().await;
    let mut left = Link::stream(running.address, running.pin).await;
    std::mem::swap(&mut a.link, &mut left);
    a.bind().await;
    assert_eq!(left.receive(PATIENCE).await, None, "the site is elsewhere");
    assert_eq!(a.link.receive(SILENCE).await, None);
    assert!(a.try_bind().await.is_some(), "the new one stays");
    if std::env::var_os("PENSTOCK_TEST_LONG").is_none() {
        return eprintln!("skipped: it waits for a timeout; set PENSTOCK_TEST_LONG=1");
    }
    let mut idle = Link::stream(running.address, running.pin).await;
    let start = Instant::now();
    assert_eq!(idle.receive(2 * PATIENCE).await, None);
    assert!(start.elapsed() < PATIENCE + Duration::from_secs(3), "{:?}", start.elapsed());
}
