//! What control drops, by reason.

use std::collections::HashMap;

use penstock_proto::Reject;

/// Packets whose session was not made in time.
const WAITED: &str = "no-session";
/// Probes of paths that came through the tunnel.
const PROBE_INSIDE: &str = "probe-from-inside";
/// Probes of paths that nobody here expects: for another site, or from one that is not a peer yet.
const PROBE_UNEXPECTED: &str = "probe-unexpected";

/// Counters of what was dropped.
#[derive(Debug, Default)]
pub struct Drops {
    /// Handshake messages.
    rejects: HashMap<Reject, u64>,
    /// Packets whose session was not made in time.
    waiting: u64,
    /// Probes of paths that came through the tunnel.
    probes_inside: u64,
    /// Probes of paths that nobody here expects.
    probes_unexpected: u64,
}

impl Drops {
    /// Counts a handshake message.
    pub fn rejected(&mut self, reject: Reject) {
        *self.rejects.entry(reject).or_default() += 1;
    }

    /// Counts packets whose session was not made in time.
    pub fn waited(&mut self, packets: u64) {
        self.waiting += packets;
    }

    /// Counts a probe that came through the tunnel.
    pub fn probe_inside(&mut self) {
        self.probes_inside += 1;
    }

    /// Counts a probe that nobody here expects.
    pub fn probe_unexpected(&mut self) {
        self.probes_unexpected += 1;
    }

    /// All counters, by reason, those at zero too: a rate can be computed only for a counter that was there before.
    pub fn by_reason(&self) -> impl Iterator<Item = (String, u64)> {
        let rejects = Reject::ALL.iter().map(|reject| (name(*reject), self.rejects.get(reject).copied().unwrap_or(0)));
        let counted =
            [(WAITED, self.waiting), (PROBE_INSIDE, self.probes_inside), (PROBE_UNEXPECTED, self.probes_unexpected)];
        rejects.chain(counted.map(|(reason, n)| (reason.to_owned(), n)))
    }
}

/// The reasons for which control drops packets, under the names that `status` shows.
pub fn reasons() -> impl Iterator<Item = String> {
    let rejects = Reject::ALL.iter().map(|reject| name(*reject));
    rejects.chain([WAITED, PROBE_INSIDE, PROBE_UNEXPECTED].map(str::to_owned))
}

fn name(reject: Reject) -> String {
    format!("handshake-{}", kebab(&format!("{reject:?}")))
}

/// `UnknownPeer` as `unknown-peer`.
pub fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_there_before_it_occurs() {
        let mut drops = Drops::default();
        let zeros: Vec<(String, u64)> = reasons().map(|reason| (reason, 0)).collect();
        assert_eq!(drops.by_reason().collect::<Vec<_>>(), zeros);
        drops.rejected(Reject::ALL[0]);
        let counted: Vec<u64> = drops.by_reason().map(|(_, count)| count).collect();
        assert_eq!((counted[0], counted.iter().sum::<u64>(), counted.len()), (1, 1, zeros.len()));
    }
}
