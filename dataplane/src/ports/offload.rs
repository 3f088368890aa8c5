//! Segmentation: what a super-packet of the TUN device is, and the headers of its segments.
//!
//! The kernel leaves work to us and says which in a virtio-net header before each packet (virtio 1.2, section 5.1.6;
//! kernel: `include/uapi/linux/virtio_net.h`): to complete a checksum, or to split a TCP or UDP super-packet. Pure
//! functions on slices; the opposite direction is in `offload_coalesce`.

use super::scatter::FRONT;
use crate::checksum;
use crate::inner::{Inner, TCP, TCP_CSUM, UDP, UDP_CSUM};
use crate::transport;

/// Bytes of the header, which is in host byte order on a TUN device.
pub(super) const VNET_LEN: usize = 10;

pub(super) const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
pub(super) const GSO_TCPV4: u8 = 1;
pub(super) const GSO_TCPV6: u8 = 4;
pub(super) const GSO_UDP_L4: u8 = 5;
/// Only the first segment carries CWR, which we do anyway.
const GSO_ECN: u8 = 0x80;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VnetHeader {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    /// A hint: the length of all headers.
    pub(super) hdr_len: u16,
    /// Payload of a segment.
    pub(super) gso_size: u16,
    /// Where the checksummed part begins.
    pub(super) csum_start: u16,
    /// Where the checksum belongs, from there.
    pub(super) csum_offset: u16,
}

