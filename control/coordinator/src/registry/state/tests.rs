//! Random histories: whatever happens, each follower's map becomes what it would be told afresh, and
//! nobody is told of a site that was never visible to it.

use super::*;
use crate::relay::RelayServer;
use crate::relay::access::Follower as RelayFollower;
use penstock_proto::coordination::{Candidate, CandidateKind};
use penstock_proto::relay::RelayLimits;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;

const SITES: u8 = 7;

/// The gateway of one site.
struct Follower {
    number: u8,
    session: Option<Session>,
    map: Option<Map>,
    /// Maps it had once and may come back with.
    kept: Vec<Map>,
    /// The peers that it ever was allowed to know.
    visible: BTreeSet<SiteKey>,
    wholes: usize,
    updates: usize,
}

struct World {
    state: State,
    reader: Reader,
    follower: RelayFollower,
    relay: Arc<RelayServer>,
    rng: StdRng,
    followers: Vec<Follower>,
    ports: u16,
}

fn key(number: u8) -> SiteKey {
    [number + 1; 32].into()
}

fn policy(links: &str) -> Policy {
    Policy::parse(&format!("{{\"Links\": {links}}}")).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut state = State::new(1, Policy::default(), Vec::new(), Vec::new());
        let relay = Arc::new(RelayServer::new([9; 32].into(), RelayLimits::default()));
        let (reader, relay_follower) = (state.read_access(), RelayFollower::new(relay.clone()));
        let follower = |number| Follower {
            number,
            session: None,
            map: None,
            kept: Vec::new(),
            visible: BTreeSet::new(),
            wholes: 0,
            updates: 0,
        };
        let followers = (0..SITES).map(follower).collect();
        Self { state, reader, follower: relay_follower, relay, rng: StdRng::seed_from_u64(seed), followers, ports: 0 }
    }

    /// One thing happens.
    fn step(&mut self) {
        let number = self.rng.random_range(0..SITES);
        match self.rng.random_range(0..10) {
            0..=1 => {
                let site = self.site(number);
                self.state.put(site);
            }
            2 => {
                let text =
                    ["[]", r#"[["*", "*"]]"#, r#"[["tag:a", "tag:b"]]"#, r#"[["tag:a", "*"]]"#, r#"[["s1", "s2"]]"#];
                let links = text[self.rng.random_range(0..text.len())];
                self.state.set_policy(policy(links));
            }
            3..=5 => self.speak(number),
            6 => {
                self.connect(number);
                // A relay that is told in between, and one that comes back with what it knew.
                let access = self.state.access(&mut self.reader);
                access.into_iter().for_each(|access| self.follower.take(access).unwrap());
                if self.rng.random_range(0..4) == 0 {
                    self.reader = self.state.read_access();
                }
            }
            7 => {
                if let Some(session) = self.followers[usize::from(number)].session.take() {
                    self.state.disconnect(&session);
                }
            }
            _ => self.listen(number),
        }
        self.look();
    }

    fn site(&mut self, number: u8) -> Site {
        let tags = [vec![], vec!["a"], vec!["b"], vec!["a", "b"]];
        let state = [SiteState::Pending, SiteState::Approved, SiteState::Approved, SiteState::Revoked];
        Site {
            key: key(number),
            name: format!("s{number}").parse().unwrap(),
            virtual_address: std::net::Ipv4Addr::new(100, 64, 0, number),
            subnets: vec![format!("10.{number}.{}.0/24", self.rng.random_range(0..3)).parse().unwrap()],
            tags: tags[self.rng.random_range(0..4)].iter().map(|tag| tag.parse().unwrap()).collect(),
            state: state[self.rng.random_range(0..4)],
            created: 0,
            last_seen: None,
        }
    }

    fn speak(&mut self, number: u8) {
        self.ports = self.ports.wrapping_add(1);
        let address = (std::net::Ipv4Addr::new(192, 0, 2, number), self.ports).into();
        let candidates = vec![Candidate { kind: CandidateKind::Host, address }];
        if let Some(session) = &self.followers[usize::from(number)].session {
            self.state.set_reachability(session, Reachability { candidates, nat_type: None });
        }
    }

    fn connect(&mut self, number: u8) {
        let follower = &mut self.followers[usize::from(number)];
        follower.kept.extend(follower.map.clone());
        follower.map = match self.rng.random_range(0..3) {
            0 => None,
            1 if !follower.kept.is_empty() => {
                Some(follower.kept[self.rng.random_range(0..follower.kept.len())].clone())
            }
            _ => follower.map.take(),
        };
        follower.session = self.state.connect(&key(number), follower.map.as_ref().map(Map::known));
    }

    /// The gateway hears what there is to say.
    fn listen(&mut self, number: u8) {
        let follower = &mut self.followers[usize::from(number)];
        let Some(session) = &mut follower.session else { return };
        let messages = match self.state.outgoing(session) {
            Outgoing::End(_) => return follower.session = None,
            Outgoing::Messages(messages) => messages,
        };
        for message in messages {
            let told: Vec<SiteKey> = match &message {
                CoordinatorMessage::Map(map) => map.peers.keys().copied().collect(),
                CoordinatorMessage::Update(update) => update.upsert.keys().chain(&update.remove).copied().collect(),
                _ => Vec::new(),
            };
            for peer in told {
                assert!(follower.visible.contains(&peer), "{} is told of {peer}", follower.number);
            }
            match message {
                CoordinatorMessage::Map(map) => {
                    follower.wholes += 1;
                    follower.map = Some(map);
                }
                CoordinatorMessage::Update(update) => {
                    follower.updates += 1;
                    follower.map.as_mut().unwrap().apply(update).unwrap();
                }
                _ => {}
            }
        }
    }

    /// Takes note of who may know whom.
    fn look(&mut self) {
        let (policy, sites): (_, Vec<&Site>) = (self.state.policy(), self.state.sites().collect());
        for follower in &mut self.followers {
            let Some(own) = sites.iter().find(|site| site.key == key(follower.number)) else { continue };
            follower.visible.extend(sites.iter().filter(|site| policy.joins(own, site)).map(|site| site.key));
        }
    }

    /// All who are connected hear all there is, and then know what they would be told afresh.
    fn settle(&mut self) {
        while let Some(access) = self.state.access(&mut self.reader) {
            self.follower.take(access).unwrap();
        }
        let hub = self.relay.lock();
        let approved = self.state.sites().filter(|site| site.state == SiteState::Approved);
        let known: BTreeSet<SiteKey> = hub.relay().sites().map(|key| (*key).into()).collect();
        assert_eq!(known, approved.map(|site| site.key).collect());
        for (one, other) in self.state.sites().flat_map(|one| self.state.sites().map(move |other| (one, other))) {
            let joined = hub.relay().are_joined(&one.key.into(), &other.key.into());
            assert_eq!(joined, self.state.policy().joins(one, other), "{} {}", one.name, other.name);
        }
        drop(hub);
        for number in 0..SITES {
            self.listen(number);
            let follower = &self.followers[usize::from(number)];
            let Some(session) = &follower.session else { continue };
            let place = self.state.current(session).unwrap();
            if self.state.records[place as usize].site.state == SiteState::Approved {
                let view = &self.state.records[place as usize].view;
                let now = MapVersion { epoch: 1, number: view.number };
                assert_eq!(follower.map, Some(self.state.map(place, now)), "site {number}");
            }
        }
    }
}

