//! Signed documents, and how they travel.
//!
//! ```text
//!   base64( contents ‖ signature, 64 bytes )       signature of "penstock trust v1" ‖ contents
//! ```
//! The first byte of the contents is their kind, so a signature of one kind is useless as another. Leases are signed by
//! the lease key, everything else by the authority.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::key::{SIGNATURE, SigningKey};
use super::statement::{Contents, REVOCATIONS_LIMIT};
use super::{AuthorityKey, LeaseKey};

const LABEL: &[u8] = b"penstock trust v1";
/// Longest text of a document: that of a full list of revocations.
pub const DOCUMENT_LIMIT: usize = (1 + 8 + 8 + 4 + REVOCATIONS_LIMIT * 40 + SIGNATURE).div_ceil(3) * 4;

/// A signed document. Reading one verifies nothing: [`is_signed_by`](Self::is_signed_by) does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    contents: Contents,
    signature: [u8; SIGNATURE],
}

/// The text is not a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is too long.
    #[error("a signed document has at most {DOCUMENT_LIMIT} characters")]
    TooLong,
    /// It is something else, or from a newer version.
    #[error("this is not a signed document, or a newer version of Penstock made it")]
    Malformed,
}

impl Document {
    /// Signs.
    pub(super) fn new(contents: Contents, key: &SigningKey) -> Self {
        let signature = key.sign(&message(&contents.encode()));
        Self { contents, signature }
    }

    /// What it says, true or not.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Whether the authority signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &AuthorityKey) -> bool {
        let leased = matches!(self.contents, Contents::Lease(_));
        !leased && key.verifies(&message(&self.contents.encode()), &self.signature)
    }

    /// Whether it is a lease signed by this key.
    #[must_use]
    pub fn is_leased_by(&self, key: &LeaseKey) -> bool {
        let leased = matches!(self.contents, Contents::Lease(_));
        leased && key.verifies(&message(&self.contents.encode()), &self.signature)
    }
}

fn message(contents: &[u8]) -> Vec<u8> {
    [LABEL, contents].concat()
}

impl FromStr for Document {
    type Err = DocumentError;

    fn from_str(text: &str) -> Result<Self, DocumentError> {
        if text.len() > DOCUMENT_LIMIT {
            return Err(DocumentError::TooLong);
        }
        let bytes = STANDARD.decode(text).map_err(|_| DocumentError::Malformed)?;
        let (contents, signature) = bytes.split_last_chunk().ok_or(DocumentError::Malformed)?;
        let contents = Contents::decode(contents).map_err(|_| DocumentError::Malformed)?;
        Ok(Self { contents, signature: *signature })
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.contents.encode();
        bytes.extend_from_slice(&self.signature);
        f.write_str(&STANDARD.encode(bytes))
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a signed document in base64")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Document, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}
