//! Nothing leaks, whatever happens to a gateway's machine: a seeded sequence of events under constant traffic, and a
//! capture on every WAN that must never see an inner packet in the clear.
//!
//! ```text
//!   host A ── lan0 gateway A wan0 ── a0 ┐
//!                          wan1 ── a1 ──┤ switch ── b0 ── wan0 gateway B ── host B
//!                                       └ coordinator
//! ```
//! The sequences are the same each time, and random with `PENSTOCK_TEST_LONG=1`. `PENSTOCK_TEST_SEED=N` replays one,
//! `PENSTOCK_TEST_STEPS=N` sets the length.

mod coordinator;
pub mod network;
mod oracle;

use std::net::UdpSocket;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::support::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use serde_json::json;

use coordinator::{Coordinator, Word};
use network::{connected_again, lan_again, routes_again, second_uplink, wan_again};
use oracle::{Flow, Oracle};

/// How soon traffic must flow again once the cause of an outage is gone.
const RECOVERY: Duration = Duration::from_secs(15);
/// Steps of each of the sequences that run in parallel.
const STEPS: usize = 34;
const LONG_STEPS: usize = 700;
/// The ports that A may have.
const LOCAL_PORTS: Range<u16> = PORT..PORT + 3;

/// What can happen to a gateway and its machine.
#[derive(Clone, Copy, Debug)]
enum Event {
    TunDeleted,
    TunDownAndUp,
    WanRecreated,
    LanRecreated,
    WanDownAndUp,
    LanDownAndUp,
    LanEnslaved,
    LanRenamed,
    LanAddressRemoved,
    WanRenamed,
    WanEnslaved,
    WanMac,
    WanMtu,
    WanAddressMoved,
    OtherUplink,
    Terminated,
    Killed,
    FailedStart,
    Reloaded,
    ReloadedUnsound,
    StateLost,
    StateDamaged,
    StateFull,
    StateReadOnly,
    StateEmptied,
    OurTableFlushed,
    MainBlackholesFlushed,
    MainTableFlushed,
    RulesFlushed,
    FirewallFlushed,
    CoordinatorGone,
    SitesUnlinked,
    MapEmptied,
    PrefixesConflicting,
    PrefixesCovering,
    DefaultsOffered,
}

impl Event {
    const ALL: [Self; 30] = [
        Self::TunDeleted,
        Self::TunDownAndUp,
        Self::WanRecreated,
        Self::LanRecreated,
        Self::WanDownAndUp,
        Self::LanDownAndUp,
        Self::LanEnslaved,
        Self::LanRenamed,
        Self::LanAddressRemoved,
        Self::WanRenamed,
        Self::WanEnslaved,
        Self::WanMac,
        Self::WanMtu,
        Self::WanAddressMoved,
        Self::OtherUplink,
        Self::Terminated,
        Self::Killed,
        Self::FailedStart,
        Self::Reloaded,
        Self::ReloadedUnsound,
        Self::StateLost,
        Self::StateDamaged,
        Self::StateFull,
        Self::StateReadOnly,
        Self::StateEmptied,
        Self::OurTableFlushed,
        Self::MainBlackholesFlushed,
        Self::MainTableFlushed,
        Self::RulesFlushed,
        Self::FirewallFlushed,
    ];
    /// Further events, where there is a coordinator.
    const OF_A_COORDINATOR: [Self; 6] = [
        Self::CoordinatorGone,
        Self::SitesUnlinked,
        Self::MapEmptied,
        Self::PrefixesConflicting,
        Self::PrefixesCovering,
        Self::DefaultsOffered,
    ];
}

/// Where the gateways learn about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Configured {
    ByProfile,
    ByCoordinator,
}

/// Two gateways, a second uplink of the first, traffic both ways, and the oracle.
struct Scene {
    a: Gateway,
    _b: Gateway,
    coordinator: Option<Coordinator>,
    oracle: Oracle,
    _flows: Vec<Flow>,
    // Unmounted before the topology removes its directories.
    state: StateDirectory,
    topology: Topology,
}

impl Scene {
    fn new(kind: Kind, configured: Configured) -> Self {
        Self::on(Topology::new(Options::switch()), kind, configured, None)
    }

