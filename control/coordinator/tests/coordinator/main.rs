//! A real coordinator, and gateways that speak to it over real TLS and WebSockets on loopback.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod acme;
mod authority;
mod client;
mod enrol;
mod hidden;
mod hostile;
mod load;
mod policy;
mod program;
mod relay;
mod reload;
mod restart;
mod running;
mod separate;
mod speed;
mod tunnel;
