//! Coalescing: which packets on their way to the TUN device are combined into super-packets.
//!
//! The rules are those of the kernel's GRO (`net/ipv4/tcp_offload.c`, `udp_offload.c`): packets are combined only if
//! segmentation would yield them again, bit for bit except for meaningless IDs. Their checksums are verified first,
//! because the super-packet's is computed anew: a corrupted packet must arrive corrupted.
//!
//! Runs begin in the order of their first packets. A packet that does not continue its flow's open run ends that run,
//! so packets of one flow are never reordered; packets of different flows may overtake each other.

use super::BATCH;
use super::offload::{
    ACK, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, PSH, VnetHeader, be16, network_len, put16, transport,
};
use crate::checksum;
use crate::inner::{TCP, TCP_CSUM, UDP, UDP_CSUM};

/// A super-packet is an IP packet, so it can be no longer than one.
const SUPER_MAX: usize = 65_535;
/// The most datagrams in a run: the kernel's UDP_MAX_SEGMENTS before Linux 6.9.
const DATAGRAMS_MAX: u16 = 64;
/// The most flows with open runs at a time.
const OPEN_MAX: usize = 8;
/// No packet.
const END: u16 = u16::MAX;

/// Identifies a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    addresses: [u8; 32],
    ports: [u8; 4],
    protocol: u8,
    v6: bool,
}

/// The flow of packets that are not combined.
const NONE: Flow = Flow { addresses: [0; 32], ports: [0; 4], protocol: 0, v6: false };

/// What matters about a packet for combining it with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Length of all headers.
    head: usize,
    payload: usize,
    transport: usize,
    tcp: bool,
}

/// Packets that are combined.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    flow: Flow,
    shape: Shape,
    first: u16,
    last: u16,
    count: u16,
    /// Length of all payloads.
    payload: usize,
    verified: bool,
    /// TCP: the last segment's PSH.
    flags: u8,
}

impl Run {
    /// How many packets it has.
    pub(super) fn count(&self) -> usize {
        self.count.into()
    }

    /// Length of the headers, behind which each packet's payload begins.
    pub(super) fn head(&self) -> usize {
        self.shape.head
    }

