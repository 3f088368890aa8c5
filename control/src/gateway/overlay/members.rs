//! Which sites of a map become peers, and with which prefixes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use ipnet::IpNet;
use penstock_proto::coordination::SiteKey;
use penstock_proto::trust::{RefusedPrefix, Surroundings, judge};
use penstock_proto::{PeerConfig, PeerId};

use crate::gateway::peers::{Found, Peer, Peers};
use crate::gateway::statements::Site;
use crate::ground::Origin;
use crate::key::PublicKey;

/// What a new map has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// New peers.
    pub added: Vec<PublicKey>,
    /// Peers that are gone.
    pub removed: Vec<PublicKey>,
    /// Prefixes that were added, removed, or moved to another peer.
    pub prefixes: BTreeSet<IpNet>,
    /// Whether the firewall may select other peers, or other peers are restricted.
    pub selected: bool,
    /// The prefixes that were refused, with their sites.
    pub refused: Vec<(SiteKey, RefusedPrefix)>,
}

impl Changes {
    /// Whether anything else has to follow.
    pub fn any(&self) -> bool {
        self.selected || !self.prefixes.is_empty() || !self.added.is_empty() || !self.removed.is_empty()
    }
}

/// Makes peers of these sites, with the prefixes that are accepted. What the profile says about a site, or gives to
/// another peer, stays. `before` is the surroundings in which this was last done, if nothing else has given prefixes to
/// the peers since.
pub fn follow_map(
    sites: &BTreeMap<SiteKey, Site>,
    proto: &mut penstock_proto::Gateway,
    peers: &mut Peers,
    now: Instant,
    surroundings: &Surroundings,
    before: Option<&Surroundings>,
) -> Changes {
    let mut changes = Changes::default();
    let gone = |peer: &&Peer| {
        peer.origin == Origin::Overlay && !sites.contains_key(&SiteKey::from(*peer.public_key.as_bytes()))
    };
    let gone: Vec<_> = peers.iter().filter(gone).map(|peer| peer.id).collect();
    for id in gone {
        proto.remove_peer(id);
        changes.prefixes.extend(peers.of(id).into_iter().flat_map(Peer::allowed_ips));
        if let Some(peer) = peers.remove(id) {
            tracing::info!("{}: no longer a peer by the coordinator's map", peer.label());
            changes.removed.push(peer.public_key);
        }
    }
    let mut members = Vec::new();
    for (site_key, site) in sites {
        let key = PublicKey::from_bytes(*site_key.as_bytes());
        let differs = |peer: &Peer| {
            (peer.name.as_str(), &peer.tags, &peer.allow) != (site.name.as_str(), &site.tags, &site.allow)
        };
        let (id, differs) = match peers.with_key(&key) {
            Some(peer) if peer.origin != Origin::Overlay => continue,
            Some(peer) => (peer.id, differs(peer)),
            None => match add(proto, peers, now, key, site) {
                Some(id) => {
                    changes.added.push(key);
                    (id, true)
                }
                None => continue,
            },
        };
        if differs && let Some(peer) = peers.of_mut(id) {
            peer.name = site.name.to_string();
            (peer.tags, peer.allow) = (site.tags.clone(), site.allow.clone());
            changes.selected = true;
        }
        members.push((id, *site_key, site));
    }
    allow(peers, &members, surroundings, before, &mut changes);
    changes
}

fn add(
    proto: &mut penstock_proto::Gateway,
    peers: &mut Peers,
    now: Instant,
    key: PublicKey,
    site: &Site,
) -> Option<PeerId> {
    let config = PeerConfig { fixed_endpoint: true, any_suite: true, ..PeerConfig::default() };
    let id = proto
        .add_peer(now, key.into(), config)
        .inspect_err(|e| tracing::error!("{} cannot be added: {e:?}", site.name))
        .ok()?;
    let number = peers.number();
    let mut peer = Peer::new(id, number, key, Origin::Overlay);
    peer.found = Some(Found::default());
    peers.push(peer);
    let prefixes: Vec<String> = site.prefixes.iter().map(ToString::to_string).collect();
    tracing::info!("{}: {}", site.name, prefixes.join(", "));
    Some(id)
}

/// Gives every peer exactly the prefixes of its site that are accepted. What it was given in the surroundings `before`
/// is already in force.
fn allow(
    peers: &mut Peers,
    sites: &[(PeerId, SiteKey, &Site)],
    surroundings: &Surroundings,
    before: Option<&Surroundings>,
    changes: &mut Changes,
) {
    let still_admit = surroundings.still_admit(before);
    let (mut in_force, mut lost, mut offers) = (0, Vec::new(), Vec::new());
    for (id, key, site) in sites {
        let Some(has) = peers.of(*id).map(Peer::allowed_ips) else { continue };
        for prefix in has {
            let offered = site.prefixes.binary_search(prefix).is_ok();
            match still_admit(*prefix) {
                Ok(()) if offered => in_force += 1,
                verdict => {
                    lost.push((*prefix, *id));
                    changes.refused.extend(verdict.err().filter(|_| offered).map(|refusal| (*key, refusal)));
                }
            }
        }
        offers.extend(site.prefixes.iter().filter(|prefix| !has.contains(*prefix)).map(|prefix| (*id, *prefix)));
    }
    // Removals come first, since a prefix may move from one peer to another.
    for (prefix, id) in lost {
        peers.disallow(prefix, id);
        changes.prefixes.insert(prefix);
    }
    let of_overlay = |id| peers.of(id).is_some_and(|peer| peer.origin == Origin::Overlay);
    offers.retain(|(_, prefix)| peers.owner(prefix).is_none_or(of_overlay));
    // Of two sites with the same prefix, the one that has it keeps it.
    let judgement = judge(offers, surroundings, |prefix| peers.owner(prefix).is_some(), in_force);
    if !judgement.refused.is_empty() {
        let keys: HashMap<PeerId, SiteKey> = sites.iter().map(|(id, key, _)| (*id, *key)).collect();
        changes.refused.extend(judgement.refused.into_iter().map(|(id, refusal)| (keys[&id], refusal)));
    }
    for (prefix, id) in judgement.accepted {
        peers.allow(prefix, id);
        changes.prefixes.insert(prefix);
    }
}
