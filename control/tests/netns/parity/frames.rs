//! Random frames of a LAN host, valid ones and ones that nobody should send.

use super::{End, Host};
use crate::support::{Partial, Random};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// A host's address that is valid on its link only.
pub const LINK_LOCAL: &str = "fe80::77";
/// The longest frame that every interface takes.
const FRAME: usize = 14 + 1500;
/// Packet sizes at which something changes: the least, the tunnel's MTU, the link's.
const SIZES: [usize; 8] = [0, 60, 576, 1280, 1380, 1420, 1440, 1500];

/// A frame to send.
pub struct Sent {
    pub bytes: Vec<u8>,
    pub partial: Option<Partial>,
    /// Where its IP packet begins.
    pub ip: usize,
}

/// The next frame of a host at `near`, mostly to one at `far`. `tag` tells its packet from others.
pub fn frame(random: &mut Random, tag: u16, near: &End, far: &End) -> Sent {
    let v6 = chance(random, 50);
    let (source, source_mac) = source(random, v6, near, far);
    let destination = destination(random, v6, near, far);
    let mut bytes = ethernet(random, v6, near.gateway_mac, source_mac);
    let ip = bytes.len();
    let most = FRAME - ip;
    let behind = headers(random, v6);
    let size = (pick(random, &SIZES) + random.below(13)).saturating_sub(6).min(most);
    let room = size.saturating_sub(behind.len() + if v6 { 40 } else { 20 });
    let whole = chance(random, 70);
    let behind = if whole { without_fragment_headers(v6, behind) } else { behind };
    // Nobody leaves the checksum of a fragment to a device.
    let (protocol, body, checksum) = transport(random, tag, (source, destination), room, whole);
    let mut packet = if v6 {
        ipv6(random, tag, (source, destination), protocol, behind)
    } else {
        ipv4(random, tag, (source, destination), protocol, behind, whole)
    };
    let start = packet.len();
    packet.extend(body);
    let intact = packet_lengths(random, v6, &mut packet, start);

    bytes.extend(packet);
    match random.below(40) {
        0 => bytes.extend(random.bytes(46.min(FRAME.saturating_sub(bytes.len())))),
        1 => bytes.truncate(15.max(bytes.len() - 1 - random.below(bytes.len() - 14))),
        _ => {}
    }
    // Whoever leaves a checksum to a device knows the packet's length.
    let field = checksum.filter(|_| intact);
    let field = field.map(|offset| Partial { start: (ip + start) as u16, offset: offset as u16 });
    let partial = field.filter(|field| usize::from(field.start + field.offset) + 2 <= bytes.len());
    Sent { bytes, partial, ip }
}

/// A datagram over UDP that nothing is wrong with. `tag` is its source port.
pub fn plain(tag: u16, v6: bool, (near, from): (&End, Host), to: Host) -> Sent {
    let (source, destination) = (from.address(v6), to.address(v6));
    let mut body = [tag, 9, 12, 0, tag, tag].map(u16::to_be_bytes).concat();
    let checksum = !fold(pseudo_header(source, destination, UDP, body.len()) + sum(&body));
    body[6..8].copy_from_slice(&checksum.to_be_bytes());
    let packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, UDP, 0, 0].to_vec();
            header.extend([source.octets(), destination.octets()].concat());
            let checksum = !fold(sum(&header));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            [&[0x60, 0, 0, 0, 0, 12, UDP, 64], &source.octets()[..], &destination.octets()].concat()
        }
        _ => panic!("one family"),
    };
    let kind: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    let bytes = [&near.gateway_mac[..], &from.mac, &kind, &packet, &body].concat();
    Sent { bytes, partial: None, ip: 14 }
}

pub fn chance(random: &mut Random, percent: usize) -> bool {
    random.below(100) < percent
}

pub fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len())]
}

fn address(v6: bool, v4_text: &str, v6_text: &str) -> IpAddr {
    (if v6 { v6_text } else { v4_text }).parse().expect("an address")
}

