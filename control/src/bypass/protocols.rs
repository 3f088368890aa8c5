//! Protocol numbers by the names that nft and iptables print.

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// The number of a protocol; `None` for an unknown name.
pub(super) fn number(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => 1,
        "tcp" => TCP,
        "udp" => UDP,
        "dccp" => 33,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "icmpv6" | "ipv6-icmp" => 58,
        "sctp" => 132,
        "udplite" => 136,
        _ => name.parse().ok()?,
    })
}
