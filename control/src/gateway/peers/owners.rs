//! Which peer owns which prefix.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ipnet::IpNet;
use penstock_proto::PeerId;

/// The allowed IPs of all peers. Each prefix has one owner.
#[derive(Debug, Default)]
pub struct Owners {
    owners: BTreeMap<IpNet, PeerId>,
    /// How many prefixes there are of each length, per IP version, the longest first: a search tries only these few
    /// lengths.
    lengths: [BTreeMap<Reverse<u8>, usize>; 2],
}

impl Owners {
    /// Gives a prefix to a peer. Returns its previous owner.
    pub fn insert(&mut self, prefix: IpNet, owner: PeerId) -> Option<PeerId> {
        let before = self.owners.insert(prefix, owner);
        if before.is_none() {
            *self.lengths[version(&prefix)].entry(Reverse(prefix.prefix_len())).or_default() += 1;
        }
        before
    }

    /// Takes a prefix from its owner.
    pub fn remove(&mut self, prefix: &IpNet) {
        if self.owners.remove(prefix).is_none() {
            return;
        }
        let (lengths, length) = (&mut self.lengths[version(prefix)], Reverse(prefix.prefix_len()));
        if let Some(count) = lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&length);
            }
        }
    }

    /// The owner of exactly this prefix.
    pub fn get(&self, prefix: &IpNet) -> Option<PeerId> {
        self.owners.get(prefix).copied()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, PeerId)> {
        self.owners.iter().map(|(prefix, owner)| (prefix, *owner))
    }

    /// The prefixes that equal or contain this one, the longest first.
    pub fn covering(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let shorter = self.lengths[version(&prefix)].range(Reverse(prefix.prefix_len())..);
        let candidates = shorter.filter_map(move |(length, _)| IpNet::new(prefix.addr(), length.0).ok());
        candidates.map(|candidate| candidate.trunc()).filter(|candidate| self.owners.contains_key(candidate))
    }
}

fn version(prefix: &IpNet) -> usize {
    usize::from(prefix.addr().is_ipv6())
}
