//! What can happen to the two gateways and their machine.

use std::net::IpAddr;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use super::{LAN_ADDRESSES, REMOTE, WAN_ADDRESSES, World, default_route, net};
use crate::ground::simulation::oracle::{Layer, flush};
use crate::ground::simulation::stack::Fault;
use crate::netlink::{MAIN_TABLE, News, Route, Rule};

const OUTER: [&str; 6] = ["203.0.113.5", "10.102.0.77", "198.51.100.1", "192.0.2.9", "2001:db8:5::1", "fd00:102::77"];
/// Routes of the administrator: destination, and whether through the LAN.
const STATIC: [(&str, bool); 7] = [
    ("10.102.7.0/24", false),
    ("10.103.0.0/24", true),
    ("10.0.0.0/9", true),
    ("10.101.0.64/26", false),
    ("172.16.5.0/24", true),
    ("172.16.5.128/25", false),
    ("fd00:102:0:7::/64", true),
];

impl World {
    pub(super) fn event(&mut self) -> String {
        let number = usize::from(self.rng.random_bool(0.25));
        let choice = self.rng.random_range(0..26);
        if self.rng.random_bool(0.3) {
            self.stack.borrow_mut().faults.clear();
        }
        match choice {
            0..=3 => self.add_prefix(number),
            4 => self.drop_prefix(number),
            5 => self.release(number),
            6 => self.lose_tun(number),
            7 => self.tun_up(number, false),
            8 => self.bounce_tun(number),
            9 => self.flush(Layer::OwnTable),
            10 => self.flush(Layer::MainTable),
            11 => self.flush(Layer::Filter),
            12 => self.spoil_filter(number),
            13 => self.flush_main(),
            14 => self.interface_goes("wan0", false),
            15 => self.interface_goes("lan0", true),
            16 => self.interface_comes(),
            17 => self.address_changes("wan0", &WAN_ADDRESSES, false),
            18 => self.address_changes("lan0", &LAN_ADDRESSES, true),
            19 => self.default_changes(),
            20 => self.static_route(),
            21 => self.foreign_rule(),
            22 => self.fault(),
            23 => self.kill_or_start(number),
            24 => self.outer_changes(number),
            _ => self.settings_change(),
        }
    }

    fn damage(&self, layers: &[Layer]) {
        self.stack.borrow_mut().watch.damaged.extend(layers);
    }

    fn add_prefix(&mut self, number: usize) -> String {
        let prefix = net(REMOTE[number].choose(&mut self.rng).unwrap());
        let gateway = &mut self.gateways[number];
        let by_profile = self.rng.random_bool(0.5);
        if by_profile { &mut gateway.profile } else { &mut gateway.overlay }.insert(prefix);
        format!("{} gets {prefix}", gateway.name)
    }

    fn drop_prefix(&mut self, number: usize) -> String {
        let gateway = &mut self.gateways[number];
        if let Some(prefix) = gateway.overlay.pop_first() {
            return format!("the map takes {prefix} from {}", gateway.name);
        }
        let Some(prefix) = gateway.profile.pop_first() else { return "nothing".into() };
        format!("the profile takes {prefix} from {}", gateway.name)
    }

    fn release(&mut self, number: usize) -> String {
        let gateway = &mut self.gateways[number];
        let Some(running) = &mut gateway.running else { return "nothing".into() };
        let Some(prefix) = running.guard.prefixes().first().copied() else { return "nothing".into() };
        running.guard.release([prefix]);
        gateway.profile.remove(&prefix);
        gateway.overlay.remove(&prefix);
        format!("{} releases {prefix}", gateway.name)
    }

    fn lose_tun(&mut self, number: usize) -> String {
        let Some(running) = &mut self.gateways[number].running else { return "nothing".into() };
        let Some(index) = running.tun.take() else { return "nothing".into() };
        self.stack.borrow_mut().remove_interface(index);
        if self.rng.random_bool(0.5) {
            self.make_tun(number);
            return format!("the tun device {index} is replaced");
        }
        format!("the tun device {index} is deleted")
    }

