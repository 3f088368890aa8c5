//! WireGuard's cross-platform userspace API (wireguard.com/xplatform), by which the `wg` tool sees
//! and changes a running gateway: a text protocol over a Unix socket.
//!
//! [`parse`] and [`format`] are the protocol without I/O, [`socket`] serves it. The gateway answers
//! [`Request`]s; it owns the state that they show and change.

mod format;
mod parse;
pub mod socket;

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::oneshot;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

pub use format::{format_errno, format_get};
pub use parse::{Parser, Progress, parse};

/// Longest line of a request; the longest sound one is a key with its name.
pub const LINE_LIMIT: usize = 256;
/// Longest request: several thousand peers with all they can have.
pub const REQUEST_LIMIT: usize = 4 << 20;
/// Peers named in a request.
pub const PEER_LIMIT: usize = 4096;
/// Allowed IPs named in a request.
pub const ALLOWED_IP_LIMIT: usize = 65_536;

/// What the gateway is asked over the socket. A dropped `reply` is answered as [`Errno::Io`].
#[derive(Debug)]
pub enum Request {
    /// `get=1`: show the device.
    Get {
        /// For the answer.
        reply: oneshot::Sender<Result<Device, Errno>>,
    },
    /// `set=1`: change the device.
    Set {
        /// To what, in this order: device fields, `replace_peers`, the peers one by one.
        change: SetDevice,
        /// For the outcome.
        reply: oneshot::Sender<Result<(), Errno>>,
    },
}

/// What a request asks for.
#[derive(Debug, PartialEq)]
pub enum Operation {
    /// `get=1`.
    Get,
    /// `set=1`.
    Set(SetDevice),
}

/// A field that can be left alone, taken away or given a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// As it was.
    #[default]
    Keep,
    /// None from now on.
    Clear,
    /// This from now on.
    To(T),
}

/// Changes of the device.
#[derive(Debug, Default, PartialEq)]
pub struct SetDevice {
    /// Our private key.
    pub private_key: Change<PrivateKey>,
    /// The UDP port; 0 asks for a random one.
    pub listen_port: Option<u16>,
    /// The mark of outer packets; 0 for none.
    pub fwmark: Option<u32>,
    /// All peers that were there go first.
    pub replace_peers: bool,
    /// Peers, in the order of the request; one may occur several times.
    pub peers: Vec<SetPeer>,
}

/// Changes of a peer, who is added unless there or `update_only`.
#[derive(Debug, PartialEq)]
pub struct SetPeer {
    /// Who.
    pub public_key: PublicKey,
    /// The peer goes; nothing else matters then.
    pub remove: bool,
    /// Only if the peer is there.
    pub update_only: bool,
    /// The preshared key.
    pub preshared_key: Change<PresharedKey>,
    /// Where the peer is.
    pub endpoint: Option<SocketAddr>,
    /// Interval of keepalives.
    pub persistent_keepalive: Change<Duration>,
    /// All allowed IPs that were there go first.
    pub replace_allowed_ips: bool,
    /// Allowed IPs that come or go, in this order.
    pub allowed_ips: Vec<SetAllowedIp>,
}

/// An allowed IP that comes (taken from the peer who has it) or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAllowedIp {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// It goes, if the peer has it.
    pub remove: bool,
}

/// The device as `get` shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// Our private key.
    pub private_key: Option<PrivateKey>,
    /// The UDP port; 0: none yet.
    pub listen_port: u16,
    /// The mark of outer packets; 0 for none.
    pub fwmark: u32,
    /// The peers.
    pub peers: Vec<PeerState>,
}

/// A peer as `get` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerState {
    /// Who.
    pub public_key: PublicKey,
    /// The preshared key.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer was last heard or is expected.
    pub endpoint: Option<SocketAddr>,
    /// Time of the last handshake since the epoch.
    pub last_handshake: Option<Duration>,
    /// Bytes of WireGuard messages received.
    pub rx_bytes: u64,
    /// Bytes of WireGuard messages sent.
    pub tx_bytes: u64,
    /// Interval of keepalives.
    pub persistent_keepalive: Option<Duration>,
    /// What the peer may send and is sent.
    pub allowed_ips: Vec<IpNet>,
}

/// Why a request failed, by Linux' number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: not allowed by the profile.
    NotPermitted = 1,
    /// EIO: the gateway could not.
    Io = 5,
    /// EINVAL: a value or its place is wrong.
    Invalid = 22,
    /// EPROTO: a key is unknown or the text is no request.
    Protocol = 71,
    /// EMSGSIZE: a limit of this file.
    TooLarge = 90,
    /// EOPNOTSUPP: not in this version.
    NotSupported = 95,
    /// EADDRINUSE: the port is taken.
    AddressInUse = 98,
}

#[cfg(test)]
mod tests;
