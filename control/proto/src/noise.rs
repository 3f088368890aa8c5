//! Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard uses it (paper 5.4.1 to 5.4.5), and the same with AESGCM in place
//! of ChaChaPoly. The protocol name is hashed first, so a message of one suite means nothing in the other.
//!
//! This is the two sides of one handshake, without peers, time or datagrams. A failed step changes no state: an
//! [`Initiator`] survives forged responses, and a message that fails anywhere leaves no trace. Every Diffie-Hellman
//! result is checked to be contributory, so low-order points end in a [`Reject`], which means silence.

use aes_gcm::Aes256Gcm;
use blake2::digest::Mac;
use blake2::digest::consts::U32;
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305, KeyInit};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroize;

use crate::messages::{Initiation, Response, TAG_LENGTH, TIMESTAMP_LENGTH};
use crate::{Key, Reject, Suite};

const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A TAI64N timestamp: seconds and nanoseconds, big-endian, so that comparing bytes compares times.
pub(crate) type Timestamp = [u8; TIMESTAMP_LENGTH];

/// The keys that a handshake yields, named for the side that made them.
pub(crate) struct TransportKeys {
    pub send: Key,
    pub receive: Key,
}

/// The initiator's side between its initiation and the response.
pub(crate) struct Initiator {
    index: u32,
    ephemeral: StaticSecret,
    state: State,
}

impl Initiator {
    /// Starts a handshake in this suite with the owner of `remote`; `static_static` is the product of both static keys.
    ///
    /// # Errors
    /// [`Reject::LowOrderKey`] when `remote` is of low order.
    pub fn start(
        suite: Suite,
        public: &PublicKey,
        remote: &PublicKey,
        static_static: &Key,
        ephemeral: StaticSecret,
        index: u32,
        timestamp: &Timestamp,
    ) -> Result<(Self, Initiation), Reject> {
        let mut state = State::new(suite, remote);
        let ephemeral_public = state.mix_ephemeral(PublicKey::from(&ephemeral).as_bytes());
        let key = state.mix_key(&diffie_hellman(&ephemeral, remote)?);
        let sealed_static = state.seal(&key, public.as_bytes());
        let key = state.mix_key(static_static);
        let sealed_timestamp = state.seal(&key, timestamp);
        let initiation = Initiation { sender: index, ephemeral: ephemeral_public, sealed_static, sealed_timestamp };
        Ok((Self { index, ephemeral, state }, initiation))
    }

    /// Our index for the session that is to be.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The suite that it started with.
    pub fn suite(&self) -> Suite {
        self.state.suite
    }

    /// Completes the handshake with the response; `self` stays as it was.
    ///
    /// # Errors
    /// [`Reject::LowOrderKey`], and [`Reject::Response`] when the response does not answer our initiation or was made
    /// with a different preshared key.
    pub fn finish(
        &self,
        private: &StaticSecret,
        preshared_key: Option<&Key>,
        response: &Response,
    ) -> Result<TransportKeys, Reject> {
        let mut state = self.state.clone();
        let remote = PublicKey::from(state.mix_ephemeral(&response.ephemeral));
        state.mix_chaining_key(&diffie_hellman(&self.ephemeral, &remote)?);
        state.mix_chaining_key(&diffie_hellman(private, &remote)?);
        let key = state.mix_preshared_key(preshared_key);
        let [] = state.open(&key, &response.sealed_nothing).ok_or(Reject::Response)?;
        let [send, receive] = kdf(&state.chaining_key, &[]);
        Ok(TransportKeys { send, receive })
    }
}

/// The responder's side once the initiator's static key is known but not yet proven to be fresh.
pub(crate) struct Claim {
    state: State,
    remote: PublicKey,
}

impl Claim {
    /// Opens the first half of an initiation: who claims to have sent it, and with which suite. Nothing in the message
    /// names the suite, so one is tried after the other; they share the Diffie-Hellman.
    ///
    /// # Errors
    /// [`Reject::LowOrderKey`], [`Reject::Initiation`].
    pub fn open(public: &PublicKey, private: &StaticSecret, initiation: &Initiation) -> Result<Self, Reject> {
        let shared = diffie_hellman(private, &PublicKey::from(initiation.ephemeral))?;
        let claim = |suite| {
            let mut state = State::new(suite, public);
            state.mix_ephemeral(&initiation.ephemeral);
            let key = state.mix_key(&shared);
            let remote: [u8; 32] = state.open(&key, &initiation.sealed_static)?;
            Some(Self { state, remote: PublicKey::from(remote) })
        };
        Suite::ALL.into_iter().find_map(claim).ok_or(Reject::Initiation)
    }

