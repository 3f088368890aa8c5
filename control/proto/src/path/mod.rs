//! The path agent: finds, for every peer, the way that its datagrams take, without I/O.
//!
//! ```text
//!   candidates, NAT types (coordinator) ─┐                  ┌─► PathTransmit: probes, from the tunnel's socket
//!   relays, own NAT report (STUN) ───────┼──► PathAgent ────┤
//!   probes from the tunnel's socket ─────┤                  └─► PathEvent::Selected: send to this address
//!   traffic sent, timeouts ──────────────┘
//! ```
//! A peer's *checks* are the addresses that it may be reached at, directly or by a relay. Each is probed
//! by pings; whoever answers with an authentic pong, from where the ping went, is *alive*. The selected
//! path is a relay at once, and the best direct address as soon as one is alive. Only silence ends a path,
//! never a datagram: a forger can make a candidate that nobody answers from, and nothing else.
//!
//! Direct addresses are tried in *rounds*. Both sides first open their own NATs by probes that die on the
//! way, tell each other so over the relay, and only then probe in earnest: a NAT that sees the other
//! side's probe before its own may give the flow another port, until both have been quiet for 30 s.
//!
//! How large the datagrams on the selected path may be is found by [`pmtu`](crate::pmtu), once the shell has told
//! the links.
//!
//! The shell's loop is that of the [`Gateway`](crate::Gateway): one `handle_*`, then drain
//! [`poll_event`](PathAgent::poll_event), then [`poll_transmit`](PathAgent::poll_transmit), then sleep
//! until [`poll_timeout`](PathAgent::poll_timeout). All addresses are canonical: IPv4 is never mapped into
//! IPv6.
//!
//! Reading order: [`PathAgent`], `peer`, `rounds`, `check`, `select`, `birthday`, `sizes`, `probe`, [`constants`].

mod agent;
mod birthday;
mod check;
pub mod constants;
mod limits;
mod peer;
mod probe;
mod reason;
mod rounds;
mod select;
mod sizes;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use agent::{AddSiteError, PathAgent, PathConfig};
pub use constants::PathTimings;
pub use probe::{Envelope, FIRST_BYTE, PROBE_LENGTH, Ping, Pong, Probe, ProbeReject, SiteId, SizeCheck};
pub use reason::Reason;
use x25519_dalek::PublicKey;

use crate::pmtu::PathMtu;

/// Names a UDP socket of the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The tunnel's own socket.
    pub const TUNNEL: Self = Self(0);
}

/// Names a relay; the shell chooses the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId(pub u32);

/// How a relay is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RelayKind {
    /// By UDP from the tunnel's socket.
    Udp,
    /// By a WebSocket over TLS, behind a local address of the shell's.
    Tls,
}

/// A relay that we are bound at. Every peer is taken to be bound at it too; what its probes don't reach,
/// it is not selected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Its name; the same for both ways to it.
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
        /// To this address.
        address: SocketAddr,
    },
    /// To a relay, from the tunnel's socket.
    Relay {
        /// Which.
        relay: RelayId,
        /// How.
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
    /// From which socket.
    pub socket: SocketId,
    /// Where to.
    pub to: SocketAddr,
    /// The IP time to live or hop limit, if it matters.
    pub ttl: Option<u8>,
    /// It asks whether a datagram of its length passes: neither we nor anybody on the way may fragment it.
    pub dont_fragment: bool,
    /// The datagram.
    pub bytes: Vec<u8>,
}

/// What the agent tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// Send the peer's datagrams this way from now on. Also sent when only the reason has changed.
    Selected {
        /// Whose.
        peer: PublicKey,
        /// Where.
        path: Path,
        /// Why.
        reason: Reason,
    },
    /// Packets to the peer may be this large from now on, on the path that was selected last.
    Mtu {
        /// Whose.
        peer: PublicKey,
        /// How large, and how that is known.
        mtu: PathMtu,
    },
    /// A selected path has died, and our NAT's mappings may have died with it. Bind at the relays anew, ask the
    /// STUN servers and the port mapping again, and signal what has changed.
    RefreshCandidates,
    /// Open this many UDP sockets of any port, and say so by
    /// [`handle_sockets`](PathAgent::handle_sockets).
    OpenSockets {
        /// For whom.
        peer: PublicKey,
        /// How many.
        count: u16,
    },
    /// These sockets are done with.
    CloseSockets {
        /// Which.
        sockets: Vec<SocketId>,
    },
}
