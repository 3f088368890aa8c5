//! What the benchmark's sockets receive. There is no gateway behind them, so nothing is compared with a configuration.

use crate::frame::{self, Unread};
use crate::ip;

/// Which packets the benchmark redirects: unicast IPv4 or IPv6, untagged or with a tag that has only a priority. ARP
/// and multicast stay with the kernel, so that it can go on resolving neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchFilter {
    /// UDP: what a sink counts.
    Udp,
    /// All IP but ICMPv6, which resolves neighbours: what a forwarder forwards.
    Ip,
}

impl BenchFilter {
    /// Whether a received frame goes to the socket.
    #[inline(always)]
    pub fn takes<'a, U: Unread<'a>>(self, frame: U) -> bool {
        let Some(ethernet) = frame::parse(frame) else {
            return false;
        };
        if ethernet.destination[0] & 1 != 0 {
            return false;
        }
        let Ok(ip) = ip::parse(&ethernet) else {
            return false;
        };
        match self {
            Self::Udp => ip.protocol == ip::UDP,
            Self::Ip => !(ip.is_v6() && ip.protocol == ip::ICMPV6),
        }
    }
}
