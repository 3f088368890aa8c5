//! The signed documents that a gateway has seen, in a file that outlives it.
//!
//! ```text
//!   magic, 16 bytes │ MAC, 32 bytes │ JSON of a trust::State
//! ```
//! The MAC is as that of the [cached map](super::cache), but covers no URL: what the authority has signed stays
//! so whoever passes it on. The file is what keeps old documents from being believed again, so one that is
//! damaged is never taken for one that is missing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use blake2::Blake2sMac256;
use penstock_proto::coordination::SiteKey;
use penstock_proto::trust::{AuthorityKey, Document, Now, State, Verifier};

use crate::key::PrivateKey;
use crate::profile::Name;
use crate::sealed::{self, SealError};

/// Longest file: statements of as many sites as there can be, with a few subnets each.
pub const FILE_LIMIT: usize = 64 << 20;

const MAGIC: &[u8; 16] = b"penstock seen v1";
const LABEL: &[u8] = b"penstock seen documents v1 key";

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// This gateway did not write it.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// We wrote something else than we read.
    #[error("another version of Penstock wrote it: {0}")]
    Version(#[from] serde_json::Error),
}

/// The file of the gateway of that name.
#[must_use]
pub fn file(name: &Name) -> PathBuf {
    crate::state::directory().join(format!("{name}.seen"))
}

/// Reads a file. `None`: there is none.
///
/// # Errors
/// It is not to be believed.
pub fn read(path: &Path, key: &PrivateKey) -> Result<Option<State>, SeenError> {
    let Some(bytes) = sealed::read(path, FILE_LIMIT)? else { return Ok(None) };
    decode(&bytes, key).map(Some)
}

/// Puts a file in the place of the one that is there, in one step, for its owner only.
///
/// # Errors
/// It cannot be written; the old one is as it was.
pub fn write(path: &Path, key: &PrivateKey, state: &State) -> io::Result<()> {
    let bytes = encode(state, key);
    if bytes.len() > FILE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {FILE_LIMIT} bytes")));
    }
    sealed::replace(path, &bytes)
}

/// Adds documents to a file, or makes one, for a gateway that pins this authority and does not run.
///
/// # Errors
/// The file is not to be believed, or cannot be written.
pub fn learn(path: &Path, key: &PrivateKey, authority: AuthorityKey, documents: &[Document]) -> Result<(), SeenError> {
    let kept = read(path, key)?.filter(|state| state.root() == authority);
    let now = Now { instant: Instant::now(), wall: SystemTime::now().into() };
    let own = SiteKey::from(*key.public_key().as_bytes());
    let mut verifier = Verifier::new(now.instant, own, kept.unwrap_or_else(|| State::new(authority)));
    verifier.learn(now, documents);
    Ok(write(path, key, verifier.state(now.instant))?)
}

/// The bytes of a file.
#[must_use]
pub fn encode(state: &State, key: &PrivateKey) -> Vec<u8> {
    let text = serde_json::to_vec(state).expect("these types have no maps with other keys than text");
    seal(&text, key)
}

/// The bytes of a file of any text: what [`decode`] believes to be ours.
#[must_use]
pub fn seal(text: &[u8], key: &PrivateKey) -> Vec<u8> {
    sealed::seal(MAGIC, mac(key), text)
}

/// What the bytes of a file say.
///
/// # Errors
/// They are not to be believed.
pub fn decode(bytes: &[u8], key: &PrivateKey) -> Result<State, SeenError> {
    Ok(serde_json::from_slice(sealed::open(MAGIC, mac(key), bytes)?)?)
}

fn mac(key: &PrivateKey) -> Blake2sMac256 {
    sealed::mac(key, LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_gateways_whole_file_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/a.seen");
        let key = PrivateKey::from_bytes([1; 32]);
        assert!(read(&path, &key).unwrap().is_none());
        let state = State::new(AuthorityKey::from([3; 32]));
        write(&path, &key, &state).unwrap();
        assert_eq!(read(&path, &key).unwrap(), Some(state));
        let good = std::fs::read(&path).unwrap();
        for end in 0..good.len() {
            assert!(matches!(decode(&good[..end], &key), Err(SeenError::Sealed(_))), "{end}");
        }
        for at in 0..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert!(matches!(decode(&bent, &key), Err(SeenError::Sealed(_))), "{at}");
        }
        let other = PrivateKey::from_bytes([2; 32]);
        assert!(matches!(decode(&good, &other), Err(SeenError::Sealed(SealError::Mac))));
        assert!(matches!(decode(&seal(b"{}", &key), &key), Err(SeenError::Version(_))));
    }
}
