//! Path agents and STUN clients, whole, behind simulated NATs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod birthday;
mod changes;
mod forger;
mod matrix;
#[path = "../simulator/mod.rs"]
mod simulator;

use penstock_proto::path::PathConfig;

/// Without guessing of ports, as the oracle has it.
fn plain() -> PathConfig {
    PathConfig { birthday: false, ..PathConfig::default() }
}

/// How many seeds to try: the first, or the second when there is time.
fn seeds(few: u64, many: u64) -> std::ops::Range<u64> {
    let long = std::env::var("PENSTOCK_TEST_LONG").is_ok_and(|value| value == "1");
    0..if long { many } else { few }
}
