//! What passes between the gateway and its shell besides handshake messages: datagrams to send, events, and reports of
//! the traffic.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use crate::messages::INITIATION_LENGTH;
use crate::{PeerId, SessionKeys, Suite};

/// Both ends of a datagram's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Our address: the one that the peer sent to, and that answers leave from. `None`: whichever the route prefers.
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
    /// The destination.
    pub to: SocketAddr,
    /// Our address that it leaves from; `None` for the one that the route prefers.
    pub local: Option<IpAddr>,
    /// The peer that it is for. A cookie reply has none.
    pub peer: Option<PeerId>,
    /// The bytes to send.
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
        /// The peer that it is with.
        peer: PeerId,
        /// Its keys, handed out this once. They are wiped where they lie: moving them would leave copies behind.
        session: Box<SessionKeys>,
    },
    /// Send on this session from now on, and on no other of this peer.
    SessionPromoted {
        /// The peer that it is with.
        peer: PeerId,
        /// Our receiver index of the session.
        local_index: u32,
    },
    /// Neither send nor receive on this session any more; drop its keys.
    SessionExpired {
        /// The peer that it was with, which may have been removed meanwhile.
        peer: PeerId,
        /// Our receiver index of the session.
        local_index: u32,
    },
    /// Send an empty packet on the current session. After a handshake that we initiated it tells the responder that the
    /// session works; in that case any other packet sent at once will do as well.
    SendKeepalive {
        /// The peer to send it to.
        peer: PeerId,
    },
    /// An authenticated packet came from a new address of the peer, or to a different address of ours: from now on,
    /// send between these two.
    EndpointChanged {
        /// The peer that has moved.
        peer: PeerId,
        /// The new endpoint.
        endpoint: Endpoint,
    },
    /// An initiation was not answered in time, and nothing authentic has come from the peer for 15 s, or ever: it may
    /// have to be reached at another endpoint. The event comes again with each retry, about every 5 s. An initiation is
    /// under way to the present endpoint; after [`set_endpoint`](crate::Gateway::set_endpoint),
    /// [`handle_path`](crate::Gateway::handle_path) sends one to the new endpoint too.
    PathSilent {
        /// The peer that does not answer.
        peer: PeerId,
    },
    /// The peer initiated a handshake with a suite that it may not use here. It was not answered, and will not be until
    /// one of the two sites changes its configuration.
    SuiteRefused {
        /// The peer that initiated it.
        peer: PeerId,
        /// The suite that it tried.
        suite: Suite,
    },
    /// There was no answer for 90 s: packets that wait for a session may be dropped.
    HandshakeGaveUp {
        /// The peer that does not answer.
        peer: PeerId,
    },
}

/// How much has been sent on a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Messages, which is also the next counter value.
    pub messages: u64,
    /// Blocks, if the suite limits them: see [`REKEY_AFTER_BLOCKS`](crate::constants::REKEY_AFTER_BLOCKS).
    pub blocks: u64,
}

/// A peer's traffic since the last report. Only authentic packets count as received; "any" includes keepalives, "data"
/// does not.
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
    /// `bytes` must be a handshake message, and so at most 148 bytes.
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