    /// The static key of the claimed sender.
    pub fn remote(&self) -> &PublicKey {
        &self.remote
    }

    /// Opens the second half, which only the owner of that static key can have sealed.
    ///
    /// # Errors
    /// [`Reject::Initiation`].
    pub fn verify(mut self, static_static: &Key, initiation: &Initiation) -> Result<(Responder, Timestamp), Reject> {
        let key = self.state.mix_key(static_static);
        let timestamp = self.state.open(&key, &initiation.sealed_timestamp).ok_or(Reject::Initiation)?;
        let responder = Responder {
            state: self.state,
            remote: self.remote,
            remote_ephemeral: PublicKey::from(initiation.ephemeral),
            remote_index: initiation.sender,
        };
        Ok((responder, timestamp))
    }
}

/// The responder's side between an authentic initiation and its response.
pub(crate) struct Responder {
    state: State,
    remote: PublicKey,
    remote_ephemeral: PublicKey,
    remote_index: u32,
}

impl Responder {
    /// The suite that the initiator has chosen.
    pub fn suite(&self) -> Suite {
        self.state.suite
    }

    /// Completes the handshake and makes the response.
    ///
    /// # Errors
    /// [`Reject::LowOrderKey`].
    pub fn respond(
        mut self,
        preshared_key: Option<&Key>,
        ephemeral: &StaticSecret,
        index: u32,
    ) -> Result<(TransportKeys, Response), Reject> {
        let state = &mut self.state;
        let ephemeral_public = state.mix_ephemeral(PublicKey::from(ephemeral).as_bytes());
        state.mix_chaining_key(&diffie_hellman(ephemeral, &self.remote_ephemeral)?);
        state.mix_chaining_key(&diffie_hellman(ephemeral, &self.remote)?);
        let key = state.mix_preshared_key(preshared_key);
        let sealed_nothing = state.seal(&key, &[]);
        let [receive, send] = kdf(&state.chaining_key, &[]);
        let response =
            Response { sender: index, receiver: self.remote_index, ephemeral: ephemeral_public, sealed_nothing };
        Ok((TransportKeys { send, receive }, response))
    }
}

/// The X25519 product, or [`Reject::LowOrderKey`] when it does not depend on our secret.
pub(crate) fn diffie_hellman(private: &StaticSecret, public: &PublicKey) -> Result<Key, Reject> {
    let shared = private.diffie_hellman(public);
    if shared.was_contributory() { Ok(Key::from(shared.to_bytes())) } else { Err(Reject::LowOrderKey) }
}

/// BLAKE2s-256 of the concatenated parts.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// BLAKE2s-256 of the concatenated parts under a key of at most 32 bytes.
pub(crate) fn keyed_hash(key: &[u8], parts: &[&[u8]]) -> Blake2sMac<U32> {
    let mut mac = <Blake2sMac<U32> as KeyInit>::new_from_slice(key).expect("a key of BLAKE2s has up to 32 bytes");
    for part in parts {
        Mac::update(&mut mac, part);
    }
    mac
}

/// The chaining key and the transcript hash of a handshake.
#[derive(Clone)]
struct State {
    suite: Suite,
    chaining_key: Key,
    hash: [u8; 32],
}

impl Drop for State {
    fn drop(&mut self) {
        self.hash.zeroize();
    }
}

