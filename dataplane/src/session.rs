//! A session: a pair of transport keys with its send counter and replay window.
//!
//! Sessions are shared between workers. The send counter is atomic and taken in blocks; the window is
//! behind a lock that only workers handling the same peer's packets at once would contend for.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::clock::Millis;
use crate::drop::DropReason;
use crate::peer::Peer;
use crate::replay::ReplayWindow;

/// Bytes of a transport data message in front of its ciphertext: type, receiver index, counter.
pub const DATA_HEADER: usize = 16;
/// Bytes of the Poly1305 tag behind the ciphertext.
pub const TAG: usize = 16;
/// Plaintexts are padded with zeros to a multiple of this.
pub const PADDING: usize = 16;
/// After this long a session neither sends nor receives (WireGuard's Reject-After-Time).
pub const REJECT_AFTER: Millis = Millis(180_000);
/// No counter from here on is used (WireGuard's Reject-After-Messages).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// The AEAD of a session. WireGuard knows one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// RFC 8439, with WireGuard's nonce: 32 bits of zeros, then the counter in little endian.
    ChaCha20Poly1305,
}

/// What a session is made of.
pub struct SessionConfig {
    /// Our receiver index, by which the peer addresses this session.
    pub local_index: u32,
    /// The peer's receiver index.
    pub remote_index: u32,
    /// The AEAD.
    pub suite: Suite,
    /// Key for what we send.
    pub send_key: Zeroizing<[u8; 32]>,
    /// Key for what we receive.
    pub receive_key: Zeroizing<[u8; 32]>,
    /// When the handshake was completed.
    pub born: Millis,
    /// Whether the peer is known to have the keys: false for a responder until it receives.
    pub confirmed: bool,
    /// The peer whose session it is.
    pub peer: Arc<Peer>,
}

/// A pair of transport keys in use.
pub struct Session {
    /// Our receiver index.
    pub local_index: u32,
    /// The peer's receiver index.
    pub remote_index: u32,
    /// The AEAD.
    pub suite: Suite,
    /// Whose session it is.
    pub peer: Arc<Peer>,
    born: Millis,
    confirmed: AtomicBool,
    send_key: WipedKey,
    receive_key: WipedKey,
    send_counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("local_index", &self.local_index).finish_non_exhaustive()
    }
}

impl Session {
    /// A session with its keys set up; `config`'s copies of them are wiped.
    pub fn new(config: SessionConfig) -> Self {
        Self {
            local_index: config.local_index,
            remote_index: config.remote_index,
            suite: config.suite,
            peer: config.peer,
            born: config.born,
            confirmed: AtomicBool::new(config.confirmed),
            send_key: WipedKey::new(config.suite, &config.send_key),
            receive_key: WipedKey::new(config.suite, &config.receive_key),
            send_counter: AtomicU64::new(0),
            replay: Mutex::default(),
        }
    }

    /// How many messages were sent.
    pub fn sent(&self) -> u64 {
        self.send_counter.load(Relaxed)
    }

    /// When the handshake was completed.
    pub fn born(&self) -> Millis {
        self.born
    }

    /// Whether the session is within WireGuard's limits of age and messages for sending.
    #[inline]
    pub fn alive(&self, now: Millis) -> bool {
        now.since(self.born) < REJECT_AFTER && self.send_counter.load(Relaxed) < REJECT_AFTER_MESSAGES
    }

    /// Whether control was told that the peer has the keys.
    #[inline]
    pub fn confirmed(&self) -> bool {
        self.confirmed.load(Relaxed)
    }

    /// Notes that control was told. Two workers may both tell it; that does no harm.
    pub fn confirm(&self) {
        self.confirmed.store(true, Relaxed);
    }

    /// Reserves `n` counters and returns the first.
    ///
    /// # Errors
    /// [`DropReason::ExpiredSession`] when the message limit is reached.
    #[inline]
    pub fn reserve(&self, n: u64) -> Result<u64, DropReason> {
        let first = self.send_counter.fetch_add(n, Relaxed);
        // The limit leaves 2^13 counters of slack, more than all workers' batches together.
        if first >= REJECT_AFTER_MESSAGES { Err(DropReason::ExpiredSession) } else { Ok(first) }
    }

