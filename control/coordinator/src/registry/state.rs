//! What the coordinator knows at this moment, and each site's own view of it.
//!
//! A [`View`] counts the changes of what one site sees, and remembers which peer each concerned. A peer
//! is noted in a view only if it was visible before or after the change, so nothing that is told from a view reveals a
//! hidden site.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use penstock_proto::Bucket;
use penstock_proto::coordination::{
    Candidate, Known, MapVersion, NatType, Reachability, Refusal, RefusalReason, Registration, RegistrationState,
    SiteKey, SiteNumber,
};
use penstock_proto::trust::WaitReason;
use tokio::sync::Notify;

use super::Servers;
use super::documents::{Common, Latest, SentDocuments, SiteDocuments};
use super::draft::{Draft, News, Seen};
use super::feed::{Feed, Reader};
use super::links::Links;
use super::offers::WaitingSubnets;
use super::transition;
use crate::addresses::Owners;
use crate::admission::limits::{
    MESSAGE_BURST, MESSAGE_INTERVAL, RECONNECT_BURST, RECONNECT_INTERVAL, SUBNET_CHANGE_BURST, SUBNET_CHANGE_INTERVAL,
};
use crate::policy::{Policy, Reach};
use crate::site::{Site, SiteState};

/// How many changes a view remembers. A site that missed more gets the whole map, which for most sites is no longer
/// than that many changes.
pub(super) const HISTORY_LIMIT: usize = 1024;

/// Everything in memory. Views refer to sites by their numbers, which are never reused.
pub(super) struct State {
    epoch: u64,
    links: Arc<Links>,
    servers: Arc<Servers>,
    numbers: HashMap<SiteKey, SiteNumber>,
    records: Vec<Record>,
    /// What approved sites may offer.
    owners: Owners,
    virtual_addresses: BTreeSet<Ipv4Addr>,
    connections: u64,
    pub(super) feed: Feed,
    pub(super) common: Common,
    pub(super) latest: Latest,
}

struct Record {
    site: Arc<Site>,
    /// Those of its subnets that are announced to others.
    announced: Arc<[IpNet]>,
    /// Those that it offers and that are not in force.
    waiting: WaitingSubnets,
    documents: SiteDocuments,
    /// Forgotten by an administrator. Its number stays, since relays and views may refer to it.
    removed: bool,
    reachability: Option<Arc<Reachability>>,
    view: View,
    link: Option<Link>,
    reconnects: Bucket,
    subnet_changes: Bucket,
    messages: Bucket,
}

/// The connection of a site.
struct Link {
    id: u64,
    wake: Arc<Notify>,
    cut: Arc<Notify>,
}

#[derive(Default)]
struct View {
    /// How many changes there were in this epoch.
    number: u64,
    /// The peers of the latest of them, oldest first.
    changed: VecDeque<SiteNumber>,
}

/// A site's connection, and what it was told so far.
#[derive(Debug)]
pub struct Session {
    key: SiteKey,
    id: u64,
    wake: Arc<Notify>,
    cut: Arc<Notify>,
    known: Option<Known>,
    told: Option<MapVersion>,
    registration: Option<Registration>,
    documents: SentDocuments,
}

/// What a connection is to do next.
#[derive(Debug)]
pub enum Outgoing {
    /// Send these messages, and stay connected.
    Messages(Draft),
    /// Send this refusal, and close the connection.
    End(Refusal),
}

impl Session {
    /// Returns when there may be something new to say.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Notified once when the connection has to end, whatever it is doing.
    #[must_use]
    pub fn cut(&self) -> Arc<Notify> {
        self.cut.clone()
    }

    /// The site's key.
    #[must_use]
    pub fn key(&self) -> SiteKey {
        self.key
    }
}

