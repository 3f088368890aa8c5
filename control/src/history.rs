//! Recent traffic as a gateway remembers it: each peer's, and the total with drops and load; the older, the coarser.
//! `penstock top` asks for it over the control socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;

/// How far back points of one length reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The time that a point stands for, in seconds.
    pub seconds: u32,
    /// The most points of this length.
    pub points: usize,
}

/// Five minutes in seconds, an hour in steps of ten seconds, half a day in minutes. Each length is a multiple of the
/// one before.
pub const TIERS: [Tier; 3] =
    [Tier { seconds: 1, points: 300 }, Tier { seconds: 10, points: 360 }, Tier { seconds: 60, points: 720 }];

/// Which part is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Wanted {
    /// The length of a point: one of [`TIERS`], else the next longer one.
    pub seconds: u32,
    /// How many of the latest points, at most.
    pub points: usize,
}

/// The answer. Of several points, the last is the latest, and missing ones are zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct History {
    /// How many seconds a point stands for.
    pub seconds: u32,
    /// The traffic with all peers together.
    pub total: Traffic,
    /// Packets dropped per second.
    pub dropped: Vec<f32>,
    /// The load of the busiest worker, 0 to 1.
    pub load: Vec<f32>,
    /// The traffic with each peer that has had much of it lately.
    pub peers: Vec<PeerTraffic>,
    /// Packets dropped in the last second, by reason; only reasons with any.
    pub drops: BTreeMap<String, f32>,
    /// The load of each worker in the last second, 0 to 1.
    pub loads: Vec<f32>,
}

/// Bytes of WireGuard messages per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Traffic {
    /// Received from peers, the latest point last.
    pub received: Vec<f32>,
    /// Sent to peers.
    pub sent: Vec<f32>,
}

/// The traffic with one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerTraffic {
    /// The peer.
    pub public_key: PublicKey,
    /// Its traffic with this gateway.
    pub traffic: Traffic,
}
