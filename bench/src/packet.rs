//! Frames: Ethernet, IPv4 or IPv6 without options, UDP, and our [`payload`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::payload::{self, STAMP_LEN, Stamp};

/// Bytes of an Ethernet header without a tag.
pub const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;
const TTL: u8 = 64;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// What a generator sends: every packet differs only in its stamp and its source port.
#[derive(Debug, Clone)]
pub struct Template {
    /// The first packet, complete but for stamp, source port and the checksum over them.
    frame: Vec<u8>,
    payload_at: usize,
    first_source_port: u16,
    flows: u16,
    /// IPv6 only: the ones' complement sum over all that does not change. Over IPv4 the checksum is 0, "none".
    checksum_base: Option<u32>,
}

/// The fields of a [`Template`].
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination: the next hop.
    pub destination_mac: Mac,
    /// IP source.
    pub source: IpAddr,
    /// IP destination, of the same family.
    pub destination: IpAddr,
    /// UDP source port of the first flow; flow n uses this plus n.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
}

/// Why a packet cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// One IPv4 and one IPv6 address.
    #[error("source and destination must be of the same address family")]
    MixedFamilies,
    /// No room for the headers and the stamp.
    #[error("an IP packet of {size} bytes is too short, the least is {least}")]
    TooShort {
        /// What was asked for.
        size: usize,
        /// Headers plus stamp.
        least: usize,
    },
    /// More than a frame of the UMEM holds.
    #[error("an IP packet of {size} bytes is too long, the most is {most}")]
    TooLong {
        /// What was asked for.
        size: usize,
        /// Room in a frame.
        most: usize,
    },
    /// Source ports would run over 65535.
    #[error("{flows} flows from source port {first} on do not fit into 65535 ports")]
    Flows {
        /// How many were asked for.
        flows: u16,
        /// The first flow's source port.
        first: u16,
    },
}

impl Template {
    /// `size` is the length of the IP packet; `flows` of them differ in the source port.
    pub fn new(addresses: &Addresses, size: usize, flows: u16) -> Result<Template, BuildError> {
        let header_len = match (addresses.source, addresses.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => 20,
            (IpAddr::V6(_), IpAddr::V6(_)) => 40,
            _ => return Err(BuildError::MixedFamilies),
        };
        let least = header_len + UDP_LEN + STAMP_LEN;
        if size < least {
            return Err(BuildError::TooShort { size, least });
        }
        let most = crate::socket::FRAME_ROOM - ETHERNET_LEN;
        if size > most {
            return Err(BuildError::TooLong { size, most });
        }
        let first = addresses.source_port;
        if flows == 0 || first.checked_add(flows - 1).is_none() {
            return Err(BuildError::Flows { flows, first });
        }

        let mut frame = vec![0; ETHERNET_LEN + size];
        let (ethernet, packet) = frame.split_at_mut(ETHERNET_LEN);
        ethernet[0..6].copy_from_slice(&addresses.destination_mac.0);
        ethernet[6..12].copy_from_slice(&addresses.source_mac.0);
        let (header, datagram) = packet.split_at_mut(header_len);
        match (addresses.source, addresses.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet[12..14].copy_from_slice(&[0x08, 0x00]);
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(size as u16).to_be_bytes());
                header[6] = 0x40; // don't fragment
                header[8] = TTL;
                header[9] = UDP;
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let checksum = !fold(sum(header));
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet[12..14].copy_from_slice(&[0x86, 0xdd]);
                header[0] = 0x60;
                header[4..6].copy_from_slice(&((size - header_len) as u16).to_be_bytes());
                header[6] = UDP;
                header[7] = TTL;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
            }
            _ => return Err(BuildError::MixedFamilies),
        }
        let datagram_len = datagram.len() as u16;
        datagram[2..4].copy_from_slice(&addresses.destination_port.to_be_bytes());
        datagram[4..6].copy_from_slice(&datagram_len.to_be_bytes());
        payload::write_pattern(&mut datagram[UDP_LEN..]);
        let zero = Stamp { sequence: 0, sent_at: 0 };
        zero.write(&mut datagram[UDP_LEN..]);
        let checksum_base =
            addresses.source.is_ipv6().then(|| pseudo_header_sum(&header[8..40], datagram_len) + sum(datagram));
        Ok(Template {
            frame,
            payload_at: ETHERNET_LEN + header_len + UDP_LEN,
            first_source_port: first,
            flows,
            checksum_base,
        })
    }

    /// Bytes of the Ethernet frame.
    pub fn frame_len(&self) -> usize {
        self.frame.len()
    }

    /// Bytes of the IP packet.
    pub fn packet_len(&self) -> usize {
        self.frame.len() - ETHERNET_LEN
    }

    /// Fills a frame with all that stays the same.
    pub fn build(&self, frame: &mut [u8]) {
        frame.copy_from_slice(&self.frame);
    }

    /// Makes a built frame the packet of this stamp.
    #[inline]
    pub fn stamp(&self, frame: &mut [u8], stamp: Stamp) {
        let (headers, payload) = frame.split_at_mut(self.payload_at);
        stamp.write(payload);
        let flow = (stamp.sequence % u64::from(self.flows)) as u16;
        let port = (self.first_source_port + flow).to_be_bytes();
        let udp = &mut headers[self.payload_at - UDP_LEN..];
        udp[0..2].copy_from_slice(&port);
        if let Some(base) = self.checksum_base {
            // What varies: the port, and the stamp behind its magic, which starts at an even offset.
            let checksum = match !fold(base + sum(&port) + sum(&payload[4..STAMP_LEN])) {
                0 => 0xffff,
                checksum => checksum,
            };
            udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
    }
}

