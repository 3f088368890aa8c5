//! What a relay knows about the sites: who they are, and which pairs may talk.
//!
//! Sites have numbers, for as long as the connection lasts, so that a pair costs only a few bytes. First comes the
//! whole state, in as many messages as it takes; what was in force before stays in force until the last of them. Then
//! come changes, each in force at once.

use serde::{Deserialize, Serialize};

use super::SiteKey;
use super::encoding::at_most;
use super::limits::{ACCESS_PAIRS_LIMIT, PEERS_LIMIT};

/// The most sites of a coordinator: each may have all others as peers.
const SITES_LIMIT: usize = PEERS_LIMIT + 1;

/// A site's number.
pub type SiteNumber = u32;

/// Which sites may talk through a relay, or what has changed about that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Access {
    /// Which part of the whole state this is.
    pub part: AccessPart,
    /// Sites that are admitted.
    #[serde(deserialize_with = "at_most::<SITES_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<(SiteNumber, SiteKey)>,
    /// Sites that are no longer admitted.
    #[serde(deserialize_with = "at_most::<SITES_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<SiteNumber>,
    /// Pairs that may talk.
    #[serde(deserialize_with = "at_most::<ACCESS_PAIRS_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<(SiteNumber, SiteNumber)>,
    /// Pairs that may no longer talk.
    #[serde(deserialize_with = "at_most::<ACCESS_PAIRS_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub parted: Vec<(SiteNumber, SiteNumber)>,
}

/// Which part of the whole state a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessPart {
    /// The first part of the whole state.
    First,
    /// A further part.
    Further,
    /// The last part: from now on this state is in force, and nothing else.
    Last,
    /// A change of what is in force.
    #[default]
    Change,
}
