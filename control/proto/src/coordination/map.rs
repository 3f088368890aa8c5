//! What a site knows about the others: a versioned map, and the increments that bring it up to date.
//!
//! Every site has a map of its own, with the peers that it may talk to and no trace of any other. Its numbers count the
//! changes of that map alone. An epoch is the life of one coordinator process: what the process remembers of changes
//! ends with it, and then [`Known::digest`] tells whether a gateway's map is still the right one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::apart;
use super::encoding::{Base64, at_most, some_at_most};
use super::limits::{PEERS_LIMIT, SERVERS_LIMIT, SERVICES_LIMIT, SUBNETS_LIMIT};
use super::{Fingerprint, Name, Reachability, Service, SiteKey};
use crate::noise::hash;
use crate::trust::TAGS_LIMIT;

/// Identifies a state of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MapVersion {
    /// The coordinator process that counts, as a random number.
    pub epoch: u64,
    /// The number of changes in that epoch.
    pub number: u64,
}

/// What a site may know about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Map {
    /// The version of this state.
    pub version: MapVersion,
    /// The sites that may be talked to.
    #[serde(flatten, with = "apart::peers")]
    pub peers: BTreeMap<SiteKey, Peer>,
    /// The relays that can be used.
    #[serde(default, deserialize_with = "at_most::<SERVERS_LIMIT, _, _>")]
    pub relays: Vec<Relay>,
    /// STUN servers, by UDP.
    #[serde(default, deserialize_with = "at_most::<SERVERS_LIMIT, _, _>")]
    pub stun_servers: Vec<SocketAddr>,
}

/// Another site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    /// Its name.
    pub name: Name,
    /// Its address in the overlay.
    pub virtual_address: Ipv4Addr,
    /// The subnets behind it.
    #[serde(deserialize_with = "at_most::<SUBNETS_LIMIT, _, _>")]
    pub subnets: Vec<IpNet>,
    /// The tags by which the coordinator's policy selects it.
    #[serde(default, deserialize_with = "at_most::<TAGS_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Name>,
    /// What it may reach at the site whose map this is: that site is to drop everything else that this peer initiates.
    /// Without it, everything. A gateway that does not know this field would drop nothing, so it is not shown such
    /// peers.
    #[serde(
        default,
        deserialize_with = "some_at_most::<SERVICES_LIMIT, _, _>",
        skip_serializing_if = "Option::is_none"
    )]
    pub allow: Option<Vec<Service>>,
    /// Where it can be reached, if it said so to this coordinator process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachability: Option<Reachability>,
}

/// A relay, which forwards whole WireGuard datagrams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Relay {
    /// Its name.
    pub name: Name,
    /// The key by which sites bind themselves there.
    pub public_key: SiteKey,
    /// Its UDP addresses.
    #[serde(default, deserialize_with = "at_most::<SERVERS_LIMIT, _, _>")]
    pub udp: Vec<SocketAddr>,
    /// Where its WebSocket is, `https://HOST[:PORT]`, for where UDP is blocked.
    #[serde(default)]
    pub url: Option<String>,
    /// The certificate to insist on there; without it, one that an authority vouches for.
    #[serde(default)]
    pub fingerprint: Option<Fingerprint>,
}

/// An increment: what changed in a map between two states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Update {
    /// The state that it changes.
    pub from: MapVersion,
    /// The state that results.
    pub to: MapVersion,
    /// Peers that are new or changed; each replaces the one with the same key.
    #[serde(flatten, with = "apart::upsert")]
    pub upsert: BTreeMap<SiteKey, Peer>,
    /// Peers that may no longer be talked to, or no longer as before: those that are in `upsert` too stay in the map.
    #[serde(default, deserialize_with = "at_most::<PEERS_LIMIT, _, _>")]
    pub remove: Vec<SiteKey>,
}

/// The map that a gateway has when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Known {
    /// Which state.
    pub version: MapVersion,
    /// [`Map::digest`] of it.
    pub digest: Digest,
}

/// A hash of a map's lasting part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(Base64);

/// An increment does not fit the map. The map is as it was; ask for the whole map by connecting again without
/// [`Known`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It changes another state than ours.
    #[error("the increment is for another version of the map")]
    Version,
    /// The map would grow beyond [`PEERS_LIMIT`].
    #[error("the map would have more than {PEERS_LIMIT} peers")]
    TooManyPeers,
}

