//! What a relay was told last, in a file: which sites there are, which pairs may talk, and what to pass on. With it a
//! relay that restarts while the coordinator is down continues where it was.
//!
//! It is sealed ([`sealed`]) with a key derived from the relay's private key and the coordinator's URL: nobody without
//! that key can put a site into the file, and what one coordinator said is not mistaken for what another said. A
//! damaged file counts as missing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use penstock_connect::CoordinatorUrl;
use penstock_proto::StaticSecret;
use penstock_proto::coordination::Access;
use penstock_proto::sealed;
use penstock_proto::trust::Document;
use serde::{Deserialize, Serialize};

use crate::secret;

const FILE: &str = "snapshot";
const MAGIC: &[u8; 16] = b"penstock snap v1";
const LABEL: &[u8] = b"penstock snap v1 key";
/// Longest file: as many sites and pairs as a relay keeps.
const LIMIT: usize = 128 << 20;

/// What a relay was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Snapshot {
    /// What it passes on to all sites, if it does not know the authority's key.
    pub documents: Vec<Document>,
    /// The whole state, in parts.
    pub access: Vec<Access>,
}

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// This relay did not write it.
    #[error("it is damaged, or was written by another relay or for another coordinator")]
    Foreign,
    /// The text is authentic, but not in a format that we know.
    #[error("another version of Penstock wrote it: {0}")]
    Version(#[from] serde_json::Error),
}

/// The file of a relay.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    /// The MAC with key and URL already in it.
    mac: sealed::Mac,
}

impl SnapshotFile {
    /// The file of the relay with that state directory and key, for what that coordinator says.
    #[must_use]
    pub fn new(directory: &Path, private_key: &StaticSecret, coordinator: &CoordinatorUrl) -> Self {
        let mac = sealed::mac_of(private_key.as_bytes(), LABEL, coordinator.to_string().as_bytes());
        Self { path: directory.join(FILE), mac }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it. `None`: there is none.
    ///
    /// # Errors
    /// It is not to be believed.
    pub fn read(&self) -> Result<Option<Snapshot>, SnapshotError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        // A longer file has no valid MAC.
        file.take(LIMIT as u64).read_to_end(&mut bytes)?;
        self.decode(&bytes).map(Some)
    }

    /// Replaces the file. If that fails, the old file is removed: it would let in sites that were revoked since.
    ///
    /// # Errors
    /// The file system's error, or that it is too long.
    pub fn write(&self, snapshot: &Snapshot) -> io::Result<()> {
        let bytes = self.seal(&serde_json::to_vec(snapshot)?);
        let written = match bytes.len() {
            0..=LIMIT => secret::write_private(&self.path, &bytes),
            _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {LIMIT} bytes"))),
        };
        written.inspect_err(|_| _ = fs::remove_file(&self.path))
    }

    /// The bytes of a file with this text, which [`decode`](Self::decode) accepts as ours.
    #[must_use]
    pub fn seal(&self, text: &[u8]) -> Vec<u8> {
        sealed::seal(MAGIC, self.mac.clone(), text)
    }

    /// What the bytes of a file say.
    ///
    /// # Errors
    /// They are not to be believed.
    pub fn decode(&self, bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        let text = sealed::open(MAGIC, self.mac.clone(), bytes).map_err(|_| SnapshotError::Foreign)?;
        Ok(serde_json::from_slice(text)?)
    }
}

#[cfg(test)]
mod tests {
    use penstock_proto::coordination::AccessPart;

    use super::*;

    fn file(directory: &Path, key: u8, coordinator: &str) -> SnapshotFile {
        SnapshotFile::new(directory, &StaticSecret::from([key; 32]), &coordinator.parse().unwrap())
    }

    #[test]
    fn only_this_relays_whole_file_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let ours = file(directory.path(), 1, "https://a.example");
        assert_eq!(ours.read().unwrap(), None);
        let sites = vec![(0, [7; 32].into())];
        let access = vec![Access { part: AccessPart::First, sites, ..Access::default() }];
        let snapshot = Snapshot { access, ..Snapshot::default() };
        ours.write(&snapshot).unwrap();
        assert_eq!(ours.read().unwrap(), Some(snapshot));
        for other in [file(directory.path(), 2, "https://a.example"), file(directory.path(), 1, "https://b.example")] {
            assert!(matches!(other.read(), Err(SnapshotError::Foreign)));
        }
        let bytes = fs::read(ours.path()).unwrap();
        for length in 0..bytes.len() {
            assert!(matches!(ours.decode(&bytes[..length]), Err(SnapshotError::Foreign)), "{length}");
            let mut bent = bytes.clone();
            bent[length] ^= 1;
            assert!(matches!(ours.decode(&bent), Err(SnapshotError::Foreign)), "{length}");
        }
        assert!(matches!(ours.decode(&ours.seal(b"{\"More\":1}")), Err(SnapshotError::Version(_))));
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_older_behind() {
        let directory = tempfile::tempdir().unwrap();
        let ours = file(directory.path(), 1, "https://a.example");
        ours.write(&Snapshot::default()).unwrap();
        // This directory is in the way of the new file.
        fs::create_dir(ours.path().with_extension("new")).unwrap();
        assert!(ours.write(&Snapshot::default()).is_err());
        assert_eq!(ours.read().unwrap(), None);
    }
}
