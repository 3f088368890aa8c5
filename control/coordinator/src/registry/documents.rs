//! The signed documents that gateways and relays are told, each together with what depends on it.
//!
//! A connection is told what concerns all, its own statement, and the statement and lease of each peer: at first of all
//! peers, then of those that are announced again, and of those whose documents are newer than what it was told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_proto::coordination::{SiteKey, SiteNumber};
use penstock_proto::trust::{Contents, Document, Publication, Serial};

use super::state::State;
use crate::site::SiteState;

/// The most connections that are woken under the lock at a time: well below a millisecond.
const WOKEN_AT_A_TIME: SiteNumber = 1024;

/// What is signed about a site.
#[derive(Default)]
pub(super) struct SiteDocuments {
    statement: Option<Arc<Document>>,
    lease: Option<Arc<Document>>,
    leased: Option<Instant>,
}

/// The documents that every gateway and relay is told.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// How many times they have changed.
    pub number: u64,
    /// How the authority's key changed, what is revoked, whose leases count, and which relays there are.
    pub documents: Arc<[Document]>,
}

/// What a connection has been told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentDocuments {
    common: Option<u64>,
    statements: Serial,
    leases: Serial,
}

/// The latest there is to tell.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latest {
    statement: Serial,
    lease: Serial,
}

/// Documents for one connection.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    pub common: Arc<[Document]>,
    pub others: Vec<Arc<Document>>,
}

impl SiteDocuments {
    fn newer_than(&self, sent: &SentDocuments) -> impl Iterator<Item = &Arc<Document>> {
        let statement = self.statement.iter().filter(|document| serial(document) > sent.statements);
        statement.chain(self.lease.iter().filter(|document| serial(document) > sent.leases))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.statement.iter().chain(&self.lease)
    }
}

impl State {
    /// Takes in everything that the authority has signed; wakes no connection.
    pub fn publish(&mut self, publication: &Publication) {
        self.take_statements(publication.documents());
        self.set_common(publication);
    }

    /// Takes in statements about sites; wakes no connection.
    pub fn take_statements<'a>(&mut self, documents: impl Iterator<Item = &'a Document>) {
        for document in documents {
            let Contents::Site(statement) = document.contents() else { continue };
            self.latest.statement = self.latest.statement.max(statement.serial);
            if let Some(number) = self.number(&statement.grant.public_key) {
                self.documents_mut(number).statement = Some(Arc::new(document.clone()));
            }
        }
    }

    /// Takes in what concerns all.
    pub fn set_common(&mut self, publication: &Publication) {
        let relays = publication.relays().filter_map(|relay| publication.statement(&relay.public_key));
        let documents = publication.common().chain(relays).cloned().collect();
        self.common = Common { number: self.common.number + 1, documents };
        self.feed.wake();
    }

    pub fn common(&self) -> &Common {
        &self.common
    }

    /// Forgets what was signed about a site.
    pub fn drop_documents(&mut self, key: &SiteKey) {
        if let Some(number) = self.number(key) {
            *self.documents_mut(number) = SiteDocuments::default();
        }
    }

    /// Takes in the lease of a site, unless the site is no longer approved.
    pub fn take_lease(&mut self, now: Instant, lease: Document) {
        let Contents::Lease(contents) = lease.contents() else { return };
        let approved = self.number(&contents.site).filter(|number| self.site_of(*number).state == SiteState::Approved);
        if let Some(number) = approved {
            self.latest.lease = self.latest.lease.max(contents.serial);
            let documents = self.documents_mut(number);
            (documents.lease, documents.leased) = (Some(Arc::new(lease)), Some(now));
        }
    }

    /// The approved sites with a lease older than this, or without one.
    pub fn leases_due(&self, now: Instant, age: Duration) -> Vec<SiteKey> {
        let due = |documents: &SiteDocuments| documents.leased.is_none_or(|leased| now.duration_since(leased) >= age);
        self.approved().filter(|(_, documents)| due(documents)).map(|(key, _)| key).collect()
    }

    /// Wakes the connections of some sites; returns the next site, if there is one.
    pub fn wake_some(&self, first: SiteNumber) -> Option<SiteNumber> {
        let end = self.count().min(first.saturating_add(WOKEN_AT_A_TIME));
        (first..end).for_each(|number| self.wake(number));
        (end < self.count()).then_some(end)
    }

    /// The documents that a site has to be told, together with news about these peers. They count as told.
    pub(super) fn bundle(&self, number: SiteNumber, peers: &[SiteNumber], sent: &mut SentDocuments) -> Bundle {
        let mut bundle = Bundle::default();
        if sent.common != Some(self.common.number) {
            bundle.common = self.common.documents.clone();
        }
        let own = self.documents(number).newer_than(sent).filter(|document| !is_lease(document));
        bundle.others.extend(own.cloned());
        if self.latest.statement > sent.statements || self.latest.lease > sent.leases {
            let stale = self.links().neighbors(number).into_iter().filter(|peer| peers.binary_search(peer).is_err());
            bundle.others.extend(stale.flat_map(|peer| self.documents(peer).newer_than(sent)).cloned());
        }
        bundle.others.extend(peers.iter().flat_map(|peer| self.documents(*peer).all()).cloned());
        let Latest { statement: statements, lease: leases } = self.latest;
        *sent = SentDocuments { common: Some(self.common.number), statements, leases };
        bundle
    }
}

impl Bundle {
    pub fn len(&self) -> usize {
        self.common.len() + self.others.len()
    }

    pub fn into_documents(self) -> Vec<Document> {
        self.common.iter().chain(self.others.iter().map(|document| &**document)).cloned().collect()
    }
}

fn is_lease(document: &Document) -> bool {
    matches!(document.contents(), Contents::Lease(_))
}

fn serial(document: &Document) -> Serial {
    match document.contents() {
        Contents::Site(statement) => statement.serial,
        Contents::Lease(lease) => lease.serial,
        _ => Serial::default(),
    }
}
