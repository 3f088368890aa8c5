//! MAC1, MAC2 and cookies: what a gateway under load demands before it does any curve arithmetic (paper 5.3 and 5.4.7).
//!
//! A [`MacKeys`] belongs to a static public key: ours for what we receive, the peer's for what we send.
//! [`CookieSecret`] makes the cookies we hand out; [`CookieJar`] keeps the one a peer has given us.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use chacha20poly1305::{AeadInPlace, XChaCha20Poly1305};
use rand::RngCore;
use x25519_dalek::PublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::messages::{CookieReply, MAC_LENGTH, TAG_LENGTH};
use crate::noise::hash;
use crate::{Key, Reject};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// MAC1, MAC2 and cookies are all keyed BLAKE2s of 16 bytes.
pub(crate) type MacBytes = [u8; MAC_LENGTH];

/// The keys of MAC1 and of sealed cookies. Anyone who knows the public key can derive them.
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub fn new(receiver: &PublicKey) -> Self {
        Self { mac1: hash(&[LABEL_MAC1, receiver.as_bytes()]), cookie: hash(&[LABEL_COOKIE, receiver.as_bytes()]) }
    }

    /// Fills in the MACs at the end of an initiation or a response; returns MAC1.
    pub fn sign(&self, datagram: &mut [u8], cookie: Option<&MacBytes>) -> MacBytes {
        let mac1_at = datagram.len() - 2 * MAC_LENGTH;
        let mac2_at = datagram.len() - MAC_LENGTH;
        let mac1 = mac(&self.mac1, &[&datagram[..mac1_at]]);
        datagram[mac1_at..mac2_at].copy_from_slice(&mac1);
        if let Some(cookie) = cookie {
            let mac2 = mac(cookie, &[&datagram[..mac2_at]]);
            datagram[mac2_at..].copy_from_slice(&mac2);
        }
        mac1
    }

    /// # Errors
    /// [`Reject::Mac1`].
    pub fn verify(&self, datagram: &[u8]) -> Result<(), Reject> {
        let (signed, mac1, _) = split(datagram);
        if mac_is(&self.mac1, &[signed], mac1) { Ok(()) } else { Err(Reject::Mac1) }
    }

    /// Seals a cookie for the sender of `datagram`, an initiation or a response with the index `sender`.
    pub fn reply(&self, datagram: &[u8], sender: u32, cookie: &MacBytes, rng: &mut dyn RngCore) -> CookieReply {
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let (_, mac1, _) = split(datagram);
        let mut sealed_cookie = [0; MAC_LENGTH + TAG_LENGTH];
        let (text, tag) = sealed_cookie.split_at_mut(MAC_LENGTH);
        text.copy_from_slice(cookie);
        let computed = XChaCha20Poly1305::new(&self.cookie.into())
            .encrypt_in_place_detached(&nonce.into(), mac1, text)
            .expect("a cookie is far below ChaCha20's limit of 256 GiB");
        tag.copy_from_slice(&computed);
        CookieReply { receiver: sender, nonce, sealed_cookie }
    }

    fn open(&self, reply: &CookieReply, mac1: &MacBytes) -> Option<MacBytes> {
        let (text, tag) = reply.sealed_cookie.split_at(MAC_LENGTH);
        let mut cookie = MacBytes::try_from(text).ok()?;
        XChaCha20Poly1305::new(&self.cookie.into())
            .decrypt_in_place_detached(&reply.nonce.into(), mac1, &mut cookie, tag.into())
            .ok()?;
        Some(cookie)
    }
}

/// The secret behind our cookies; it is replaced when it grows old.
pub(crate) struct CookieSecret {
    lifetime: Duration,
    current: Option<(Key, Instant)>,
}

impl CookieSecret {
    pub fn new(lifetime: Duration) -> Self {
        Self { lifetime, current: None }
    }

    /// The cookie of a source: of its address **and** port, so that nobody else behind the same NAT can use it.
    pub fn cookie(&mut self, now: Instant, source: SocketAddr, rng: &mut dyn RngCore) -> MacBytes {
        let fresh = self.current.take().filter(|(_, born)| now.duration_since(*born) < self.lifetime);
        let (secret, _) = self.current.insert(fresh.unwrap_or_else(|| {
            let mut secret = Key::zero();
            rng.fill_bytes(secret.as_mut());
            (secret, now)
        }));
        let port = source.port().to_be_bytes();
        match source.ip() {
            IpAddr::V4(ip) => mac(secret.as_bytes(), &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(secret.as_bytes(), &[&ip.octets(), &port]),
        }
    }
}

/// Whether MAC2 of an initiation or a response was made with this cookie.
pub(crate) fn verify_mac2(datagram: &[u8], cookie: &MacBytes) -> bool {
    let (_, _, mac2) = split(datagram);
    mac_is(cookie, &[&datagram[..datagram.len() - MAC_LENGTH]], mac2)
}

/// The cookie that a peer under load gave us, and what its reply must refer to.
#[derive(Default)]
pub(crate) struct CookieJar {
    last_mac1: Option<MacBytes>,
    cookie: Option<(Cookie, Instant)>,
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Cookie(MacBytes);

impl CookieJar {
    /// The cookie to make MAC2 with, if we have a fresh one.
    pub fn cookie(&mut self, now: Instant, use_for: Duration) -> Option<&MacBytes> {
        self.cookie.take_if(|(_, born)| now.duration_since(*born) >= use_for);
        self.cookie.as_ref().map(|(cookie, _)| &cookie.0)
    }

