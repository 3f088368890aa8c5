//! Frames and what steering must say about them: one table for the pure decision and for the loaded
//! programs (`dataplane/tests/steer.rs`).

mod packet;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use penstock_wire::{
    AddressKey, LanConfig, LanVerdict, OWN_SUBNET, OuterFamily, STAYS_LOCAL, WanConfig, WanVerdict, address_key,
    steer_lan, steer_wan,
};

use packet::{TAGGINGS, add_at, flagged, set, set16, typed, udp_of_len, with_options};
pub use packet::{ethernet, ipv4, ipv6, transport, udp, with_mac};
pub use table::Case;
use table::Table;

pub const PORT: u16 = 47_100;
pub const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const TUNNEL_MTU: u16 = 1420;
pub const LINK_MTU: u16 = 1500;

pub const LAN_CONFIG: LanConfig = LanConfig { mac: OUR_MAC, tunnel_mtu: TUNNEL_MTU, link_mtu: LINK_MTU };

pub const WAN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const WAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OUR_ADDRESSES: [IpAddr; 2] = [IpAddr::V4(WAN_V4), IpAddr::V6(WAN_V6)];

/// Address, length in bits, and the peer's outer family; none for a prefix that stays local.
pub type Prefix = (IpAddr, u8, Option<OuterFamily>);

/// This site's subnets: the sources of the packets from `packet`, except for one host of a remote prefix.
pub const OWN: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0)), 64),
];

pub const PREFIXES: [Prefix; 6] = [
    (IpAddr::V4(Ipv4Addr::new(10, 102, 0, 0)), 16, Some(OuterFamily::V4)),
    (IpAddr::V4(Ipv4Addr::new(10, 102, 6, 0)), 24, Some(OuterFamily::V6)),
    (IpAddr::V4(Ipv4Addr::new(10, 102, 6, 1)), 32, None),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0, Some(OuterFamily::V6)),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x102, 0, 0, 0, 0, 0)), 48, Some(OuterFamily::V4)),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x101, 0, 0, 0, 0, 0)), 48, None),
];

/// The pure decision with this module's configuration.
pub fn decide_wan(frame: &[u8]) -> WanVerdict {
    steer_wan(frame, &WanConfig { port: PORT }, |key| OUR_ADDRESSES.iter().any(|address| address_key(*address) == key))
}

/// The pure decision with this module's configuration.
pub fn decide_lan(frame: &[u8]) -> LanVerdict {
    steer_lan(frame, &LAN_CONFIG, longest_prefix)
}

/// The trie as a list: the longest of the prefixes that cover the address.
fn longest_prefix(key: AddressKey) -> Option<u32> {
    let bit = |key: AddressKey, at: u8| {
        let word = u32::from_be(key[1 + usize::from(at / 32)]);
        word >> (31 - at % 32) & 1
    };
    let steered =
        PREFIXES.iter().map(|(address, len, outer)| (*address, *len, outer.map_or(STAYS_LOCAL, OuterFamily::shift)));
    steered
        .chain(OWN.iter().map(|(address, len)| (*address, *len, OWN_SUBNET)))
        .filter(|(address, len, _)| {
            let prefix = address_key(*address);
            prefix[0] == key[0] && (0..*len).all(|at| bit(prefix, at) == bit(key, at))
        })
        .max_by_key(|(_, len, _)| *len)
        .map(|(_, _, value)| value)
}

