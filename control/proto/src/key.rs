//! Keys: symmetric ones that are wiped when dropped, and the generation of private ones.

use std::fmt;

use rand::CryptoRng;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A symmetric key of 32 bytes: a session's, or a preshared one. Zeroed when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

impl Key {
    /// The bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn zero() -> Self {
        Self([0; 32])
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A new private key, clamped (RFC 7748, section 5).
pub fn generate_private_key(rng: &mut impl CryptoRng) -> StaticSecret {
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    let key = clamped_private_key(bytes);
    bytes.zeroize();
    key
}

/// The private key made of these bytes, clamped (RFC 7748, section 5), so that its `to_bytes` is what WireGuard's tools
/// show.
#[must_use]
pub fn clamped_private_key(mut bytes: [u8; 32]) -> StaticSecret {
    bytes[0] &= 0b1111_1000;
    bytes[31] &= 0b0111_1111;
    bytes[31] |= 0b0100_0000;
    let key = StaticSecret::from(bytes);
    bytes.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use x25519_dalek::PublicKey;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Key::from([7; 32])), "Key(…)");
    }

    #[test]
    fn clamping_leaves_the_public_key_alone() {
        let bytes = [0xff; 32];
        let clamped = clamped_private_key(bytes);
        assert_eq!(clamped.to_bytes()[0], 0xf8);
        assert_eq!(clamped.to_bytes()[31], 0x7f);
        assert_eq!(PublicKey::from(&clamped), PublicKey::from(&StaticSecret::from(bytes)));
    }
}
