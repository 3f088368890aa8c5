//! Gateways that pin an authority, and a malicious coordinator without its key: they keep their prefixes and go on
//! talking. Their behaviour without a pin, when leases end, and after a restart.

mod certificate;
mod gossip;
pub mod puppet;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use penstock_proto::coordination::{
    Candidate, CandidateKind, Map, MapVersion, Peer, Reachability, Registration, RegistrationState, Relay, SiteKey,
    Waiting,
};
use penstock_proto::trust::{
    Authority, Document, LeaseLength, Lessor, Serial, SigningKey, SiteGrant, Subnets, UnixTime, Validity,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::support::nat::{Kind, Lab, Site};
use crate::support::overlay::{Heartbeat, OverlayGateway};
use crate::support::*;
use puppet::{Puppet, Shown};

const PORT: u16 = 47100;

fn tools() -> bool {
    ready(&["nft", "tcpdump"])
}

/// Two sites, a coordinator, and the authority on another machine.
struct World {
    gateways: Vec<OverlayGateway>,
    puppet: Puppet,
    authority: Authority,
    lessor: Lessor,
    keys: Vec<(String, SiteKey)>,
    sites: Vec<Site>,
    lab: Lab,
}

impl World {
    fn new(lease: LeaseLength) -> Self {
        let lab = Lab::new();
        let sites = lab.sites(&[Kind::None, Kind::None]);
        let keys = sites.iter().map(|_| key_pair()).collect();
        let mut authority = Authority::found(signing_key(1));
        let lessor = Lessor::new(signing_key(2), lease, Serial(0));
        authority.certify(wall(), lessor.key(), LeaseLength::DEFAULT).expect("room");
        let puppet = Puppet::start(lab.internet(), lab.server(1).into());
        let mut world = Self { gateways: Vec::new(), puppet, authority, lessor, keys, sites, lab };
        for number in 0..2 {
            let (key, subnet) = (world.keys[number].1, world.sites[number].subnet());
            world.approve(key, number as u8, &[&subnet]);
        }
        world
    }

    fn approve(&mut self, public_key: SiteKey, number: u8, subnets: &[&str]) {
        let subnets = subnets.iter().map(|subnet| subnet.parse().expect("a prefix"));
        let grant = SiteGrant {
            public_key,
            name: name(number).parse().expect("a name"),
            virtual_address: [100, 64, 0, number + 1].into(),
            tags: Default::default(),
            subnets: Subnets::new(subnets).expect("sound"),
            validity: Validity::default(),
        };
        self.authority.approve(wall(), grant).expect("approved");
    }

    /// With an honest coordinator, through which the two gateways have found each other.
    fn joined(lease: LeaseLength, pinned: bool) -> Self {
        let mut world = Self::new(lease);
        world.be_honest();
        world.start(pinned);
        world.await_direct();
        world
    }

    fn start(&mut self, pinned: bool) {
        let authority = pinned.then(|| self.pin());
        for (site, (private, _)) in self.sites.iter().zip(&self.keys) {
            let coordinator = self.puppet.in_profile(authority.clone());
            let extra = json!({ "LocalPort": PORT, "Coordinator": coordinator, "PortMapping": false });
            self.gateways.push(OverlayGateway::enrolled(site, private, &extra));
        }
    }

    fn pin(&self) -> String {
        self.authority.publication().root().to_string()
    }

    /// Everything that an honest coordinator shows: every document, and a lease for every site.
    fn documents(&mut self) -> Vec<Document> {
        let publication = self.authority.publication();
        let mut documents: Vec<Document> = publication.documents().cloned().collect();
        let sites: Vec<SiteKey> = publication.sites().map(|site| site.grant.public_key).collect();
        documents.extend(sites.into_iter().map(|site| self.lessor.lease(wall(), site)));
        documents
    }

    /// The other site, as an honest map has it.
    fn map_for(&self, number: usize) -> Map {
        let other = 1 - number;
        Map { version: MapVersion { epoch: 1, number: 1 }, peers: [self.peer(other)].into(), ..Map::default() }
    }

    fn peer(&self, number: usize) -> (SiteKey, Peer) {
        let address = std::net::SocketAddr::new(self.sites[number].public().into(), PORT);
        let candidates = vec![Candidate { kind: CandidateKind::Host, address }];
        let mut peer = liar(number as u8, &[&self.sites[number].subnet()]);
        peer.reachability = Some(Reachability { candidates, ..Reachability::default() });
        (self.keys[number].1, peer)
    }

    fn show(&self, number: usize, documents: Vec<Document>, map: Map) {
        let registration = Registration {
            name: name(number as u8).parse().expect("a name"),
            state: RegistrationState::Approved,
            virtual_address: [100, 64, 0, number as u8 + 1].into(),
            subnets: Vec::new(),
            waiting: Vec::new(),
        };
        self.puppet.show(self.keys[number].1, Shown { registration, documents, map });
    }

    /// Shows both the truth.
    fn be_honest(&mut self) {
        for number in 0..2 {
            let documents = self.documents();
            self.show(number, documents, self.map_for(number));
        }
    }

    fn await_direct(&self) {
        for number in 0..2 {
            self.gateways[number].await_path(&name(1 - number as u8), "direct", 2 * PATIENCE);
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let target = self.sites[1].host_address();
        let beat = Heartbeat::start(&self.sites[0], target, Duration::from_millis(100), 100_000);
        eventually(PATIENCE, "the first answer", || !beat.beats().answers.is_empty());
        beat
    }

    fn ping(&self) -> bool {
        ping(&self.sites[0].host, self.sites[1].host_address(), &["-c", "2", "-i", "0.2"]).received > 0
    }

    /// Waits until a gateway lists exactly these refusals: names, with the prefix if only that is refused.
    fn await_refused(&self, number: usize, expected: &[&str]) -> Value {
        let mut status = Value::Null;
        let mut found: Vec<String> = Vec::new();
        let holds = holds_within(PATIENCE, || {
            status = self.gateways[number].status();
            let refused = status["Coordinator"]["Refused"].as_array().expect("a list");
            let shown = |refused: &Value| match refused["Prefix"].as_str() {
                Some(prefix) => format!("{prefix} of {}", refused["Name"].as_str().expect("a name")),
                None => refused["Name"].as_str().expect("a name").to_owned(),
            };
            found = refused.iter().map(shown).collect();
            found.sort();
            found == expected
        });
        assert!(holds, "{found:?} are refused, not {expected:?}");
        status
    }

    fn problems(&self, number: usize) -> Vec<(String, String)> {
        let status = self.gateways[number].status();
        let text = |problem: &Value, field: &str| problem[field].as_str().expect("text").to_owned();
        let problems = status["Problems"].as_array().expect("a list");
        problems.iter().map(|problem| (text(problem, "Subject"), text(problem, "Sentence"))).collect()
    }
}

fn signing_key(seed: u64) -> SigningKey {
    SigningKey::generate(&mut StdRng::seed_from_u64(seed))
}

fn wall() -> UnixTime {
    SystemTime::now().into()
}

fn key_pair() -> (String, SiteKey) {
    let private = genkey();
    let public: [u8; 32] = STANDARD.decode(pubkey(&private)).expect("base64").try_into().expect("32 bytes");
    (private, public.into())
}

fn name(number: u8) -> String {
    format!("site-{number}")
}

/// A site in a map, as the coordinator describes it.
fn liar(number: u8, subnets: &[&str]) -> Peer {
    Peer {
        name: name(number).parse().expect("a name"),
        virtual_address: [100, 64, 0, number + 1].into(),
        subnets: subnets.iter().map(|subnet| subnet.parse::<IpNet>().expect("a prefix")).collect(),
        tags: Vec::new(),
        allow: None,
        reachability: None,
    }
}

/// Everything that docs/trust.md says a coordinator without the authority's key cannot do.
#[test]
fn a_hostile_coordinator_adds_nobody_brings_nobody_back_and_moves_nothing() {
    if !tools() {
        return;
    }
    let mut world = World::new(LeaseLength::DEFAULT);
    let [revoked, poor, stranger, relay] = [(); 4].map(|()| key_pair().1);
    world.approve(revoked, 7, &["10.7.0.0/16"]);
    world.approve(poor, 8, &["10.8.0.0/16"]);
    let archive = world.documents();
    world.authority.revoke(wall(), [revoked]).expect("room");
    world.be_honest();
    world.start(true);
    world.await_direct();
    let victim = world.sites[1].subnet();
    let beat = world.heartbeat();

    // A stranger with the other site's subnet, a revoked site, and a site with somebody else's subnet; and in place of
    // the authority's signature the coordinator's own.
    let mut lie = world.map_for(0);
    lie.peers.insert(stranger, liar(6, &[&victim, "10.6.0.0/16"]));
    lie.peers.insert(revoked, liar(7, &["10.7.0.0/16"]));
    lie.peers.insert(poor, liar(8, &[&victim, "10.8.0.0/16", "10.9.0.0/16"]));
    lie.relays.push(Relay {
        name: "thief".parse().expect("a name"),
        public_key: relay,
        udp: vec![std::net::SocketAddr::new(world.lab.server(2).into(), 3478)],
        url: None,
        fingerprint: None,
    });
    let mut forger = Authority::found(signing_key(2));
    let stated = world.authority.publication().site(&poor).expect("stated").grant.clone();
    let grant = SiteGrant { public_key: stranger, name: name(6).parse().expect("a name"), ..stated };
    let mut documents = forger.approve(wall(), grant).expect("signed");
    documents.extend(forger.revoke(wall(), [world.keys[1].1]).expect("signed"));
    documents.push(forger.spare(signing_key(9).authority()));
    // Everything that was ever true, including the revoked site's statement, and fresh leases for everyone.
    documents.extend(archive);
    documents.extend([stranger, revoked, poor].map(|site| world.lessor.lease(wall(), site)));
    world.show(0, documents, lie);

    let both = [format!("10.9.0.0/16 of {}", name(8)), format!("{victim} of {}", name(8))];
    let mut expected: Vec<&str> = vec!["site-6", "site-7", "thief", &both[0], &both[1]];
    expected.sort();
    let status = world.await_refused(0, &expected);
    let peers: BTreeMap<&str, &Value> = status["Peers"]
        .as_array()
        .expect("peers")
        .iter()
        .map(|peer| (peer["Name"].as_str().expect("a name"), &peer["AllowedIPs"]))
        .collect();
    assert_eq!(
        peers,
        [("site-1", &json!([victim, "100.64.0.2/32"])), ("site-8", &json!(["10.8.0.0/16", "100.64.0.9/32"]))].into()
    );
    assert_eq!(status["Relays"], json!([]));
    let problems = world.problems(0);
    let told = |subject: &str| problems.iter().any(|(of, _)| of.starts_with(subject));
    assert!(told("site-7 (") && told("documents of the coordinator"), "{problems:?}");

    // From a backup made before the revocation, to a gateway that starts from nothing.
    pause(1_000);
    let beats = beat.stop();
    assert!(beats.longest_gap() <= 1.0 && beats.lost() <= 2, "{:.2} s, {} lost", beats.longest_gap(), beats.lost());
    assert!(world.gateways[0].process.terminate().success());
    world.gateways[0].restart();
    world.await_refused(0, &expected);
    world.await_direct();
    assert!(world.ping());
}

/// A revoked site that keeps a gateway from its coordinator, and a coordinator that withholds leases.
#[test]
fn a_lease_that_ends_is_told_before_and_after_and_nothing_leaks() {
    if !tools() {
        return;
    }
    let mut world = World::joined(LeaseLength::from(16), true);
    world.be_honest();
    let start = std::time::Instant::now();
    let captured = Capture::start(world.lab.internet(), "site1", "icmp", world.lab.scratch());
    let beat = world.heartbeat();
    let warned = || world.problems(0).iter().any(|(of, sentence)| of == "leases" && sentence.contains(&name(1)));
    eventually(PATIENCE, "a warning at half", warned);
    let half = start.elapsed();
    assert!(half < Duration::from_secs(16), "{half:?}");
    assert!(world.ping(), "it still works");
    let status = world.await_refused(0, &[&name(1)]);
    assert!(start.elapsed() >= Duration::from_secs(15), "{:?}", start.elapsed());
    let reason = status["Coordinator"]["Refused"][0]["Reason"].as_str().expect("a reason");
    assert!(reason.contains("has not renewed its lease in time"), "{reason}");
    assert!(status["Guarded"].as_array().expect("a list").contains(&json!(world.sites[1].subnet())), "{status}");
    assert!(!world.ping());
    drop(beat);
    let leaked = captured.stop();
    assert!(leaked.is_empty(), "{} packets left in the clear", leaked.len());

    world.be_honest();
    world.await_direct();
    assert!(world.ping());
    let statement = &world.gateways[0].peer(&name(1))["Statement"];
    assert!(statement["LeaseSeconds"].as_u64().is_some_and(|left| left <= 16), "{statement}");
}

/// An upgrade, the pin, the coordinator's end and return, a revocation, and an old backup.
#[test]
fn a_gateway_is_pinned_later_and_remembers_what_it_has_seen() {
    if !tools() {
        return;
    }
    let mut world = World::joined(LeaseLength::DEFAULT, false);
    let unpinned = world.problems(0);
    assert!(unpinned.iter().any(|(subject, _)| subject == "Coordinator.Authority"), "{unpinned:?}");

    // The single command.
    let assignment = format!("Coordinator.Authority={}", world.pin());
    assert!(world.gateways[0].process.terminate().success());
    let output = world.gateways[0].penstock(&["set-config", &assignment]);
    assert!(output.status.success(), "{output:?}");
    world.gateways[0].restart();
    world.await_direct();
    assert_eq!(world.problems(0), []);
    assert_eq!(world.gateways[0].status()["Coordinator"]["Authority"], world.pin());

    // Killed, and started without the coordinator.
    world.puppet.stop();
    world.gateways[0].process.kill();
    world.gateways[0].restart();
    world.await_direct();

    // The other site is revoked; then the coordinator comes from a backup.
    let (backup, other) = (world.documents(), world.keys[1].1);
    world.authority.revoke(wall(), [other]).expect("room");
    let documents = world.documents();
    world.show(0, documents, world.map_for(0));
    world.puppet.run();
    world.await_refused(0, &[&name(1)]);
    world.show(0, backup, world.map_for(0));
    world.gateways[0].process.kill();
    world.gateways[0].restart();
    let told = || world.problems(0).iter().any(|(subject, _)| subject == "documents of the coordinator");
    eventually(PATIENCE, "the old documents are told", told);
    world.await_refused(0, &[&name(1)]);
    assert!(!world.ping());
}

/// With a pin, a coordinator's own word counts for nothing.
#[test]
fn a_coordinator_without_statements_has_no_sites_for_a_gateway_with_a_pin() {
    if !tools() {
        return;
    }
    let mut world = World::new(LeaseLength::DEFAULT);
    for number in 0..2 {
        world.show(number, Vec::new(), world.map_for(number));
    }
    world.start(true);
    let status = world.await_refused(0, &[&name(1)]);
    let reason = status["Coordinator"]["Refused"][0]["Reason"].as_str().expect("a reason");
    assert!(reason.contains("shows no valid statement of this gateway itself"), "{reason}");
    assert_eq!((&status["Peers"], &status["Health"]), (&json!([]), &json!("degraded")));
    world.be_honest();
    world.await_direct();
    assert_eq!(world.problems(0), []);
}

/// Offered subnets that are not granted are shown by the running gateway, without control characters for the terminal.
#[test]
fn status_names_the_subnets_that_wait() {
    if !tools() {
        return;
    }
    let mut world = World::new(LeaseLength::DEFAULT);
    world.be_honest();
    let subnet = "10.77.0.0/24".parse().expect("a prefix");
    let waiting = vec![Waiting { subnet, reason: "it is\x1b[2J cadiz's".into() }];
    let registration = Registration {
        name: name(0).parse().expect("a name"),
        state: RegistrationState::Approved,
        virtual_address: [100, 64, 0, 1].into(),
        subnets: Vec::new(),
        waiting,
    };
    let shown = Shown { registration, documents: world.documents(), map: world.map_for(0) };
    world.puppet.show(world.keys[0].1, shown);
    world.start(true);
    world.await_direct();
    let status = world.gateways[0].status();
    let expected = json!([{ "Subnet": "10.77.0.0/24", "Reason": "it is[2J cadiz's" }]);
    assert_eq!(status["Coordinator"]["Waiting"], expected);
    assert_eq!(world.gateways[1].status()["Coordinator"]["Waiting"], json!([]));
}

/// A gateway that does not report that it enforces `Allow` is not shown sites that are restricted there, and so has no
/// tunnel to them: these say why, for as long as it is so.
#[test]
fn status_names_peers_too_old_for_the_policy() {
    if !tools() {
        return;
    }
    let mut world = World::joined(LeaseLength::DEFAULT, true);
    let show = |world: &mut World, version: u64, restricted: bool, enforces_allow: bool| {
        let mut map = world.map_for(0);
        map.version.number = version;
        let peer = map.peers.values_mut().next().expect("the other site");
        peer.allow = restricted.then(Vec::new);
        peer.reachability.as_mut().expect("it has spoken").enforces_allow = enforces_allow;
        let documents = world.documents();
        world.show(0, documents, map);
    };
    let problem = |world: &World| world.problems(0).into_iter().find(|(subject, _)| subject == "policy");
    for (version, restricted, enforces, told) in
        [(2, true, false, true), (3, true, true, false), (4, true, false, true), (5, false, false, false)]
    {
        show(&mut world, version, restricted, enforces);
        let sentence =
            |(_, sentence): &(String, String)| sentence.contains("no tunnel to site-1") && sentence.contains("too old");
        let holds = || problem(&world).as_ref().map(sentence) == told.then_some(true);
        eventually(PATIENCE, &format!("version {version} is in status"), holds);
    }
}
