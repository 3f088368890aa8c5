//! The inner packet: the fields of IPv4 and IPv6 that the data plane reads, and the few that it changes.

use std::net::IpAddr;

use penstock_wire::IpHeader;

use crate::checksum;
use crate::drop::DropReason;
use crate::transport::{Transport, transport};

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
/// IPv6's extension header for all routers on the path.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// Offset of the checksum in the header of TCP, and of UDP, UDP-Lite and DCCP.
pub(crate) const TCP_CSUM: usize = 16;
pub(crate) const UDP_CSUM: usize = 6;
pub(crate) const DCCP: u8 = 33;
pub(crate) const UDP_LITE: u8 = 136;
const SCTP: u8 = 132;
pub(crate) const UDP_HEADER: usize = 8;
/// How many levels of packets inside packets are processed.
const TUNNELS: usize = 3;
/// Bytes of a tunnel's headers, behind IP's, in which a carried packet is looked for: those of UDP, Geneve with many
/// options, and Ethernet with two tags.
const TUNNEL_HEADERS: usize = 128;
/// Bytes that may follow a carried packet: Ethernet pads frames.
const PADDING: usize = 46;
/// How many places that look like a carried packet are tried; most of them are not one.
const CANDIDATES: u32 = 16;
/// IPv6's fragment header.
const FRAGMENT_HEADER: u8 = 44;
/// The ECN codepoint that says "congestion experienced"; also the mask of the field.
const ECN_CE: u8 = 0b11;
const ECN_ECT1: u8 = 0b01;

/// What the data plane needs to know about an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Bytes of the packet by its own header.
    pub len: usize,
    /// Bytes of the network header: IPv4 with its options, IPv6 without extension headers.
    pub header: usize,
    /// IPv4's protocol or IPv6's next header.
    pub protocol: u8,
    /// Traffic class: DSCP and ECN.
    pub tos: u8,
    /// Whether it may not be fragmented on the path; always so for IPv6.
    pub unfragmentable: bool,
    /// Whether it is a fragment (for IPv6: with the fragment header directly behind IPv6's own).
    pub fragment: bool,
    /// Whether it is a fragment other than the first (IPv4 only; IPv6's fragment header is not read).
    pub later_fragment: bool,
}

impl Inner {
    /// Reads the header, checking that the packet holds what the header says.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        Self::parse_header(packet).filter(|inner| packet.len() >= inner.len)
    }

    /// Reads the header of a packet that may be truncated.
    #[inline]
    pub fn parse_header(packet: &[u8]) -> Option<Self> {
        let ip = IpHeader::<IpAddr, _>::read(packet).ok()?;
        Some(Self {
            source: ip.source,
            destination: ip.destination,
            len: ip.total_len,
            header: ip.len,
            protocol: ip.protocol,
            tos: ip.tos,
            unfragmentable: !ip.may_fragment(),
            fragment: ip.is_fragment() || (packet[0] >> 4 == 6 && ip.protocol == FRAGMENT_HEADER),
            later_fragment: ip.fragment_offset() != 0,
        })
    }

    /// Whether a router has to drop it: TTL or hop limit would run out.
    #[inline]
    pub(crate) fn is_at_end(&self, packet: &[u8]) -> bool {
        packet[if self.source.is_ipv4() { 8 } else { 7 }] <= 1
    }

    /// Whether every router on the path has to read its options: IPv4's, or IPv6's hop by hop.
    #[inline]
    pub(crate) fn has_router_options(&self) -> bool {
        match self.source {
            IpAddr::V4(_) => self.header > IPV4_HEADER,
            IpAddr::V6(_) => self.protocol == HOP_BY_HOP,
        }
    }
}

/// Whether IPv4's header checksum is right, which every router checks (RFC 1812, section 5.2.2).
#[inline]
pub(crate) fn has_intact_header(packet: &[u8]) -> bool {
    match packet.first_chunk::<IPV4_HEADER>() {
        Some(header) if header[0] == 0x45 => checksum::fold(checksum::sum(header)) == 0xffff,
        // IPv6 has none, and packets with options go to the kernel.
        _ => true,
    }
}

/// Decrements the TTL or hop limit of a packet that [`Inner::parse`] has read.
///
/// # Errors
/// [`DropReason::HopLimit`] when this would bring it to zero.
#[inline]
pub fn take_hop(packet: &mut [u8]) -> Result<(), DropReason> {
    if packet[0] >> 4 == 4 {
        if packet[8] <= 1 {
            return Err(DropReason::HopLimit);
        }
        let old = u16::from_be_bytes([packet[8], packet[9]]);
        packet[8] -= 1;
        adjust(packet, 10, old, old - 0x100);
    } else {
        if packet[7] <= 1 {
            return Err(DropReason::HopLimit);
        }
        packet[7] -= 1;
    }
    Ok(())
}