    /// With a prefix of a peer that is never there, in A's profile.
    fn on(topology: Topology, kind: Kind, configured: Configured, prefix: Option<&str>) -> Self {
        second_uplink(&topology);
        let state = StateDirectory::new(&topology.a.scratch);
        let (mut a, mut b) = pair_config(&topology, kind, kind, Outer::V4);
        a.environment.push(state.variable());
        for config in [&mut a, &mut b] {
            config.peers[0].keepalive = Some(1);
        }
        let coordinator =
            (configured == Configured::ByCoordinator).then(|| Coordinator::start(&topology, &mut a, &mut b));
        a.peers.extend(prefix.map(|prefix| Peer {
            public_key: pubkey(&genkey()),
            preshared_key: None,
            endpoint: None,
            allowed_ips: vec![prefix.to_owned()],
            keepalive: None,
            suite: None,
        }));
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        // Before the first map nothing is guarded, and hosts reach each other in the clear.
        for (gateway, other) in [(&a, &b), (&b, &a)] {
            let connected = || gateway.latest_handshake(&other.public_key()) > 0;
            eventually(RECOVERY, "they are connected", connected);
        }
        let oracle = Oracle::start(&topology);
        let there = topology.b.hosts().map(|to| Flow::start(&topology.a.host, to));
        let back = topology.a.hosts().map(|to| Flow::start(&topology.b.host, to));
        let flows = there.into_iter().chain(back).collect();
        Self { a, _b: b, coordinator, oracle, _flows: flows, state, topology }
    }

    fn ip(&self, script: &str) {
        self.topology.a.gateway.ip(script);
    }

    /// An attempt that fails because the thing is already gone counts as done.
    fn attempt(&self, words: &[&str]) {
        self.topology.a.gateway.attempt(words);
    }

