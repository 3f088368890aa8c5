//! What control drops, by reason.

use std::collections::HashMap;

use penstock_proto::Reject;

/// Counters of what was dropped.
#[derive(Debug, Default)]
pub struct Drops {
    /// Handshake messages.
    rejects: HashMap<Reject, u64>,
    /// Packets that waited for a session in vain.
    waiting: u64,
    /// Probes of paths that came through the tunnel.
    probes_inside: u64,
}

impl Drops {
    /// Counts a handshake message.
    pub fn rejected(&mut self, reject: Reject) {
        *self.rejects.entry(reject).or_default() += 1;
    }

    /// Counts packets that waited for a session in vain.
    pub fn waited(&mut self, packets: u64) {
        self.waiting += packets;
    }

    /// Counts a probe that came through the tunnel.
    pub fn probe_inside(&mut self) {
        self.probes_inside += 1;
    }

    /// All of them, by reason.
    pub fn by_reason(&self) -> impl Iterator<Item = (String, u64)> {
        let rejects =
            self.rejects.iter().map(|(reject, n)| (format!("handshake-{}", kebab(&format!("{reject:?}"))), *n));
        let counted = [("no-session", self.waiting), ("probe-from-inside", self.probes_inside)];
        rejects.chain(counted.map(|(reason, n)| (reason.to_owned(), n)))
    }
}

/// `UnknownPeer` as `unknown-peer`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}
