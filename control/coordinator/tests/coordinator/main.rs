//! A real coordinator, and gateways that speak to it over real TLS and WebSockets on loopback.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod acme;
mod administration;
mod authority;
mod browser;
mod client;
mod coturn;
mod enrol;
mod flood;
mod hidden;
mod hostile;
mod load;
mod metrics;
mod oidc;
mod page;
mod policy;
mod program;
mod relay;
mod reload;
mod restart;
mod running;
mod scale;
mod separate;
mod speed;
mod trust;
mod tunnel;
