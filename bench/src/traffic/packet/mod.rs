//! Frames: Ethernet, IPv4 or IPv6 without options, UDP, and our [`crate::traffic::payload`].

mod datagram;
mod mac;
mod mix;
mod template;

pub use datagram::Datagram;
pub use mac::Mac;
pub use mix::{FRAME_CHECK_LEN, Mix};
pub use template::{Addresses, BuildError, Flows, Template};

/// Bytes of an Ethernet header without a tag.
pub const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;
const TTL: u8 = 64;

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
    use crate::traffic::payload::Stamp;

    fn addresses(v6: bool) -> Addresses {
        let parse = |text: &str| text.parse().expect("an address");
        Addresses {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: parse(if v6 { "fd00:1::1" } else { "10.1.0.1" }),
            destination: parse(if v6 { "fd00:2::fff0" } else { "10.2.0.255" }),
            source_port: 40_000,
            destination_port: 48_000,
        }
    }

    fn nth(template: &Template, sequence: u64) -> Vec<u8> {
        let mut frame = vec![0; crate::traffic::socket::FRAME_ROOM];
        template.prepare(&mut frame);
        // What was there before leaves no trace.
        template.write(&mut frame, Stamp { sequence: sequence + 1, sent_at: 7 });
        let sent_at = 0xfedc_0000_ffff ^ sequence;
        let len = template.write(&mut frame, Stamp { sequence, sent_at });
        frame.truncate(len);
        frame
    }

    fn template(v6: bool, size: usize, flows: u16) -> Template {
        Template::new(&addresses(v6), &Mix::packets(size), Flows { count: flows, hosts: 1 }).expect("valid")
    }

    #[test]
    fn packets_read_back_intact_in_both_families() {
        for v6 in [false, true] {
            for size in [64, 65, 512, 1434] {
                let template = template(v6, size, 3);
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
    fn every_flow_gets_every_size_and_its_own_addresses() {
        for v6 in [false, true] {
            let flows = Flows { count: 6, hosts: 3 };
            let template = Template::new(&addresses(v6), &Mix::imix(64), flows).expect("valid");
            let mut seen = std::collections::BTreeSet::new();
            let mut bytes = 0;
            let packets = 48 * 48;
            for sequence in 0..packets {
                let frame = nth(&template, sequence);
                let datagram = Datagram::parse(&frame).expect("UDP");
                assert!(datagram.is_intact(), "v6 {v6}, {sequence}");
                let host = datagram.packet[if v6 { 23 } else { 15 }];
                assert_eq!(u64::from(host), 1 + sequence % 6 % 3);
                seen.insert((datagram.source_port, host, datagram.packet.len()));
                bytes += datagram.packet.len() as u64;
            }
            assert_eq!(seen.len(), 6 * 3, "flows times sizes");
            assert_eq!(template.bytes(0, packets), bytes);
            let one_more = template.bytes(0, 100) + template.bytes(100, packets - 100);
            assert_eq!(one_more, bytes);
        }
    }

    #[test]
    fn a_change_anywhere_behind_ethernet_is_noticed() {
        let frame = nth(&template(true, 100, 1), 5);
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
            let frame = nth(&template(v6, 90, 1), 0);
            for len in 0..frame.len() {
                assert!(Datagram::parse(&frame[..len]).is_none());
            }
        }
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        let refused = |a: &Addresses, size, count, hosts| {
            let built = Template::new(a, &Mix::packets(size), Flows { count, hosts });
            built.map(drop).expect_err("refused").to_string()
        };
        let v4 = addresses(false);
        let mixed = Addresses { source: addresses(true).source, ..v4.clone() };
        assert!(refused(&mixed, 64, 1, 1).contains("same address family"));
        assert!(refused(&v4, 43, 1, 1).contains("too short, the least is 44"));
        assert!(refused(&v4, 4000, 1, 1).contains("too long"));
        for flows in [0, 30_000] {
            assert!(refused(&v4, 64, flows, 1).contains(&format!("{flows} flows from source port 40000 on")));
        }
        assert!(refused(&v4, 64, 1, 0).contains("0 hosts"));
        let high = Addresses { destination: "10.2.255.254".parse().expect("an address"), ..v4 };
        assert!(refused(&high, 64, 3, 3).contains("3 hosts"));
    }
}

/// Packets for tests.
#[cfg(test)]
pub mod sample {
    use super::{Addresses, Flows, Mac, Mix, Template};
    use crate::traffic::payload::Stamp;
    use crate::traffic::socket::FRAME_ROOM;

    /// IPv4 packets of 64 bytes from ports 1000 and up to port 2000.
    pub fn template(flows: u16) -> Template {
        let addresses = Addresses {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: [10, 1, 0, 1].into(),
            destination: [10, 2, 0, 1].into(),
            source_port: 1000,
            destination_port: 2000,
        };
        Template::new(&addresses, &Mix::packets(64), Flows { count: flows, hosts: 1 }).expect("valid")
    }

    /// The frame of one of them.
    pub fn frame(template: &Template, sequence: u64, sent_at: u64) -> Vec<u8> {
        let mut frame = vec![0; FRAME_ROOM];
        template.prepare(&mut frame);
        let len = template.write(&mut frame, Stamp { sequence, sent_at });
        frame.truncate(len);
        frame
    }
}