fn source(random: &mut Random, v6: bool, near: &End, far: &End) -> (IpAddr, [u8; 6]) {
    let host = pick(random, &near.hosts);
    let source = match random.below(30) {
        0 => near.gateway(v6),
        1 => pick(random, &far.hosts).address(v6),
        2 => address(v6, "172.16.9.9", "2001:db8:9::9"),
        3 => address(v6, "0.0.0.0", "::"),
        4 => address(v6, "127.0.0.1", "::1"),
        5 => address(v6, "169.254.7.7", LINK_LOCAL),
        6 => address(v6, "224.0.0.5", "ff02::5"),
        7 => near.broadcast(v6),
        _ => host.address(v6),
    };
    (source, host.mac)
}

fn destination(random: &mut Random, v6: bool, near: &End, far: &End) -> IpAddr {
    match random.below(40) {
        0 => near.gateway(v6),
        1 | 2 => far.gateway(v6),
        3 => address(v6, &format!("100.64.0.{}", far.number), "ff05::9"),
        4 => address(v6, "224.0.0.9", "ff0e::9"),
        5 => address(v6, "127.0.0.1", "::1"),
        6 => address(v6, "169.254.7.7", "ff01::9"),
        7 => address(v6, "255.255.255.255", "::"),
        8 => far.broadcast(v6),
        9 => address(v6, "240.0.0.9", "ff02::9"),
        _ => pick(random, &far.hosts).address(v6),
    }
}

/// Ethernet's header, mostly to the gateway and without a tag.
fn ethernet(random: &mut Random, v6: bool, gateway: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    let destination = match random.below(50) {
        0 => [0xff; 6],
        1 => [0x01, 0, 0x5e, 0, 0, 9],
        2 => [0x33, 0x33, 0, 0, 0, 9],
        3 => [0x02, 0xaa, 0x81, 0, 0x77, 0x77],
        4 => [0; 6],
        _ => gateway,
    };
    let tags: &[u32] = match random.below(50) {
        0 => &[0x8100_000a],
        1 => &[0x8100_0fa0],
        2..=4 => &[0x8100_e000],
        5 => &[0x8100_0000],
        6 => &[0x88a8_000a, 0x8100_000a],
        7 => &[0x8100_0000, 0x8100_000a],
        8 => &[0x8100_0000, 0x8100_2000],
        9 => &[0x88a8_0000],
        _ => &[],
    };
    let mut header = [destination, source].concat();
    tags.iter().for_each(|tag| header.extend(tag.to_be_bytes()));
    header.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    header
}

fn without_fragment_headers(v6: bool, headers: Vec<u8>) -> Vec<u8> {
    let keep = |header: &&[u8]| !v6 || header[0] != FRAGMENT;
    headers.chunks(if v6 { 8 } else { 4 }).filter(keep).flatten().copied().collect()
}

/// IPv4's options, or IPv6's extension headers, whose first byte is their own kind until they are chained.
fn headers(random: &mut Random, v6: bool) -> Vec<u8> {
    if chance(random, 80) {
        return Vec::new();
    }
    if v6 {
        let count = if chance(random, 10) { 10 } else { 1 + random.below(3) };
        return (0..count).flat_map(|_| extension(random)).collect();
    }
    let options: &[u8] = match random.below(7) {
        0 => &[1, 1, 1, 1],
        1 => &[148, 4, 0, 0],
        2 => &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // A full timestamp option, since times differ.
        3 => &[68, 12, 13, 0, 0, 0, 0, 7, 0, 0, 0, 7],
        4 => &[131, 7, 4, 10, 102, 0, 10, 0],
        5 => &[7, 200, 4, 0],
        _ => &[0x99, 0, 0, 0],
    };
    options.to_vec()
}

fn extension(random: &mut Random) -> [u8; 8] {
    let kind = pick(random, &[HOP_BY_HOP, ROUTING, FRAGMENT, FRAGMENT, DESTINATION_OPTIONS, DESTINATION_OPTIONS]);
    match kind {
        // An unknown option, with the action that it requests (RFC 8200, section 4.2).
        HOP_BY_HOP | DESTINATION_OPTIONS => [kind, 0, pick(random, &[1, 1, 0x1e, 0x9e]), 4, 0, 0, 0, 0],
        FRAGMENT => {
            let [high, low] = (pick(random, &[0u16, 0, 8, 1280]) | random.below(2) as u16).to_be_bytes();
            [kind, 0, high, low, 0, 0, 0, 7]
        }
        _ => [kind, 0, pick(random, &[0, 4, 200]), 0, 0, 0, 0, 0],
    }
}

