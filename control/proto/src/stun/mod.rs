//! STUN without I/O: what a gateway asks to learn its public address and how its NAT behaves.
//!
//! [`message`] reads and writes Binding requests and responses (RFC 8489), for both ends. [`Reflexive`] keeps asking
//! for the external address of the tunnel's port, and tells when it changes. [`Discovery`] finds out how the NAT
//! behaves (RFC 5780) and ends in a [`NatReport`] (RFC 4787). [`Lifetime`] finds out how long an idle mapping lives.
//!
//! Everything but the lifetime goes through the tunnel's own UDP socket, because another socket would have another
//! mapping. [`is_stun`] recognises STUN datagrams; a response belongs to whoever knows its transaction, so the shell
//! offers each to the discovery and to every reflexive in turn.
//!
//! The codec is our own because the little that is needed, one method and eight attributes, takes less code than the
//! glue to a library with credentials, hashes and forty attributes.

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

/// A Binding request to be sent from the socket in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The server.
    pub to: SocketAddr,
    /// The message, [`message::REQUEST_LENGTH`] bytes.
    pub bytes: Vec<u8>,
}
