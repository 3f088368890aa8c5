//! What the gateway asks the kernel's network stack, and what the kernel reports, over rtnetlink.
//!
//! [`Netlink`] sends requests and waits for the answer, which the kernel gives before `send` returns, so no runtime is
//! needed and clean-up works from a destructor. [`Monitor`] listens.

mod generic;
mod links;
mod monitor;
mod neighbours;
mod news;
mod routes;
mod rules;
mod sets;
mod socket;
mod traffic_control;

use std::net::IpAddr;

use ipnet::IpNet;

pub use generic::{Channels, Generic, Offloads};
pub use links::{Address, Interface, XdpAttachment};
pub use monitor::{FILTER_PREFIX, Monitor};
pub use neighbours::Neighbour;
pub use news::News;
pub use routes::{LOCAL_TABLE, MAIN_TABLE, Outer, Route, RouteKind};
pub use rules::{ForeignRule, Rule};
pub use sets::set_fits;
pub use socket::Netlink;
pub use traffic_control::{Discipline, FilterPlace};

/// The network that contains `address`, without host bits; lengths beyond the address are cut.
pub fn network(address: IpAddr, length: u8) -> IpNet {
    let host = IpNet::from(address);
    IpNet::new(address, length.min(host.prefix_len())).unwrap_or(host).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_no_host_bits_and_no_impossible_length() {
        assert_eq!(network("10.1.2.3".parse().unwrap(), 8).to_string(), "10.0.0.0/8");
        assert_eq!(network("10.1.2.3".parse().unwrap(), 128).to_string(), "10.1.2.3/32");
        assert_eq!(network("fd00::1".parse().unwrap(), 0).to_string(), "::/0");
    }
}