impl State {
    fn new(suite: Suite, responder: &PublicKey) -> Self {
        let chaining_key = hash(&[suite.noise_name().as_bytes()]);
        let identified = hash(&[&chaining_key, IDENTIFIER]);
        Self { suite, chaining_key: Key::from(chaining_key), hash: hash(&[&identified, responder.as_bytes()]) }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    /// Noise's "psk" variants mix ephemeral public keys into the chaining key too.
    fn mix_ephemeral(&mut self, ephemeral: &[u8; 32]) -> [u8; 32] {
        self.mix_hash(ephemeral);
        let [chaining_key] = kdf(&self.chaining_key, ephemeral);
        self.chaining_key = chaining_key;
        *ephemeral
    }

    fn mix_chaining_key(&mut self, input: &Key) {
        let [chaining_key] = kdf(&self.chaining_key, input.as_bytes());
        self.chaining_key = chaining_key;
    }

    fn mix_key(&mut self, input: &Key) -> Key {
        let [chaining_key, key] = kdf(&self.chaining_key, input.as_bytes());
        self.chaining_key = chaining_key;
        key
    }

    fn mix_preshared_key(&mut self, preshared_key: Option<&Key>) -> Key {
        let input = preshared_key.map_or(&[0; 32], Key::as_bytes);
        let [chaining_key, temporary, key] = kdf(&self.chaining_key, input);
        self.chaining_key = chaining_key;
        self.mix_hash(temporary.as_bytes());
        key
    }

    /// Seals `N` bytes into `M` = `N` + 16 of them. Each key seals one message, so the nonce is zero.
    fn seal<const N: usize, const M: usize>(&mut self, key: &Key, plain: &[u8; N]) -> [u8; M] {
        const { assert!(M == N + TAG_LENGTH) };
        let mut sealed = [0; M];
        let (text, tag) = sealed.split_at_mut(N);
        text.copy_from_slice(plain);
        let (nonce, hash) = (Default::default(), &self.hash);
        let computed = match self.suite {
            Suite::ChaCha20Poly1305 => chacha20_poly1305(key).encrypt_in_place_detached(&nonce, hash, text),
            Suite::Aes256Gcm => aes_256_gcm(key).encrypt_in_place_detached(&nonce, hash, text),
        };
        let computed = computed.expect("a handshake field is far below the limit of either suite");
        tag.copy_from_slice(&computed);
        self.mix_hash(&sealed);
        sealed
    }

    fn open<const N: usize, const M: usize>(&mut self, key: &Key, sealed: &[u8; M]) -> Option<[u8; N]> {
        const { assert!(M == N + TAG_LENGTH) };
        let (text, tag) = sealed.split_at(N);
        let mut plain = [0; N];
        plain.copy_from_slice(text);
        let (nonce, hash, tag) = (Default::default(), &self.hash, tag.into());
        match self.suite {
            Suite::ChaCha20Poly1305 => chacha20_poly1305(key).decrypt_in_place_detached(&nonce, hash, &mut plain, tag),
            Suite::Aes256Gcm => aes_256_gcm(key).decrypt_in_place_detached(&nonce, hash, &mut plain, tag),
        }
        .ok()?;
        self.mix_hash(sealed);
        Some(plain)
    }
}

fn chacha20_poly1305(key: &Key) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(key.as_bytes().into())
}

fn aes_256_gcm(key: &Key) -> Aes256Gcm {
    Aes256Gcm::new(key.as_bytes().into())
}

/// HKDF with HMAC-BLAKE2s: `N` keys from a key and an input (paper 5.4, "KDF").
fn kdf<const N: usize>(key: &Key, input: &[u8]) -> [Key; N] {
    let secret = hmac(key.as_bytes(), &[input]);
    let mut counter = 0;
    let mut previous = Key::zero();
    std::array::from_fn(|_| {
        counter += 1;
        let feedback: &[u8] = if counter == 1 { &[] } else { previous.as_bytes() };
        previous = hmac(secret.as_bytes(), &[feedback, &[counter]]);
        previous.clone()
    })
}

/// HMAC-BLAKE2s with a key of 32 bytes (RFC 2104).
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Key {
    const BLOCK: usize = 64;
    let pad = |byte: u8| {
        let mut block = [byte; BLOCK];
        for (padded, key) in block.iter_mut().zip(key) {
            *padded ^= key;
        }
        block
    };
    let (mut inner_pad, mut outer_pad) = (pad(0x36), pad(0x5c));
    let mut inner = Blake2s256::new();
    inner.update(inner_pad);
    for part in parts {
        inner.update(part);
    }
    let mut inner: [u8; 32] = inner.finalize().into();
    let outer = Key::from(hash(&[&outer_pad, &inner]));
    inner.zeroize();
    inner_pad.zeroize();
    outer_pad.zeroize();
    outer
}

#[cfg(test)]
mod tests;
