//! What a connection has to be told: gathered under the lock, and encoded outside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use penstock_proto::coordination::limits::DOCUMENTS_LIMIT;
use penstock_proto::coordination::{
    CoordinatorMessage, Documents, Known, Map, MapVersion, Peer, Reachability, Registration, SiteKey, Update,
};
use penstock_proto::trust::Document;
use tokio::sync::Semaphore;

use super::Servers;
use super::documents::Bundle;
use crate::policy::Reach;
use crate::site::Site;

/// From this many peers on, encoding is left to a thread of its own: it takes a tenth of a millisecond.
const LONG: usize = 64;
/// The most such encodings at a time, which limits their use of memory and processors.
static LONG_AT_A_TIME: Semaphore = Semaphore::const_new(4);

/// Messages to a site.
#[derive(Debug, Default)]
pub struct Draft {
    pub(super) registration: Option<Registration>,
    pub(super) documents: Bundle,
    pub(super) news: Option<News>,
}

#[derive(Debug)]
pub(super) enum News {
    Update {
        from: MapVersion,
        to: MapVersion,
        upsert: Vec<Seen>,
        remove: Vec<SiteKey>,
    },
    /// Everything there is, for somebody who may know it already.
    Whole {
        version: MapVersion,
        peers: Vec<Seen>,
        servers: Arc<Servers>,
        known: Option<Known>,
    },
}

/// A site as its peers are told about it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub site: Arc<Site>,
    pub announced: Arc<[IpNet]>,
    /// What it may initiate at the site that is told.
    pub reach: Arc<Reach>,
    pub reachability: Option<Arc<Reachability>>,
}

impl Draft {
    /// The messages as text.
    pub async fn texts(self) -> Vec<String> {
        let encode = |draft: Self| draft.messages().iter().map(CoordinatorMessage::encode).collect();
        let peers = self.news.as_ref().map_or(0, |news| match news {
            News::Update { upsert, .. } => upsert.len(),
            News::Whole { peers, .. } => peers.len(),
        });
        if peers + self.documents.len() < LONG {
            return encode(self);
        }
        let _one = LONG_AT_A_TIME.acquire().await;
        tokio::task::spawn_blocking(move || encode(self)).await.expect("messages can be encoded")
    }

    /// The messages themselves.
    #[must_use]
    pub fn messages(self) -> Vec<CoordinatorMessage> {
        let registration = self.registration.map(CoordinatorMessage::Registration);
        let documents = messages_of(self.documents.into_documents());
        registration.into_iter().chain(documents).chain(self.news.map(News::message)).collect()
    }
}

/// Documents, in as many messages as it takes.
pub fn messages_of(documents: Vec<Document>) -> impl Iterator<Item = CoordinatorMessage> {
    let mut documents = documents.into_iter();
    std::iter::from_fn(move || {
        let documents: Vec<Document> = documents.by_ref().take(DOCUMENTS_LIMIT).collect();
        (!documents.is_empty()).then_some(CoordinatorMessage::Documents(Documents { documents }))
    })
}

impl News {
    fn message(self) -> CoordinatorMessage {
        match self {
            Self::Update { from, to, upsert, mut remove } => {
                let upsert: BTreeMap<SiteKey, Peer> = upsert.iter().map(Seen::entry).collect();
                // A gateway that is not shown restricted peers must not keep one from before.
                remove.extend(upsert.iter().filter(|(_, peer)| peer.allow.is_some()).map(|(key, _)| *key));
                CoordinatorMessage::Update(Update { from, to, upsert, remove })
            }
            Self::Whole { version, peers, servers, known } => {
                let peers = peers.iter().map(Seen::entry).collect();
                let (relays, stun_servers) = (servers.relays.clone(), servers.stun_servers.clone());
                let map = Map { version, peers, relays, stun_servers };
                match known {
                    // A map from an earlier process of ours. What the peers have announced meanwhile is all there is to
                    // tell.
                    Some(known) if known.digest == map.digest() => {
                        let mut upsert = map.peers;
                        upsert.retain(|_, peer| peer.reachability.is_some());
                        let (from, to) = (known.version, version);
                        CoordinatorMessage::Update(Update { from, to, upsert, remove: Vec::new() })
                    }
                    _ => CoordinatorMessage::Map(map),
                }
            }
        }
    }
}

impl Seen {
    fn entry(&self) -> (SiteKey, Peer) {
        let peer = Peer {
            name: self.site.name.clone(),
            virtual_address: self.site.virtual_address,
            subnets: self.announced.to_vec(),
            tags: self.site.tags.iter().cloned().collect(),
            allow: self.reach.to_allow(),
            reachability: self.reachability.as_deref().cloned(),
        };
        (self.site.key, peer)
    }
}