impl State {
    /// With these sites, none of which is connected yet.
    pub fn new(epoch: u64, policy: Policy, servers: Servers, sites: Vec<Site>) -> Self {
        let links = Links::compile(Arc::new(policy), sites.iter());
        let mut owners = Owners::default();
        for (number, site) in (0..).zip(&sites).filter(|(_, site)| site.state == SiteState::Approved) {
            owners.insert(number, site.granted.iter().flat_map(|granted| granted.iter()));
        }
        let record = |site: Site| Record { announced: links.policy().announced(&site).into(), ..Record::new(site) };
        let mut state = Self {
            epoch,
            servers: Arc::new(servers),
            numbers: sites.iter().map(|site| site.key).zip(0..).collect(),
            virtual_addresses: sites.iter().map(|site| site.virtual_address).collect(),
            records: sites.into_iter().map(record).collect(),
            links: Arc::new(links),
            owners,
            connections: 0,
            feed: Feed::default(),
            common: Common::default(),
            latest: Latest::default(),
        };
        for number in 0..state.records.len() {
            state.records[number].waiting = state.waiting(&state.records[number].site);
        }
        state
    }

    pub fn links(&self) -> &Arc<Links> {
        &self.links
    }

    pub fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// Who may offer which subnets.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Where all sites but one say that they can be reached.
    pub(super) fn candidates(&self, but: SiteNumber) -> impl Iterator<Item = &Candidate> {
        let others = self.records.iter().enumerate().filter(move |(number, _)| *number != but as usize);
        others
            .filter_map(|(_, record)| record.reachability.as_deref())
            .flat_map(|reachability| &reachability.candidates)
    }

    pub(super) fn documents(&self, number: SiteNumber) -> &SiteDocuments {
        &self.records[number as usize].documents
    }

    pub(super) fn documents_mut(&mut self, number: SiteNumber) -> &mut SiteDocuments {
        &mut self.records[number as usize].documents
    }

    pub(super) fn approved(&self) -> impl Iterator<Item = (SiteKey, &SiteDocuments)> {
        let approved = self.records.iter().filter(|record| record.site.state == SiteState::Approved);
        approved.map(|record| (record.site.key, &record.documents))
    }

    /// The subnets of a site's offer that are not in force, as of the site's last change.
    pub fn waiting_of(&self, key: &SiteKey) -> &[(IpNet, WaitReason)] {
        self.number(key).map_or(&[], |number| &self.records[number as usize].waiting)
    }

    /// The virtual addresses that are taken.
    pub fn virtual_addresses(&self) -> &BTreeSet<Ipv4Addr> {
        &self.virtual_addresses
    }

    pub fn sites(&self) -> impl Iterator<Item = &Arc<Site>> + Clone {
        self.records.iter().filter(|record| !record.removed).map(|record| &record.site)
    }

    /// All sites by their numbers, forgotten ones too.
    pub fn numbered(&self) -> Vec<Arc<Site>> {
        self.records.iter().map(|record| record.site.clone()).collect()
    }

    pub fn site(&self, key: &SiteKey) -> Option<&Arc<Site>> {
        let record = &self.records[*self.numbers.get(key)? as usize];
        (!record.removed).then_some(&record.site)
    }

    pub fn number(&self, key: &SiteKey) -> Option<SiteNumber> {
        self.numbers.get(key).copied()
    }

    /// How many numbers are in use.
    pub fn count(&self) -> SiteNumber {
        self.records.len() as SiteNumber
    }

    pub fn site_of(&self, number: SiteNumber) -> &Site {
        &self.records[number as usize].site
    }

    /// Whether a site is connected, and what its NAT is like.
    pub fn about(&self, number: SiteNumber) -> (bool, Option<NatType>) {
        let Record { link, reachability, .. } = &self.records[number as usize];
        (link.is_some(), reachability.as_ref().and_then(|reachability| reachability.nat_type))
    }

    /// The sites whose gateways have announced themselves and do not enforce what a policy allows.
    pub fn outdated(&self) -> Vec<SiteNumber> {
        let outdated = |number: &SiteNumber| {
            let told = &self.records[*number as usize].reachability;
            told.as_ref().is_some_and(|told| !told.enforces_allow)
        };
        (0..self.count()).filter(outdated).collect()
    }

    /// What relays are told, from the start.
    pub fn read_access(&mut self) -> Reader {
        self.feed.read()
    }

