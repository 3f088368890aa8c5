//! Neighbours: which Ethernet address an IP address has.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::Netlink;
use super::links::family;

/// A resolved neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface it is on.
    pub interface: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Whether the kernel would have to ask again before it trusts the entry.
    pub stale: bool,
}

impl Neighbour {
    /// Whether it is this one.
    pub fn is(&self, interface: u32, address: IpAddr) -> bool {
        self.interface == interface && self.address == address
    }

    /// The neighbour of a message, if it is resolved.
    pub(super) fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let stale = match message.header.state {
            NeighbourState::Reachable | NeighbourState::Permanent => false,
            NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => true,
            _ => return None,
        };
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        Some(Self { interface: message.header.ifindex, address: address?, mac: mac?, stale })
    }
}

impl Netlink {
    /// All resolved neighbours.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        self.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), |m| match m {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Neighbour::from_message(&neighbour),
            _ => None,
        })
    }

    /// Tells the kernel that a neighbour is in use, as a packet of its own would: an unknown one is looked up, a stale
    /// one is confirmed, a known one is kept.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn use_neighbour(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = interface;
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}
