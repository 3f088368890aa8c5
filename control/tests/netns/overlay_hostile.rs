//! Attackers who can reach a gateway's port, or who are enrolled: they move no path, learn nothing, and amplify
//! nothing. (That nobody can impersonate another to the coordinator and its relay is tested with the coordinator.)

use crate::support::nat::{Kind, Lab};
use crate::support::overlay::{Coordinator, OverlayGateway, Pair, now};
use crate::support::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use penstock_proto::coordination::{Candidate, CandidateKind, NatType};
use penstock_proto::path::{Envelope, FIRST_BYTE, PROBE_LENGTH, PathAgent, PathConfig, SiteId};
use penstock_proto::relay::client::RelayClient;
use penstock_proto::{PublicKey, StaticSecret};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const PORT: u16 = 47100;
/// The attacker's address on the internet.
const ATTACKER: u8 = 7;

fn tools() -> bool {
    ready(&["nft", "conntrack", "tcpdump"])
}

/// A direct pair whose ports are known: A behind a full cone, B with a public address.
struct Target {
    pair: Pair,
    coordinator: Coordinator,
    lab: Lab,
}

impl Target {
    fn new(wan: &str) -> Self {
        let lab = Lab::new();
        let coordinator = Coordinator::start(&lab);
        let extra = json!({ "LocalPort": PORT, "Wan": { "Interface": "wan0", "Mode": wan } });
        let pair = Pair::start(&lab, &coordinator, [Kind::FullCone, Kind::None], &extra);
        pair.await_both("direct", 2 * PATIENCE);
        Self { pair, coordinator, lab }
    }

    fn a(&self) -> SocketAddr {
        SocketAddr::new(self.pair.a.public().into(), PORT)
    }

    fn b(&self) -> SocketAddr {
        SocketAddr::new(self.pair.b.public().into(), PORT)
    }

    fn attacker(&self) -> UdpSocket {
        let address = self.lab.server(ATTACKER);
        let socket = self.lab.internet().enter(|| UdpSocket::bind((address, 4000))).expect("a socket");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    }

    /// The endpoints that both send to, and how often these have changed so far.
    fn paths(&self) -> ([Value; 2], usize) {
        let endpoints = self.pair.peers().map(|peer| peer["Endpoint"].clone());
        let log = self.pair.gateway_a.process.log() + &self.pair.gateway_b.process.log();
        (endpoints, log.matches("direct to").count() + log.matches("by relay").count() + log.matches("no path").count())
    }

    fn assert_alive(&mut self) {
        for gateway in [&mut self.pair.gateway_a, &mut self.pair.gateway_b] {
            assert!(gateway.process.is_running() && !gateway.process.log().contains("panicked"));
        }
    }

    /// Probes that A has sent to B.
    fn recorded(&self) -> Vec<Vec<u8>> {
        let capture = Capture::start(self.lab.internet(), "site2", "udp", self.lab.scratch());
        pause(3500);
        let (from, to) = (self.a(), self.b());
        let datagrams = capture.stop().into_iter().filter_map(|frame| frame.datagram());
        let probe = |datagram: &Datagram| datagram.payload.len() == PROBE_LENGTH && datagram.payload[0] == FIRST_BYTE;
        let between = datagrams.filter(|datagram| (datagram.source, datagram.destination) == (from, to));
        between.filter(probe).map(|datagram| datagram.payload).collect()
    }
}

fn public_key(gateway: &OverlayGateway) -> PublicKey {
    let text = gateway.status()["PublicKey"].as_str().expect("a key").to_owned();
    let bytes: [u8; 32] = STANDARD.decode(text).expect("base64").try_into().expect("32 bytes");
    bytes.into()
}

fn raw_socket(lab: &Lab) -> Socket {
    let protocol = Some(Protocol::from(255));
    lab.internet().enter(|| Socket::new(Domain::IPV4, Type::RAW, protocol)).expect("a raw socket")
}

