//! Keys, set up once for every implementation, and wiped in place.

use std::mem::{MaybeUninit, needs_drop};

use ring::aead::{AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use zeroize::Zeroize;

use crate::wipe::{self, Depth};

/// An AEAD. Both have keys of 32 bytes, nonces of 12 and tags of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// RFC 8439.
    ChaCha20Poly1305,
    /// NIST SP 800-38D; always computed by ring.
    Aes256Gcm,
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}

impl std::str::FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(text: &str) -> Result<Self, UnknownSuite> {
        [Self::ChaCha20Poly1305, Self::Aes256Gcm]
            .into_iter()
            .find(|suite| suite.to_string() == text)
            .ok_or(UnknownSuite)
    }
}

/// The text is not the name of a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSuite;

impl std::fmt::Display for UnknownSuite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the suites are chacha20-poly1305 and aes-256-gcm")
    }
}

impl std::error::Error for UnknownSuite {}

/// A key of one suite, ready for use by any [`Cipher`](crate::Cipher).
///
/// It is on the heap and never moves, so that wiping it when it is dropped leaves no copy.
pub struct Key {
    /// Initialized from [`Key::new`] until it is wiped in `drop`.
    material: Box<MaybeUninit<Material>>,
    suite: Suite,
}

struct Material {
    ring: LessSafeKey,
    /// As ChaCha20 uses them.
    words: [u32; 8],
}

impl Material {
    fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        let unbound = UnboundKey::new(algorithm, key).expect("both suites have keys of 32 bytes");
        let (words, _) = key.as_chunks();
        Self { ring: LessSafeKey::new(unbound), words: std::array::from_fn(|i| u32::from_le_bytes(words[i])) }
    }
}

// The key is wiped, not dropped.
const _: () = assert!(!needs_drop::<Material>());

impl Key {
    /// Sets up `key` for `suite`. Wiping the caller's copy is up to the caller.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let mut material = Box::new(MaybeUninit::uninit());
        wipe::after(|| {
            material.write(Material::new(suite, key));
            Depth::Setup
        });
        Self { material, suite }
    }

    /// The suite that the key is for.
    #[inline]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    pub(crate) fn ring(&self) -> &LessSafeKey {
        &self.material().ring
    }

    pub(crate) fn words(&self) -> &[u32; 8] {
        &self.material().words
    }

    #[expect(unsafe_code)]
    fn material(&self) -> &Material {
        // SAFETY: initialized by `new`; only `drop` changes it.
        unsafe { self.material.assume_init_ref() }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.material.zeroize();
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("suite", &self.suite).finish_non_exhaustive()
    }
}
