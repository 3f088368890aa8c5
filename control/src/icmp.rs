//! What routers report about datagrams of ours that were too large for them: ICMP "fragmentation needed" (RFC 792, RFC
//! 1191) and ICMPv6 "packet too big" (RFC 4443).
//!
//! It is read from raw sockets, since errors on the tunnel's own sockets would interrupt its traffic. Anyone can send
//! such a message; whoever uses it decides what it is worth.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use penstock_proto::pmtu::TooBig;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recv, socket_with};
use tokio::io::unix::AsyncFd;

use crate::readable;

/// Longer than what routers quote (RFC 4443, section 2.4: up to 1280 bytes in all).
const LONGEST: usize = 1500;
/// Messages that are taken at once: a flood must not keep the other inputs waiting.
const AT_ONCE: usize = 64;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
/// `linux/icmp.h` and `linux/icmpv6.h`: options of raw sockets that select the types to receive.
const ICMP_FILTER: i32 = 1;
const ICMPV6_FILTER: i32 = 1;
const SOL_RAW: i32 = 255;
/// "Destination unreachable", of which "fragmentation needed" is code 4.
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;

/// Receives what routers report, as far as this process may.
pub struct Routers {
    v4: Option<AsyncFd<OwnedFd>>,
    v6: Option<AsyncFd<OwnedFd>>,
}

/// A message about a datagram of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooBigMessage {
    /// The UDP port that the datagram came from.
    pub source_port: u16,
    to: SocketAddr,
    mtu: u16,
    length: u16,
    payload: Vec<u8>,
}

impl TooBigMessage {
    /// The message in the protocol's terms.
    pub fn too_big(&self) -> TooBig<'_> {
        TooBig { to: self.to, mtu: self.mtu, length: self.length, payload: &self.payload }
    }
}

impl Routers {
    /// Opens the sockets; nothing is received without CAP_NET_RAW, or of an IP version that the kernel lacks.
    pub fn open() -> Self {
        let open = |family, protocol, level, option, filter: &[u8]| {
            let opened = socket(family, protocol, level, option, filter);
            opened
                .inspect_err(|e| tracing::debug!("ICMP errors of routers cannot be received over {family:?}: {e}"))
                .ok()
        };
        // A set bit blocks a type.
        let v4 = !(1u32 << UNREACHABLE);
        let mut v6 = [0xff_u8; 32];
        let word = !(1u32 << PACKET_TOO_BIG);
        v6[..4].copy_from_slice(&word.to_ne_bytes());
        Self {
            v4: open(AddressFamily::INET, ipproto::ICMP, SOL_RAW, ICMP_FILTER, &v4.to_ne_bytes()),
            v6: open(AddressFamily::INET6, ipproto::ICMPV6, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &v6),
        }
    }

    /// The next messages. Cancel safe.
    pub async fn next(&self) -> Vec<TooBigMessage> {
        tokio::select! {
            messages = receive(self.v4.as_ref(), parse_v4) => messages,
            messages = receive(self.v6.as_ref(), parse_v6) => messages,
        }
    }
}

fn socket(
    family: AddressFamily,
    protocol: rustix::net::Protocol,
    level: i32,
    option: i32,
    filter: &[u8],
) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::RAW, flags, Some(protocol))?;
    penstock_dataplane::ports::set_option(&socket, level, option, filter)?;
    readable::register(socket)
}

async fn receive(socket: Option<&AsyncFd<OwnedFd>>, parse: fn(&[u8]) -> Option<TooBigMessage>) -> Vec<TooBigMessage> {
    let Some(socket) = socket else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
        let mut messages = Vec::new();
        let mut message = [0; LONGEST];
        for _ in 0..AT_ONCE {
            match recv(socket.get_ref().as_fd(), &mut message, RecvFlags::DONTWAIT) {
                Ok((length, _)) => messages.extend(parse(&message[..length])),
                Err(_) => {
                    ready.clear_ready();
                    break;
                }
            }
        }
        if !messages.is_empty() {
            return messages;
        }
    }
}

