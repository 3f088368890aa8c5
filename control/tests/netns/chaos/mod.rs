//! Nothing leaks, whatever happens to the machine around a gateway: a seeded sequence of events, traffic all the while,
//! and a capture on every WAN that must never see an inner packet in the clear.
//!
//! ```text
//!   host A ── lan0 gateway A wan0 ── a0 ┐
//!                          wan1 ── a1 ──┤ switch ── b0 ── wan0 gateway B ── host B
//! ```
//! The sequences are the same each time, and others with `PENSTOCK_TEST_LONG=1`. `PENSTOCK_TEST_SEED=N` replays one,
//! `PENSTOCK_TEST_STEPS=N` gives each another length.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use serde_json::json;

/// How soon traffic must flow again once the cause of an outage is gone.
const RECOVERY: Duration = Duration::from_secs(15);
/// Steps of each of the sequences that run at once.
const STEPS: usize = 34;
const LONG_STEPS: usize = 400;
/// Time between two packets of each flow.
const PACKET_EVERY: Duration = Duration::from_micros(500);

/// What can happen to a gateway and its machine.
#[derive(Clone, Copy, Debug)]
enum Event {
    TunDeleted,
    TunDownAndUp,
    WanRecreated,
    LanRecreated,
    WanDownAndUp,
    LanDownAndUp,
    WanRenamed,
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
    OurTableFlushed,
    MainBlackholesFlushed,
    RulesFlushed,
    FirewallFlushed,
}

impl Event {
    const ALL: [Self; 21] = [
        Self::TunDeleted,
        Self::TunDownAndUp,
        Self::WanRecreated,
        Self::LanRecreated,
        Self::WanDownAndUp,
        Self::LanDownAndUp,
        Self::WanRenamed,
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
        Self::OurTableFlushed,
        Self::MainBlackholesFlushed,
        Self::RulesFlushed,
        Self::FirewallFlushed,
    ];
}

/// Two gateways, a second uplink of the first, traffic both ways, and the oracle.
struct Scene {
    topology: Topology,
    a: Gateway,
    _b: Gateway,
    oracle: Oracle,
    _flows: Vec<Flow>,
}

impl Scene {
    fn new(kind: Kind) -> Self {
        let topology = Topology::new(Options::switch());
        second_uplink(&topology);
        let (a, b) = pair_config(&topology, kind, kind, Outer::V4);
        let (mut a, mut b) = (a, b);
        for config in [&mut a, &mut b] {
            config.peers[0].keepalive = Some(1);
        }
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        let oracle = Oracle::start(&topology);
        let there = topology.b.hosts().map(|to| Flow::start(&topology.a.host, to));
        let back = topology.a.hosts().map(|to| Flow::start(&topology.b.host, to));
        Self { oracle, _flows: there.into_iter().chain(back).collect(), a, _b: b, topology }
    }

    fn ip(&self, script: &str) {
        self.topology.a.gateway.ip(script);
    }