    fn happen(&mut self, event: Event, rng: &mut StdRng) {
        let name = self.a.name().to_owned();
        let outage = rng.random_range(0..400);
        match event {
            Event::TunDeleted => self.attempt(&["ip", "link", "del", &name]),
            Event::TunDownAndUp => {
                self.attempt(&["ip", "link", "set", &name, "down"]);
                pause(outage);
                self.attempt(&["ip", "link", "set", &name, "up"]);
            }
            Event::WanRecreated => {
                self.ip("link del wan0\n");
                pause(outage);
                wan_again(&self.topology, *[1500, 1400].choose(rng).expect("two"), rng.random_range(1..=2));
            }
            Event::LanRecreated => {
                self.ip("link del lan0\n");
                pause(outage);
                lan_again(&self.topology, rng.random_range(1..=2));
            }
            Event::WanDownAndUp => {
                self.ip("link set wan0 down\n");
                pause(outage);
                self.ip("link set wan0 up\n");
                routes_again(&self.topology);
            }
            Event::LanDownAndUp => {
                self.ip("link set lan0 down\n");
                pause(outage);
                // IPv6 addresses are lost with the link.
                self.ip("link set lan0 up\naddr replace fd00:101::1/64 dev lan0 nodad\n");
            }
            Event::LanEnslaved => {
                self.ip("link add br9 type bridge\nlink set br9 up\nlink set lan0 master br9\n");
                pause(outage);
                self.ip("link del br9\n");
            }
            Event::LanRenamed => {
                self.ip("link set lan0 name old0\n");
                pause(outage);
                self.ip("link set old0 name lan0\n");
            }
            Event::LanAddressRemoved => {
                self.ip("addr del 10.101.0.1/24 dev lan0\naddr del fd00:101::1/64 dev lan0\n");
                pause(outage);
                self.ip("addr add 10.101.0.1/24 dev lan0\naddr add fd00:101::1/64 dev lan0 nodad\n");
            }
            Event::WanEnslaved => {
                self.ip("link add br8 type bridge\nlink set br8 up\nlink set wan0 master br8\n");
                pause(outage);
                self.ip("link del br8\n");
                routes_again(&self.topology);
            }
            Event::WanMac => {
                // The neighbours are notified, as an administrator who changes it would arrange.
                self.topology.a.gateway.sysctl("net/ipv4/conf/wan0/arp_notify", "1");
                self.ip(&format!("link set wan0 address 02:00:5e:00:53:{:02x}\n", rng.random_range(1..=254)));
            }
            Event::WanRenamed => {
                self.ip("link set wan0 name old0\n");
                pause(outage);
                self.ip("link set old0 name wan0\n");
            }
            // IPv6 inside needs 1360 bytes outside.
            Event::WanMtu => self.ip(&format!("link set wan0 mtu {}\n", rng.random_range(1360..=1500))),
            Event::WanAddressMoved => {
                self.ip("addr del 192.0.2.1/24 dev wan0\n");
                pause(outage / 2);
                self.ip("addr add 192.0.2.3/24 dev wan0\n");
                routes_again(&self.topology);
                pause(outage / 2);
                self.ip("addr del 192.0.2.3/24 dev wan0\naddr add 192.0.2.1/24 dev wan0\n");
                routes_again(&self.topology);
            }
            Event::OtherUplink => {
                self.ip("route replace default via 198.51.100.66\nroute replace default via 2001:db8:1::66\n");
                pause(outage);
                routes_again(&self.topology);
            }
            Event::Terminated => {
                assert!(self.a.terminate().success(), "{}", self.a.process.log());
                pause(outage);
                self.a.restart();
            }
            Event::Killed => {
                self.a.kill();
                pause(outage);
                self.a.restart();
            }
            Event::FailedStart => {
                self.a.kill();
                self.fail_to_start();
                self.a.restart();
            }
            Event::Reloaded => self.reload(rng),
            Event::ReloadedUnsound => {
                let sound = std::fs::read(self.a.profile_path()).expect("a profile");
                std::fs::write(self.a.profile_path(), &sound[..rng.random_range(0..sound.len())]).expect("written");
                self.a.process.signal(Signal::HUP);
                pause(outage);
                std::fs::write(self.a.profile_path(), &sound).expect("written");
                self.a.process.signal(Signal::HUP);
            }
            Event::StateLost => {
                self.a.kill();
                self.state.empty();
                pause(outage);
                self.a.restart();
            }
            Event::StateDamaged => {
                self.a.kill();
                std::fs::write(self.guard_file(), "penstock guard v1\n10.102.0.0/24 pro").expect("written");
                pause(outage);
                self.a.restart();
            }
            Event::StateFull => {
                self.state.fill();
                self.disturb(rng);
                pause(outage);
                self.state.make_room();
            }
            Event::StateReadOnly => {
                self.state.set_read_only(true);
                self.disturb(rng);
                pause(outage);
                self.state.set_read_only(false);
            }
            Event::StateEmptied => {
                self.state.empty();
                self.disturb(rng);
            }
            Event::OurTableFlushed => self.flush_table(),
            Event::MainBlackholesFlushed => self.flush_main(),
            Event::MainTableFlushed => {
                for family in ["-4", "-6"] {
                    self.attempt(&["ip", family, "route", "flush", "table", "main"]);
                }
                pause(outage);
                connected_again(&self.topology);
                routes_again(&self.topology);
            }
            Event::RulesFlushed => self.flush_rules(),
            Event::FirewallFlushed => self.attempt(&["nft", "flush", "ruleset"]),
            Event::CoordinatorGone => {
                self.coordinator().stop();
                self.disturb(rng);
                // Its port becomes free a little later.
                pause(outage.max(100));
                self.coordinator().run();
            }
            Event::SitesUnlinked => self.lie(Word::Unlinked, outage),
            Event::MapEmptied => self.lie(Word::Nobody, outage),
            Event::PrefixesConflicting => self.lie(Word::ThirdHas(&["10.102.0.0/24", "fd00:102::/64"]), outage),
            Event::PrefixesCovering => self.lie(Word::ThirdHas(&["10.0.0.0/8", "fd00::/8"]), outage),
            Event::DefaultsOffered => self.lie(Word::ThirdHas(&["0.0.0.0/0", "8.0.0.0/7", "::/0"]), outage),
        }
    }

    fn coordinator(&mut self) -> &mut Coordinator {
        self.coordinator.as_mut().expect("its events happen where there is one")
    }

