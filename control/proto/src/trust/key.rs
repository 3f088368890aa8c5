//! Keys that sign: the authority key and the lease key, both Ed25519 (RFC 8032).
//!
//! A site's own key is X25519 and cannot sign; a statement names it.

use std::fmt;
use std::str::FromStr;

use rand::CryptoRng;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::encoding::Base64;

/// Length of a signature.
pub(super) const SIGNATURE: usize = 64;

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Base64);

        impl $name {
            /// The bytes of the key.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0.0
            }

            /// Whether the owner of this key signed the message.
            pub(super) fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE]) -> bool {
                UnparsedPublicKey::new(&ED25519, self.as_bytes()).verify(message, signature).is_ok()
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                Self(Base64(bytes))
            }
        }

        impl FromStr for $name {
            type Err = PublicKeyError;

            fn from_str(text: &str) -> Result<Self, PublicKeyError> {
                Base64::parse(text).map(Self).ok_or(PublicKeyError)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

public_key! {
    /// The key of an overlay's authority: what it signs is true of the overlay's sites. Its text form is base64.
    AuthorityKey
}

public_key! {
    /// The key with which a coordinator keeps statements alive; the authority certifies it.
    LeaseKey
}

/// The text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an authority's key is 32 bytes in base64, 44 characters")]
pub struct PublicKeyError;

/// A private signing key. Its seed is wiped when dropped; what `ring` derives from the seed is not.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A new key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_seed(seed)
    }

    /// The key made from a seed: the 32 bytes that RFC 8032 calls the private key.
    #[must_use]
    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("a seed has 32 bytes");
        Self { seed, pair }
    }

    /// The seed, to be stored.
    #[must_use]
    pub fn seed(&self) -> &Zeroizing<[u8; 32]> {
        &self.seed
    }

    /// The public key, for an authority.
    #[must_use]
    pub fn authority(&self) -> AuthorityKey {
        self.public().into()
    }

    /// The public key, for a coordinator that issues leases.
    #[must_use]
    pub fn lease_key(&self) -> LeaseKey {
        self.public().into()
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE] {
        self.pair.sign(message).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    fn public(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let seed: [u8; 32] =
            bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").try_into().unwrap();
        let key = SigningKey::from_seed(seed.into());
        let public = bytes("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        assert_eq!(key.authority().as_bytes().as_slice(), public);
        let signature = key.sign(&[0x72]);
        let expected = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                        085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(signature.as_slice(), bytes(expected));
        assert!(key.authority().verifies(&[0x72], &signature));
        assert!(!key.authority().verifies(&[0x73], &signature));
        assert!(!AuthorityKey::from([0; 32]).verifies(&[0x72], &signature));
        assert_eq!(format!("{key:?}"), "SigningKey(…)");
        assert_eq!(key.authority().to_string().parse(), Ok(key.authority()));
    }
}
