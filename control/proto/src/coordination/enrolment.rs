//! Enrolment keys: what an administrator gives to a new site.
//!
//! The text is `penstock1-` and, in URL-safe base64, an identifier of 4 bytes, a secret of 16 and, if the coordinator's
//! certificate is self-signed, that certificate's SHA-256 fingerprint of 32. With `penstock2-` the overlay's authority
//! key of 32 bytes comes before the fingerprint. So one string tells a gateway both how to be admitted and whom to
//! trust. The coordinator keeps only a hash of the secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake2::Blake2sMac;
use blake2::digest::Mac;
use blake2::digest::consts::U32;
use rand::CryptoRng;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::noise::keyed_hash;
use crate::trust::AuthorityKey;

const PREFIX: &str = "penstock1-";
const PREFIX_WITH_AUTHORITY: &str = "penstock2-";
const LABEL: &[u8] = b"penstock enrolment key v1";
const ID: usize = 4;
const SECRET: usize = 16;
const AUTHORITY: usize = 32;
const FINGERPRINT: usize = 32;

/// Identifies an enrolment key: what `key list` shows, eight hexadecimal digits. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnrolmentKeyId(pub [u8; ID]);

/// The SHA-256 of a certificate in DER. In text it is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; FINGERPRINT]);

/// An enrolment key with its secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct EnrolmentKey {
    #[zeroize(skip)]
    id: EnrolmentKeyId,
    secret: [u8; SECRET],
    #[zeroize(skip)]
    authority: Option<AuthorityKey>,
    #[zeroize(skip)]
    fingerprint: Option<Fingerprint>,
}

/// The text is not an enrolment key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not an enrolment key: one begins with {PREFIX} or {PREFIX_WITH_AUTHORITY} and is copied whole")]
pub struct EnrolmentKeyError;

impl EnrolmentKey {
    /// A new key. `fingerprint` pins the coordinator's certificate; without it, a gateway checks the certificate
    /// against the authorities that it trusts.
    pub fn generate(rng: &mut impl CryptoRng, fingerprint: Option<Fingerprint>) -> Self {
        let (mut id, mut secret) = ([0; ID], [0; SECRET]);
        rng.fill_bytes(&mut id);
        rng.fill_bytes(&mut secret);
        let key = Self { id: EnrolmentKeyId(id), secret, authority: None, fingerprint };
        secret.zeroize();
        key
    }

    /// The same key, which also pins the overlay's authority.
    #[must_use]
    pub fn with_authority(mut self, authority: AuthorityKey) -> Self {
        self.authority = Some(authority);
        self
    }

    /// The key's identifier.
    #[must_use]
    pub fn id(&self) -> EnrolmentKeyId {
        self.id
    }

    /// The certificate that the key pins.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// The authority that the key pins.
    #[must_use]
    pub fn authority(&self) -> Option<AuthorityKey> {
        self.authority
    }

    /// The hash of the secret, which the coordinator keeps. The secret has 128 random bits, so no slow hash is needed.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.mac().finalize().into_bytes().into()
    }

    /// Whether this is the key with this hash, in constant time.
    #[must_use]
    pub fn matches(&self, hash: &[u8]) -> bool {
        self.mac().verify_slice(hash).is_ok()
    }

    /// The whole key as text, for whoever enrols.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(ID + SECRET + AUTHORITY + FINGERPRINT));
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.secret);
        if let Some(authority) = &self.authority {
            bytes.extend_from_slice(authority.as_bytes());
        }
        if let Some(fingerprint) = &self.fingerprint {
            bytes.extend_from_slice(&fingerprint.0);
        }
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        let prefix = if self.authority.is_some() { PREFIX_WITH_AUTHORITY } else { PREFIX };
        Zeroizing::new([prefix, &encoded].concat())
    }

    fn mac(&self) -> Blake2sMac<U32> {
        keyed_hash(&self.secret, &[LABEL, &self.id.0])
    }
}

impl FromStr for EnrolmentKey {
    type Err = EnrolmentKeyError;

