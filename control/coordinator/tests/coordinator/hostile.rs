//! Clients that try to get in without permission, or to be a burden.

use std::time::Duration;

use futures_util::SinkExt;
use penstock_coordinator::admission::limits::PATIENCE;
use penstock_proto::coordination::limits::GATEWAY_MESSAGE_LIMIT;
use penstock_proto::coordination::{GatewayMessage, PATH, Reachability, RefusalReason, SUBPROTOCOL, prove};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Connection, Failure, Gateway, HOST, challenge, challenged, encrypt, refusal, upgrade};
use crate::running::Running;

/// What becomes of a connection that answers the challenge with this message.
async fn answer(running: &Running, message: GatewayMessage) -> Failure {
    let (mut connection, _) = challenged(running.address, running.pin).await.unwrap();
    connection.send(&message).await;
    connection.end().await
}

#[tokio::test]
async fn nobody_passes_for_another() {
    let running = Running::start().await;
    let (victim, mut there) = running.site("amsterdam", &["10.1.0.0/16"], &[]).await;
    let (_, mut peer) = running.site("berlin", &["10.2.0.0/16"], &[]).await;
    peer.until_peers(&["amsterdam"]).await;

    // With its own private key for the victim's public key.
    let thief = Gateway { key: victim.key, subnets: victim.subnets.clone(), ..Gateway::new("x", &[]) };
    assert_eq!(refusal(running.connect(&thief).await), RefusalReason::Proof);

    // With a proof that the victim made on another connection.
    let (_kept, first) = challenged(running.address, running.pin).await.unwrap();
    let recorded = prove(&victim.private, &first, HOST).unwrap();
    let failure = answer(&running, GatewayMessage::Hello(victim.hello(recorded))).await;
    assert_eq!(failure.reason(), RefusalReason::Proof);

    // With a proof that the victim made for another coordinator, which passes on our challenge.
    let (mut relayed, challenge) = challenged(running.address, running.pin).await.unwrap();
    let lured = prove(&victim.private, &challenge, "evil.example.net").unwrap();
    relayed.send(&GatewayMessage::Hello(victim.hello(lured))).await;
    assert_eq!(relayed.end().await.reason(), RefusalReason::Proof);

    // The victim does not notice, nor do its peers.
    there.until_peers(&["berlin"]).await;
    there.stays_silent().await;
    peer.stays_silent().await;
}

#[tokio::test]
async fn the_same_site_again_takes_the_place_of_the_first() {
    let running = Running::start().await;
    let (site, mut first) = running.site("amsterdam", &[], &[]).await;
    let mut second = running.connect(&site).await.unwrap();
    assert_eq!(first.end().await.reason(), RefusalReason::Replaced);
    second.until("there is a map", |second| second.map.is_some()).await;
    second.stays_silent().await;
    assert!(running.sites().await[0].connected, "the end of the first is not the end of the second");
}

#[tokio::test]
async fn messages_that_are_none_end_the_connection() {
    let running = Running::start().await;
    let key = running.key(99, &[]).await;
    let too_long = "x".repeat(GATEWAY_MESSAGE_LIMIT + 1);
    let reachability = GatewayMessage::Reachability(Reachability::default()).encode();
    let texts = ["", "{}", "null", "\u{0}", r#"{"Type":"Hello"}"#, r#"{"Type":"Nonsense"}"#, "[[[[[[[[", &too_long];
    for (number, text) in texts.iter().enumerate() {
        // Instead of the proof, and after it.
        let (mut stranger, _) = challenged(running.address, running.pin).await.unwrap();
        stranger.say_text(text).await;
        assert_malformed(stranger.end().await, text);
        let site = Gateway::new(&format!("s{number}"), &[]).with_key(&key);
        let mut connection = running.connect(&site).await.unwrap();
        connection.say_text(text).await;
        assert_malformed(connection.end().await, text);
    }
    let (mut stranger, _) = challenged(running.address, running.pin).await.unwrap();
    stranger.say_text(&reachability).await;
    assert_malformed(stranger.end().await, "reachability before the proof");
    let (mut stranger, _) = challenged(running.address, running.pin).await.unwrap();
    stranger.socket.send(Message::binary(vec![0; 10])).await.unwrap();
    assert_malformed(stranger.end().await, "binary");
    let site = Gateway::new("last", &[]).with_key(&key);
    let (mut connection, challenge) = challenged(running.address, running.pin).await.unwrap();
    let hello = GatewayMessage::Hello(site.hello(prove(&site.private, &challenge, HOST).unwrap()));
    connection.send(&hello).await;
    connection.send(&hello).await;
    assert_malformed(connection.end().await, "a second hello");
    running.connect(&site).await.unwrap();
}

fn assert_malformed(failure: Failure, what: &str) {
    let what = &what[..what.len().min(40)];
    match failure {
        Failure::Refused(RefusalReason::Malformed) => {}
        // Too long for the WebSocket itself.
        Failure::Ended => assert!(what.starts_with("xxx"), "{what:?}"),
        other => panic!("{what:?}: {other:?}"),
    }
}

#[tokio::test]
async fn who_says_too_much_is_sent_away() {
    let running = Running::start().await;
    let (site, mut a) = running.site("amsterdam", &[], &[]).await;
    for port in 1..=40 {
        a.say_address(&format!("192.0.2.1:{port}")).await;
    }
    assert_eq!(a.end().await.reason(), RefusalReason::TooMany);
    running.connect(&site).await.unwrap();
}

#[tokio::test]
async fn addresses_where_no_site_can_be_are_not_passed_on() {
    let running = Running::start().await;
    let (site, mut a) = running.site("amsterdam", &[], &[]).await;
    let (_, mut b) = running.site("berlin", &[], &[]).await;
    b.until_peers(&["amsterdam"]).await;
    a.say_text(
        r#"{"Type":"Reachability","Candidates":[
            {"Kind":"Host","Address":"127.0.0.1:22"},{"Kind":"Host","Address":"255.255.255.255:1"},
            {"Kind":"Host","Address":"224.0.0.1:5353"},{"Kind":"Host","Address":"192.0.2.1:0"},
            {"Kind":"Host","Address":"192.0.2.1:47100"}]}"#,
    )
    .await;
    b.until("the sound one is known", |b| b.addresses(&site.key) == ["192.0.2.1:47100"]).await;
}

