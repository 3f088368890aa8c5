//! A site's identity.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use x25519_dalek::PublicKey;

use super::encoding::Base64;

/// The WireGuard public key of a site, which is the site's identity. Its text form is base64, as `wg` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteKey(Base64);

/// The text is not a [`SiteKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 32 bytes in base64, 44 characters")]
pub struct SiteKeyError;

impl SiteKey {
    /// The bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl From<[u8; 32]> for SiteKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(Base64(bytes))
    }
}

impl From<PublicKey> for SiteKey {
    fn from(key: PublicKey) -> Self {
        Self(Base64(key.to_bytes()))
    }
}

impl From<SiteKey> for PublicKey {
    fn from(key: SiteKey) -> Self {
        Self::from(*key.as_bytes())
    }
}

impl FromStr for SiteKey {
    type Err = SiteKeyError;

    fn from_str(text: &str) -> Result<Self, SiteKeyError> {
        Base64::parse(text).map(Self).ok_or(SiteKeyError)
    }
}

impl fmt::Display for SiteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SiteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteKey({})", self.0)
    }
}