    fn tun_up(&mut self, number: usize, up: bool) -> String {
        let Some(tun) = self.gateways[number].running.as_ref().and_then(|r| r.tun) else { return "nothing".into() };
        self.stack.borrow_mut().set_up(tun, up);
        format!("the tun device {tun} goes {}", if up { "up" } else { "down" })
    }

    fn bounce_tun(&mut self, number: usize) -> String {
        self.tun_up(number, false);
        self.tun_up(number, true) + " and down before"
    }

    fn flush(&mut self, layer: Layer) -> String {
        flush(&mut self.stack.borrow_mut(), layer);
        self.stack.borrow_mut().tell(&News::Filter);
        self.damage(&[layer]);
        format!("somebody flushes {layer:?}")
    }

    fn spoil_filter(&mut self, number: usize) -> String {
        let name = self.gateways[number].name.to_string();
        if let Some(filter) = self.stack.borrow_mut().filters.get_mut(&name) {
            *filter = None;
        }
        self.stack.borrow_mut().tell(&News::Filter);
        self.damage(&[Layer::Filter]);
        format!("somebody spoils the filter of {name}")
    }

    fn flush_main(&mut self) -> String {
        self.stack.borrow_mut().remove_routes(|r| r.table == MAIN_TABLE);
        self.damage(&[Layer::MainTable]);
        "somebody flushes the main table".into()
    }

    fn interface_goes(&mut self, name: &str, lan: bool) -> String {
        let mut stack = self.stack.borrow_mut();
        let Some(index) = stack.named(name) else { return "nothing".into() };
        stack.remove_interface(index);
        drop(stack);
        if lan {
            self.damage(&[Layer::OwnTable]);
        }
        format!("{name} goes")
    }

    fn interface_comes(&mut self) -> String {
        let mut stack = self.stack.borrow_mut();
        for (name, address) in [("wan0", WAN_ADDRESSES[0]), ("lan0", LAN_ADDRESSES[0])] {
            if stack.named(name).is_none() {
                let index = stack.add_interface(name, 1500, true);
                stack.add_address(index, address);
            }
        }
        default_route(&mut stack, "wan0");
        drop(stack);
        self.damage(&[Layer::OwnTable]);
        "interfaces come back".into()
    }

    fn address_changes(&mut self, name: &str, choice: &[&str], lan: bool) -> String {
        let mut stack = self.stack.borrow_mut();
        let Some(index) = stack.named(name) else { return "nothing".into() };
        let old = stack.addresses.iter().copied().find(|a| a.interface == index && self.rng.random_bool(0.7));
        if let Some(old) = old {
            stack.remove_address(old);
        }
        let new = choice.choose(&mut self.rng).unwrap();
        stack.add_address(index, new);
        default_route(&mut stack, "wan0");
        // A network inside one that is left to the main table for the LAN's sake: until the gateway has heard of it, this
        // host's own packets follow the main table, as with a route of the administrator's.
        let lan_index = stack.named("lan0");
        let network = net(new).trunc();
        let inside_lan = stack
            .routes
            .iter()
            .any(|r| r.interface.is_some() && r.interface == lan_index && r.destination.contains(&network));
        drop(stack);
        if lan || inside_lan {
            self.damage(&[Layer::OwnTable]);
        }
        format!("{name} gets {new} for {old:?}")
    }

    fn default_changes(&mut self) -> String {
        let by = *["wan0", "eth9"].choose(&mut self.rng).unwrap();
        default_route(&mut self.stack.borrow_mut(), by);
        format!("the default route goes by {by}")
    }

