//! Network news as items: what was added, changed or removed, so that a snapshot can follow without reading everything
//! again.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::RouteFlags;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Address, ForeignRule, Interface, Neighbour, Route, Rule};

/// Something that the kernel has reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// An interface was added or changed.
    Interface(Interface),
    /// An interface was removed.
    InterfaceGone(u32),
    /// An address was added or changed.
    Address(Address),
    /// An address was removed.
    AddressGone(Address),
    /// A route was added.
    Route {
        /// The route.
        route: Route,
        /// Whether it replaced the one with the same destination, table and metric.
        replaces: bool,
    },
    /// A route was removed.
    RouteGone(Route),
    /// A rule was added, of a form that a gateway uses.
    Rule(Rule),
    /// Such a rule was removed.
    RuleGone(Rule),
    /// A rule of another form was added.
    OtherRule(ForeignRule),
    /// Such a rule was removed.
    OtherRuleGone(ForeignRule),
    /// A neighbour was resolved.
    Neighbour(Neighbour),
    /// A neighbour is no longer known.
    NeighbourGone {
        /// The interface it was on.
        interface: u32,
        /// Its IP address.
        address: IpAddr,
    },
    /// A setting of an interface changed, such as forwarding.
    Sysctl,
    /// Packet filter rules of a gateway changed.
    Filter,
    /// Packet filter rules of somebody else changed.
    OtherFilter,
    /// Elements of somebody else's sets changed.
    OtherElements,
    /// News was lost, so anything may have changed.
    Lost,
}

impl News {
    /// The news in a message; `None` if it is of no interest here. `flags` are the message header's.
    pub(super) fn from_message(message: RouteNetlinkMessage, flags: u16) -> Option<Self> {
        use RouteNetlinkMessage as M;
        match message {
            // A bridge reports its ports being added and removed as if they were interfaces.
            M::NewLink(l) | M::DelLink(l) if l.header.interface_family == AddressFamily::Bridge => None,
            M::NewLink(link) => Some(Self::Interface(Interface::from_message(link))),
            M::DelLink(link) => Some(Self::InterfaceGone(link.header.index)),
            M::NewAddress(address) => Address::from_message(&address).map(Self::Address),
            M::DelAddress(address) => Address::from_message(&address).map(Self::AddressGone),
            M::NewRoute(r) | M::DelRoute(r) if r.header.flags.contains(RouteFlags::Cloned) => None,
            M::NewRoute(route) => {
                let replaces = flags & NLM_F_REPLACE != 0;
                Route::from_message(&route).map(|route| Self::Route { route, replaces })
            }
            M::DelRoute(route) => Route::from_message(&route).map(Self::RouteGone),
            M::NewRule(message) => match Rule::from_message(&message) {
                Some(rule) => Some(Self::Rule(rule)),
                None => ForeignRule::from_message(&message).map(Self::OtherRule),
            },
            M::DelRule(message) => match Rule::from_message(&message) {
                Some(rule) => Some(Self::RuleGone(rule)),
                None => ForeignRule::from_message(&message).map(Self::OtherRuleGone),
            },
            M::NewNeighbour(n) | M::DelNeighbour(n) if n.header.family == AddressFamily::Bridge => None,
            // A neighbour that no longer answers is reported with the state "failed".
            M::NewNeighbour(n) => Neighbour::from_message(&n).map(Self::Neighbour).or_else(|| Self::neighbour_gone(&n)),
            M::DelNeighbour(n) => Self::neighbour_gone(&n),
            _ => None,
        }
    }

    fn neighbour_gone(message: &NeighbourMessage) -> Option<Self> {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
            _ => None,
        })?;
        Some(Self::NeighbourGone { interface: message.header.ifindex, address })
    }
}

/// The packet filter's news (nfnetlink), which says what has changed but not how.
pub(super) mod filter {
    use super::io;
    use netlink_sys::protocols::NETLINK_NETFILTER;
    use netlink_sys::{Socket, SocketAddr};

    /// `linux/netfilter/nfnetlink.h`, NFNLGRP_NFTABLES.
    const GROUP: u32 = 7;
    /// Netlink's header (16 bytes) and nfnetlink's (4).
    const HEADERS: usize = 20;
    /// `linux/netfilter/nf_tables.h`: in every message but a generation's, attribute 1 is the table's name.
    const TABLE_NAME: u16 = 1;

    /// `linux/netfilter/nf_tables.h`: the first message types are about tables, chains and rules; after NFT_MSG_DELRULE
    /// come those about sets, their elements and the rest.
    const LAST_OF_RULES: u16 = 8;
    /// NFT_MSG_NEWSETELEM and NFT_MSG_DELSETELEM.
    const ELEMENTS: [u16; 2] = [12, 14];

    /// Whose packet filter has changed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Concerns {
        /// A gateway's.
        pub ours: bool,
        /// Somebody else's.
        pub others: bool,
        /// The elements of somebody else's sets.
        pub elements: bool,
    }

    /// Starts listening.
    pub fn open() -> io::Result<Socket> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 1 << (GROUP - 1)))?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    }

    /// What a datagram is about: tables whose names begin with `prefix`, and tables, chains, rules and elements of others.
    pub fn concerns(datagram: &[u8], prefix: &str) -> Concerns {
        let mut concerns = Concerns::default();
        let mut rest = datagram;
        while let Some((message, next)) = split(rest) {
            let ours = table(message).is_some_and(|name| name.starts_with(prefix.as_bytes()));
            concerns.ours |= ours;
            let kind = u16::from_ne_bytes([message[4], message[5]]) & 0xff;
            concerns.others |= !ours && kind <= LAST_OF_RULES;
            concerns.elements |= !ours && ELEMENTS.contains(&kind);
            rest = next;
        }
        concerns
    }

    fn table(message: &[u8]) -> Option<&[u8]> {
        let mut rest = message.get(HEADERS..)?;
        loop {
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let value = rest.get(4..length)?;
            if kind == TABLE_NAME {
                return Some(value.strip_suffix(&[0]).unwrap_or(value));
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }

    /// The first message of a datagram, and the rest.
    pub fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
        let length = u32::from_ne_bytes(datagram.first_chunk::<4>().copied()?) as usize;
        let message = datagram.get(..length).filter(|m| m.len() >= HEADERS)?;
        Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }
}
