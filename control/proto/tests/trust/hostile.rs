//! A coordinator that somebody has broken into: it has the lease key and every document that was ever signed, but not
//! the authority's key. It shows gateways whatever it likes, in any order, and forges.
//!
//! Beside it runs a history of what the authority has really said. The oracle: let T be the latest event that took
//! something away and that a gateway was shown, or that its own statement refers to. Whatever the gateway routes to a
//! site, the authority allowed for that site at some moment from T on. So nobody is added, nobody comes back, no prefix
//! moves, and nothing is at two sites. When the coordinator is honest again and has a new lease key, everyone has
//! exactly what the authority says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use penstock_proto::coordination::{Peer, SiteKey};
use penstock_proto::trust::{
    Authority, Contents, Document, DocumentRefusal, LeaseLength, Lessor, OwnershipReason, PeerReason, Serial, State,
    UnixTime, Validity, is_overlay_address,
};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngCore, SeedableRng};

use super::overlay::{Gateway, Overlay, START, grant, key, net, peer, signing_key};

const SITES: u8 = 7;
const RELAY: u8 = 99;
const SUBNETS: [&str; 9] = [
    "10.1.0.0/16",
    "10.2.0.0/16",
    "10.3.0.0/16",
    "10.1.7.0/24",
    "10.2.7.0/24",
    "10.2.7.128/25",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "fd02::/48",
];

/// What the authority allows at a moment.
type Truth = BTreeMap<u8, Vec<IpNet>>;

/// Everything that the authority has ever said.
struct History {
    overlay: Overlay,
    truths: Vec<Truth>,
    /// The events at which something was taken away.
    cuts: BTreeSet<usize>,
    /// Each document with the event that it came from, and how many keys the authority had had by then.
    archive: Vec<(Document, usize, u32)>,
    generation: u32,
}

/// A gateway, and what the oracle knows about it.
struct Watched {
    gateway: Gateway,
    generation: u32,
    /// The latest cut that it knows of.
    known: usize,
}

#[derive(Default)]
struct Counts {
    admitted: usize,
    revoked: usize,
    held_back: usize,
    owned: usize,
    unstated: usize,
    moved: usize,
}

#[test]
fn a_hostile_coordinator_cuts_off_and_joins_and_does_no_more() {
    let mut counts = Counts::default();
    for seed in 0..30 {
        play(seed, &mut counts);
    }
    let Counts { admitted, revoked, held_back, owned, unstated, moved } = counts;
    // Each of these would be a success for the coordinator if the gateway did not check.
    for (count, what) in [
        (admitted, "peers admitted"),
        (revoked, "revoked statements refused"),
        (held_back, "statements without their revocations"),
        (owned, "prefixes inside another's"),
        (unstated, "peers without a statement"),
        (moved, "subnets that changed their site"),
    ] {
        assert!(count > 10, "{count} {what}");
    }
}

fn play(seed: u64, counts: &mut Counts) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut history = History::new();
    let mut watched: Vec<Watched> = (1..=3).map(|number| Watched::new(number, &history)).collect();
    for _ in 0..60 {
        history.overlay.now.0 += rng.random_range(0..3_600);
        if rng.random_ratio(2, 5) {
            history.happen(&mut rng, counts);
            continue;
        }
        let one = &mut watched[rng.random_range(0..3)];
        one.live(&mut rng, &history);
        let shown = history.show(&mut rng);
        one.show(&shown, &history, counts);
        let map = lie(&mut rng);
        one.check(&map, &history, counts, seed);
    }
    epilogue(history, &mut watched, seed);
}

impl History {
    fn new() -> Self {
        let overlay = Overlay::new(LeaseLength::DEFAULT);
        let archive = overlay.publication().documents().map(|document| (document.clone(), 0, 0)).collect();
        Self { overlay, truths: vec![Truth::new()], cuts: BTreeSet::new(), archive, generation: 0 }
    }

