//! Bad input: forged, mutated, replayed, low-order. No answer, no panic, and nothing lost.

use std::time::Instant;

use penstock_proto::{PeerConfig, Reject};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::network::*;

#[test]
fn a_forged_or_replayed_response_leaves_the_handshake_pending() {
    let (mut world, _, b) = World::pair(1);
    let there = world.sites[1].address;
    world.block.insert(2);
    world.send(0, b, b"hello");
    world.run(millis(100));
    let honest = world.sent_by(1, 2)[0].bytes.clone();

    let receiver = *world.sites[0].gateway.public_key();
    let mut forged = honest.clone();
    forged[50] ^= 1;
    resign(&mut forged, receiver.as_bytes());
    let mut low = honest.clone();
    low[12..44].fill(0);
    resign(&mut low, receiver.as_bytes());
    let mut elsewhere = honest.clone();
    elsewhere[8] ^= 1;
    resign(&mut elsewhere, receiver.as_bytes());

    assert_eq!(world.inject(0, there, &forged), Err(Reject::Response));
    assert_eq!(world.inject(0, there, &low), Err(Reject::LowOrderKey));
    assert_eq!(world.inject(0, there, &elsewhere), Err(Reject::UnknownIndex));
    assert_eq!(world.inject(0, there, &honest), Ok(()));
    assert_eq!(world.inject(0, there, &honest), Err(Reject::UnknownIndex));
    world.run(millis(100));
    assert_eq!(world.sites[1].received, [b"hello"]);
}

/// MAC1 as anyone can make it who knows the receiver's public key.
fn resign(bytes: &mut [u8], receiver: &[u8; 32]) {
    use blake2::digest::consts::U16;
    use blake2::digest::{FixedOutput, KeyInit, Update};
    use blake2::{Blake2s256, Blake2sMac, Digest};
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(receiver).finalize();
    let at = bytes.len() - 32;
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).unwrap();
    Update::update(&mut mac, &bytes[..at]);
    bytes[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}

#[test]
fn low_order_keys_meet_silence() {
    let (mut world, _, _) = World::pair(1);
    let now = world.now;
    let endpoint = Some(world.sites[1].address);
    let config = PeerConfig { endpoint, persistent_keepalive: Some(seconds(1)), ..PeerConfig::default() };
    let low = world.sites[0].gateway.add_peer(now, low_order_key(), config).unwrap();
    assert!(!world.sites[0].gateway.handle_wanted(now, low));
    world.run(seconds(30));
    assert!(world.wire.is_empty());

    // An initiation with a low-order ephemeral key and a valid MAC1.
    let mut initiation = [0; 148];
    initiation[0] = 1;
    let receiver = *world.sites[1].gateway.public_key();
    resign(&mut initiation, receiver.as_bytes());
    let from = world.sites[0].address;
    assert_eq!(world.inject(1, from, &initiation), Err(Reject::LowOrderKey));
    assert!(world.wire.is_empty());
    assert_eq!(world.sites[1].gateway.live_indices(), 0);
}

#[test]
fn initiations_are_answered_once_and_in_order() {
    let (mut world, _, b) = World::pair(1);
    world.block.insert(1);
    let from = world.sites[0].address;
    world.send(0, b, b"hello");
    world.run(seconds(11));
    let sent: Vec<_> = world.sent_by(0, 1).iter().map(|sent| sent.bytes.clone()).collect();
    assert_eq!(sent.len(), 3);
    assert_eq!(world.inject(1, from, &sent[1]), Ok(()));
    assert_eq!(world.inject(1, from, &sent[1]), Err(Reject::Replay));
    assert_eq!(world.inject(1, from, &sent[0]), Err(Reject::Replay));
    assert_eq!(world.inject(1, from, &sent[2]), Err(Reject::TooFrequent));
    world.run(millis(20));
    assert_eq!(world.inject(1, from, &sent[2]), Ok(()));
    assert_eq!(world.sites[1].established(), 2);
    assert_eq!(world.sites[1].gateway.live_indices(), 1, "the newer replaced the older");
}

#[test]
fn a_peer_that_initiates_forever_holds_four_indices_at_most() {
    let (mut world, _, b) = World::pair(1);
    world.block.insert(4);
    for _ in 0..300 {
        world.send(0, b, b"again");
        world.run(seconds(1));
        assert!(world.sites[1].gateway.live_indices() <= 4);
    }
}

#[test]
fn random_bytes_never_panic_and_never_pass() {
    let mut rng = StdRng::seed_from_u64(7);
    let now = Instant::now();
    let mut gateway = lone_gateway(1, now);
    let from: std::net::SocketAddr = "192.0.2.9:9".parse().unwrap();
    for round in 0..100_000 {
        let length = rng.random_range(0..300);
        let mut bytes = vec![0; length];
        rng.fill_bytes(&mut bytes);
        if round % 2 == 0 && length >= 4 {
            bytes[0] = rng.random_range(0..6);
            bytes[1..4].fill(0);
            let exact = [148, 92, 64].get(usize::from(bytes[0]).wrapping_sub(1));
            bytes.resize(*exact.unwrap_or(&length), 0x55);
        }
        assert!(gateway.handle_datagram(now, from, &bytes).is_err());
    }
    assert!(gateway.poll_transmit().is_none());
    assert!(gateway.poll_event().is_none());
}

#[test]
fn mutated_messages_with_a_right_mac1_never_panic_and_never_pass() {
    let (mut world, _, b) = World::pair(1);
    world.block.extend([1, 2]);
    world.send(0, b, b"hello");
    world.run(millis(50));
    let initiation = world.sent_by(0, 1)[0].bytes.clone();
    let (here, there) = (world.sites[0].address, world.sites[1].address);
    let keys = [0, 1].map(|site: usize| world.sites[site].gateway.public_key().to_bytes());
    let mut rng = StdRng::seed_from_u64(7);
    // Below the rate that puts the gateway under load, which would be a reason of its own to drop.
    for _ in 0..500 {
        let mut mutated = initiation.clone();
        let at = rng.random_range(8..116);
        mutated[at] ^= rng.random_range(1..=255);
        resign(&mut mutated, &keys[1]);
        world.inject(1, here, &mutated).unwrap_err();
        world.run(millis(2));
    }
    assert_eq!(world.inject(1, here, &initiation), Ok(()));
    let response = world.sent_by(1, 2)[0].bytes.clone();
    for _ in 0..500 {
        let mut mutated = response.clone();
        let at = rng.random_range(8..60);
        mutated[at] ^= rng.random_range(1..=255);
        resign(&mut mutated, &keys[0]);
        world.inject(0, there, &mutated).unwrap_err();
        world.run(millis(2));
    }
    assert_eq!(world.inject(0, there, &response), Ok(()));
}
