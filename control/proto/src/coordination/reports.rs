//! What a gateway reports about its paths, for the administrator of a coordinator that asks for it. Other sites do not
//! see it.

use serde::{Deserialize, Deserializer, Serialize};

use super::encoding::at_most;
use super::limits::{PATHS_LIMIT, REASON_LIMIT};
use super::{Name, SiteKey};

/// The coordinator wants reports on paths. Gateways that were not asked send none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reports {
    /// The shortest time between two reports, in seconds.
    pub every: u32,
}

/// The paths of a gateway at one moment; they replace those of the report before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Paths {
    /// If there are more peers, those with the most traffic.
    #[serde(deserialize_with = "at_most::<PATHS_LIMIT, _, _>")]
    pub paths: Vec<PathReport>,
}

/// The path to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PathReport {
    /// The peer.
    pub peer: SiteKey,
    /// What kind of path it is.
    pub path: PathKind,
    /// The relay, if it is relayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Name>,
    /// Why it is of this kind and no better, in a sentence.
    #[serde(default, deserialize_with = "short")]
    pub reason: String,
    /// The round trip, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<u32>,
    /// Bytes of WireGuard messages received a second.
    pub received: u64,
    /// Bytes of WireGuard messages sent a second.
    pub sent: u64,
}

/// What kind of path leads to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathKind {
    /// Straight to it.
    Direct,
    /// Through a relay.
    Relay,
    /// There is none.
    None,
}

fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.len() <= REASON_LIMIT {
        true => Ok(text),
        false => Err(serde::de::Error::custom(format_args!("a reason is longer than {REASON_LIMIT} bytes"))),
    }
}