    pub fn is_connected(&self, key: &SiteKey) -> bool {
        self.numbers.get(key).is_some_and(|number| self.records[*number as usize].link.is_some())
    }

    /// Adds a site, or changes what is known about it, and tells everybody concerned.
    pub fn put(&mut self, site: Site) {
        let number = match self.numbers.get(&site.key) {
            Some(number) => *number,
            None => {
                let number = self.count();
                self.numbers.insert(site.key, number);
                // It is added as a revoked site, so that it becomes visible by the same steps as one that is approved
                // later.
                self.records.push(Record::new(Site { state: SiteState::Revoked, ..site.clone() }));
                Arc::make_mut(&mut self.links).set(number, self.records[number as usize].site.as_ref());
                number
            }
        };
        self.records[number as usize].removed = false;
        self.change(number, site);
    }

    /// Forgets a site.
    pub fn remove(&mut self, key: &SiteKey) {
        let Some(number) = self.number(key) else { return };
        let gone = Site { state: SiteState::Revoked, ..self.site_of(number).clone() };
        let virtual_address = gone.virtual_address;
        self.change(number, gone);
        self.virtual_addresses.remove(&virtual_address);
        let record = &mut self.records[number as usize];
        (record.removed, record.reachability) = (true, None);
    }

    /// Takes note of where a site can be reached. None of it is stored.
    pub fn set_reachability(&mut self, session: &Session, reachability: Reachability) {
        let Some(number) = self.current(session) else { return };
        let record = &mut self.records[number as usize];
        if record.reachability.as_deref() != Some(&reachability) {
            record.reachability = Some(Arc::new(reachability));
            for other in self.links.neighbors(number) {
                self.records[other as usize].note(number);
            }
            self.wake(number);
        }
    }

    /// Puts another policy in force; see [`transition`]. Returns what it replaces, to be freed outside the lock.
    pub fn change_policy(
        &mut self,
        links: Arc<Links>,
        announced: Vec<Arc<[IpNet]>>,
    ) -> (Arc<Links>, Vec<Arc<[IpNet]>>) {
        let before = std::mem::replace(&mut self.links, links);
        let announced = self.records.iter_mut().zip(announced);
        let announced = announced.map(|(record, new)| std::mem::replace(&mut record.announced, new)).collect();
        (before, announced)
    }

    /// Notes what is new in a site's view.
    pub fn note_news(&mut self, number: SiteNumber, news: transition::News) {
        let record = &mut self.records[number as usize];
        match news {
            transition::News::Peers(peers) => peers.into_iter().for_each(|peer| record.view.note(peer)),
            transition::News::Much => record.view.forget(),
        }
        record.wake();
    }

    pub fn wake(&self, number: SiteNumber) {
        self.records[number as usize].wake();
    }

    /// Registers a new connection of a site; an older one is told that it was replaced.
    ///
    /// # Errors
    /// There is no such site, or it connects too often.
    pub fn connect(&mut self, now: Instant, key: &SiteKey, known: Option<Known>) -> Result<Session, RefusalReason> {
        let number = self.number(key).ok_or(RefusalReason::NotEnrolled)?;
        let record = &mut self.records[number as usize];
        if !record.reconnects.take(now, RECONNECT_INTERVAL, RECONNECT_INTERVAL * RECONNECT_BURST) {
            return Err(RefusalReason::TooMany);
        }
        record.cut();
        self.connections += 1;
        let link = Link { id: self.connections, wake: Arc::default(), cut: Arc::default() };
        // A new connection always has something to send.
        link.wake.notify_one();
        let (wake, cut) = (link.wake.clone(), link.cut.clone());
        let session = Session {
            key: *key,
            id: link.id,
            wake,
            cut,
            known,
            told: None,
            registration: None,
            documents: SentDocuments::default(),
        };
        record.link = Some(link);
        Ok(session)
    }

    /// Whether a site may send another message now; if so, it counts as sent.
    pub fn may_speak(&mut self, now: Instant, session: &Session) -> bool {
        // A connection that was replaced is about to be told that, and not that it sends too much.
        let Some(number) = self.current(session) else { return true };
        let messages = &mut self.records[number as usize].messages;
        messages.take(now, MESSAGE_INTERVAL, MESSAGE_INTERVAL * MESSAGE_BURST)
    }