    fn static_route(&mut self) -> String {
        let (destination, lan) = *STATIC.choose(&mut self.rng).unwrap();
        let destination = net(destination);
        let mut stack = self.stack.borrow_mut();
        let there = stack.routes.iter().any(|r| r.destination == destination && r.protocol == 3);
        let by = stack.named(if lan { "lan0" } else { "wan0" });
        let event = match by {
            _ if there => {
                stack.remove_routes(|r| r.destination == destination && r.protocol == 3);
                format!("the route to {destination} goes")
            }
            Some(by) => {
                let gateway = if destination.addr().is_ipv4() { "192.0.2.77" } else { "fe80::77" };
                stack.add_route(Route::by(destination, by, Some(gateway.parse().unwrap()), 20, 3));
                format!("a route to {destination} comes, lan: {lan}")
            }
            None => return "nothing".into(),
        };
        drop(stack);
        self.damage(&[Layer::OwnTable]);
        event
    }

    fn foreign_rule(&mut self) -> String {
        let rule = Rule {
            ipv6: false,
            priority: 100,
            from: None,
            input: None,
            unmarked: None,
            table: Some(100),
            without_default: false,
            protocol: 4,
        };
        let mut stack = self.stack.borrow_mut();
        if stack.rules.remove(&rule) {
            stack.tell(&News::RuleGone(rule));
            return "the foreign rule goes".into();
        }
        let Some(by) = stack.named("wan0") else { return "nothing".into() };
        stack.add_route(Route { table: 100, ..Route::by(net("0.0.0.0/0"), by, None, 0, 4) });
        stack.rules.insert(rule.clone());
        stack.tell(&News::Rule(rule));
        drop(stack);
        self.damage(&[Layer::OwnTable, Layer::MainTable]);
        "a foreign rule comes".into()
    }

    fn fault(&mut self) -> String {
        let faults =
            [Fault::OwnTable, Fault::MainTable, Fault::Rules, Fault::Filter, Fault::Settings, Fault::Interfaces];
        let fault = *faults.choose(&mut self.rng).unwrap();
        self.stack.borrow_mut().faults.insert(fault);
        match fault {
            Fault::OwnTable | Fault::Rules => self.damage(&[Layer::OwnTable]),
            Fault::MainTable => self.damage(&[Layer::MainTable]),
            Fault::Filter => self.damage(&[Layer::Filter]),
            Fault::Settings | Fault::Interfaces => {}
        }
        format!("the kernel refuses {fault:?}")
    }

    fn kill_or_start(&mut self, number: usize) -> String {
        let orderly = self.rng.random_bool(0.4);
        if self.gateways[number].running.is_some() {
            self.end(number, orderly);
            // As long as it is away, nobody repairs what was damaged.
            return format!("{} ends, orderly: {orderly}", self.gateways[number].name);
        }
        let damaged = self.stack.borrow().watch.damaged.clone();
        let intact = !damaged.contains(&Layer::OwnTable) && self.stack.borrow().faults.is_empty();
        let lost = intact && self.rng.random_bool(0.5);
        if lost {
            let file = &mut self.gateways[number].file;
            if self.rng.random_bool(0.5) {
                *file = None;
            } else if let Some(bytes) = file {
                let at = self.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.rng.random_range(0..7);
                bytes.truncate(self.rng.random_range(at..bytes.len()).max(1));
            }
        }
        self.start(number);
        format!("{} starts, its file lost or damaged: {lost}", self.gateways[number].name)
    }

    fn outer_changes(&mut self, number: usize) -> String {
        let outer: IpAddr = OUTER.choose(&mut self.rng).unwrap().parse().unwrap();
        let gateway = &mut self.gateways[number];
        if !gateway.outer.remove(&outer) {
            gateway.outer.insert(outer);
        }
        format!("{}: outer address {outer} comes or goes", gateway.name)
    }

    fn settings_change(&mut self) -> String {
        let mut stack = self.stack.borrow_mut();
        let settings = stack.sysctls.keys().filter(|s| s.name == "forwarding" && s.interface.starts_with("lan"));
        let Some(setting) = settings.cloned().collect::<Vec<_>>().choose(&mut self.rng).cloned() else {
            return "nothing".into();
        };
        stack.sysctls.insert(setting.clone(), "0".into());
        stack.tell(&News::Sysctl);
        format!("somebody sets {setting} to 0")
    }
}
