//! The messages of a batch: what a caller lends to the cipher for one call.

use crate::{Key, NONCE, TAG};

/// A message to seal in place.
#[derive(Debug)]
pub struct Sealing<'a> {
    pub(crate) key: &'a Key,
    pub(crate) nonce: [u8; NONCE],
    pub(crate) data: &'a mut [u8],
}

impl<'a> Sealing<'a> {
    /// `data` is the plaintext and [`TAG`] bytes of room for the tag; it becomes the ciphertext and its tag.
    ///
    /// # Panics
    /// When `data` has no room for a tag.
    pub fn new(key: &'a Key, nonce: [u8; NONCE], data: &'a mut [u8]) -> Self {
        assert!(data.len() >= TAG, "no room for the tag");
        Self { key, nonce, data }
    }
}

/// A message to open in place.
#[derive(Debug)]
pub struct Opening<'a> {
    pub(crate) key: &'a Key,
    pub(crate) nonce: [u8; NONCE],
    pub(crate) data: &'a mut [u8],
    /// Where the ciphertext begins.
    pub(crate) ciphertext: usize,
    pub(crate) verified: bool,
}

impl<'a> Opening<'a> {
    /// `data[ciphertext..]` is the ciphertext and its tag; the plaintext is written from the beginning of `data`.
    ///
    /// A `data` that is too short for that makes a message that does not verify. When a message does not verify, the
    /// place of its plaintext is filled with zeros; what lies behind that may have any content.
    pub fn new(key: &'a Key, nonce: [u8; NONCE], data: &'a mut [u8], ciphertext: usize) -> Self {
        Self { key, nonce, data, ciphertext, verified: false }
    }

    /// The plaintext, once [`Cipher::open_batch`](crate::Cipher::open_batch) has verified the message.
    pub fn plaintext(&self) -> Option<&[u8]> {
        let len = self.plaintext_len()?;
        self.verified.then(|| &self.data[..len])
    }

    /// The plaintext as [`Opening::plaintext`] has it, to change it.
    pub fn into_plaintext(self) -> Option<&'a mut [u8]> {
        let len = self.plaintext_len()?;
        self.verified.then(|| &mut self.data[..len])
    }

    /// `None` when there is no room for a tag.
    pub(crate) fn plaintext_len(&self) -> Option<usize> {
        self.data.len().checked_sub(self.ciphertext)?.checked_sub(TAG)
    }
}
