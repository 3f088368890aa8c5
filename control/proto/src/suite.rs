//! The two suites of handshakes and sessions, and which one two sites choose where they have the choice.
//!
//! A suite is agreed on before a handshake, never within it: its name is hashed into the first message, so a handshake
//! started with one suite cannot be completed with the other.

use serde::{Deserialize, Serialize};

/// The AEAD of a handshake and of the session that it yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Suite {
    /// WireGuard's own (RFC 8439). Nonce: 4 zero bytes, then the counter, little-endian.
    #[default]
    ChaCha20Poly1305,
    /// Between two Penstocks (NIST SP 800-38D). Nonce: 4 zero bytes, then the counter, big-endian.
    Aes256Gcm,
}

impl Suite {
    /// Both suites, WireGuard's first.
    pub const ALL: [Self; 2] = [Self::ChaCha20Poly1305, Self::Aes256Gcm];

    /// Noise's name for the whole handshake.
    #[must_use]
    pub fn noise_name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
            Self::Aes256Gcm => "Noise_IKpsk2_25519_AESGCM_BLAKE2s",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::ChaCha20Poly1305 => Self::Aes256Gcm,
            Self::Aes256Gcm => Self::ChaCha20Poly1305,
        }
    }
}

/// The spelling used in profiles.
impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}

/// How fast a site is with each suite: megabytes per second on one core, for batches of full-size packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speeds {
    /// With ChaCha20-Poly1305.
    #[serde(rename = "ChaCha20Poly1305")]
    pub chacha20_poly1305: u32,
    /// With AES-256-GCM.
    #[serde(rename = "Aes256Gcm")]
    pub aes_256_gcm: u32,
}

impl Speeds {
    /// The speed with this suite.
    #[must_use]
    pub fn of(self, suite: Suite) -> u32 {
        match suite {
            Suite::ChaCha20Poly1305 => self.chacha20_poly1305,
            Suite::Aes256Gcm => self.aes_256_gcm,
        }
    }

    /// The speed of a tunnel between two sites: that of the slower one.
    #[must_use]
    pub fn slower(self, other: Self) -> Self {
        Self {
            chacha20_poly1305: self.chacha20_poly1305.min(other.chacha20_poly1305),
            aes_256_gcm: self.aes_256_gcm.min(other.aes_256_gcm),
        }
    }
}

/// The suite for the next handshake of two sites with these speeds whose present session uses `present` (without a
/// session: WireGuard's). It changes only to a suite that is faster by an eighth, so that figures that vary a little
/// from start to start do not make it change.
///
/// Both sites know the same speeds and the same session, and the order of the sites does not matter, so both choose
/// alike.
#[must_use]
pub fn choose(one: Speeds, other: Speeds, present: Suite) -> Suite {
    let both = one.slower(other);
    let [stay, change] = [present, present.other()].map(|suite| u64::from(both.of(suite)));
    if change * 8 > stay * 9 { present.other() } else { present }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHACHA: Suite = Suite::ChaCha20Poly1305;
    const AES: Suite = Suite::Aes256Gcm;

    fn speeds(chacha20_poly1305: u32, aes_256_gcm: u32) -> Speeds {
        Speeds { chacha20_poly1305, aes_256_gcm }
    }

    #[test]
    fn the_slower_site_decides() {
        let (aes_is_fast, aes_is_slow) = (speeds(2000, 5000), speeds(900, 150));
        assert_eq!(choose(aes_is_fast, aes_is_fast, CHACHA), AES);
        assert_eq!(choose(aes_is_slow, aes_is_slow, AES), CHACHA);
        for present in Suite::ALL {
            assert_eq!(choose(aes_is_fast, aes_is_slow, present), CHACHA);
            assert_eq!(choose(aes_is_slow, aes_is_fast, present), CHACHA);
        }
    }

    #[test]
    fn small_differences_change_nothing() {
        let level = speeds(4000, 4000);
        for aes in [3600, 3999, 4001, 4500] {
            for present in Suite::ALL {
                assert_eq!(choose(level, speeds(4000, aes), present), present, "{aes}");
                assert_eq!(choose(speeds(4000, aes), speeds(4000, aes), present), present, "{aes}");
            }
        }
        assert_eq!(choose(speeds(4000, 4501), speeds(4000, 4501), CHACHA), AES);
        assert_eq!(choose(speeds(4501, 4000), speeds(4501, 4000), AES), CHACHA);
    }

    #[test]
    fn both_sites_choose_alike_whatever_they_announce() {
        let figures = [0, 1, 7, 8, 9, 100, 112, 113, 4000, u32::MAX - 1, u32::MAX];
        let all = || figures.into_iter().flat_map(|chacha| figures.map(|aes| speeds(chacha, aes)));
        for one in all() {
            for other in all() {
                for present in Suite::ALL {
                    let chosen = choose(one, other, present);
                    assert_eq!(chosen, choose(other, one, present), "{one:?}, {other:?}, {present}");
                    assert_eq!(chosen, choose(one, other, chosen), "{one:?}, {other:?}, {present}: it goes to and fro");
                }
            }
        }
    }
}