    /// The coordinator says something untrue for a while.
    fn lie(&mut self, word: Word, outage: u64) {
        self.coordinator().say(word);
        pause(outage);
        self.coordinator().say(Word::Truth);
    }

    /// Makes the gateway read and write its state: it starts, or another peer is added or removed.
    fn disturb(&mut self, rng: &mut StdRng) {
        if rng.random_bool(0.5) {
            self.a.kill();
            self.a.restart();
        } else {
            self.reload(rng);
        }
    }

    /// Changes the value of some field, and perhaps adds a peer. The peer with the traffic stays.
    fn reload(&self, rng: &mut StdRng) {
        self.a.edit_profile(|profile| {
            let Kind::Penstock { wan, lan } = self.a.config.kind else { panic!("a gateway of ours") };
            match rng.random_range(0..7) {
                0 => profile["LocalPort"] = json!(rng.random_range(LOCAL_PORTS)),
                1 => profile["Workers"] = json!(rng.random_range(1..=2)),
                2 => profile["Lan"]["Mode"] = json!([lan, "tun"].choose(rng).expect("two")),
                3 => profile["Wan"]["Mode"] = json!([wan, "udp"].choose(rng).expect("two")),
                4 => profile["Table"] = json!(47_100 + rng.random_range(0..2)),
                5 => profile["FwMark"] = json!(47_100 + rng.random_range(0..2)),
                _ => profile["Mtu"] = json!(rng.random_range(1280..=1400)),
            }
            let peers = profile["Peers"].as_array_mut().expect("peers");
            peers.truncate(self.a.config.peers.len());
            if rng.random_bool(0.5) {
                peers.push(json!({ "Name": "further", "PublicKey": pubkey(&genkey()), "AllowedIPs": ["10.0.0.0/8"] }));
            }
        });
        self.a.process.signal(Signal::HUP);
    }

    fn flush_table(&self) {
        for family in ["-4", "-6"] {
            // Including a table that a reload may have named.
            for table in ["47100", "47101"] {
                self.attempt(&["ip", family, "route", "flush", "table", table]);
            }
        }
    }

    fn flush_main(&self) {
        for family in ["-4", "-6"] {
            self.attempt(&["ip", family, "route", "flush", "table", "main", "type", "blackhole"]);
        }
    }

    fn flush_rules(&self) {
        for family in ["-4", "-6"] {
            // `ip rule flush` removes the system's rules too, without which nothing is routed at all.
            self.attempt(&["ip", family, "rule", "del", "priority", "4710"]);
        }
    }

    fn guard_file(&self) -> std::path::PathBuf {
        self.state.path().join(format!("{}.guard", self.a.name()))
    }

    /// A start with an impossible profile.
    fn fail_to_start(&self) {
        let text = std::fs::read(self.a.profile_path()).expect("a profile");
        let profile: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let port = profile["LocalPort"].as_u64().expect("a port") as u16;
        // A process that the killed gateway was just starting holds the port for a moment.
        let mut occupied = None;
        eventually(PATIENCE, "the port is free", || {
            occupied = self.topology.a.gateway.enter(|| UdpSocket::bind(("0.0.0.0", port)).ok());
            occupied.is_some()
        });
        let failed = self.a.command(&["run"]);
        assert!(!failed.status.success(), "it started on a port that is taken");
        drop(occupied);
        pause(200);
    }

    /// Traffic flows again, and the gateway reports that all is well. Returns how long that took.
    fn recovers(&self, story: &str) -> Duration {
        let begun = Instant::now();
        let flows = || {
            self.topology
                .b
                .hosts()
                .into_iter()
                .all(|host| ping(&self.topology.a.host, host, &["-c", "1", "-W", "0.5"]).all_answered())
        };
        let failed = |what| format!("{story}: {what}: {}\n{}", self.a.status()["Problems"], self.a.process.log());
        assert!(holds_within(RECOVERY, flows), "{}", failed("no traffic"));
        assert!(holds_within(RECOVERY, || self.a.status()["Health"] == "healthy"), "{}", failed("not healthy"));
        begun.elapsed()
    }
}

