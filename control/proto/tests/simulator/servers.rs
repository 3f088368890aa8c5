//! The STUN server with two addresses and two ports (RFC 5780), and the relay, which forwards datagrams unchanged
//! between the sites bound to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use penstock_proto::path::{Envelope, SiteId};
use penstock_proto::stun::message::{Message, decode, encode_success};

pub const STUN: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2))];
pub const STUN_PORTS: [u16; 2] = [3478, 3479];

/// What the server that received `bytes` at `to` sends, and from where.
pub fn stun_answer(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
    let Ok(Message::Request { transaction, change, .. }) = decode(bytes) else {
        return None;
    };
    let turn = |at: SocketAddr, ip: bool, port: bool| -> SocketAddr {
        let host = STUN.iter().position(|host| at.ip() == *host).unwrap();
        let number = STUN_PORTS.iter().position(|number| at.port() == *number).unwrap();
        SocketAddr::new(STUN[host ^ usize::from(ip)], STUN_PORTS[number ^ usize::from(port)])
    };
    let origin = turn(to, change.ip, change.port);
    let answer = encode_success(&transaction, from, origin, Some(turn(to, true, true)));
    assert!(answer.len() <= bytes.len(), "the server multiplies nothing");
    Some((origin, answer))
}

pub fn stun_server() -> SocketAddr {
    SocketAddr::new(STUN[0], STUN_PORTS[0])
}

/// Where a site is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    Udp(SocketAddr),
    Tls(usize),
}

#[derive(Default)]
pub struct Relay {
    pub down: bool,
    /// Whether it drops sized pings and pongs, as older versions did.
    pub is_old: bool,
    udp: BTreeMap<SiteId, (SocketAddr, Instant)>,
    tls: BTreeMap<SiteId, usize>,
    pub forwarded: usize,
}

/// How long a UDP binding lasts without being refreshed.
const LIFETIME: Duration = Duration::from_secs(60);

pub fn bind_message(site: SiteId) -> Vec<u8> {
    [&[0x50, 0x10, 1, 0][..], &site.0].concat()
}

pub fn data_message(receiver: SiteId, sender: usize, number: u64) -> Vec<u8> {
    [&[4, 0, 0, 0][..], &receiver.0, &(sender as u64).to_be_bytes(), &number.to_be_bytes()].concat()
}

/// Whether it is a sized ping or pong.
pub fn is_sized(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50, 6 | 7, ..])
}

impl Relay {
    /// Where a datagram is forwarded to.
    pub fn handle(&mut self, now: Instant, from: Binding, bytes: &[u8]) -> Option<Binding> {
        if self.down || self.is_old && is_sized(bytes) {
            return None;
        }
        let receiver = match bytes {
            [0x50, 0x10, 1, 0, site @ ..] => {
                let site = SiteId(site.try_into().ok()?);
                match from {
                    Binding::Udp(address) => _ = self.udp.insert(site, (address, now)),
                    Binding::Tls(gateway) => _ = self.tls.insert(site, gateway),
                }
                return None;
            }
            [4, 0, 0, 0, rest @ ..] => SiteId(rest.get(..8)?.try_into().ok()?),
            _ => Envelope::parse(bytes).ok()?.receiver,
        };
        self.forwarded += 1;
        let udp = self.udp.get(&receiver).filter(|(_, at)| now < *at + LIFETIME).map(|(at, _)| Binding::Udp(*at));
        udp.or_else(|| self.tls.get(&receiver).map(|gateway| Binding::Tls(*gateway)))
    }
}
