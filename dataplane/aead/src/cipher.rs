//! The choice of an implementation, and the two calls.

use crate::engine::{self, Kernel};
use crate::message::Message;
use crate::{MAX_BATCH, Opening, Sealing, plan, self_test, wipe};

/// How ChaCha20-Poly1305 is computed. AES-256-GCM is always ring's.
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

    /// Whether this CPU supports it.
    pub fn is_supported(self) -> bool {
        engine::kernels(self).is_some()
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

/// This CPU lacks instructions that the implementation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSupported(pub Implementation);

impl std::fmt::Display for NotSupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this CPU does not support the cipher implementation {}", self.0)
    }
}

impl std::error::Error for NotSupported {}

/// The implementation computed a wrong result; do not use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTestFailed(pub Implementation);

impl std::fmt::Display for SelfTestFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the cipher implementation {} failed its self-test", self.0)
    }
}

impl std::error::Error for SelfTestFailed {}

/// An implementation that this CPU supports. It holds no secrets and no state.
#[derive(Clone, Copy)]
pub struct Cipher {
    implementation: Implementation,
    kernels: &'static [Kernel],
    /// Whether ring is used where it is faster.
    use_ring: bool,
}

impl Cipher {
    /// ring alone: the fallback.
    pub const RING: Self = Self { implementation: Implementation::Ring, kernels: &[], use_ring: true };

    /// The fastest implementation that this CPU supports.
    pub fn detect() -> Self {
        Implementation::ALL.into_iter().find_map(|i| Self::new(i).ok()).unwrap_or(Self::RING)
    }

    /// A chosen implementation.
    ///
    /// # Errors
    /// [`NotSupported`] when this CPU lacks instructions that it needs.
    pub fn new(implementation: Implementation) -> Result<Self, NotSupported> {
        let kernels = engine::kernels(implementation).ok_or(NotSupported(implementation))?;
        Ok(Self { implementation, kernels, use_ring: true })
    }

    /// The same implementation, with ring used only where no kernel can do it, however few messages there are. For
    /// tests and measurements.
    #[must_use]
    pub fn without_ring(self) -> Self {
        Self { use_ring: false, ..self }
    }

    /// The implementation in use.
    pub fn implementation(self) -> Implementation {
        self.implementation
    }

    /// Seals all messages.
    pub fn seal_batch(self, batch: &mut [Sealing<'_>]) {
        self.run(batch);
    }

    /// Opens all messages; afterwards each knows whether it verified.
    pub fn open_batch(self, batch: &mut [Opening<'_>]) {
        self.run(batch);
    }

    fn run<M: Message>(self, batch: &mut [M]) {
        for batch in batch.chunks_mut(MAX_BATCH) {
            wipe::after(|| plan::run(self.kernels, self.use_ring, batch));
        }
    }

    /// Compares the implementation with known answers. Takes well under a millisecond, so that it can be done at every
    /// start.
    ///
    /// # Errors
    /// [`SelfTestFailed`] when a result is wrong. Use [`Cipher::RING`] then.
    pub fn self_test(self) -> Result<(), SelfTestFailed> {
        let computes_well =
            |cipher: Self| self_test::passes(|batch| cipher.seal_batch(batch), |batch| cipher.open_batch(batch));
        if computes_well(self) && computes_well(self.without_ring()) {
            Ok(())
        } else {
            Err(SelfTestFailed(self.implementation))
        }
    }
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cipher").field(&self.implementation).finish()
    }
}
