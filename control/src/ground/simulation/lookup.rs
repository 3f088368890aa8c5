//! A stack as packets see it, prepared once for many packets: the simulation spends most of its time here.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::stack::Stack;
use crate::ground::PROTOCOL;
use crate::netlink::{MAIN_TABLE, RouteKind, Rule};

/// A packet that leaves, from this host or forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The interface on which it arrived; `None` for one from this host.
    pub from: Option<u32>,
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    pub mark: u32,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Out(u32),
    Here,
    Dropped,
}

/// The addresses of a prefix, as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    ipv6: bool,
    pub first: u128,
    pub last: u128,
}

impl Span {
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(v4) => {
                Self { ipv6: false, first: u32::from(v4.network()).into(), last: u32::from(v4.broadcast()).into() }
            }
            IpNet::V6(v6) => Self { ipv6: true, first: v6.network().into(), last: v6.broadcast().into() },
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.holds(number(address))
    }

    fn holds(&self, (ipv6, number): (bool, u128)) -> bool {
        self.ipv6 == ipv6 && self.first <= number && number <= self.last
    }

    /// Whether these are all addresses of the IP version.
    fn is_all(&self) -> bool {
        self.first == 0 && self.last == if self.ipv6 { u128::MAX } else { u32::MAX.into() }
    }

    /// An address of the same IP version.
    pub fn address(&self, number: u128) -> IpAddr {
        if self.ipv6 { IpAddr::V6(number.into()) } else { IpAddr::V4((number as u32).into()) }
    }
}

fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u32::from(v4).into()),
        IpAddr::V6(v6) => (true, v6.into()),
    }
}

#[derive(Clone, Copy)]
struct Entry {
    table: u32,
    destination: Span,
    ours: bool,
    kind: RouteKind,
    interface: Option<u32>,
}

struct FilterEntry {
    /// The tun device, if its packets may leave only by the interfaces inside.
    confined: Option<u32>,
    /// Indices of the interfaces inside.
    inside: BTreeSet<u32>,
    outward: Vec<Span>,
    inward: Vec<Span>,
}

pub struct Lookup {
    own: BTreeSet<IpAddr>,
    /// In the order in which they are applied, with the interface whose packets they select, if there is one.
    rules: Vec<(Rule, Option<u32>)>,
    /// The longest prefixes first; of the same length, the lowest metric first.
    routes: Vec<Entry>,
    filters: Vec<FilterEntry>,
}

impl Lookup {
    pub fn of(stack: &Stack) -> Self {
        let input = |rule: &Rule| rule.input.as_deref().and_then(|name| stack.named(name));
        let mut rules: Vec<_> = stack.rules.iter().map(|rule| (rule.clone(), input(rule))).collect();
        rules.sort_by_key(|(rule, _)| (rule.priority, rule.table));
        let mut routes: Vec<_> = stack.routes.iter().collect();
        routes.sort_by_key(|r| (Reverse(r.destination.prefix_len()), r.metric));
        let entry = |r: &crate::netlink::Route| Entry {
            table: r.table,
            destination: Span::of(&r.destination),
            ours: r.protocol == PROTOCOL,
            kind: r.kind,
            interface: r.interface,
        };
        let filters = stack.filters.values().flatten().map(|filter| FilterEntry {
            confined: filter.confined.then(|| stack.named(filter.name.as_str())).flatten(),
            inside: filter.inside.iter().filter_map(|name| stack.named(name)).collect(),
            outward: filter.outward.iter().map(Span::of).collect(),
            inward: filter.inward.iter().map(Span::of).collect(),
        });
        Self {
            own: stack.addresses.iter().map(|a| a.address).collect(),
            rules,
            routes: routes.into_iter().map(entry).collect(),
            filters: filters.collect(),
        }
    }

