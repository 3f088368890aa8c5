//! The signed documents that a gateway has seen, in a file that survives it.
//!
//! ```text
//!   magic, 16 bytes │ record │ record │ …
//!   record: length of the text, 4 bytes │ the same with all bits inverted, 4 bytes │ MAC, 32 bytes │ text
//! ```
//! The first record's text is the JSON of a [`State`], that of each further record a list of [`Increment`]s: storing
//! something new costs as much as its length, not as much as everything known. When the increments have become half as
//! long as the state, the file is rewritten in one step.
//!
//! Each MAC also covers the MAC of the previous record, so that no record can be left out or moved. Like that of the
//! [cached map](super::cache) it is made with a key of the gateway's, but it covers no URL: what the authority has
//! signed holds whoever passes it on. The file is what keeps old documents from being believed again, so a damaged file
//! is never treated as a missing one. Only a last record that is shorter than its length field says is left out: the
//! machine failed while it was being written, so nothing has been done because of it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use blake2::digest::Mac;
use penstock_proto::coordination::SiteKey;
use penstock_proto::trust::{AuthorityKey, Document, Increment, Now, State, Verifier};

use crate::key::PrivateKey;
use crate::profile::Name;
use crate::sealed::{self, SealError};

/// Longest file: statements for as many sites as there can be, with a few subnets each.
pub const FILE_LIMIT: usize = 64 << 20;

const MAGIC: &[u8; 16] = b"penstock seen v2";
const LABEL: &[u8] = b"penstock seen documents v2 key";
/// Increments shorter than this are no reason to rewrite a small file.
const SPARE: usize = 64 << 10;

type Tag = [u8; sealed::MAC];

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// This gateway did not write it.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// The text is authentic, but not in a format that we know.
    #[error("another version of Penstock wrote it: {0}")]
    Version(#[from] serde_json::Error),
}

/// The file of the gateway of that name.
#[must_use]
pub fn file(name: &Name) -> PathBuf {
    crate::state::directory().join(format!("{name}.seen"))
}

/// The file of a running gateway.
pub struct Seen {
    path: PathBuf,
    key: PrivateKey,
    /// Where the next record goes; `None` if the file is to be rewritten.
    end: Option<End>,
}

/// The end of a file.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Length of the first record.
    state: usize,
    /// Length of the file.
    length: usize,
    /// The MAC of the last record.
    tag: Tag,
}

impl Seen {
    /// A file that [`read`] believes, or none yet. The first save rewrites it.
    #[must_use]
    pub fn new(path: &Path, key: &PrivateKey) -> Self {
        Self { path: path.to_owned(), key: key.clone(), end: None }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stores what is new. It is on disk when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&mut self, now: Now, verifier: &mut Verifier) -> io::Result<()> {
        let increments = verifier.take_increments(now);
        let end = self.end.take();
        let added = end.and_then(|end| {
            let text = serde_json::to_vec(&increments).expect("these types have no maps with other keys than text");
            let (record, tag) = record(&self.key, Some(&end.tag), &text);
            let length = end.length + record.len();
            (length - end.state < SPARE.max(end.state / 2)).then_some((record, End { length, tag, ..end }))
        });
        if let (Some(before), Some((record, end))) = (end, added)
            && append(&self.path, before.length as u64, &record).is_ok()
        {
            self.end = Some(end);
            return Ok(());
        }
        self.end = Some(write(&self.path, &self.key, verifier.state(now.instant))?);
        Ok(())
    }

    /// Has the next save rewrite the file.
    pub fn renew(&mut self) {
        self.end = None;
    }
}

/// Adds a record at the place where the file should end.
fn append(path: &Path, at: u64, record: &[u8]) -> io::Result<()> {
    let mut file = File::options().append(true).open(path)?;
    if file.metadata()?.len() != at {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "somebody else has changed it"));
    }
    file.write_all(record)?;
    file.sync_data()
}

/// Reads a file. `None`: there is no such file.
///
/// # Errors
/// It cannot be believed.
pub fn read(path: &Path, key: &PrivateKey) -> Result<Option<State>, SeenError> {
    let Some(bytes) = sealed::read(path, FILE_LIMIT)? else { return Ok(None) };
    decode(&bytes, key).map(Some)
}

