//! What has to hold in the world besides the oracle: what should not be blocked passes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Gateway, Running, World};
use crate::ground::simulation::lookup::{Fate, Lookup, Packet};
use crate::ground::simulation::oracle::{LAYERS, Layer, flush};
use crate::ground::simulation::stack::Stack;
use crate::ground::{DEFAULT_MARK, PROTOCOL, Sysctl, Wanted};

/// An address that no gateway guards except by a default route.
const ADMINISTRATOR: &str = "198.18.0.9";

impl World {
    /// When nothing is in the way, everything must be as it should.
    pub(super) fn judge(&mut self) {
        let waiting = self.gateways.iter().flatten_running().any(|r| r.ground.poll_timeout().is_some());
        let away = self.gateways.iter().any(|g| g.running.is_none() && g.file.is_some());
        let foreign = self.stack.borrow().rules.iter().any(|r| r.protocol != PROTOCOL);
        if waiting || away || foreign || !self.stack.borrow().faults.is_empty() {
            return;
        }
        let guarded = self.guarded();
        self.stack.borrow_mut().watch.damaged.clear();
        self.stack.borrow_mut().watch.guarded = guarded;
        self.nothing_is_left_to_do();
        let stack = self.stack.borrow();
        stack.watch.check(&stack, || "when all is done".to_owned());
        for layer in LAYERS {
            let mut without = stack.clone();
            without.watch.damaged.insert(layer);
            flush(&mut without, layer);
            without.watch.check(&without, || format!("with {layer:?} flushed"));
            self.tunnels_are_confined(without, layer);
        }
        for number in 0..2 {
            self.traffic_flows(&stack, number);
        }
    }

    /// What comes from the tunnel for this site does not leave by the WAN when the LAN's interfaces are gone.
    fn tunnels_are_confined(&self, mut stack: Stack, without: Layer) {
        for index in ["lan0", "lan1"].iter().filter_map(|name| stack.named(name)).collect::<Vec<_>>() {
            stack.remove_interface(index);
        }
        let lookup = Lookup::of(&stack);
        for gateway in &self.gateways {
            let Some(running) = gateway.running.as_ref().filter(|running| running.tun.is_some()) else { continue };
            self.tunnel_is_confined(&stack, &lookup, without, (gateway, running));
        }
    }

    fn tunnel_is_confined(
        &self,
        stack: &Stack,
        lookup: &Lookup,
        without: Layer,
        (gateway, running): (&Gateway, &Running),
    ) {
        let guarded = self.sound(gateway, &running.guard.prefixes());
        for subnet in &gateway.local {
            let destination = subnet.hosts().nth(5).expect("a subnet with room");
            let ways = lookup.to(destination);
            // Without the packet filter, only the default route is out of reach.
            let routed = without == Layer::Filter && !ways.only_default_in_main();
            if routed || !guarded.iter().any(|p| p.addr().is_ipv6() == destination.is_ipv6()) {
                continue;
            }
            if let Fate::Out(by) = ways.fate(&Packet { from: running.tun, source: None, destination, mark: 0 }) {
                let name = &stack.interfaces[&by].name;
                assert!(name.starts_with("pen"), "from the tunnel to {destination} by {name}, without {without:?}");
            }
        }
    }

    fn nothing_is_left_to_do(&mut self) {
        for number in 0..2 {
            let Some(wanted) = self.wanted(number) else { continue };
            let news = std::mem::take(&mut self.stack.borrow_mut().news[number]);
            let Some(running) = &mut self.gateways[number].running else { continue };
            running.ground.refresh(self.now, news);
            running.ground.reconcile(self.now, &wanted);
            let after = &self.stack.borrow().news[number];
            assert!(after.is_empty(), "it does the same again: {after:?}");
        }
    }

