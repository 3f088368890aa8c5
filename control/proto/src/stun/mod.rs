//! STUN without I/O: what a gateway asks to learn its public address and how its NAT behaves.
//!
//! [`message`] reads and writes Binding requests and responses (RFC 8489), for both ends. [`Reflexive`]
//! asks for the address that the tunnel's port has outside, again and again, and tells when it changes.
//! [`Discovery`] finds out the NAT's behaviour (RFC 5780) and ends in a [`NatReport`] (RFC 4787).
//! [`Lifetime`] finds out how long a silent mapping lives.
//!
//! All but the lifetime goes through the tunnel's own UDP socket, because another socket has another mapping. A
//! datagram is STUN when [`is_stun`] says so; responses belong to whoever knows their transaction, so
//! the shell offers each to the discovery and to every reflexive in turn.
//!
//! The codec is our own since the little that is needed, one method and eight attributes, is shorter than
//! the glue to a library with credentials, hashes and forty attributes.

mod discovery;
pub mod lifetime;
pub mod message;
mod reflexive;
mod report;
mod transaction;

use std::net::SocketAddr;

pub use discovery::Discovery;
pub use lifetime::{Bracket, Lifetime, LifetimeError};
pub use message::is_stun;
pub use reflexive::{Changed, Reflexive};
pub use report::NatReport;

/// A Binding request to be sent from the socket that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where to.
    pub to: SocketAddr,
    /// The message, [`message::REQUEST_LENGTH`] bytes.
    pub bytes: Vec<u8>,
}
