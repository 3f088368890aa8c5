//! The documents in force: what the authority has signed and a coordinator shows its gateways.
//!
//! The authority keeps one, which is all that it must remember; the coordinator keeps one, to which it adds what the
//! authority signs, here or on another machine. Leases are not in it, since a coordinator issues new ones when it
//! starts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::statement::{Contents, LeaseCertificate, RelayStatement, Revocations, Serial, SiteGrant, SiteStatement};
use super::{AuthorityKey, Document};
use crate::coordination::SiteKey;
use crate::coordination::limits::PEERS_LIMIT;

/// The most keys that an overlay's authority can have had.
pub const ROLLOVERS_LIMIT: usize = 16;
/// The most sites and relays that a publication or a gateway knows.
pub const SUBJECTS_LIMIT: usize = 2 * PEERS_LIMIT;

/// Why a document is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentRefusal {
    /// It was not signed by the key that should have signed it.
    #[error("a signed document is forged, or another authority or coordinator signed it")]
    Signature,
    /// A newer one is known.
    #[error("a signed document is older than one that is known")]
    Old,
    /// It is a statement that was revoked.
    #[error("a statement of {0} was revoked")]
    Revoked(SiteKey),
    /// It is a lease, and no lease key is certified.
    #[error("a lease came without a certificate of the lease key")]
    Uncertified,
    /// It is a lease for something that is not known to be a site.
    #[error("a lease came for {0}, which has no statement")]
    Unstated(SiteKey),
    /// There are too many sites, or too many keys that the authority has had.
    #[error("there are more signed documents than an overlay can have")]
    TooMany,
    /// It is a lease, which does not belong here.
    #[error("a lease is not signed by the authority")]
    Lease,
}

/// All documents in force. As a file it is the first key and the documents; they are verified when it is read, so the
/// file may come from a machine that is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Publication {
    root: AuthorityKey,
    authority: AuthorityKey,
    rollovers: Vec<Document>,
    revocations: Option<Document>,
    certificate: Option<Document>,
    statements: BTreeMap<SiteKey, Document>,
}

impl Publication {
    /// The publication of an overlay that has nothing yet.
    #[must_use]
    pub fn new(authority: AuthorityKey) -> Self {
        let (rollovers, statements) = (Vec::new(), BTreeMap::new());
        Self { root: authority, authority, rollovers, revocations: None, certificate: None, statements }
    }

    /// The authority's first key.
    #[must_use]
    pub fn root(&self) -> AuthorityKey {
        self.root
    }

    /// The authority's present key.
    #[must_use]
    pub fn authority(&self) -> AuthorityKey {
        self.authority
    }

    /// Adds a document, replacing any that it supersedes. Returns whether anything is new.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed.
    pub fn add(&mut self, document: Document) -> Result<bool, DocumentRefusal> {
        if self.knows(&document) {
            return Ok(false);
        }
        if !document.is_signed_by(&self.authority) {
            return Err(DocumentRefusal::Signature);
        }
        match document.contents() {
            Contents::Rollover(rollover) => {
                if rollover.from != self.authority {
                    return Err(DocumentRefusal::Signature);
                }
                if self.has_had(rollover.to) {
                    return Err(DocumentRefusal::Old);
                }
                if self.rollovers.len() == ROLLOVERS_LIMIT {
                    return Err(DocumentRefusal::TooMany);
                }
                // What the old key has signed is void.
                (self.authority, self.revocations, self.certificate) = (rollover.to, None, None);
                self.statements.clear();
                self.rollovers.push(document);
            }
            Contents::Revocations(list) => {
                newer(list.serial, self.revocations().map(|known| known.serial))?;
                self.statements.retain(|subject, known| !list.void(subject, known.contents().serial()));
                self.revocations = Some(document);
            }
            Contents::LeaseCertificate(certificate) => {
                newer(certificate.serial, self.certificate().map(|known| known.serial))?;
                self.certificate = Some(document);
            }
            Contents::Site(SiteStatement { serial, grant: SiteGrant { public_key: subject, .. }, .. })
            | Contents::Relay(RelayStatement { serial, public_key: subject, .. }) => {
                let (subject, serial) = (*subject, *serial);
                if self.revocations().is_some_and(|list| list.void(&subject, serial)) {
                    return Err(DocumentRefusal::Revoked(subject));
                }
                newer(serial, self.statements.get(&subject).map(|known| known.contents().serial()))?;
                if self.statements.len() == SUBJECTS_LIMIT && !self.statements.contains_key(&subject) {
                    return Err(DocumentRefusal::TooMany);
                }
                self.statements.insert(subject, document);
            }
            Contents::Lease(_) => return Err(DocumentRefusal::Lease),
        }
        Ok(true)
    }

