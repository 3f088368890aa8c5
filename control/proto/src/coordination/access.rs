//! What a relay knows of the sites: who they are, and which pairs may talk.
//!
//! Sites have numbers, for as long as the connection lasts, so that a pair costs a few bytes. First comes
//! the whole, in as many messages as it takes; what was in force before stays so until the last of them.
//! Then come changes, each in force at once.

use serde::{Deserialize, Serialize};

use super::SiteKey;
use super::encoding::at_most;
use super::limits::{ACCESS_PAIRS_LIMIT, PEERS_LIMIT};

/// All sites of the largest coordinator: each but one may be a peer of each.
const SITES_LIMIT: usize = PEERS_LIMIT + 1;

/// A site's number.
pub type SiteNumber = u32;

/// Which sites may talk through a relay, or what changed of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Access {
    /// Where in the whole this is.
    pub part: AccessPart,
    /// Sites that are let in.
    #[serde(deserialize_with = "at_most::<SITES_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<(SiteNumber, SiteKey)>,
    /// Sites that are let in no more.
    #[serde(deserialize_with = "at_most::<SITES_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<SiteNumber>,
    /// Pairs that may talk.
    #[serde(deserialize_with = "at_most::<ACCESS_PAIRS_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<(SiteNumber, SiteNumber)>,
    /// Pairs that may talk no more.
    #[serde(deserialize_with = "at_most::<ACCESS_PAIRS_LIMIT, _, _>", skip_serializing_if = "Vec::is_empty")]
    pub parted: Vec<(SiteNumber, SiteNumber)>,
}

/// Where in the whole a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessPart {
    /// The whole begins.
    First,
    /// More of it.
    Further,
    /// The last of it: now it is in force, and nothing else.
    Last,
    /// It changes what is in force.
    #[default]
    Change,
}
