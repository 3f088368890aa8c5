//! The messages of a batch: what a caller lends to the cipher for one call.

use crate::{Key, NONCE, Suite, TAG, packet};

/// A message to seal in place.
#[derive(Debug)]
pub struct Sealing<'a> {
    pub(crate) key: &'a Key,
    pub(crate) nonce: Nonce,
    pub(crate) data: &'a mut [u8],
}

impl<'a> Sealing<'a> {
    /// `data` is the plaintext and [`TAG`] bytes of room for the tag; it becomes the ciphertext with its tag.
    ///
    /// # Panics
    /// If `data` has no room for a tag.
    #[inline]
    pub fn new(key: &'a Key, nonce: [u8; NONCE], data: &'a mut [u8]) -> Self {
        assert!(data.len() >= TAG, "no room for the tag");
        Self { key, nonce: Nonce::new(nonce), data }
    }
}

/// A message to open in place.
#[derive(Debug)]
pub struct Opening<'a> {
    pub(crate) key: &'a Key,
    pub(crate) nonce: Nonce,
    pub(crate) data: &'a mut [u8],
    /// Where the ciphertext begins.
    pub(crate) ciphertext: usize,
    pub(crate) verified: bool,
}

impl<'a> Opening<'a> {
    /// `data[ciphertext..]` is the ciphertext with its tag; the plaintext is written to the beginning of `data`.
    ///
    /// A message whose `data` is too short for that does not verify. When a message does not verify, the place of its
    /// plaintext is filled with zeros; what comes after it is unspecified.
    #[inline]
    pub fn new(key: &'a Key, nonce: [u8; NONCE], data: &'a mut [u8], ciphertext: usize) -> Self {
        Self { key, nonce: Nonce::new(nonce), data, ciphertext, verified: false }
    }

    /// The plaintext, once [`Cipher::open_batch`](crate::Cipher::open_batch) has verified the message.
    #[inline]
    pub fn plaintext(&self) -> Option<&[u8]> {
        let len = self.plaintext_len()?;
        self.verified.then(|| &self.data[..len])
    }

    /// As [`Opening::plaintext`], but mutable.
    pub fn into_plaintext(self) -> Option<&'a mut [u8]> {
        let len = self.plaintext_len()?;
        self.verified.then(|| &mut self.data[..len])
    }

    /// `None` when there is no room for a tag.
    #[inline]
    pub(crate) fn plaintext_len(&self) -> Option<usize> {
        self.data.len().checked_sub(self.ciphertext)?.checked_sub(TAG)
    }
}

/// A nonce in ChaCha20's form: a word that is ignored, and three little-endian words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nonce(pub(crate) [u32; 4]);

impl Nonce {
    #[inline]
    pub(crate) fn new(bytes: [u8; NONCE]) -> Self {
        let (words, _) = bytes.as_chunks();
        let [first, second, third] = [words[0], words[1], words[2]].map(u32::from_le_bytes);
        Self([0, first, second, third])
    }

    pub(crate) fn bytes(self) -> [u8; NONCE] {
        let [_, words @ ..] = self.0;
        let mut bytes = [0; NONCE];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }
}

/// A text in memory: `len` bytes at `from` with a tag behind them, and room for them at `to`.
pub(crate) struct Text {
    pub(crate) from: *const u8,
    pub(crate) to: *mut u8,
    pub(crate) len: usize,
}

/// What kernels and planning need from a [`Sealing`] or an [`Opening`].
pub(crate) trait Message {
    const SEAL: bool;
    fn suite(&self) -> Suite;
    fn key_words(&self) -> &[u32; 8];
    fn nonce(&self) -> &Nonce;
    /// The text's length, unless the message has no room for a tag.
    fn len(&self) -> Option<usize>;
    /// The text of a message that has a length. The pointers are valid while the message is mutably borrowed.
    fn text(&mut self) -> Text;
    /// Processes it with ring.
    fn by_ring(&mut self);
    /// Takes a kernel's result.
    fn done(&mut self, verified: bool);
}

impl Message for Sealing<'_> {
    const SEAL: bool = true;

    fn suite(&self) -> Suite {
        self.key.suite()
    }
    fn key_words(&self) -> &[u32; 8] {
        self.key.words()
    }
    fn nonce(&self) -> &Nonce {
        &self.nonce
    }
    fn len(&self) -> Option<usize> {
        Some(self.data.len() - TAG)
    }
    fn text(&mut self) -> Text {
        let to = self.data.as_mut_ptr();
        Text { from: to, to, len: self.data.len() - TAG }
    }
    fn by_ring(&mut self) {
        packet::seal(self);
    }
    fn done(&mut self, _: bool) {}
}

impl Message for Opening<'_> {
    const SEAL: bool = false;

    fn suite(&self) -> Suite {
        self.key.suite()
    }
    fn key_words(&self) -> &[u32; 8] {
        self.key.words()
    }
    fn nonce(&self) -> &Nonce {
        &self.nonce
    }
    fn len(&self) -> Option<usize> {
        self.plaintext_len()
    }
    fn text(&mut self) -> Text {
        let len = self.plaintext_len().expect("a message that has a length");
        let to = self.data.as_mut_ptr();
        Text { from: to.wrapping_add(self.ciphertext), to, len }
    }
    fn by_ring(&mut self) {
        packet::open(self);
    }
    fn done(&mut self, verified: bool) {
        self.verified = verified;
        if let (false, Some(len)) = (verified, self.plaintext_len()) {
            self.data[..len].fill(0);
        }
    }
}
