//! What a gateway believes of a coordinator: [`learn`](Verifier::learn) takes in signed documents,
//! [`admit`](Verifier::admit) says which peers of a map they allow.
//!
//! The dates in statements are compared with two clocks, neither of which is trusted alone. A statement
//! *begins* when the gateway's wall clock says so. It *ends* when a date has certainly passed: one that both
//! the coordinator, in a lease, and the gateway's own clock have reached, plus the time that the gateway
//! has run since. Leases are counted in running time only. So a wrong clock ends nothing, and neither does
//! a coordinator that lies about the date.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::ownership::{Owner, OwnershipReason, attribute};
use super::publication::{DocumentRefusal, ROLLOVERS_LIMIT, SUBJECTS_LIMIT};
use super::state::{HeldLease, Increment, State, Subject};
use super::statement::{
    Contents, Lease, LeaseCertificate, RelayStatement, Revocations, Rollover, Serial, SiteGrant, SiteStatement,
};
use super::{AuthorityKey, Document, Now, UnixTime, Validity};
use crate::coordination::{Name, Peer, SiteKey};

/// Judges what a coordinator says by what the authority has signed.
#[derive(Debug)]
pub struct Verifier {
    own: SiteKey,
    state: State,
    /// Until when `state.running` is counted, and what was less than a second.
    counted: Instant,
    rest: Duration,
    /// What was learnt since [`take_increments`](Verifier::take_increments) was called last.
    increments: Vec<Increment>,
}

/// The outcome of taking documents in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// Whether the state must be stored, and the map judged again.
    pub changed: bool,
    /// What was not taken, which an honest coordinator does not send.
    pub refused: Vec<DocumentRefusal>,
}

/// What is believed of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The peers, with what may be routed to each, unless [`judge`](super::judge) refuses it.
    pub peers: BTreeMap<SiteKey, AdmittedPeer>,
    /// Who is not believed to be a site, and why. What was routed to them stays blocked.
    pub refused: BTreeMap<SiteKey, PeerReason>,
    /// What a peer may not have, and why.
    pub prefixes: Vec<(SiteKey, IpNet, OwnershipReason)>,
}

/// A peer that the authority vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmittedPeer {
    /// The name that the authority gives it, whatever the map says.
    pub name: Name,
    /// The tags that the authority gives it, in order.
    pub tags: Vec<Name>,
    /// Its virtual address, and its announced subnets, in order.
    pub prefixes: Vec<IpNet>,
    /// When its statement ends, if it does.
    pub until: Option<UnixTime>,
    /// How long it stays so without the coordinator.
    pub lease: LeaseStanding,
}

/// How far a lease has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseStanding {
    /// It does not end.
    Never,
    /// Less than half of it has run.
    Fresh {
        /// What is left.
        left: Duration,
    },
    /// Half of it has run: time for a warning.
    Half {
        /// What is left.
        left: Duration,
    },
}

/// Why a peer or relay of a map is not believed: a sentence for the gateway's administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerReason {
    /// It is the gateway that asks.
    #[error("it is this gateway itself")]
    Itself,
    /// This gateway's own statement is missing or not valid, so nothing tells how old the rest may be.
    #[error("the coordinator shows no valid statement of this gateway itself")]
    Own,
    /// There is no statement, or it was revoked.
    #[error("the overlay's authority has not signed that it belongs to the overlay, or has revoked it")]
    Unstated,
    /// The statement is of a relay where a site is wanted, or the other way round.
    #[error("the overlay's authority has signed that it is something else")]
    OtherKind,
    /// A list of revocations is missing.
    #[error("the coordinator withholds revocations: list {needed} is needed, the latest here is {known}")]
    Revocations {
        /// What the statement refers to.
        needed: Serial,
        /// What is known.
        known: Serial,
    },
    /// It is not a site yet.
    #[error("its time in the overlay has not begun")]
    NotYet,
    /// It is not a site any more.
    #[error("its time in the overlay is over")]
    Ended,
    /// The coordinator gave no lease.
    #[error("the coordinator does not keep its statement alive")]
    Unleased,
    /// The lease has run out.
    #[error("the coordinator has not renewed its lease in time")]
    LeaseEnded,
}

