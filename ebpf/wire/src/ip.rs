//! The IP header, reduced to what steering asks of it; one shape for both families.

use crate::frame::{EtherType, Ethernet, Unread};
use crate::maps::{AddressKey, FAMILY_V6, address_key_v4, address_key_v6};
use crate::verdict::Unparsed;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = IPV6_START_LEN + 2 * 16;
/// Up to the addresses.
const IPV6_START_LEN: usize = 8;
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV4_FRAGMENT: u16 = 0x2000 | 0x1fff;

/// Next header values (IANA "Protocol Numbers").
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// An IPv4 or IPv6 header whose lengths agree with the frame.
#[derive(Clone, Copy)]
pub(crate) struct Ip<U> {
    pub(crate) source: AddressKey,
    pub(crate) destination: AddressKey,
    /// Protocol (IPv4) or next header (IPv6).
    pub(crate) protocol: u8,
    /// Part of a fragmented IPv4 packet; IPv6 fragments show as an extension header.
    pub(crate) is_fragment: bool,
    /// Whether a router may fragment it: IPv4 without DF.
    pub(crate) may_fragment: bool,
    /// Bytes from the beginning of the IP header to the end of the packet.
    pub(crate) total_len: usize,
    pub(crate) payload: U,
    /// Bytes of the payload, without Ethernet's padding.
    pub(crate) payload_len: usize,
}

/// Reads and checks the IP header behind an Ethernet header.
#[inline(always)]
pub(crate) fn parse<'a, U: Unread<'a>>(ethernet: &Ethernet<'a, U>) -> Result<Ip<U>, Unparsed> {
    if ethernet.vlan != 0 {
        return Err(Unparsed::OtherVlan);
    }
    match ethernet.ethertype {
        EtherType::Ipv4 => parse_v4(ethernet.payload),
        EtherType::Ipv6 => parse_v6(ethernet.payload),
        EtherType::Tag => Err(Unparsed::DoubleTagged),
        EtherType::Other => Err(Unparsed::NotIp),
    }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn parse_v4<'a, U: Unread<'a>>(packet: U) -> Result<Ip<U>, Unparsed> {
    let (header, payload) = packet.take::<IPV4_LEN>().ok_or(Unparsed::Truncated)?;
    match header[0] {
        0x45 => {}
        0x46..=0x4f => return Err(Unparsed::Options),
        _ => return Err(Unparsed::BadVersion),
    }
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total_len < IPV4_LEN || !packet.holds(total_len) {
        return Err(Unparsed::BadLength);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Ok(Ip {
        source: address_key_v4([header[12], header[13], header[14], header[15]]),
        destination: address_key_v4([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        is_fragment: fragment & IPV4_FRAGMENT != 0,
        may_fragment: fragment & IPV4_DONT_FRAGMENT == 0,
        total_len,
        payload,
        payload_len: total_len - IPV4_LEN,
    })
}

/// RFC 8200, section 3.
#[inline(always)]
fn parse_v6<'a, U: Unread<'a>>(packet: U) -> Result<Ip<U>, Unparsed> {
    let (header, rest) = packet.take::<IPV6_START_LEN>().ok_or(Unparsed::Truncated)?;
    let (source, rest) = rest.take::<16>().ok_or(Unparsed::Truncated)?;
    let (destination, payload) = rest.take::<16>().ok_or(Unparsed::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Unparsed::BadVersion);
    }
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if !packet.holds(IPV6_LEN + payload_len) {
        return Err(Unparsed::BadLength);
    }
    Ok(Ip {
        source: address_key_v6(*source),
        destination: address_key_v6(*destination),
        protocol: header[6],
        is_fragment: false,
        may_fragment: false,
        total_len: IPV6_LEN + payload_len,
        payload,
        payload_len,
    })
}

impl<U> Ip<U> {
    #[inline(always)]
    pub(crate) fn is_v6(&self) -> bool {
        self.destination[0] == FAMILY_V6
    }

    /// Multicast (RFC 1112, RFC 4291) or IPv4's limited broadcast.
    #[inline(always)]
    pub(crate) fn is_multicast(&self) -> bool {
        let [_, first, ..] = self.destination;
        let [a, ..] = first.to_ne_bytes();
        if self.is_v6() { a == 0xff } else { a & 0xf0 == 0xe0 || first == u32::MAX }
    }

    /// Whether a router may forward to the destination (RFC 6890): not unspecified, loopback or
    /// link-local.
    #[inline(always)]
    pub(crate) fn is_forwardable(&self) -> bool {
        let [_, first, second, third, fourth] = self.destination;
        let [a, b, ..] = first.to_ne_bytes();
        if !self.is_v6() {
            return a != 0 && a != 127 && (a, b) != (169, 254);
        }
        let is_unspecified_or_loopback = first | second | third == 0 && u32::from_be(fourth) <= 1;
        let is_link_local = a == 0xfe && b & 0xc0 == 0x80;
        !is_unspecified_or_loopback && !is_link_local
    }
}

/// Whether the number is an IPv6 extension header (IANA "IPv6 Extension Header Types"): hop-by-hop,
/// routing, fragment, ESP, AH, destination options, mobility, HIP, shim6, and the experimental two.
#[inline(always)]
pub(crate) fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254)
}