/// Replaces the file in one step; only its owner can read it.
fn write(path: &Path, key: &PrivateKey, state: &State) -> io::Result<End> {
    let (bytes, tag) = seal(&text(state), key);
    if bytes.len() > FILE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {FILE_LIMIT} bytes")));
    }
    sealed::replace(path, &bytes)?;
    Ok(End { state: bytes.len(), length: bytes.len(), tag })
}

/// Adds documents to a file, creating it if necessary, for a gateway that pins this authority and is not running.
///
/// # Errors
/// The file cannot be believed, or cannot be written.
pub fn learn(path: &Path, key: &PrivateKey, authority: AuthorityKey, documents: &[Document]) -> Result<(), SeenError> {
    let kept = read(path, key)?.filter(|state| state.root() == authority);
    let now = Now { instant: Instant::now(), wall: SystemTime::now().into() };
    let own = SiteKey::from(*key.public_key().as_bytes());
    let mut verifier = Verifier::new(now.instant, own, kept.unwrap_or_else(|| State::new(authority)));
    verifier.learn(now, documents);
    write(path, key, verifier.state(now.instant))?;
    Ok(())
}

/// The bytes of a file.
#[must_use]
pub fn encode(state: &State, key: &PrivateKey) -> Vec<u8> {
    seal(&text(state), key).0
}

fn text(state: &State) -> Vec<u8> {
    serde_json::to_vec(state).expect("these types have no maps with other keys than text")
}

/// The bytes of a file with one record of arbitrary text, and its MAC: [`decode`] will accept them as ours.
#[must_use]
pub fn seal(text: &[u8], key: &PrivateKey) -> (Vec<u8>, Tag) {
    let (record, tag) = record(key, None, text);
    ([MAGIC.as_slice(), &record].concat(), tag)
}

/// A record that follows one with this MAC.
fn record(key: &PrivateKey, before: Option<&Tag>, text: &[u8]) -> (Vec<u8>, Tag) {
    let tag: Tag = mac(key, before, text).finalize().into_bytes().into();
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    ([&length.to_le_bytes(), &(!length).to_le_bytes(), tag.as_slice(), text].concat(), tag)
}

/// The contents of a file.
///
/// # Errors
/// They cannot be believed.
pub fn decode(bytes: &[u8], key: &PrivateKey) -> Result<State, SeenError> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(SealError::Foreign)?;
    let (mut before, text) = split_record(&mut rest, key, None)?.ok_or(SealError::Foreign)?;
    let state: State = serde_json::from_slice(text)?;
    // For what is learnt it makes no difference which site this is.
    let mut verifier = Verifier::new(Instant::now(), SiteKey::from([0; 32]), state);
    while let Some((tag, text)) = split_record(&mut rest, key, Some(&before))? {
        let increments: Vec<Increment> = serde_json::from_slice(text)?;
        verifier.replay(&increments);
        before = tag;
    }
    Ok(verifier.into_state())
}

/// The MAC and the text of the next record; `None` at the end, and where the last record is incomplete.
fn split_record<'a>(
    rest: &mut &'a [u8],
    key: &PrivateKey,
    before: Option<&Tag>,
) -> Result<Option<(Tag, &'a [u8])>, SealError> {
    let Some((length, after)) = rest.split_first_chunk() else { return Ok(None) };
    let Some((turned, after)) = after.split_first_chunk() else { return Ok(None) };
    let length = u32::from_le_bytes(*length);
    // Damage must not be mistaken for an incomplete record.
    if !length != u32::from_le_bytes(*turned) {
        return Err(SealError::Mac);
    }
    let Some((tag, after)) = after.split_first_chunk::<{ sealed::MAC }>() else { return Ok(None) };
    let Some((text, after)) = after.split_at_checked(length as usize) else { return Ok(None) };
    // Checked in constant time, and before the text is used.
    mac(key, before, text).verify_slice(tag).map_err(|_| SealError::Mac)?;
    *rest = after;
    Ok(Some((*tag, text)))
}

fn mac(key: &PrivateKey, before: Option<&Tag>, text: &[u8]) -> sealed::Mac {
    let first = [u8::from(before.is_none())];
    sealed::mac(key.as_bytes(), LABEL)
        .chain_update(first)
        .chain_update(before.map_or(&[][..], |tag| tag))
        .chain_update(text)
}