    /// Remembers the MAC1 of the message just sent: only one reply counts, and it has to refer to that message.
    pub fn sent(&mut self, mac1: MacBytes) {
        self.last_mac1 = Some(mac1);
    }

    /// # Errors
    /// [`Reject::CookieReply`] when this is not a reply to the last message we sent to the owner of `keys`.
    pub fn accept(&mut self, now: Instant, keys: &MacKeys, reply: &CookieReply) -> Result<(), Reject> {
        let mac1 = self.last_mac1.as_ref().ok_or(Reject::CookieReply)?;
        let cookie = keys.open(reply, mac1).ok_or(Reject::CookieReply)?;
        self.last_mac1 = None;
        self.cookie = Some((Cookie(cookie), now));
        Ok(())
    }
}

/// Splits a datagram of at least 32 bytes into the part that MAC1 covers, MAC1, and MAC2.
fn split(datagram: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (rest, mac2) = datagram.split_at(datagram.len() - MAC_LENGTH);
    let (signed, mac1) = rest.split_at(rest.len() - MAC_LENGTH);
    (signed, mac1, mac2)
}

/// Keyed BLAKE2s of 16 bytes; the key has at most 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> MacBytes {
    keyed(key, parts).finalize().into_bytes().into()
}

/// Compares in constant time.
pub(crate) fn mac_is(key: &[u8], parts: &[&[u8]], expected: &[u8]) -> bool {
    keyed(key, parts).verify_slice(expected).is_ok()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U16> {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("the key of a MAC has 16 or 32 bytes");
    for part in parts {
        Mac::update(&mut mac, part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::INITIATION_LENGTH;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn mac1_covers_every_byte_before_it() {
        let keys = MacKeys::new(&PublicKey::from([9; 32]));
        let mut datagram = [3; INITIATION_LENGTH];
        keys.sign(&mut datagram, None);
        assert_eq!(keys.verify(&datagram), Ok(()));
        for at in 0..INITIATION_LENGTH - MAC_LENGTH {
            let mut mutated = datagram;
            mutated[at] ^= 1;
            assert_eq!(keys.verify(&mutated), Err(Reject::Mac1), "byte {at}");
        }
        let others = MacKeys::new(&PublicKey::from([8; 32]));
        assert_eq!(others.verify(&datagram), Err(Reject::Mac1));
    }

    #[test]
    fn a_cookie_belongs_to_address_port_and_secret() {
        let rng = &mut StdRng::seed_from_u64(1);
        let now = Instant::now();
        let mut secret = CookieSecret::new(Duration::from_secs(120));
        let mut cookie =
            |seconds, source: &str| secret.cookie(now + Duration::from_secs(seconds), address(source), rng);
        let first = cookie(0, "192.0.2.1:1000");
        assert_eq!(first, cookie(119, "192.0.2.1:1000"));
        assert_ne!(first, cookie(119, "192.0.2.1:1001"));
        assert_ne!(first, cookie(119, "192.0.2.2:1000"));
        assert_ne!(cookie(119, "[2001:db8::1]:1000"), cookie(119, "[2001:db8::1]:1001"));
        assert_ne!(first, cookie(120, "192.0.2.1:1000"));
    }

    #[test]
    fn a_reply_is_taken_once_and_only_for_the_last_message() {
        let rng = &mut StdRng::seed_from_u64(1);
        let now = Instant::now();
        let keys = MacKeys::new(&PublicKey::from([9; 32]));
        let use_for = Duration::from_secs(115);
        let mut jar = CookieJar::default();
        let mut datagram = [3; INITIATION_LENGTH];
        let reply = |datagram: &[u8], rng: &mut StdRng| keys.reply(datagram, 7, &[5; 16], rng);

        keys.sign(&mut datagram, None);
        assert_eq!(jar.accept(now, &keys, &reply(&datagram, rng)), Err(Reject::CookieReply));

        jar.sent(keys.sign(&mut datagram, None));
        let mut other = datagram;
        other[5] ^= 1;
        keys.sign(&mut other, None);
        assert_eq!(jar.accept(now, &keys, &reply(&other, rng)), Err(Reject::CookieReply));
        let mut forged = reply(&datagram, rng);
        forged.sealed_cookie[0] ^= 1;
        assert_eq!(jar.accept(now, &keys, &forged), Err(Reject::CookieReply));

        let honest = reply(&datagram, rng);
        assert_eq!(jar.accept(now, &keys, &honest), Ok(()));
        assert_eq!(jar.cookie(now, use_for), Some(&[5; 16]));
        assert_eq!(jar.accept(now, &keys, &honest), Err(Reject::CookieReply));

        keys.sign(&mut datagram, jar.cookie(now, use_for));
        assert!(verify_mac2(&datagram, &[5; 16]));
        assert!(!verify_mac2(&datagram, &[6; 16]));
        assert_eq!(jar.cookie(now + use_for, use_for), None);
    }
}
