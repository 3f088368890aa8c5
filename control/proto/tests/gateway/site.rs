//! One site: a gateway, the state of a small data plane, and a log of what happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use aes_gcm::Aes256Gcm;
use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use penstock_proto::{Gateway, PeerId, Reject, Role, SessionKeys, Suite, Traffic};

/// Something that happened at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Established(Role),
    Promoted(u32),
    Expired(u32),
    Keepalive,
    Endpoint(SocketAddr),
    Silent,
    SuiteRefused(Suite),
    GaveUp,
    Rejected(Reject),
}

/// The state of a minimal data plane.
#[derive(Default)]
pub struct Plane {
    pub sessions: HashMap<u32, Session>,
    pub current: HashMap<PeerId, u32>,
    pub staged: HashMap<PeerId, Vec<Vec<u8>>>,
    pub traffic: BTreeMap<PeerId, Traffic>,
}

pub struct Session {
    pub peer: PeerId,
    pub keys: SessionKeys,
    pub counter: u64,
    pub confirmed: bool,
    pub seen: HashSet<u64>,
}

pub struct Site {
    pub gateway: Gateway,
    pub address: SocketAddr,
    pub plane: Plane,
    pub received: Vec<Vec<u8>>,
    pub log: Vec<(Duration, Happened)>,
}

impl Site {
    pub fn count(&self, wanted: impl Fn(&Happened) -> bool) -> usize {
        self.log.iter().filter(|(_, happened)| wanted(happened)).count()
    }

    pub fn times(&self, wanted: impl Fn(&Happened) -> bool) -> Vec<Duration> {
        self.log.iter().filter(|(_, happened)| wanted(happened)).map(|(at, _)| *at).collect()
    }

    pub fn established(&self) -> usize {
        self.count(|happened| matches!(happened, Happened::Established(_)))
    }

    /// The role and index of the session that this site sends on.
    pub fn sends_on(&self, peer: PeerId) -> Option<(Role, u32, u32)> {
        let session = self.plane.sessions.get(self.plane.current.get(&peer)?)?;
        Some((session.keys.role, session.keys.local_index, session.keys.remote_index))
    }
}

pub fn seal(keys: &SessionKeys, counter: u64, packet: &[u8]) -> Vec<u8> {
    let (key, nonce) = (keys.send.as_bytes().into(), nonce(keys.suite, counter));
    match keys.suite {
        Suite::ChaCha20Poly1305 => ChaCha20Poly1305::new(key).encrypt(&nonce, packet),
        Suite::Aes256Gcm => Aes256Gcm::new(key).encrypt(&nonce, packet),
    }
    .unwrap()
}

pub fn open(keys: &SessionKeys, counter: u64, sealed: &[u8]) -> Option<Vec<u8>> {
    let (key, nonce) = (keys.receive.as_bytes().into(), nonce(keys.suite, counter));
    match keys.suite {
        Suite::ChaCha20Poly1305 => ChaCha20Poly1305::new(key).decrypt(&nonce, sealed),
        Suite::Aes256Gcm => Aes256Gcm::new(key).decrypt(&nonce, sealed),
    }
    .ok()
}

fn nonce(suite: Suite, counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&match suite {
        Suite::ChaCha20Poly1305 => counter.to_le_bytes(),
        Suite::Aes256Gcm => counter.to_be_bytes(),
    });
    nonce
}