    /// Whether a site may change its subnets now; if so, they count as changed.
    pub fn may_change_subnets(&mut self, now: Instant, key: &SiteKey) -> bool {
        let Some(number) = self.number(key) else { return true };
        let changes = &mut self.records[number as usize].subnet_changes;
        changes.take(now, SUBNET_CHANGE_INTERVAL, SUBNET_CHANGE_INTERVAL * SUBNET_CHANGE_BURST)
    }

    /// Returns whether the session was the site's connection until now.
    pub fn disconnect(&mut self, session: &Session) -> bool {
        let current = self.current(session);
        if let Some(number) = current {
            self.records[number as usize].link = None;
        }
        current.is_some()
    }

    /// Why a connection was cut.
    pub fn why_cut(&self, session: &Session) -> Refusal {
        let revoked = self.current(session).is_some_and(|number| self.site_of(number).state == SiteState::Revoked);
        let reason = if revoked { RefusalReason::Revoked } else { RefusalReason::Replaced };
        Refusal { reason, detail: None }
    }

    /// What is to be sent over the connection now. It counts as sent.
    pub fn outgoing(&self, session: &mut Session) -> Outgoing {
        let Some(number) = self.current(session) else { return Outgoing::End(self.why_cut(session)) };
        let record = &self.records[number as usize];
        let state = match record.site.state {
            SiteState::Revoked => return Outgoing::End(self.why_cut(session)),
            SiteState::Pending => RegistrationState::Pending,
            SiteState::Approved => RegistrationState::Approved,
        };
        let registration = Registration {
            name: record.site.name.clone(),
            state,
            virtual_address: record.site.virtual_address,
            subnets: record.announced.to_vec(),
            waiting: self.told_waiting(&record.site, &record.waiting),
        };
        let mut draft = Draft::default();
        if session.registration.as_ref() != Some(&registration) {
            session.registration = Some(registration.clone());
            draft.registration = Some(registration);
        }
        if state == RegistrationState::Approved {
            let mut peers = Vec::new();
            draft.news = self.catch_up(number, session, &mut peers);
            draft.documents = self.bundle(number, &peers, &mut session.documents);
        }
        Outgoing::Messages(draft)
    }

    /// `told` are the peers in the news, in order.
    fn catch_up(&self, number: SiteNumber, session: &mut Session, told: &mut Vec<SiteNumber>) -> Option<News> {
        let view = &self.records[number as usize].view;
        let now = MapVersion { epoch: self.epoch, number: view.number };
        let known = session.known.take();
        let from = session.told.replace(now).or(known.map(|known| known.version));
        // A gateway that says which map it has is answered, even if nothing has changed.
        if from == Some(now) && known.is_none() {
            return None;
        }
        if let Some(changed) = from.filter(|from| from.epoch == self.epoch).and_then(|from| view.since(from.number)) {
            let changed: BTreeSet<SiteNumber> = changed.collect();
            let (upsert, remove): (Vec<_>, Vec<_>) =
                changed.into_iter().partition(|other| self.links.joins(number, *other));
            let mut reach = self.links.reach_at(number);
            *told = upsert.clone();
            return Some(News::Update {
                from: from?,
                to: now,
                upsert: upsert.into_iter().map(|other| self.seen(other, reach(other))).collect(),
                remove: remove.into_iter().map(|other| self.key(other)).collect(),
            });
        }
        *told = self.links.neighbors(number);
        let mut reach = self.links.reach_at(number);
        let peers = told.iter().map(|other| self.seen(*other, reach(*other))).collect();
        Some(News::Whole { version: now, peers, servers: self.servers.clone(), known })
    }

    pub(super) fn key(&self, number: SiteNumber) -> SiteKey {
        self.records[number as usize].site.key
    }

    /// A site as it is described to another, at which it may initiate what `reach` says.
    fn seen(&self, number: SiteNumber, reach: Arc<Reach>) -> Seen {
        let Record { site, announced, reachability, .. } = &self.records[number as usize];
        let (announced, reachability) = (announced.clone(), reachability.clone());
        Seen { site: site.clone(), announced, reach, reachability }
    }

