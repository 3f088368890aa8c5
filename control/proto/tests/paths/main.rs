//! Whole path agents and STUN clients, behind simulated NATs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod birthday;
mod changes;
mod forger;
mod matrix;
#[path = "../simulator/mod.rs"]
mod simulator;
mod sizes;

use penstock_proto::path::PathConfig;

/// Without guessing ports, as the oracle assumes.
fn plain() -> PathConfig {
    PathConfig { birthday: false, ..PathConfig::default() }
}

/// The seeds to try: `few` of them, or `many` when there is time, or as many as `PENSTOCK_TEST_SEEDS` says.
fn seeds(few: u64, many: u64) -> std::ops::Range<u64> {
    let long = std::env::var("PENSTOCK_TEST_LONG").is_ok_and(|value| value == "1");
    let asked = std::env::var("PENSTOCK_TEST_SEEDS").ok().and_then(|number| number.parse().ok());
    0..asked.unwrap_or(if long { many } else { few })
}
