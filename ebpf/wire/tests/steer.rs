//! The pure steering decision: the table, then every value of every header byte.

mod frames;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use frames::{
    Case, OUR_MAC, PORT, WAN_V4, WAN_V6, decide_lan, decide_wan, ethernet, ipv4, ipv6, lan_cases, transport, udp,
    wan_cases, with_mac,
};
use penstock_wire::{
    AddressKey, BenchFilter, ETHERNET_LEN, LanVerdict, MAX_SHIFT, OuterFamily, WanVerdict, address_key,
    ethernet_offset, prefix_bits,
};

fn check<Verdict: PartialEq + Copy + std::fmt::Debug>(
    cases: &[Case<Verdict>],
    all: &[Verdict],
    only_in_the_kernel: &[Verdict],
    decide: impl Fn(&[u8]) -> Verdict,
) {
    for Case { name, frame, expected } in cases {
        let verdict = decide(frame);
        if let Some(expected) = *expected {
            assert_eq!(verdict, expected, "{name}: {frame:02x?}");
        }
    }
    for verdict in all {
        let is_covered = cases.iter().any(|case| case.expected == Some(*verdict));
        assert_ne!(is_covered, only_in_the_kernel.contains(verdict), "{verdict:?}");
    }
}

#[test]
fn wan_table() {
    check(&wan_cases(), WanVerdict::ALL, &[WanVerdict::NoSocket], decide_wan);
}

#[test]
fn lan_table() {
    let only_in_the_kernel = [LanVerdict::NoSocket, LanVerdict::NoHeadroom];
    check(&lan_cases(), LanVerdict::ALL, &only_in_the_kernel, decide_lan);
}

/// Gives every byte of a redirected frame every value: the frame must stay redirected exactly where
/// `is_free` says that the value doesn't matter.
fn mutate<Verdict: PartialEq + Copy + std::fmt::Debug>(
    frame: &[u8],
    decide: impl Fn(&[u8]) -> Verdict,
    is_free: impl Fn(usize, u8) -> bool,
) {
    let redirect = decide(frame);
    for at in 0..frame.len() {
        for value in 0..=255 {
            let mut changed = frame.to_vec();
            changed[at] = value;
            let expected = value == frame[at] || is_free(at, value);
            let verdict = decide(&changed);
            assert_eq!(verdict == redirect, expected, "byte {at} = {value:#04x}: {verdict:?}");
        }
    }
}

#[test]
fn wan_v4_byte_by_byte() {
    let frame = ethernet(&[], 0x0800, ipv4(WAN_V4, 17, udp(PORT, transport(48))));
    mutate(&frame, decide_wan, |at, value| match at {
        0..12 => true,                      // MAC addresses
        15 | 18 | 19 | 22 | 24..30 => true, // DSCP, identification, TTL, checksum, source
        20 => value & 0x3f == 0,            // DF and the reserved bit
        34 | 35 | 40 | 41 => true,          // source port, checksum
        46.. => true,                       // behind the type
        _ => false,
    });
}

#[test]
fn wan_v6_byte_by_byte() {
    let frame = ethernet(&[], 0x86dd, ipv6(WAN_V6, 17, udp(PORT, transport(48))));
    mutate(&frame, decide_wan, |at, value| match at {
        0..12 => true,
        14 => value >> 4 == 6,   // the upper half of the traffic class
        15..18 | 21..38 => true, // traffic class, flow label, hop limit, source
        54 | 55 | 60 | 61 => true,
        66.. => true,
        _ => false,
    });
}

#[test]
fn lan_v4_byte_by_byte() {
    let destination = Ipv4Addr::new(10, 102, 3, 4);
    let frame = ethernet(&[], 0x0800, ipv4(destination, 6, vec![0; 30]));
    assert_eq!(decide_lan(&frame), LanVerdict::RedirectOverV4);
    mutate(&frame, decide_lan, |at, value| match at {
        6..12 => true,
        17 => (20..=50).contains(&value),          // total length
        32 => value != 6,                          // the /24 over IPv6 inside
        20 => value & 0x3f == 0,                   // DF and the reserved bit
        21 => value == 0,                          // a later fragment
        15 | 18 | 19 | 22..26 | 29 | 33.. => true, // protocols and hosts of our subnet too
        _ => false,
    });
}