/// Sends `payload` to `destination` as if it came from `source`.
fn forge(raw: &Socket, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
    // A full transmit queue must not fail the test.
    let _ = raw.send_to(&raw_datagram(source, destination, payload), &destination.into());
}

/// How many datagrams and bytes a socket has received.
fn drain(socket: &UdpSocket) -> (usize, usize) {
    let mut buffer = [0; 2048];
    let (mut datagrams, mut bytes) = (0, 0);
    while let Ok(length) = socket.recv(&mut buffer) {
        (datagrams, bytes) = (datagrams + 1, bytes + length);
    }
    (datagrams, bytes)
}

/// A probe's header in the clear, with noise in place of the sealed part.
fn forged_probe(kind: u8, receiver: SiteId, sender: SiteId, random: &mut Random) -> Vec<u8> {
    let mut probe = random.bytes(PROBE_LENGTH);
    probe[..4].copy_from_slice(&[FIRST_BYTE, kind, 1, 0]);
    probe[4..12].copy_from_slice(&receiver.0);
    probe[12..20].copy_from_slice(&sender.0);
    probe
}

#[test]
fn forged_and_replayed_probes_move_no_path() {
    if !tools() {
        return;
    }
    let mut target = Target::new("udp");
    let beat = target.pair.heartbeat();
    let recorded = target.recorded();
    assert!(recorded.len() >= 3, "{} probes", recorded.len());
    let before = target.paths();
    let (socket, raw) = (target.attacker(), raw_socket(&target.lab));
    let elsewhere = socket.local_addr().expect("bound");
    let ids = [&target.pair.gateway_b, &target.pair.gateway_a].map(|gateway| SiteId::of(&public_key(gateway)));
    let mut random = Random::new(1);
    for probe in recorded.iter().chain(recorded.iter().rev()) {
        let mut all = vec![probe.clone()];
        all.extend((0..PROBE_LENGTH).map(|at| {
            let mut damaged = probe.clone();
            damaged[at] ^= 1 << random.below(8);
            damaged
        }));
        all.extend([1, 2].map(|kind| forged_probe(kind, ids[0], ids[1], &mut random)));
        for probe in all {
            let _ = socket.send_to(&probe, target.b());
            forge(&raw, target.a(), target.b(), &probe);
            forge(&raw, elsewhere, target.b(), &probe);
            pause(1);
        }
    }
    pause(3000);
    assert_eq!(drain(&socket), (0, 0), "a stranger was answered");
    assert_eq!(target.paths(), before, "a path has moved");
    let gap = beat.stop().longest_gap();
    assert!(gap <= 1.0, "{gap:.2} s");
    target.assert_alive();
}