    fn from_str(text: &str) -> Result<Self, EnrolmentKeyError> {
        let text = text.trim();
        let with_authority = text.strip_prefix(PREFIX_WITH_AUTHORITY);
        let encoded = with_authority.or_else(|| text.strip_prefix(PREFIX)).ok_or(EnrolmentKeyError)?;
        // There is room for the longest key, and no more.
        if encoded.len() > (ID + SECRET + AUTHORITY + FINGERPRINT).div_ceil(3) * 4 {
            return Err(EnrolmentKeyError);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| EnrolmentKeyError)?);
        let (id, rest) = bytes.split_first_chunk().ok_or(EnrolmentKeyError)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(EnrolmentKeyError)?;
        let (authority, rest) = match with_authority {
            None => (None, rest),
            Some(_) => {
                let (authority, rest) = rest.split_first_chunk::<AUTHORITY>().ok_or(EnrolmentKeyError)?;
                (Some(AuthorityKey::from(*authority)), rest)
            }
        };
        let fingerprint = match rest {
            [] => None,
            rest => Some(Fingerprint(rest.try_into().map_err(|_| EnrolmentKeyError)?)),
        };
        Ok(Self { id: EnrolmentKeyId(*id), secret: *secret, authority, fingerprint })
    }
}

impl fmt::Debug for EnrolmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrolmentKey({}…)", self.id)
    }
}

impl Serialize for EnrolmentKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for EnrolmentKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for EnrolmentKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for EnrolmentKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EnrolmentKeyId {
    type Err = EnrolmentKeyError;

    fn from_str(text: &str) -> Result<Self, EnrolmentKeyError> {
        let digits = text.len() == 2 * ID && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u32::from_str_radix(text, 16).ok().filter(|_| digits).ok_or(EnrolmentKeyError)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// The text is not a [`Fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 fingerprint is 64 hexadecimal digits, as the coordinator's log shows it")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let mut bytes = [0; FINGERPRINT];
        if text.len() != 2 * FINGERPRINT || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        for (byte, place) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[place..place + 2], 16).map_err(|_| FingerprintError)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, FingerprintError> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn key(fingerprint: Option<Fingerprint>) -> EnrolmentKey {
        EnrolmentKey::generate(&mut StdRng::seed_from_u64(1), fingerprint)
    }

    #[test]
    fn a_fingerprint_is_its_digits() {
        let fingerprint = Fingerprint(std::array::from_fn(|index| index as u8 * 7));
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        assert_eq!(text.to_uppercase().parse(), Ok(fingerprint));
        for bad in ["", &text[1..], &format!("{text}0"), &text.replace('0', "g"), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(FingerprintError), "{bad}");
        }
    }

    #[test]
    fn the_text_is_the_whole_key() {
        for fingerprint in [None, Some(Fingerprint([0xab; 32]))] {
            let key = key(fingerprint);
            let read: EnrolmentKey = format!(" {}\n", key.to_text().as_str()).parse().unwrap();
            assert_eq!(read.id(), key.id());
            assert_eq!(read.fingerprint(), fingerprint);
            assert!(read.matches(&key.hash()));
            assert_eq!(key.id().to_string().parse(), Ok(key.id()));
            assert_eq!(read.authority(), None);
            let authority = AuthorityKey::from([0xcd; 32]);
            let pinning = key.clone().with_authority(authority);
            let read: EnrolmentKey = pinning.to_text().parse().unwrap();
            assert_eq!((read.authority(), read.fingerprint()), (Some(authority), fingerprint));
            assert!(read.matches(&key.hash()));
        }
    }

    #[test]
    fn another_secret_or_id_does_not_match() {
        let right = key(None);
        let hash = right.hash();
        let mut bent = right.clone();
        bent.secret[15] ^= 1;
        assert!(!bent.matches(&hash));
        let mut bent = right.clone();
        bent.id.0[0] ^= 1;
        assert!(!bent.matches(&hash));
        assert!(!right.matches(&hash[..31]));
        assert!(!right.matches(&[]));
    }

    #[test]
    fn part_of_a_key_is_no_key_and_the_secret_is_not_shown() {
        let text = key(Some(Fingerprint([7; 32]))).to_text();
        let short = key(None).to_text();
        let authority = AuthorityKey::from([9; 32]);
        let pinning = key(Some(Fingerprint([7; 32]))).with_authority(authority).to_text();
        let pinning_short = key(None).with_authority(authority).to_text();
        for (text, short) in [(&text, short), (&pinning, pinning_short)] {
            for end in (0..text.len()).filter(|end| *end != short.len()) {
                assert_eq!(text[..end].parse::<EnrolmentKey>().err(), Some(EnrolmentKeyError), "{end}");
            }
            assert!(format!("{}x", text.as_str()).parse::<EnrolmentKey>().is_err());
        }
        let shown = format!("{:?}", key(None));
        assert_eq!(shown, format!("EnrolmentKey({}…)", key(None).id()));
    }
}
