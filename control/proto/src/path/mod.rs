//! The path agent: finds the path that each peer's datagrams take, without I/O.
//!
//! ```text
//!   candidates, NAT types (coordinator) ─┐                  ┌─► PathTransmit: probes, from the tunnel's socket
//!   relays, own NAT report (STUN) ───────┼──► PathAgent ────┤
//!   probes from the tunnel's socket ─────┤                  └─► PathEvent::Selected: send to this address
//!   traffic sent, timeouts ──────────────┘
//! ```
//! A peer's *checks* are the addresses at which it may be reached, directly or over a relay. Each is probed with pings;
//! one that answers with an authentic pong, from the address pinged, is *alive*. A relay is selected at once, and the
//! best direct address as soon as one is alive. Only silence ends a path, never a datagram: all that a forger can do is
//! to create a candidate that nobody answers from.
//!
//! Direct addresses are tried in *rounds*. Both sides first open their own NATs with probes that expire on the way,
//! tell each other so over the relay, and only then send full probes: a NAT that sees the other side's probe before its
//! own may give the flow a different port, until both have been quiet for 30 s.
//!
//! [`pmtu`](crate::pmtu) finds how large the datagrams on the selected path may be, once the shell has set the links.
//! That is all that is done for a peer whose address is given by [`set_endpoint`](PathAgent::set_endpoint).
//!
//! The shell's loop is that of the [`Gateway`](crate::Gateway): one `handle_*`, then drain
//! [`poll_event`](PathAgent::poll_event), then [`poll_transmit`](PathAgent::poll_transmit), then sleep
//! until [`poll_timeout`](PathAgent::poll_timeout). All addresses are canonical: IPv4 is never mapped into
//! IPv6.
//!
//! Reading order: [`PathAgent`], `peer`, `rounds`, `check`, `select`, `birthday`, `sizes`, `given`, `probe`, [`constants`].

mod agent;
mod birthday;
mod check;
pub mod constants;
mod given;
mod limits;
mod peer;
mod probe;
mod reason;
mod rounds;
mod select;
mod sizes;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

pub use agent::{AddSiteError, PathAgent, PathConfig};
pub use constants::PathTimings;
pub use probe::{Envelope, FIRST_BYTE, PROBE_LENGTH, Ping, Pong, Probe, ProbeReject, SiteId, SizeCheck};
pub use reason::Reason;
use x25519_dalek::PublicKey;

use crate::pmtu::PathMtu;

/// Identifies a UDP socket of the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The tunnel's own socket.
    pub const TUNNEL: Self = Self(0);
}

/// Identifies a relay; the shell chooses the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub u32);

/// How a relay is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RelayKind {
    /// Over UDP from the tunnel's socket.
    Udp,
    /// Over a WebSocket in TLS; a local address of the shell stands for it.
    Tls,
}

/// A relay to which we are bound. Every peer is assumed to be bound to it too; it is not selected for a peer that its
/// probes do not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Its id; the same for both transports.
    pub id: RelayId,
    /// How it is reached.
    pub kind: RelayKind,
    /// Where datagrams for it are sent.
    pub address: SocketAddr,
}

/// Where a peer's datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// To the peer itself.
    Direct {
        /// From this socket: the tunnel's, or one that birthday probing has won.
        socket: SocketId,
        /// The peer's address.
        address: SocketAddr,
    },
    /// To a relay, from the tunnel's socket.
    Relay {
        /// The relay.
        relay: RelayId,
        /// Its transport.
        kind: RelayKind,
        /// Its address.
        address: SocketAddr,
    },
    /// Nowhere: nothing answers.
    None,
}

/// A probe to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTransmit {
    /// The socket to send from.
    pub socket: SocketId,
    /// The destination.
    pub to: SocketAddr,
    /// Our address that it leaves from; `None` for the one that the route prefers.
    pub local: Option<IpAddr>,
    /// The IP time to live or hop limit, if it matters.
    pub ttl: Option<u8>,
    /// The probe tests whether a datagram of its length gets through: neither we nor anybody on the way may fragment
    /// it.
    pub dont_fragment: bool,
    /// The datagram.
    pub bytes: Vec<u8>,
}

/// Datagrams of one length to one address, for which the peer reports which have arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Train {
    /// Where to.
    pub to: SocketAddr,
    /// The length of each.
    pub length: u16,
    /// Each with the transaction that [`PathEvent::Arrived`] repeats.
    pub pings: Vec<(u64, Vec<u8>)>,
}

/// What the agent tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// Send the peer's datagrams on this path from now on. Also sent when only the reason has changed.
    Selected {
        /// The peer.
        peer: PublicKey,
        /// Its path.
        path: Path,
        /// Why it was chosen.
        reason: Reason,
    },
    /// Packets to the peer may be this large from now on, on the path that was selected last.
    Mtu {
        /// The peer.
        peer: PublicKey,
        /// How large, and how that is known.
        mtu: PathMtu,
    },
    /// A ping of the last train has arrived whole.
    Arrived {
        /// The peer that it has reached.
        peer: PublicKey,
        /// Its transaction.
        transaction: u64,
    },
    /// A selected path has died, and our NAT's mappings may have died with it. Bind to the relays again, ask the STUN
    /// servers and the port mapping again, and signal what has changed.
    RefreshCandidates,
    /// Open this many UDP sockets on any ports, and pass them to [`handle_sockets`](PathAgent::handle_sockets).
    OpenSockets {
        /// The peer that they are for.
        peer: PublicKey,
        /// The number of sockets.
        count: u16,
    },
    /// These sockets are no longer needed.
    CloseSockets {
        /// The sockets.
        sockets: Vec<SocketId>,
    },
}
