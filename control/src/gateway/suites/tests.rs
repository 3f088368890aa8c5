//! The choice; and the second suite against `snow`, which shares neither handshake nor nonces with us.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use blake2::digest::Mac;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest};
use penstock_dataplane::clock::Millis;
use penstock_dataplane::peer::PeerCounters;
use penstock_dataplane::session::{Cipher, DATA_HEADER, Session, SessionConfig, TAG};
use penstock_proto::{Event, Gateway, Key, PeerConfig, PublicKey, SessionKeys, StaticSecret};
use rand::SeedableRng;
use rand::rngs::StdRng;
use snow::{Builder, StatelessTransportState};

use super::*;

const PRESHARED_KEY: [u8; 32] = [5; 32];
const OURS: [u8; 32] = [1; 32];
const THEIRS: [u8; 32] = [2; 32];
/// In plaintexts of Noise, handshake messages lack WireGuard's types, indices and MACs.
const INITIATION: std::ops::Range<usize> = 8..116;
const RESPONSE: std::ops::Range<usize> = 12..60;
const TIMESTAMP: &[u8; 12] = b"\x40\0\0\0\xff\0\0\0\0\0\0\0";

fn speeds(chacha20_poly1305: u32, aes_256_gcm: u32) -> Speeds {
    Speeds { chacha20_poly1305, aes_256_gcm }
}

#[test]
fn the_profile_decides_unless_it_says_auto() {
    let (fast, slow) = (speeds(2000, 5000), speeds(900, 150));
    let suite = |setting, theirs| choose(setting, fast, theirs, None).suite;
    for theirs in [None, Some(fast), Some(slow)] {
        assert_eq!(suite(SuiteSetting::ChaCha20Poly1305, theirs), Suite::ChaCha20Poly1305);
        assert_eq!(suite(SuiteSetting::Aes256Gcm, theirs), Suite::Aes256Gcm);
    }
    assert_eq!(suite(SuiteSetting::Auto, None), Suite::ChaCha20Poly1305, "it may be an older Penstock");
    assert_eq!(suite(SuiteSetting::Auto, Some(slow)), Suite::ChaCha20Poly1305);
    assert_eq!(suite(SuiteSetting::Auto, Some(fast)), Suite::Aes256Gcm);
}

#[test]
fn the_reason_is_a_sentence_with_figures() {
    let reason = |theirs, present| choose(SuiteSetting::Auto, speeds(2000, 5000), Some(theirs), present).reason;
    let faster = "auto: the slower site does 4800 MB/s with it, and 1900 with chacha20-poly1305";
    assert_eq!(reason(speeds(1900, 4800), None), faster);
    let level = "auto: the slower site does 2000 MB/s with it, and 2100 with aes-256-gcm, not enough faster to switch";
    assert_eq!(reason(speeds(2000, 2100), None), level);
    let stays = "auto: the slower site does 1900 MB/s with it, and 2000 with chacha20-poly1305, \
                 not enough faster to switch";
    assert_eq!(reason(speeds(2000, 1900), Some(Suite::Aes256Gcm)), stays);
}

/// Our gateway with the peer that `snow` plays, and its endpoint.
fn gateway(suite: Suite) -> (Gateway, penstock_proto::PeerId, SocketAddr) {
    let (now, from) = (Instant::now(), ([192, 0, 2, 2], 47100).into());
    let mut gateway = Gateway::new(OURS.into(), StdRng::seed_from_u64(1), now, SystemTime::now());
    let config = PeerConfig {
        preshared_key: Some(Key::from(PRESHARED_KEY)),
        endpoint: Some(from),
        suite,
        any_suite: true,
        ..PeerConfig::default()
    };
    let peer = gateway.add_peer(now, public(THEIRS), config).unwrap();
    (gateway, peer, from)
}

fn public(private: [u8; 32]) -> PublicKey {
    PublicKey::from(&StaticSecret::from(private))
}

fn keys(gateway: &mut Gateway) -> SessionKeys {
    std::iter::from_fn(|| gateway.poll_event())
        .find_map(|event| match event {
            Event::SessionEstablished { session, .. } => Some(*session),
            _ => None,
        })
        .expect("a session")
}