fn run(kind: Kind, configured: Configured, salt: u64) {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let any = || if long() { rand::rng().random::<u32>().into() } else { 1 };
    let seed = number("PENSTOCK_TEST_SEED").unwrap_or_else(any);
    let steps = number("PENSTOCK_TEST_STEPS").map_or(if long() { LONG_STEPS } else { STEPS }, |steps| steps as usize);
    println!("{kind:?}: PENSTOCK_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed ^ salt);
    let mut scene = Scene::new(kind, configured);
    let mut events = Event::ALL.to_vec();
    if configured == Configured::ByCoordinator {
        events.extend(Event::OF_A_COORDINATOR);
    }
    let mut story = format!("{kind:?}, PENSTOCK_TEST_SEED={seed}:");
    for _ in 0..steps {
        let event = *events.choose(&mut rng).expect("there are events");
        story += &format!(" {event:?}");
        scene.happen(event, &mut rng);
        assert_eq!(scene.oracle.leaked(), 0, "{story}: packets in the clear");
        // Now and then the next event happens before the last is repaired.
        if rng.random_bool(0.8) {
            let took = scene.recovers(&story);
            assert_eq!(scene.oracle.leaked(), 0, "{story}: packets in the clear");
            story += &format!(" ({:.1} s)", took.as_secs_f32());
        }
    }
    scene.recovers(&story);
    println!("{story}");
    assert_eq!(scene.oracle.leaked(), 0, "{story}: packets in the clear");
}

#[test]
fn nothing_leaks_with_sockets() {
    run(Kind::SOCKET, Configured::ByProfile, 1);
}

#[test]
fn nothing_leaks_with_xdp() {
    run(Kind::XDP, Configured::ByProfile, 2);
}

#[test]
fn nothing_leaks_with_xdp_and_tun_and_a_coordinator() {
    run(Kind::Penstock { wan: "xdp", lan: "tun" }, Configured::ByCoordinator, 3);
}

/// Killed, with the cached map lost or damaged while the coordinator is away: nobody knows the peers then, but their
/// prefixes stay blocked.
#[test]
fn nothing_leaks_without_map_and_coordinator() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let mut scene = Scene::new(Kind::SOCKET, Configured::ByCoordinator);
    let map = || std::fs::read_dir(scene.state.path()).expect("a directory").map(|entry| entry.expect("a file").path());
    let map = map().find(|path| path.extension().is_some_and(|kind| kind == "map")).expect("a cached map");
    let ways: [fn(&std::path::Path); 2] = [
        |map| std::fs::remove_file(map).expect("it was there"),
        |map| std::fs::write(map, "penstock").expect("written"),
    ];
    for lose in ways {
        scene.coordinator().stop();
        scene.a.kill();
        lose(&map);
        pause(300);
        scene.a.restart();
        let status = scene.a.status();
        assert_eq!(status["Peers"], json!([]), "the map is still known");
        assert!(status["Guarded"].as_array().is_some_and(|all| all.contains(&json!("10.102.0.0/24"))), "{status}");
        pause(1000);
        assert_eq!(scene.oracle.leaked(), 0, "packets in the clear");
        scene.coordinator().run();
        scene.recovers("the coordinator is back");
        assert_eq!(scene.oracle.leaked(), 0, "packets in the clear");
    }
}

