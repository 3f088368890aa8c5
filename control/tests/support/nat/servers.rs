//! Servers on the laboratory's internet.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::super::overlay::Coordinator;
use super::Lab;

const STUN_PORT: u16 = 3478;

/// A coordinator used for its STUN server, which has two addresses and two ports of each IP version.
pub struct Stun {
    /// The first address and port.
    pub ipv4: SocketAddr,
    /// The first address and port; useful only in a laboratory with IPv6.
    pub ipv6: SocketAddr,
    _coordinator: Coordinator,
}

impl Stun {
    /// Serves at the lab's server addresses 1 and 2.
    pub fn start(lab: &Lab) -> Self {
        let [ipv4, _, ipv6, _] = corners(lab);
        Self { ipv4, ipv6, _coordinator: Coordinator::start(lab) }
    }
}

/// Where STUN server and relay listen: two addresses and two ports of each IP version.
pub fn corners(lab: &Lab) -> [SocketAddr; 4] {
    let v4 = |number| IpAddr::V4(lab.server(number));
    let v6 = |number| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, number));
    [v4(1), v4(2), v6(1), v6(2)].map(|address| SocketAddr::new(address, STUN_PORT))
}
