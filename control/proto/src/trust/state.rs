//! What a gateway must not forget about the documents it has seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::statement::{Contents, LeaseCertificate, Revocations, Serial};
use super::{AuthorityKey, Document, LeaseLength, UnixTime};
use crate::coordination::SiteKey;

/// A verifier's memory. The caller keeps it in a file that nobody else can write or forge, like the cached map.
/// Documents in it were verified when they came, and are not verified again.
///
/// It must be on disk before the gateway acts on what was learnt, and again every few minutes: the hours that the
/// gateway has run since the last write are added to every lease again when it restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct State {
    /// The key that was pinned.
    pub(super) root: AuthorityKey,
    /// The overlay's present authority key.
    pub(super) authority: AuthorityKey,
    /// The keys in between, oldest first.
    pub(super) past: Vec<AuthorityKey>,
    /// All lists that were seen, merged into one.
    pub(super) revocations: Revocations,
    pub(super) certificate: Option<Document>,
    /// The latest statement about each site and relay.
    pub(super) subjects: BTreeMap<SiteKey, Subject>,
    /// For how long the gateway has run, in seconds, over all its processes.
    pub(super) running: u64,
    /// A date that has passed.
    pub(super) date: UnixTime,
    /// The value of `running` at that date.
    pub(super) dated: u64,
}

/// The latest statement about a site or relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Subject {
    pub statement: Document,
    pub lease: Option<HeldLease>,
}

/// A lease, and when it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct HeldLease {
    pub serial: Serial,
    pub length: LeaseLength,
    /// The value of [`State::running`] at that time.
    pub since: u64,
}

/// What was learnt at one time, so that a few documents do not require storing the whole state. Added in order to the
/// state that was stored before them, increments yield the state again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Increment {
    /// The value of [`State::running`] at that time.
    pub(super) running: u64,
    /// The date according to the gateway's own clock.
    pub(super) wall: UnixTime,
    /// What was new; empty to store only the running time.
    pub(super) documents: Vec<Document>,
}

impl State {
    /// The state of a gateway that knows nothing but the key that it has pinned.
    #[must_use]
    pub fn new(authority: AuthorityKey) -> Self {
        Self {
            root: authority,
            authority,
            past: Vec::new(),
            revocations: Revocations::default(),
            certificate: None,
            subjects: BTreeMap::new(),
            running: 0,
            date: UnixTime(0),
            dated: 0,
        }
    }

    /// The key that was pinned. A state with another pin must be discarded.
    #[must_use]
    pub fn root(&self) -> AuthorityKey {
        self.root
    }

    /// The overlay's present authority key.
    #[must_use]
    pub fn authority(&self) -> AuthorityKey {
        self.authority
    }

    pub(super) fn certificate(&self) -> Option<&LeaseCertificate> {
        match self.certificate.as_ref()?.contents() {
            Contents::LeaseCertificate(certificate) => Some(certificate),
            _ => None,
        }
    }

    /// A date that has certainly passed.
    pub(super) fn date(&self) -> UnixTime {
        UnixTime(self.date.0.saturating_add(self.running.saturating_sub(self.dated)))
    }
}
