//! What the overlay's authority has signed, as far as this gateway has seen it, and so which sites of a map are
//! believed.
//!
//! The memory is a file, which is written before a new document has any effect. Only leases may wait a while: losing
//! one makes a lease shorter, never longer.
//!
//! Where the profile pins no authority, the coordinator's word alone counts, as it did before there were authorities.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use penstock_proto::Bucket;
use penstock_proto::coordination::{self, Map, Name, Relay, Service, SiteKey};
use penstock_proto::trust::{
    Admission, AdmittedPeer, AuthorityKey, Contents, Document, LeaseStanding, Now, PeerReason, State, UnixTime,
    Verifier,
};

use crate::coordinator::seen::Seen;
use crate::coordinator::{Config, seen};
use crate::key::PrivateKey;
use crate::problem::{Problem, Problems};
use crate::status;

/// How long after a document the map is judged by it, unless more follow: documents come in groups.
const SETTLE: Duration = Duration::from_millis(100);
/// Longest time between two judgements, which makes up for what a wrong clock has delayed.
const JUDGE_EVERY: Duration = Duration::from_secs(3_600);
/// How often the running time is written; time that is not written would be added to every lease again.
const WRITE_EVERY: Duration = Duration::from_secs(300);
/// Writes that are only about leases: the average interval, and how many in a row.
const LEASES_INTERVAL: Duration = Duration::from_secs(5);
const LEASES_BURST: u32 = 10;
/// Most names in one sentence.
const NAMED: usize = 5;

/// Most refusals that become problems and that `status` lists; a map could cause a million.
const REFUSED_LISTED: usize = 64;

/// Subjects of problems.
const LEASES: &str = "leases";
const DOCUMENTS: &str = "documents of the coordinator";
const PIN: &str = "Coordinator.Authority";

/// Decides which sites of a map this gateway believes.
pub struct Statements {
    file: Seen,
    private_key: PrivateKey,
    url: String,
    standing: Standing,
    /// Whether the file is out of date, and whether only leases are new.
    unsaved: Option<Unsaved>,
    /// When the file is to be written at the latest.
    write_at: Option<Instant>,
    lease_writes: Bucket,
    /// When the map is to be judged again.
    judge_at: Option<Instant>,
    problems: Problems,
}

enum Standing {
    /// The profile pins no authority. `signed` tells whether the coordinator shows signed documents.
    Unpinned { signed: bool },
    /// The rules of the pinned authority.
    Pinned(Box<Verifier>),
    /// The file cannot be believed, so no site is.
    Damaged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unsaved {
    Leases,
    Documents,
}

/// What is believed of a map.
#[derive(Debug, Default)]
pub struct Believed {
    /// Its sites.
    pub sites: BTreeMap<SiteKey, Site>,
    /// Its relays.
    pub relays: Vec<Relay>,
    /// What is not believed, up to a limit.
    pub refused: Vec<Refused>,
    /// How many more refusals there are.
    pub unlisted: usize,
}

/// A site that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub name: Name,
    /// Its tags.
    pub tags: Vec<Name>,
    /// Which flows it may start here; `None`: all. Nobody signs this, since the coordinator can only restrict by it.
    pub allow: Option<Vec<Service>>,
    /// The prefixes that it may have unless this gateway itself objects, in order.
    pub prefixes: Vec<IpNet>,
    /// What vouches for it, if an authority does.
    pub vouched: Option<Vouched>,
}

/// How long a site is vouched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouched {
    until: Option<UnixTime>,
    lease: LeaseStanding,
    judged: Instant,
}

/// A site, relay or prefix of a map that is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As the map names it.
    pub name: Name,
    /// Its public key.
    pub key: SiteKey,
    /// The refused prefix; `None`: the whole entry.
    pub prefix: Option<IpNet>,
    /// Why, in a sentence.
    pub reason: String,
    /// Who objects.
    pub by: By,
}

/// Who objects to a part of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// This gateway itself, whatever was signed.
    Gateway,
    /// The authority, which has not signed it.
    Authority,
    /// Nobody: this gateway itself is not vouched for, so nothing in the map can be believed.
    Doubt,
}

impl Statements {
    /// Continues with what was stored, if the profile pins an authority.
    pub fn open(now: Instant, config: &Config) -> Self {
        let mut statements = Self {
            file: Seen::new(&config.seen, &config.private_key),
            private_key: config.private_key.clone(),
            url: config.url.to_string(),
            standing: Standing::Unpinned { signed: false },
            unsaved: None,
            write_at: None,
            lease_writes: Bucket::default(),
            judge_at: None,
            problems: Problems::default(),
        };
        if let Some(authority) = config.authority {
            statements.pin(now, authority);
        }
        statements
    }

