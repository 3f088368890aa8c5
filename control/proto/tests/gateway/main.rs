//! Whole gateways, connected by a simulated network on a virtual clock, and against boringtun.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod boringtun;
mod handshake;
mod hostile;
mod load;
mod loss;
mod network;
mod site;
mod timers;
