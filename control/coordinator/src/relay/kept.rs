//! The signed documents that a relay keeps once it knows the authority's key: the newest rollovers, revocations and
//! lease certificate.
//!
//! They are verified when they come and stored in a file of the state directory. So neither a restart of the relay nor
//! a coordinator that shows older ones makes it forget a revocation.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use penstock_proto::relay::gossip::TEXT_LIMIT;
use penstock_proto::trust::{AuthorityKey, Contents, Document, Publication};

use super::access::is_common;
use crate::secret;

const FILE: &str = "documents.json";
/// Longest file: everything that can be passed on, with its JSON syntax.
const LIMIT: u64 = 2 * TEXT_LIMIT as u64;

/// The kept documents, and their file.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    publication: Publication,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file of the documents.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Its contents are not what was written.
    #[error(
        "{path} is damaged ({error}): put a backup in its place, or remove it, and the relay knows of no revocation \
        until the coordinator tells of it"
    )]
    Damaged {
        /// The file of the documents.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

impl Kept {
    /// Reads what was kept for this authority: nothing at the first start.
    ///
    /// # Errors
    /// The file exists and cannot be used.
    pub fn load(directory: &Path, authority: AuthorityKey) -> Result<Self, KeptError> {
        let path = directory.join(FILE);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(LIMIT).read_to_string(&mut text));
        let publication = match read {
            Ok(_) => serde_json::from_str(&text).map_err(|error| KeptError::Damaged { path: path.clone(), error })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Publication::new(authority),
            Err(error) => return Err(KeptError::File { path, error }),
        };
        // Pinning a successor of the key that was pinned before loses nothing.
        if publication.root() == authority || publication.authority() == authority {
            return Ok(Self { path, publication });
        }
        tracing::warn!("{} belongs to another authority than {authority}: it is left out", path.display());
        Ok(Self { path, publication: Publication::new(authority) })
    }

    /// Takes in what is newer than what is kept. The rest is ignored, with the reason in the log.
    pub fn learn<'a>(&mut self, documents: impl IntoIterator<Item = &'a Document>) {
        let (mut changed, mut refused) = (false, None);
        for document in documents.into_iter().filter(|document| is_common(document)) {
            match self.publication.add(document.clone()) {
                Ok(new) => changed |= new,
                // A rollover from before the pinned key.
                Err(_) if matches!(document.contents(), Contents::Rollover(_)) => {}
                Err(refusal) => refused = Some(refusal),
            }
        }
        if let Some(refusal) = refused {
            tracing::warn!("the coordinator shows documents that are not passed on: {refusal}");
        }
        if changed && let Err(error) = self.store() {
            let path = self.path.display();
            tracing::error!("{path}: {error}: after a restart the relay must receive the revocations again");
        }
    }

    /// The documents to pass on.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.publication.common()
    }

    fn store(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.publication)?;
        secret::write_private(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use penstock_proto::coordination::SiteKey;
    use penstock_proto::trust::{Authority, LeaseLength, Lessor, Serial, SigningKey, UnixTime, Validity};

    use super::*;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_seed([byte; 32].into())
    }

    fn site(byte: u8) -> SiteKey {
        [byte; 32].into()
    }

    fn kept(directory: &Path, authority: &SigningKey) -> Kept {
        Kept::load(directory, authority.authority()).unwrap()
    }

    fn revoked(kept: &Kept) -> Vec<SiteKey> {
        let lists = kept.documents().filter_map(|document| match document.contents() {
            Contents::Revocations(list) => Some(list.subjects()),
            _ => None,
        });
        lists.flatten().map(|(site, _)| *site).collect()
    }

    #[test]
    fn older_and_foreign_documents_and_restarts_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = Authority::found(key(1));
        let lessor = Lessor::new(key(2), LeaseLength::DEFAULT, Serial(0));
        authority.certify(UnixTime(1), lessor.key(), LeaseLength::DEFAULT).unwrap();
        authority.approve_relay(UnixTime(1), site(9), "a".parse().unwrap(), Validity::default()).unwrap();
        let backup: Vec<Document> = authority.publication().documents().cloned().collect();
        authority.revoke(UnixTime(2), [site(7)]).unwrap();
        let mut stranger = Authority::found(key(3));
        let forged = stranger.revoke(UnixTime(9), [site(8)]).unwrap();

        let mut relay = kept(directory.path(), &key(1));
        relay.learn(&backup);
        assert_eq!((relay.documents().count(), revoked(&relay)), (1, vec![]), "no statements, and no list yet");
        relay.learn(authority.publication().documents());
        for _ in 0..2 {
            assert_eq!(revoked(&relay), [site(7)]);
            relay.learn(backup.iter().chain(&forged));
            assert_eq!((relay.documents().count(), revoked(&relay)), (2, vec![site(7)]));
            relay = kept(directory.path(), &key(1));
        }
    }

    #[test]
    fn it_follows_a_rollover_and_another_pin_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = Authority::found(key(1));
        authority.revoke(UnixTime(1), [site(7)]).unwrap();
        let (mut authority, _) = authority.roll_over(UnixTime(2), key(4)).unwrap();
        authority.revoke(UnixTime(3), [site(8)]).unwrap();
        let mut relay = kept(directory.path(), &key(1));
        relay.learn(authority.publication().documents());
        assert_eq!(revoked(&relay), [site(8)]);
        assert_eq!(revoked(&kept(directory.path(), &key(4))), [site(8)], "the successor is the same authority");
        assert_eq!(kept(directory.path(), &key(5)).documents().count(), 0);
        // A relay that pins the successor from the start is told about the rollover to it all the same.
        let other = tempfile::tempdir().unwrap();
        let mut relay = kept(other.path(), &key(4));
        relay.learn(authority.publication().documents());
        assert_eq!(revoked(&relay), [site(8)]);
    }

    #[test]
    fn a_damaged_file_is_named_and_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = Authority::found(key(1));
        let mut relay = kept(directory.path(), &key(1));
        relay.learn(&authority.revoke(UnixTime(1), [site(7)]).unwrap());
        let path = directory.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in [&text[..text.len() / 2], "", &text.replacen("AAAA", "AAAB", 1), &"x".repeat(1 << 20)] {
            std::fs::write(&path, damaged).unwrap();
            let error = Kept::load(directory.path(), key(1).authority()).unwrap_err();
            assert!(matches!(error, KeptError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(FILE), "{error}");
        }
    }
}
