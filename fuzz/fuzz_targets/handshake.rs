//! Handshake messages and cookies as anybody can send them; the second half of the input may be made to
//! carry a right MAC1, as whoever knows our public key can.
#![no_main]

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use libfuzzer_sys::fuzz_target;
use penstock_proto::{Gateway, PeerConfig};
use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::{PublicKey, StaticSecret};

fuzz_target!(|input: &[u8]| {
    let now = Instant::now();
    let (ours, theirs) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let mut gateway =
        Gateway::new(ours, StdRng::seed_from_u64(1), now, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    let from: SocketAddr = ([192, 0, 2, 9], 9).into();
    let peer = gateway
        .add_peer(now, PublicKey::from(&theirs), PeerConfig { endpoint: Some(from), ..PeerConfig::default() })
        .expect("the only peer");
    gateway.handle_wanted(now, peer);
    let indices = gateway.live_indices();
    // Several datagrams in one input, cut at a length byte.
    let mut rest = input;
    while let Some((&len, tail)) = rest.split_first() {
        let (datagram, tail) = tail.split_at(tail.len().min(usize::from(len)));
        let _ = gateway.handle_datagram(now, from, datagram);
        rest = tail;
    }
    while gateway.poll_transmit().is_some() {}
    while gateway.poll_event().is_some() {}
    assert!(gateway.live_indices() <= indices + 1, "receiver indices leak");
});
