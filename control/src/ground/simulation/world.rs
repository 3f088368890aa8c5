//! Two gateways on one simulated stack, and what happens to them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::lookup::{Fate, Lookup, Packet};
use super::oracle::{LAYERS, Layer, flush};
use super::stack::{Fault, Handle, Stack};
use crate::ground::{
    DEFAULT_MARK, DEFAULT_TABLE, Ground, Guard, Interest, Origin, PROTOCOL, Saved, Sysctl, Tun, Wanted,
};
use crate::key::PrivateKey;
use crate::netlink::{MAIN_TABLE, News, Route, Rule};
use crate::problem::Problems;
use crate::profile::Name;

const REMOTE: [[&str; 10]; 2] = [
    [
        "10.102.0.0/16",
        "10.103.0.0/24",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "0.0.0.0/0",
        "203.0.113.0/24",
        "fd00:102::/48",
        "fd00::/8",
        "::/0",
        "192.0.2.0/24",
    ],
    [
        "10.200.0.0/16",
        "172.20.0.0/16",
        "10.101.0.0/24",
        "10.101.0.128/25",
        "fd00:200::/48",
        "10.104.0.0/16",
        "10.105.0.0/16",
        "fd00:101::/64",
        "fd00:201::/48",
        "198.51.100.0/24",
    ],
];
const OUTER: [&str; 6] = ["203.0.113.5", "10.102.0.77", "198.51.100.1", "192.0.2.9", "2001:db8:5::1", "fd00:102::77"];
const LAN_ADDRESSES: [&str; 4] = ["10.101.0.1/24", "10.111.0.1/24", "10.102.5.1/24", "fd00:101::1/64"];
const WAN_ADDRESSES: [&str; 4] = ["192.0.2.1/24", "10.50.0.7/24", "203.0.113.1/24", "2001:db8::1/64"];
/// Routes of the administrator: destination, and whether by the LAN.
const STATIC: [(&str, bool); 7] = [
    ("10.102.7.0/24", false),
    ("10.103.0.0/24", true),
    ("10.0.0.0/9", true),
    ("10.101.0.64/26", false),
    ("172.16.5.0/24", true),
    ("172.16.5.128/25", false),
    ("fd00:102:0:7::/64", true),
];
/// An address that no gateway guards but by a default route.
const ADMINISTRATOR: &str = "198.18.0.9";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub struct World {
    pub stack: Rc<RefCell<Stack>>,
    gateways: [Gateway; 2],
    before: Stack,
    /// The prefixes that each may come to guard.
    remote: [BTreeSet<IpNet>; 2],
    now: Instant,
    rng: StdRng,
    pub events: Vec<String>,
}

struct Gateway {
    name: Name,
    table: u32,
    key: PrivateKey,
    /// Kept over restarts, as files are.
    file: Option<Vec<u8>>,
    saved: Saved,
    running: Option<Running>,
    /// What the profile and the map say.
    profile: BTreeSet<IpNet>,
    overlay: BTreeSet<IpNet>,
    outer: BTreeSet<IpAddr>,
    local: BTreeSet<IpNet>,
}

