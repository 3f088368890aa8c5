//! Handshake messages and cookies as anybody can send them, to a gateway with a peer of each suite. A MAC1 of zeros is
//! replaced by the right one, which anybody who knows our public key can compute: without that, hardly any input would
//! get further.
#![no_main]

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use blake2::digest::Mac;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest};
use libfuzzer_sys::fuzz_target;
use penstock_proto::{Gateway, PeerConfig, Suite};
use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::{PublicKey, StaticSecret};

fuzz_target!(|input: &[u8]| {
    let now = Instant::now();
    let ours = StaticSecret::from([1; 32]);
    let public = PublicKey::from(&ours);
    let mut gateway =
        Gateway::new(ours, StdRng::seed_from_u64(1), now, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    let from: SocketAddr = ([192, 0, 2, 9], 9).into();
    for (key, suite) in [(2, Suite::ChaCha20Poly1305), (3, Suite::Aes256Gcm)] {
        let theirs = PublicKey::from(&StaticSecret::from([key; 32]));
        let config = PeerConfig { endpoint: Some(from), suite, ..PeerConfig::default() };
        let peer = gateway.add_peer(now, theirs, config).expect("another peer");
        gateway.handle_wanted(now, peer);
    }
    let indices = gateway.live_indices();
    // Several datagrams in one input, cut at a length byte.
    let mut rest = input;
    while let Some((&len, tail)) = rest.split_first() {
        let (datagram, tail) = tail.split_at(tail.len().min(usize::from(len)));
        let _ = gateway.handle_datagram(now, from, &signed(datagram, &public));
        rest = tail;
    }
    while gateway.poll_transmit().is_some() {}
    while gateway.poll_event().is_some() {}
    assert!(gateway.live_indices() <= indices + 2, "receiver indices leak");
});

fn signed(datagram: &[u8], to: &PublicKey) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    let Some(at) = datagram.len().checked_sub(32).filter(|at| datagram[*at..*at + 16] == [0; 16]) else {
        return datagram;
    };
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(to.as_bytes()).finalize();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).expect("32 bytes are a key").chain_update(&datagram[..at]);
    datagram[at..at + 16].copy_from_slice(&mac.finalize().into_bytes());
    datagram
}