/// The outer traffic class for an inner one: RFC 6040's normal mode copies ECN. DSCP stays inside unless asked for, so
/// that networks on the path do not learn the kinds of traffic (RFC 2983, section 3.1).
#[inline]
pub fn outer_tos(inner: u8, copy_dscp: bool) -> u8 {
    if copy_dscp { inner } else { inner & ECN_CE }
}

/// Merges the outer ECN field into the packet as RFC 6040 section 4.2 says.
///
/// # Errors
/// [`DropReason::Congestion`] where it says to drop.
#[inline]
pub fn merge_ecn(packet: &mut [u8], tos: u8, outer: u8) -> Result<(), DropReason> {
    let merged = match (tos & ECN_CE, outer & ECN_CE) {
        (0, ECN_CE) => return Err(DropReason::Congestion),
        (0, _) | (ECN_CE, _) => return Ok(()),
        (_, ECN_CE) => ECN_CE,
        (_, ECN_ECT1) => ECN_ECT1,
        _ => return Ok(()),
    };
    let tos = tos & !ECN_CE | merged;
    if packet[0] >> 4 == 4 {
        let old = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] = tos;
        adjust(packet, 10, old, u16::from_be_bytes([packet[0], tos]));
    } else {
        packet[0] = 0x60 | tos >> 4;
        packet[1] = packet[1] & 0x0f | tos << 4;
    }
    Ok(())
}

/// Completes the checksum of TCP, UDP or SCTP if its sender has left that to the network device, also inside a tunnel
/// of the sender's own. The field then holds only the sum of the pseudo-header, or zero for SCTP. Containers and
/// virtual machines on this host do so, and so does the kernel with merged packets. A complete checksum that happens to
/// equal that sum stays as it is.
#[inline]
pub fn complete_checksum(packet: &mut [u8]) {
    complete(packet, TUNNELS, &mut { CANDIDATES });
}

/// Completes the checksums of a packet, and of one that it carries, down to `levels` packets; returns whether there was
/// one to complete. `candidates` is how many possible carried packets may still be tried.
fn complete(packet: &mut [u8], levels: usize, candidates: &mut u32) -> bool {
    let Some(inner) = Inner::parse(packet) else { return false };
    let packet = &mut packet[..inner.len];
    let behind = transport(packet, inner.header).filter(|behind| behind.fragment.is_none());
    let Some(Transport { protocol, payload, last_destination, .. }) = behind else { return false };
    let (at, len) = (inner.len - payload.len(), payload.len());
    let field = match protocol {
        TCP => Some(at + TCP_CSUM),
        UDP => Some(at + UDP_CSUM),
        SCTP => return checksum::complete_sctp(&mut packet[at..]),
        ICMP | ICMPV6 => return false,
        // No checksum, or none that is left to a device.
        _ => None,
    };
    let mut completed = false;
    if let Some(field) = field {
        let pseudo = match (inner.source, last_destination) {
            (IpAddr::V4(_), _) => checksum::pseudo_header(&packet[12..20], protocol, len),
            (_, None) => checksum::pseudo_header(&packet[8..40], protocol, len),
            (_, Some(last)) => checksum::pseudo_header(&[&packet[8..24], last].concat(), protocol, len),
        };
        if packet.get(field..field + 2).is_some_and(|sum| *sum == checksum::fold(pseudo).to_be_bytes()) {
            checksum::complete(packet, at, field);
            completed = true;
        }
    }
    if protocol == TCP || levels == 1 {
        return completed;
    }
    // There are many kinds of tunnels (IP in IP, GRE, VXLAN and Geneve at any port, FOU, L2TP, …), with headers that
    // cannot be told apart over UDP. So the carried packet is searched for: every place that looks like an IP packet of
    // the right length is tried, until a checksum has been completed.
    for place in (at..packet.len().min(at + TUNNEL_HEADERS)).step_by(2) {
        if looks_like_a_packet(&packet[place..]) {
            if *candidates == 0 {
                break;
            }
            *candidates -= 1;
            if complete(&mut packet[place..], levels - 1, candidates) {
                return true;
            }
        }
    }
    completed
}