/// A prefix of a peer contains the coordinator and the endpoints of the other sites. All of them are reached as before,
/// also by a gateway that starts with it.
#[test]
fn a_peer_s_prefix_does_not_swallow_coordinator_and_endpoints() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::switch());
    // As in some clouds, everything is beyond a router: no network of the WAN leads to the others.
    topology.a.gateway.ip("addr del 192.0.2.1/24 dev wan0\naddr add 192.0.2.1/32 dev wan0\n\
                           route add 192.0.2.66 dev wan0\nroute replace default via 192.0.2.66 dev wan0\n");
    topology.middle().sysctl("net/ipv4/ip_forward", "1");
    let mut scene = Scene::on(topology, Kind::SOCKET, Configured::ByCoordinator, Some("192.0.0.0/16"));
    let connected = |scene: &Scene| scene.a.status()["Coordinator"]["Connected"] == true;
    let works = |scene: &Scene, when: &str| {
        let flows =
            || ping(&scene.topology.a.host, scene.topology.b.hosts()[0], &["-c", "1", "-W", "0.5"]).all_answered();
        assert!(holds_within(RECOVERY, flows), "{when}: {}", scene.a.process.log());
        assert!(holds_within(RECOVERY, || connected(scene)), "{when}: {}", scene.a.process.log());
        assert_eq!(scene.oracle.leaked(), 0, "packets in the clear {when}");
    };
    works(&scene, "when they meet for the first time");
    scene.a.reload(|profile| profile["Peers"][0]["AllowedIPs"] = json!(["192.0.0.0/15"]));
    works(&scene, "after a reload");
    scene.a.kill();
    scene.a.restart();
    works(&scene, "after a start");
    scene.coordinator().stop();
    eventually(RECOVERY, "the coordinator is missed", || !connected(&scene));
    scene.coordinator().run();
    works(&scene, "when the coordinator is back");
}

/// A prefix of a peer contains the proxy on the way to the coordinator, whose address is in no map, and which is not on
/// the link; and the WAN has a strict reverse path filter.
#[test]
fn a_peer_s_prefix_does_not_swallow_a_proxy() {
    if !ready(&["nft", "tinyproxy"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (mut a, mut b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let _coordinator = Coordinator::start(&topology, &mut a, &mut b);
    topology.middle().ip("addr add 203.0.113.66/32 dev lo\n");
    topology.a.gateway.ip("route add 203.0.0.0/16 via 192.0.2.66\n");
    topology.a.gateway.sysctl("net/ipv4/conf/wan0/rp_filter", "1");
    let configuration = topology.a.scratch.join("tinyproxy.conf");
    std::fs::write(&configuration, "Port 3128\nListen 203.0.113.66\nTimeout 600\n").expect("written");
    let words = ["tinyproxy", "-d", "-c", configuration.to_str().expect("UTF-8")];
    let proxy = topology.middle().spawn(&words, &topology.a.scratch.join("tinyproxy.log"));
    a.environment.push(("HTTPS_PROXY", "http://203.0.113.66:3128".to_owned()));
    let mut a = Gateway::start(&topology.a, a);
    a.edit_profile(|profile| {
        let peers = profile["Peers"].as_array_mut().expect("peers");
        peers.push(json!({ "Name": "wide", "PublicKey": pubkey(&genkey()), "AllowedIPs": ["203.0.113.0/24"] }));
    });
    assert!(a.terminate().success());
    a.restart();
    let connected = holds_within(RECOVERY, || a.status()["Coordinator"]["Connected"] == true);
    assert!(connected, "{}\n{}", a.process.log(), proxy.log());
    assert!(proxy.log().contains("192.0.2.66"), "it did not go by the proxy: {}", proxy.log());
}

/// A layer of the guard, and how to remove it.
type Layer = (&'static str, fn(&Scene));

/// Each layer of the guard holds alone; without any of them the oracle sees the leaks.
#[test]
fn each_layer_holds_and_the_oracle_can_fail() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let mut scene = Scene::new(Kind::SOCKET, Configured::ByProfile);
    // Stopped in an orderly way, so that nobody repairs what is removed here.
    scene.a.process.signal(Signal::TERM);
    scene.a.process.wait(PATIENCE);
    let layers: [Layer; 3] = [
        ("table", Scene::flush_table),
        ("main", Scene::flush_main),
        ("firewall", |scene| scene.attempt(&["nft", "flush", "ruleset"])),
    ];
    for kept in 0..layers.len() {
        let guard = scene.a.command(&["guard"]);
        assert!(guard.status.success(), "{}", String::from_utf8_lossy(&guard.stderr));
        for (_, flush) in layers.iter().enumerate().filter(|(i, _)| *i != kept).map(|(_, layer)| layer) {
            flush(&scene);
        }
        pause(300);
        assert_eq!(scene.oracle.leaked(), 0, "the layer {} does not hold alone", layers[kept].0);
    }
    layers.iter().for_each(|(_, flush)| flush(&scene));
    eventually(RECOVERY, "without a guard the oracle sees the packets", || scene.oracle.leaked() > 0);
}