/// Datagrams that resemble valid ones: probes in A's name and in nobody's, beginnings of our messages and of STUN, and
/// noise.
fn junk(a: SiteId, b: SiteId) -> Vec<Vec<u8>> {
    let mut random = Random::new(2);
    let stun = |kind: u16, random: &mut Random| {
        let length = 4 * random.below(30);
        let mut message = random.bytes(20 + length);
        message[..2].copy_from_slice(&kind.to_be_bytes());
        message[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        message[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        message
    };
    let one = |number: usize| match number % 8 {
        0 => forged_probe(1, b, a, &mut random),
        1 => forged_probe(2, b, a, &mut random),
        2 => {
            let nobody = SiteId(random.number().to_be_bytes());
            forged_probe(1, b, nobody, &mut random)
        }
        3 => {
            let length = random.below(200) + 1;
            let mut ours = random.bytes(length);
            ours[0] = FIRST_BYTE;
            ours
        }
        4 => stun(0x0001, &mut random),
        5 => stun(0x0101, &mut random),
        6 => stun(0x0111, &mut random),
        _ => {
            let length = random.below(200);
            random.bytes(length)
        }
    };
    (0..4096).map(one).collect()
}

/// Packets received on a gateway's WAN.
fn received(gateway: &Namespace) -> u64 {
    let text = gateway.ip_show("-j -s link show dev wan0");
    let links: Value = serde_json::from_str(&text).expect("JSON");
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn a_flood_of_probes_leaves_traffic_alone() {
    const RATE: usize = 50_000;
    const WHILE: Duration = Duration::from_secs(4);
    if !tools() {
        return;
    }
    for wan in ["udp", "xdp"] {
        let mut target = Target::new(wan);
        let [a, b] = [&target.pair.gateway_a, &target.pair.gateway_b].map(|gateway| SiteId::of(&public_key(gateway)));
        let (junk, raw, socket) = (junk(a, b), raw_socket(&target.lab), target.attacker());
        let (from, to) = (target.a(), target.b());
        let beat = target.pair.heartbeat();
        pause(1000);
        let before = received(&target.pair.b.gateway);
        let (start, mut sent) = (Instant::now(), 0_usize);
        let mut random = Random::new(3);
        while start.elapsed() < WHILE {
            let source = match sent % 3 {
                0 => from,
                1 => socket.local_addr().expect("bound"),
                _ => SocketAddr::from(([11, 255, 1, random.below(250) as u8], 1024 + random.below(60_000) as u16)),
            };
            forge(&raw, source, to, &junk[sent % junk.len()]);
            sent += 1;
            if sent.is_multiple_of(100) {
                let due = Duration::from_secs_f64(sent as f64 / RATE as f64);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        }
        let rate = sent as f64 / start.elapsed().as_secs_f64();
        pause(1000);
        let beats = beat.stop();
        let (gap, lost) = (beats.longest_gap(), beats.lost());
        eprintln!("{wan}: {rate:.0} datagrams a second; longest gap {gap:.2} s, {lost} lost");
        assert!(rate > 10_000.0, "{rate:.0} a second is no flood");
        let arrived = received(&target.pair.b.gateway) - before;
        assert!(arrived > sent as u64 / 2, "{arrived} of {sent} got to the gateway");
        assert!(gap <= 1.0, "{wan}: {gap:.2} s");
        assert_eq!(drain(&socket), (0, 0), "a stranger was answered");
        target.pair.await_both("direct", Duration::ZERO);
        assert_eq!(target.pair.peers().map(|peer| peer["Endpoint"].clone()), [to, from].map(|at| json!(at)));
        target.assert_alive();
    }
}

#[test]
fn strangers_get_no_answer_whatever_they_say() {
    if !tools() {
        return;
    }
    let mut target = Target::new("udp");
    let [a, b] = [&target.pair.gateway_a, &target.pair.gateway_b].map(|gateway| SiteId::of(&public_key(gateway)));
    let socket = target.attacker();
    let mut random = Random::new(4);
    let mut asked = 0;
    for length in 0..=200 {
        // Probes, binds and their answers, STUN requests and answers, WireGuard's four, nothing.
        for kind in 0..12_u8 {
            let mut datagram = random.bytes(length.max(20));
            match kind {
                0..=5 => {
                    datagram[..4].copy_from_slice(&[FIRST_BYTE, kind, 1, 0]);
                    datagram[4..12].copy_from_slice(&b.0);
                    datagram[12..20].copy_from_slice(&a.0);
                }
                6 | 7 => {
                    let body = (length.max(20) - 20) as u16;
                    datagram[..2].copy_from_slice(&[kind - 6, 1]);
                    datagram[2..4].copy_from_slice(&body.to_be_bytes());
                    datagram[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
                }
                8..=11 => datagram[..4].copy_from_slice(&[kind - 7, 0, 0, 0]),
                _ => {}
            }
            datagram.truncate(length);
            let _ = socket.send_to(&datagram, target.b());
            asked += 1;
        }
        pause(5);
    }
    pause(500);
    assert_eq!(drain(&socket), (0, 0), "answers to {asked} datagrams");
    target.assert_alive();
    let pings = ping(&target.pair.a.host, target.pair.b.host_address(), &["-c", "5", "-i", "0.1"]);
    assert!(pings.all_answered(), "{}", pings.text);
}

/// What a malicious enrolled site can make with its own key.
struct Hostile {
    private: StaticSecret,
    id: SiteId,
    socket: UdpSocket,
}

impl Hostile {
    /// A ping to the site with this key, as its own agent makes it.
    fn ping(&self, to: &PublicKey, at: SocketAddr) -> Vec<u8> {
        let now = Instant::now();
        let mut agent = PathAgent::new(self.private.clone(), PathConfig::default(), StdRng::from_os_rng());
        agent.add_peer(now, *to).expect("a peer");
        let candidate = Candidate { kind: CandidateKind::Host, address: at };
        agent.set_remote(now, to, &[candidate], NatType::default());
        agent.set_local(now, &[candidate], NatType::default());
        agent.handle_timeout(now);
        agent.poll_transmit().expect("a ping").bytes.to_vec()
    }

    /// The probes that come within half a second: receivers and senders.
    fn send(&self, datagram: &[u8], to: SocketAddr) -> Vec<(SiteId, SiteId)> {
        self.socket.send_to(datagram, to).expect("sent");
        pause(500);
        let mut buffer = [0; 2048];
        let mut probes = Vec::new();
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let probe = Envelope::parse(&buffer[..length]).expect("only probes can come");
            probes.push((probe.receiver, probe.sender));
        }
        probes
    }

    /// Binds itself to a relay.
    fn bind(&self, relay: &PublicKey, at: SocketAddr) {
        let mut client = RelayClient::new(Instant::now(), &self.private, relay).expect("a key");
        let bound = holds_within(PATIENCE, || {
            while let Some(bind) = client.poll_transmit(Instant::now()) {
                self.socket.send_to(&bind, at).expect("sent");
            }
            pause(50);
            let mut buffer = [0; 2048];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                client.handle_datagram(Instant::now(), &buffer[..length]);
            }
            client.is_bound(Instant::now())
        });
        assert!(bound, "it may bind itself");
    }
}

#[test]
fn an_enrolled_site_passes_for_no_other_and_learns_nothing_of_who_is_hidden() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    coordinator.policy(&json!({ "Links": [["tag:branch", "tag:hub"]] }));
    let [hub_key, branch_key] = ["hub", "branch"].map(|tag| coordinator.key(2, tag));
    let extra = json!({ "LocalPort": PORT });
    // Branches talk to the hub and not to each other.
    let sites = [(Kind::None, 1), (Kind::None, 2), (Kind::None, 3)].map(|(kind, number)| lab.site(kind, number));
    let [hub, honest, hostile] = &sites;
    let hub_gateway = OverlayGateway::start(hub, &coordinator, &hub_key, &extra);
    let honest_gateway = OverlayGateway::start(honest, &coordinator, &branch_key, &extra);
    let mut hostile_gateway = OverlayGateway::start(hostile, &coordinator, &branch_key, &extra);
    for gateway in [&honest_gateway, &hostile_gateway] {
        gateway.await_path(&hub_gateway.name, "direct", PATIENCE);
    }
    let [hub_public, honest_public] = [&hub_gateway, &honest_gateway].map(public_key);
    let [hub_at, honest_at] = [hub, honest].map(|site| SocketAddr::new(site.public().into(), PORT));

    // What its own gateway knows, stores and reports.
    let status = hostile_gateway.status().to_string();
    pause(500);
    assert!(hostile_gateway.process.terminate().success());
    let kept = std::fs::read(hostile.scratch.join(format!("{}.map", hostile_gateway.name))).expect("a kept map");
    let kept = String::from_utf8_lossy(&kept).into_owned();
    let netcheck = hostile_gateway.netcheck(&format!("{}:3478", lab.server(1)));
    assert!(netcheck["Peers"].as_array().is_some_and(|peers| peers.len() <= 1), "{netcheck}");
    let secrets =
        [honest_gateway.name.clone(), STANDARD.encode(honest_public), honest.public().to_string(), honest.subnet()];
    for (what, text) in [("status", &status), ("the kept map", &kept), ("netcheck", &netcheck.to_string())] {
        assert!(text.contains(&hub_gateway.name) || what == "netcheck", "{what} knows the hub: {text}");
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what} tells {secret}");
        }
    }

    // What it can make with its key.
    let text = std::fs::read_to_string(hostile.scratch.join(format!("{}.key", hostile_gateway.name))).expect("a key");
    let bytes: [u8; 32] = STANDARD.decode(text.trim()).expect("base64").try_into().expect("32 bytes");
    let private = StaticSecret::from(bytes);
    let wan = hostile.wan();
    let socket = hostile.gateway.enter(|| UdpSocket::bind((wan, 4000))).expect("a socket");
    socket.set_nonblocking(true).expect("nonblocking");
    let hostile = Hostile { id: SiteId::of(&PublicKey::from(&private)), private, socket };
    let [hub_id, honest_id] = [hub_public, honest_public].map(|key| SiteId::of(&key));
    let own = (hostile.id, hub_id);
    let ping = hostile.ping(&hub_public, hub_at);
    assert!(hostile.send(&ping, hub_at).contains(&own), "in its own name the hub answers");
    // In the other's name, but made with its own key. The hub still answers to the real name only.
    let only_own = |probes: Vec<(SiteId, SiteId)>| probes.iter().all(|probe| *probe == own);
    let mut ping = hostile.ping(&hub_public, hub_at);
    ping[12..20].copy_from_slice(&honest_id.0);
    assert!(only_own(hostile.send(&ping, hub_at)), "it passed for another");
    // To a site to which it has no link, if it ever learns of it.
    let ping = hostile.ping(&honest_public, honest_at);
    assert!(only_own(hostile.send(&ping, honest_at)), "the hidden site answers");

    // Through the relay: it reaches the hub, but not the hidden site.
    let relay_at = SocketAddr::new(lab.server(1).into(), 3478);
    hostile.bind(&relay_key(&kept), relay_at);
    let relayed = Capture::start(&honest.gateway, "wan0", "udp and src host 11.255.0.1", lab.scratch());
    assert!(
        hostile.send(&hostile.ping(&hub_public, relay_at), relay_at).contains(&own),
        "the relay forwards to the hub"
    );
    let nobody = PublicKey::from(&StaticSecret::from([9; 32]));
    for stranger in [honest_public, nobody] {
        assert!(only_own(hostile.send(&hostile.ping(&stranger, relay_at), relay_at)), "who is that?");
    }
    let from_it = |frame: &Frame| {
        let payload = frame.datagram().map(|datagram| datagram.payload).unwrap_or_default();
        Envelope::parse(&payload).is_ok_and(|probe| probe.sender == hostile.id)
    };
    assert!(!relayed.stop().iter().any(from_it), "the hidden site heard of it");

    // And the others' traffic goes on as before.
    let pings = crate::support::ping(&honest.host, hub.host_address(), &["-c", "5", "-i", "0.1"]);
    assert!(pings.all_answered(), "{}", pings.text);
}