    /// Whether this is, or was at some time, the overlay's authority key.
    fn has_had(&self, key: AuthorityKey) -> bool {
        let had = |document: &Document| matches!(document.contents(), Contents::Rollover(past) if past.from == key);
        key == self.authority || self.rollovers.iter().any(had)
    }

    fn knows(&self, document: &Document) -> bool {
        match document.contents() {
            Contents::Rollover(_) => self.rollovers.contains(document),
            Contents::Revocations(_) => self.revocations.as_ref() == Some(document),
            Contents::LeaseCertificate(_) => self.certificate.as_ref() == Some(document),
            Contents::Site(statement) => self.statements.get(&statement.grant.public_key) == Some(document),
            Contents::Relay(statement) => self.statements.get(&statement.public_key) == Some(document),
            Contents::Lease(_) => false,
        }
    }

    /// All documents, in an order in which they can be [added](Self::add).
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.common().chain(self.statements.values())
    }

    /// What every gateway is told first: how the authority's key has changed, what is revoked and whose leases count.
    pub fn common(&self) -> impl Iterator<Item = &Document> {
        self.rollovers.iter().chain(&self.revocations).chain(&self.certificate)
    }

    /// The statement about a site or relay, for itself and for its peers.
    #[must_use]
    pub fn statement(&self, subject: &SiteKey) -> Option<&Document> {
        self.statements.get(subject)
    }

    /// What the authority says about a site.
    #[must_use]
    pub fn site(&self, key: &SiteKey) -> Option<&SiteStatement> {
        match self.statements.get(key)?.contents() {
            Contents::Site(statement) => Some(statement),
            _ => None,
        }
    }

    /// What the authority says about all sites.
    pub fn sites(&self) -> impl Iterator<Item = &SiteStatement> {
        self.statements.values().filter_map(|document| match document.contents() {
            Contents::Site(statement) => Some(statement),
            _ => None,
        })
    }

    /// What the authority says about all relays.
    pub fn relays(&self) -> impl Iterator<Item = &RelayStatement> {
        self.statements.values().filter_map(|document| match document.contents() {
            Contents::Relay(statement) => Some(statement),
            _ => None,
        })
    }

    /// What is revoked.
    #[must_use]
    pub fn revocations(&self) -> Option<&Revocations> {
        match self.revocations.as_ref()?.contents() {
            Contents::Revocations(list) => Some(list),
            _ => None,
        }
    }

    /// Whose leases count.
    #[must_use]
    pub fn certificate(&self) -> Option<&LeaseCertificate> {
        match self.certificate.as_ref()?.contents() {
            Contents::LeaseCertificate(certificate) => Some(certificate),
            _ => None,
        }
    }

    /// The highest serial of all.
    pub(super) fn last_serial(&self) -> Serial {
        self.documents().map(|document| document.contents().serial()).max().unwrap_or_default()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Stored {
    root: AuthorityKey,
    documents: Vec<Document>,
}

impl From<Publication> for Stored {
    fn from(publication: Publication) -> Self {
        Self { root: publication.root, documents: publication.documents().cloned().collect() }
    }
}

impl TryFrom<Stored> for Publication {
    type Error = DocumentRefusal;

    fn try_from(stored: Stored) -> Result<Self, DocumentRefusal> {
        let mut publication = Self::new(stored.root);
        for document in stored.documents {
            publication.add(document)?;
        }
        Ok(publication)
    }
}

fn newer(serial: Serial, known: Option<Serial>) -> Result<(), DocumentRefusal> {
    if known.is_none_or(|known| serial > known) { Ok(()) } else { Err(DocumentRefusal::Old) }
}
