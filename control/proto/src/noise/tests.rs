//! Known answers. The handshake is computed by `tests/vectors.py`, which shares no code with this crate.

/// One handshake.
struct Vector {
    chaining_key: &'static str,
    identified: &'static str,
    initiation: &'static str,
    response: &'static str,
    initiator_sends: &'static str,
    responder_sends: &'static str,
}

const CHACHA20_POLY1305: Vector = Vector {
    chaining_key: "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36",
    identified: "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3",
    initiation: "01000000443322115dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef220a26599fb2188bb723276fc173af67616c817fc32fd04d686d87ec152fac10eed2bda3bb3b6f1eded6977684082284d817fb46b3a78148e3bc273ed60c85337f384d0e37829af92ab844653f2216a2f5d843ccd920b51d700ce7dbf8a8f4a4a43158351457f0b5a49a60f18f",
    response: "020000008877665544332211ac01b2209e86354fb853237b5de0f4fab13c7fcbf433a61c019369617fecf10bc52cefb8840b5c933bf52c14c49c3a27253606075a812d3e543110004307a4ca00000000000000000000000000000000",
    initiator_sends: "a18cc809fd05b6b5f99644cf506f89dce368c2f54a9dbeb9a384f36c274317ef",
    responder_sends: "b1aa1b797d3a45da97552b8084ade493aa767f15af95854bc86557f6dacd851d",
};
const AES_256_GCM: Vector = Vector {
    chaining_key: "efcbbfa70d80ee23dcf7edf43fb988de6dea88fe25feac3851bb4b2b0d09d3b2",
    identified: "ea35bc019515f03b9d0d6e0acdfc425621b9d058353b9805cbf49663b0c94530",
    initiation: "01000000443322115dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef2242d6587b91d3fff9c5a7f0b6c51af8cedb41661f28fde91f1bc28dbf87a1318ae01e1b9efdc093239c0226b8613d37640a6721c1a3c9aeabad06862a7f80deedc7b915d498e885d77a8d71d05ed48648e0f1b87282b7a5111b7d84517e5fefd5b23de9f97b5811b4c8ea0349",
    response: "020000008877665544332211ac01b2209e86354fb853237b5de0f4fab13c7fcbf433a61c019369617fecf10befbb83e6262f93bf84a41207ac2dda197bb53e443bbb1425e898f9a43c179bf700000000000000000000000000000000",
    initiator_sends: "95938c98a246a27265bea0e3b1b8eea2b5c6123c890334406ffc31c88c06a3d1",
    responder_sends: "c0a42d0ad7e285c75ab82fab6539a3156e140ebab718d9855f715bea3e03ac1d",
};
const COOKIE_REPLY: &str = "0300000044332211070707070707070707070707070707070707070707070707a6febccc6c388c1666769fc122aefcbceeeb3d9de654b16444bf8d5fc5821e50";

const VECTORS: [(Suite, Vector); 2] = [(Suite::ChaCha20Poly1305, CHACHA20_POLY1305), (Suite::Aes256Gcm, AES_256_GCM)];

use x25519_dalek::{PublicKey, StaticSecret};

use super::*;
use crate::cookie::{CookieJar, MacKeys, verify_mac2};
use crate::messages::Message;

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn array<const N: usize>(hex: &str) -> [u8; N] {
    bytes(hex).try_into().unwrap()
}

fn secret(byte: u8) -> StaticSecret {
    StaticSecret::from([byte; 32])
}

/// Static keys of initiator and responder, and their product.
fn parties() -> (StaticSecret, StaticSecret, Key) {
    let product = diffie_hellman(&secret(1), &PublicKey::from(&secret(2))).unwrap();
    (secret(1), secret(2), product)
}

/// Starts the handshake of the vectors.
fn start(suite: Suite, remote: &PublicKey, product: &Key, index: u32) -> Result<(Initiator, Initiation), Reject> {
    let public = PublicKey::from(&secret(1));
    Initiator::start(suite, &public, remote, product, secret(3), index, &array(TIMESTAMP))
}

const TIMESTAMP: &str = "400000006b49d20a01000000";
const PRESHARED_KEY: [u8; 32] = [5; 32];

#[test]
fn the_constants_of_the_paper() {
    let Vector { chaining_key, identified, .. } = CHACHA20_POLY1305;
    assert_eq!(chaining_key, "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36");
    assert_eq!(identified, "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3");
    for (suite, vector) in VECTORS {
        let chaining_key = hash(&[suite.noise_name().as_bytes()]);
        assert_eq!(chaining_key, array(vector.chaining_key));
        assert_eq!(hash(&[&chaining_key, IDENTIFIER]), array(vector.identified));
    }
}

/// RFC 7693, appendix B.
#[test]
fn blake2s() {
    let expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
    assert_eq!(hash(&[b"a", b"bc"]), array(expected));
}

/// RFC 7748, section 5.2: one iteration and a thousand.
#[test]
fn x25519() {
    let mut scalar = [0; 32];
    scalar[0] = 9;
    let mut point = scalar;
    for round in 1..=1000 {
        let product = diffie_hellman(&StaticSecret::from(scalar), &PublicKey::from(point)).unwrap();
        (point, scalar) = (scalar, *product.as_bytes());
        if round == 1 {
            let expected = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";
            assert_eq!(scalar, array(expected));
        }
    }
    let expected = "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51";
    assert_eq!(scalar, array(expected));
}

#[test]
fn a_whole_handshake() {
    for (suite, vector) in VECTORS {
        a_whole_handshake_of(suite, &vector);
    }
}

