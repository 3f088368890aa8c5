//! A session: a pair of transport keys with its send counter and replay window.
//!
//! Sessions are shared between workers. The send counter is atomic and taken in blocks; the window is behind a lock
//! that is contended only by workers with packets of the same peer at the same time. The keys stay where they were set
//! up, and are wiped there when the last table that holds the session is gone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use penstock_aead::{Cipher, Implementation, SelfTestFailed, Suite, TAG};
use penstock_aead::{Key, NONCE, Opening, Sealing};

use crate::clock::Millis;
use crate::drop::DropReason;
use crate::peer::PeerCounters;
use crate::replay::ReplayWindow;

/// The first bytes of a transport data message: its type and three reserved zeros.
pub const DATA: [u8; 4] = [4, 0, 0, 0];
/// Bytes of a transport data message before its ciphertext: [`DATA`], receiver index, counter.
pub const DATA_HEADER: usize = 16;
/// Plaintexts are padded with zeros to a multiple of this.
pub const PADDING: usize = 16;
/// A session older than this neither sends nor receives (WireGuard's Reject-After-Time).
pub const REJECT_AFTER: Millis = Millis(180_000);
/// Counters from here on are not used (WireGuard's Reject-After-Messages).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// AES-256-GCM: the most blocks sealed with one key. It keeps an attacker's advantage below 2^-57
/// (draft-irtf-cfrg-aead-limits, section 5.1: blocks of plaintext, and one for each message).
pub const REJECT_AFTER_BLOCKS: u64 = 1 << 36;

/// The bit for the kernel's socket among the ways by which a session's messages have left.
pub const BY_KERNEL: u64 = 1 << 63;
/// Workers from this number on share a bit with the last one below it.
const RINGS: usize = 62;
/// Set once the peer was heard.
const HEARD: u64 = 1 << 62;

/// The bit for a worker's AF_XDP rings.
pub fn by_ring(worker: usize) -> u64 {
    1 << worker.min(RINGS - 1)
}

/// Bytes of an AES block.
const BLOCK: u64 = 16;

/// What a session is made from.
pub struct SessionConfig<'a> {
    /// Our receiver index, by which the peer addresses this session.
    pub local_index: u32,
    /// The peer's receiver index.
    pub remote_index: u32,
    /// The AEAD.
    pub suite: Suite,
    /// Key for sending; wiping it is up to the caller.
    pub send_key: &'a [u8; 32],
    /// Key for receiving; wiping it is up to the caller.
    pub receive_key: &'a [u8; 32],
    /// When the handshake was completed.
    pub born: Millis,
    /// Whether the peer is known to have the keys: false for a responder until it receives.
    pub confirmed: bool,
    /// The peer that the session is with.
    pub peer: Arc<PeerCounters>,
}

/// A pair of transport keys in use.
pub struct Session {
    /// Whether we initiated the handshake.
    pub ours: bool,
    /// Our receiver index.
    pub local_index: u32,
    /// The peer's receiver index.
    pub remote_index: u32,
    /// The peer that the session is with.
    pub peer: Arc<PeerCounters>,
    born: Millis,
    confirmed: AtomicBool,
    send_key: Key,
    receive_key: Key,
    send_counter: AtomicU64,
    /// Counted only for AES-256-GCM.
    sent_blocks: AtomicU64,
    replay: Mutex<ReplayWindow>,
    /// The ways by which messages have left, one bit each.
    left_by: AtomicU64,
    /// When the first message other than a keepalive was sent ([`Millis`]; 0: none was).
    first_data: AtomicU64,
    /// The value of `left_by` when the peer was first heard, with [`HEARD`]; 0 before that.
    answered: AtomicU64,
}

/// The header in front of a transport data message's ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The receiver index.
    pub index: u32,
    /// The counter.
    pub counter: u64,
}

impl Header {
    /// Parses it; `None` when the message is too short for header and tag.
    #[inline]
    pub fn read(message: &[u8]) -> Option<Self> {
        let [_, _, _, _, a, b, c, d, counter @ ..] = message.first_chunk::<DATA_HEADER>()?;
        let header = Self { index: u32::from_le_bytes([*a, *b, *c, *d]), counter: u64::from_le_bytes(*counter) };
        (message.len() >= DATA_HEADER + TAG).then_some(header)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("local_index", &self.local_index).finish_non_exhaustive()
    }
}