    /// Turns the first packet's headers into those of the super-packet.
    pub(super) fn finish(&self, first: &mut [u8]) -> VnetHeader {
        let Shape { head, payload, transport, tcp } = self.shape;
        let len = head + self.payload;
        let v4 = first[0] >> 4 == 4;
        if v4 {
            put16(first, 2, len as u16);
            let checksum = checksum::ipv4_header(&first[..20]);
            put16(first, 10, checksum);
        } else {
            put16(first, 4, (len - 40) as u16);
        }
        let csum_offset = if tcp {
            first[transport + 13] |= self.flags;
            TCP_CSUM
        } else {
            put16(first, transport + 4, (len - transport) as u16);
            UDP_CSUM
        };
        let seed = checksum::fold(pseudo_header(first, self.flow.protocol, len - transport));
        put16(first, transport + csum_offset, seed);
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: if !tcp {
                GSO_UDP_L4
            } else if v4 {
                GSO_TCPV4
            } else {
                GSO_TCPV6
            },
            hdr_len: head as u16,
            gso_size: payload as u16,
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

/// Sorts a batch into runs.
pub(super) struct Coalescer {
    /// Whether the device takes UDP super-packets.
    udp: bool,
    runs: Vec<Run>,
    /// For each packet, the next one of its run.
    next: [u16; BATCH],
    /// Runs that may still grow, the oldest first.
    open: Vec<u16>,
}

impl Coalescer {
    /// A coalescer for a device that takes UDP super-packets, or does not.
    pub(super) fn new(udp: bool) -> Self {
        Self { udp, runs: Vec::with_capacity(BATCH), next: [END; BATCH], open: Vec::with_capacity(OPEN_MAX) }
    }

    /// Sorts `count` packets into runs, in the order in which they are to be written.
    pub(super) fn sort<'a>(&mut self, count: usize, packet: impl Fn(usize) -> &'a [u8]) {
        self.runs.clear();
        self.open.clear();
        for i in 0..count.min(BATCH) {
            let bytes = packet(i);
            let Some((flow, shape)) = classify(bytes, self.udp) else {
                self.close_like(bytes, &packet);
                self.begin(i, NONE, None);
                continue;
            };
            let Some(at) = self.open.iter().position(|run| self.runs[usize::from(*run)].flow == flow) else {
                self.begin(i, flow, shape);
                continue;
            };
            let run = usize::from(self.open[at]);
            if let Some(shape) = shape
                && self.continues(run, &packet, bytes, shape)
            {
                if self.append(run, i, bytes, shape) {
                    self.open.remove(at);
                }
            } else {
                self.open.remove(at);
                self.begin(i, flow, shape);
            }
        }
    }

    /// The runs made by [`Coalescer::sort`].
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Indices of a run's packets, in order.
    pub(super) fn packets(&self, run: &Run) -> impl Iterator<Item = usize> {
        let mut at = run.first;
        std::iter::from_fn(move || {
            let now = usize::from(at);
            at = *self.next.get(now)?;
            Some(now)
        })
    }

    /// Begins a run with packet `i`; if it has no shape, no other packet joins the run.
    fn begin(&mut self, i: usize, flow: Flow, shape: Option<Shape>) {
        let i = i as u16;
        self.next[usize::from(i)] = END;
        let grows = shape.is_some();
        let shape = shape.unwrap_or(Shape { head: 0, payload: 0, transport: 0, tcp: false });
        if grows {
            if self.open.len() == OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push(self.runs.len() as u16);
        }
        let payload = shape.payload;
        self.runs.push(Run { flow, shape, first: i, last: i, count: 1, payload, verified: false, flags: 0 });
    }

    /// Whether a packet of a run's flow is the run's next segment.
    fn continues<'a>(&mut self, run: usize, packet: &impl Fn(usize) -> &'a [u8], next: &[u8], shape: Shape) -> bool {
        let run = &mut self.runs[run];
        let first = packet(run.first.into());
        let alike = shape.head == run.shape.head
            && shape.payload <= run.shape.payload
            && run.shape.head + run.payload + shape.payload <= SUPER_MAX
            && (shape.tcp || run.count < DATAGRAMS_MAX)
            && follows(first, next, run);
        if !alike {
            return false;
        }
        // The first packet is verified only now, when it is worth it.
        run.verified = run.verified || verify(first, &run.shape);
        run.verified && verify(next, &shape)
    }

    /// Appends packet `i` to a run; returns whether the run is then complete.
    fn append(&mut self, run: usize, i: usize, bytes: &[u8], shape: Shape) -> bool {
        let run = &mut self.runs[run];
        self.next[usize::from(run.last)] = i as u16;
        self.next[i] = END;
        run.last = i as u16;
        run.count += 1;
        run.payload += shape.payload;
        if shape.tcp {
            run.flags = bytes[shape.transport + 13] & PSH;
        }
        shape.payload < run.shape.payload || run.flags != 0
    }

    /// Closes all runs between the packet's hosts, because it may belong to any of their flows.
    fn close_like<'a>(&mut self, bytes: &[u8], packet: &impl Fn(usize) -> &'a [u8]) {
        let runs = &self.runs;
        self.open.retain(|run| addresses(packet(runs[usize::from(*run)].first.into())) != addresses(bytes));
    }
}

/// Source and destination.
fn addresses(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? >> 4 {
        4 => packet.get(12..20),
        6 => packet.get(8..40),
        _ => None,
    }
}

