//! Bytes outside the process, such as a file, that are believed only if whoever has the key made them.
//!
//! ```text
//!   magic, 16 bytes │ MAC, 32 bytes │ text
//! ```
//! The MAC is keyed BLAKE2s-256, under a key derived from a private key.

use blake2::digest::{KeyInit, Mac as _};
use zeroize::Zeroizing;

pub use blake2::Blake2sMac256 as Mac;

/// Length of a MAC, in bytes.
pub const MAC: usize = 32;

/// Starts a MAC with a key derived for `label`.
#[must_use]
pub fn mac(key: &[u8; 32], label: &[u8]) -> Mac {
    let keyed = |key: &[u8; 32]| <Mac as KeyInit>::new(key.into());
    let derived: Zeroizing<[u8; 32]> = Zeroizing::new(keyed(key).chain_update(label).finalize().into_bytes().into());
    keyed(&derived)
}

/// The same for bytes that belong to whatever `owner` names, such as a site.
#[must_use]
pub fn mac_of(key: &[u8; 32], label: &[u8], owner: &[u8]) -> Mac {
    mac(key, label).chain_update((owner.len() as u64).to_be_bytes()).chain_update(owner)
}

/// Why bytes are not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// They do not begin with the right magic.
    #[error("it is a file of another kind")]
    Foreign,
    /// The MAC is wrong.
    #[error("it is damaged, or another gateway or coordinator made it")]
    Mac,
}

/// Seals a text. `mac` is the MAC as started.
#[must_use]
pub fn seal(magic: &[u8; 16], mac: Mac, text: &[u8]) -> Vec<u8> {
    let mac = mac.chain_update(text).finalize().into_bytes();
    [magic, mac.as_slice(), text].concat()
}

/// The text that [`seal`] has sealed.
///
/// # Errors
/// The bytes were not made by [`seal`] with this key.
pub fn open<'a>(magic: &[u8; 16], mac: Mac, bytes: &'a [u8]) -> Result<&'a [u8], SealError> {
    let rest = bytes.strip_prefix(magic).ok_or(SealError::Foreign)?;
    let (tag, text) = rest.split_first_chunk::<MAC>().ok_or(SealError::Foreign)?;
    // Checked in constant time, and before the text is used.
    mac.chain_update(text).verify_slice(tag).map_err(|_| SealError::Mac)?;
    Ok(text)
}
