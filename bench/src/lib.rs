//! Penstock's benchmarks: an AF_XDP generator, a sink that counts what arrives, and the crypto-free
//! forwarder whose speed is the ceiling for the gateway.
//!
//! ```text
//! generator ──► veth or NIC ──► device under test ──► veth or NIC ──► sink
//!  schedule, packet, payload     forwarder, or any gateway             packet, payload
//! ```
//! What a packet carries is in [`payload`], how it is built and read in [`packet`], when it is due in
//! [`schedule`]; [`arrivals`] finds loss, copies and disorder. [`wire`] runs trials and [`search`] decides at which
//! load the next one is; [`pipeline`] measures the data plane without devices, [`compare`] gateways against each
//! other; [`report`] is what every measurement yields. [`socket`] owns the AF_XDP rings and the frames; the XDP
//! program that redirects packets to them is one of `ebpf/steer`.

pub mod arrivals;
pub mod cli;
pub mod compare;
pub mod forwarder;
pub mod generator;
pub mod latency;
pub mod packet;
pub mod payload;
pub mod pipeline;
pub mod rate;
pub mod report;
pub mod schedule;
pub mod search;
pub mod socket;
pub mod wire;

/// Packets handled between two looks at the rings.
pub const BATCH: usize = 64;