/// The flow of a packet, if it has one, and its shape if it may be part of a run.
fn classify(packet: &[u8], udp: bool) -> Option<(Flow, Option<Shape>)> {
    let (protocol, at) = transport(packet)?;
    if !matches!(protocol, TCP | UDP) {
        return None;
    }
    let header = packet.get(at..)?;
    let v4 = packet[0] >> 4 == 4;
    let mut flow = Flow { ports: *header.first_chunk()?, protocol, v6: !v4, ..NONE };
    let addresses = addresses(packet)?;
    flow.addresses[..addresses.len()].copy_from_slice(addresses);
    // No options or extension headers, no fragment or reserved bit, no padding after the packet.
    let plain = at == if v4 { 20 } else { 40 }
        && !(v4 && be16(packet, 6) & !0x4000 != 0)
        && network_len(packet) == Some(packet.len());
    let head = if protocol == TCP {
        header.get(12).filter(|_| header.len() >= 20).map(|offset| (4 * usize::from(offset >> 4), offset & 15))
    } else {
        (udp && header.len() > 8 && usize::from(be16(header, 4)) == header.len() && be16(header, UDP_CSUM) != 0)
            .then_some((8, 0))
    };
    let shape = head.filter(|(len, reserved)| plain && *reserved == 0 && *len >= 8 && *len < header.len());
    let shape = shape.filter(|(len, _)| protocol == UDP || *len >= 20 && header[13] & !PSH == ACK);
    let shape = shape.map(|(len, _)| Shape {
        head: at + len,
        payload: header.len() - len,
        transport: at,
        tcp: protocol == TCP,
    });
    Some((flow, shape))
}

/// Whether `next`'s headers are those of the segment that follows `run`, which began with `first`.
fn follows(first: &[u8], next: &[u8], run: &Run) -> bool {
    let Shape { head, transport, tcp, .. } = run.shape;
    let network = if transport == 20 {
        let (id, expected) = (be16(next, 4), be16(first, 4).wrapping_add(run.count));
        // RFC 6864: the ID of a packet that must not be fragmented has no meaning.
        let atomic = first[6] & 0x40 != 0;
        first[..2] == next[..2] && first[6..10] == next[6..10] && (atomic || id == expected)
    } else {
        first[..4] == next[..4] && first[6..8] == next[6..8]
    };
    if !network || !tcp {
        return network;
    }
    let (first, next) = (&first[transport..head], &next[transport..head]);
    // A packet with PSH ended the run when it was appended, so only the first one can have it here.
    let sequence = |header: &[u8]| u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    sequence(next) == sequence(first).wrapping_add(run.payload as u32)
        && first[13] & PSH == 0
        && first[8..13] == next[8..13]
        && first[14..16] == next[14..16]
        && first[18..] == next[18..]
}

/// Whether all checksums of a packet are correct.
fn verify(packet: &[u8], shape: &Shape) -> bool {
    let protocol = if shape.tcp { TCP } else { UDP };
    let network = shape.transport == 40 || checksum::fold(checksum::sum(&packet[..20])) == 0xffff;
    let segment = &packet[shape.transport..];
    network && checksum::fold(pseudo_header(packet, protocol, segment.len()) + checksum::sum(segment)) == 0xffff
}

fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> u32 {
    let addresses = addresses(packet).expect("a run's packets have addresses");
    checksum::pseudo_header(addresses, protocol, len)
}

#[cfg(test)]
mod tests {
    use super::super::offload::tests::{Shape as Packet, TCP4, packet};
    use super::super::offload::{FIN, Work, cut, work};
    use super::*;

    fn sort(packets: &[Vec<u8>]) -> (Coalescer, Vec<Vec<usize>>) {
        let mut coalescer = Coalescer::new(true);
        coalescer.sort(packets.len(), |i| &packets[i]);
        let runs = coalescer.runs().iter().map(|run| coalescer.packets(run).collect()).collect();
        (coalescer, runs)
    }

    /// The run as the kernel gets it, and the segments that it makes of it.
    fn through_the_kernel(coalescer: &Coalescer, run: &Run, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut indices = coalescer.packets(run);
        let mut bytes = packets[indices.next().unwrap()].clone();
        if run.count() == 1 {
            return vec![bytes];
        }
        let header = run.finish(&mut bytes);
        indices.for_each(|i| bytes.extend_from_slice(&packets[i][run.head()..]));
        let Ok(Work::Segment { head, size }) = work(&header, &bytes, bytes.len()) else { panic!("unsound") };
        assert_eq!(head, run.head());
        cut(&header, &bytes, head, size)
    }