/// The key of the first relay in a cached map.
fn relay_key(kept: &str) -> PublicKey {
    let relays = kept.split_once("\"Relays\":").expect("relays").1;
    let text = relays.split_once("\"PublicKey\":\"").expect("a key").1.split('"').next().expect("a key");
    let bytes: [u8; 32] = STANDARD.decode(text).expect("base64").try_into().expect("32 bytes");
    bytes.into()
}

/// It offers prefixes that would attract the others' connections and the Internet's, and in the end an administrator is
/// deceived.
#[test]
fn a_site_that_offers_what_is_not_its_own_takes_nothing() {
    if !tools() {
        return;
    }
    let mut target = Target::new("udp");
    let (site, coordinator) = (target.lab.site(Kind::None, 3), target.lab.server(1));
    let mut wanted: Vec<String> = ["8.0.0.0/7", "8.0.0.0/5", "2000::/3", "0.0.0.0/0"].map(str::to_owned).to_vec();
    wanted.extend([format!("{coordinator}/32"), format!("{}/32", target.b().ip())]);
    let offered = [&wanted[..], &[site.subnet()]].concat();
    let lan = json!({ "Interfaces": ["lan0"], "Mode": "tun", "Subnets": offered });
    let beat = target.pair.heartbeat();
    let key = target.coordinator.key(1, "site");
    let thief = OverlayGateway::start(&site, &target.coordinator, &key, &json!({ "LocalPort": PORT, "Lan": lan }));
    let routed = |gateway: &OverlayGateway| -> Vec<String> {
        let prefixes = gateway.peer(&thief.name)["AllowedIPs"].as_array().cloned().unwrap_or_default();
        prefixes.iter().filter_map(|prefix| prefix.as_str().map(str::to_owned)).collect()
    };
    let only_its_own = |gateway: &OverlayGateway| {
        let prefixes = routed(gateway);
        prefixes.len() == 2 && prefixes.contains(&site.subnet())
    };
    let honest = [&target.pair.gateway_a, &target.pair.gateway_b];
    eventually(PATIENCE, "it is a peer, with its own", || honest.iter().all(|gateway| only_its_own(gateway)));

    target.coordinator.run(&["site", "approve", &thief.name, "--subnets", &offered.join(",")]);
    let refused = |gateway: &OverlayGateway| {
        let status = gateway.status();
        let refused = status["Coordinator"]["Refused"].as_array().cloned().unwrap_or_default();
        wanted.iter().all(|prefix| refused.iter().any(|refused| refused["Prefix"] == json!(prefix)))
    };
    eventually(PATIENCE, "the gateways judge for themselves", || honest.iter().all(|gateway| refused(gateway)));
    pause(2000);
    for (gateway, site) in honest.iter().zip([&target.pair.a, &target.pair.b]) {
        assert!(only_its_own(gateway), "{:?}", routed(gateway));
        assert_eq!(gateway.status()["Coordinator"]["Connected"], json!(true));
        let route = site.gateway.ip_show(&format!("route get {coordinator}"));
        assert!(route.contains("dev wan0"), "{route}");
    }
    let gap = beat.stop().longest_gap();
    assert!(gap <= 1.0, "{gap:.2} s");
    target.pair.await_both("direct", Duration::ZERO);
    target.assert_alive();
}

#[test]
fn a_link_that_policy_removes_stops_and_comes_back() {
    if !tools() {
        return;
    }
    let target = Target::new("udp");
    let Target { pair, coordinator, .. } = &target;
    let names = json!([[pair.gateway_a.name, pair.gateway_b.name]]);
    let beat = pair.heartbeat();
    for _ in 0..2 {
        coordinator.policy(&json!({ "Links": [] }));
        let cut = now();
        let gone = || pair.peers().iter().all(Value::is_null);
        eventually(Duration::from_secs(3), "neither knows the other", gone);
        let arrivals = Capture::start(&pair.b.host, "eth0", "icmp", target.lab.scratch());
        pause(2000);
        assert_eq!(arrivals.stop().len(), 0, "something still comes through");
        let last = beat.beats().answers.last().expect("answers").0;
        assert!(last < cut + 3.0, "an answer {:.1} s after the link's end", last - cut);

        let back = now();
        coordinator.policy(&json!({ "Links": names }));
        eventually(PATIENCE, "traffic again", || beat.beats().silence_after(back) < f64::INFINITY);
        pair.await_both("direct", 2 * PATIENCE);
    }
}