impl Map {
    /// Brings the map up to date, or leaves it as it is.
    ///
    /// # Errors
    /// The increment is for another state, or brings too many peers.
    pub fn apply(&mut self, update: Update) -> Result<(), ApplyError> {
        if update.from != self.version {
            return Err(ApplyError::Version);
        }
        let new = update.upsert.keys().filter(|key| !self.peers.contains_key(key)).count();
        if self.peers.len() + new > PEERS_LIMIT {
            return Err(ApplyError::TooManyPeers);
        }
        // First, so that a peer that is in both lists is there in the end.
        for key in &update.remove {
            self.peers.remove(key);
        }
        self.peers.extend(update.upsert);
        self.version = update.to;
        Ok(())
    }

    /// What to tell the coordinator when connecting.
    #[must_use]
    pub fn known(&self) -> Known {
        Known { version: self.version, digest: self.digest() }
    }

    /// A hash of all but the version and the peers' reachability: of what outlives a coordinator process.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut state = hash(&[b"penstock map digest v1", &as_bytes(&(&self.relays, &self.stun_servers))]);
        for (key, peer) in &self.peers {
            let lasting = as_bytes(&(key, &peer.name, peer.virtual_address, &peer.subnets));
            state = hash(&[&state, &lasting]);
            // Gateways that do not know them have the same digest as long as there are none.
            if !peer.tags.is_empty() || peer.allow.is_some() {
                state = hash(&[&state, &as_bytes(&(&peer.tags, &peer.allow))]);
            }
        }
        Digest(Base64(state))
    }
}