#[tokio::test]
async fn another_certificate_is_refused_by_the_pin() {
    let running = Running::start().await;
    let other = Running::start().await;
    let site = Gateway::new("amsterdam", &[]).with_key(&running.key(1, &[]).await);
    match site.connect(other.address, running.pin).await {
        Err(Failure::Before(error)) => assert!(error.contains("Changed"), "{error}"),
        _ => panic!("it spoke to an impostor"),
    }
    // After a restart the certificate is the same.
    let pin = running.pin;
    let again = Running::start_in(running.stop().await).await;
    assert_eq!(again.pin, pin);
    site.connect(again.address, pin).await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_an_hour_off_does_not_matter() {
    let running = Running::start().await;
    let key = running.key(2, &[]).await;
    for (name, clock) in [("early", -3600), ("late", 3600)] {
        let site = Gateway::new(name, &[]).with_key(&key);
        let stream = TcpStream::connect(running.address).await.unwrap();
        let socket = upgrade(encrypt(stream, running.pin, clock).await.unwrap(), HOST).await.unwrap();
        let (mut connection, challenge) = challenge(socket).await.unwrap();
        let proof = prove(&site.private, &challenge, HOST).unwrap();
        connection.send(&GatewayMessage::Hello(site.hello(proof))).await;
        connection.until("it is let in", |connection: &Connection| connection.map.is_some()).await;
    }
}

/// Sends bytes over TLS; returns the first bytes that come back, up to this many, or all until the end.
async fn exchange(running: &Running, request: &str, wanted: usize) -> Vec<u8> {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let mut stream = encrypt(stream, running.pin, 0).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while answer.len() < wanted {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => answer.extend_from_slice(&buffer[..length]),
            }
        }
    };
    let _ = timeout(Duration::from_millis(500), read).await;
    answer
}

fn request(path: &str, host: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn only_the_right_request_is_upgraded() {
    let running = Running::start().await;
    let protocol = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
    let cases = [
        (request(PATH, HOST, &protocol), "101"),
        (request(PATH, "Coordinator.TEST:443", &protocol), "101"),
        (request(PATH, "evil.example.net", &protocol), "421"),
        (request(PATH, HOST, ""), "400"),
        (request(PATH, HOST, "Sec-WebSocket-Protocol: chat\r\n"), "400"),
        (request("/", HOST, &protocol), "404"),
        (format!("GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "400"),
        ("\u{16}\u{3}nonsense\r\n\r\n".into(), "400"),
    ];
    for (request, code) in cases {
        let answer = exchange(&running, &request, 12).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{request:?}: {answer:?}");
    }
    let endless = format!("GET {PATH} HTTP/1.1\r\nX: {}", "x".repeat(100_000));
    let answer = exchange(&running, &endless, usize::MAX).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{answer:?}");
}

#[tokio::test]
async fn before_the_proof_less_is_said_than_was_asked() {
    let running = Running::start().await;
    // As small as a request can be, and the smallest first message.
    let request = request(PATH, HOST, &format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"));
    let answer = exchange(&running, &request, usize::MAX).await;
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("Challenge"), "{text}");
    let site = Gateway::new("x", &[]);
    let (mut connection, challenge) = challenged(running.address, running.pin).await.unwrap();
    let hello = GatewayMessage::Hello(site.hello(prove(&site.private, &challenge, HOST).unwrap())).encode();
    connection.say_text(&hello).await;
    assert_eq!(connection.end().await.reason(), RefusalReason::NotEnrolled);
    let refused = connection.texts.last().unwrap().len();
    println!("asked {} + {}, said {} + {refused}", request.len(), hello.len(), answer.len());
    assert!(refused < hello.len());
    assert!(answer.len() + refused <= request.len() + hello.len());
}

/// The one deadline spans TCP, TLS, HTTP and the proof.
#[tokio::test]
async fn who_says_nothing_does_not_stay() {
    let running = Running::start().await;
    let mut bare = TcpStream::connect(running.address).await.unwrap();
    let encrypted = TcpStream::connect(running.address).await.unwrap();
    let mut encrypted = encrypt(encrypted, running.pin, 0).await.unwrap();
    let (mut upgraded, _) = challenged(running.address, running.pin).await.unwrap();
    let mut byte = [0];
    let limit = PATIENCE + Duration::from_secs(3);
    let all = async {
        let (bare, encrypted, upgraded) =
            tokio::join!(bare.read(&mut byte), async { encrypted.read(&mut [0]).await }, upgraded.end());
        assert!(matches!(bare, Ok(0) | Err(_)));
        assert!(matches!(encrypted, Ok(0) | Err(_)));
        assert!(matches!(upgraded, Failure::Ended | Failure::Silence));
    };
    timeout(limit, all).await.expect("they should be gone");
}