/// Whether these bytes may be an IP packet and the padding of its frame. For IPv4, the header's checksum must be right
/// as well.
#[inline]
fn looks_like_a_packet(bytes: &[u8]) -> bool {
    matches!(bytes[0], 0x45..=0x4f | 0x60..=0x6f)
        && Inner::parse(bytes).is_some_and(|inner| {
            bytes.len() - inner.len <= PADDING
                && (inner.source.is_ipv6() || checksum::fold(checksum::sum(&bytes[..inner.header])) == 0xffff)
        })
}

/// Lowers the maximum segment size that a TCP SYN offers to what fits the tunnel.
#[inline]
pub fn clamp_mss(packet: &mut [u8], inner: &Inner, mtu: usize) {
    if inner.protocol != TCP || inner.later_fragment {
        return;
    }
    let Some(tcp) = packet.get_mut(inner.header..inner.len) else { return };
    if tcp.len() < 20 || tcp[13] & 0x02 == 0 {
        return;
    }
    let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let limit = (mtu - inner.header.min(mtu)).saturating_sub(20).min(0xffff) as u16;
    let mut at = 20;
    while at + 1 < end {
        match (tcp[at], usize::from(tcp[at + 1])) {
            (0, _) => return,
            (1, _) => at += 1,
            (2, 4) if at + 4 <= end => {
                let offered = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                if offered > limit {
                    // The option may be at an odd offset, so the sum is adjusted byte by byte.
                    for (i, new) in limit.to_be_bytes().into_iter().enumerate() {
                        let place = at + 2 + i;
                        let word = |byte: u8| if place % 2 == 0 { u16::from(byte) << 8 } else { u16::from(byte) };
                        let old = word(tcp[place]);
                        tcp[place] = new;
                        adjust(tcp, 16, old, word(new));
                    }
                }
                return;
            }
            (_, len) if len >= 2 => at += len,
            _ => return,
        }
    }
}