    fn pin(&mut self, now: Instant, authority: AuthorityKey) {
        let state = match seen::read(self.file.path(), &self.private_key) {
            Ok(Some(state)) if state.root() == authority => state,
            Ok(kept) => {
                if kept.is_some() {
                    tracing::warn!("the profile pins another authority: what the former one has signed is forgotten");
                }
                State::new(authority)
            }
            Err(error) => {
                let file = self.file.path().display();
                let sentence = format!(
                    "the signed documents that this gateway has seen: {error}; without them revoked sites could come \
                    back, so no site of the coordinator is believed"
                );
                let what_to_do =
                    format!("find out who changed the file; remove {file} and restart to use the pinned key again");
                self.problems.note(now, &file.to_string(), &sentence, &what_to_do);
                self.standing = Standing::Damaged;
                return;
            }
        };
        let own = SiteKey::from(*self.private_key.public_key().as_bytes());
        self.standing = Standing::Pinned(Box::new(Verifier::new(now, own, state)));
        self.write_at = Some(now + WRITE_EVERY);
    }

    /// Takes in documents that the coordinator shows. [`poll_timeout`](Self::poll_timeout) says when the map is to be
    /// judged by them, unless another map comes before.
    pub fn learn(&mut self, now: Instant, documents: &[Document]) {
        let refused = match &mut self.standing {
            Standing::Damaged => return,
            Standing::Unpinned { signed } => {
                *signed = true;
                self.note_missing_pin(now);
                return;
            }
            Standing::Pinned(verifier) => {
                let learnt = verifier.learn(both_clocks(now), documents);
                if learnt.changed {
                    let lease = |document: &Document| matches!(document.contents(), Contents::Lease(_));
                    let leases = documents.iter().all(lease);
                    self.learnt(now, if leases { Unsaved::Leases } else { Unsaved::Documents });
                }
                learnt.refused
            }
        };
        if let Some(refusal) = refused.first() {
            let what_to_do = "find out whether the coordinator was restored from a backup, or broken into";
            self.problems.note(now, DOCUMENTS, &refusal.to_string(), what_to_do);
        }
    }

    /// Takes in what relays pass on. It may be out of date, which is nobody's fault.
    pub fn learn_from_relays(&mut self, now: Instant, documents: &[Document]) {
        let Standing::Pinned(verifier) = &mut self.standing else { return };
        let common = |document: &&Document| {
            let contents = document.contents();
            matches!(contents, Contents::Rollover(_) | Contents::Revocations(_) | Contents::LeaseCertificate(_))
        };
        let learnt = verifier.learn(both_clocks(now), documents.iter().filter(common));
        if learnt.changed {
            self.learnt(now, Unsaved::Documents);
        }
    }

    /// Something is new: the file and the map have to follow.
    fn learnt(&mut self, now: Instant, what: Unsaved) {
        self.unsaved = self.unsaved.max(Some(what));
        self.judge_at = Some(self.judge_at.map_or(now + SETTLE, |at| at.min(now + SETTLE)));
    }

    /// The coordinator starts from the beginning.
    pub fn connected(&mut self) {
        self.problems.solved(DOCUMENTS);
    }

    fn note_missing_pin(&mut self, now: Instant) {
        let sentence = format!(
            "{} shows signed statements of its sites, but this gateway does not check them: its profile pins no \
            authority, so whoever controls the coordinator can add sites",
            self.url
        );
        let what_to_do = "`penstock set-config Coordinator.Authority=KEY`, with the key that \
                          `penstock-coordinator authority show` prints, and restart";
        self.problems.note(now, PIN, &sentence, what_to_do);
    }