#[test]
fn whatever_happens_every_map_becomes_what_it_should() {
    let (mut wholes, mut updates) = (0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..10 {
            for _ in 0..30 {
                world.step();
            }
            world.settle();
        }
        wholes += world.followers.iter().map(|follower| follower.wholes).sum::<usize>();
        updates += world.followers.iter().map(|follower| follower.updates).sum::<usize>();
    }
    assert!(wholes > 1000 && updates > 1000, "{wholes} {updates}");
}

#[test]
fn who_missed_more_than_is_remembered_is_told_the_whole() {
    let mut world = World::new(1);
    for number in 0..2 {
        let site = Site { state: SiteState::Approved, ..world.site(number) };
        world.state.put(site);
        world.connect(number);
    }
    world.look();
    for missed in [HISTORY_LIMIT, HISTORY_LIMIT + 1] {
        world.settle();
        world.followers[0].wholes = 0;
        for _ in 0..missed {
            world.speak(1);
        }
        world.settle();
        assert_eq!(world.followers[0].wholes, usize::from(missed > HISTORY_LIMIT), "{missed}");
    }
}

/// A relay that missed more than is remembered is told the whole, and forgets what is not in it.
#[test]
fn a_relay_that_missed_much_is_told_the_whole() {
    let mut world = World::new(1);
    for number in 0..SITES {
        let site = Site { state: SiteState::Approved, ..world.site(number) };
        world.state.put(site);
    }
    world.settle();
    for _ in 0..2000 {
        world.state.set_policy(policy("[]"));
        world.state.set_policy(policy(r#"[["*", "*"]]"#));
    }
    world.state.set_policy(policy(r#"[["s1", "s2"]]"#));
    let access = world.state.access(&mut world.reader).unwrap();
    assert_eq!(access.part, penstock_proto::coordination::AccessPart::First);
    assert_eq!(access.joined.len(), 1);
    world.follower.take(access).unwrap();
    world.settle();
}

#[test]
fn the_same_said_again_is_no_change() {
    let mut world = World::new(1);
    for number in 0..2 {
        let site = Site { state: SiteState::Approved, ..world.site(number) };
        world.state.put(site);
        world.connect(number);
    }
    world.look();
    world.speak(1);
    world.settle();
    world.ports -= 1;
    world.speak(1);
    let session = world.followers[0].session.as_mut().unwrap();
    assert!(matches!(world.state.outgoing(session), Outgoing::Messages(messages) if messages.is_empty()));
}