    fn current(&self, session: &Session) -> Option<SiteNumber> {
        let number = *self.numbers.get(&session.key)?;
        let link = self.records[number as usize].link.as_ref()?;
        (link.id == session.id).then_some(number)
    }

    /// Changes one site, and notes it in the views of all who saw it before or see it now, if what they see has
    /// changed. They are woken in any case: other documents may vouch for it now.
    fn change(&mut self, number: SiteNumber, site: Site) {
        let before = self.links.neighbors(number);
        let was_approved = self.site_of(number).state == SiteState::Approved;
        let before_granted = self.records[number as usize].site.granted.iter().flat_map(|granted| granted.iter());
        self.owners.remove(number, before_granted);
        if site.state == SiteState::Approved {
            self.owners.insert(number, site.granted.iter().flat_map(|granted| granted.iter()));
        }
        let waiting = self.waiting(&site);
        self.virtual_addresses.insert(site.virtual_address);
        let links = Arc::make_mut(&mut self.links);
        let class = links.class(number);
        links.set(number, &site);
        let record = &mut self.records[number as usize];
        let announced: Arc<[IpNet]> = links.policy().announced(&site).into();
        let seen = |site: &Site, announced: &[IpNet]| {
            (site.name.clone(), site.virtual_address, site.tags.clone(), announced.to_vec())
        };
        let looks_new = seen(&record.site, &record.announced) != seen(&site, &announced);
        record.announced = announced;
        (record.site, record.waiting) = (Arc::new(site), waiting);
        let after = self.links.neighbors(number);
        if was_approved != (self.site_of(number).state == SiteState::Approved) {
            self.feed.note_all([(number, number)]);
        }
        let all: BTreeSet<SiteNumber> = before.iter().chain(&after).copied().collect();
        let (inbound, outbound) = self.links.reach_changes(number, &class, &all);
        for other in all {
            let linked_anew = before.binary_search(&other).is_ok() != after.binary_search(&other).is_ok();
            match looks_new || linked_anew || outbound.binary_search(&other).is_ok() {
                true => self.records[other as usize].note(number),
                false => self.records[other as usize].wake(),
            }
            if linked_anew || inbound.binary_search(&other).is_ok() {
                self.records[number as usize].view.note(other);
            }
            if linked_anew {
                self.feed.note_all([(number, other)]);
            }
        }
        let record = &self.records[number as usize];
        record.wake();
        if record.site.state == SiteState::Revoked {
            record.cut();
        }
    }
}

impl Record {
    fn new(site: Site) -> Self {
        Self {
            site: Arc::new(site),
            announced: Arc::default(),
            waiting: Vec::new(),
            documents: SiteDocuments::default(),
            removed: false,
            reachability: None,
            view: View::default(),
            link: None,
            reconnects: Bucket::default(),
            subnet_changes: Bucket::default(),
            messages: Bucket::default(),
        }
    }

    fn note(&mut self, peer: SiteNumber) {
        self.view.note(peer);
        self.wake();
    }

    fn wake(&self) {
        self.link.iter().for_each(|link| link.wake.notify_one());
    }

    /// Ends the connection, whatever it is doing.
    fn cut(&self) {
        self.link.iter().for_each(|link| link.cut.notify_one());
    }
}

impl View {
    fn note(&mut self, peer: SiteNumber) {
        if self.changed.len() == HISTORY_LIMIT {
            self.changed.pop_front();
        }
        self.changed.push_back(peer);
        self.number += 1;
    }

    /// Forgets the changes, because there were too many.
    fn forget(&mut self) {
        self.changed.clear();
        self.number += 1;
    }

    /// The peers that have changed since that number; `None` if the view does not remember that far back.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = SiteNumber> + '_> {
        let missed = usize::try_from(self.number.checked_sub(number)?).ok()?;
        let skipped = self.changed.len().checked_sub(missed)?;
        Some(self.changed.iter().skip(skipped).copied())
    }
}

#[cfg(test)]
mod tests;
