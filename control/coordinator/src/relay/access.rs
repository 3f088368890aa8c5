//! Keeps a relay to what the registry says: which sites there are, and which pairs may talk.

use std::collections::HashMap;
use std::sync::Arc;

use penstock_proto::PublicKey;
use penstock_proto::coordination::limits::{ACCESS_PAIRS_LIMIT, PEERS_LIMIT};
use penstock_proto::coordination::{Access, AccessPart, SiteKey, SiteNumber};
use penstock_proto::path::SiteId;
use penstock_proto::trust::{Contents, Document};

use super::RelayServer;

/// Most pairs that a relay keeps: a full mesh of some 4,000 sites, which is 400 MB.
const PAIRS_LIMIT: usize = 8 << 20;

/// How many pairs or sites are changed under one lock, for which datagrams have to wait.
const STEP: usize = 512;

/// What a relay was told so far over one connection.
#[derive(Clone)]
pub struct Follower {
    relay: Arc<RelayServer>,
    sites: HashMap<SiteNumber, SiteKey>,
    /// Whether `sites` are all that the relay knows.
    is_whole: bool,
    /// The parts of a new whole state that have come so far.
    coming: Option<Coming>,
}

#[derive(Clone, Default)]
struct Coming {
    sites: HashMap<SiteNumber, SiteKey>,
    peers: HashMap<SiteNumber, Vec<SiteNumber>>,
    pairs: usize,
}

/// What the coordinator said makes no sense, or is too much. The relay keeps what it knew, and has to connect again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// A later part of a whole state without the first one, or a change before any whole state.
    #[error("the coordinator sent a change before the whole list")]
    Middle,
    /// A number that belongs to no site.
    #[error("the coordinator refers to a site that it has not introduced")]
    Unknown,
    /// More sites than [`PEERS_LIMIT`] and one, or more pairs than a relay keeps.
    #[error("there are more sites or pairs than this relay can keep")]
    TooMany,
}

/// Whether all sites need it.
pub(super) fn is_common(document: &Document) -> bool {
    let contents = document.contents();
    matches!(contents, Contents::Rollover(_) | Contents::Revocations(_) | Contents::LeaseCertificate(_))
}

impl Follower {
    /// The follower of a relay that may already know sites, from before.
    #[must_use]
    pub fn new(relay: Arc<RelayServer>) -> Self {
        Self { relay, sites: HashMap::new(), is_whole: false, coming: None }
    }

    /// Whether a whole state was told.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// All that the relay knows, as messages that would tell it again. Empty until a whole state was told.
    #[must_use]
    pub fn whole(&self) -> Vec<Access> {
        if !self.is_whole {
            return Vec::new();
        }
        let id = |key: &SiteKey| SiteId::of(&(*key).into());
        let numbers: HashMap<SiteId, SiteNumber> = self.sites.iter().map(|(number, key)| (id(key), *number)).collect();
        let mut parts = Vec::new();
        let mut part = Access { part: AccessPart::First, ..Access::default() };
        for (&number, &key) in &self.sites {
            if part.joined.len() + PEERS_LIMIT > ACCESS_PAIRS_LIMIT {
                parts.push(std::mem::take(&mut part));
                part.part = AccessPart::Further;
            }
            part.sites.push((number, key));
            let hub = self.relay.lock();
            let key = PublicKey::from(key);
            let peers = hub.relay.peers(&key).filter_map(|peer| numbers.get(&peer));
            part.joined.extend(peers.filter(|peer| **peer < number).map(|peer| (number, *peer)));
        }
        parts.extend([part, Access { part: AccessPart::Last, ..Access::default() }]);
        parts
    }