/// A UDP packet as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// The IP packet, without the padding of a short Ethernet frame.
    pub packet: &'a [u8],
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
    udp_at: usize,
}

impl<'a> Datagram<'a> {
    /// Reads an Ethernet frame; `None` if it is not UDP in an IP packet without extension headers, whole
    /// and unfragmented.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Option<Datagram<'a>> {
        let (ethernet, rest) = frame.split_at_checked(ETHERNET_LEN)?;
        let (udp_at, len) = match [ethernet[12], ethernet[13]] {
            [0x08, 0x00] => {
                let header = rest.first_chunk::<20>()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
                if header[0] >> 4 != 4 || header[0] & 0xf < 5 || header[9] != UDP || fragment != 0 {
                    return None;
                }
                let len = u16::from_be_bytes([header[2], header[3]]);
                (usize::from(header[0] & 0xf) * 4, usize::from(len))
            }
            [0x86, 0xdd] => {
                let header = rest.first_chunk::<40>()?;
                if header[0] >> 4 != 6 || header[6] != UDP {
                    return None;
                }
                let len = u16::from_be_bytes([header[4], header[5]]);
                (40, 40 + usize::from(len))
            }
            _ => return None,
        };
        let packet = rest.get(..len)?;
        let udp = packet.get(udp_at..)?.first_chunk::<UDP_LEN>()?;
        if usize::from(u16::from_be_bytes([udp[4], udp[5]])) != len - udp_at {
            return None;
        }
        Some(Datagram {
            packet,
            source_port: u16::from_be_bytes([udp[0], udp[1]]),
            destination_port: u16::from_be_bytes([udp[2], udp[3]]),
            udp_at,
        })
    }

    /// What UDP carries.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.packet[self.udp_at + UDP_LEN..]
    }

    /// Are both checksums right and the payload's pattern whole? A UDP checksum of 0 is accepted over IPv4.
    pub fn is_intact(&self) -> bool {
        let (header, datagram) = self.packet.split_at(self.udp_at);
        let addresses = match header[0] >> 4 {
            4 if fold(sum(header)) != 0xffff => return false,
            4 => &header[12..20],
            _ => &header[8..40],
        };
        let without_checksum = datagram[6..8] == [0, 0];
        let checksum_is_right = if without_checksum {
            header[0] >> 4 == 4
        } else {
            fold(pseudo_header_sum(addresses, datagram.len() as u16) + sum(datagram)) == 0xffff
        };
        checksum_is_right && payload::pattern_is_intact(self.payload())
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let refuse = || format!("\"{text}\" is not an Ethernet address like 02:00:00:00:00:01");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(refuse)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        match parts.next() {
            None => Ok(Mac(octets)),
            Some(_) => Err(refuse()),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The sum of RFC 1071 before folding; fits 32 bits for any packet.
#[inline]
fn sum(bytes: &[u8]) -> u32 {
    let (words, odd) = bytes.as_chunks::<2>();
    let words: u32 = words.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    words + odd.first().map_or(0, |byte| u32::from(*byte) << 8)
}

#[inline]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

fn pseudo_header_sum(addresses: &[u8], datagram_len: u16) -> u32 {
    sum(addresses) + u32::from(UDP) + u32::from(datagram_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(v6: bool) -> Addresses {
        let parse = |text: &str| text.parse().expect("an address");
        Addresses {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: parse(if v6 { "fd00:1::1" } else { "10.1.0.1" }),
            destination: parse(if v6 { "fd00:2::ffff" } else { "10.2.0.255" }),
            source_port: 40_000,
            destination_port: 48_000,
        }
    }

    fn nth(template: &Template, sequence: u64) -> Vec<u8> {
        let mut frame = vec![0; template.frame_len()];
        template.build(&mut frame);
        let sent_at = 0xfedc_0000_ffff ^ sequence;
        template.stamp(&mut frame, Stamp { sequence, sent_at });
        frame
    }

    #[test]
    fn packets_read_back_intact_in_both_families() {
        for v6 in [false, true] {
            for size in [64, 65, 512, 1434] {
                let template = Template::new(&addresses(v6), size, 3).expect("valid");
                for sequence in [0, 1, 2, 3, 77_777, 0xffff_ffff] {
                    let frame = nth(&template, sequence);
                    let datagram = Datagram::parse(&frame).expect("UDP");
                    assert!(datagram.is_intact(), "v6 {v6}, size {size}, {sequence}");
                    assert_eq!(datagram.packet.len(), size);
                    assert_eq!(u64::from(datagram.source_port), 40_000 + sequence % 3);
                    let stamp = Stamp::read(datagram.payload()).expect("ours");
                    assert_eq!(stamp.sequence, sequence);
                }
            }
        }
    }

    #[test]
    fn a_change_anywhere_behind_ethernet_is_noticed() {
        let template = Template::new(&addresses(true), 100, 1).expect("valid");
        let frame = nth(&template, 5);
        for at in ETHERNET_LEN..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            let noticed = Datagram::parse(&damaged).is_none_or(|d| !d.is_intact());
            // Traffic class, flow label and hop limit are covered by nothing in IPv6.
            assert!(noticed || matches!(at - ETHERNET_LEN, 0..=3 | 7), "byte {at}");
        }
    }

    #[test]
    fn truncated_frames_are_refused() {
        for v6 in [false, true] {
            let template = Template::new(&addresses(v6), 90, 1).expect("valid");
            let frame = nth(&template, 0);
            for len in 0..frame.len() {
                assert!(Datagram::parse(&frame[..len]).is_none());
            }
        }
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        let refused = |a: &Addresses, size, flows| Template::new(a, size, flows).map(|_| ());
        let v4 = addresses(false);
        let mixed = Addresses { source: addresses(true).source, ..v4.clone() };
        assert_eq!(refused(&mixed, 64, 1), Err(BuildError::MixedFamilies));
        let short = BuildError::TooShort { size: 43, least: 44 };
        assert_eq!(refused(&v4, 43, 1), Err(short));
        assert!(matches!(refused(&v4, 4000, 1), Err(BuildError::TooLong { .. })));
        for flows in [0, 30_000] {
            let first = 40_000;
            assert_eq!(refused(&v4, 64, flows), Err(BuildError::Flows { flows, first }));
        }
    }

    #[test]
    fn ethernet_addresses_parse_strictly() {
        let text = "02:ab:00:00:00:ff";
        assert_eq!(text.parse::<Mac>().map(|m| m.to_string()), Ok(text.into()));
        for wrong in ["", "02:ab:00:00:00", "02:ab:00:00:00:ff:01", "2:ab:0:0:0:ff", "+2:ab:00:00:00:ff"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
