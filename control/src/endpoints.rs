//! The peers' last endpoints, in a file that survives the process: after a start the gateway contacts peers it had
//! sessions with, and need not wait until they notice that their packets go unanswered.
//!
//! ```text
//!   magic, 16 bytes │ MAC, 32 bytes │ JSON: {"PUBLIC KEY": {"Endpoint": …, "Configured": …}, …}
//! ```
//! The MAC is made with a key derived from the gateway's private key, like that of the cached map. A damaged or missing
//! file costs no more than the wait. The coordinator's peers are not in it: their paths are found again.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::key::{PrivateKey, PublicKey};
use crate::problem::Problems;
use crate::profile::{Endpoint, Name};
use crate::sealed;

/// The most peers that are kept.
const PEERS_LIMIT: usize = 20_000;
/// Longest file: an entry has at most 44 bytes of key, 260 of a name with a port, and 60 of address and punctuation.
pub const FILE_LIMIT: usize = 512 * PEERS_LIMIT;
/// How long changes are gathered before they are written.
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// Shortest time between two writes.
const SAVE_EVERY: Duration = Duration::from_secs(5);

const MAGIC: &[u8; 16] = b"penstock ends v1";
const LABEL: &[u8] = b"penstock last endpoints v1 key";

/// The last endpoint of every peer that we had a session with.
#[derive(Debug)]
pub struct LastEndpoints {
    /// `None` if nothing is to survive the process.
    file: Option<File>,
    peers: BTreeMap<PublicKey, Last>,
    /// Whether the file is out of date.
    unsaved: bool,
    /// When it is to be written, once the change was noticed.
    due: Option<Instant>,
    /// When it may be written again.
    not_before: Instant,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    key: PrivateKey,
    name: Name,
}

/// A peer's endpoint, and what was configured as its endpoint at the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Last {
    endpoint: SocketAddr,
    configured: Option<String>,
}

impl LastEndpoints {
    /// Reads the file of the gateway of this name in the state directory, if it can be believed.
    pub fn load(directory: &Path, key: &PrivateKey, name: &Name, now: Instant) -> Self {
        let path = directory.join(format!("{name}.endpoints"));
        let peers = match sealed::read(&path, FILE_LIMIT) {
            Ok(None) => BTreeMap::new(),
            Ok(Some(bytes)) => decode(&bytes, key, name).unwrap_or_else(|| {
                tracing::warn!("{} is damaged, or another gateway made it; it is not used", path.display());
                BTreeMap::new()
            }),
            Err(e) => {
                tracing::warn!("{} cannot be read: {e}", path.display());
                BTreeMap::new()
            }
        };
        let file = File { path, key: key.clone(), name: name.clone() };
        Self { file: Some(file), peers, unsaved: false, due: None, not_before: now }
    }

    /// Without a state directory: remembers no peer.
    pub fn unkept(now: Instant) -> Self {
        Self { file: None, peers: BTreeMap::new(), unsaved: false, due: None, not_before: now }
    }

    /// A peer's last endpoint. `None` if its configured endpoint was different then: the administrator knows better.
    pub fn of(&self, peer: &PublicKey, configured: Option<&Endpoint>) -> Option<SocketAddr> {
        let last = self.peers.get(peer)?;
        (last.configured == configured.map(Endpoint::to_string)).then_some(last.endpoint)
    }

    /// A peer has a session at this endpoint.
    pub fn note(&mut self, peer: PublicKey, endpoint: SocketAddr, configured: Option<&Endpoint>) {
        if self.file.is_none() {
            return;
        }
        let last = Last { endpoint, configured: configured.map(Endpoint::to_string) };
        let room = self.peers.len() < PEERS_LIMIT || self.peers.contains_key(&peer);
        if room && self.peers.get(&peer) != Some(&last) {
            self.peers.insert(peer, last);
            self.unsaved = true;
        }
    }

    /// A peer is gone, or has not answered for long.
    pub fn forget(&mut self, peer: &PublicKey) {
        self.unsaved |= self.peers.remove(peer).is_some();
    }

    /// Writes the file a while after the first call with a change, or at once at the end. A file that cannot be written
    /// is a problem.
    pub fn save(&mut self, now: Instant, at_end: bool, problems: &mut Problems) {
        let Some(File { path, key, name }) = self.file.as_ref().filter(|_| self.unsaved) else { return };
        let subject = path.display().to_string();
        let due = *self.due.get_or_insert((now + SAVE_AFTER).max(self.not_before));
        if (due > now && !at_end) || !problems.may_try(now, &subject) {
            return;
        }
        self.not_before = now + SAVE_EVERY;
        match sealed::replace(path, &encode(&self.peers, key, name)) {
            Ok(()) => {
                (self.unsaved, self.due) = (false, None);
                problems.solved(&subject);
            }
            Err(e) => problems.failed(
                now,
                &subject,
                &format!("the peers' last endpoints cannot be written: {e}; after a restart traffic may take longer"),
                "make the state directory writable",
            ),
        }
    }
}

fn encode(peers: &BTreeMap<PublicKey, Last>, key: &PrivateKey, name: &Name) -> Vec<u8> {
    seal(&serde_json::to_vec(peers).expect("keys and addresses are text"), key, name)
}

