//! What passed lately, as a gateway remembers it: traffic of each peer, and traffic, drops and load of all together,
//! the coarser the longer ago. `penstock top` asks for it over the control socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;

/// How far back points of one length reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// What a point stands for.
    pub seconds: u32,
    /// How many there are at most.
    pub points: usize,
}

/// Five minutes by seconds, an hour by ten seconds, half a day by minutes. Each length is a multiple of the one before.
pub const TIERS: [Tier; 3] =
    [Tier { seconds: 1, points: 300 }, Tier { seconds: 10, points: 360 }, Tier { seconds: 60, points: 720 }];

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Wanted {
    /// The length of a point: one of [`TIERS`], else the next longer one.
    pub seconds: u32,
    /// How many of the latest points, at most.
    pub points: usize,
}

/// The answer. Where there are several points, the last is the latest, and those that are missing are zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct History {
    /// How many seconds a point stands for.
    pub seconds: u32,
    /// With all peers together.
    pub total: Traffic,
    /// Packets dropped a second.
    pub dropped: Vec<f32>,
    /// The load of the busiest worker, 0 to 1.
    pub load: Vec<f32>,
    /// With each peer that had much traffic lately.
    pub peers: Vec<PeerTraffic>,
    /// Packets dropped in the last second, by reason; only reasons with any.
    pub drops: BTreeMap<String, f32>,
    /// The load of each worker in the last second, 0 to 1.
    pub loads: Vec<f32>,
}

/// Bytes of WireGuard messages a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Traffic {
    /// What came from peers, the latest point last.
    pub received: Vec<f32>,
    /// What went to them.
    pub sent: Vec<f32>,
}

/// The traffic with one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerTraffic {
    /// The peer.
    pub public_key: PublicKey,
    /// What passed between it and this gateway.
    pub traffic: Traffic,
}