    /// Takes a message. Changes are in force when this returns.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub fn take(&mut self, access: Access) -> Result<(), FollowError> {
        match access.part {
            AccessPart::Change => self.change(access),
            AccessPart::First => {
                self.coming = Some(Coming::default());
                self.more(access)
            }
            AccessPart::Further => self.more(access),
            AccessPart::Last => {
                self.more(access)?;
                let coming = self.coming.take().ok_or(FollowError::Middle)?;
                self.replace(coming);
                Ok(())
            }
        }
    }

    /// Has those of these documents that all sites need passed on to the sites.
    pub fn pass_on<'a>(&self, documents: impl IntoIterator<Item = &'a Document>) {
        let mut common = documents.into_iter().filter(|document| is_common(document)).peekable();
        // They come in one message, ahead of the statements of relays, which may take another.
        if common.peek().is_some() {
            self.relay.lock().relay.set_documents(common);
        }
    }

    fn change(&mut self, access: Access) -> Result<(), FollowError> {
        if !self.is_whole {
            return Err(FollowError::Middle);
        }
        let Access { sites, gone, joined, parted, .. } = access;
        if self.sites.len() + sites.len() > PEERS_LIMIT + 1 {
            return Err(FollowError::TooMany);
        }
        // Removals come first, so that an error leaves nothing in force that should have ended.
        for pairs in parted.chunks(STEP) {
            let mut hub = self.relay.lock();
            for (one, other) in pairs {
                let keys = (self.sites.get(one), self.sites.get(other));
                if let (Some(one), Some(other)) = keys {
                    hub.relay.set_pair(&(*one).into(), &(*other).into(), false);
                }
            }
        }
        for numbers in gone.chunks(STEP) {
            let mut hub = self.relay.lock();
            for key in numbers.iter().filter_map(|number| self.sites.remove(number)) {
                hub.remove_site(&key.into());
            }
        }
        for sites in sites.chunks(STEP) {
            let mut hub = self.relay.lock();
            for (number, key) in sites {
                if let Some(before) = self.sites.insert(*number, *key).filter(|before| before != key) {
                    hub.remove_site(&before.into());
                }
                hub.relay.add_site((*key).into());
            }
        }
        for pairs in joined.chunks(STEP) {
            let mut hub = self.relay.lock();
            for (one, other) in pairs {
                let key = |number| self.sites.get(number).ok_or(FollowError::Unknown);
                hub.relay.set_pair(&(*key(one)?).into(), &(*key(other)?).into(), true);
            }
        }
        Ok(())
    }

    fn more(&mut self, access: Access) -> Result<(), FollowError> {
        let coming = self.coming.as_mut().ok_or(FollowError::Middle)?;
        coming.sites.extend(access.sites);
        coming.pairs += access.joined.len();
        if coming.sites.len() > PEERS_LIMIT + 1 || coming.pairs > PAIRS_LIMIT {
            self.coming = None;
            return Err(FollowError::TooMany);
        }
        for (one, other) in access.joined {
            coming.peers.entry(one).or_default().push(other);
            coming.peers.entry(other).or_default().push(one);
        }
        Ok(())
    }

    fn replace(&mut self, coming: Coming) {
        let Coming { sites, peers, .. } = coming;
        let known: Vec<PublicKey> = self.relay.lock().relay.sites().copied().collect();
        let staying: std::collections::HashSet<SiteKey> = sites.values().copied().collect();
        let gone: Vec<&PublicKey> = known.iter().filter(|key| !staying.contains(&SiteKey::from(**key))).collect();
        for keys in gone.chunks(STEP) {
            let mut hub = self.relay.lock();
            keys.iter().for_each(|key| hub.remove_site(key));
        }
        let mut sites_left = sites.iter().peekable();
        while sites_left.peek().is_some() {
            let (mut hub, mut pairs) = (self.relay.lock(), 0);
            while pairs < STEP
                && let Some((number, key)) = sites_left.next()
            {
                // A site that was let in after its turn in the whole state is told later, and so are its pairs.
                let peers = peers.get(number).into_iter().flatten();
                pairs += 1 + peers.clone().count();
                let keys = peers.filter_map(|peer| sites.get(peer)).map(|peer| PublicKey::from(*peer));
                hub.relay.set_site((*key).into(), keys);
            }
        }
        (self.sites, self.is_whole) = (sites, true);
    }
}
