//! The only reader of IP headers, and what steering needs from them; one shape for both families.

use crate::frame::{EtherType, Ethernet, Unread};
use crate::maps::{AddressKey, FAMILY_V6, address_key_v4, address_key_v6};
use crate::verdict::Unparsed;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = IPV6_START_LEN + 2 * 16;
/// Up to the addresses.
const IPV6_START_LEN: usize = 8;
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV4_FRAGMENT: u16 = 0x2000 | IPV4_OFFSET;
const IPV4_OFFSET: u16 = 0x1fff;

/// Next header values (IANA "Protocol Numbers").
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// A header without options whose lengths agree with the frame.
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

/// The fixed header of an IP packet, as received; its values are not compared with the frame.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader<A, U> {
    /// Its source.
    pub source: A,
    /// Its destination.
    pub destination: A,
    /// Bytes of the header: IPv4's with its options, IPv6's without extension headers.
    pub len: usize,
    /// Bytes of the packet; not less than `len`.
    pub total_len: usize,
    /// IPv4's protocol or IPv6's next header.
    pub protocol: u8,
    /// Traffic class: DSCP and ECN.
    pub tos: u8,
    /// IPv4's flags and fragment offset; for IPv6, which has them in an extension header, "don't fragment".
    pub fragment: u16,
    /// What follows the fixed part: IPv4's options first.
    pub rest: U,
}

impl<A, U> IpHeader<A, U> {
    /// Reads the header of either family; `A` is the type of the addresses.
    ///
    /// # Errors
    /// The packet ends inside it, is of another version, or contradicts itself.
    #[inline]
    pub fn read<'a>(packet: U) -> Result<Self, Unparsed>
    where
        A: From<[u8; 4]> + From<[u8; 16]>,
        U: Unread<'a>,
    {
        let (first, _) = packet.take::<1>().ok_or(Unparsed::Truncated)?;
        match first[0] >> 4 {
            4 => Self::read_v4(packet),
            6 => Self::read_v6(packet),
            _ => Err(Unparsed::BadVersion),
        }
    }

    /// RFC 791, section 3.1.
    #[inline(always)]
    fn read_v4<'a>(packet: U) -> Result<Self, Unparsed>
    where
        A: From<[u8; 4]>,
        U: Unread<'a>,
    {
        let (header, rest) = packet.take::<IPV4_LEN>().ok_or(Unparsed::Truncated)?;
        let len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || len < IPV4_LEN {
            return Err(Unparsed::BadVersion);
        }
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if total_len < len {
            return Err(Unparsed::BadLength);
        }
        Ok(Self {
            source: A::from([header[12], header[13], header[14], header[15]]),
            destination: A::from([header[16], header[17], header[18], header[19]]),
            len,
            total_len,
            protocol: header[9],
            tos: header[1],
            fragment: u16::from_be_bytes([header[6], header[7]]),
            rest,
        })
    }

    /// RFC 8200, section 3.
    #[inline(always)]
    fn read_v6<'a>(packet: U) -> Result<Self, Unparsed>
    where
        A: From<[u8; 16]>,
        U: Unread<'a>,
    {
        let (header, rest) = packet.take::<IPV6_START_LEN>().ok_or(Unparsed::Truncated)?;
        let (source, rest) = rest.take::<16>().ok_or(Unparsed::Truncated)?;
        let (destination, rest) = rest.take::<16>().ok_or(Unparsed::Truncated)?;
        if header[0] >> 4 != 6 {
            return Err(Unparsed::BadVersion);
        }
        Ok(Self {
            source: A::from(*source),
            destination: A::from(*destination),
            len: IPV6_LEN,
            total_len: IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]])),
            protocol: header[6],
            tos: header[0] << 4 | header[1] >> 4,
            fragment: IPV4_DONT_FRAGMENT,
            rest,
        })
    }

    /// Whether a router may fragment the packet: IPv4 without DF.
    #[inline(always)]
    pub fn may_fragment(&self) -> bool {
        self.fragment & IPV4_DONT_FRAGMENT == 0
    }

    /// Whether it is part of a fragmented IPv4 packet.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment & IPV4_FRAGMENT != 0
    }

    /// In units of eight bytes, where in the whole IPv4 packet this fragment was.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u16 {
        self.fragment & IPV4_OFFSET
    }
}

/// An address as steering looks it up.
struct Key(AddressKey);

impl From<[u8; 4]> for Key {
    #[inline(always)]
    fn from(octets: [u8; 4]) -> Self {
        Self(address_key_v4(octets))
    }
}

impl From<[u8; 16]> for Key {
    #[inline(always)]
    fn from(octets: [u8; 16]) -> Self {
        Self(address_key_v6(octets))
    }
}

/// Reads and checks the IP header behind an Ethernet header.
#[inline(always)]
pub(crate) fn parse<'a, U: Unread<'a>>(ethernet: &Ethernet<'a, U>) -> Result<Ip<U>, Unparsed> {
    if ethernet.vlan != 0 {
        return Err(Unparsed::OtherVlan);
    }
    let packet = ethernet.payload;
    let header = match ethernet.ethertype {
        EtherType::Ipv4 => IpHeader::<Key, U>::read_v4(packet)?,
        EtherType::Ipv6 => IpHeader::<Key, U>::read_v6(packet)?,
        EtherType::Tag => return Err(Unparsed::DoubleTagged),
        EtherType::Other => return Err(Unparsed::NotIp),
    };
    if ethernet.ethertype == EtherType::Ipv4 && header.len > IPV4_LEN {
        return Err(Unparsed::Options);
    }
    if !packet.holds(header.total_len) {
        return Err(Unparsed::BadLength);
    }
    Ok(Ip {
        source: header.source.0,
        destination: header.destination.0,
        protocol: header.protocol,
        is_fragment: header.is_fragment(),
        may_fragment: header.may_fragment(),
        total_len: header.total_len,
        payload: header.rest,
        payload_len: header.total_len - header.len,
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
    matches!(next_header, HOP_BY_HOP | 43 | FRAGMENT | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254)
}