    /// Decides which parts of a map are believed, after everything that this depends on has been written to disk.
    pub fn judge(&mut self, now: Instant, map: &Map) -> Believed {
        self.save(now, Unsaved::Documents);
        let clocks = both_clocks(now);
        self.judge_at = None;
        let believed = match &mut self.standing {
            Standing::Unpinned { .. } => return Believed::unchecked(map),
            Standing::Damaged => {
                let reason = "the file of signed documents that this gateway has seen cannot be believed";
                let mut believed = Believed::default();
                let relays = map.relays.iter().map(|relay| (&relay.public_key, &relay.name));
                for (key, name) in map.peers.iter().map(|(key, peer)| (key, &peer.name)).chain(relays) {
                    believed.refuse(|| Refused::whole(name, key, reason));
                }
                return believed;
            }
            Standing::Pinned(verifier) => {
                let admission = verifier.admit(clocks, &map.peers);
                let mut believed = Believed::of(now, admission, map);
                for relay in &map.relays {
                    match verifier.admit_relay(clocks, &relay.public_key) {
                        Ok(_) => believed.relays.push(relay.clone()),
                        Err(reason) => believed.refuse(|| Refused::by(&relay.name, &relay.public_key, reason)),
                    }
                }
                let next = verifier.next_change(clocks).unwrap_or(JUDGE_EVERY).min(JUDGE_EVERY);
                self.judge_at = Some(now + next);
                believed
            }
        };
        self.note_leases(now, &believed);
        believed
    }

    /// Warns of leases that the coordinator should have renewed by now.
    fn note_leases(&mut self, now: Instant, believed: &Believed) {
        let half = |site: &Site| match site.vouched?.lease {
            LeaseStanding::Half { left } => Some((left, site.name.clone())),
            LeaseStanding::Fresh { .. } | LeaseStanding::Never => None,
        };
        let mut ending: Vec<(Duration, Name)> = believed.sites.values().filter_map(half).collect();
        ending.sort();
        let Some((left, _)) = ending.first() else { return self.problems.solved(LEASES) };
        let (left, names) = (rounded(*left), listed(ending.iter().map(|(_, name)| name.as_str())));
        let sentence =
            format!("the coordinator has not renewed the lease of {names}; in {left} the first prefixes are blocked");
        let what_to_do = "make sure that this gateway reaches the coordinator, and that the sites are still approved";
        self.problems.note(now, LEASES, &sentence, what_to_do);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.judge_at, self.write_at, self.problems.poll_timeout()].into_iter().flatten().min()
    }

    /// Does what is due; returns whether the map is to be judged again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let retry = self.problems.poll_timeout();
        if self.write_at.is_some_and(|at| at <= now) || retry.is_some_and(|at| at <= now) {
            self.unsaved.get_or_insert(Unsaved::Leases);
            self.save(now, Unsaved::Leases);
        }
        self.judge_at.is_some_and(|at| at <= now)
    }

    /// Writes the file, if there is something new of at least this importance.
    fn save(&mut self, now: Instant, least: Unsaved) {
        let (Some(unsaved), Standing::Pinned(verifier)) = (self.unsaved, &mut self.standing) else { return };
        let subject = self.file.path().display().to_string();
        if !self.problems.may_try(now, &subject) {
            return;
        }
        if unsaved < least && !self.lease_writes.take(now, LEASES_INTERVAL, LEASES_INTERVAL * LEASES_BURST) {
            self.write_at = self.write_at.min(Some(now + LEASES_INTERVAL));
            return;
        }
        match self.file.save(both_clocks(now), verifier) {
            Ok(()) => {
                (self.unsaved, self.write_at) = (None, Some(now + WRITE_EVERY));
                self.problems.solved(&subject);
            }
            Err(e) => {
                // What was learnt takes effect all the same: it is at least as true as what was known.
                self.write_at = Some(now + WRITE_EVERY);
                let sentence = format!(
                    "the signed documents that this gateway has seen cannot be kept: {e}; after a restart older ones \
                    could be believed again"
                );
                self.problems.failed(now, &subject, &sentence, "make the state directory writable");
            }
        }
    }

    /// Stores what is known for the next start.
    pub fn stop(&mut self, now: Instant) {
        self.unsaved.get_or_insert(Unsaved::Documents);
        // Written as a whole, whatever has happened to the file meanwhile.
        self.file.renew();
        self.save(now, Unsaved::Leases);
    }

    /// The overlay's authority key.
    pub fn authority(&self) -> Option<AuthorityKey> {
        match &self.standing {
            Standing::Pinned(verifier) => Some(verifier.authority()),
            Standing::Unpinned { .. } | Standing::Damaged => None,
        }
    }

    /// What is wrong with the documents.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }
}