    /// The routes for a destination, whatever happens to each packet to it.
    pub fn to(&self, destination: IpAddr) -> Ways<'_> {
        let number = number(destination);
        let covering = self.routes.iter().filter(|route| route.destination.holds(number)).collect();
        Ways { lookup: self, destination, covering }
    }

    pub fn fate(&self, packet: &Packet) -> Fate {
        self.to(packet.destination).fate(packet)
    }
}

/// The routes that contain one destination, found once: there are many routes, and several packets for each
/// destination.
pub struct Ways<'a> {
    lookup: &'a Lookup,
    destination: IpAddr,
    covering: Vec<&'a Entry>,
}

impl Ways<'_> {
    /// What happens to a packet with this destination.
    pub fn fate(&self, packet: &Packet) -> Fate {
        match self.routed(packet) {
            Fate::Out(by) if packet.from.is_some() && self.filtered(packet, by) => Fate::Dropped,
            fate => fate,
        }
    }

    fn routed(&self, packet: &Packet) -> Fate {
        if self.lookup.own.contains(&self.destination) {
            return Fate::Here;
        }
        let rules = self.lookup.rules.iter();
        let decisions = rules
            .filter(|(rule, _)| rule.ipv6 == self.destination.is_ipv6())
            .filter(|(rule, _)| rule.unmarked != Some(packet.mark))
            .filter(|(rule, _)| rule.from.is_none() || rule.from == packet.source)
            .filter(|(rule, input)| match rule.input.as_deref() {
                None => true,
                Some("lo") => packet.from.is_none(),
                Some(_) => input.is_some() && packet.from == *input,
            })
            .map(|(rule, _)| (rule.table, rule.without_default));
        for (table, without_default) in decisions.chain([(Some(MAIN_TABLE), false)]) {
            let Some(table) = table else { return Fate::Dropped };
            let best = self.covering.iter().find(|route| route.table == table);
            let best = best.filter(|route| !without_default || !route.destination.is_all());
            match best.map(|route| (route.kind, route.interface)) {
                None | Some((RouteKind::Throw, _)) => {}
                Some((RouteKind::Unicast, Some(by))) => return Fate::Out(by),
                Some(_) => return Fate::Dropped,
            }
        }
        Fate::Dropped
    }

    fn filtered(&self, packet: &Packet, by: u32) -> bool {
        let Some(from) = packet.from else { return false };
        self.lookup.filters.iter().any(|filter| {
            let outward = filter.inside.contains(&from) && !filter.inside.contains(&by);
            let inward = !filter.inside.contains(&from);
            let confined = filter.confined == Some(from) && !filter.inside.contains(&by);
            confined
                || outward && filter.outward.iter().any(|p| p.contains(self.destination))
                || inward && packet.source.is_some_and(|source| filter.inward.iter().any(|p| p.contains(source)))
        })
    }

    /// Whether a gateway's table leaves the destination to the main table.
    pub fn is_thrown(&self) -> bool {
        let ours = self.covering.iter().find(|r| r.ours && r.table != MAIN_TABLE);
        ours.is_some_and(|r| r.kind == RouteKind::Throw)
    }

    /// Whether the main table has nothing longer than a default route for the destination.
    pub fn only_default_in_main(&self) -> bool {
        self.covering.iter().filter(|r| r.table == MAIN_TABLE).all(|r| r.destination.is_all())
    }

    /// Whether the main table's blackholes alone hold the destination: other people's routes there may be longer,
    /// default routes have no blackhole, and outer addresses are excepted.
    pub fn main_holds(&self) -> bool {
        let size = |entry: &Entry| entry.destination.last - entry.destination.first;
        let main = self.covering.iter().filter(|r| r.table == MAIN_TABLE);
        let blackholed = main.clone().filter(|r| r.ours).map(|r| size(r)).min();
        // The longest prefix is the smallest.
        main.filter(|r| !r.ours).all(|r| blackholed.is_some_and(|blackhole| blackhole < size(r)))
    }
}