    /// What fails because it is gone already is as well done.
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
                wan_again(&self.topology, *[1500, 1400].choose(rng).expect("two"));
            }
            Event::LanRecreated => {
                self.ip("link del lan0\n");
                pause(outage);
                lan_again(&self.topology, matches!(self.a.config.kind, Kind::Penstock { lan: "xdp", .. }));
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
                // IPv6 addresses go with the link.
                self.ip("link set lan0 up\naddr replace fd00:101::1/64 dev lan0 nodad\n");
            }
            Event::WanRenamed => {
                self.ip("link set wan0 name old0\n");
                pause(outage);
                self.ip("link set old0 name wan0\n");
            }
            // IPv6 inside needs 1360 outside.
            Event::WanMtu => self.ip(&format!("link set wan0 mtu {}\n", rng.random_range(1360..=1500))),
            Event::WanAddressMoved => {
                self.ip("addr del 192.0.2.1/24 dev wan0\n");
                pause(outage);
                self.ip("addr add 192.0.2.1/24 dev wan0\n");
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
                let _ = std::fs::remove_file(self.guard_file());
                pause(outage);
                self.a.restart();
            }
            Event::StateDamaged => {
                self.a.kill();
                std::fs::write(self.guard_file(), "penstock guard v1\n10.102.0.0/24 pro").expect("written");
                pause(outage);
                self.a.restart();
            }
            Event::OurTableFlushed => self.flush_table(),
            Event::MainBlackholesFlushed => self.flush_main(),
            Event::RulesFlushed => self.flush_rules(),
            Event::FirewallFlushed => self.attempt(&["nft", "flush", "ruleset"]),
        }
    }

    /// Another value for some field, and perhaps a further peer. The peer that has the traffic stays.
    fn reload(&self, rng: &mut StdRng) {
        self.a.edit_profile(|profile| {
            let Kind::Penstock { wan, lan } = self.a.config.kind else { panic!("a gateway of ours") };
            match rng.random_range(0..7) {
                0 => profile["LocalPort"] = json!(PORT + rng.random_range(0..3)),
                1 => profile["Workers"] = json!(rng.random_range(1..=2)),
                2 => profile["Lan"]["Mode"] = json!([lan, "tun"].choose(rng).expect("two")),
                3 => profile["Wan"]["Mode"] = json!([wan, "udp"].choose(rng).expect("two")),
                4 => profile["Table"] = json!(47_100 + rng.random_range(0..2)),
                5 => profile["FwMark"] = json!(47_100 + rng.random_range(0..2)),
                _ => profile["Mtu"] = json!(rng.random_range(1280..=1400)),
            }
            let peers = profile["Peers"].as_array_mut().expect("peers");
            peers.truncate(1);
            if rng.random_bool(0.5) {
                peers.push(json!({ "Name": "further", "PublicKey": pubkey(&genkey()), "AllowedIPs": ["10.0.0.0/8"] }));
            }
        });
        self.a.process.signal(Signal::HUP);
    }

    fn flush_table(&self) {
        for family in ["-4", "-6"] {
            // The table that a reload may have named, too.
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
            // `ip rule flush` takes the system's rules too, without which nothing is routed at all.
            self.attempt(&["ip", family, "rule", "del", "priority", "4710"]);
        }
    }

    fn guard_file(&self) -> std::path::PathBuf {
        self.topology.a.scratch.join(format!("{}.guard", self.a.name()))
    }

    /// A start that its profile makes impossible.
    fn fail_to_start(&self) {
        let text = std::fs::read(self.a.profile_path()).expect("a profile");
        let profile: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let port = profile["LocalPort"].as_u64().expect("a port") as u16;
        let occupied = self.topology.a.gateway.enter(|| UdpSocket::bind(("0.0.0.0", port)).expect("a free port"));
        let failed = self.a.command(&["run"]);
        assert!(!failed.status.success(), "it started on a port that is taken");
        drop(occupied);
        pause(200);
    }

    /// Traffic flows again, and the gateway says that all is well.
    fn recovers(&self, story: &str) {
        let flows = || {
            self.topology
                .b
                .hosts()
                .into_iter()
                .all(|host| ping(&self.topology.a.host, host, &["-c", "1", "-W", "0.5"]).all_answered())
        };
        let well = holds_within(RECOVERY, flows) && holds_within(RECOVERY, || self.a.status()["Health"] == "healthy");
        assert!(well, "{story}: {}\n{}", self.a.status()["Problems"], self.a.process.log());
    }
}

/// The other uplink of A's gateway: another port of the switch, in networks of its own.
fn second_uplink(topology: &Topology) {
    topology.a.gateway.ip(&format!(
        "link add wan1 type veth peer name a1 netns {}\n\
         addr add 198.51.100.1/24 dev wan1\n\
         addr add 2001:db8:1::1/64 dev wan1 nodad\n\
         link set wan1 up\n",
        topology.middle().name()
    ));
    topology.middle().ip("addr add 198.51.100.66/24 dev a1\naddr add 2001:db8:1::66/64 dev a1 nodad\nlink set a1 up\n");
}

fn wan_again(topology: &Topology, mtu: u32) {
    topology
        .a
        .gateway
        .ip(&format!("link add wan0 mtu {mtu} type veth peer name a0 netns {}\n", topology.middle().name()));
    topology.middle().ip("link set a0 master br0 up\n");
    topology.a.gateway.ip("addr add 192.0.2.1/24 dev wan0\nlink set wan0 up\n");
    routes_again(topology);
}

fn routes_again(topology: &Topology) {
    topology.a.gateway.ip("addr replace 2001:db8::1/64 dev wan0 nodad\n\
         route replace default via 192.0.2.2\n\
         route replace default via 2001:db8::2\n");
}

