//! Interfaces and their addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, network};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// The kind of software device, if it is one: `veth`, `bridge`, `vlan`, …
    pub kind: Option<String>,
    /// The kind of device that it is a port of, if it is one: `bridge`, `bond`, `vrf`, …
    pub port_of: Option<String>,
    /// The receive queues that it was created with; the driver may use fewer.
    pub queues: u32,
}

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// The kernel's number for the program.
    pub program: u32,
    /// Whether it runs in the kernel's stack, after the driver has made a socket buffer.
    pub generic: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix on the link.
    pub length: u8,
    /// Whether other hosts can reach it: not link-local, not of this host only.
    pub global: bool,
}

impl Address {
    /// The network that it makes reachable.
    pub fn network(&self) -> IpNet {
        network(self.address, self.length)
    }
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| match m {
            RouteNetlinkMessage::NewLink(link) => Some(Interface::from_message(link)),
            _ => None,
        })
    }

    /// The interfaces that have an XDP program, by index.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn xdp_programs(&mut self) -> io::Result<BTreeMap<u32, XdpAttachment>> {
        let programs = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| match m {
            RouteNetlinkMessage::NewLink(link) => {
                let index = link.header.index;
                link.attributes.iter().find_map(XdpAttachment::from_attribute).map(|xdp| (index, xdp))
            }
            _ => None,
        })?;
        Ok(programs.into_iter().collect())
    }

    /// How many frames have arrived at an interface, including those that the kernel could not take; `None`: there is
    /// no such interface.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn arrived(&mut self, interface: u32) -> io::Result<Option<u64>> {
        let attributes = self.attributes(interface)?;
        Ok(attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(s) => Some(s.rx_packets + s.rx_missed_errors + s.rx_dropped),
            _ => None,
        }))
    }

    /// The other end of a veth, if it is in this namespace.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn other_end(&mut self, interface: u32) -> io::Result<Option<u32>> {
        let attributes = self.attributes(interface)?;
        if attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_))) {
            return Ok(None);
        }
        Ok(attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(end) => Some(end),
            _ => None,
        }))
    }

    /// What the kernel says about an interface; nothing about one that does not exist.
    fn attributes(&mut self, interface: u32) -> io::Result<Vec<LinkAttribute>> {
        let links = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| match m {
            RouteNetlinkMessage::NewLink(link) => (link.header.index == interface).then_some(link.attributes),
            _ => None,
        })?;
        Ok(links.into_iter().next().unwrap_or_default())
    }

    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn addresses(&mut self) -> io::Result<Vec<Address>> {
        self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |m| match m {
            RouteNetlinkMessage::NewAddress(address) => Address::from_message(&address),
            _ => None,
        })
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// No such interface.
    pub fn set_up(&mut self, interface: u32, up: bool) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = interface;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        link.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sets an interface's MTU.
    ///
    /// # Errors
    /// There is no such interface, or it cannot have this MTU.
    pub fn set_mtu(&mut self, interface: u32, mtu: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = interface;
        link.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Adds an address to an interface, without a network.
    ///
    /// # Errors
    /// There is no such interface, or IPv6 is disabled on it.
    pub fn add_address(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewAddress(host_address(interface, address));
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes such an address again.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove_address(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelAddress(host_address(interface, address)), 0)
    }
}

fn host_address(interface: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = IpNet::from(address).prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = interface;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// The address family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Interface {
    /// The largest IP packet whose length an IP header can express.
    pub fn largest_packet(&self) -> u16 {
        u16::try_from(self.mtu).unwrap_or(u16::MAX)
    }

    pub(super) fn from_message(message: LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
            port_of: None,
            queues: 0,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Address(bytes) => interface.mac = bytes.try_into().ok(),
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::NumRxQueues(queues) => interface.queues = queues,
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.iter().find_map(|i| match i {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                    interface.port_of = infos.iter().find_map(|i| match i {
                        LinkInfo::PortKind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        interface
    }
}

impl XdpAttachment {
    fn from_attribute(attribute: &LinkAttribute) -> Option<Self> {
        let LinkAttribute::Xdp(facts) = attribute else { return None };
        let generic = facts.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
        facts.iter().find_map(|fact| match fact {
            LinkXdp::ProgId(program) if *program != 0 => Some(Self { program: *program, generic }),
            _ => None,
        })
    }
}

impl Address {
    pub(super) fn from_message(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut remote) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(a) => local = Some(*a),
                AddressAttribute::Address(a) => remote = Some(*a),
                _ => {}
            }
        }
        Some(Self {
            interface: message.header.index,
            // On a point-to-point link `Address` is that of the other end.
            address: local.or(remote)?,
            length: message.header.prefix_len,
            global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
        })
    }
}