fn ipv6(
    random: &mut Random,
    tag: u16,
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    mut extensions: Vec<u8>,
) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else { panic!("one family") };
    let mut next = protocol;
    for extension in extensions.rchunks_mut(8) {
        std::mem::swap(&mut extension[0], &mut next);
    }
    let class = traffic_class(random);
    let mut packet = vec![0x60 | class >> 4, class << 4];
    packet.extend(tag.to_be_bytes());
    packet.extend([0, 0, next, hops(random)]);
    packet.extend(Ipv6Addr::octets(&source));
    packet.extend(Ipv6Addr::octets(&destination));
    packet.extend(extensions);
    packet
}

fn ipv4(
    random: &mut Random,
    tag: u16,
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    options: Vec<u8>,
    whole: bool,
) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else { panic!("one family") };
    let fragment: u16 = if whole { pick(random, &[0, 0x4000]) } else { pick(random, &[0x2000, 0x2001, 160]) };
    let mut packet = vec![0x45 + (options.len() / 4) as u8, traffic_class(random), 0, 0];
    packet.extend(tag.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([hops(random), protocol, 0, 0]);
    packet.extend(Ipv4Addr::octets(&source));
    packet.extend(Ipv4Addr::octets(&destination));
    packet.extend(options);
    packet
}

fn traffic_class(random: &mut Random) -> u8 {
    pick(random, &[0, 0, 0, 1, 2, 3, 0xb8, 0x28 | 2, 0xc0, 0xff])
}

fn hops(random: &mut Random) -> u8 {
    pick(random, &[64, 64, 64, 64, 64, 255, 0, 1, 2, 3])
}

/// The protocol, its header and data, and where in it there is a checksum that is left to the device.
fn transport(
    random: &mut Random,
    tag: u16,
    (source, destination): (IpAddr, IpAddr),
    room: usize,
    whole: bool,
) -> (u8, Vec<u8>, Option<usize>) {
    let v6 = source.is_ipv6();
    let icmp = if v6 { ICMPV6 } else { ICMP };
    let protocol = pick(random, &[UDP, UDP, UDP, TCP, TCP, TCP, icmp, icmp, ICMP, ICMPV6, 4, 47, 50, 59, 132, 253]);
    let mut body = match protocol {
        UDP => [tag.to_be_bytes(), 9u16.to_be_bytes(), [0, 0], [0, 0]].concat(),
        TCP => tcp(random, tag),
        ICMP | ICMPV6 => icmp_message(random, tag, source, destination),
        _ => Vec::new(),
    };
    let more = room.saturating_sub(body.len());
    body.extend(random.bytes(more));
    let field = match protocol {
        UDP => 6,
        TCP => 16,
        ICMP if !v6 => 2,
        ICMPV6 if v6 => 2,
        _ => return (protocol, body, None),
    };
    if protocol == UDP {
        let len = body.len() as u16;
        body[4..6].copy_from_slice(&len.to_be_bytes());
    }
    let pseudo = if protocol == ICMP { 0 } else { pseudo_header(source, destination, protocol, body.len()) };
    let mut partial = None;
    let sum = match random.below(10) {
        // The pseudo-header's sum: the device must do the rest.
        0..=2 if whole && matches!(protocol, TCP | UDP) => {
            partial = Some(field);
            fold(pseudo)
        }
        3 => 0,
        // A wrong checksum must not be that of the pseudo-header, which asks for completion.
        4 if fold(pseudo) != 0x1234 => 0x1234,
        _ => !fold(pseudo + sum(&body)),
    };
    body[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    (protocol, body, partial)
}

fn tcp(random: &mut Random, tag: u16) -> Vec<u8> {
    let flags = pick(random, &[0x10, 0x18, 0x02, 0x12, 0x04, 0x11, 0xc2, 0]);
    let mut header = [tag.to_be_bytes(), 443u16.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x60, flags, 0x20, 0, 0, 0, 0, 0]);
    // A segment size that may be too large, or a truncated option.
    header.extend(pick(random, &[[2, 4, 0x05, 0xb4], [2, 4, 0x23, 0x28], [1, 1, 1, 0], [2, 40, 0, 0]]));
    header
}

