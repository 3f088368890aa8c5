//! The gateway's client of the coordinator, against the real `penstock-coordinator`, over loopback.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod enrol;
mod hop;
mod hostile;
mod laboratory;
mod proxies;
pub mod relay;