    /// Seals a message in place: `message` is the header's room, the padded plaintext, and the tag's
    /// room; all of it is written.
    #[inline]
    pub fn seal(&self, counter: u64, message: &mut [u8]) {
        let (header, rest) = message.split_at_mut(DATA_HEADER);
        let (plaintext, tag) = rest.split_at_mut(rest.len() - TAG);
        header[..4].copy_from_slice(&4u32.to_le_bytes());
        header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        let sealed = self
            .send_key
            .key()
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), plaintext)
            .expect("a frame is far below the AEAD's limit");
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Opens a message: `buffer[message..]` is the whole of it, the plaintext is written from the
    /// beginning of `buffer`. Returns the plaintext's length. The counter is checked against the
    /// replay window after the AEAD has verified.
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::ExpiredSession`], [`DropReason::BadTag`] or [`DropReason::Replayed`].
    #[inline]
    pub fn open(&self, buffer: &mut [u8], message: usize, now: Millis) -> Result<usize, DropReason> {
        let (plaintext, counter) = self.decrypt(buffer, message, now)?;
        self.accept(counter)?;
        Ok(plaintext)
    }

    /// The first half of [`Session::open`], which is what to call: a message that was decrypted may still be a
    /// replay. Returns the plaintext's length and the authenticated counter.
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::ExpiredSession`] or [`DropReason::BadTag`].
    #[inline]
    pub fn decrypt(&self, buffer: &mut [u8], message: usize, now: Millis) -> Result<(usize, u64), DropReason> {
        let header = buffer.get(message..message + DATA_HEADER).ok_or(DropReason::Truncated)?;
        if buffer.len() < message + DATA_HEADER + TAG {
            return Err(DropReason::Truncated);
        }
        let counter = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        if counter >= REJECT_AFTER_MESSAGES || now.since(self.born) >= REJECT_AFTER {
            return Err(DropReason::ExpiredSession);
        }
        let plaintext = self
            .receive_key
            .key()
            .open_within(nonce(counter), Aad::empty(), buffer, message + DATA_HEADER..)
            .map_err(|_| DropReason::BadTag)?
            .len();
        Ok((plaintext, counter))
    }

    /// The second half of [`Session::open`]: marks an authenticated counter as seen.
    ///
    /// # Errors
    /// [`DropReason::Replayed`] when it was already, or is too old to tell.
    #[inline]
    pub fn accept(&self, counter: u64) -> Result<(), DropReason> {
        let mut replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        if replay.accept(counter) { Ok(()) } else { Err(DropReason::Replayed) }
    }
}

#[inline]
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// ring keeps no promise to wipe its keys, so the session does.
struct WipedKey(ManuallyDrop<Box<LessSafeKey>>);

impl WipedKey {
    fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, key).expect("the key has the algorithm's length");
        Self(ManuallyDrop::new(Box::new(LessSafeKey::new(key))))
    }

    #[inline]
    fn key(&self) -> &LessSafeKey {
        &self.0
    }
}

impl Drop for WipedKey {
    #[expect(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used afterwards.
        let mut key = Box::new(std::mem::MaybeUninit::new(*unsafe { ManuallyDrop::take(&mut self.0) }));
        zeroize::Zeroize::zeroize(&mut *key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Session, Session) {
        let session = |local, remote, send, receive| {
            Session::new(SessionConfig {
                local_index: local,
                remote_index: remote,
                suite: Suite::ChaCha20Poly1305,
                send_key: Zeroizing::new([send; 32]),
                receive_key: Zeroizing::new([receive; 32]),
                born: Millis(0),
                confirmed: true,
                peer: Arc::new(Peer::new(0)),
            })
        };
        (session(1, 2, 10, 20), session(2, 1, 20, 10))
    }

    fn message(plaintext: &[u8]) -> Vec<u8> {
        let mut message = vec![0; DATA_HEADER];
        message.extend_from_slice(plaintext);
        message.extend_from_slice(&[0; TAG]);
        message
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let (a, b) = pair();
        let mut sealed = message(b"sixteen bytes ok");
        a.seal(a.reserve(1).unwrap(), &mut sealed);
        assert_eq!(sealed[..8], [4, 0, 0, 0, 2, 0, 0, 0]);
        for gap in [0, 44] {
            let mut buffer = vec![0; gap];
            buffer.extend_from_slice(&sealed);
            let opened = b.open(&mut buffer, gap, Millis(1));
            if gap == 0 {
                assert_eq!(opened, Ok(16));
                assert_eq!(&buffer[..16], b"sixteen bytes ok");
            } else {
                assert_eq!(opened, Err(DropReason::Replayed));
            }
        }
    }

    #[test]
    fn every_changed_bit_and_every_truncation_is_refused() {
        let (a, b) = pair();
        let mut sealed = message(&[7; 32]);
        a.seal(3, &mut sealed);
        for bit in DATA_HEADER * 8..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(b.open(&mut changed, 0, Millis(0)), Err(DropReason::BadTag));
        }
        for len in 0..sealed.len() {
            let error = if len < DATA_HEADER + TAG { DropReason::Truncated } else { DropReason::BadTag };
            assert_eq!(b.open(&mut sealed[..len].to_vec(), 0, Millis(0)), Err(error));
        }
        assert_eq!(b.open(&mut sealed, 0, Millis(0)), Ok(32), "none of them burnt the counter");
    }

    #[test]
    fn limits_of_age_and_messages() {
        let (a, b) = pair();
        assert!(a.alive(Millis(179_999)) && !a.alive(Millis(180_000)));
        let mut sealed = message(&[0; 16]);
        a.seal(REJECT_AFTER_MESSAGES, &mut sealed);
        assert_eq!(b.open(&mut sealed, 0, Millis(0)), Err(DropReason::ExpiredSession));
        let mut sealed = message(&[0; 16]);
        a.seal(0, &mut sealed);
        assert_eq!(b.open(&mut sealed, 0, Millis(180_000)), Err(DropReason::ExpiredSession));
        a.send_counter.store(REJECT_AFTER_MESSAGES, Relaxed);
        assert!(!a.alive(Millis(0)));
        assert_eq!(a.reserve(1), Err(DropReason::ExpiredSession));
    }
}
