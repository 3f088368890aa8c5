//! Sites that are numbered alike: each shows its hosts to the other sites under another prefix, address by address.
//!
//! Packets into the tunnel get a source in the prefix that is shown, packets out of it a destination in the real one.
//! Checksums are adjusted (RFC 1624), and so is the packet that an ICMP error quotes (RFC 5508, section 4.2), or hosts
//! could not match the error to their packet. As with any translation, addresses inside payloads stay as they are.

use std::net::IpAddr;

use crate::checksum;
use crate::filter::Direction;
use crate::inner::{DCCP, ICMPV6, Inner, TCP, TCP_CSUM, UDP, UDP_CSUM, UDP_LITE, adjust};
use crate::transport::{Transport, transport};

const ICMP_HEADER: usize = 8;

/// Prefixes with the prefixes they are shown as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    pairs: Vec<Pair>,
}

/// A prefix and another of the same length, as the upper bits of an address of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    ipv6: bool,
    mask: u128,
    real: u128,
    shown: u128,
}

impl Mapping {
    /// Shows a prefix of this length as another; host bits do not matter. Ignored if their families differ.
    pub fn insert(&mut self, real: IpAddr, shown: IpAddr, length: u8) {
        if real.is_ipv6() != shown.is_ipv6() {
            return;
        }
        let width: u8 = if real.is_ipv6() { 128 } else { 32 };
        let all = u128::MAX >> (128 - width);
        let mask = all.checked_shl((width - length.min(width)).into()).unwrap_or(0) & all;
        let of = |address| bits(address) & mask;
        self.pairs.push(Pair { ipv6: real.is_ipv6(), mask, real: of(real), shown: of(shown) });
        // The longest prefix that contains an address applies.
        self.pairs.sort_by_key(|pair| std::cmp::Reverse(pair.mask.count_ones()));
    }

    /// Translates a packet that [`Inner::parse`] has read. Returns the address that has changed, if one has.
    #[inline]
    pub(crate) fn translate(&self, packet: &mut [u8], inner: &Inner, direction: Direction) -> Option<IpAddr> {
        let address = match direction {
            Direction::Out => inner.source,
            Direction::In => inner.destination,
        };
        let new = self.other(address, direction)?;
        let packet = &mut packet[..inner.len];
        rewrite(packet, inner, direction == Direction::Out, new);
        self.translate_quoted(packet, inner, direction);
        Some(new)
    }

    /// Translates the packet that an ICMP error quotes. It went in the other direction, so its other end is this site's.
    fn translate_quoted(&self, packet: &mut [u8], inner: &Inner, direction: Direction) {
        let v6 = inner.source.is_ipv6();
        let error = transport(packet, inner.header).filter(|transport| transport.may_be_icmp_error(v6));
        let Some(icmp) = error.filter(Transport::begins).map(|error| packet.len() - error.payload.len()) else {
            return;
        };
        let at = icmp + ICMP_HEADER;
        let Some(quoted) = packet.get(at..).and_then(Inner::parse_header) else { return };
        let address = match direction {
            Direction::Out => quoted.destination,
            Direction::In => quoted.source,
        };
        if let Some(new) = self.other(address, direction) {
            let checksum = icmp + 2;
            // The sum over the ICMP message covers the quoted packet with its checksums.
            let (head, tail) = packet.split_at_mut(at);
            let before = checksum::sum(tail);
            rewrite(tail, &quoted, direction == Direction::In, new);
            let after = checksum::sum(tail);
            let old = u16::from_be_bytes([head[checksum], head[checksum + 1]]);
            let new = checksum::update(old, checksum::fold(before), checksum::fold(after));
            head[checksum..checksum + 2].copy_from_slice(&new.to_be_bytes());
        }
    }

