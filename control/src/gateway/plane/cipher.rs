//! Which implementation of the cipher is used, and how fast it is.

use std::time::Duration;

use anyhow::{Result, bail};
use penstock_dataplane::session::{Cipher, Implementation, SelfTestFailed, Suite};
use penstock_proto::Speeds;

use crate::profile::CipherImplementation;

/// How long measuring one suite takes.
const MEASURE: Duration = Duration::from_millis(4);

/// The cipher in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// What seals and opens.
    pub implementation: Implementation,
    /// Why it is this one, in a sentence.
    pub reason: String,
    /// Whether it replaces the one that should be used.
    pub is_fallback: bool,
}

impl Chosen {
    /// The cipher that the profile asks for, if the CPU supports it and it passes the self-test; otherwise ring.
    ///
    /// # Errors
    /// ring's results are wrong as well.
    pub fn start(asked: CipherImplementation) -> Result<Self> {
        Self::tested(asked, Cipher::self_test)
    }

    fn tested(asked: CipherImplementation, self_test: impl Fn(Cipher) -> Result<(), SelfTestFailed>) -> Result<Self> {
        let wanted = match asked {
            CipherImplementation::Auto => Cipher::detect(),
            asked => match Cipher::new(named(asked)) {
                Ok(cipher) => cipher,
                Err(missing) => return Self::ring(missing.to_string(), self_test),
            },
        };
        match self_test(wanted) {
            Ok(()) => {
                let reason = match asked {
                    CipherImplementation::Auto => "the fastest that this CPU supports",
                    _ => "the profile asks for it",
                };
                Ok(Self { implementation: wanted.implementation(), reason: reason.to_owned(), is_fallback: false })
            }
            Err(failed) => Self::ring(failed.to_string(), self_test),
        }
    }

    fn ring(reason: String, self_test: impl Fn(Cipher) -> Result<(), SelfTestFailed>) -> Result<Self> {
        if let Err(failed) = self_test(Cipher::RING) {
            bail!("{failed}, so nothing can be encrypted: this machine computes wrong results");
        }
        Ok(Self { implementation: Implementation::Ring, reason, is_fallback: true })
    }

    /// What seals and opens.
    pub fn cipher(&self) -> Cipher {
        Cipher::new(self.implementation).unwrap_or(Cipher::RING)
    }

    /// Measures how fast it is, which takes a few milliseconds.
    pub fn measure(&self) -> Speeds {
        let megabytes = |suite| u32::try_from(self.cipher().speed(suite, MEASURE) / 1_000_000).unwrap_or(u32::MAX);
        Speeds { chacha20_poly1305: megabytes(Suite::ChaCha20Poly1305), aes_256_gcm: megabytes(Suite::Aes256Gcm) }
    }
}

fn named(asked: CipherImplementation) -> Implementation {
    match asked {
        CipherImplementation::Ifma512 => Implementation::Ifma512,
        CipherImplementation::Ifma256 => Implementation::Ifma256,
        CipherImplementation::Avx2 => Implementation::Avx2,
        CipherImplementation::Auto | CipherImplementation::Ring => Implementation::Ring,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_used_if_the_cpu_has_it() {
        use CipherImplementation::{Auto, Avx2, Ifma256, Ifma512, Ring};
        for asked in [Ifma512, Ifma256, Avx2, Ring] {
            let chosen = Chosen::start(asked).unwrap();
            if named(asked).is_supported() {
                assert_eq!((chosen.implementation, chosen.is_fallback), (named(asked), false));
                assert_eq!(chosen.reason, "the profile asks for it");
            } else {
                assert_eq!((chosen.implementation, chosen.is_fallback), (Implementation::Ring, true));
                assert!(chosen.reason.contains("does not support"), "{chosen:?}");
            }
            assert_eq!(chosen.cipher().implementation(), chosen.implementation);
        }
        let fastest = Chosen::start(Auto).unwrap();
        assert_eq!(Some(fastest.implementation), Implementation::ALL.into_iter().find(|i| i.is_supported()));
    }

    #[test]
    fn what_computes_wrong_results_is_replaced_by_ring_aloud() {
        let only_ring = |cipher: Cipher| match cipher.implementation() {
            Implementation::Ring => Ok(()),
            other => Err(SelfTestFailed(other)),
        };
        for asked in [CipherImplementation::Auto, CipherImplementation::Avx2] {
            let chosen = Chosen::tested(asked, only_ring).unwrap();
            assert_eq!(chosen.implementation, Implementation::Ring);
            // On a CPU without anything else, ring is the right choice.
            assert_eq!(chosen.is_fallback, asked != CipherImplementation::Auto || Implementation::Avx2.is_supported());
        }
        let nothing = Chosen::tested(CipherImplementation::Auto, |cipher| Err(SelfTestFailed(cipher.implementation())));
        assert!(nothing.unwrap_err().to_string().starts_with("the cipher implementation ring failed its self-test"));
    }

    #[test]
    fn both_suites_are_measured_quickly() {
        let begin = std::time::Instant::now();
        let speeds = Chosen::start(CipherImplementation::Auto).unwrap().measure();
        assert!(speeds.chacha20_poly1305 > 0 && speeds.aes_256_gcm > 0, "{speeds:?}");
        assert!(begin.elapsed() < Duration::from_secs(1));
    }
}