pub fn wan_cases() -> Vec<Case<WanVerdict>> {
    use WanVerdict::*;
    let data = || transport(64);
    let to_us_v4 = |protocol, payload: Vec<u8>| ipv4(WAN_V4, protocol, payload);
    let to_us_v6 = |next_header, payload: Vec<u8>| ipv6(WAN_V6, next_header, payload);
    let mut table = Table::default();

    for (tag, tagged) in TAGGINGS {
        let v4 = |packet: Vec<u8>| tagged(0x0800, packet);
        let v6 = |packet: Vec<u8>| tagged(0x86dd, packet);
        let mut case = |name: &str, frame, verdict| table.case(format!("{tag}{name}"), frame, verdict);

        case("v4 data", v4(to_us_v4(17, udp(PORT, data()))), Redirect);
        case("v6 data", v6(to_us_v6(17, udp(PORT, data()))), Redirect);
        case("v4 keepalive", v4(to_us_v4(17, udp(PORT, transport(32)))), Redirect);
        case("v6 keepalive", v6(to_us_v6(17, udp(PORT, transport(32)))), Redirect);
        case("v4 padded", v4([to_us_v4(17, udp(PORT, data())), vec![0; 9]].concat()), Redirect);
        case("v4 DF", v4(flagged(to_us_v4(17, udp(PORT, data())), 0x4000)), Redirect);
        case("v4 1 short", v4(to_us_v4(17, udp(PORT, transport(31)))), TooShort);
        case("v6 1 short", v6(to_us_v6(17, udp(PORT, transport(31)))), TooShort);
        case("v4 empty", v4(to_us_v4(17, udp(PORT, vec![]))), TooShort);
        for (message, first) in [(1, "initiation"), (2, "response"), (3, "cookie"), (0, "zero"), (5, "five")] {
            let other = || typed([message, 0, 0, 0], 148);
            case(&format!("v4 {first}"), v4(to_us_v4(17, udp(PORT, other()))), OtherType);
            case(&format!("v6 {first}"), v6(to_us_v6(17, udp(PORT, other()))), OtherType);
        }
        for reserved in 1..4 {
            let mut kind = [4, 0, 0, 0];
            kind[reserved] = 1;
            case("v4 reserved", v4(to_us_v4(17, udp(PORT, typed(kind, 64)))), OtherType);
        }
        case("v4 other port", v4(to_us_v4(17, udp(PORT + 1, data()))), OtherPort);
        case("v6 other port", v6(to_us_v6(17, udp(PORT ^ 0x100, data()))), OtherPort);
        case("v4 swapped port", v4(to_us_v4(17, udp(PORT.swap_bytes(), data()))), OtherPort);
        let neighbour = Ipv4Addr::new(192, 0, 2, 2);
        case("v4 other address", v4(ipv4(neighbour, 17, udp(PORT, data()))), OtherAddress);
        case("v6 other address", v6(ipv6(Ipv6Addr::LOCALHOST, 17, udp(PORT, data()))), OtherAddress);
        let mapped = WAN_V4.to_ipv6_mapped();
        case("v6 mapped address", v6(ipv6(mapped, 17, udp(PORT, data()))), OtherAddress);
        case("v4 first fragment", v4(flagged(to_us_v4(17, udp(PORT, data())), 0x2000)), Fragment);
        case("v4 later fragment", v4(flagged(to_us_v4(17, udp(PORT, data())), 0x0001)), Fragment);
        case("v4 last fragment", v4(flagged(to_us_v4(17, udp(PORT, data())), 0x1fff)), Fragment);
        for words in 6..16 {
            let frame = v4(with_options(to_us_v4(17, udp(PORT, data())), words));
            case(&format!("v4 IHL {words}"), frame, Options);
        }
        for words in 0..5 {
            let frame = v4(set(to_us_v4(17, udp(PORT, data())), 0, 0x40 | words));
            case(&format!("v4 IHL {words}"), frame, BadVersion);
        }
        case("v4 says v6", v4(to_us_v6(17, udp(PORT, data()))), BadVersion);
        case("v6 says v4", v6(to_us_v4(17, udp(PORT, data()))), BadVersion);
        for next_header in [0, 43, 44, 50, 51, 60, 135, 139, 140, 253, 254] {
            let packet = to_us_v6(next_header, [vec![17, 0, 0, 0, 0, 0, 0, 0], udp(PORT, data())].concat());
            case(&format!("v6 extension {next_header}"), v6(packet), Extension);
        }
        for protocol in [1, 6, 41, 50, 58, 136] {
            case(&format!("v4 protocol {protocol}"), v4(to_us_v4(protocol, udp(PORT, data()))), NotUdp);
        }
        for protocol in [6, 41, 58, 59, 136] {
            case(&format!("v6 protocol {protocol}"), v6(to_us_v6(protocol, udp(PORT, data()))), NotUdp);
        }
        for delta in [-1, 1, 8] {
            let packet = to_us_v4(17, udp_of_len(PORT, data(), delta));
            case(&format!("v4 UDP length {delta:+}"), v4(packet), BadLength);
            let packet = to_us_v6(17, udp_of_len(PORT, data(), delta));
            case(&format!("v6 UDP length {delta:+}"), v6(packet), BadLength);
        }
        case("v4 too long", v4(add_at(to_us_v4(17, udp(PORT, data())), 2, 1)), BadLength);
        case("v6 too long", v6(add_at(to_us_v6(17, udp(PORT, data())), 4, 1)), BadLength);
        case("v4 shorter than UDP", v4(add_at(to_us_v4(17, udp(PORT, data())), 2, -1)), BadLength);
        case("v6 shorter than UDP", v6(add_at(to_us_v6(17, udp(PORT, data())), 4, -1)), BadLength);
        case("v4 length 19", v4(set16(to_us_v4(17, udp(PORT, data())), 2, 19)), BadLength);
        case("v4 no UDP header", v4(to_us_v4(17, vec![0; 7])), BadLength);
        case("v6 no UDP header", v6(to_us_v6(17, vec![0; 7])), BadLength);
        case("v4 nothing", v4(to_us_v4(17, vec![])), BadLength);
        case("v4 longest length", v4(set16(to_us_v4(17, udp(PORT, data())), 2, 0xffff)), BadLength);
        case("v6 longest length", v6(set16(to_us_v6(17, udp(PORT, data())), 4, 0xffff)), BadLength);
    }
    table.link_layer(&to_us_v4(17, udp(PORT, data())), NotIp, OtherVlan, DoubleTagged);
    table.cut(BadLength, Truncated);
    table.random(0x57a7);
    table.0
}

