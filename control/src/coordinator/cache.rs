//! The cached map: what the coordinator last said, on disk, for a start without it.
//!
//! ```text
//!   magic, 16 bytes │ MAC, 32 bytes │ JSON
//! ```
//! The MAC is keyed BLAKE2s-256 under a key derived from the gateway's private key, so nobody without that key can put
//! a peer into the file. It also covers the coordinator's URL: what one coordinator said does not count for another.

use std::io;
use std::path::Path;

use penstock_connect::CoordinatorUrl;
use penstock_proto::coordination::limits::{COORDINATOR_MESSAGE_LIMIT, PEERS_LIMIT};
use penstock_proto::coordination::{Map, Registration};
use serde::{Deserialize, Serialize};

use crate::key::PrivateKey;
use crate::sealed::{self, SealError};

/// Longest file: the longest message of a coordinator, plus some room.
pub const FILE_LIMIT: usize = COORDINATOR_MESSAGE_LIMIT + (64 << 10);

const MAGIC: &[u8; 16] = b"penstock map v1\n";
const LABEL_KEY: &[u8] = b"penstock cached map v1 key";

/// What a coordinator last said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cached {
    /// Its record of this site.
    pub registration: Registration,
    /// What it told this site about the others.
    pub map: Map,
}

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// It is too long.
    #[error("it is longer than {FILE_LIMIT} bytes")]
    TooLong,
    /// This gateway did not write it.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// The text is authentic, but not in a format that we know.
    #[error("another version of Penstock wrote it: {0}")]
    Version(#[from] serde_json::Error),
    /// It has more peers than are possible.
    #[error("it has more than {PEERS_LIMIT} peers")]
    TooManyPeers,
}

impl Cached {
    /// Reads a file. `None`: there is no such file.
    ///
    /// # Errors
    /// It cannot be believed.
    pub fn read(path: &Path, key: &PrivateKey, url: &CoordinatorUrl) -> Result<Option<Self>, CacheError> {
        let Some(bytes) = sealed::read(path, FILE_LIMIT)? else { return Ok(None) };
        Self::decode(&bytes, key, url).map(Some)
    }

    /// Replaces the file in one step; only its owner can read it.
    ///
    /// # Errors
    /// It cannot be written; the old file is unchanged.
    pub fn write(&self, path: &Path, key: &PrivateKey, url: &CoordinatorUrl) -> io::Result<()> {
        let bytes = self.encode(key, url);
        if bytes.len() > FILE_LIMIT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, CacheError::TooLong));
        }
        sealed::replace(path, &bytes)
    }

    /// The bytes of a file.
    #[must_use]
    pub fn encode(&self, key: &PrivateKey, url: &CoordinatorUrl) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("these types have no maps with other keys than text");
        Self::seal(&text, key, url)
    }

    /// The bytes of a file with arbitrary text, which [`decode`](Self::decode) will accept as ours.
    #[must_use]
    pub fn seal(text: &[u8], key: &PrivateKey, url: &CoordinatorUrl) -> Vec<u8> {
        sealed::seal(MAGIC, mac(key, url), text)
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// They cannot be believed.
    pub fn decode(bytes: &[u8], key: &PrivateKey, url: &CoordinatorUrl) -> Result<Self, CacheError> {
        if bytes.len() > FILE_LIMIT {
            return Err(CacheError::TooLong);
        }
        let cached: Self = serde_json::from_slice(sealed::open(MAGIC, mac(key, url), bytes)?)?;
        if cached.map.peers.len() > PEERS_LIMIT {
            return Err(CacheError::TooManyPeers);
        }
        Ok(cached)
    }
}

fn mac(key: &PrivateKey, url: &CoordinatorUrl) -> sealed::Mac {
    sealed::mac_of(key.as_bytes(), LABEL_KEY, url.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_proto::coordination::RegistrationState;
    use std::os::unix::fs::MetadataExt;

    fn cached() -> Cached {
        Cached {
            registration: Registration {
                name: "amsterdam".parse().unwrap(),
                state: RegistrationState::Approved,
                virtual_address: "100.64.0.1".parse().unwrap(),
                subnets: Vec::new(),
                waiting: Vec::new(),
            },
            map: Map::default(),
        }
    }

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes([byte; 32])
    }

    fn url() -> CoordinatorUrl {
        "https://coordinator.test".parse().unwrap()
    }

    #[test]
    fn a_file_is_replaced_whole_and_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/a.map");
        assert!(Cached::read(&path, &key(1), &url()).unwrap().is_none());
        for name in ["amsterdam", "berlin"] {
            let mut cached = cached();
            cached.registration.name = name.parse().unwrap();
            cached.write(&path, &key(1), &url()).unwrap();
            assert_eq!(Cached::read(&path, &key(1), &url()).unwrap(), Some(cached));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        sealed::remove(&path).unwrap();
        sealed::remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn damaged_and_foreign_files_are_not_believed() {
        let good = cached().encode(&key(1), &url());
        let decode = |bytes: &[u8]| Cached::decode(bytes, &key(1), &url());
        assert_eq!(decode(&good).unwrap(), cached());
        for end in 0..good.len() {
            assert!(matches!(decode(&good[..end]), Err(CacheError::Sealed(_))), "{end}");
        }
        for at in 0..good.len() {
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert!(matches!(decode(&bent), Err(CacheError::Sealed(_))), "{at}");
        }
        assert!(matches!(Cached::decode(&good, &key(2), &url()), Err(CacheError::Sealed(SealError::Mac))));
        let elsewhere = "https://other.test".parse().unwrap();
        assert!(matches!(Cached::decode(&good, &key(1), &elsewhere), Err(CacheError::Sealed(SealError::Mac))));
    }

    #[test]
    fn what_is_no_file_or_too_long_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let read = |path: &Path| Cached::read(path, &key(1), &url());
        assert!(
            matches!(read(directory.path()), Err(CacheError::Unreadable(e)) if e.kind() == io::ErrorKind::InvalidInput)
        );
        let fifo = directory.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert!(matches!(read(&fifo), Err(CacheError::Unreadable(e)) if e.kind() == io::ErrorKind::InvalidInput));
        let long = directory.path().join("long");
        std::fs::File::create(&long).unwrap().set_len(FILE_LIMIT as u64 + 1).unwrap();
        assert!(matches!(read(&long), Err(CacheError::Unreadable(e)) if e.kind() == io::ErrorKind::FileTooLarge));
    }
}