/// The bytes of a file with arbitrary text.
fn seal(text: &[u8], key: &PrivateKey, name: &Name) -> Vec<u8> {
    sealed::seal(MAGIC, mac(key, name), text)
}

/// The contents of a file, if they can be believed.
fn decode(bytes: &[u8], key: &PrivateKey, name: &Name) -> Option<BTreeMap<PublicKey, Last>> {
    let text = sealed::open(MAGIC, mac(key, name), bytes).ok()?;
    let peers: BTreeMap<PublicKey, Last> = serde_json::from_slice(text).ok()?;
    (peers.len() <= PEERS_LIMIT).then_some(peers)
}

fn mac(key: &PrivateKey, name: &Name) -> sealed::Mac {
    sealed::mac_of(key.as_bytes(), LABEL, name.as_str().as_bytes())
}

/// For the fuzzer: whether a file with this text, as if we had written it, is read and written back unchanged.
///
/// # Errors
/// It is read, but written back differently.
#[doc(hidden)]
pub fn round_trip(input: &[u8], key: &PrivateKey, name: &Name) -> io::Result<bool> {
    if decode(input, key, name).is_some() {
        return Err(io::Error::other("a file without a right MAC is believed"));
    }
    let Some(peers) = decode(&seal(input, key, name), key, name) else { return Ok(false) };
    match decode(&encode(&peers, key, name), key, name) == Some(peers) {
        true => Ok(true),
        false => Err(io::Error::other("what was read is not what was written")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes([byte; 32])
    }

    fn name() -> Name {
        Name::try_from("amsterdam".to_owned()).unwrap()
    }

    fn peer(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn configured(text: &str) -> Endpoint {
        Endpoint::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn endpoints_outlive_the_process_as_long_as_the_profile_says_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (now, mut problems) = (Instant::now(), Problems::default());
        let load = || LastEndpoints::load(directory.path(), &key(1), &name(), now);
        let mut last = load();
        assert_eq!(last.of(&peer(1), None), None);
        let name = configured("berlin.example.net:47100");
        last.note(peer(1), at("[fe80::1%3]:47100"), None);
        last.note(peer(2), at("192.0.2.7:4000"), Some(&name));
        last.note(peer(3), at("192.0.2.8:4000"), None);
        last.forget(&peer(3));
        last.save(now, false, &mut problems);
        assert_eq!(load().of(&peer(1), None), None, "changes are gathered");
        last.save(now + SAVE_AFTER, false, &mut problems);
        let mut last = load();
        assert_eq!(last.of(&peer(1), None), Some(at("[fe80::1%3]:47100")));
        assert_eq!(last.of(&peer(1), Some(&name)), None, "configured since");
        assert_eq!(last.of(&peer(2), Some(&name)), Some(at("192.0.2.7:4000")));
        assert_eq!(last.of(&peer(2), Some(&configured("192.0.2.9:47100"))), None, "configured anew");
        assert_eq!(last.of(&peer(3), None), None, "forgotten");
        last.note(peer(1), at("192.0.2.1:1"), None);
        last.save(now, true, &mut problems);
        assert_eq!(load().of(&peer(1), None), Some(at("192.0.2.1:1")));
        assert!(problems.is_empty());
    }

    #[test]
    fn many_changes_are_few_writes() {
        let directory = tempfile::tempdir().unwrap();
        let (start, mut problems) = (Instant::now(), Problems::default());
        let mut last = LastEndpoints::load(directory.path(), &key(1), &name(), start);
        let mut writes = 0;
        for tenth in 0..200u16 {
            let now = start + Duration::from_millis(100) * u32::from(tenth);
            last.note(peer(1), SocketAddr::from(([192, 0, 2, 1], tenth + 1)), None);
            last.save(now, false, &mut problems);
            writes += u32::from(!last.unsaved);
        }
        assert!((4..=5).contains(&writes), "{writes} in 20 s");
    }

    #[test]
    fn damaged_and_foreign_files_are_not_believed() {
        let text = format!(r#"{{"{}":{{"Endpoint":"192.0.2.1:5","Configured":null}}}}"#, peer(1));
        let good = seal(text.as_bytes(), &key(1), &name());
        assert_eq!(decode(&good, &key(1), &name()).map(|peers| peers.len()), Some(1));
        for at in 0..good.len() {
            assert!(decode(&good[..at], &key(1), &name()).is_none());
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert!(decode(&bent, &key(1), &name()).is_none(), "{at}");
        }
        assert!(decode(&good, &key(2), &name()).is_none());
        assert!(decode(&good, &key(1), &Name::try_from("berlin".to_owned()).unwrap()).is_none());
        assert!(decode(&seal(b"{\"x\":1}", &key(1), &name()), &key(1), &name()).is_none());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_a_problem_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        std::fs::write(&state, "a file in the directory's place").unwrap();
        let (now, mut problems) = (Instant::now(), Problems::default());
        let mut last = LastEndpoints::load(&state, &key(1), &name(), now);
        last.note(peer(1), at("192.0.2.1:1"), None);
        last.save(now, false, &mut problems);
        last.save(now + SAVE_AFTER, false, &mut problems);
        assert_eq!(problems.list(now).len(), 1);
        std::fs::remove_file(&state).unwrap();
        last.save(now + 2 * SAVE_EVERY, false, &mut problems);
        assert!(problems.is_empty());
    }
}