/// An echo, or an error that quotes a packet of the other direction.
fn icmp_message(random: &mut Random, tag: u16, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let [high, low] = tag.to_be_bytes();
    let v6 = source.is_ipv6();
    let kind = match (v6, random.below(3)) {
        // No timestamps (13): the answers contain the time of day.
        (false, 0) => pick(random, &[3, 4, 5, 11, 12, 0, 17, 200]),
        (true, 0) => pick(random, &[1, 2, 3, 4, 129, 100, 200]),
        (false, _) => 8,
        (true, _) => 128,
    };
    let mut message = vec![kind, 0, 0, 0, high, low, high, low];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) if kind < 8 || kind == 11 => {
            message.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 60, UDP, 0, 0]);
            message.extend(destination.octets());
            message.extend(source.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) if kind < 5 => {
            message.extend([0x60, 0, 0, 0, 0, 8, UDP, 60]);
            message.extend(destination.octets());
            message.extend(source.octets());
        }
        _ => {}
    }
    message
}

/// Writes lengths and IPv4's checksum, and damages a few headers. Returns whether they are intact.
fn packet_lengths(random: &mut Random, v6: bool, packet: &mut [u8], header: usize) -> bool {
    let (wrong, more) = (random.below(60), random.below(100));
    let right = packet.len() - if v6 { 40 } else { 0 };
    let len = match wrong {
        0 => right + 1 + more % 9,
        1 => right.saturating_sub(1 + more % 9),
        2 => more % 40,
        _ => right,
    };
    let sound = packet[0];
    match wrong {
        3 => packet[0] = sound & 0x0f | pick(random, &[0, 0x40, 0x50, 0x60]),
        4 if !v6 => packet[0] = sound & 0xf0 | pick(random, &[0, 4, 6, 15]),
        _ => {}
    }
    let field = if v6 { 4 } else { 2 };
    packet[field..field + 2].copy_from_slice(&(len as u16).to_be_bytes());
    // Some of the damage has no effect.
    let intact = len == right && packet[0] == sound;
    if v6 {
        return intact;
    }
    let right = !fold(sum(&packet[..header]));
    let sum = if matches!(wrong, 5 | 6) { right ^ 0x100 } else { right };
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    intact && sum == right
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    let octets = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    sum(&octets(source)) + sum(&octets(destination)) + u32::from(protocol) + len as u32
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Packets that come after all others: to the far end, and an echo by its kernel, each by AF_XDP and, with options, by
/// the near kernel. The far kernel may answer those that the near kernel carries later than the others.
pub fn fences(near: &End, far: &End, mark: &[u8]) -> [Vec<u8>; 4] {
    let fence = |to: IpAddr, protocol: u8, options: &[u8], mut body: Vec<u8>| {
        let (IpAddr::V4(source), IpAddr::V4(to)) = (near.hosts[0].address(false), to) else { panic!("IPv4") };
        body.extend(mark);
        let header = 20 + options.len();
        let mut packet =
            vec![0x40 + (header / 4) as u8, 0, 0, (header + body.len()) as u8, 0, 0, 0, 0, 9, protocol, 0, 0];
        packet.extend(source.octets());
        packet.extend(to.octets());
        packet.extend(options);
        let checksum = !fold(sum(&packet));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        [&near.gateway_mac[..], &near.hosts[0].mac, &[0x08, 0x00], &packet, &body].concat()
    };
    let (host, gateway) = (far.hosts[0].address(false), far.gateway(false));
    let mut echo = [&[8, 0, 0, 0, 0, 0, 0, 0], mark].concat();
    let checksum = !fold(sum(&echo));
    echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    echo.truncate(8);
    [
        fence(host, 253, &[], Vec::new()),
        fence(host, 253, &[1; 4], Vec::new()),
        fence(gateway, ICMP, &[], echo.clone()),
        fence(gateway, ICMP, &[1; 4], echo),
    ]
}