#[cfg(test)]
mod tests {
    use penstock_proto::trust::{Authority, LeaseLength, Lessor, Serial, SigningKey, SiteGrant};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const OWN: [u8; 32] = [9; 32];

    fn now() -> Now {
        Now { instant: Instant::now(), wall: SystemTime::now().into() }
    }

    /// A file, with the lengths that it had and the states that it stood for at each.
    fn grown(path: &Path, key: &PrivateKey) -> Vec<(usize, State)> {
        let signing_key = |seed| SigningKey::generate(&mut StdRng::seed_from_u64(seed));
        let mut authority = Authority::found(signing_key(1));
        let mut lessor = Lessor::new(signing_key(2), LeaseLength::DEFAULT, Serial(0));
        authority.certify(now().wall, lessor.key(), LeaseLength::DEFAULT).unwrap();
        let root = authority.publication().root();
        let mut verifier = Verifier::new(Instant::now(), SiteKey::from(OWN), State::new(root));
        let mut file = Seen::new(path, key);
        let first: Vec<Document> = authority.publication().documents().cloned().collect();
        let site = |number: u8| SiteGrant {
            public_key: SiteKey::from([number; 32]),
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: [100, 64, 0, number].into(),
            tags: Default::default(),
            subnets: Default::default(),
            validity: Default::default(),
        };
        let mut stages = Vec::new();
        for (number, documents) in [first].into_iter().chain((1..4).map(|_| Vec::new())).enumerate() {
            let mut documents = documents;
            if number > 0 {
                documents.extend(authority.approve(now().wall, site(number as u8)).unwrap());
                documents.push(lessor.lease(now().wall, SiteKey::from([number as u8; 32])));
            }
            assert!(verifier.learn(now(), &documents).changed);
            file.save(now(), &mut verifier).unwrap();
            let length = std::fs::metadata(path).unwrap().len() as usize;
            stages.push((length, verifier.state(Instant::now()).clone()));
        }
        stages
    }

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
        assert!(matches!(decode(&seal(b"{}", &key).0, &key), Err(SeenError::Version(_))));
    }

    #[test]
    fn what_is_new_is_added_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.seen");
        let key = PrivateKey::from_bytes([1; 32]);
        let stages = grown(&path, &key);
        let bytes = std::fs::read(&path).unwrap();
        assert!(stages.is_sorted_by(|(before, _), (after, _)| before < after), "each save added something");
        for (length, state) in &stages {
            assert_eq!(&decode(&bytes[..*length], &key).unwrap(), state, "the first {length} bytes");
        }
    }

    #[test]
    fn a_machine_that_failed_while_writing_loses_what_nobody_acted_on_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.seen");
        let key = PrivateKey::from_bytes([1; 32]);
        let stages = grown(&path, &key);
        let bytes = std::fs::read(&path).unwrap();
        for end in (stages[0].0..bytes.len()).step_by(7) {
            let (_, state) = stages.iter().rev().find(|(length, _)| *length <= end).unwrap();
            assert_eq!(&decode(&bytes[..end], &key).unwrap(), state, "{end} bytes");
        }
        for at in (0..bytes.len()).step_by(7) {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            assert!(matches!(decode(&bent, &key), Err(SeenError::Sealed(_))), "byte {at} is another");
        }
        // A record in the middle is missing.
        let without = [&bytes[..stages[0].0], &bytes[stages[1].0..]].concat();
        assert!(matches!(decode(&without, &key), Err(SeenError::Sealed(SealError::Mac))));
    }

    #[test]
    fn a_file_that_somebody_took_away_or_changed_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.seen");
        let key = PrivateKey::from_bytes([1; 32]);
        let mut verifier = Verifier::new(Instant::now(), SiteKey::from(OWN), State::new(AuthorityKey::from([3; 32])));
        let mut file = Seen::new(&path, &key);
        file.save(now(), &mut verifier).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.save(now(), &mut verifier).unwrap();
        assert!(read(&path, &key).unwrap().is_some());
        std::fs::write(&path, b"something else").unwrap();
        file.save(now(), &mut verifier).unwrap();
        assert!(read(&path, &key).unwrap().is_some());
    }
}
