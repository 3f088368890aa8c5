//! The BPF maps: their names, sizes, keys and values, for both sides of the kernel.
//!
//! User space writes all of them but the counters; the programs only read the others.

use core::net::IpAddr;

/// The program for the WAN interface.
pub const WAN_PROGRAM: &str = "penstock_wan";
/// The program for a LAN interface.
pub const LAN_PROGRAM: &str = "penstock_lan";
/// The benchmark's program for a sink of UDP.
pub const BENCH_UDP_PROGRAM: &str = "penstock_bench_udp";
/// The benchmark's program for a forwarder of IP.
pub const BENCH_IP_PROGRAM: &str = "penstock_bench_ip";

/// XSKMAP, receive queue to AF_XDP socket.
pub const SOCKETS: &str = "SOCKETS";
/// Per-CPU array of `u64`, indexed by the verdict's [`index`](crate::WanVerdict::index).
pub const COUNTERS: &str = "COUNTERS";
/// Per-CPU array of `u64`, indexed by receive queue: frames redirected to its socket.
pub const REDIRECTED: &str = "REDIRECTED";
/// Array of one [`WanConfig`].
pub const WAN_CONFIG: &str = "WAN_CONFIG";
/// Array of one [`LanConfig`].
pub const LAN_CONFIG: &str = "LAN_CONFIG";
/// Hash of our WAN addresses, [`AddressKey`] to `u8`; the value means nothing.
pub const LOCAL: &str = "LOCAL";
/// LPM trie of [`AddressKey`] to `u32`: an [`OuterFamily::shift`], [`STAYS_LOCAL`] or [`OWN_SUBNET`].
pub const PREFIXES: &str = "PREFIXES";

/// Receive queues that can have a socket; frames of any others pass to the kernel.
pub const MAX_QUEUES: u32 = 256;
/// Our own addresses on the WAN.
pub const MAX_LOCAL: u32 = 1024;
/// Remote and local prefixes together.
pub const MAX_PREFIXES: u32 = 65_536;
/// Slots in [`COUNTERS`]; at least the verdicts of the side that has more of them.
pub const COUNTER_SLOTS: u32 = 32;

const _: () = assert!(crate::WanVerdict::ALL.len() <= COUNTER_SLOTS as usize);
const _: () = assert!(crate::LanVerdict::ALL.len() <= COUNTER_SLOTS as usize);

/// What the WAN program compares with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WanConfig {
    /// The tunnel's UDP port, in host byte order.
    pub port: u16,
}

/// What a LAN program compares with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanConfig {
    /// The interface's own MAC address.
    pub mac: [u8; 6],
    /// The longest IP packet that fits the tunnel, in bytes.
    pub tunnel_mtu: u16,
    /// The longest IP packet that the link carries, in bytes.
    pub link_mtu: u16,
}

/// An IP address as a map key: a word that tells the family, then 16 bytes of address in network
/// order, IPv4 padded with zeros. It is made of words because the programs then move five values
/// instead of twenty.
///
/// The families are kept apart because a v4-mapped IPv4 address would match an IPv6 default route.
pub type AddressKey = [u32; 5];

pub(crate) const FAMILY_V4: u32 = u32::from_le(4);
pub(crate) const FAMILY_V6: u32 = u32::from_le(6);

/// The key for an address.
pub const fn address_key(address: IpAddr) -> AddressKey {
    match address {
        IpAddr::V4(address) => address_key_v4(address.octets()),
        IpAddr::V6(address) => address_key_v6(address.octets()),
    }
}

#[inline(always)]
pub(crate) const fn address_key_v4(octets: [u8; 4]) -> AddressKey {
    [FAMILY_V4, u32::from_ne_bytes(octets), 0, 0, 0]
}

#[inline(always)]
pub(crate) const fn address_key_v6(o: [u8; 16]) -> AddressKey {
    [
        FAMILY_V6,
        u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
        u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
        u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
        u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
    ]
}

/// The length in bits of an LPM key for a whole address.
pub const ADDRESS_BITS: u32 = prefix_bits(128);

/// The length in bits of an LPM key for a prefix of `len` bits: the family counts too.
pub const fn prefix_bits(len: u8) -> u32 {
    u32::BITS + len as u32
}

/// The family of the packets that carry the tunnel to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OuterFamily {
    /// The peer's endpoint is an IPv4 address.
    V4,
    /// The peer's endpoint is an IPv6 address.
    V6,
}

impl OuterFamily {
    /// Bytes to prepend to a LAN frame so that the outer headers fit exactly in front of an inner
    /// packet behind an untagged Ethernet header: the outer IP header, UDP (8) and WireGuard (16).
    /// The outer Ethernet header takes the place of the inner one.
    pub const fn shift(self) -> u32 {
        match self {
            Self::V4 => 20 + 8 + 16,
            Self::V6 => 40 + 8 + 16,
        }
    }

    /// The family that has this [`shift`](Self::shift).
    #[inline(always)]
    pub const fn from_shift(shift: u32) -> Option<Self> {
        match shift {
            44 => Some(Self::V4),
            64 => Some(Self::V6),
            _ => None,
        }
    }
}

/// The value in [`PREFIXES`] for a prefix that the kernel keeps although a remote one covers it:
/// the gateway's own addresses under a remote default route.
pub const STAYS_LOCAL: u32 = 0;
/// The value in [`PREFIXES`] for a subnet of this site: packets for it stay with the kernel, and only what comes from
/// one is redirected.
pub const OWN_SUBNET: u32 = 1;

/// The largest number of bytes that are prepended.
pub const MAX_SHIFT: usize = OuterFamily::V6.shift() as usize;

/// Bytes of the mark that the LAN program leaves at the beginning of a redirected frame: the shift,
/// a little-endian `u16`. What follows, up to the Ethernet header, is undefined.
pub const SHIFT_LEN: usize = 2;

/// Where the Ethernet header begins in a frame that the LAN program redirected, in bytes.
///
/// `None` when the frame doesn't begin with the mark of a known shift or ends before the Ethernet
/// header does; the LAN program redirects no such frame.
pub fn ethernet_offset(frame: &[u8]) -> Option<usize> {
    let mark = frame.first_chunk::<SHIFT_LEN>()?;
    let shift = u32::from(u16::from_le_bytes(*mark));
    OuterFamily::from_shift(shift)?;
    let offset = shift as usize;
    (frame.len() >= offset + crate::ETHERNET_LEN).then_some(offset)
}
