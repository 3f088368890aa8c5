//! Packets of hosts that leave checksums to the device, also inside tunnels. Only checksums are changed, and nothing
//! behind the packet. For TCP and UDP outside a tunnel, the checksum is right afterwards.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use penstock_dataplane::inner::{Inner, complete_checksum};

/// The most tunnels that are looked into, with the packet itself, and the longest checksum (SCTP's).
const CHANGES: usize = 3 * 4;

/// The sum of RFC 1071.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum
}

fuzz_target!(|input: &[u8]| {
    let mut packet = input.to_vec();
    complete_checksum(&mut packet);
    let changed: Vec<usize> = (0..input.len()).filter(|at| packet[*at] != input[*at]).collect();
    let Some(inner) = Inner::parse(input) else { return assert!(changed.is_empty()) };
    assert!(changed.len() <= CHANGES && changed.iter().all(|at| (inner.header..inner.len).contains(at)));

    let (field, least) = match inner.protocol {
        6 => (inner.header + 16, 20),
        17 => (inner.header + 6, 8),
        _ => return,
    };
    if inner.len < inner.header + least
        || changed.is_empty()
        || changed.iter().any(|at| !(field..field + 2).contains(at))
    {
        return;
    }
    let addresses = if matches!(inner.source, IpAddr::V4(_)) { 12..20 } else { 8..40 };
    let body = &packet[inner.header..inner.len];
    let total = sum(&packet[addresses]) + u64::from(inner.protocol) + body.len() as u64 + sum(body);
    assert_eq!(fold(total), 0xffff, "the checksum is wrong");
});
