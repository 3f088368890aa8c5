//! Which suite is used with a peer, and the sentence that says why.

use std::time::Instant;

use penstock_dataplane::session as data;
use penstock_proto::{Speeds, Suite, choose_suite};

use super::peers::Peer;
use crate::problem::Problems;
use crate::profile::SuiteSetting;

/// A suite, and why it is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The suite of the next handshake that we start.
    pub suite: Suite,
    /// Why: a sentence.
    pub reason: String,
}

/// The suite for a peer: as the profile says, or by the speeds of both sites and the present session.
pub fn choose(setting: SuiteSetting, ours: Speeds, theirs: Option<Speeds>, present: Option<Suite>) -> Choice {
    match (setting, theirs) {
        (SuiteSetting::ChaCha20Poly1305, _) => {
            Choice { suite: Suite::ChaCha20Poly1305, reason: "WireGuard's own suite".to_owned() }
        }
        (SuiteSetting::Aes256Gcm, _) => Choice { suite: Suite::Aes256Gcm, reason: "the profile says so".to_owned() },
        (SuiteSetting::Auto, None) => {
            let reason = "auto: WireGuard's own suite, since the other site has announced no speeds".to_owned();
            Choice { suite: Suite::ChaCha20Poly1305, reason }
        }
        (SuiteSetting::Auto, Some(theirs)) => {
            let suite = choose_suite(ours, theirs, present.unwrap_or_default());
            let slower = ours.slower(theirs);
            let (this, other) = (slower.of(suite), slower.of(suite.other()));
            let reason = if this >= other {
                format!("auto: the slower site does {this} MB/s with it, and {other} with {}", suite.other())
            } else {
                let other = format!("{other} with {}, not enough faster to switch", suite.other());
                format!("auto: the slower site does {this} MB/s with it, and {other}")
            };
            Choice { suite, reason }
        }
    }
}

/// A peer has started a handshake with a suite that the profile does not let it use.
pub fn note_refused(problems: &mut Problems, now: Instant, peer: &Peer, theirs: Suite) {
    let sentence = format!(
        "{} wants {theirs}, and this site's profile has {} for it: they cannot connect",
        peer.label(),
        theirs.other()
    );
    let what_to_do =
        "give each other the same Suite in both profiles; other WireGuard implementations only know chacha20-poly1305";
    problems.note(now, &subject(peer), &sentence, what_to_do);
}

/// What a problem about a peer's suite is called.
pub fn subject(peer: &Peer) -> String {
    format!("suite of {}", peer.label())
}

/// The data plane's name of a suite.
pub fn data(suite: Suite) -> data::Suite {
    match suite {
        Suite::ChaCha20Poly1305 => data::Suite::ChaCha20Poly1305,
        Suite::Aes256Gcm => data::Suite::Aes256Gcm,
    }
}

/// The handshake's name of a suite.
pub fn proto(suite: data::Suite) -> Suite {
    match suite {
        data::Suite::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
        data::Suite::Aes256Gcm => Suite::Aes256Gcm,
    }
}

#[cfg(test)]
mod tests;
