//! How maps and increments write peers: restricted ones ([`Peer::allow`]) are in a field of their own, which gateways
//! that do not know restrictions ignore. Such a gateway then has no tunnel to them, rather than one that lets
//! everything pass.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{Peer, SiteKey};

type Peers = BTreeMap<SiteKey, Peer>;

/// The peers that are restricted, or those that are not.
struct Part<'a> {
    peers: &'a Peers,
    restricted: bool,
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.peers.iter().filter(|(_, peer)| peer.allow.is_some() == self.restricted))
    }
}

fn write<S: Serializer>(peers: &Peers, plain: &str, restricted: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry(plain, &Part { peers, restricted: false })?;
    if peers.values().any(|peer| peer.allow.is_some()) {
        map.serialize_entry(restricted, &Part { peers, restricted: true })?;
    }
    map.end()
}

/// A module for `serde(flatten, with)`: the fields by which peers are written.
macro_rules! fields {
    ($module:ident, $plain:literal, $restricted:literal $(, $default:ident)?) => {
        pub(super) mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            use super::Peers;

            #[derive(Deserialize)]
            struct Both {
                #[serde(rename = $plain $(, $default)?)]
                plain: Peers,
                #[serde(rename = $restricted, default)]
                restricted: Peers,
            }

            pub(in super::super) fn serialize<S: Serializer>(peers: &Peers, serializer: S) -> Result<S::Ok, S::Error> {
                super::write(peers, $plain, $restricted, serializer)
            }

            pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Peers, D::Error> {
                let Both { mut plain, restricted } = Both::deserialize(deserializer)?;
                plain.extend(restricted);
                Ok(plain)
            }
        }
    };
}

fields!(peers, "Peers", "RestrictedPeers");
fields!(upsert, "Upsert", "UpsertRestricted", default);
