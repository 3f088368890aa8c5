//! An AF_XDP generator, a sink that counts what arrives, and the crypto-free forwarder whose speed is the ceiling for
//! the gateway.
//!
//! ```text
//! generator ──► veth or NIC ──► device under test ──► veth or NIC ──► sink
//!  schedule, packet, payload     forwarder, or any gateway             packet, payload
//! ```
//! [`payload`] is what a packet carries, [`packet`] builds and reads packets, [`schedule`] says when they are due, and
//! [`arrivals`] finds loss, copies and reordering. [`interface`] names an interface, [`port`] has its sockets, and
//! [`socket`] owns the AF_XDP rings and the frames. The XDP program that redirects packets to them is in `ebpf/steer`.

pub mod arrivals;
pub mod forwarder;
pub mod generator;
pub mod interface;
pub mod latency;
pub mod packet;
pub mod payload;
pub mod port;
pub mod rate;
pub mod schedule;
pub mod sink;
pub mod socket;

/// Packets handled between two looks at the rings.
pub const BATCH: usize = 64;
