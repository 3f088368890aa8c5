//! What must hold for packets, judged only by what happens to them: nothing here knows how a plan is made.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::lookup::{Fate, Lookup, Packet, Span};
use super::stack::Stack;
use crate::ground::PROTOCOL;
use crate::netlink::MAIN_TABLE;

/// A layer of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// The rules, and the table that they lead to.
    OwnTable,
    /// The blackholes of the main table.
    MainTable,
    /// The packet filter.
    Filter,
}

pub const LAYERS: [Layer; 3] = [Layer::OwnTable, Layer::MainTable, Layer::Filter];

/// What must hold, and which layers are damaged at present.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Prefixes that were guarded once and have not been released since.
    pub guarded: BTreeSet<IpNet>,
    /// Layers that somebody has removed, or that could not be set up.
    pub damaged: BTreeSet<Layer>,
}

impl Watch {
    /// Panics if there is a leak.
    pub fn check(&self, stack: &Stack, when: impl FnOnce() -> String) {
        if let Some(leak) = self.leak(stack) {
            panic!("{leak}, {}; damaged: {:?}", when(), self.damaged);
        }
    }

    /// A packet of a guarded prefix that leaves in the clear, although the undamaged layers should hold it.
    pub fn leak(&self, stack: &Stack) -> Option<String> {
        // The packet filter alone holds forwarded packets; otherwise the two other layers must be there.
        let forwarding = !self.damaged.contains(&Layer::Filter) || self.damaged.len() == 1;
        let sources = ["lan0", "lan1"].iter().filter_map(|name| stack.named(name));
        let sources: Vec<u32> = sources.filter(|index| forwarding && stack.interfaces[index].up).collect();
        let lookup = Lookup::of(stack);
        for destination in destinations(stack, &self.guarded) {
            let ways = lookup.to(destination);
            let packet = |from| Packet { from, source: None, destination, mark: 0 };
            let forwarded = sources.iter().map(|index| packet(Some(*index)));
            // For packets of this host the routes alone must hold. Packets for this site's own networks are left to the
            // main table: when somebody has flushed that, nothing says any more that these belong to the LAN.
            let main = !self.damaged.contains(&Layer::MainTable);
            let held_by_routes =
                !self.damaged.contains(&Layer::OwnTable) && (main || !ways.is_thrown()) || main && ways.main_holds();
            let own = held_by_routes.then(|| packet(None));
            for packet in forwarded.chain(own) {
                if let Fate::Out(by) = ways.fate(&packet) {
                    let name = &stack.interfaces[&by].name;
                    if !name.starts_with("pen") && !name.starts_with("lan") {
                        return Some(format!("{packet:?} leaves in the clear by {name}"));
                    }
                }
            }
        }
        None
    }
}

/// Addresses in guarded prefixes that may be treated differently: near the ends of each prefix, and of routes and outer
/// addresses inside.
fn destinations(stack: &Stack, guarded: &BTreeSet<IpNet>) -> BTreeSet<IpAddr> {
    let guarded: Vec<Span> = guarded.iter().map(Span::of).collect();
    if guarded.is_empty() {
        return BTreeSet::new();
    }
    let routes: BTreeSet<&IpNet> = stack.routes.iter().map(|r| &r.destination).collect();
    let all = guarded.iter().copied().chain(routes.into_iter().map(Span::of)).flat_map(|span| ends(&span));
    all.filter(|address| guarded.iter().any(|p| p.contains(*address))).filter(is_reachable).collect()
}

/// An address near each end of a prefix.
fn ends(span: &Span) -> [IpAddr; 2] {
    let several = u128::from(span.last > span.first);
    let broadcast = several * u128::from(span.address(0).is_ipv4());
    [span.address(span.first + several), span.address(span.last - broadcast)]
}

/// Link-local and multicast addresses do not belong to a site.
fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && v4.octets()[0] < 240,
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unicast_link_local(),
    }
}

/// Removes a layer, as somebody might.
pub fn flush(stack: &mut Stack, layer: Layer) {
    match layer {
        Layer::OwnTable => {
            stack.remove_routes(|r| r.table != MAIN_TABLE && r.protocol == PROTOCOL);
            stack.remove_rules();
        }
        Layer::MainTable => stack.remove_routes(|r| r.table == MAIN_TABLE && r.protocol == PROTOCOL),
        Layer::Filter => stack.filters.clear(),
    }
}