/// Updates the checksum at `at` for a word of its data that changed.
#[inline]
pub(crate) fn adjust(data: &mut [u8], at: usize, old: u16, new: u16) {
    let checksum = checksum::update(u16::from_be_bytes([data[at], data[at + 1]]), old, new);
    data[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::random::xorshift;

    /// An IPv4 or IPv6 packet by the addresses' family, checksums right.
    pub(crate) fn packet(source: &str, destination: &str, protocol: u8, tos: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
        let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let mut p = Vec::new();
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                p.extend_from_slice(&[0x45, tos]);
                p.extend_from_slice(&(20 + payload.len() as u16).to_be_bytes());
                p.extend_from_slice(&[0, 1, 0x40, 0, hops, protocol, 0, 0]);
                p.extend_from_slice(&s.octets());
                p.extend_from_slice(&d.octets());
                let sum = naive(&p);
                p[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                p.extend_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0]);
                p.extend_from_slice(&(payload.len() as u16).to_be_bytes());
                p.extend_from_slice(&[protocol, hops]);
                p.extend_from_slice(&s.octets());
                p.extend_from_slice(&d.octets());
            }
            _ => panic!("mixed families"),
        }
        p.extend_from_slice(payload);
        p
    }

    /// The checksum as RFC 1071 words it.
    pub(crate) fn naive(data: &[u8]) -> u16 {
        let mut sum: u32 = data.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    const PAIRS: [(&str, &str); 2] = [("10.0.0.1", "10.1.0.1"), ("fd00::1", "fd01::1")];

    #[test]
    fn parse_and_every_truncation() {
        for (s, d) in PAIRS {
            let p = packet(s, d, 17, 0xb9, 64, &[1; 30]);
            let inner = Inner::parse(&p).unwrap();
            assert_eq!((inner.source, inner.destination), (s.parse().unwrap(), d.parse().unwrap()));
            assert_eq!((inner.len, inner.protocol, inner.tos), (p.len(), 17, 0xb9));
            for len in 0..p.len() {
                assert_eq!(Inner::parse(&p[..len]), None);
            }
            let padded = [&p[..], &[0; 7]].concat();
            assert_eq!(Inner::parse(&padded), Some(inner));
        }
        assert_eq!(Inner::parse(&[0x50; 40]), None);
        assert_eq!(Inner::parse(&[0x44; 40]), None, "a header shorter than IPv4's");
    }

    #[test]
    fn damage_to_a_header_is_seen() {
        for (s, d) in PAIRS {
            assert!(has_intact_header(&packet(s, d, 17, 0, 3, &[7; 9])));
        }
        let sound = packet("10.0.0.1", "10.1.0.1", 17, 0, 3, &[]);
        for at in 1..IPV4_HEADER {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            assert!(!has_intact_header(&damaged), "{at}");
        }
    }

    #[test]
    fn hops_run_out() {
        for (s, d) in PAIRS {
            let mut p = packet(s, d, 17, 0, 3, &[]);
            assert_eq!(take_hop(&mut p), Ok(()));
            assert_eq!(p, packet(s, d, 17, 0, 2, &[]));
            assert_eq!(take_hop(&mut p), Ok(()));
            assert_eq!(take_hop(&mut p), Err(DropReason::HopLimit));
        }
    }

    /// The table of RFC 6040, figure 4.
    #[test]
    fn ecn_is_merged() {
        let (not, ect0, ect1, ce) = (0, 2, 1, 3);
        for (s, d) in PAIRS {
            for (inner, row) in [
                (not, [Some(not), Some(not), Some(not), None]),
                (ect0, [Some(ect0), Some(ect1), Some(ect0), Some(ce)]),
                (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(ce)]),
                (ce, [Some(ce), Some(ce), Some(ce), Some(ce)]),
            ] {
                for (outer, expected) in [not, ect1, ect0, ce].into_iter().zip(row) {
                    let mut p = packet(s, d, 17, 0xb8 | inner, 9, &[]);
                    let result = merge_ecn(&mut p, 0xb8 | inner, outer | 0x28);
                    match expected {
                        Some(ecn) => assert_eq!((result, p), (Ok(()), packet(s, d, 17, 0xb8 | ecn, 9, &[]))),
                        None => assert_eq!(result, Err(DropReason::Congestion)),
                    }
                }
            }
        }
    }

    #[test]
    fn mss_is_clamped_on_syns_only_and_the_checksum_follows() {
        for (s, d) in PAIRS {
            for nops in 0..3 {
                for (flags, offered, mtu, expected) in [
                    (0x02, 1460, 1420, None),
                    (0x12, 8960, 1420, None),
                    (0x10, 1460, 1420, Some(1460)),
                    (0x02, 500, 1420, Some(500)),
                ] {
                    let mut tcp = vec![0u8; 28];
                    tcp[12] = 7 << 4;
                    tcp[13] = flags;
                    tcp[20..20 + nops].fill(1);
                    tcp[20 + nops..24 + nops].copy_from_slice(&[2, 4, (offered >> 8) as u8, offered as u8]);
                    let sum = naive(&tcp);
                    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
                    let mut p = packet(s, d, TCP, 0, 9, &tcp);
                    let inner = Inner::parse(&p).unwrap();
                    clamp_mss(&mut p, &inner, mtu);
                    let at = inner.header + 20 + nops + 2;
                    let mss = usize::from(u16::from_be_bytes([p[at], p[at + 1]]));
                    assert_eq!(mss, expected.unwrap_or(mtu - inner.header - 20));
                    assert_eq!(naive(&p[inner.header..]), 0);
                }
            }
        }
    }

    #[test]
    fn checksums_left_to_the_device_are_completed_and_no_others() {
        for (s, d) in PAIRS {
            for (protocol, field, min) in [(TCP, 16, 20), (UDP, 6, 8)] {
                for len in [min, min + 1, 1300] {
                    let mut body = vec![0x5a; len];
                    body[field..field + 2].fill(0);
                    let mut complete = packet(s, d, protocol, 0, 9, &body);
                    let inner = Inner::parse(&complete).unwrap();
                    let addresses = if inner.source.is_ipv4() { 12..20 } else { 8..40 };
                    let pseudo = [&complete[addresses], &[0, protocol], &(len as u16).to_be_bytes()].concat();
                    let at = inner.header + field;
                    let mut partial = complete.clone();
                    partial[at..at + 2].copy_from_slice(&(!naive(&pseudo)).to_be_bytes());
                    let sum = naive(&[&pseudo[..], &complete[inner.header..], &[0][..len % 2]].concat());
                    complete[at..at + 2].copy_from_slice(&sum.to_be_bytes());

                    let mut repaired = [&partial[..], &[7; 5]].concat();
                    complete_checksum(&mut repaired);
                    assert_eq!(repaired, [&complete[..], &[7; 5]].concat(), "{s} {protocol} {len}");
                    complete_checksum(&mut complete);
                    assert_eq!(complete[..], repaired[..partial.len()]);
                    // A wrong checksum stays wrong.
                    let mut wrong = complete.clone();
                    wrong[at] ^= 0x80;
                    let before = wrong.clone();
                    complete_checksum(&mut wrong);
                    assert_eq!(wrong, before);
                    if inner.source.is_ipv4() {
                        for (upper, lower) in [(0x20, 0), (0, 1)] {
                            let mut fragment = partial.clone();
                            fragment[6..8].copy_from_slice(&[upper, lower]);
                            let before = fragment.clone();
                            complete_checksum(&mut fragment);
                            assert_eq!(fragment, before);
                        }
                    } else {
                        for count in [1, 8, 20] {
                            let mut options = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count);
                            options[8 * (count - 1)] = protocol;
                            let behind = |p: &[u8]| packet(s, d, 60, 0, 9, &[&options, &p[IPV6_HEADER..]].concat());
                            let mut repaired = behind(&partial);
                            complete_checksum(&mut repaired);
                            assert_eq!(repaired, behind(&complete), "behind {count} headers with destination options");
                        }
                    }
                    for cut in 0..partial.len() {
                        complete_checksum(&mut partial.clone()[..cut]);
                    }
                }
            }
        }
    }

    /// A TCP segment whose checksum is complete, and the same as its sender leaves it to the device.
    fn complete_and_partial(s: &str, d: &str) -> [Vec<u8>; 2] {
        let mut complete = packet(s, d, TCP, 0, 9, &[0x5a; 33]);
        let inner = Inner::parse(&complete).unwrap();
        let addresses = if inner.source.is_ipv4() { 12..20 } else { 8..40 };
        let pseudo = checksum::pseudo_header(&complete[addresses], TCP, 33);
        let field = inner.header + TCP_CSUM;
        complete[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
        let partial = complete.clone();
        checksum::complete(&mut complete, inner.header, field);
        [complete, partial]
    }

    const GRE: u8 = 47;
    /// The EtherType of a whole Ethernet frame in GRE.
    const BRIDGED: u16 = 0x6558;

    #[test]
    fn a_checksum_inside_a_tunnel_is_completed() {
        let ethernet = |kind: u16| [&[2; 12][..], &kind.to_be_bytes()].concat();
        for ((s, d), kind, ip) in [(PAIRS[0], 0x0800u16, 4), (PAIRS[1], 0x86dd, 41)] {
            let [complete, partial] = complete_and_partial(s, d);
            let udp = |port: u16, rest: &[u8]| {
                [&[0x30, 0x39][..], &port.to_be_bytes(), &[0, 0, 0, 0], rest, &ethernet(kind)].concat()
            };
            let gre = |flags: u16, kind: u16| [flags.to_be_bytes(), kind.to_be_bytes()].concat();
            for (name, protocol, header) in [
                ("IP in IP", ip, Vec::new()),
                ("GRE", GRE, gre(0, kind)),
                ("GRE with a key and a number", GRE, [gre(0x3000, kind), vec![7; 8]].concat()),
                ("GRE of frames", GRE, [gre(0, BRIDGED), ethernet(kind)].concat()),
                ("VXLAN", UDP, udp(4789, &[8, 0, 0, 0, 0, 0, 1, 0])),
                ("VXLAN at the port that Linux had before", UDP, udp(8472, &[8, 0, 0, 0, 0, 0, 1, 0])),
                ("Geneve with an option", UDP, udp(6081, &[1, 0, 0x65, 0x58, 0, 0, 1, 0, 1, 2, 3, 0])),
                ("IP over UDP", UDP, [0x30, 0x39, 0x15, 0xb3, 0, 0, 0, 0].to_vec()),
                ("L2TP over IP", 115, [&[0, 0, 0, 7, 0, 0, 0, 0][..], &ethernet(kind)].concat()),
            ] {
                for (outer_s, outer_d) in PAIRS {
                    let carry = |p: &[u8]| packet(outer_s, outer_d, protocol, 0, 9, &[&header, p].concat());
                    let mut repaired = carry(&partial);
                    complete_checksum(&mut repaired);
                    assert_eq!(repaired, carry(&complete), "{name}");
                    for cut in 0..repaired.len() {
                        complete_checksum(&mut carry(&partial)[..cut]);
                    }
                    // Inside yet another tunnel.
                    let carry_twice =
                        |p: &[u8]| packet(s, d, GRE, 0, 9, &[gre(0, kind), packet(s, d, ip, 0, 9, p)].concat());
                    let mut repaired = carry_twice(&partial);
                    complete_checksum(&mut repaired);
                    assert_eq!(repaired, carry_twice(&complete));
                }
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_packet_hides_none() {
        let [complete, partial] = complete_and_partial(PAIRS[0].0, PAIRS[0].1);
        let carry = |p: &[u8]| {
            // The first address of an Ethernet header begins like an IPv6 header, with a length that fits.
            let len = (p.len() + 14 - 40) as u16;
            let address = [&[0x60, 0, 0, 0][..], &len.to_be_bytes()].concat();
            let frame = [&address, &[2; 6][..], &[8, 0], p].concat();
            packet(PAIRS[1].0, PAIRS[1].1, GRE, 0, 9, &[&[0, 0, 0x65, 0x58][..], &frame].concat())
        };
        assert!(looks_like_a_packet(&carry(&partial)[44..]));
        let mut repaired = carry(&partial);
        complete_checksum(&mut repaired);
        assert_eq!(repaired, carry(&complete));
    }

    #[test]
    fn payloads_that_carry_no_packet_are_left_alone() {
        let mut seed = 7;
        for (s, d) in PAIRS {
            for protocol in [4, 41, GRE, 97, 115, UDP] {
                for len in 0..300 {
                    let mut body: Vec<u8> = (0..len).map(|_| xorshift(&mut seed) as u8).collect();
                    if let Some(sum) = body.get_mut(UDP_CSUM..UDP_HEADER) {
                        sum.fill(0);
                    }
                    // Headers of zeros, and ones that begin like IP's.
                    body.iter_mut().skip(8).step_by(3).for_each(|byte| *byte = [0, 0x45, 0x60][len % 3]);
                    let before = packet(s, d, protocol, 0, 9, &body);
                    let mut after = before.clone();
                    complete_checksum(&mut after);
                    assert_eq!(after, before, "{protocol}, {len} bytes");
                }
            }
        }
    }

    /// The sender computed it for the last destination, to which a routing header leads (RFC 8200, section 8.1).
    #[test]
    fn a_checksum_behind_a_routing_header_is_completed() {
        let [complete, partial] = complete_and_partial(PAIRS[1].0, PAIRS[1].1);
        let by_way_of = |p: &[u8], kind: u8, left: u8| {
            let mut routed = p[..40].to_vec();
            let added = [&[TCP, 2, kind, left, 0, 0, 0, 0][..], &p[24..40]].concat();
            routed[4..6].copy_from_slice(&((p.len() - 40 + added.len()) as u16).to_be_bytes());
            routed[6] = 43;
            if left > 0 {
                routed[24..40].copy_from_slice(&[0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            }
            [&routed, &added, &p[40..]].concat()
        };
        for (kind, left) in [(2, 1), (4, 1), (4, 0), (2, 0)] {
            let mut repaired = by_way_of(&partial, kind, left);
            complete_checksum(&mut repaired);
            assert_eq!(repaired, by_way_of(&complete, kind, left), "{kind}, {left}");
            for cut in 0..repaired.len() {
                complete_checksum(&mut by_way_of(&partial, kind, left)[..cut]);
            }
        }
    }

    #[test]
    fn a_checksum_of_sctp_is_completed_if_there_is_none() {
        for (s, d) in PAIRS {
            let with = |sum: [u8; 4]| packet(s, d, SCTP, 0, 9, &[&[0x12; 8][..], &sum, &[0x34; 21]].concat());
            let mut repaired = with([0; 4]);
            complete_checksum(&mut repaired);
            let at = Inner::parse(&repaired).unwrap().header + 8;
            let sum: [u8; 4] = repaired[at..at + 4].try_into().unwrap();
            assert_ne!(sum, [0; 4]);
            assert_eq!(repaired, with(sum));
            let mut other = with([1, 2, 3, 4]);
            complete_checksum(&mut other);
            assert_eq!(other, with([1, 2, 3, 4]), "one that is wrong stays so");
            complete_checksum(&mut packet(s, d, SCTP, 0, 9, &[0; 11]));
        }
    }

    #[test]
    fn broken_tcp_options_are_left_alone() {
        let mut seed = 3;
        for _ in 0..50_000 {
            let mut tcp = [0u8; 40];
            tcp.fill_with(|| xorshift(&mut seed) as u8);
            tcp[13] |= 2;
            let mut p = packet("10.0.0.1", "10.1.0.1", TCP, 0, 9, &tcp[..20 + (seed >> 40) as usize % 21]);
            let inner = Inner::parse(&p).unwrap();
            clamp_mss(&mut p, &inner, 1420);
        }
    }
}