impl Believed {
    /// The whole map.
    fn unchecked(map: &Map) -> Self {
        let site = |peer: &coordination::Peer| {
            let prefixes: BTreeSet<IpNet> = prefixes(peer).collect();
            Site {
                name: peer.name.clone(),
                tags: peer.tags.clone(),
                allow: peer.allow.clone(),
                prefixes: prefixes.into_iter().collect(),
                vouched: None,
            }
        };
        let sites = map.peers.iter().map(|(key, peer)| (*key, site(peer))).collect();
        Self { sites, relays: map.relays.clone(), ..Self::default() }
    }

    fn of(judged: Instant, admission: Admission, map: &Map) -> Self {
        let named = |key: &SiteKey| map.peers.get(key).map(|peer| &peer.name);
        // Both are in the order of the keys.
        let mut peers = map.peers.iter();
        let sites = admission.peers.into_iter().map(|(key, AdmittedPeer { name, tags, prefixes, until, lease })| {
            let vouched = Some(Vouched { until, lease, judged });
            let allow = peers.find(|(other, _)| **other == key).and_then(|(_, peer)| peer.allow.clone());
            (key, Site { name, tags, allow, prefixes, vouched })
        });
        let mut believed = Self { sites: sites.collect(), ..Self::default() };
        for (key, reason) in &admission.refused {
            // A map does not name the gateway that it is for.
            if let (Some(name), false) = (named(key), *reason == PeerReason::Itself) {
                believed.refuse(|| Refused::by(name, key, *reason));
            }
        }
        for (key, prefix, reason) in &admission.prefixes {
            if let Some(name) = named(key) {
                let reason = || format!("{prefix} is not routed: {reason}");
                believed.refuse(|| Refused {
                    name: name.clone(),
                    key: *key,
                    prefix: Some(*prefix),
                    reason: reason(),
                    by: By::Authority,
                });
            }
        }
        believed
    }

    /// Notes a refusal, as long as there are not too many.
    pub fn refuse(&mut self, refused: impl FnOnce() -> Refused) {
        if self.refused.len() < REFUSED_LISTED {
            self.refused.push(refused());
        } else {
            self.unlisted += 1;
        }
    }
}

impl Refused {
    fn whole(name: &Name, key: &SiteKey, reason: &str) -> Self {
        let reason = format!("it is not accepted as part of the overlay: {reason}");
        Self { name: name.clone(), key: *key, prefix: None, reason, by: By::Authority }
    }

    fn by(name: &Name, key: &SiteKey, reason: PeerReason) -> Self {
        let by = if reason == PeerReason::Own { By::Doubt } else { By::Authority };
        Self { by, ..Self::whole(name, key, &reason.to_string()) }
    }

    /// What an administrator can do about it.
    pub fn what_to_do(&self) -> &'static str {
        match (self.by, self.prefix) {
            (By::Gateway, _) => "have the site offer another prefix, or admit this one by Accept in the profile",
            (By::Doubt, _) => {
                "have the authority approve this site, and upgrade the coordinator if it knows no authority; \
                 without one, take Coordinator.Authority out of the profile"
            }
            (By::Authority, Some(_)) => {
                "have the authority approve the site with this subnet, or the site offer another"
            }
            (By::Authority, None) => {
                "if it belongs to the overlay, have the authority approve it and see to it that this gateway reaches \
                 the coordinator"
            }
        }
    }

    /// The subject of the problem.
    pub fn subject(&self) -> String {
        match self.prefix {
            _ if self.by == By::Doubt => "this gateway's statement".to_owned(),
            Some(prefix) => format!("{prefix} of {}", self.name),
            None => format!("{} ({})", self.name, self.key),
        }
    }
}

impl Vouched {
    /// For `status`.
    pub fn status(&self, now: Instant) -> status::Statement {
        let gone = now.saturating_duration_since(self.judged);
        status::Statement {
            until: self.until.map(|until| until.0),
            lease_seconds: match self.lease {
                LeaseStanding::Never => None,
                LeaseStanding::Fresh { left } | LeaseStanding::Half { left } => {
                    Some(left.saturating_sub(gone).as_secs())
                }
            },
        }
    }
}

/// The prefixes that a map gives to a site.
pub fn prefixes(site: &coordination::Peer) -> impl Iterator<Item = IpNet> + '_ {
    site.subnets.iter().copied().chain([IpNet::from(std::net::IpAddr::from(site.virtual_address))])
}

fn both_clocks(instant: Instant) -> Now {
    Now { instant, wall: SystemTime::now().into() }
}

/// A duration in its largest unit, rounded down.
fn rounded(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A few names, and how many more there are.
pub(super) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let named = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests;