pub fn lan_cases() -> Vec<Case<LanVerdict>> {
    use LanVerdict::*;
    let over_v4 = Ipv4Addr::new(10, 102, 3, 4);
    let over_v6 = Ipv4Addr::new(10, 102, 6, 4);
    let six_over_v4 = Ipv6Addr::new(0x2001, 0xdb8, 0x102, 0, 0, 0, 0, 9);
    let six_over_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x777, 0, 0, 0, 0, 9);
    let body = || vec![0x5a; 40];
    let mut table = Table::default();

    for (tag, tagged) in TAGGINGS {
        let v4 = |packet: Vec<u8>| tagged(0x0800, packet);
        let v6 = |packet: Vec<u8>| tagged(0x86dd, packet);
        let to = |address: &str| match address.parse() {
            Ok(IpAddr::V4(address)) => v4(ipv4(address, 6, body())),
            Ok(IpAddr::V6(address)) => v6(ipv6(address, 6, body())),
            Err(error) => panic!("{address}: {error}"),
        };
        let mut case = |name: &str, frame, verdict| table.case(format!("{tag}{name}"), frame, verdict);

        case("v4 over v4", v4(ipv4(over_v4, 6, body())), RedirectOverV4);
        case("v4 over v6", v4(ipv4(over_v6, 6, body())), RedirectOverV6);
        case("v6 over v4", v6(ipv6(six_over_v4, 6, body())), RedirectOverV4);
        case("v6 over v6", v6(ipv6(six_over_v6, 6, body())), RedirectOverV6);
        case("v4 empty", v4(ipv4(over_v4, 17, vec![])), RedirectOverV4);
        case("v6 empty", v6(ipv6(six_over_v4, 59, vec![])), RedirectOverV4);
        case("v4 padded", v4([ipv4(over_v4, 17, vec![1]), vec![0; 25]].concat()), RedirectOverV4);
        for (flags, verdict) in [
            (0x2000, Fragment),
            (0x0001, Fragment),
            (0x1fff, Fragment),
            (0x6000, Fragment),
            (0x4001, Fragment),
            (0x4000, RedirectOverV4),
            (0x8000, RedirectOverV4),
        ] {
            let frame = v4(flagged(ipv4(over_v4, 17, body()), flags));
            case(&format!("v4 flags {flags:04x}"), frame, verdict);
        }
        for next_header in [43, 50, 51, 60, 135] {
            let frame = v6(ipv6(six_over_v4, next_header, body()));
            case(&format!("v6 extension {next_header}"), frame, RedirectOverV4);
        }
        case("v6 hop-by-hop", v6(ipv6(six_over_v4, 0, body())), HopByHop);
        case("v4 protocol 0", v4(ipv4(over_v4, 0, body())), RedirectOverV4);
        for words in 6..16 {
            let frame = v4(with_options(ipv4(over_v4, 6, body()), words));
            case(&format!("v4 IHL {words}"), frame, Options);
        }
        for words in 0..5 {
            let frame = v4(set(ipv4(over_v4, 6, body()), 0, 0x40 | words));
            case(&format!("v4 IHL {words}"), frame, BadVersion);
        }
        case("v4 says v6", v4(ipv6(six_over_v4, 6, body())), BadVersion);
        case("v6 says v4", v6(ipv4(over_v4, 6, body())), BadVersion);
        case("v4 too long", v4(add_at(ipv4(over_v4, 6, body()), 2, 1)), BadLength);
        case("v6 too long", v6(add_at(ipv6(six_over_v4, 6, body()), 4, 1)), BadLength);
        case("v4 length 19", v4(set16(ipv4(over_v4, 6, body()), 2, 19)), BadLength);
        let of_len = |len: u16| vec![0x5a; usize::from(len)];
        let mtu = |header: u16| of_len(TUNNEL_MTU - header);
        let beyond = |header: u16| of_len(TUNNEL_MTU - header + 1);
        case("v4 MTU", v4(ipv4(over_v4, 17, mtu(20))), RedirectOverV4);
        case("v4 MTU + 1", v4(ipv4(over_v4, 17, beyond(20))), NeedsFragmenting);
        case("v4 MTU + 1, DF", v4(flagged(ipv4(over_v4, 17, beyond(20)), 0x4000)), RedirectOverV4);
        case("v4 MTU + 1, MF", v4(flagged(ipv4(over_v4, 17, beyond(20)), 0x2000)), Fragment);
        case("v6 fragment", v6(ipv6(six_over_v4, 44, body())), Fragment);
        case("v6 MTU + 1", v6(ipv6(six_over_v4, 17, beyond(40))), RedirectOverV4);
        let merged = || of_len(LINK_MTU - 19);
        case("v4 link's MTU, DF", v4(flagged(ipv4(over_v4, 6, of_len(LINK_MTU - 20)), 0x4000)), RedirectOverV4);
        case("v4 link's MTU + 1, DF", v4(flagged(ipv4(over_v4, 6, merged()), 0x4000)), Merged);
        case("v4 link's MTU + 1", v4(ipv4(over_v4, 6, merged())), Merged);
        case("v6 link's MTU + 1", v6(ipv6(six_over_v4, 6, of_len(LINK_MTU - 39))), Merged);
        case("v4 MTU + 1, not remote", v4(ipv4(Ipv4Addr::new(10, 9, 9, 9), 17, beyond(20))), NotRemote);

        for address in ["10.101.0.1", "10.103.0.0", "10.102.6.1", "192.0.2.1", "2001:db8:101::1"] {
            case(address, to(address), NotRemote);
        }
        for (n, source) in [[10, 102, 3, 9], [10, 102, 6, 1], [192, 0, 2, 7], [198, 51, 101, 7]].into_iter().enumerate()
        {
            let packet = ipv4(over_v4, 6, body());
            let packet = (0..4).fold(packet, |packet, byte| set(packet, 12 + byte, source[byte]));
            case(&format!("v4 source {n}"), v4(packet), OtherSource);
        }
        for (at, value) in [(8, 0xfe), (12, 0x01), (15, 1)] {
            case(&format!("v6 source {at}"), v6(set(ipv6(six_over_v4, 6, body()), at, value)), OtherSource);
        }
        case("prefix's first", to("10.102.0.0"), RedirectOverV4);
        case("prefix's last", to("10.102.255.255"), RedirectOverV4);
        for address in ["224.0.0.5", "239.255.255.250", "255.255.255.255", "ff02::1", "ff0e::1"] {
            case(address, to(address), Multicast);
        }
        for address in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "::", "::1", "fe80::1", "febf::1"] {
            case(address, to(address), NotForwardable);
        }
        for address in ["::2", "::1:0:0:1", "fec0::1", "::ffff:10.102.3.4"] {
            case(address, to(address), RedirectOverV6);
        }
        let frame = || v4(ipv4(over_v4, 6, body()));
        case("broadcast MAC", with_mac(frame(), [0xff; 6]), Multicast);
        case("multicast MAC", with_mac(frame(), [0x33, 0x33, 0, 0, 0, 1]), Multicast);
        for byte in 0..6 {
            let mut mac = OUR_MAC;
            mac[byte] ^= 0x80;
            case(&format!("MAC byte {byte}"), with_mac(frame(), mac), OtherMac);
        }
    }
    table.link_layer(&ipv4(over_v4, 6, body()), NotIp, OtherVlan, DoubleTagged);
    table.cut(BadLength, Truncated);
    table.random(0x1a9);
    table.0
}