    /// What should not be blocked passes.
    fn traffic_flows(&self, stack: &Stack, number: usize) {
        let gateway = &self.gateways[number];
        let (Some(running), Some(wanted)) = (&gateway.running, self.wanted(number)) else { return };
        let own = |destination, source, mark| Packet { from: None, source, destination, mark };
        let (whole, bare) = (Lookup::of(stack), Lookup::of(&stack.without_gateways()));
        let others = self.gateways[1 - number].running.as_ref().map(|r| r.guard.prefixes()).unwrap_or_default();
        for outer in wanted.outer.iter().filter(|a| !others.iter().any(|p| p.contains(*a))) {
            let packet = own(*outer, None, DEFAULT_MARK);
            assert_eq!(whole.fate(&packet), bare.fate(&packet), "outer packets to {outer}");
        }
        let wan = stack.named("wan0");
        for address in stack.addresses.iter().filter(|a| Some(a.interface) == wan && a.address.is_ipv4()) {
            let packet = own(ADMINISTRATOR.parse().unwrap(), Some(address.address), 0);
            if let Fate::Out(by) = bare.fate(&packet) {
                assert_eq!(whole.fate(&packet), Fate::Out(by), "to the administrator from {address:?}");
            }
        }
        if let Some(index) = stack.named("lan0") {
            for address in stack.addresses.iter().filter(|a| a.interface == index) {
                let connected = stack.routes.iter().any(|r| r.protocol == 2 && r.destination == address.network());
                let host = neighbour_of(address.address);
                if connected && bare.fate(&own(host, None, 0)) == Fate::Out(index) {
                    assert_eq!(whole.fate(&own(host, None, 0)), Fate::Out(index), "to a host of the LAN");
                }
            }
        }
        let Some(tun) = running.tun else { return };
        assert!(stack.interfaces[&tun].up, "the tun device is down");
        for prefix in wanted.tunnelled.iter().filter(|p| wanted.guarded.contains(p)) {
            self.leads_into_the_tunnel(stack, (&whole, &bare), &wanted, *prefix, tun, &others);
        }
        assert_eq!(stack.sysctls[&Sysctl::v4(gateway.name.as_str(), "rp_filter")], "2");
        if let Some(forwarding) = stack.sysctls.get(&Sysctl::v4("lan0", "forwarding")) {
            assert_eq!(forwarding, "1");
        }
    }

    fn leads_into_the_tunnel(
        &self,
        stack: &Stack,
        (whole, bare): (&Lookup, &Lookup),
        wanted: &Wanted,
        prefix: IpNet,
        tun: u32,
        others: &BTreeSet<IpNet>,
    ) {
        let Some(host) = prefix.hosts().nth(2) else { return };
        let packet = Packet { from: None, source: None, destination: host, mark: 0 };
        let longer = |set: &BTreeSet<IpNet>| set.iter().any(|p| p.contains(&host) && !p.contains(&prefix));
        let to_lan = matches!(bare.fate(&packet), Fate::Out(by) if stack.interfaces[&by].name == "lan0");
        let local = wanted.placement.local.iter().any(|p| p.contains(&host));
        let small = host.is_ipv6() && stack.interfaces[&tun].mtu < 1280;
        let conflict = !self.guarded().contains(&prefix);
        if longer(others) || longer(&wanted.guarded) || others.contains(&prefix) || to_lan || local || conflict {
            return;
        }
        let expected = if small { Fate::Dropped } else { Fate::Out(tun) };
        let fate = whole.fate(&packet);
        assert!(fate == expected || fate == Fate::Here, "{host} of {prefix}: {fate:?}");
        let from = stack.named("lan0");
        if from.is_some() {
            let fate = whole.fate(&Packet { from, ..packet });
            assert!(fate == expected || fate == Fate::Here, "{host} of {prefix} from the LAN: {fate:?}");
        }
    }

    /// The prefixes that gateways guard, except those that are, or lie inside, a network of the site.
    fn guarded(&self) -> BTreeSet<IpNet> {
        let running = self.gateways.iter().filter(|g| g.running.is_some());
        running.flat_map(|g| self.sound(g, &g.running.as_ref().expect("looked at").guard.prefixes())).collect()
    }

    fn sound(&self, gateway: &Gateway, prefixes: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let stack = self.stack.borrow();
        let lan = stack.named("lan0");
        let connected = stack.addresses.iter().filter(|a| Some(a.interface) == lan).map(|a| a.network());
        let own: Vec<IpNet> = connected.chain(gateway.local.iter().copied()).collect();
        prefixes.iter().filter(|p| !own.iter().any(|o| o.contains(*p))).copied().collect()
    }

    /// Those that were guarded when every operation had last been done, and have not been released since.
    pub(super) fn still_guarded(&self) -> BTreeSet<IpNet> {
        let before = self.stack.borrow().watch.guarded.clone();
        let in_files: BTreeSet<IpNet> = self
            .gateways
            .iter()
            .zip(&self.remote)
            .flat_map(|(g, remote)| match &g.running {
                Some(running) => self.sound(g, &running.guard.prefixes()),
                // Nobody releases what an absent gateway guarded.
                None => self.sound(g, remote),
            })
            .collect();
        before.intersection(&in_files).copied().collect()
    }
}

fn neighbour_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 1).into()),
    }
}

trait AllRunning<'a> {
    fn flatten_running(self) -> impl Iterator<Item = &'a Running>;
}

impl<'a, I: Iterator<Item = &'a Gateway>> AllRunning<'a> for I {
    fn flatten_running(self) -> impl Iterator<Item = &'a Running> {
        self.filter_map(|gateway| gateway.running.as_ref())
    }
}