#[test]
fn lan_v6_byte_by_byte() {
    let destination = Ipv6Addr::new(0x2001, 0xdb8, 0x102, 0, 0, 0, 0, 9);
    let frame = ethernet(&[], 0x86dd, ipv6(destination, 6, vec![0; 30]));
    assert_eq!(decide_lan(&frame), LanVerdict::RedirectOverV4);
    mutate(&frame, decide_lan, |at, value| match at {
        6..12 => true,
        14 => value >> 4 == 6,
        19 => value <= 30,
        20 => ![0, 44].contains(&value), // hop-by-hop, fragment
        15..=17 | 21 | 30..38 | 44.. => true,
        _ => false,
    });
}

#[test]
fn shifts_leave_room_for_exactly_the_outer_headers() {
    for (outer, ip) in [(OuterFamily::V4, 20), (OuterFamily::V6, 40)] {
        let shift = outer.shift() as usize;
        assert_eq!(shift + ETHERNET_LEN, ETHERNET_LEN + ip + 8 + 16);
        assert_eq!(OuterFamily::from_shift(outer.shift()), Some(outer));
        assert!(shift <= MAX_SHIFT);
    }
    for other in (0..300).filter(|shift| ![44, 64].contains(shift)) {
        assert_eq!(OuterFamily::from_shift(other), None);
    }
}

#[test]
fn the_mark_is_read_back() {
    for outer in [OuterFamily::V4, OuterFamily::V6] {
        let shift = outer.shift() as usize;
        let mut frame = vec![0xaa; shift + ETHERNET_LEN];
        frame[..2].copy_from_slice(&(shift as u16).to_le_bytes());
        assert_eq!(ethernet_offset(&frame), Some(shift));
        for len in 0..frame.len() {
            assert_eq!(ethernet_offset(&frame[..len]), None);
        }
    }
    assert_eq!(ethernet_offset(&[0xaa; 1500]), None);
    assert_eq!(ethernet_offset(&OUR_MAC.repeat(20)), None);
}

#[test]
fn keys_keep_the_families_apart() {
    let v4 = Ipv4Addr::new(192, 0, 2, 1);
    assert_ne!(address_key(IpAddr::V4(v4)), address_key(IpAddr::V6(v4.to_ipv6_mapped())));
    assert_eq!(prefix_bits(0), 32);
    assert_eq!(prefix_bits(128), 8 * size_of::<AddressKey>() as u32);
}

#[test]
fn the_benchmark_takes_unicast_and_leaves_neighbours_to_the_kernel() {
    let v4 = |protocol| ethernet(&[], 0x0800, ipv4(WAN_V4, protocol, udp(9, vec![0; 20])));
    let v6 = |protocol| ethernet(&[], 0x86dd, ipv6(WAN_V6, protocol, udp(9, vec![0; 20])));
    let (udp, tcp, icmp, icmpv6) = (17, 6, 1, 58);
    for (frame, by_udp, by_ip) in [
        (v4(udp), true, true),
        (v6(udp), true, true),
        (v4(tcp), false, true),
        (v6(tcp), false, true),
        (v4(icmp), false, true),
        (v6(icmpv6), false, false),
        (ethernet(&[], 0x0806, vec![0; 28]), false, false),
        (with_mac(v4(udp), [0x33, 0x33, 0, 0, 0, 1]), false, false),
        (v6(udp)[..50].to_vec(), false, false),
        (vec![], false, false),
    ] {
        let taken = [BenchFilter::Udp, BenchFilter::Ip].map(|filter| filter.takes(&frame[..]));
        assert_eq!(taken, [by_udp, by_ip], "{frame:02x?}");
    }
}

#[test]
fn verdicts_have_distinct_names_and_consecutive_slots() {
    fn check(names: Vec<&str>, slots: Vec<u32>) {
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert!(slots.into_iter().eq(0..names.len() as u32));
    }
    let wan = WanVerdict::ALL;
    check(wan.iter().map(|v| v.name()).collect(), wan.iter().map(|v| v.index()).collect());
    let lan = LanVerdict::ALL;
    check(lan.iter().map(|v| v.name()).collect(), lan.iter().map(|v| v.index()).collect());
}