impl Verifier {
    /// Continues from what was stored, or from [`State::new`] with the key from the profile. `own` is this
    /// gateway's public key.
    #[must_use]
    pub fn new(now: Instant, own: SiteKey, state: State) -> Self {
        Self { own, state, counted: now, rest: Duration::ZERO, increments: Vec::new() }
    }

    /// The key that stands for the overlay: the pinned one, or its latest successor.
    #[must_use]
    pub fn authority(&self) -> AuthorityKey {
        self.state.authority()
    }

    /// What must be stored. It changes by [`learn`](Self::learn) and by the passing of time.
    pub fn state(&mut self, now: Instant) -> &State {
        self.count(now);
        &self.state
    }

    /// What would have to be stored, when nothing more is to be learnt.
    #[must_use]
    pub fn into_state(self) -> State {
        self.state
    }

    /// Takes documents in, in any order, except that older rollovers come first. Those that are
    /// known cost next to nothing; each new one costs a verification, a twentieth of a millisecond.
    pub fn learn<'a>(&mut self, now: Now, documents: impl IntoIterator<Item = &'a Document>) -> Learnt {
        self.count(now.instant);
        let mut documents: Vec<&Document> = documents.into_iter().collect();
        documents.sort_by_key(|document| rank(document.contents()));
        let (mut new, mut refused) = (Vec::new(), Vec::new());
        for document in documents {
            match self.learn_one(now, document) {
                Ok(true) => new.push(document.clone()),
                Ok(false) => {}
                Err(refusal) => refused.push(refusal),
            }
        }
        let changed = !new.is_empty();
        if changed {
            self.increments.push(Increment { running: self.state.running, wall: now.wall, documents: new });
        }
        Learnt { changed, refused }
    }

    /// What has to be added to the state that was stored last, so that it is the present one: what was learnt since
    /// this was called last, and the running time.
    pub fn take_increments(&mut self, now: Now) -> Vec<Increment> {
        self.count(now.instant);
        let mut increments = std::mem::take(&mut self.increments);
        increments.push(Increment { running: self.state.running, wall: now.wall, documents: Vec::new() });
        increments
    }

    /// Learns again what was learnt, and stored, before this process started.
    pub fn replay(&mut self, increments: &[Increment]) {
        for Increment { running, wall, documents } in increments {
            self.state.running = self.state.running.max(*running);
            self.learn(Now { instant: self.counted, wall: *wall }, documents);
        }
        self.increments.clear();
    }

    /// Says which peers of a map are sites of the overlay, and which of the announced prefixes are theirs.
    pub fn admit(&mut self, now: Now, peers: &BTreeMap<SiteKey, Peer>) -> Admission {
        self.count(now.instant);
        let mut refused = BTreeMap::new();
        // Sites are identified by their positions here, in the order of the keys: a map may have thousands of sites,
        // and this is done for each change of it.
        let mut admitted: Vec<(SiteKey, AdmittedPeer, &SiteGrant)> = Vec::new();
        let mut others = Vec::new();
        let own = self.site(now, self.state.subjects.get(&self.own)).map_err(|_| PeerReason::Own);
        let mut subjects = self.state.subjects.iter().peekable();
        for (key, peer) in peers {
            while subjects.next_if(|(subject, _)| *subject < key).is_some() {}
            let subject = subjects.next_if(|(subject, _)| *subject == key).map(|(_, subject)| subject);
            let verdict = match *key == self.own {
                true => Err(PeerReason::Itself),
                false => own.and_then(|_| self.peer(now, subject)),
            };
            match verdict {
                Ok((grant, lease)) => {
                    let place = admitted.len();
                    let announced =
                        peer.subnets.iter().copied().chain([IpNet::from(IpAddr::from(peer.virtual_address))]);
                    // A prefix that is stated for a site is its own, since no longer one contains it: so most maps need
                    // no sorting.
                    let (prefixes, doubtful): (Vec<_>, Vec<_>) =
                        announced.partition(|prefix| stated_of(grant).any(|stated| stated == *prefix));
                    others.extend(doubtful.into_iter().map(|prefix| (prefix, place)));
                    let (name, until) = (grant.name.clone(), grant.validity.until());
                    let tags = grant.tags.iter().cloned().collect();
                    admitted.push((*key, AdmittedPeer { name, tags, prefixes, until, lease }, grant));
                }
                Err(reason) => drop(refused.insert(*key, reason)),
            }
        }
        let mut prefixes = Vec::new();
        if !others.is_empty() {
            let stated = admitted
                .iter()
                .enumerate()
                .flat_map(|(place, (_, _, grant))| stated_of(grant).map(move |prefix| (prefix, place)));
            for (prefix, place, owner) in attribute(stated.collect(), others) {
                let reason = match owner {
                    Owner::Itself => {
                        admitted[place].1.prefixes.push(prefix);
                        continue;
                    }
                    Owner::NotStated => OwnershipReason::NotStated,
                    Owner::Another(subnet, another) => OwnershipReason::Owned(subnet, admitted[another].0),
                };
                prefixes.push((admitted[place].0, prefix, reason));
            }
        }
        for (_, peer, _) in &mut admitted {
            peer.prefixes.sort_unstable();
            peer.prefixes.dedup();
        }
        Admission { peers: admitted.into_iter().map(|(key, peer, _)| (key, peer)).collect(), refused, prefixes }
    }

    /// Whether a key is that of a relay of the overlay. Relays carry nothing in the clear and need no lease.
    ///
    /// # Errors
    /// Why it is not.
    pub fn admit_relay(&mut self, now: Now, key: &SiteKey) -> Result<&Name, PeerReason> {
        self.count(now.instant);
        self.site(now, self.state.subjects.get(&self.own)).map_err(|_| PeerReason::Own)?;
        match self.state.subjects.get(key).map(|subject| subject.statement.contents()) {
            Some(Contents::Relay(RelayStatement { revocations, name, validity, .. })) => {
                self.holds(now, *revocations, validity).map(|()| name)
            }
            Some(_) => Err(PeerReason::OtherKind),
            None => Err(PeerReason::Unstated),
        }
    }

    /// In how long [`admit`](Self::admit) may say something else without anything having been learnt: a
    /// lease is at its half or end, or a statement begins or ends.
    #[must_use]
    pub fn next_change(&self, now: Now) -> Option<Duration> {
        let running = self.running(now.instant);
        let leases = self.state.subjects.values().filter_map(|subject| subject.lease).filter_map(|lease| {
            let (since, length) = (Duration::from_secs(lease.since), self.length(&lease)?);
            let ahead = |at: Duration| at.checked_sub(running).filter(|left| !left.is_zero());
            ahead(since + length / 2).or_else(|| ahead(since + length))
        });
        let seconds = |at: UnixTime, now: UnixTime| at.0.checked_sub(now.0).filter(|left| *left > 0);
        let dates = self.state.subjects.values().filter_map(|subject| {
            let validity = validity(subject.statement.contents())?;
            let from = validity.from().and_then(|from| seconds(from, now.wall.max(self.state.date())));
            let until = validity.until().and_then(|until| seconds(until, self.state.date()));
            from.into_iter().chain(until).min().map(Duration::from_secs)
        });
        leases.chain(dates).min()
    }

    /// The signature is verified last: what would change nothing is refused without the work.
    fn learn_one(&mut self, now: Now, document: &Document) -> Result<bool, DocumentRefusal> {
        match document.contents() {
            Contents::Rollover(rollover) => self.learn_rollover(document, *rollover),
            Contents::Revocations(list) => self.learn_revocations(document, list),
            Contents::LeaseCertificate(certificate) => self.learn_certificate(document, certificate),
            Contents::Site(SiteStatement { serial, grant: SiteGrant { public_key: subject, .. }, .. })
            | Contents::Relay(RelayStatement { serial, public_key: subject, .. }) => {
                self.learn_statement(document, *serial, *subject)
            }
            Contents::Lease(lease) => self.learn_lease(now, document, lease),
        }
    }

    fn learn_rollover(&mut self, document: &Document, rollover: Rollover) -> Result<bool, DocumentRefusal> {
        // A coordinator tells every gateway all rollovers.
        if self.state.past.contains(&rollover.from) {
            return Ok(false);
        }
        if rollover.from != self.state.authority {
            return Err(DocumentRefusal::Signature);
        }
        self.verify(document)?;
        if self.state.past.contains(&rollover.to) || rollover.to == rollover.from {
            return Err(DocumentRefusal::Old);
        }
        if self.state.past.len() == ROLLOVERS_LIMIT {
            return Err(DocumentRefusal::TooMany);
        }
        self.state.past.push(rollover.from);
        self.state.authority = rollover.to;
        // What the old key signed is void, so nothing of it can come back, and its serials have no meaning.
        self.state.revocations = Revocations::default();
        self.state.certificate = None;
        self.state.subjects.clear();
        Ok(true)
    }

    fn learn_revocations(&mut self, document: &Document, list: &Revocations) -> Result<bool, DocumentRefusal> {
        let known = self.state.revocations.serial;
        if list.serial == known {
            return Ok(false);
        }
        if list.serial < known {
            return Err(DocumentRefusal::Old);
        }
        self.verify(document)?;
        self.state.revocations.merge(list);
        let void = &self.state.revocations;
        self.state.subjects.retain(|key, subject| !void.void(key, subject.statement.contents().serial()));
        Ok(true)
    }

    fn learn_certificate(
        &mut self,
        document: &Document,
        certificate: &LeaseCertificate,
    ) -> Result<bool, DocumentRefusal> {
        if self.state.certificate.as_ref() == Some(document) {
            return Ok(false);
        }
        let known = self.state.certificate();
        if known.is_some_and(|known| certificate.serial <= known.serial) {
            return Err(DocumentRefusal::Old);
        }
        self.verify(document)?;
        if known.is_some_and(|known| certificate.key != known.key) {
            self.state.subjects.values_mut().for_each(|subject| subject.lease = None);
        }
        self.state.certificate = Some(document.clone());
        Ok(true)
    }

    fn learn_statement(
        &mut self,
        document: &Document,
        serial: Serial,
        subject: SiteKey,
    ) -> Result<bool, DocumentRefusal> {
        let known = self.state.subjects.get(&subject);
        if known.is_some_and(|known| known.statement == *document) {
            return Ok(false);
        }
        if self.state.revocations.void(&subject, serial) {
            return Err(DocumentRefusal::Revoked(subject));
        }
        if known.is_some_and(|known| serial <= known.statement.contents().serial()) {
            return Err(DocumentRefusal::Old);
        }
        if known.is_none() && self.state.subjects.len() >= SUBJECTS_LIMIT {
            return Err(DocumentRefusal::TooMany);
        }
        self.verify(document)?;
        let lease = known.and_then(|known| known.lease);
        self.state.subjects.insert(subject, Subject { statement: document.clone(), lease });
        Ok(true)
    }

    fn learn_lease(&mut self, now: Now, document: &Document, lease: &Lease) -> Result<bool, DocumentRefusal> {
        let certificate = self.state.certificate().ok_or(DocumentRefusal::Uncertified)?;
        let known = self.state.subjects.get(&lease.site).ok_or(DocumentRefusal::Unstated(lease.site))?;
        if known.lease.is_some_and(|known| known.serial == lease.serial) {
            return Ok(false);
        }
        if known.lease.is_some_and(|known| known.serial > lease.serial) {
            return Err(DocumentRefusal::Old);
        }
        if !document.is_leased_by(&certificate.key) {
            return Err(DocumentRefusal::Signature);
        }
        let date = lease.issued.min(now.wall);
        if date > self.state.date() {
            (self.state.date, self.state.dated) = (date, self.state.running);
        }
        let since = self.state.running;
        if let Some(subject) = self.state.subjects.get_mut(&lease.site) {
            subject.lease = Some(HeldLease { serial: lease.serial, length: lease.length, since });
        }
        Ok(true)
    }

    fn verify(&self, document: &Document) -> Result<(), DocumentRefusal> {
        if document.is_signed_by(&self.state.authority) { Ok(()) } else { Err(DocumentRefusal::Signature) }
    }

    fn peer<'a>(&self, now: Now, subject: Option<&'a Subject>) -> Result<(&'a SiteGrant, LeaseStanding), PeerReason> {
        let grant = self.site(now, subject)?;
        let lease = subject.and_then(|subject| subject.lease).ok_or(PeerReason::Unleased)?;
        Ok((grant, self.standing(now.instant, &lease)?))
    }

    /// What is stated about a site at this time, leases apart.
    fn site<'a>(&self, now: Now, subject: Option<&'a Subject>) -> Result<&'a SiteGrant, PeerReason> {
        let subject = subject.ok_or(PeerReason::Unstated)?;
        let Contents::Site(statement) = subject.statement.contents() else { return Err(PeerReason::OtherKind) };
        self.holds(now, statement.revocations, &statement.grant.validity)?;
        Ok(&statement.grant)
    }

    fn holds(&self, now: Now, needed: Serial, validity: &Validity) -> Result<(), PeerReason> {
        let (known, date) = (self.state.revocations.serial, self.state.date());
        if needed > known {
            return Err(PeerReason::Revocations { needed, known });
        }
        if validity.from().is_some_and(|from| from > now.wall.max(date)) {
            return Err(PeerReason::NotYet);
        }
        match validity.until() {
            Some(until) if until <= date => Err(PeerReason::Ended),
            _ => Ok(()),
        }
    }

    fn standing(&self, now: Instant, lease: &HeldLease) -> Result<LeaseStanding, PeerReason> {
        let Some(length) = self.length(lease) else { return Ok(LeaseStanding::Never) };
        let gone = self.running(now).saturating_sub(Duration::from_secs(lease.since));
        let left = length.checked_sub(gone).filter(|left| !left.is_zero()).ok_or(PeerReason::LeaseEnded)?;
        Ok(if gone < length / 2 { LeaseStanding::Fresh { left } } else { LeaseStanding::Half { left } })
    }

    /// The authority limits what a coordinator may promise.
    fn length(&self, lease: &HeldLease) -> Option<Duration> {
        let longest = self.state.certificate().map_or(lease.length, |certificate| certificate.longest);
        lease.length.min(longest).duration()
    }

    fn running(&self, now: Instant) -> Duration {
        Duration::from_secs(self.state.running) + self.rest + now.saturating_duration_since(self.counted)
    }

    fn count(&mut self, now: Instant) {
        let running = self.running(now);
        self.state.running = running.as_secs();
        self.rest = Duration::from_nanos(running.subsec_nanos().into());
        self.counted = self.counted.max(now);
    }
}

/// What may be behind a site: its subnets, and its virtual address.
fn stated_of(grant: &SiteGrant) -> impl Iterator<Item = IpNet> + '_ {
    grant.subnets.iter().copied().chain([IpNet::from(IpAddr::from(grant.virtual_address))])
}

/// The order of learning: what must be known before the rest comes first.
fn rank(contents: &Contents) -> u8 {
    match contents {
        Contents::Rollover(_) => 0,
        Contents::Revocations(_) => 1,
        Contents::LeaseCertificate(_) => 2,
        Contents::Site(_) | Contents::Relay(_) => 3,
        Contents::Lease(_) => 4,
    }
}

fn validity(contents: &Contents) -> Option<&Validity> {
    match contents {
        Contents::Site(statement) => Some(&statement.grant.validity),
        Contents::Relay(statement) => Some(&statement.validity),
        _ => None,
    }
}
