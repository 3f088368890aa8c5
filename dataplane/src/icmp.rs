//! ICMP errors that a router must send: time exceeded and packet too big, RFC 792, 1191 and 4443.

use std::net::IpAddr;

use crate::checksum;
use crate::clock::Millis;
use crate::frame::{ANCHOR, Frame, Pool};
use crate::inner::{ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, Inner};
use crate::ports::EGRESS_ROOM;
use crate::table::Table;
use crate::transport::transport;

/// The most ICMP errors that a worker sends in a second (the kernel's default, too).
const ERRORS_PER_SECOND: u64 = 1000;
/// The most at once.
const BURST: u64 = 50;
/// Bytes of an IPv4 error; RFC 1812 says up to 576.
const V4_ERROR_MAX: usize = 576;
/// Bytes of an IPv6 error; RFC 4443 says up to the minimum MTU.
const V6_ERROR_MAX: usize = 1280;
const ICMP_HEADER: usize = 8;
const HOPS: u8 = 64;

/// What is wrong with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// TTL or hop limit ran out here.
    TimeExceeded,
    /// Larger than the path's MTU, in bytes.
    TooBig(usize),
}

/// How many errors may be sent now, as a token bucket.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    /// Its level, in thousandths of an error.
    tokens: u64,
    filled: Millis,
}

impl Limiter {
    pub fn allow(&mut self, now: Millis) -> bool {
        let earned = now.since(self.filled).0.saturating_mul(ERRORS_PER_SECOND);
        self.tokens = self.tokens.saturating_add(earned).min(BURST * 1000);
        self.filled = now;
        match self.tokens.checked_sub(1000) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// Turns the packet in `frame` into an ICMP error about itself, addressed to its sender. `false`: no error is due, or
/// we have no address to send it from, and the packet must be dropped.
pub(crate) fn answer(pool: &mut Pool, frame: &mut Frame, inner: &Inner, error: Error, table: &Table) -> bool {
    let packet = pool.packet(frame);
    if !due(packet, inner) {
        return false;
    }
    let (start, quoted_from) = (ANCHOR + EGRESS_ROOM, frame.start());
    match inner.source {
        IpAddr::V4(to) => {
            let Some(from) = table.icmp_v4 else { return false };
            let quoted = inner.len.min(V4_ERROR_MAX - IPV4_HEADER - ICMP_HEADER);
            let len = IPV4_HEADER + ICMP_HEADER + quoted;
            let slot = pool.slot_mut(frame);
            slot.copy_within(quoted_from..quoted_from + quoted, start + IPV4_HEADER + ICMP_HEADER);
            let (kind, code, mtu) = match error {
                Error::TimeExceeded => (11, 0, 0),
                Error::TooBig(mtu) => (3, 4, mtu as u16),
            };
            let p = &mut slot[start..start + len];
            p[..12].copy_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0, 0, HOPS, ICMP, 0, 0]);
            p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            p[12..16].copy_from_slice(&from.octets());
            p[16..20].copy_from_slice(&to.octets());
            let sum = checksum::ipv4_header(&p[..IPV4_HEADER]);
            p[10..12].copy_from_slice(&sum.to_be_bytes());
            p[20..26].copy_from_slice(&[kind, code, 0, 0, 0, 0]);
            p[26..28].copy_from_slice(&mtu.to_be_bytes());
            let sum = checksum::fold(checksum::sum(&p[IPV4_HEADER..]));
            p[22..24].copy_from_slice(&(!sum).to_be_bytes());
            frame.set(start, len);
        }
        IpAddr::V6(to) => {
            let Some(from) = table.icmp_v6 else { return false };
            let quoted = inner.len.min(V6_ERROR_MAX - IPV6_HEADER - ICMP_HEADER);
            let len = IPV6_HEADER + ICMP_HEADER + quoted;
            let slot = pool.slot_mut(frame);
            slot.copy_within(quoted_from..quoted_from + quoted, start + IPV6_HEADER + ICMP_HEADER);
            let (kind, mtu) = match error {
                Error::TimeExceeded => (3, 0),
                Error::TooBig(mtu) => (2, mtu as u32),
            };
            let p = &mut slot[start..start + len];
            p[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, ICMPV6, HOPS]);
            p[4..6].copy_from_slice(&((ICMP_HEADER + quoted) as u16).to_be_bytes());
            p[8..24].copy_from_slice(&from.octets());
            p[24..40].copy_from_slice(&to.octets());
            p[40..44].copy_from_slice(&[kind, 0, 0, 0]);
            p[44..48].copy_from_slice(&mtu.to_be_bytes());
            let pseudo = checksum::pseudo_header(&p[8..40], ICMPV6, ICMP_HEADER + quoted);
            let sum = checksum::fold(checksum::sum(&p[IPV6_HEADER..]) + pseudo);
            p[42..44].copy_from_slice(&(!sum).to_be_bytes());
            frame.set(start, len);
        }
    }
    true
}

