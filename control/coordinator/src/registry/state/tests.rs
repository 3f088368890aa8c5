//! Random histories: whatever happens, each follower's map becomes what it would be told from scratch, and nobody is
//! told about a site that was never visible to it.

use super::*;
use crate::policy::{Link as PolicyLink, Selector};
use crate::registry::transition::Transition;
use crate::relay::RelayServer;
use crate::relay::access::Follower as RelayFollower;
use penstock_proto::coordination::{Candidate, CandidateKind, CoordinatorMessage, Map};
use penstock_proto::relay::RelayLimits;
use penstock_proto::trust::Subnets;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const SITES: u8 = 7;

/// The gateway of one site.
struct Follower {
    number: u8,
    session: Option<Session>,
    map: Option<Map>,
    /// Maps that it has had, and with which it may come back.
    kept: Vec<Map>,
    /// The peers that it was ever allowed to know.
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
    now: Instant,
}

fn key(number: u8) -> SiteKey {
    [number + 1; 32].into()
}

fn policy(links: &str) -> Policy {
    Policy::parse(&format!("{{\"Links\": {links}}}")).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut state = State::new(1, Policy::default(), Servers::default(), Vec::new());
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
        let (rng, now) = (StdRng::seed_from_u64(seed), Instant::now());
        Self { state, reader, follower: relay_follower, relay, rng, followers, ports: 0, now }
    }

    /// As the registry does it, but with other events between the steps.
    fn set_policy(&mut self, policy: Policy) {
        let (before, sites) = (self.state.links().clone(), self.state.numbered());
        let mut transition = Transition::plan(&before, policy, &sites);
        drop(before);
        drop(transition.begin(&mut self.state));
        self.look();
        loop {
            let number = self.rng.random_range(0..SITES);
            match self.rng.random_range(0..4) {
                0 => self.speak(number),
                1 => self.listen(number),
                2 => self.connect(number),
                _ => {}
            }
            if !transition.step(&mut self.state) {
                break;
            }
        }
    }

    /// One random event.
    fn step(&mut self) {
        let number = self.rng.random_range(0..SITES);
        match self.rng.random_range(0..10) {
            0 if self.rng.random_range(0..3) == 0 => self.state.remove(&key(number)),
            0..=1 => {
                let site = self.site(number);
                self.state.put(site);
            }
            2 => {
                let text = [
                    "[]",
                    r#"[["*", "*"]]"#,
                    r#"[["tag:a", "tag:b"]]"#,
                    r#"[["tag:a", "*"]]"#,
                    r#"[["s1", "s2"]]"#,
                    r#"[{"From": "tag:a", "To": "*", "Allow": ["icmp"]}]"#,
                    r#"[{"From": "*", "To": "*", "Allow": ["tcp/443"]}, {"From": "tag:a", "To": "tag:b", "Allow": ["tcp"]}]"#,
                    r#"[{"From": "s1", "To": "tag:b", "Allow": []}, ["tag:a", "tag:a"]]"#,
                ];
                let links = text[self.rng.random_range(0..text.len())];
                self.set_policy(policy(links));
            }
            3..=5 => self.speak(number),
            6 => {
                self.connect(number);
                // A relay that reads in between, and one that comes back with what it knew.
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
        let subnets: Vec<ipnet::IpNet> =
            vec![format!("10.{number}.{}.0/24", self.rng.random_range(0..3)).parse().unwrap()];
        Site {
            key: key(number),
            name: format!("s{number}").parse().unwrap(),
            virtual_address: std::net::Ipv4Addr::new(100, 64, 0, number),
            in_force: subnets.clone(),
            granted: Subnets::new(subnets.clone()).ok(),
            subnets,
            tags: tags[self.rng.random_range(0..4)].iter().map(|tag| tag.parse().unwrap()).collect(),
            state: state[self.rng.random_range(0..4)],
            created: 0,
            last_seen: None,
            ends: None,
            channel_binding: Default::default(),
        }
    }

    fn speak(&mut self, number: u8) {
        self.ports = self.ports.wrapping_add(1);
        let address = (std::net::Ipv4Addr::new(192, 0, 2, number), self.ports).into();
        let candidates = vec![Candidate { kind: CandidateKind::Host, address }];
        if let Some(session) = &self.followers[usize::from(number)].session {
            self.state.set_reachability(session, Reachability { candidates, ..Reachability::default() });
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
        self.now += Duration::from_secs(3);
        let known = follower.map.as_ref().map(Map::known);
        follower.session = self.state.connect(self.now, &key(number), known).ok();
    }

    /// The gateway reads what there is to tell.
    fn listen(&mut self, number: u8) {
        let follower = &mut self.followers[usize::from(number)];
        let Some(session) = &mut follower.session else { return };
        let messages = match self.state.outgoing(session) {
            Outgoing::End(_) => return follower.session = None,
            Outgoing::Messages(draft) => draft.messages(),
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

    /// Notes who may know whom.
    fn look(&mut self) {
        let (policy, sites): (_, Vec<&Arc<Site>>) = (self.state.links().policy(), self.state.sites().collect());
        for follower in &mut self.followers {
            let Some(own) = sites.iter().find(|site| site.key == key(follower.number)) else { continue };
            follower.visible.extend(sites.iter().filter(|site| policy.joins(own, site)).map(|site| site.key));
        }
    }

    /// A site as another should be told about it, according to the policy itself.
    fn seen(&self, number: SiteNumber, by: SiteNumber) -> Seen {
        let reach = self.state.links().policy().reach(self.state.site_of(number), self.state.site_of(by));
        self.state.seen(number, reach.into())
    }

    /// The map that a site should have, according to the policy itself.
    fn map(&self, number: SiteNumber, version: MapVersion) -> Map {
        let others = (0..self.state.count()).filter(|other| {
            let removed = self.state.records[*other as usize].removed;
            !removed && self.state.links().policy().joins(self.state.site_of(number), self.state.site_of(*other))
        });
        let news = News::Whole {
            version,
            peers: others.map(|other| self.seen(other, number)).collect(),
            servers: Arc::default(),
            known: None,
        };
        match (Draft { news: Some(news), ..Draft::default() }).messages().pop() {
            Some(CoordinatorMessage::Map(map)) => map,
            other => panic!("no map but {other:?}"),
        }
    }

    /// All connected gateways read everything, and then know what they would be told from scratch.
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
            assert_eq!(joined, self.state.links().policy().joins(one, other), "{} {}", one.name, other.name);
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
                let expected = self.map(place, now);
                assert_eq!(follower.map, Some(expected), "site {number}");
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

/// A relay that missed more than is remembered is told the whole state, and forgets what is not in it.
#[test]
fn a_relay_that_missed_much_is_told_the_whole() {
    let mut world = World::new(1);
    for number in 0..SITES {
        let site = Site { state: SiteState::Approved, ..world.site(number) };
        world.state.put(site);
    }
    world.settle();
    for _ in 0..2000 {
        world.set_policy(policy("[]"));
        world.set_policy(policy(r#"[["*", "*"]]"#));
    }
    world.set_policy(policy(r#"[["s1", "s2"]]"#));
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
    let Outgoing::Messages(draft) = world.state.outgoing(session) else { panic!("it ends") };
    assert_eq!(draft.messages(), []);
}

/// Each message concerns only the neighbours, however many other sites there are.
#[test]
fn a_message_of_one_of_ten_thousand_sites_takes_less_than_a_millisecond() {
    const COUNT: u32 = 10_000;
    let mut rng = StdRng::seed_from_u64(1);
    let sites = (0..COUNT).map(|number| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let subnets: Vec<ipnet::IpNet> = vec![format!("10.{}.{}.0/24", number / 250, number % 250).parse().unwrap()];
        Site {
            key: key.into(),
            name: format!("s{number}").parse().unwrap(),
            virtual_address: std::net::Ipv4Addr::from_bits(0x6440_0001 + number),
            in_force: subnets.clone(),
            granted: Subnets::new(subnets.clone()).ok(),
            subnets,
            tags: BTreeSet::new(),
            state: SiteState::Approved,
            created: 0,
            last_seen: None,
            ends: None,
            channel_binding: Default::default(),
        }
    });
    let mut link = || Selector::Site(format!("s{}", rng.random_range(0..COUNT)).parse().unwrap());
    let links = (0..100_000).map(|_| PolicyLink::Pair(link(), link())).collect();
    let policy = Policy { links, ..Policy::default() };
    let sites: Vec<Site> = sites.collect();
    let mut state = State::new(1, policy, Servers::default(), sites.clone());
    let now = Instant::now();
    let mut sessions: Vec<Session> = sites.iter().map(|site| state.connect(now, &site.key, None).unwrap()).collect();
    let start = Instant::now();
    for (number, session) in sessions.iter().enumerate().take(1000) {
        let address = ([192, 0, 2, 1], number as u16 + 1).into();
        let candidates = vec![Candidate { kind: CandidateKind::Host, address }];
        state.set_reachability(session, Reachability { candidates, ..Reachability::default() });
    }
    let each = start.elapsed() / 1000;
    let start = Instant::now();
    for session in sessions.iter_mut().take(1000) {
        assert!(matches!(state.outgoing(session), Outgoing::Messages(_)));
    }
    println!("a message: {each:?}; what one gateway is told: {:?}", start.elapsed() / 1000);
    assert!(each < Duration::from_millis(1), "{each:?}");
}