fn a_whole_handshake_of(suite: Suite, vector: &Vector) {
    let (initiator_secret, responder_secret, product) = parties();
    let initiator_public = PublicKey::from(&initiator_secret);
    let responder_public = PublicKey::from(&responder_secret);
    let preshared_key = Key::from(PRESHARED_KEY);

    let (initiator, initiation) = start(suite, &responder_public, &product, 0x1122_3344).unwrap();
    let mut datagram = initiation.encode();
    MacKeys::new(&responder_public).sign(&mut datagram, Some(&[6; 16]));
    assert_eq!(datagram.to_vec(), bytes(vector.initiation));
    assert!(verify_mac2(&datagram, &[6; 16]));

    let claim = Claim::open(&responder_public, &responder_secret, &initiation).unwrap();
    assert_eq!(claim.remote(), &initiator_public);
    let (responder, timestamp) = claim.verify(&product, &initiation).unwrap();
    assert_eq!((timestamp, responder.suite()), (array(TIMESTAMP), suite));
    let (ours, response) = responder.respond(Some(&preshared_key), &secret(4), 0x5566_7788).unwrap();
    let mut datagram = response.encode();
    MacKeys::new(&initiator_public).sign(&mut datagram, None);
    assert_eq!(datagram.to_vec(), bytes(vector.response));
    assert_eq!(ours.receive.as_bytes(), &array(vector.initiator_sends));
    assert_eq!(ours.send.as_bytes(), &array(vector.responder_sends));

    let theirs = initiator.finish(&initiator_secret, Some(&preshared_key), &response).unwrap();
    assert_eq!(theirs.send.as_bytes(), &array(vector.initiator_sends));
    assert_eq!(theirs.receive.as_bytes(), &array(vector.responder_sends));

    let finish = |preshared_key, response| initiator.finish(&initiator_secret, preshared_key, response).map(|_| ());
    assert_eq!(finish(None, &response), Err(Reject::Response));
    let low = Response { ephemeral: [0; 32], ..response.clone() };
    assert_eq!(finish(Some(&preshared_key), &low), Err(Reject::LowOrderKey));
    assert_eq!(finish(Some(&preshared_key), &response), Ok(()), "failures change nothing");
}

#[test]
fn a_cookie_reply() {
    let keys = MacKeys::new(&PublicKey::from(&secret(2)));
    let Ok(Message::CookieReply(reply)) = Message::parse(&bytes(COOKIE_REPLY)) else { panic!() };
    let mut jar = CookieJar::default();
    jar.sent(array(&CHACHA20_POLY1305.initiation[2 * 116..2 * 132]));
    let now = std::time::Instant::now();
    assert_eq!(jar.accept(now, &keys, &reply), Ok(()));
    assert_eq!(jar.cookie(now, std::time::Duration::from_secs(1)), Some(&[6; 16]));
}

/// Every public key of low order (the points of order 1, 2, 4 and 8, and their other encodings).
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn low_order_keys_end_a_handshake_wherever_they_appear() {
    let (_, responder_secret, product) = parties();
    let responder_public = PublicKey::from(&responder_secret);
    for low in LOW_ORDER {
        let point = PublicKey::from(array::<32>(low));
        let start = |remote: &PublicKey| start(Suite::default(), remote, &product, 1);
        assert!(matches!(start(&point), Err(Reject::LowOrderKey)));
        let (_, initiation) = start(&responder_public).unwrap();
        let forged = Initiation { ephemeral: point.to_bytes(), ..initiation };
        let claim = Claim::open(&responder_public, &responder_secret, &forged);
        assert!(matches!(claim, Err(Reject::LowOrderKey)), "{low}");
    }
}

#[test]
fn every_bit_of_a_message_counts() {
    let (initiator_secret, responder_secret, product) = parties();
    let initiator_public = PublicKey::from(&initiator_secret);
    let responder_public = PublicKey::from(&responder_secret);
    let received = |datagram: &[u8]| -> Result<(TransportKeys, Response), Reject> {
        let Message::Initiation(initiation) = Message::parse(datagram)? else { panic!() };
        let claim = Claim::open(&responder_public, &responder_secret, &initiation)?;
        if claim.remote() != &initiator_public {
            return Err(Reject::UnknownPeer);
        }
        claim.verify(&product, &initiation)?.0.respond(None, &secret(4), 1)
    };
    for (_, vector) in VECTORS {
        let initiation = bytes(vector.initiation);
        // Not the sender index, which only MAC1 covers, and not the top bit of a point, which X25519 ignores
        // but the transcript does not.
        for at in 8..116 {
            for bit in 0..8 {
                let mut mutated = initiation.clone();
                mutated[at] ^= 1 << bit;
                assert!(received(&mutated).is_err(), "byte {at}, bit {bit}");
            }
        }
        assert!(received(&initiation).is_ok());
    }
}

#[test]
fn a_message_of_one_suite_means_nothing_in_the_other() {
    let (initiator_secret, responder_secret, product) = parties();
    let (initiator_public, responder_public) = (PublicKey::from(&initiator_secret), PublicKey::from(&responder_secret));
    for suite in Suite::ALL {
        let (initiator, initiation) = start(suite, &responder_public, &product, 1).unwrap();
        let claim = Claim::open(&responder_public, &responder_secret, &initiation).unwrap();
        assert_eq!((claim.remote(), claim.state.suite), (&initiator_public, suite));
        // Both sides have all keys, and yet the handshake fails.
        let (responder, _) = claim.verify(&product, &initiation).unwrap();
        let (_, response) = responder.respond(None, &secret(4), 2).unwrap();
        let (other, _) = start(suite.other(), &responder_public, &product, 1).unwrap();
        assert!(matches!(other.finish(&initiator_secret, None, &response), Err(Reject::Response)));
        assert!(initiator.finish(&initiator_secret, None, &response).is_ok());
    }
}
