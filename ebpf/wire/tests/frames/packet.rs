//! Builds frames, good ones and bad ones.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::OUR_MAC;

/// Wraps a packet with an EtherType into a frame to us.
pub type Tagging = fn(u16, Vec<u8>) -> Vec<u8>;

pub const TAGGINGS: [(&str, Tagging); 2] = [("", untagged), ("priority-tagged ", priority_tagged)];

fn untagged(ethertype: u16, packet: Vec<u8>) -> Vec<u8> {
    ethernet(&[], ethertype, packet)
}

fn priority_tagged(ethertype: u16, packet: Vec<u8>) -> Vec<u8> {
    ethernet(&[0x8100_e000], ethertype, packet)
}

/// A frame to [`OUR_MAC`]; a tag is its TPID and TCI.
pub fn ethernet(tags: &[u32], ethertype: u16, packet: Vec<u8>) -> Vec<u8> {
    let mut frame = [&OUR_MAC[..], &[0x02, 0, 0, 0, 0, 0x99]].concat();
    tags.iter().for_each(|tag| frame.extend(tag.to_be_bytes()));
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

pub fn ipv4(destination: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0, 198, 51, 100, 7];
    packet.extend(destination.octets());
    packet.extend(payload);
    let len = packet.len() as u16;
    set16(packet, 2, len)
}

pub fn ipv6(destination: Ipv6Addr, next_header: u8, payload: Vec<u8>) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7).octets());
    packet.extend(destination.octets());
    packet.extend(&payload);
    set16(packet, 4, payload.len() as u16)
}

pub fn udp(port: u16, payload: Vec<u8>) -> Vec<u8> {
    udp_of_len(port, payload, 0)
}

pub fn udp_of_len(port: u16, payload: Vec<u8>, delta: i16) -> Vec<u8> {
    let len = (payload.len() as u16 + 8).wrapping_add_signed(delta);
    let header = [51_820, port, len, 0].map(u16::to_be_bytes);
    [header.concat(), payload].concat()
}

/// A WireGuard transport message of `len` bytes (or what is left of one).
pub fn transport(len: usize) -> Vec<u8> {
    typed([4, 0, 0, 0], len)
}

pub fn typed(kind: [u8; 4], len: usize) -> Vec<u8> {
    let mut message = vec![0xc3; len];
    message[..4].copy_from_slice(&kind);
    message
}

pub fn flagged(packet: Vec<u8>, flags: u16) -> Vec<u8> {
    set16(packet, 6, flags)
}

pub fn with_options(mut packet: Vec<u8>, words: u8) -> Vec<u8> {
    let options = vec![1; usize::from(words - 5) * 4];
    let len = (packet.len() + options.len()) as u16;
    packet.splice(20..20, options);
    set16(set(packet, 0, 0x40 | words), 2, len)
}

pub fn with_mac(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

pub fn set(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

pub fn set16(mut bytes: Vec<u8>, at: usize, value: u16) -> Vec<u8> {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    bytes
}

pub fn add_at(bytes: Vec<u8>, at: usize, delta: i16) -> Vec<u8> {
    let value = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    set16(bytes, at, value.wrapping_add_signed(delta))
}