fn as_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have no maps with other keys than text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Peer {
        Peer {
            name: name.parse().unwrap(),
            virtual_address: Ipv4Addr::new(100, 64, 0, 1),
            subnets: vec!["10.1.0.0/24".parse().unwrap()],
            tags: Vec::new(),
            allow: None,
            reachability: None,
        }
    }

    fn key(number: u32) -> SiteKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes.into()
    }

    fn version(number: u64) -> MapVersion {
        MapVersion { epoch: 1, number }
    }

    fn map(peers: impl IntoIterator<Item = (SiteKey, Peer)>) -> Map {
        Map { version: version(3), peers: peers.into_iter().collect(), ..Map::default() }
    }

    #[test]
    fn increments_change_replace_and_remove() {
        let mut map = map([(key(1), peer("a")), (key(2), peer("b"))]);
        let update = Update {
            from: version(3),
            to: version(7),
            upsert: [(key(2), peer("c")), (key(3), peer("d"))].into(),
            remove: vec![key(1), key(9), key(3)],
        };
        map.apply(update).unwrap();
        assert_eq!(map.version, version(7));
        assert_eq!(map.peers, [(key(2), peer("c")), (key(3), peer("d"))].into());
    }

    #[test]
    fn an_increment_for_another_state_changes_nothing() {
        let before = map([(key(1), peer("a"))]);
        for from in [version(2), version(4), MapVersion { epoch: 2, number: 3 }] {
            let mut map = before.clone();
            let update = Update { from, to: version(9), upsert: BTreeMap::new(), remove: vec![key(1)] };
            assert_eq!(map.apply(update), Err(ApplyError::Version));
            assert_eq!(map, before);
        }
    }

    #[test]
    fn a_map_has_a_limit() {
        let full = (0..PEERS_LIMIT as u32).map(|number| (key(number), peer("a")));
        let mut map = map(full);
        let upsert = |keys: &[u32]| Update {
            from: version(3),
            to: version(3),
            upsert: keys.iter().map(|number| (key(*number), peer("b"))).collect(),
            remove: Vec::new(),
        };
        assert_eq!(map.apply(upsert(&[5, 6])), Ok(()));
        assert_eq!(map.apply(upsert(&[5, u32::MAX])), Err(ApplyError::TooManyPeers));
        assert_eq!(map.peers.len(), PEERS_LIMIT);
    }

    #[test]
    fn the_digest_tells_what_lasts() {
        let first = map([(key(1), peer("a")), (key(2), peer("b"))]);
        let mut same = first.clone();
        same.version = version(8);
        same.peers.get_mut(&key(1)).unwrap().reachability = Some(Reachability::default());
        assert_eq!(first.digest(), same.digest());
        let changes: [fn(&mut Map); 8] = [
            |map| drop(map.peers.remove(&key(2))),
            |map| map.peers.get_mut(&key(1)).unwrap().name = "x".parse().unwrap(),
            |map| map.peers.get_mut(&key(1)).unwrap().subnets.clear(),
            |map| map.peers.get_mut(&key(1)).unwrap().virtual_address = Ipv4Addr::new(100, 64, 0, 9),
            |map| map.stun_servers.push("192.0.2.1:3478".parse().unwrap()),
            |map| map.peers.get_mut(&key(1)).unwrap().tags.push("branch".parse().unwrap()),
            |map| map.peers.get_mut(&key(1)).unwrap().allow = Some(Vec::new()),
            |map| map.peers.get_mut(&key(1)).unwrap().allow = Some(vec!["tcp/443".parse().unwrap()]),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut other = first.clone();
            change(&mut other);
            assert_ne!(first.digest(), other.digest(), "{number}");
        }
    }

    /// What is read by gateways that know neither tags nor restrictions.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    #[expect(dead_code)]
    struct OldPeer {
        name: Name,
        virtual_address: Ipv4Addr,
        subnets: Vec<IpNet>,
        reachability: Option<Reachability>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct OldMap {
        peers: BTreeMap<SiteKey, OldPeer>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct OldUpdate {
        #[serde(default)]
        upsert: BTreeMap<SiteKey, OldPeer>,
    }

    #[test]
    fn a_gateway_that_knows_no_restrictions_is_not_shown_restricted_peers() {
        for allow in [vec![], vec!["tcp/443".parse().unwrap()]] {
            let whole = map([(key(1), peer("a")), (key(2), Peer { allow: Some(allow), ..peer("b") })]);
            let text = serde_json::to_string(&whole).unwrap();
            assert_eq!(serde_json::from_str::<Map>(&text).unwrap(), whole);
            let old: OldMap = serde_json::from_str(&text).unwrap();
            assert!(old.peers.into_keys().eq([key(1)]));

            let update =
                Update { from: version(1), to: version(2), upsert: whole.peers.clone(), remove: vec![key(2), key(3)] };
            let text = serde_json::to_string(&update).unwrap();
            assert_eq!(serde_json::from_str::<Update>(&text).unwrap(), update);
            let old: OldUpdate = serde_json::from_str(&text).unwrap();
            assert!(old.upsert.into_keys().eq([key(1)]));
        }
        let empty = serde_json::to_string(&map([])).unwrap();
        assert!(empty.contains(r#""Peers":{}"#) && !empty.contains("Restricted"), "{empty}");
        assert!(serde_json::from_str::<Map>(&empty.replace("Peers", "Pears")).is_err());
    }

    #[test]
    fn tags_and_what_is_allowed_are_told_and_nothing_else_is_new() {
        let plain = peer("a");
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(text, r#"{"Name":"a","VirtualAddress":"100.64.0.1","Subnets":["10.1.0.0/24"]}"#);
        assert_eq!(serde_json::from_str::<Peer>(&text).unwrap(), plain);
        let tags = vec!["branch".parse().unwrap()];
        for allow in [vec![], vec!["tcp/443".parse().unwrap(), "icmp".parse().unwrap()]] {
            let restricted = Peer { tags: tags.clone(), allow: Some(allow), ..plain.clone() };
            let text = serde_json::to_string(&restricted).unwrap();
            assert_eq!(serde_json::from_str::<Peer>(&text).unwrap(), restricted);
            assert!(serde_json::from_str::<OldPeer>(&text).is_ok());
        }
        // What is not understood is not taken as a permission.
        for allow in [r#"["gopher"]"#.to_owned(), "null".into(), format!("[{}]", vec!["\"icmp\""; 257].join(","))] {
            let text = text.replace('}', &format!(",\"Allow\":{allow}}}"));
            assert!(serde_json::from_str::<Peer>(&text).is_err(), "{text}");
        }
    }
}
