//! Two gateways on one simulated stack: what happens to them, how they answer, and what has to hold then.

mod checks;
mod events;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::stack::{Handle, Stack};
use crate::ground::{
    DEFAULT_MARK, DEFAULT_TABLE, Ground, Guard, Interest, Origin, PROTOCOL, Placement, Saved, Sysctl, Tun, Wanted,
};
use crate::key::PrivateKey;
use crate::netlink::{News, Route};
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
const LAN_ADDRESSES: [&str; 4] = ["10.101.0.1/24", "10.111.0.1/24", "10.102.5.1/24", "fd00:101::1/64"];
const WAN_ADDRESSES: [&str; 4] = ["192.0.2.1/24", "10.50.0.7/24", "203.0.113.1/24", "2001:db8::1/64"];
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
            // A kernel that can forward IPv6 per interface.
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
        let guard = Guard::of_file(path, Some(&gateway.key), &gateway.name, file, &held, self.now, &mut problems);
        gateway.running = Some(Running { ground, guard, tun: None });
        self.make_tun(number);
    }

    fn make_tun(&mut self, number: usize) {
        let gateway = &mut self.gateways[number];
        let mtu = if self.rng.random_bool(0.1) { 1200 } else { 1420 };
        if let Some(running) = gateway.running.as_mut().filter(|r| r.tun.is_none()) {
            let up = self.rng.random_bool(0.5);
            running.tun = Some(self.stack.borrow_mut().add_interface(gateway.name.as_str(), mtu, up));
        }
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
            placement: Placement {
                profile: "a.profile".into(),
                table: gateway.table,
                mark: DEFAULT_MARK,
                wan: "wan0".into(),
                lan: lan(),
                local: gateway.local.clone(),
                transit: false,
            },
            tun,
            tunnelled: gateway.profile.union(&gateway.overlay).copied().collect(),
            mtus: BTreeMap::new(),
            guarded: running.guard.prefixes(),
            outer: gateway.outer.clone(),
            local_port: Some(47100 + number as u16),
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
        // Twice, since each hears about what the other did.
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
        // A recreated interface has other values for settings that are not ours.
        for (sysctl, value) in self.before.sysctls.iter().filter(|(s, _)| s.name != "rp_filter") {
            if let Some(now) = stack.sysctls.get(sysctl) {
                assert_eq!(now, value, "{sysctl} was not put back");
            }
        }
    }
}

fn lan() -> BTreeSet<String> {
    ["lan0", "lan1"].map(str::to_owned).into()
}

/// Default routes through an interface, in place of the existing ones.
fn default_route(stack: &mut Stack, by: &str) {
    let Some(index) = stack.named(by) else { return };
    for (destination, gateway) in [("0.0.0.0/0", "192.0.2.254"), ("::/0", "fe80::1")] {
        let route = Route::by(net(destination), index, Some(gateway.parse().unwrap()), 1, 3);
        if !stack.routes.contains(&route) {
            stack.add_route(route);
        }
    }
}