impl VnetHeader {
    pub(super) fn parse(bytes: &[u8; VNET_LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    pub(super) fn emit(&self) -> [u8; VNET_LEN] {
        let mut bytes = [0; VNET_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (i, word) in words.into_iter().enumerate() {
            bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// A virtio-net header that does not fit its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadOffload;

/// What a packet from the TUN device still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing.
    None,
    /// Its checksum at `field`, over everything from `start`.
    Checksum { start: usize, field: usize },
    /// To be split into segments of `size` bytes behind the `head` bytes of headers.
    Segment { head: usize, size: usize },
}

/// Decides what to do with a packet of `len` bytes that begins with `front`: all of it, or at least [`FRONT`] bytes.
pub(super) fn work(header: &VnetHeader, front: &[u8], len: usize) -> Result<Work, BadOffload> {
    debug_assert!(front.len() >= len.min(FRONT));
    let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
    let partial = header.flags & NEEDS_CSUM != 0;
    let gso_type = header.gso_type & !GSO_ECN;
    if gso_type == GSO_NONE {
        if !partial {
            return Ok(Work::None);
        }
        let fits = start >= Inner::parse_header(front).ok_or(BadOffload)?.header && start + offset + 2 <= len;
        return if fits { Ok(Work::Checksum { start, field: start + offset }) } else { Err(BadOffload) };
    }
    let (protocol, csum, version) = match gso_type {
        GSO_TCPV4 => (TCP, TCP_CSUM, Some(4)),
        GSO_TCPV6 => (TCP, TCP_CSUM, Some(6)),
        GSO_UDP_L4 => (UDP, UDP_CSUM, None),
        _ => return Err(BadOffload),
    };
    let size = usize::from(header.gso_size);
    let claimed = partial && offset == csum && size > 0 && usize::from(header.hdr_len) <= len;
    if !claimed || version.is_some_and(|version| front.first().map(|b| b >> 4) != Some(version)) {
        return Err(BadOffload);
    }
    if transport(front).ok_or(BadOffload)? != (protocol, start) || network_len(front) != Some(len) {
        return Err(BadOffload);
    }
    let transport = front.get(start..).ok_or(BadOffload)?;
    let head = if protocol == TCP {
        let words = transport.get(12).ok_or(BadOffload)? >> 4;
        if words < 5 {
            return Err(BadOffload);
        }
        start + 4 * usize::from(words)
    } else {
        if transport.len() < 8 || usize::from(be16(transport, 4)) != len - start {
            return Err(BadOffload);
        }
        start + 8
    };
    if head > len || head > front.len() || head > FRONT {
        return Err(BadOffload);
    }
    Ok(Work::Segment { head, size })
}

/// The packet's length as the network header says; `None` for a jumbogram and for a header alone.
pub(super) fn network_len(packet: &[u8]) -> Option<usize> {
    Inner::parse_header(packet).filter(|inner| inner.len > inner.header).map(|inner| inner.len)
}

/// The transport protocol and where its header begins; `None` for fragments and unknown extensions.
pub(super) fn transport(packet: &[u8]) -> Option<(u8, usize)> {
    let header = Inner::parse_header(packet)?.header;
    let found = transport::transport(packet, header).filter(|found| found.fragment.is_none())?;
    Some((found.protocol, packet.len() - found.payload.len()))
}

/// The headers of a super-packet, from which those of its segments are made.
pub(super) struct Template {
    bytes: [u8; FRONT],
    head: usize,
    size: usize,
    /// Length of the whole payload.
    payload: usize,
    transport: usize,
    tcp: bool,
    /// Sum of the pseudo-header without the length.
    pseudo: u32,
}

impl Template {
    /// An empty template.
    pub(super) fn empty() -> Self {
        Self { bytes: [0; FRONT], head: 0, size: 1, payload: 0, transport: 0, tcp: false, pseudo: 0 }
    }

    /// Copies the headers of a super-packet of `len` bytes that [`work`] found to be valid.
    pub(super) fn load(&mut self, front: &[u8], header: &VnetHeader, len: usize, head: usize) {
        self.bytes[..head].copy_from_slice(&front[..head]);
        (self.head, self.size, self.payload) = (head, usize::from(header.gso_size), len - head);
        self.transport = usize::from(header.csum_start);
        self.tcp = usize::from(header.csum_offset) == TCP_CSUM;
        // The field holds the sum of the pseudo-header with the super-packet's length. With the length subtracted, it
        // serves all segments, whatever addresses a routing header put into it.
        let sum = be16(front, self.transport + usize::from(header.csum_offset));
        self.pseudo = u32::from(sum) + u32::from(!((len - self.transport) as u16));
    }

    /// Writes the headers of segment `index`, whose payload is in its place already.
    #[inline]
    pub(super) fn write(&self, index: usize, segment: &mut [u8]) {
        let (transport, len) = (self.transport, segment.len());
        let last = (index + 1) * self.size >= self.payload;
        segment[..self.head].copy_from_slice(&self.bytes[..self.head]);
        if segment[0] >> 4 == 4 {
            put16(segment, 2, len as u16);
            put16(segment, 4, be16(&self.bytes, 4).wrapping_add(index as u16));
            let checksum = checksum::ipv4_header(&segment[..4 * usize::from(segment[0] & 15)]);
            put16(segment, 10, checksum);
        } else {
            put16(segment, 4, (len - 40) as u16);
        }
        let field = if self.tcp {
            let sequence = &mut segment[transport + 4..transport + 8];
            let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
            sequence.copy_from_slice(&first.wrapping_add((index * self.size) as u32).to_be_bytes());
            let flags = &mut segment[transport + 13];
            *flags &= if last { 0xff } else { !(FIN | PSH) } & if index == 0 { 0xff } else { !CWR };
            transport + TCP_CSUM
        } else {
            put16(segment, transport + 4, (len - transport) as u16);
            transport + UDP_CSUM
        };
        put16(segment, field, checksum::fold(self.pseudo + (len - transport) as u32));
        checksum::complete(segment, transport, field);
    }
}

/// Splits a super-packet as the `tun` port does, whose segments come in frames with other bytes in front.
#[cfg(any(test, fuzzing))]
pub(super) fn cut(header: &VnetHeader, bytes: &[u8], head: usize, size: usize) -> Vec<Vec<u8>> {
    let mut template = Template::empty();
    template.load(bytes, header, bytes.len(), head);
    let write = |(index, payload): (usize, &[u8])| {
        let mut segment = [&[0xaa].repeat(head), payload].concat();
        template.write(index, &mut segment);
        segment
    };
    bytes[head..].chunks(size).enumerate().map(write).collect()
}

/// The big-endian word at `at`.
#[inline]
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes a big-endian word.
#[inline]
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a test packet looks like.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Shape {
        pub(in super::super) v6: bool,
        pub(in super::super) tcp: bool,
        pub(in super::super) flags: u8,
        pub(in super::super) sequence: u32,
        pub(in super::super) id: u16,
        pub(in super::super) port: u16,
    }

    pub(in super::super) const TCP4: Shape =
        Shape { v6: false, tcp: true, flags: ACK, sequence: 1000, id: 7, port: 40_000 };

    /// A valid packet with timestamps (TCP), don't-fragment (IPv4) and complete checksums.
    pub(in super::super) fn packet(shape: Shape, payload: &[u8]) -> Vec<u8> {
        let transport = if shape.tcp { 32 } else { 8 };
        let len = transport + payload.len();
        let mut packet = if shape.v6 {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, if shape.tcp { TCP } else { UDP }, 64];
            put16(&mut header, 4, len as u16);
            header.extend((0..32).map(|i| i * 3));
            header
        } else {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, if shape.tcp { TCP } else { UDP }, 0, 0];
            put16(&mut header, 2, (20 + len) as u16);
            put16(&mut header, 4, shape.id);
            header.extend([10, 1, 0, 2, 10, 2, 0, 3]);
            let checksum = checksum::ipv4_header(&header);
            put16(&mut header, 10, checksum);
            header
        };
        let l4 = packet.len();
        packet.extend(shape.port.to_be_bytes());
        packet.extend(5201u16.to_be_bytes());
        if shape.tcp {
            packet.extend(shape.sequence.to_be_bytes());
            packet.extend(99u32.to_be_bytes());
            packet.extend([0x80, shape.flags, 1, 246, 0, 0, 0, 0]);
            packet.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
        } else {
            packet.extend((len as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend_from_slice(payload);
        let field = l4 + if shape.tcp { TCP_CSUM } else { UDP_CSUM };
        let seed = checksum::fold(pseudo(&packet, l4));
        put16(&mut packet, field, seed);
        checksum::complete(&mut packet, l4, field);
        packet
    }

    fn pseudo(packet: &[u8], l4: usize) -> u32 {
        let (addresses, protocol) = if l4 == 40 { (&packet[8..40], packet[6]) } else { (&packet[12..20], packet[9]) };
        checksum::pseudo_header(addresses, protocol, packet.len() - l4)
    }

    /// The packet as a stack hands it to a device that segments, and its virtio-net header.
    fn super_packet(shape: Shape, payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
        let mut bytes = packet(shape, payload);
        let l4 = if shape.v6 { 40 } else { 20 };
        let (offset, head) = if shape.tcp { (TCP_CSUM, 32) } else { (UDP_CSUM, 8) };
        let seed = checksum::fold(pseudo(&bytes, l4));
        put16(&mut bytes, l4 + offset, seed);
        let gso_type = match (shape.tcp, shape.v6) {
            (false, _) => GSO_UDP_L4,
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
        };
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: (l4 + head) as u16,
            gso_size: size,
            csum_start: l4 as u16,
            csum_offset: offset as u16,
        };
        (header, bytes)
    }

    fn cut(header: &VnetHeader, bytes: &[u8]) -> Vec<Vec<u8>> {
        let Ok(Work::Segment { head, size }) = work(header, bytes, bytes.len()) else { panic!("not a super-packet") };
        super::cut(header, bytes, head, size)
    }

    #[test]
    fn segments_are_the_packets_a_stack_would_have_sent() {
        let payload: Vec<u8> = (0..10_000).map(|i| (i % 253) as u8).collect();
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            let shape = Shape { v6, tcp, flags: ACK | PSH | FIN | CWR, sequence: u32::MAX - 3000, id: 65_533, ..TCP4 };
            let (header, bytes) = super_packet(shape, &payload, 1300);
            let segments = cut(&header, &bytes);
            assert_eq!(segments.len(), 8);
            for (i, segment) in segments.iter().enumerate() {
                let mut flags = ACK;
                flags |= if i == 0 { CWR } else { 0 };
                flags |= if i == 7 { PSH | FIN } else { 0 };
                let sequence = shape.sequence.wrapping_add(1300 * i as u32);
                let expected = Shape { flags, sequence, id: shape.id.wrapping_add(i as u16), ..shape };
                assert_eq!(*segment, packet(expected, &payload[1300 * i..payload.len().min(1300 * (i + 1))]), "{i}");
            }
        }
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            let shape = Shape { v6, tcp, ..TCP4 };
            let (mut header, mut bytes) = super_packet(shape, b"payload", 1);
            header.gso_type = GSO_NONE;
            let Ok(Work::Checksum { start, field }) = work(&header, &bytes, bytes.len()) else { panic!() };
            checksum::complete(&mut bytes, start, field);
            assert_eq!(bytes, packet(shape, b"payload"));
        }
    }

    #[test]
    fn extension_headers_before_tcp() {
        let shape = Shape { v6: true, ..TCP4 };
        let (mut header, mut bytes) = super_packet(shape, &[5; 3000], 1000);
        bytes.splice(40..40, [TCP, 0, 1, 4, 0, 0, 0, 0]);
        bytes[6] = 60;
        let len = bytes.len() as u16 - 40;
        put16(&mut bytes, 4, len);
        header.csum_start = 48;
        let segments = cut(&header, &bytes);
        assert_eq!(segments.len(), 3);
        let plain = packet(Shape { sequence: 2000, ..shape }, &[5; 1000]);
        assert_eq!(segments[1][48..], plain[40..]);
        assert_eq!(be16(&segments[1], 4), 1000 + 32 + 8);
    }

    #[test]
    fn every_lie_of_the_header_is_noticed() {
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            let (sound, bytes) = super_packet(Shape { v6, tcp, ..TCP4 }, &[1; 5000], 1000);
            assert!(work(&sound, &bytes, bytes.len()).is_ok());
            let lies: [fn(&mut VnetHeader); 12] = [
                |h| h.flags = 0,
                |h| h.gso_type = 3,
                |h| h.gso_type = 77,
                |h| h.gso_type = if h.gso_type == GSO_TCPV4 { GSO_TCPV6 } else { GSO_TCPV4 },
                |h| h.gso_type = if h.gso_type == GSO_UDP_L4 { GSO_TCPV6 } else { GSO_UDP_L4 },
                |h| h.gso_size = 0,
                |h| h.hdr_len = u16::MAX,
                |h| h.csum_start = 0,
                |h| h.csum_start += 2,
                |h| h.csum_start = u16::MAX,
                |h| h.csum_offset += 2,
                |h| h.csum_offset = u16::MAX,
            ];
            for (i, lie) in lies.into_iter().enumerate() {
                let mut header = sound;
                lie(&mut header);
                assert_eq!(work(&header, &bytes, bytes.len()), Err(BadOffload), "lie {i}");
            }
            for len in 0..bytes.len() {
                assert_eq!(work(&sound, &bytes[..len], len), Err(BadOffload), "cut to {len}");
            }
        }
    }

    #[test]
    fn no_header_and_no_packet_panics() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        let mut template = Template::empty();
        for round in 0..200_000 {
            let shape = Shape { v6: random() % 2 == 0, tcp: random() % 2 == 0, ..TCP4 };
            let (header, mut bytes) = super_packet(shape, &[1; 600], 100);
            let mut vnet = header.emit();
            for _ in 0..random() % 4 {
                vnet[random() as usize % VNET_LEN] = random() as u8;
            }
            for _ in 0..random() % 4 {
                let at = random() as usize % 100;
                bytes[at] = random() as u8;
            }
            bytes.truncate(if round % 2 == 0 { bytes.len() } else { random() as usize % 700 });
            let header = VnetHeader::parse(&vnet);
            let len = bytes.len();
            match work(&header, &bytes, len) {
                Ok(Work::Segment { head, size }) => {
                    template.load(&bytes, &header, len, head);
                    let mut all = [bytes[head..].chunks(size).collect::<Vec<_>>(), vec![&[][..]]].concat();
                    all.truncate(all.len().max(2) - 1);
                    for (index, payload) in all.into_iter().enumerate() {
                        template.write(index, &mut [&bytes[..head], payload].concat());
                    }
                }
                Ok(Work::Checksum { start, field }) => checksum::complete(&mut bytes, start, field),
                Ok(Work::None) | Err(BadOffload) => {}
            }
        }
    }

    #[test]
    fn header_round_trip() {
        let bytes = [1, 4, 0x34, 0x12, 5, 6, 7, 8, 9, 10];
        assert_eq!(VnetHeader::parse(&bytes).emit(), bytes);
    }
}