    /// The authority does something.
    fn happen(&mut self, rng: &mut StdRng, counts: &mut Counts) {
        let mut truth = self.truths.last().cloned().unwrap_or_default();
        let site = rng.random_range(1..=SITES);
        let now = self.overlay.now;
        let documents = match rng.random_range(0..20) {
            0..=11 => {
                let count = rng.random_range(0..3);
                let subnets: Vec<&str> = SUBNETS.choose_multiple(rng, count).copied().collect();
                let grant = grant(site, &subnets);
                let nets: Vec<IpNet> = grant.subnets.iter().copied().collect();
                let Ok(documents) = self.overlay.authority.approve(now, grant) else { return };
                let elsewhere = |net: &IpNet| {
                    self.truths.iter().flatten().any(|(other, nets)| *other != site && nets.contains(net))
                };
                counts.moved += nets.iter().filter(|net| elsewhere(net)).count();
                truth.insert(site, nets);
                documents
            }
            12..=16 => {
                truth.remove(&site);
                self.overlay.revoke(site)
            }
            17 => self
                .overlay
                .authority
                .approve_relay(now, key(RELAY), "relay".parse().unwrap(), Validity::default())
                .unwrap(),
            18 => self.overlay.authority.renew(now).unwrap(),
            _ => self.roll_over(rng),
        };
        let event = self.truths.len();
        let cut = |document: &Document| matches!(document.contents(), Contents::Revocations(_) | Contents::Rollover(_));
        if documents.iter().any(cut) {
            self.cuts.insert(event);
        }
        self.truths.push(truth);
        for document in documents {
            // The old key has signed the rollover.
            let rollover = matches!(document.contents(), Contents::Rollover(_));
            self.archive.push((document, event, self.generation - u32::from(rollover)));
        }
    }

    fn roll_over(&mut self, rng: &mut StdRng) -> Vec<Document> {
        if self.generation == 4 {
            return Vec::new();
        }
        self.generation += 1;
        let placeholder = Authority::found(signing_key(0));
        let authority = std::mem::replace(&mut self.overlay.authority, placeholder);
        let (authority, documents) = authority.roll_over(self.overlay.now, signing_key(rng.next_u64())).unwrap();
        self.overlay.authority = authority;
        documents
    }

    /// What the coordinator chooses to show: true documents of any age, leases for anyone, forgeries.
    fn show(&mut self, rng: &mut StdRng) -> Vec<Document> {
        let share = [0.1, 0.5, 0.9, 1.0][rng.random_range(0..4)];
        let (age, keeps_back) = (rng.random_range(0..=self.truths.len()), rng.random());
        let mut shown: Vec<Document> = self
            .archive
            .iter()
            .filter(|(document, event, _)| {
                let kept_back = keeps_back && matches!(document.contents(), Contents::Revocations(_));
                *event <= age && !kept_back && rng.random_bool(share)
            })
            .map(|(document, ..)| document.clone())
            .collect();
        if rng.random() {
            shown.shuffle(rng);
        }
        let lengths = [LeaseLength::Never, LeaseLength::DEFAULT, LeaseLength::from(1)];
        let mut lessor =
            Lessor::new(signing_key(2), *lengths.choose(rng).unwrap(), Serial(rng.random_range(0..u64::MAX / 2)));
        let date = UnixTime(rng.next_u64() >> rng.random_range(0..64));
        shown.extend((1..=SITES + 2).map(|site| lessor.lease(date, key(site))));
        // Its own key, or any other, in place of the authority's.
        let mut forger = Authority::found(signing_key(if rng.random() { 2 } else { 77 }));
        let site = rng.random_range(1..=SITES + 2);
        shown.extend(forger.approve(self.overlay.now, grant(site, &["0.0.0.0/0"])).unwrap());
        shown.extend(forger.revoke(self.overlay.now, [key(1)]).unwrap());
        shown.push(forger.spare(signing_key(78).authority()));
        shown
    }
}

impl Watched {
    fn new(number: u8, history: &History) -> Self {
        Self { gateway: Gateway::new(number, &history.overlay), generation: 0, known: 0 }
    }

    /// Time passes here too; processes end; now and then the state is lost.
    fn live(&mut self, rng: &mut StdRng, history: &History) {
        self.gateway.wall = match rng.random_range(0..10) {
            0 => UnixTime(rng.next_u64()),
            _ => history.overlay.now,
        };
        self.gateway.instant += Duration::from_secs(rng.random_range(0..86_400));
        match rng.random_range(0..12) {
            0 => {
                let fresh = Gateway::with_state(self.gateway.number, State::new(history.overlay.publication().root()));
                *self = Self { gateway: fresh, generation: 0, known: 0 };
            }
            1..=3 => self.gateway.restart(Duration::from_secs(rng.random_range(0..86_400))),
            _ => {}
        }
    }

    fn show(&mut self, shown: &[Document], history: &History, counts: &mut Counts) {
        let learnt = self.gateway.learn(shown);
        counts.revoked +=
            learnt.refused.iter().filter(|refusal| matches!(refusal, DocumentRefusal::Revoked(_))).count();
        // The oracle goes by what was really signed, when, and by which of the authority's keys.
        let real = |document: &Document| history.archive.iter().find(|(real, ..)| real == document);
        for (document, event, generation) in shown.iter().filter_map(real) {
            if matches!(document.contents(), Contents::Rollover(_)) && *generation == self.generation {
                self.generation += 1;
                self.known = self.known.max(*event);
            }
        }
        for (document, event, generation) in shown.iter().filter_map(real) {
            let cut = match document.contents() {
                Contents::Revocations(_) => Some(*event),
                Contents::Site(statement) if statement.grant.public_key == key(self.gateway.number) => {
                    history.cuts.range(..=*event).next_back().copied()
                }
                _ => None,
            };
            if *generation == self.generation {
                self.known = self.known.max(cut.unwrap_or(0));
            }
        }
    }