    /// The address that stands for this one on the other side.
    #[inline]
    fn other(&self, address: IpAddr, direction: Direction) -> Option<IpAddr> {
        let all = bits(address);
        self.pairs.iter().filter(|pair| pair.ipv6 == address.is_ipv6()).find_map(|pair| {
            let (from, to) = match direction {
                Direction::Out => (pair.real, pair.shown),
                Direction::In => (pair.shown, pair.real),
            };
            (all & pair.mask == from).then(|| with_bits(address, all & !pair.mask | to))
        })
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// An address of the same family with these bits.
fn with_bits(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}

/// Writes an address, the source or else the destination, and adjusts the checksums that cover it.
fn rewrite(packet: &mut [u8], inner: &Inner, source: bool, new: IpAddr) {
    let at = match (new, source) {
        (IpAddr::V4(_), true) => 12,
        (IpAddr::V4(_), false) => 16,
        (IpAddr::V6(_), true) => 8,
        (IpAddr::V6(_), false) => 24,
    };
    let mut bytes = [0; 16];
    let bytes = match new {
        IpAddr::V4(v4) => {
            bytes[..4].copy_from_slice(&v4.octets());
            &bytes[..4]
        }
        IpAddr::V6(v6) => {
            bytes = v6.octets();
            &bytes[..]
        }
    };
    let there = &mut packet[at..at + bytes.len()];
    let (old, new) = (checksum::fold(checksum::sum(there)), checksum::fold(checksum::sum(bytes)));
    there.copy_from_slice(bytes);
    if inner.source.is_ipv4() {
        adjust(packet, 10, old, new);
    }
    // These protocols' checksums cover a pseudo-header; a quoted packet may end before the checksum.
    let Some((protocol, at)) = transport_of(packet, inner) else { return };
    let field = match protocol {
        TCP => at + TCP_CSUM,
        UDP | UDP_LITE | DCCP => at + UDP_CSUM,
        ICMPV6 => at + 2,
        _ => return,
    };
    // In UDP over IPv4, zero means that there is no checksum.
    if packet.get(field..field + 2).is_some_and(|sum| protocol != UDP || sum != [0, 0]) {
        adjust(packet, field, old, new);
        if protocol == UDP && packet[field..field + 2] == [0, 0] {
            packet[field..field + 2].fill(0xff);
        }
    }
}

/// The transport protocol and where its header begins; `None` in a fragment other than the first.
fn transport_of(packet: &[u8], inner: &Inner) -> Option<(u8, usize)> {
    let transport = transport(packet, inner.header).filter(Transport::begins)?;
    Some((transport.protocol, packet.len() - transport.payload.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inner::ICMP;
    use crate::inner::tests::{naive, packet};

    fn mapping() -> Mapping {
        let mut mapping = Mapping::default();
        for (real, shown, length) in [
            ("192.168.0.0", "10.77.0.0", 16),
            ("192.168.1.0", "10.88.1.0", 24),
            ("fd00:1::", "fd77:1::", 64),
            ("10.0.0.0", "fd00::", 8),
        ] {
            mapping.insert(real.parse().unwrap(), shown.parse().unwrap(), length);
        }
        mapping
    }

    /// A valid packet.
    fn sound(source: &str, destination: &str, protocol: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = packet(source, destination, protocol, 0, 9, body);
        let inner = Inner::parse(&packet).unwrap();
        let field = match protocol {
            TCP => 16,
            UDP | UDP_LITE | DCCP => 6,
            _ => 2,
        };
        let addresses = if inner.source.is_ipv4() { 12..20 } else { 8..40 };
        let pseudo = match protocol {
            ICMP => Vec::new(),
            _ => [&packet[addresses], &[0, protocol], &(body.len() as u16).to_be_bytes()].concat(),
        };
        let at = inner.header + field;
        packet[at..at + 2].fill(0);
        let sum = match naive(&[&pseudo[..], &packet[inner.header..]].concat()) {
            0 if protocol == UDP => 0xffff,
            sum => sum,
        };
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn translated(mut packet: Vec<u8>, direction: Direction) -> Vec<u8> {
        let inner = Inner::parse(&packet).unwrap();
        mapping().translate(&mut packet, &inner, direction);
        packet
    }

    const BODY: [u8; 32] = [0x5a; 32];
    /// IPv6's header for the destination (RFC 8200, section 4.6).
    const OPTIONS: u8 = 60;

    #[test]
    fn packets_are_sound_in_both_ways_and_the_longest_prefix_wins() {
        for (real, shown, other) in [
            ("192.168.7.9", "10.77.7.9", "10.2.0.1"),
            ("192.168.1.9", "10.88.1.9", "10.2.0.1"),
            ("fd00:1::9", "fd77:1::9", "fd02::1"),
        ] {
            let icmp = if real.contains(':') { ICMPV6 } else { ICMP };
            for protocol in [TCP, UDP, UDP_LITE, DCCP, icmp, 132] {
                // Echo requests, not errors.
                let body = [&[if icmp == ICMPV6 { 128 } else { 8 }], &BODY[1..]].concat();
                let make = |source: &str, destination: &str| sound(source, destination, protocol, &body);
                if protocol != 132 {
                    assert_eq!(translated(make(real, other), Direction::Out), make(shown, other), "{real} {protocol}");
                    assert_eq!(translated(make(other, shown), Direction::In), make(other, real), "{real} {protocol}");
                }
                let elsewhere = make(other, other);
                assert_eq!(translated(elsewhere.clone(), Direction::Out), elsewhere);
                assert_eq!(translated(elsewhere.clone(), Direction::In), elsewhere);
            }
        }
    }

    #[test]
    fn without_a_checksum_there_is_none_afterwards() {
        let mut packet = sound("192.168.1.9", "10.2.0.1", UDP, &BODY);
        packet[26..28].fill(0);
        assert_eq!(translated(packet, Direction::Out)[26..28], [0, 0]);
    }

    #[test]
    fn of_later_fragments_only_the_address_is_touched() {
        let mut fragment = sound("192.168.1.9", "10.2.0.1", TCP, &BODY);
        fragment[7] = 5;
        let body = fragment[20..].to_vec();
        let after = translated(fragment, Direction::Out);
        assert_eq!((&after[12..16], &after[20..]), (&[10, 88, 1, 9][..], &body[..]));
    }

    /// An error that a host of this site, or a router here, sends about a packet of a remote host; and one about a
    /// packet of ours that comes back.
    #[test]
    fn the_packets_that_errors_quote_are_translated() {
        for (real, shown, other, icmp, kind) in [
            ("192.168.1.9", "10.88.1.9", "10.2.0.1", ICMP, 3),
            ("192.168.1.9", "10.88.1.9", "10.2.0.1", ICMP, 11),
            ("fd00:1::9", "fd77:1::9", "fd02::1", ICMPV6, 1),
            ("fd00:1::9", "fd77:1::9", "fd02::1", ICMPV6, 2),
        ] {
            for protocol in [TCP, UDP, DCCP] {
                for quote in [28, 48, 60, 72] {
                    let error = |source: &str, destination: &str, quoted: Vec<u8>| {
                        let quoted = &quoted[..quote.min(quoted.len())];
                        sound(source, destination, icmp, &[&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat())
                    };
                    if icmp == ICMPV6 && quote < 40 {
                        continue;
                    }
                    let before = error(real, other, sound(other, real, protocol, &BODY));
                    let after = error(shown, other, sound(other, shown, protocol, &BODY));
                    assert_eq!(translated(before, Direction::Out), after, "{real} {protocol} {quote}");
                    let before = error(other, shown, sound(shown, other, protocol, &BODY));
                    let after = error(other, real, sound(real, other, protocol, &BODY));
                    assert_eq!(translated(before, Direction::In), after, "{real} {protocol} {quote}");
                }
            }
        }
    }

    #[test]
    fn transport_headers_are_found_behind_those_of_ipv6() {
        // A destination option, then the first fragment of more.
        let extensions = [44, 0, 1, 4, 0, 0, 0, 0, UDP, 0, 0, 1, 0, 0, 0, 7];
        let behind = |source: &str| {
            let mut packet = sound(source, "fd02::1", UDP, &BODY);
            packet.splice(40..40, extensions);
            packet[6] = OPTIONS;
            packet[4..6].copy_from_slice(&(16 + BODY.len() as u16).to_be_bytes());
            packet
        };
        assert_eq!(translated(behind("fd00:1::9"), Direction::Out), behind("fd77:1::9"));
        let mut later = behind("fd00:1::9");
        later[50..52].copy_from_slice(&[1, 1]);
        let after = translated(later.clone(), Direction::Out);
        assert_eq!((&after[8..16], &after[40..]), (&behind("fd77:1::9")[8..16], &later[40..]));
    }

    #[test]
    fn broken_packets_are_survived() {
        let mut seed = 3u64;
        for _ in 0..50_000 {
            let mut body = [0u8; 60];
            body.fill_with(|| crate::random::xorshift(&mut seed) as u8);
            let protocol = [TCP, UDP, ICMP, ICMPV6][seed as usize % 4];
            let len = (seed >> 40) as usize % 60;
            for (source, destination) in [("192.168.1.9", "10.88.1.9"), ("fd00:1::9", "fd77:1::9")] {
                for direction in [Direction::Out, Direction::In] {
                    translated(packet(source, destination, protocol, 0, 9, &body[..len]), direction);
                }
            }
        }
    }
}