    /// Segments of 1000 bytes, the last one of 100 with PSH.
    fn stream(shape: Packet, count: usize) -> Vec<Vec<u8>> {
        let segment = |i: usize| {
            let last = i + 1 == count;
            let flags = if last { ACK | PSH } else { ACK };
            let sequence = shape.sequence.wrapping_add(1000 * i as u32);
            let shape = Packet { flags, sequence, id: shape.id.wrapping_add(i as u16), ..shape };
            packet(shape, &vec![i as u8; if last { 100 } else { 1000 }])
        };
        (0..count).map(segment).collect()
    }

    #[test]
    fn a_stream_is_one_run_and_comes_out_as_it_was() {
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            let packets = stream(Packet { v6, tcp, sequence: u32::MAX - 1500, ..TCP4 }, 20);
            let (coalescer, runs) = sort(&packets);
            assert_eq!(runs, [(0..20).collect::<Vec<_>>()]);
            assert_eq!(through_the_kernel(&coalescer, &coalescer.runs()[0], &packets), packets);
        }
    }

    #[test]
    fn udp_only_where_the_device_takes_it() {
        let packets = stream(Packet { tcp: false, ..TCP4 }, 3);
        let mut coalescer = Coalescer::new(false);
        coalescer.sort(3, |i| &packets[i]);
        assert_eq!(coalescer.runs().len(), 3);
    }

    #[test]
    fn what_segmentation_would_not_restore_is_not_joined() {
        type Change = fn(&mut Vec<u8>);
        let tcp4: [(&str, Change); 17] = [
            ("TOS", |p| p[1] ^= 1),
            ("a fragment", |p| p[6] |= 0x20),
            ("may be fragmented", |p| p[6] ^= 0x40),
            ("TTL", |p| p[8] -= 1),
            ("source", |p| p[15] ^= 1),
            ("port", |p| p[21] ^= 1),
            ("sequence", |p| p[27] ^= 1),
            ("acknowledgement", |p| p[31] ^= 1),
            ("reserved bit", |p| p[32] |= 1),
            ("FIN", |p| p[33] |= FIN),
            ("SYN", |p| p[33] |= 2),
            ("URG", |p| p[33] |= 0x20),
            ("CWR", |p| p[33] |= 0x80),
            ("window", |p| p[35] ^= 1),
            ("timestamp", |p| p[51] ^= 1),
            ("padding", |p| p.push(0)),
            ("longer", |p| {
                p.push(0);
                p[3] += 1;
            }),
        ];
        for (what, change) in tcp4 {
            let mut packets = stream(TCP4, 3);
            change(&mut packets[1]);
            rechecksum(&mut packets[1]);
            let (_, runs) = sort(&packets);
            assert!(!runs.iter().any(|run| run.starts_with(&[0, 1])), "{what}");
        }
    }

    fn rechecksum(packet: &mut [u8]) {
        let checksum = checksum::ipv4_header(&packet[..20]);
        put16(packet, 10, checksum);
        put16(packet, 20 + TCP_CSUM, 0);
        let sum = checksum::fold(pseudo_header(packet, TCP, packet.len() - 20) + checksum::sum(&packet[20..]));
        put16(packet, 20 + TCP_CSUM, !sum);
    }

    #[test]
    fn ids_of_packets_that_may_be_fragmented_count_on() {
        let mut packets = stream(TCP4, 4);
        for (i, packet) in packets.iter_mut().enumerate() {
            packet[6] = 0;
            put16(packet, 4, [5, 6, 8, 9][i]);
            rechecksum(packet);
        }
        assert_eq!(sort(&packets).1, [[0, 1], [2, 3]]);
    }

    #[test]
    fn corruption_anywhere_is_passed_on_as_it_is() {
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            for victim in 0..3 {
                let sound = stream(Packet { v6, tcp, ..TCP4 }, 3);
                for at in 0..120 {
                    let mut packets = sound.clone();
                    packets[victim][at] ^= 0x10;
                    let (coalescer, runs) = sort(&packets);
                    assert!(runs.contains(&vec![victim]) || is_free_of_checksums(v6, at), "{victim} {at}: {runs:?}");
                    let out = coalescer.runs().iter().flat_map(|run| through_the_kernel(&coalescer, run, &packets));
                    let mut out: Vec<_> = out.collect();
                    out.iter_mut().chain(&mut packets).for_each(|packet| forget_id(packet));
                    out.sort();
                    packets.sort();
                    assert!(out == packets, "{victim} {at}: {runs:?}");
                }
            }
        }
    }

    /// Blanks what segmentation may change: the ID of an atomic datagram, and its header checksum.
    fn forget_id(packet: &mut [u8]) {
        if packet.len() > 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
            [4, 5, 10, 11].into_iter().for_each(|at| packet[at] = 0);
        }
    }

    /// Whether these bytes are outside any checksum, as in an IPv6 header; if they differ, packets are not combined
    /// either.
    fn is_free_of_checksums(v6: bool, at: usize) -> bool {
        v6 && at < 40
    }

    #[test]
    fn interleaved_flows_are_joined_and_other_packets_end_them() {
        let (a, b) = (stream(TCP4, 6), stream(Packet { port: 2, v6: true, ..TCP4 }, 6));
        let packets: Vec<_> = a.iter().zip(&b).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
        assert_eq!(sort(&packets).1, [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]);

        // A bare ACK of the flow, and a fragment that may belong to it.
        let ack = packet(Packet { sequence: 3000, ..TCP4 }, &[]);
        let mut fragment = a[2].clone();
        fragment[6] = 0x20;
        for other in [ack, fragment] {
            let mut packets = a[..4].to_vec();
            packets.insert(2, other);
            assert_eq!(sort(&packets).1, [vec![0, 1], vec![2], vec![3, 4]]);
        }
    }

    #[test]
    fn runs_stay_within_an_ip_packet() {
        let segment = |i: u32| packet(Packet { sequence: i * 1400, ..TCP4 }, &[1; 1400]);
        let packets: Vec<_> = (0..100).map(segment).collect();
        let runs = sort(&packets).1;
        assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [46, 46, 8]);
        let datagrams: Vec<_> = (0..100).map(|_| packet(Packet { tcp: false, ..TCP4 }, &[1; 20])).collect();
        assert_eq!(sort(&datagrams).1.len(), 2);
    }

    #[test]
    fn random_traffic_keeps_its_bytes_and_the_order_of_every_flow() {
        let mut state = 3u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut joined = 0;
        for _ in 0..300 {
            let mut flows: Vec<_> =
                (0..12).map(|port| Packet { v6: port % 2 == 0, tcp: port % 3 > 0, port, id: 0, ..TCP4 }).collect();
            let mut packets = Vec::new();
            let mut names = Vec::new();
            while packets.len() < BATCH {
                let flow = random(flows.len());
                for _ in 0..random(6) {
                    let len = if random(8) == 0 { random(300) } else { 300 };
                    flows[flow].flags = if random(10) == 0 { ACK | PSH } else { ACK };
                    let mut bytes = packet(flows[flow], &vec![random(256) as u8; len]);
                    flows[flow].sequence += len as u32;
                    flows[flow].id += 1;
                    let mut name = Some(flow);
                    if random(20) == 0 {
                        let at = random(bytes.len());
                        bytes[at] ^= 1 << random(8);
                        // A damaged header may belong to another flow.
                        name = name.filter(|_| at >= 60);
                    }
                    if random(50) == 0 {
                        bytes.truncate(random(bytes.len()));
                        name = name.filter(|_| bytes.len() >= 60);
                    }
                    packets.push(bytes);
                    names.push(name);
                }
            }
            packets.truncate(BATCH);
            let (coalescer, runs) = sort(&packets);
            let mut all: Vec<_> = runs.concat();
            for flow in 0..flows.len() {
                assert!(all.iter().filter(|i| names[**i] == Some(flow)).is_sorted());
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..packets.len()));
            for (run, indices) in coalescer.runs().iter().zip(&runs) {
                let mut expected: Vec<_> = indices.iter().map(|i| packets[*i].clone()).collect();
                let mut out = through_the_kernel(&coalescer, run, &packets);
                if indices.len() > 1 {
                    out.iter_mut().chain(&mut expected).for_each(|packet| forget_id(packet));
                }
                assert!(out == expected, "{indices:?}");
                joined += indices.len() - 1;
            }
        }
        assert!(joined > 7000, "only {joined}");
    }
}
