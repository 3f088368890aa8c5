//! The choice of an implementation, and the two calls.

use crate::{Opening, Sealing, packet, self_test};

/// How ChaCha20-Poly1305 is computed. AES-256-GCM is ring's in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// AVX-512 with IFMA, sixteen messages in 512 bits.
    Ifma512,
    /// AVX-512 with IFMA, eight messages in 256 bits.
    Ifma256,
    /// AVX2, eight messages.
    Avx2,
    /// ring, one message at a time.
    Ring,
}

impl Implementation {
    /// All of them, the fastest first.
    pub const ALL: [Self; 4] = [Self::Ifma512, Self::Ifma256, Self::Avx2, Self::Ring];

    /// Whether this CPU can do it.
    pub fn is_supported(self) -> bool {
        self == Self::Ring
    }
}

impl std::fmt::Display for Implementation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ifma512 => "ifma512",
            Self::Ifma256 => "ifma256",
            Self::Avx2 => "avx2",
            Self::Ring => "ring",
        })
    }
}

/// This CPU lacks what the implementation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSupported(pub Implementation);

impl std::fmt::Display for NotSupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this CPU does not support the cipher implementation {}", self.0)
    }
}

impl std::error::Error for NotSupported {}

/// The implementation computed something wrong; do not use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTestFailed(pub Implementation);

impl std::fmt::Display for SelfTestFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the cipher implementation {} failed its self-test", self.0)
    }
}

impl std::error::Error for SelfTestFailed {}

/// An implementation that this CPU supports. It holds no secrets and no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cipher {
    implementation: Implementation,
}

impl Cipher {
    /// ring alone: what to fall back to.
    pub const RING: Self = Self { implementation: Implementation::Ring };

    /// The fastest implementation that this CPU supports.
    pub fn detect() -> Self {
        let fastest = Implementation::ALL.into_iter().find(|i| i.is_supported());
        fastest.map_or(Self::RING, |implementation| Self { implementation })
    }

    /// A chosen implementation.
    ///
    /// # Errors
    /// [`NotSupported`] when this CPU lacks what it needs.
    pub fn new(implementation: Implementation) -> Result<Self, NotSupported> {
        if implementation.is_supported() { Ok(Self { implementation }) } else { Err(NotSupported(implementation)) }
    }

    /// The implementation in use.
    pub fn implementation(self) -> Implementation {
        self.implementation
    }

    /// Seals all messages.
    pub fn seal_batch(self, batch: &mut [Sealing<'_>]) {
        batch.iter_mut().for_each(packet::seal);
    }

    /// Opens all messages; each knows then whether it verified.
    pub fn open_batch(self, batch: &mut [Opening<'_>]) {
        batch.iter_mut().for_each(packet::open);
    }

    /// Compares the implementation with known answers. Takes well under a millisecond; meant for every start.
    ///
    /// # Errors
    /// [`SelfTestFailed`] when it computes anything else. [`Cipher::RING`] is what to use then.
    pub fn self_test(self) -> Result<(), SelfTestFailed> {
        let passes = self_test::passes(|batch| self.seal_batch(batch), |batch| self.open_batch(batch));
        if passes { Ok(()) } else { Err(SelfTestFailed(self.implementation)) }
    }
}