impl Session {
    /// A session with its keys set up.
    pub fn new(config: SessionConfig<'_>) -> Self {
        Self {
            ours: config.confirmed,
            local_index: config.local_index,
            remote_index: config.remote_index,
            peer: config.peer,
            born: config.born,
            confirmed: AtomicBool::new(config.confirmed),
            send_key: Key::new(config.suite, config.send_key),
            receive_key: Key::new(config.suite, config.receive_key),
            send_counter: AtomicU64::new(0),
            sent_blocks: AtomicU64::new(0),
            replay: Mutex::default(),
            left_by: AtomicU64::new(0),
            first_data: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }

    /// The AEAD.
    pub fn suite(&self) -> Suite {
        self.send_key.suite()
    }

    /// How many messages were sent.
    pub fn sent(&self) -> u64 {
        self.send_counter.load(Relaxed)
    }

    /// How many blocks were sealed; 0 where they are not limited.
    pub fn sent_blocks(&self) -> u64 {
        self.sent_blocks.load(Relaxed)
    }

    /// When the handshake was completed.
    pub fn born(&self) -> Millis {
        self.born
    }

    /// Whether the session is within its limits of age, messages and blocks for sending.
    #[inline]
    pub fn alive(&self, now: Millis) -> bool {
        now.since(self.born) < REJECT_AFTER
            && self.send_counter.load(Relaxed) < REJECT_AFTER_MESSAGES
            && self.sent_blocks.load(Relaxed) < REJECT_AFTER_BLOCKS
    }

    /// Whether control was told that the peer has the keys.
    #[inline]
    pub fn confirmed(&self) -> bool {
        self.confirmed.load(Relaxed)
    }

    /// Notes that control was told. Two workers may both tell it, which is harmless.
    pub fn confirm(&self) {
        self.confirmed.store(true, Relaxed);
    }

    /// Notes how messages leave, [`by_ring`] or [`BY_KERNEL`], and whether there is data among them.
    #[inline]
    pub fn leaves_by(&self, way: u64, data: bool, now: Millis) {
        if self.left_by.load(Relaxed) & way == 0 {
            self.left_by.fetch_or(way, Relaxed);
        }
        if data && self.first_data.load(Relaxed) == 0 {
            self.first_data.store(now.0, Relaxed);
        }
    }

    /// When data was first sent on it.
    pub fn first_data(&self) -> Option<Millis> {
        Some(self.first_data.load(Relaxed)).filter(|at| *at != 0).map(Millis)
    }

    /// The ways by which messages have left.
    pub fn left_by(&self) -> u64 {
        self.left_by.load(Relaxed)
    }

    /// Notes an authentic message from the peer.
    #[inline]
    pub fn note_received(&self) {
        if self.answered.load(Relaxed) == 0 {
            self.answered.store(HEARD | self.left_by(), Relaxed);
        }
    }

    /// The ways by which messages had left when the peer was first heard on this session; `None` if it was not. The
    /// responder of a handshake may not send before it has received something, so for a session that we initiated,
    /// these ways are proven.
    pub fn answered(&self) -> Option<u64> {
        Some(self.answered.load(Relaxed)).filter(|ways| *ways != 0).map(|ways| ways & !HEARD)
    }

    /// Reserves counters for `messages` with `bytes` in total, and returns the first.
    ///
    /// # Errors
    /// [`DropReason::ExpiredSession`] when a limit is reached.
    #[inline]
    pub fn reserve(&self, messages: u64, bytes: u64) -> Result<u64, DropReason> {
        if self.suite() == Suite::Aes256Gcm {
            // Header and tag make up for the block that a message costs besides its plaintext, and for an incomplete
            // block.
            let blocks = bytes.div_ceil(BLOCK);
            if self.sent_blocks.fetch_add(blocks, Relaxed) + blocks > REJECT_AFTER_BLOCKS {
                return Err(DropReason::ExpiredSession);
            }
        }
        let first = self.send_counter.fetch_add(messages, Relaxed);
        // The limit leaves 2^13 counters of slack, more than the batches of all workers together.
        if first >= REJECT_AFTER_MESSAGES { Err(DropReason::ExpiredSession) } else { Ok(first) }
    }

    /// Writes a message's header, and returns what is to be sealed: `message` is room for the header, the padded
    /// plaintext, and room for the tag. Each counter is used once, see [`Session::reserve`].
    ///
    /// # Panics
    /// If there is no room for header and tag.
    #[inline]
    pub fn sealing<'a>(&'a self, counter: u64, message: &'a mut [u8]) -> Sealing<'a> {
        let (header, rest) = message.split_at_mut(DATA_HEADER);
        header[..4].copy_from_slice(&DATA);
        header[4..8].copy_from_slice(&self.remote_index.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        Sealing::new(&self.send_key, self.nonce(counter), rest)
    }

    /// Returns what is to be opened: `buffer[ciphertext..]` is a message after its header, and the plaintext is written
    /// to the beginning of `buffer`. A message that verifies may still be a replay: see [`Session::replay`].
    #[inline]
    pub fn opening<'a>(&'a self, counter: u64, buffer: &'a mut [u8], ciphertext: usize) -> Opening<'a> {
        Opening::new(&self.receive_key, self.nonce(counter), buffer, ciphertext)
    }

    /// Whether a message with this counter may be opened now.
    ///
    /// # Errors
    /// [`DropReason::ExpiredSession`].
    #[inline]
    pub fn admits(&self, counter: u64, now: Millis) -> Result<(), DropReason> {
        let messages = match self.suite() {
            Suite::ChaCha20Poly1305 => REJECT_AFTER_MESSAGES,
            // Each message costs its sender at least one block.
            Suite::Aes256Gcm => REJECT_AFTER_BLOCKS,
        };
        let expired = counter >= messages || now.since(self.born) >= REJECT_AFTER;
        if expired { Err(DropReason::ExpiredSession) } else { Ok(()) }
    }

    /// The replay window, for the counters of authentic messages.
    #[inline]
    pub fn replay(&self) -> MutexGuard<'_, ReplayWindow> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nonce: 32 zero bits, then the counter, little-endian for ChaCha20-Poly1305 and big-endian for AES-256-GCM
    /// (Noise, sections 12.3 and 12.4).
    #[inline]
    fn nonce(&self, counter: u64) -> [u8; NONCE] {
        let mut nonce = [0; NONCE];
        nonce[NONCE - 8..].copy_from_slice(&match self.suite() {
            Suite::ChaCha20Poly1305 => counter.to_le_bytes(),
            Suite::Aes256Gcm => counter.to_be_bytes(),
        });
        nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITES: [Suite; 2] = [Suite::ChaCha20Poly1305, Suite::Aes256Gcm];

    fn pair(suite: Suite) -> (Session, Session) {
        let session = |local, remote, send, receive| {
            Session::new(SessionConfig {
                local_index: local,
                remote_index: remote,
                suite,
                send_key: &[send; 32],
                receive_key: &[receive; 32],
                born: Millis(0),
                confirmed: true,
                peer: Arc::new(PeerCounters::new(0)),
            })
        };
        (session(1, 2, 10, 20), session(2, 1, 20, 10))
    }

    fn sealed(session: &Session, counter: u64, plaintext: &[u8]) -> Vec<u8> {
        let mut message = [&[0; DATA_HEADER], plaintext, &[0; TAG]].concat();
        Cipher::RING.seal_batch(&mut [session.sealing(counter, &mut message)]);
        message
    }

    /// Opens a message as a worker does; the plaintext is where the message is in the buffer.
    fn open(session: &Session, buffer: &mut [u8], message: usize, now: Millis) -> Result<Vec<u8>, DropReason> {
        let Header { counter, .. } = Header::read(&buffer[message..]).ok_or(DropReason::Truncated)?;
        session.admits(counter, now)?;
        let mut opening = [session.opening(counter, buffer, message + DATA_HEADER)];
        Cipher::RING.open_batch(&mut opening);
        let plaintext = opening[0].plaintext().ok_or(DropReason::BadTag)?.to_vec();
        if session.replay().accept(counter) { Ok(plaintext) } else { Err(DropReason::Replayed) }
    }

    #[test]
    fn what_is_sealed_opens_once() {
        for (a, b) in SUITES.map(pair) {
            let sealed = sealed(&a, a.reserve(1, 48).unwrap(), b"sixteen bytes ok");
            assert_eq!(sealed[..8], [4, 0, 0, 0, 2, 0, 0, 0]);
            for gap in [0, 44] {
                let mut buffer = [&vec![0; gap][..], &sealed].concat();
                let opened = open(&b, &mut buffer, gap, Millis(1));
                let expected = if gap == 0 { Ok(b"sixteen bytes ok".to_vec()) } else { Err(DropReason::Replayed) };
                assert_eq!(opened, expected);
                assert_eq!(&buffer[..16], b"sixteen bytes ok");
            }
        }
    }

    #[test]
    fn every_changed_bit_and_every_truncation_is_refused() {
        for (a, b) in SUITES.map(pair) {
            let mut sealed = sealed(&a, 3, &[7; 32]);
            for bit in DATA_HEADER * 8..sealed.len() * 8 {
                let mut changed = sealed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&b, &mut changed, 0, Millis(0)), Err(DropReason::BadTag));
            }
            for len in 0..sealed.len() {
                let error = if len < DATA_HEADER + TAG { DropReason::Truncated } else { DropReason::BadTag };
                assert_eq!(open(&b, &mut sealed[..len].to_vec(), 0, Millis(0)), Err(error));
            }
            assert_eq!(open(&b, &mut sealed, 0, Millis(0)), Ok(vec![7; 32]), "none of them burnt the counter");
        }
    }

    #[test]
    fn limits_of_age_and_messages() {
        let (a, b) = pair(Suite::ChaCha20Poly1305);
        assert!(a.alive(Millis(179_999)) && !a.alive(Millis(180_000)));
        let opened = |counter, now| open(&b, &mut sealed(&a, counter, &[0; 16]), 0, now);
        assert_eq!(opened(REJECT_AFTER_MESSAGES, Millis(0)), Err(DropReason::ExpiredSession));
        assert_eq!(opened(0, Millis(180_000)), Err(DropReason::ExpiredSession));
        assert_eq!(opened(REJECT_AFTER_MESSAGES - 1, Millis(0)), Ok(vec![0; 16]));
        a.send_counter.store(REJECT_AFTER_MESSAGES, Relaxed);
        assert!(!a.alive(Millis(0)));
        assert_eq!(a.reserve(1, 48), Err(DropReason::ExpiredSession));
    }

    #[test]
    fn limits_of_blocks() {
        let (a, b) = pair(Suite::Aes256Gcm);
        let opened = |counter| open(&b, &mut sealed(&a, counter, &[0; 16]), 0, Millis(0));
        assert_eq!(opened(REJECT_AFTER_BLOCKS), Err(DropReason::ExpiredSession));
        assert_eq!(opened(REJECT_AFTER_BLOCKS - 1), Ok(vec![0; 16]));
        // Full-size packets reach the limit long before their counter does.
        assert_eq!(a.reserve(64, 64 * 1452), Ok(0));
        assert_eq!(a.sent_blocks(), 64 * 1452 / 16);
        a.sent_blocks.store(REJECT_AFTER_BLOCKS - 91, Relaxed);
        assert!(a.alive(Millis(0)));
        assert_eq!(a.reserve(1, 92 * 16), Err(DropReason::ExpiredSession), "not one block more");
        assert!(!a.alive(Millis(0)));

        // The other suite has no such limit.
        let (a, b) = pair(Suite::ChaCha20Poly1305);
        a.reserve(1, u64::MAX).unwrap();
        assert!(a.alive(Millis(0)) && a.sent_blocks() == 0);
        assert_eq!(open(&b, &mut sealed(&a, REJECT_AFTER_BLOCKS, &[0; 16]), 0, Millis(0)), Ok(vec![0; 16]));
    }

    #[test]
    fn nonces_are_those_of_noise() {
        let counter = 0x0102_0304_0506_0708;
        let [chacha, aes] = SUITES.map(|suite| pair(suite).0.nonce(counter));
        assert_eq!(chacha, [0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(aes, [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
