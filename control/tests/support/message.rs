//! WireGuard messages made by hand, as an attacker or a half-broken peer would.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use std::net::SocketAddr;

pub const HANDSHAKE_INITIATION: u8 = 1;
pub const HANDSHAKE_RESPONSE: u8 = 2;
pub const COOKIE_REPLY: u8 = 3;
pub const TRANSPORT_DATA: u8 = 4;

/// A small reproducible generator (splitmix64), so that a failing run can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.number().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// A handshake initiation to the holder of `public_key` with a valid MAC1 and the given ephemeral key; the rest is
/// noise. (WireGuard paper, 5.4.2 and 5.4.4)
pub fn initiation(public_key: &str, ephemeral: &[u8; 32], random: &mut Random) -> Vec<u8> {
    let mut message = vec![HANDSHAKE_INITIATION, 0, 0, 0];
    message.extend(random.bytes(4));
    message.extend(ephemeral);
    message.extend(random.bytes(48 + 28));
    let public_key = STANDARD.decode(public_key).expect("base64");
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(public_key).finalize();
    let mut mac: Blake2sMac<U16> = KeyInit::new_from_slice(&key).expect("32 bytes");
    mac.update(&message);
    message.extend(mac.finalize().into_bytes());
    message.extend([0; 16]);
    assert_eq!(message.len(), 148);
    message
}

/// An IPv4 packet with a UDP datagram from any source, for a raw socket that takes the header as given. The kernel
/// fills in the header's checksum; UDP has none.
pub fn raw_datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else {
        panic!("IPv4 only");
    };
    let udp = 8 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.ip().octets());
    packet.extend(destination.ip().octets());
    packet.extend(source.port().to_be_bytes());
    packet.extend(destination.port().to_be_bytes());
    packet.extend(udp.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