/// Parses what a raw ICMP socket returns: an IPv4 packet.
pub fn parse_v4(packet: &[u8]) -> Option<TooBigMessage> {
    let (_, icmp) = ipv4(packet)?;
    if icmp.len() < ICMP_HEADER || icmp[..2] != [UNREACHABLE, FRAGMENTATION_NEEDED] {
        return None;
    }
    let (quoted, datagram) = ipv4(&icmp[ICMP_HEADER..])?;
    let fragment_offset = u16::from_be_bytes([quoted[6], quoted[7]]) & 0x1fff;
    if quoted[9] != UDP || fragment_offset != 0 {
        return None;
    }
    let to = Ipv4Addr::from(<[u8; 4]>::try_from(&quoted[16..20]).ok()?);
    let (mtu, length) = (word(icmp, 6)?, word(quoted, 2)?);
    udp(to.into(), mtu, length, datagram)
}

/// Parses what a raw ICMPv6 socket returns: an ICMPv6 message.
pub fn parse_v6(icmp: &[u8]) -> Option<TooBigMessage> {
    let quoted = icmp.get(ICMP_HEADER..)?;
    if icmp[0] != PACKET_TOO_BIG || quoted.len() < IPV6_HEADER || quoted[0] >> 4 != 6 || quoted[6] != UDP {
        return None;
    }
    let mtu = u32::from_be_bytes(icmp[4..8].try_into().ok()?);
    let to = Ipv6Addr::from(<[u8; 16]>::try_from(&quoted[24..40]).ok()?);
    let length = word(quoted, 4)?.checked_add(IPV6_HEADER as u16)?;
    udp(to.into(), u16::try_from(mtu).ok()?, length, &quoted[IPV6_HEADER..])
}

fn udp(to: IpAddr, mtu: u16, length: u16, datagram: &[u8]) -> Option<TooBigMessage> {
    let payload = datagram.get(UDP_HEADER..)?.to_vec();
    let to = SocketAddr::new(to, word(datagram, 2)?);
    Some(TooBigMessage { source_port: word(datagram, 0)?, to, mtu, length, payload })
}

/// Header and payload of an IPv4 packet that may have been truncated.
fn ipv4(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    if packet[0] >> 4 != 4 || length < 20 || packet.len() < length {
        return None;
    }
    Some(packet.split_at(length))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: [u8; 8] = [4, 0, 0, 0, 7, 0, 0, 0];

    fn quoted_udp() -> Vec<u8> {
        let header = [0xb7, 0xfc, 0xb7, 0xfd, 0, 16, 0, 0];
        [header, DATA].concat()
    }

    fn v4() -> Vec<u8> {
        let header = |protocol: u8, to: [u8; 4]| {
            let mut header = [0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0];
            header[16..].copy_from_slice(&to);
            header
        };
        let icmp = [UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, 0x05, 0x78];
        [&header(1, [192, 0, 2, 1])[..], &icmp, &header(UDP, [198, 51, 100, 9]), &quoted_udp()].concat()
    }

    fn v6() -> Vec<u8> {
        let mut quoted = [0_u8; IPV6_HEADER];
        (quoted[0], quoted[6]) = (0x60, UDP);
        quoted[4..6].copy_from_slice(&1460_u16.to_be_bytes());
        quoted[24..].copy_from_slice(&"2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
        [&[PACKET_TOO_BIG, 0, 0, 0, 0, 0, 0x05, 0x78][..], &quoted, &quoted_udp()].concat()
    }

    #[test]
    fn both_families_are_read() {
        let message = |to: &str| TooBigMessage {
            source_port: 47100,
            to: to.parse().unwrap(),
            mtu: 1400,
            length: 1500,
            payload: DATA.to_vec(),
        };
        assert_eq!(parse_v4(&v4()), Some(message("198.51.100.9:47101")));
        assert_eq!(parse_v6(&v6()), Some(message("[2001:db8::9]:47101")));
        assert!(message("198.51.100.9:1").too_big().is_proven(|index| index == 7));
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_nothing() {
        for (whole, parse) in [(v4(), parse_v4 as fn(&[u8]) -> Option<TooBigMessage>), (v6(), parse_v6)] {
            for length in 0..whole.len() - DATA.len() {
                assert_eq!(parse(&whole[..length]), None, "{length} bytes");
            }
        }
        for (at, value) in [(0, 0x65), (0, 0x4f), (20, 11), (21, 3), (28, 0x44), (35, 1), (37, 6)] {
            let mut other = v4();
            other[at] = value;
            assert_eq!(parse_v4(&other), None, "byte {at}");
        }
        for (at, value) in [(0, 1), (4, 1), (8, 0x40), (14, 6)] {
            let mut other = v6();
            other[at] = value;
            assert_eq!(parse_v6(&other), None, "byte {at}");
        }
    }
}
