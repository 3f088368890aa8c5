//! Penstock's protocols without I/O: the WireGuard handshake and its timers; what finds a path to a peer ([`stun`],
//! [`port_control`], [`path`], [`pmtu`], [`relay`]); the coordinator's messages ([`coordination`]); and who is to be
//! believed ([`trust`]).
//!
//! A [`Gateway`] is one end of any number of WireGuard tunnels. It neither reads a clock nor opens a socket: time, wall
//! clock and randomness are arguments, datagrams go in by [`handle_datagram`](Gateway::handle_datagram) and come out of
//! [`poll_transmit`](Gateway::poll_transmit). Transport data never passes through here; the data plane gets each
//! session's keys by an [`Event`] and reports what its traffic did.
//!
//! The shell's loop: call one `handle_*`, then drain [`poll_event`](Gateway::poll_event), then
//! [`poll_transmit`](Gateway::poll_transmit), then sleep until [`poll_timeout`](Gateway::poll_timeout) or the next
//! input. Events come first because the answer to a response may arrive before the data plane has been told about the
//! session.
//!
//! Who owns what: the gateway owns the peers, their handshakes and timers; the keys of a session belong
//! to the data plane from the moment of [`Event::SessionEstablished`].
//!
//! Reading order: [`gateway`], `receive` (a handshake message comes in), `send` (one goes out),
//! `timers`, `session`, `suite`, `noise`, `cookie`, `limiter`, [`messages`], [`constants`].

mod bucket;
mod clock;
pub mod constants;
mod cookie;
pub mod coordination;
mod event;
pub mod gateway;
mod key;
mod limiter;
pub mod messages;
mod noise;
pub mod path;
mod peer;
pub mod pmtu;
pub mod port_control;
mod receive;
pub mod relay;
pub mod sealed;
mod send;
mod session;
pub mod stun;
mod suite;
mod timers;
pub mod trust;
mod wipe;

pub use bucket::Bucket;
pub use constants::Timings;
pub use event::{Contents, Endpoint, Event, Traffic, Transmit, Used};
pub use gateway::{AddPeerError, Gateway};
pub use key::{Key, clamped_private_key, generate_private_key};
pub use peer::{Peer, PeerConfig, PeerId};
pub use receive::Reject;
pub use session::{Role, SessionKeys};
pub use suite::{Speeds, Suite, choose as choose_suite};
pub use x25519_dalek::{PublicKey, StaticSecret};