/// Another implementation of Noise, with WireGuard's parameters and this name.
fn noise(name: &str) -> Builder<'static> {
    let builder = Builder::new(name.parse().unwrap()).prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com").unwrap();
    builder.local_private_key(&THEIRS).unwrap().psk(2, &PRESHARED_KEY).unwrap()
}

/// Puts MAC1 behind a message to us.
fn sign(message: &mut [u8]) {
    let at = message.len() - 32;
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(public(OURS).as_bytes()).finalize();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).unwrap().chain_update(&message[..at]).finalize();
    message[at..at + 16].copy_from_slice(&mac.into_bytes());
}

/// Names as the specification of Noise has them, not as we do.
const NAMES: [(Suite, &str); 2] = [
    (Suite::ChaCha20Poly1305, "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"),
    (Suite::Aes256Gcm, "Noise_IKpsk2_25519_AESGCM_BLAKE2s"),
];

#[test]
fn another_noise_answers_our_handshake_and_reads_our_packets() {
    for (suite, name) in NAMES {
        let (mut gateway, peer, from) = gateway(suite);
        let now = Instant::now();
        assert!(gateway.handle_wanted(now, peer));
        let initiation = gateway.poll_transmit().unwrap().contents.to_vec();
        let mut theirs = noise(name).build_responder().unwrap();
        let mut timestamp = [0; 12];
        assert_eq!(theirs.read_message(&initiation[INITIATION], &mut timestamp).unwrap(), 12);
        assert_eq!(theirs.get_remote_static(), Some(&public(OURS).as_bytes()[..]));

        let mut response = [&[2, 0, 0, 0, 9, 9, 9, 9], &initiation[4..8], &[0; 80]].concat();
        assert_eq!(theirs.write_message(&[], &mut response[RESPONSE]).unwrap(), RESPONSE.len());
        sign(&mut response);
        gateway.handle_datagram(now, from, &response).unwrap();
        packets_pass(&keys(&mut gateway), suite, &theirs.into_stateless_transport_mode().unwrap());
    }
}

#[test]
fn another_noise_begins_and_reads_our_packets() {
    for (suite, name) in NAMES {
        // Whatever we would start with: the suite is the initiator's.
        let (mut gateway, _, from) = gateway(suite.other());
        let ours = public(OURS);
        let mut theirs = noise(name).remote_public_key(ours.as_bytes()).unwrap().build_initiator().unwrap();
        let mut initiation = [&[1, 0, 0, 0, 9, 9, 9, 9], &[0; 140][..]].concat();
        assert_eq!(theirs.write_message(TIMESTAMP, &mut initiation[INITIATION]).unwrap(), INITIATION.len());
        sign(&mut initiation);
        gateway.handle_datagram(Instant::now(), from, &initiation).unwrap();
        let response = gateway.poll_transmit().unwrap().contents.to_vec();
        assert_eq!(theirs.read_message(&response[RESPONSE], &mut []).unwrap(), 0);
        packets_pass(&keys(&mut gateway), suite, &theirs.into_stateless_transport_mode().unwrap());
    }
}

/// Packets whose counters differ in every byte.
fn packets_pass(keys: &SessionKeys, suite: Suite, theirs: &StatelessTransportState) {
    assert_eq!(keys.suite, suite);
    let ours = Session::new(SessionConfig {
        local_index: keys.local_index,
        remote_index: keys.remote_index,
        suite: data(keys.suite),
        send_key: keys.send.as_bytes(),
        receive_key: keys.receive.as_bytes(),
        born: Millis(0),
        confirmed: true,
        peer: Arc::new(PeerCounters::new(0)),
    });
    for counter in [0, 1, 0x0102_0304_0506_0708] {
        let mut message = [&[0; DATA_HEADER][..], b"from us to them!", &[0; TAG]].concat();
        Cipher::RING.seal_batch(&mut [ours.sealing(counter, &mut message)]);
        let mut plain = [0; 16];
        theirs.read_message(counter, &message[DATA_HEADER..], &mut plain).unwrap();
        assert_eq!(&plain, b"from us to them!");

        let mut sealed = [0; 16 + TAG];
        theirs.write_message(counter, b"from them to us!", &mut sealed).unwrap();
        let mut opening = [ours.opening(counter, &mut sealed, 0)];
        Cipher::RING.open_batch(&mut opening);
        assert_eq!(opening[0].plaintext(), Some(&b"from them to us!"[..]));
    }
}