struct Running {
    ground: Ground<Handle>,
    guard: Guard,
    tun: Option<u32>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut stack = Stack::default();
        for (sysctl, value) in [
            (Sysctl::v4("all", "rp_filter"), "0"),
            (Sysctl::v4("all", "send_redirects"), "1"),
            (Sysctl::v6("all", "forwarding"), "0"),
            (Sysctl::v6("default", "forwarding"), "0"),
            (Sysctl::v6("default", "accept_ra"), "1"),
        ] {
            stack.sysctls.insert(sysctl, value.to_owned());
        }
        for name in ["wan0", "lan0", "eth9"] {
            stack.add_interface(name, 1500, true);
        }
        if rng.random_bool(0.5) {
            stack.sysctls.insert(Sysctl::v4("wan0", "rp_filter"), "1".into());
        }
        if rng.random_bool(0.5) {
            // A kernel that can forward IPv6 by interface.
            for name in ["wan0", "lan0", "eth9"] {
                stack.sysctls.insert(Sysctl::v6(name, "force_forwarding"), "0".into());
            }
        }
        let wan = stack.named("wan0").unwrap();
        stack.add_address(wan, WAN_ADDRESSES[0]);
        stack.add_address(wan, WAN_ADDRESSES[3]);
        let lan = stack.named("lan0").unwrap();
        stack.add_address(lan, LAN_ADDRESSES[0]);
        stack.add_address(lan, LAN_ADDRESSES[3]);
        let other = stack.named("eth9").unwrap();
        stack.add_address(other, "198.51.100.254/30");
        default_route(&mut stack, "wan0");
        let before = stack.without_gateways();
        let stack = Rc::new(RefCell::new(stack));
        // Gateways of one machine have one table, unless their profiles say otherwise.
        let other_table = u32::from(rng.random_bool(0.5));
        let gateway = |number: u8| Gateway {
            name: Name::try_from(format!("pen{number}")).unwrap(),
            table: DEFAULT_TABLE + u32::from(number) * other_table,
            key: PrivateKey::from_bytes([number + 1; 32]),
            file: None,
            saved: Saved::default(),
            running: None,
            profile: BTreeSet::new(),
            overlay: BTreeSet::new(),
            outer: BTreeSet::new(),
            local: BTreeSet::from([net("10.101.0.0/24"), net("fd00:101::/64")]),
        };
        let gateways = [gateway(0), gateway(1)];
        let remote = REMOTE.map(|prefixes| prefixes.map(net).into());
        let mut world = Self { stack, gateways, before, remote, now: Instant::now(), rng, events: Vec::new() };
        world.start(0);
        world
    }

    /// Lets something happen, and the gateways answer.
    pub fn step(&mut self) {
        self.now += Duration::from_secs(61);
        let event = self.event();
        self.events.push(event.clone());
        self.stack.borrow_mut().watch.guarded = self.still_guarded();
        {
            let stack = self.stack.borrow();
            stack.watch.check(&stack, || format!("right after: {event}"));
        }
        self.answer();
    }

    fn event(&mut self) -> String {
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

    fn make_tun(&mut self, number: usize) {
        let gateway = &mut self.gateways[number];
        let mtu = if self.rng.random_bool(0.1) { 1200 } else { 1420 };
        if let Some(running) = gateway.running.as_mut().filter(|r| r.tun.is_none()) {
            let up = self.rng.random_bool(0.5);
            running.tun = Some(self.stack.borrow_mut().add_interface(gateway.name.as_str(), mtu, up));
        }
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
        drop(stack);
        if lan {
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
        let rule =
            Rule { ipv6: false, priority: 100, from: None, local: false, unmarked: None, table: 100, protocol: 4 };
        let mut stack = self.stack.borrow_mut();
        if stack.rules.remove(&rule) {
            stack.tell(&News::RuleGone(rule));
            return "the foreign rule goes".into();
        }
        let Some(by) = stack.named("wan0") else { return "nothing".into() };
        stack.add_route(Route { table: 100, ..Route::by(net("0.0.0.0/0"), by, None, 0, 4) });
        stack.rules.insert(rule);
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
            // As long as it is away nobody heals, and what was damaged stays so.
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

    fn start(&mut self, number: usize) {
        let gateway = &mut self.gateways[number];
        let handle = Handle { stack: self.stack.clone(), printed: None };
        self.stack.borrow_mut().news[number].clear();
        let interest = Interest { table: gateway.table, lan: lan() };
        let ground = Ground::open_with(handle, &gateway.name, interest, gateway.saved.clone(), self.now);
        let held = ground.held();
        let file = Ok(gateway.file.clone());
        let mut problems = Problems::default();
        let path = std::path::Path::new("x.guard");
        let guard = Guard::of_file(path, &gateway.key, &gateway.name, file, &held, self.now, &mut problems);
        gateway.running = Some(Running { ground, guard, tun: None });
        self.make_tun(number);
    }

    fn end(&mut self, number: usize, orderly: bool) {
        let wanted = self.wanted(number);
        let gateway = &mut self.gateways[number];
        let Some(mut running) = gateway.running.take() else { return };
        if orderly {
            let news = std::mem::take(&mut self.stack.borrow_mut().news[number]);
            running.ground.refresh(self.now, news);
            running.ground.withdraw(self.now, &wanted.expect("it runs"));
        }
        gateway.saved = running.ground.saved().clone();
        if let Some(tun) = running.tun {
            self.stack.borrow_mut().remove_interface(tun);
        }
    }

    fn wanted(&self, number: usize) -> Option<Wanted> {
        let gateway = &self.gateways[number];
        let running = gateway.running.as_ref()?;
        let stack = self.stack.borrow();
        let lan_address = |v4: bool| {
            let index = stack.named("lan0")?;
            stack.addresses.iter().find(|a| a.interface == index && a.address.is_ipv4() == v4).map(|a| a.address)
        };
        let tun = running.tun.map(|index| Tun {
            index,
            mtu: None,
            addresses: BTreeSet::from([format!("100.64.0.{}", number + 1).parse().unwrap()]),
            source_v4: Some(format!("100.64.0.{}", number + 1).parse().unwrap()),
            source_v6: lan_address(false),
        });
        Some(Wanted {
            name: gateway.name.clone(),
            table: gateway.table,
            mark: DEFAULT_MARK,
            tun,
            tunnelled: gateway.profile.union(&gateway.overlay).copied().collect(),
            mtus: BTreeMap::new(),
            guarded: running.guard.prefixes(),
            outer: gateway.outer.clone(),
            wan: "wan0".into(),
            lan: lan(),
            local: gateway.local.clone(),
            local_port: Some(47100 + number as u16),
            transit: false,
            forward: true,
        })
    }

    /// Gateways hear the news and answer, each with what it wants now.
    fn answer(&mut self) {
        for number in 0..2 {
            let Some(running) = &mut self.gateways[number].running else { continue };
            let gateway_tun = running.tun;
            running.guard.profile_changed(&self.gateways[number].profile.clone());
            let overlay = self.gateways[number].overlay.clone();
            let gateway = &mut self.gateways[number];
            let running = gateway.running.as_mut().expect("looked at");
            running.guard.cover(overlay, Origin::Accepted);
            gateway.file = Some(running.guard.encode().into_bytes());
            if gateway_tun.is_none() && self.rng.random_bool(0.5) {
                self.make_tun(number);
            }
        }
        self.stack.borrow_mut().watch.guarded = self.still_guarded();
        // Twice, since each hears of what the other did.
        for (round, number) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let Some(wanted) = self.wanted(number) else { continue };
            let mut news = std::mem::take(&mut self.stack.borrow_mut().news[number]);
            if round > 0 && news.is_empty() {
                continue;
            }
            if self.rng.random_bool(0.05) {
                news = vec![News::Lost];
            }
            let gateway = &mut self.gateways[number];
            let Some(running) = &mut gateway.running else { continue };
            running.ground.refresh(self.now, news);
            running.ground.reconcile(self.now, &wanted);
            gateway.saved = running.ground.saved().clone();
        }
        self.judge();
    }

    /// When nothing is in the way, everything must be as it should.
    fn judge(&mut self) {
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
        }
        for number in 0..2 {
            self.traffic_flows(&stack, number);
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

    /// What is not to be held goes its way.
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
        let local = wanted.local.iter().any(|p| p.contains(&host));
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

    /// The prefixes that gateways guard, but for those that are, or lie inside, a network of the site.
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

    /// Those that were guarded when all was done last, and have not been released since.
    fn still_guarded(&self) -> BTreeSet<IpNet> {
        let before = self.stack.borrow().watch.guarded.clone();
        let in_files: BTreeSet<IpNet> = self
            .gateways
            .iter()
            .zip(&self.remote)
            .flat_map(|(g, remote)| match &g.running {
                Some(running) => self.sound(g, &running.guard.prefixes()),
                // Nobody releases what a gateway guarded that is away.
                None => self.sound(g, remote),
            })
            .collect();
        before.intersection(&in_files).copied().collect()
    }

    /// Everything is released and stopped: nothing of the gateways may be left.
    pub fn end_all(&mut self) {
        self.now += Duration::from_secs(61);
        self.stack.borrow_mut().faults.clear();
        self.stack.borrow_mut().watch = Default::default();
        for number in 0..2 {
            if self.gateways[number].running.is_none() {
                self.start(number);
            }
            let gateway = &mut self.gateways[number];
            (gateway.profile, gateway.overlay) = Default::default();
            gateway.running.as_mut().expect("started").guard.release_all();
        }
        self.answer();
        (0..2).for_each(|number| self.end(number, true));
        let stack = self.stack.borrow();
        let ours: Vec<_> = stack.routes.iter().filter(|r| r.protocol == PROTOCOL).collect();
        assert!(ours.is_empty(), "left: {ours:?}");
        assert!(stack.rules.iter().all(|r| r.protocol != PROTOCOL), "left: {:?}", stack.rules);
        assert!(stack.filters.is_empty(), "left: {:?}", stack.filters);
        // An interface that was made anew has other values for what is not ours.
        for (sysctl, value) in self.before.sysctls.iter().filter(|(s, _)| s.name != "rp_filter") {
            if let Some(now) = stack.sysctls.get(sysctl) {
                assert_eq!(now, value, "{sysctl} was not put back");
            }
        }
    }
}

fn neighbour_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 1).into()),
    }
}

fn lan() -> BTreeSet<String> {
    ["lan0", "lan1"].map(str::to_owned).into()
}

/// Default routes by an interface, in the place of those that are there.
fn default_route(stack: &mut Stack, by: &str) {
    let Some(index) = stack.named(by) else { return };
    for (destination, gateway) in [("0.0.0.0/0", "192.0.2.254"), ("::/0", "fe80::1")] {
        let route = Route::by(net(destination), index, Some(gateway.parse().unwrap()), 1, 3);
        if !stack.routes.contains(&route) {
            stack.add_route(route);
        }
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
