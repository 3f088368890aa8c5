//! What passes between the gateway and its shell beside handshake messages: datagrams to send, events,
//! and notes of the traffic.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use crate::messages::INITIATION_LENGTH;
use crate::{PeerId, SessionKeys, Suite};

/// The two ends of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's.
    pub remote: SocketAddr,
    /// Ours: the address that the peer called, and that answers leave from. `None`: whatever the route prefers.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Endpoint {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// A datagram to be sent from the tunnel's UDP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The address of ours that it leaves from; `None` for the one that the route prefers.
    pub local: Option<IpAddr>,
    /// Whom it is for; a cookie reply is for nobody known.
    pub peer: Option<PeerId>,
    /// What.
    pub contents: Contents,
}

/// The bytes of a datagram, at most 148 of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    length: u8,
    bytes: [u8; INITIATION_LENGTH],
}

/// What the gateway tells its shell, in the order in which it happened.
#[derive(Debug)]
pub enum Event {
    /// A session exists: receive on it from now on. Send on it only after [`Event::SessionPromoted`].
    SessionEstablished {
        /// Whose.
        peer: PeerId,
        /// Its keys, handed out this once. They are wiped where they lie: moving them would leave copies behind.
        session: Box<SessionKeys>,
    },
    /// Send on this session from now on, and on no other of this peer.
    SessionPromoted {
        /// Whose.
        peer: PeerId,
        /// Which.
        local_index: u32,
    },
    /// Neither send nor receive on this session any more; drop its keys.
    SessionExpired {
        /// Whose; it may have been removed meanwhile.
        peer: PeerId,
        /// Which.
        local_index: u32,
    },
    /// Send an empty packet on the current session. After a handshake that we began it tells the
    /// responder that the session works; there any other packet sent at once does as well.
    SendKeepalive {
        /// To whom.
        peer: PeerId,
    },
    /// An authenticated packet came from a new address, or to another one of ours: send there, from there, from now
    /// on.
    EndpointChanged {
        /// Whose.
        peer: PeerId,
        /// The new one.
        endpoint: Endpoint,
    },
    /// An initiation was not answered in time, and nothing authentic has come from the peer for 15 s, or
    /// ever: it may have to be reached by another endpoint. Again with each repetition, about every 5 s. An
    /// initiation is under way to the present endpoint; after [`set_endpoint`](crate::Gateway::set_endpoint),
    /// [`handle_path`](crate::Gateway::handle_path) sends one to the new endpoint too.
    PathSilent {
        /// Whose.
        peer: PeerId,
    },
    /// The peer began a handshake with a suite that it may not use here. It was left unanswered, and will be again
    /// until one of the two sites changes.
    SuiteRefused {
        /// Whose.
        peer: PeerId,
        /// Which.
        suite: Suite,
    },
    /// No answer for 90 s: packets that wait for a session may be dropped.
    HandshakeGaveUp {
        /// Whose.
        peer: PeerId,
    },
}

/// How much a session was used for sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Messages; thus its next counter.
    pub messages: u64,
    /// Blocks, where they are limited: see [`REKEY_AFTER_BLOCKS`](crate::constants::REKEY_AFTER_BLOCKS).
    pub blocks: u64,
}

/// What a peer's traffic did since the last note. Only packets that were authentic count as received;
/// "any" includes keepalives, "data" does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// A packet with contents was sent.
    pub sent_data: bool,
    /// Any packet was sent.
    pub sent_any: bool,
    /// A packet with contents was received.
    pub received_data: bool,
    /// Any packet was received.
    pub received_any: bool,
}

impl Contents {
    /// `bytes` must be a handshake message, thus at most 148 bytes.
    pub(crate) fn new(message: &[u8]) -> Self {
        let mut bytes = [0; INITIATION_LENGTH];
        bytes[..message.len()].copy_from_slice(message);
        Self { length: message.len() as u8, bytes }
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", &**self)
    }
}