/// RFC 1122 section 3.2.2 and RFC 4443 section 2.4: no errors about errors, about multicast or broadcast packets, or
/// about fragments other than the first.
fn due(packet: &[u8], inner: &Inner) -> bool {
    let single = match inner.source {
        IpAddr::V4(a) => !a.is_unspecified() && !a.is_broadcast() && !a.is_multicast() && !a.is_loopback(),
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_loopback(),
    };
    // An unreadable packet may be an error too.
    let error =
        transport(packet, inner.header).is_none_or(|transport| transport.may_be_icmp_error(inner.source.is_ipv6()));
    single && !error && !inner.later_fragment && !inner.destination.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inner::HOP_BY_HOP;
    use crate::inner::tests::{naive, packet};

    fn table() -> Table {
        Table {
            icmp_v4: Some([192, 0, 2, 1].into()),
            icmp_v6: Some("2001:db8::1".parse().unwrap()),
            ..Table::default()
        }
    }

    fn answered(original: &[u8], error: Error, table: &Table) -> Option<Vec<u8>> {
        let mut pool = Pool::heap(1);
        let mut frame = pool.take().unwrap();
        frame.set(ANCHOR + EGRESS_ROOM, original.len());
        pool.packet_mut(&frame).copy_from_slice(original);
        let inner = Inner::parse(original).unwrap();
        answer(&mut pool, &mut frame, &inner, error, table).then(|| pool.packet(&frame).to_vec())
    }

    #[test]
    fn errors_quote_the_packet_and_their_checksums_are_right() {
        for size in [0, 8, 600, 1400] {
            let original = packet("10.0.0.1", "10.1.0.1", 17, 0, 1, &vec![7; size]);
            let p = answered(&original, Error::TooBig(1420), &table()).unwrap();
            let inner = Inner::parse(&p).unwrap();
            assert_eq!((inner.len, inner.protocol), (p.len(), ICMP));
            assert_eq!(inner.destination.to_string(), "10.0.0.1");
            assert_eq!(p[20..22], [3, 4]);
            assert_eq!(p[26..28], 1420u16.to_be_bytes());
            assert_eq!((naive(&p[..20]), naive(&p[20..])), (0, 0));
            assert!(original.starts_with(&p[28..]) && p.len() <= V4_ERROR_MAX);

            let original = packet("fd00::1", "fd01::1", 17, 0, 1, &vec![7; size]);
            let p = answered(&original, Error::TimeExceeded, &table()).unwrap();
            let inner = Inner::parse(&p).unwrap();
            assert_eq!((inner.len, inner.protocol, p[40]), (p.len(), ICMPV6, 3));
            let pseudo = [&p[8..40], &((p.len() - 40) as u32).to_be_bytes(), &[0, 0, 0, ICMPV6], &p[40..]].concat();
            assert_eq!(naive(&pseudo), 0);
            assert!(original.starts_with(&p[48..]) && p.len() <= V6_ERROR_MAX);
        }
    }

    #[test]
    fn no_errors_about_errors_groups_or_without_an_address() {
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        let behind_another = [FRAGMENT, 0, 1, 4, 0, 0, 0, 0, ICMPV6, 0, 0, 0, 0, 0, 0, 1];
        let cases = [
            packet("10.0.0.1", "10.1.0.1", ICMP, 0, 1, &[3, 0, 0, 0]),
            packet("10.0.0.1", "10.1.0.1", ICMP, 0, 1, &[]),
            packet("fd00::1", "fd01::1", ICMPV6, 0, 1, &[1, 0, 0, 0]),
            packet("fd00::1", "fd01::1", HOP_BY_HOP, 0, 1, &[ICMPV6, 0, 1, 4, 0, 0, 0, 0, 3, 0, 0, 0]),
            packet("fd00::1", "fd01::1", DESTINATION, 0, 1, &[&behind_another[..], &[2, 0, 0, 0]].concat()),
            packet("fd00::1", "fd01::1", FRAGMENT, 0, 1, &[ICMPV6, 0, 0, 8, 0, 0, 0, 1, 128, 0]),
            packet("fd00::1", "fd01::1", HOP_BY_HOP, 0, 1, &[ICMPV6]),
            packet("0.0.0.0", "10.1.0.1", 17, 0, 1, &[]),
            packet("10.0.0.1", "224.0.0.1", 17, 0, 1, &[]),
        ];
        for original in cases {
            assert_eq!(answered(&original, Error::TimeExceeded, &table()), None);
        }
        let echo = packet("10.0.0.1", "10.1.0.1", ICMP, 0, 1, &[8, 0, 0, 0]);
        let extended =
            packet("fd00::1", "fd01::1", DESTINATION, 0, 1, &[&behind_another[..], &[128, 0, 0, 0]].concat());
        let datagram = packet("fd00::1", "fd01::1", DESTINATION, 0, 1, &[17, 0, 1, 4, 0, 0, 0, 0, 3]);
        for owed in [&echo, &extended, &datagram] {
            assert!(answered(owed, Error::TimeExceeded, &table()).is_some());
        }
        assert_eq!(answered(&echo, Error::TimeExceeded, &Table::default()), None);
    }

    #[test]
    fn errors_are_limited() {
        let mut limiter = Limiter::default();
        let burst = (0..200).filter(|_| limiter.allow(Millis(100_000))).count() as u64;
        assert_eq!(burst, BURST);
        assert!(limiter.allow(Millis(100_001)) && !limiter.allow(Millis(100_001)));
    }
}