    /// Shows a map, and compares the result with the history.
    fn check(&mut self, map: &BTreeMap<SiteKey, Peer>, history: &History, counts: &mut Counts, seed: u64) {
        let now = self.gateway.now();
        let admission = self.gateway.verifier.admit(now, map);
        let mut routed: BTreeMap<IpNet, u8> = BTreeMap::new();
        for (site, admitted) in &admission.peers {
            let number = site.as_bytes()[0];
            let address = net(&format!("100.64.0.{number}/32"));
            let since = &history.truths[self.known..];
            assert!(since.iter().any(|truth| truth.contains_key(&number)), "{number} is back or added, seed {seed}");
            assert_eq!(admitted.name.as_str(), format!("site-{number}"));
            for prefix in &admitted.prefixes {
                let around = |nets: &Vec<IpNet>| nets.iter().any(|net| net.contains(prefix));
                let allowed = since.iter().any(|truth| truth.get(&number).is_some_and(around));
                let its = *prefix == address || (allowed && !is_overlay_address(prefix));
                assert!(its, "{prefix} moved to {number}, seed {seed}");
                assert_eq!(routed.insert(*prefix, number), None, "{prefix} is at two sites, seed {seed}");
            }
        }
        counts.admitted += admission.peers.len();
        counts.unstated += admission.refused.values().filter(|reason| **reason == PeerReason::Unstated).count();
        let held_back = |reason: &&PeerReason| matches!(reason, PeerReason::Revocations { .. });
        counts.held_back += admission.refused.values().filter(held_back).count();
        let owned = |(_, _, reason): &&(SiteKey, IpNet, OwnershipReason)| matches!(reason, OwnershipReason::Owned(..));
        counts.owned += admission.prefixes.iter().filter(owned).count();
        let relay = self.gateway.verifier.admit_relay(now, &key(RELAY)).is_ok();
        let real = |(document, ..): &(Document, usize, u32)| matches!(document.contents(), Contents::Relay(_));
        assert!(!relay || history.archive.iter().any(real), "seed {seed}");
    }
}

/// A map in which anyone has anything.
fn lie(rng: &mut StdRng) -> BTreeMap<SiteKey, Peer> {
    let mut offers: Vec<&str> =
        SUBNETS.into_iter().chain(["10.1.7.64/26", "10.2.8.0/24", "100.64.0.1/32", "10.9.0.0/16"]).collect();
    let sites = (1..=SITES + 2).filter_map(|number| {
        if rng.random_ratio(1, 4) {
            return None;
        }
        offers.shuffle(rng);
        let (key, mut lied) = peer(number, &offers[..rng.random_range(0..offers.len())]);
        lied.name = "liar".parse().unwrap();
        if rng.random_ratio(1, 8) {
            lied.virtual_address = [100, 64, 0, rng.random_range(1..9)].into();
        }
        Some((key, lied))
    });
    sites.collect()
}

/// The coordinator is honest again. Its lease key may have been stolen, so it has a new one.
fn epilogue(history: History, watched: &mut [Watched], seed: u64) {
    let History { mut overlay, truths, .. } = history;
    overlay.lessor = Lessor::new(signing_key(3), LeaseLength::DEFAULT, Serial(0));
    overlay.now.0 += 1;
    overlay.authority.certify(overlay.now, overlay.lessor.key(), LeaseLength::DEFAULT).unwrap();
    let told = overlay.told();
    let truth = truths.last().unwrap();
    let map: BTreeMap<SiteKey, Peer> = truth
        .iter()
        .map(|(number, nets)| {
            let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
            peer(*number, &nets.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .collect();
    for Watched { gateway, .. } in watched {
        let learnt = gateway.learn(&told);
        assert_eq!(learnt.refused, [], "seed {seed}");
        let now = gateway.now();
        let admission = gateway.verifier.admit(now, &map);
        for (number, nets) in truth.iter().filter(|(number, _)| **number != gateway.number) {
            match truth.contains_key(&gateway.number) {
                true => {
                    let admitted: BTreeSet<IpNet> = admission.peers[&key(*number)].prefixes.iter().copied().collect();
                    let address = net(&format!("100.64.0.{number}/32"));
                    assert_eq!(admitted, nets.iter().copied().chain([address]).collect(), "seed {seed}");
                }
                false => assert_eq!(admission.refused[&key(*number)], PeerReason::Own),
            }
        }
    }
    assert!(overlay.now > START);
}
