//! The steering decision. A frame goes to a socket only when it is certain that the data plane can handle it;
//! everything else passes to the kernel, with a name for the reason.

use crate::frame::{self, Unread};
use crate::ip::{self, Ip};
use crate::maps::{AddressKey, LanConfig, OWN_SUBNET, OuterFamily, WanConfig};
use crate::verdict::{LanVerdict, WanVerdict};

/// The shortest transport message, a keepalive, in bytes: header (16) and tag (16). WireGuard
/// paper, section 5.4.6.
pub const TRANSPORT_MIN_LEN: usize = 32;

const UDP_LEN: usize = 8;
const TRANSPORT_TYPE: [u8; 4] = [4, 0, 0, 0];

/// Decides about a frame received on the WAN: WireGuard transport data to our port at one of our
/// addresses is redirected.
///
/// `is_local` says whether an address is ours. Checksums are not checked: the AEAD authenticates the payload, and a
/// corrupt header can at most lose a packet that is lost anyway.
#[inline(always)]
pub fn steer_wan<'a, U: Unread<'a>>(
    frame: U,
    config: &WanConfig,
    is_local: impl FnOnce(AddressKey) -> bool,
) -> WanVerdict {
    let Some(ethernet) = frame::parse(frame) else {
        return WanVerdict::Truncated;
    };
    let ip = match ip::parse(&ethernet) {
        Ok(ip) => ip,
        Err(reason) => return reason.into(),
    };
    if ip.is_fragment {
        return WanVerdict::Fragment;
    }
    match ip.protocol {
        ip::UDP => steer_udp(ip, config, is_local),
        // IPv4 has none of these: there the numbers are ordinary protocols.
        next_header if ip.is_v6() && ip::is_extension(next_header) => WanVerdict::Extension,
        _ => WanVerdict::NotUdp,
    }
}

#[inline(always)]
fn steer_udp<'a, U: Unread<'a>>(
    ip: Ip<U>,
    config: &WanConfig,
    is_local: impl FnOnce(AddressKey) -> bool,
) -> WanVerdict {
    if ip.payload_len < UDP_LEN {
        return WanVerdict::BadLength;
    }
    let Some((udp, payload)) = ip.payload.take::<UDP_LEN>() else {
        return WanVerdict::Truncated;
    };
    if u16::from_be_bytes([udp[2], udp[3]]) != config.port {
        return WanVerdict::OtherPort;
    }
    if !is_local(ip.destination) {
        return WanVerdict::OtherAddress;
    }
    if usize::from(u16::from_be_bytes([udp[4], udp[5]])) != ip.payload_len {
        return WanVerdict::BadLength;
    }
    if ip.payload_len < UDP_LEN + TRANSPORT_MIN_LEN {
        return WanVerdict::TooShort;
    }
    match payload.take::<4>() {
        Some((&TRANSPORT_TYPE, _)) => WanVerdict::Redirect,
        Some(_) => WanVerdict::OtherType,
        None => WanVerdict::Truncated,
    }
}

/// Decides about a frame received on a LAN: IP packets to our MAC address, from this site's subnets and to a remote
/// prefix, are redirected, with the room in front of them that the peer's endpoint needs.
///
/// `route` finds the longest prefix that covers an address and returns its value in
/// [`PREFIXES`](crate::PREFIXES).
#[inline(always)]
pub fn steer_lan<'a, U: Unread<'a>>(
    frame: U,
    config: &LanConfig,
    route: impl Fn(AddressKey) -> Option<u32>,
) -> LanVerdict {
    let Some(ethernet) = frame::parse(frame) else {
        return LanVerdict::Truncated;
    };
    if ethernet.destination[0] & 1 != 0 {
        return LanVerdict::Multicast;
    }
    if *ethernet.destination != config.mac {
        return LanVerdict::OtherMac;
    }
    let ip = match ip::parse(&ethernet) {
        Ok(ip) => ip,
        Err(reason) => return reason.into(),
    };
    if ip.is_v6() && ip.protocol == ip::HOP_BY_HOP {
        return LanVerdict::HopByHop;
    }
    if ip.is_multicast() {
        return LanVerdict::Multicast;
    }
    if !ip.is_forwardable() {
        return LanVerdict::NotForwardable;
    }
    let Some(outer) = route(ip.destination).and_then(OuterFamily::from_shift) else {
        return LanVerdict::NotRemote;
    };
    if route(ip.source) != Some(OWN_SUBNET) {
        return LanVerdict::OtherSource;
    }
    if ip.total_len > usize::from(config.link_mtu) {
        return LanVerdict::Merged;
    }
    if ip.is_fragment || ip.is_v6() && ip.protocol == ip::FRAGMENT {
        return LanVerdict::Fragment;
    }
    if ip.may_fragment && ip.total_len > usize::from(config.tunnel_mtu) {
        return LanVerdict::NeedsFragmenting;
    }
    match outer {
        OuterFamily::V4 => LanVerdict::RedirectOverV4,
        OuterFamily::V6 => LanVerdict::RedirectOverV6,
    }
}

impl LanVerdict {
    /// The family of the outer packet if the verdict is to redirect.
    #[inline(always)]
    pub const fn outer(self) -> Option<OuterFamily> {
        match self {
            Self::RedirectOverV4 => Some(OuterFamily::V4),
            Self::RedirectOverV6 => Some(OuterFamily::V6),
            _ => None,
        }
    }
}