fn lan_again(topology: &Topology, finish_checksums: bool) {
    topology.a.gateway.ip(&format!("link add lan0 type veth peer name eth0 netns {}\n", topology.a.host.name()));
    topology
        .a
        .gateway
        .ip("addr add 10.101.0.1/24 dev lan0\naddr add fd00:101::1/64 dev lan0 nodad\nlink set lan0 up\n");
    topology.a.host.ip("addr add 10.101.0.2/24 dev eth0\naddr add fd00:101::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 10.101.0.1\nroute add default via fd00:101::1\n");
    if finish_checksums {
        topology.a.finish_checksums();
    }
}

/// Sees every packet on the WANs, and remembers the inner ones in the clear.
struct Oracle {
    namespace: Namespace,
}

impl Oracle {
    fn start(topology: &Topology) -> Self {
        let namespace = topology.middle().clone();
        // Of all devices, those too that are made later: a bridge's ports are forwarded by it, a1 is routed.
        namespace.nft(
            "table bridge oracle { counter leaked { }; chain forward { type filter hook prerouting priority -300; \
             ip saddr { 10.101.0.0/16, 10.102.0.0/16 } counter name leaked; \
             ip6 saddr { fd00:101::/64, fd00:102::/64 } counter name leaked; }; }; \
             table inet oracle { counter leaked { }; chain input { type filter hook prerouting priority -300; \
             ip saddr { 10.101.0.0/16, 10.102.0.0/16 } counter name leaked; \
             ip6 saddr { fd00:101::/64, fd00:102::/64 } counter name leaked; }; }",
        );
        Self { namespace }
    }

    /// Inner packets that were seen in the clear.
    fn leaked(&self) -> u64 {
        let counted = |family| {
            let text = self.namespace.run(&["nft", "list", "counter", family, "oracle", "leaked"]);
            let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
            words.nth(1).and_then(|count| count.parse::<u64>().ok()).expect("a counter")
        };
        counted("bridge") + counted("inet")
    }
}

/// Packets from a host, whatever happens.
struct Flow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flow {
    fn start(host: &Namespace, to: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, ended) = (host.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            namespace.enter(|| {
                let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
                let socket = UdpSocket::bind(any).expect("a socket");
                while !ended.load(Ordering::Relaxed) {
                    // The host's own link may be away.
                    let _ = socket.send_to(&[0x55; 64], (to, 9));
                    std::thread::sleep(PACKET_EVERY);
                }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn run(kind: Kind, salt: u64) {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let any = || if long() { rand::rng().random::<u32>().into() } else { 1 };
    let seed = number("PENSTOCK_TEST_SEED").unwrap_or_else(any);
    let steps = number("PENSTOCK_TEST_STEPS").map_or(if long() { LONG_STEPS } else { STEPS }, |steps| steps as usize);
    println!("{kind:?}: PENSTOCK_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed ^ salt);
    let mut scene = Scene::new(kind);
    let mut story = format!("{kind:?}, PENSTOCK_TEST_SEED={seed}:");
    for _ in 0..steps {
        let event = *Event::ALL.choose(&mut rng).expect("there are events");
        story += &format!(" {event:?}");
        scene.happen(event, &mut rng);
        assert_eq!(scene.oracle.leaked(), 0, "{story}: packets in the clear");
        // Now and then the next thing happens before the last is mended.
        if rng.random_bool(0.8) {
            scene.recovers(&story);
            assert_eq!(scene.oracle.leaked(), 0, "{story}: packets in the clear");
        }
    }
    scene.recovers(&story);
    assert_eq!(scene.oracle.leaked(), 0, "{story}: packets in the clear");
}

#[test]
fn nothing_leaks_with_sockets() {
    run(Kind::SOCKET, 1);
}

#[test]
fn nothing_leaks_with_xdp() {
    run(Kind::XDP, 2);
}

#[test]
fn nothing_leaks_with_xdp_and_tun() {
    run(Kind::Penstock { wan: "xdp", lan: "tun" }, 3);
}

/// A layer of the guard, and how to take it away.
type Layer = (&'static str, fn(&Scene));

/// Each layer of the guard holds alone; without any the oracle sees what leaves.
#[test]
fn each_layer_holds_and_the_oracle_can_fail() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let mut scene = Scene::new(Kind::SOCKET);
    // Stopped in order, so that nobody mends what is taken away here.
    scene.a.process.signal(Signal::TERM);
    scene.a.process.wait(Duration::from_secs(5));
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
