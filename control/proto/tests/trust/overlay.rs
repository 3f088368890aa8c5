//! An overlay in miniature: an authority, a lease key, numbered sites, gateways with their clocks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_proto::coordination::{Peer, SiteKey};
use penstock_proto::trust::{
    Admission, Authority, Document, Learnt, LeaseLength, Lessor, Now, Publication, Serial, SigningKey, SiteGrant,
    State, Subnets, UnixTime, Verifier,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The date on which everything begins.
pub const START: UnixTime = UnixTime(1_800_000_000);
pub const DAY: Duration = Duration::from_secs(86_400);

pub fn signing_key(seed: u64) -> SigningKey {
    SigningKey::generate(&mut StdRng::seed_from_u64(seed))
}

pub fn key(number: u8) -> SiteKey {
    [number; 32].into()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The grant for the site with this number.
pub fn grant(number: u8, subnets: &[&str]) -> SiteGrant {
    SiteGrant {
        public_key: key(number),
        name: format!("site-{number}").parse().unwrap(),
        virtual_address: [100, 64, 0, number].into(),
        tags: Default::default(),
        subnets: Subnets::new(subnets.iter().map(|text| net(text))).unwrap(),
        validity: Default::default(),
    }
}

/// A site as a map describes it.
pub fn peer(number: u8, subnets: &[&str]) -> (SiteKey, Peer) {
    let peer = Peer {
        name: format!("site-{number}").parse().unwrap(),
        virtual_address: [100, 64, 0, number].into(),
        subnets: subnets.iter().map(|text| net(text)).collect(),
        tags: Vec::new(),
        allow: None,
        reachability: None,
    };
    (key(number), peer)
}

/// The side that signs.
pub struct Overlay {
    pub authority: Authority,
    pub lessor: Lessor,
    pub now: UnixTime,
}

impl Overlay {
    pub fn new(length: LeaseLength) -> Self {
        let mut authority = Authority::found(signing_key(1));
        let lessor = Lessor::new(signing_key(2), length, Serial(0));
        authority.certify(START, lessor.key(), LeaseLength::DEFAULT.max(length)).unwrap();
        Self { authority, lessor, now: START }
    }

    pub fn approve(&mut self, number: u8, subnets: &[&str]) -> Vec<Document> {
        self.authority.approve(self.now, grant(number, subnets)).unwrap()
    }

    pub fn revoke(&mut self, number: u8) -> Vec<Document> {
        self.authority.revoke(self.now, [key(number)]).unwrap()
    }

    pub fn publication(&self) -> &Publication {
        self.authority.publication()
    }

    /// Everything that an honest coordinator shows: every document, and a lease for every site.
    pub fn told(&mut self) -> Vec<Document> {
        let mut told: Vec<Document> = self.publication().documents().cloned().collect();
        let sites: Vec<SiteKey> = self.publication().sites().map(|site| site.grant.public_key).collect();
        told.extend(sites.into_iter().map(|site| self.lessor.lease(self.now, site)));
        told
    }
}

/// The side that believes.
pub struct Gateway {
    pub number: u8,
    pub verifier: Verifier,
    pub instant: Instant,
    pub wall: UnixTime,
}

impl Gateway {
    pub fn new(number: u8, overlay: &Overlay) -> Self {
        Self::with_state(number, State::new(overlay.publication().root()))
    }

    pub fn with_state(number: u8, state: State) -> Self {
        Self::build(number, key(number), state)
    }

    /// The gateway of a site whose key is not that of its number.
    pub fn with_own(own: SiteKey, overlay: &Overlay) -> Self {
        Self::build(0, own, State::new(overlay.publication().root()))
    }

    fn build(number: u8, own: SiteKey, state: State) -> Self {
        let instant = Instant::now();
        Self { number, verifier: Verifier::new(instant, own, state), instant, wall: START }
    }

    pub fn now(&self) -> Now {
        Now { instant: self.instant, wall: self.wall }
    }

    /// Runs for this long, with a clock that is right.
    pub fn run(&mut self, time: Duration) {
        self.instant += time;
        self.wall.0 += time.as_secs();
    }

    pub fn learn(&mut self, documents: &[Document]) -> Learnt {
        let now = self.now();
        self.verifier.learn(now, documents)
    }

    pub fn admit<const N: usize>(&mut self, peers: [(SiteKey, Peer); N]) -> Admission {
        let now = self.now();
        self.verifier.admit(now, &BTreeMap::from(peers))
    }

    /// The prefixes accepted for a site that is announced with these subnets, without its virtual address; `None` if
    /// the site is refused.
    pub fn prefixes(&mut self, number: u8, subnets: &[&str]) -> Option<Vec<IpNet>> {
        let admission = self.admit([peer(number, subnets)]);
        let address = net(&format!("100.64.0.{number}/32"));
        let admitted = admission.peers.get(&key(number))?;
        assert!(admitted.prefixes.contains(&address));
        Some(admitted.prefixes.iter().filter(|prefix| **prefix != address).copied().collect())
    }

    /// Another process of the same gateway continues from the stored state, after the machine was off for this long.
    pub fn restart(&mut self, off: Duration) {
        let text = serde_json::to_string(self.verifier.state(self.instant)).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let wall = UnixTime(self.wall.0 + off.as_secs());
        *self = Self { wall, ..Self::with_state(self.number, state) };
    }
}
