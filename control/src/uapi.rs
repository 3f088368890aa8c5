//! WireGuard's cross-platform userspace API (wireguard.com/xplatform), with which the `wg` tool shows and changes a
//! running gateway: a text protocol over a Unix socket.
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

/// Longest line of a request; the longest valid one is a key with its name.
pub const LINE_LIMIT: usize = 256;
/// Longest request: several thousand peers with everything they can have.
pub const REQUEST_LIMIT: usize = 4 << 20;
/// Peers named in a request.
pub const PEER_LIMIT: usize = 4096;
/// Allowed IPs named in a request.
pub const ALLOWED_IP_LIMIT: usize = 65_536;

/// A request to the gateway from the socket. A dropped `reply` is answered as [`Errno::Io`].
#[derive(Debug)]
pub enum Request {
    /// `get=1`: show the device.
    Get {
        /// Takes the answer.
        reply: oneshot::Sender<Result<Device, Errno>>,
    },
    /// `set=1`: change the device.
    Set {
        /// The changes, in this order: device fields, `replace_peers`, the peers one by one.
        change: SetDevice,
        /// Takes the outcome.
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

/// A field that can be left alone, cleared or set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Unchanged.
    #[default]
    Keep,
    /// Cleared.
    Clear,
    /// Set to this.
    To(T),
}

/// Changes of the device.
#[derive(Debug, Default, PartialEq)]
pub struct SetDevice {
    /// Our private key.
    pub private_key: Change<PrivateKey>,
    /// The UDP port; 0 asks for a random one.
    pub listen_port: Option<u16>,
    /// The mark of outer packets; 0 for no mark.
    pub fwmark: Option<u32>,
    /// Whether all existing peers are removed first.
    pub replace_peers: bool,
    /// Peers, in the order of the request; one may occur several times.
    pub peers: Vec<SetPeer>,
}

/// Changes of a peer, which is added if it does not exist, unless `update_only` is set.
#[derive(Debug, PartialEq)]
pub struct SetPeer {
    /// Its public key.
    pub public_key: PublicKey,
    /// Whether the peer is removed; nothing else matters then.
    pub remove: bool,
    /// Only if the peer exists.
    pub update_only: bool,
    /// The preshared key.
    pub preshared_key: Change<PresharedKey>,
    /// The peer's endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Interval of persistent keepalives.
    pub persistent_keepalive: Change<Duration>,
    /// Whether all existing allowed IPs are removed first.
    pub replace_allowed_ips: bool,
    /// Allowed IPs that are added or removed, in this order.
    pub allowed_ips: Vec<SetAllowedIp>,
}

/// An allowed IP that is added (and taken from the peer that has it) or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAllowedIp {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// Whether it is removed, if the peer has it.
    pub remove: bool,
}

/// The device as `get` shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// Our private key.
    pub private_key: Option<PrivateKey>,
    /// The UDP port; 0: none yet.
    pub listen_port: u16,
    /// The mark of outer packets; 0 for no mark.
    pub fwmark: u32,
    /// The peers.
    pub peers: Vec<PeerState>,
}

/// A peer as `get` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerState {
    /// Its public key.
    pub public_key: PublicKey,
    /// The preshared key.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer was last heard, or is expected.
    pub endpoint: Option<SocketAddr>,
    /// Time of the last handshake since the epoch.
    pub last_handshake: Option<Duration>,
    /// Bytes of WireGuard messages received.
    pub rx_bytes: u64,
    /// Bytes of WireGuard messages sent.
    pub tx_bytes: u64,
    /// Interval of persistent keepalives.
    pub persistent_keepalive: Option<Duration>,
    /// What is sent to it and accepted from it.
    pub allowed_ips: Vec<IpNet>,
}

/// Why a request failed, as a Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: the profile does not allow it.
    NotPermitted = 1,
    /// EIO: the gateway failed.
    Io = 5,
    /// EINVAL: a value or its position is wrong.
    Invalid = 22,
    /// EPROTO: a key is unknown, or the text is not a request.
    Protocol = 71,
    /// EMSGSIZE: a limit of this file is exceeded.
    TooLarge = 90,
    /// EOPNOTSUPP: this version cannot do it.
    NotSupported = 95,
    /// EADDRINUSE: the port is taken.
    AddressInUse = 98,
}

#[cfg(test)]
mod tests;
