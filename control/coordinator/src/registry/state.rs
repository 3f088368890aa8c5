//! What the coordinator knows at this moment, and each site's own view of it.
//!
//! A [`View`] counts the changes of what one site sees, and remembers which peer each concerned. A peer
//! is noted in a view only if it was visible before or after the change, so nothing that is told from
//! a view tells of a hidden site.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use penstock_proto::coordination::{
    CoordinatorMessage, Known, Map, MapVersion, Peer, Reachability, Refusal, RefusalReason, Registration,
    RegistrationState, Relay, SiteKey, Update,
};
use tokio::sync::Notify;

use super::feed::{Feed, Reader};
use crate::policy::Policy;
use crate::site::{Site, SiteState};

/// How many changes a view remembers. Whoever missed more gets the whole map, which is no longer than
/// that many changes for most.
const HISTORY_LIMIT: usize = 1024;

/// Everything in memory. Sites have numbers by which views refer to them; none is ever removed.
pub(super) struct State {
    epoch: u64,
    policy: Policy,
    relays: Vec<Relay>,
    stun_servers: Vec<std::net::SocketAddr>,
    numbers: HashMap<SiteKey, u32>,
    records: Vec<Record>,
    connections: u64,
    pub(super) feed: Feed,
}

struct Record {
    site: Site,
    reachability: Option<Reachability>,
    view: View,
    link: Option<Link>,
}

/// The connection of a site.
struct Link {
    id: u64,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct View {
    /// How many changes there were in this epoch.
    number: u64,
    /// The peers of the latest of them, oldest first.
    changed: VecDeque<u32>,
}

/// A site's connection, and what it was told so far.
#[derive(Debug)]
pub struct Session {
    key: SiteKey,
    id: u64,
    wake: Arc<Notify>,
    known: Option<Known>,
    told: Option<MapVersion>,
    registration: Option<Registration>,
}

/// What a connection is to do next.
#[derive(Debug)]
pub enum Outgoing {
    /// Say this, and stay.
    Messages(Vec<CoordinatorMessage>),
    /// Say this, and end.
    End(Refusal),
}

impl Session {
    /// Returns when there may be something new to say.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Whose it is.
    #[must_use]
    pub fn key(&self) -> SiteKey {
        self.key
    }
}

impl State {
    pub fn new(epoch: u64, policy: Policy, relays: Vec<Relay>, stun_servers: Vec<std::net::SocketAddr>) -> Self {
        let (numbers, records) = (HashMap::new(), Vec::new());
        Self { epoch, policy, relays, stun_servers, numbers, records, connections: 0, feed: Feed::default() }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn servers(&self) -> (&[Relay], &[std::net::SocketAddr]) {
        (&self.relays, &self.stun_servers)
    }

    pub fn sites(&self) -> impl Iterator<Item = &Site> + Clone {
        self.records.iter().map(|record| &record.site)
    }

    pub fn site(&self, key: &SiteKey) -> Option<&Site> {
        Some(&self.records[*self.numbers.get(key)? as usize].site)
    }

    pub fn site_of(&self, number: u32) -> &Site {
        &self.records[number as usize].site
    }

    /// What relays are told of.
    pub fn read_access(&mut self) -> Reader {
        self.feed.read()
    }

    pub fn is_connected(&self, key: &SiteKey) -> bool {
        self.numbers.get(key).is_some_and(|number| self.records[*number as usize].link.is_some())
    }

    /// Adds a site, or changes what is known of it, and lets all know whom it concerns.
    pub fn put(&mut self, site: Site) {
        let number = match self.numbers.get(&site.key) {
            Some(number) => *number,
            None => {
                let number = self.records.len() as u32;
                self.numbers.insert(site.key, number);
                // As if revoked before: then it becomes visible by the same steps as any other.
                let before = Site { state: SiteState::Revoked, ..site.clone() };
                let record = Record { site: before, reachability: None, view: View::default(), link: None };
                self.records.push(record);
                number
            }
        };
        self.change(number, |record| record.site = site);
    }

    /// Takes note of where a site can be reached. Nothing of it is stored.
    pub fn set_reachability(&mut self, session: &Session, reachability: Reachability) {
        let Some(number) = self.current(session) else { return };
        if self.records[number as usize].reachability.as_ref() != Some(&reachability) {
            self.change(number, |record| record.reachability = Some(reachability));
        }
    }

    pub fn set_policy(&mut self, policy: Policy) {
        let before = std::mem::replace(&mut self.policy, policy);
        let changed: Vec<bool> =
            self.sites().map(|site| before.announced(site) != self.policy.announced(site)).collect();
        for one in 0..self.records.len() {
            for other in 0..one {
                let (a, b) = (&self.records[one].site, &self.records[other].site);
                let (was, is) = (before.joins(a, b), self.policy.joins(a, b));
                if was != is {
                    self.feed.note(one as u32, other as u32);
                }
                if was != is || (is && changed[other]) {
                    self.records[one].note(other as u32);
                }
                if was != is || (is && changed[one]) {
                    self.records[other].note(one as u32);
                }
            }
        }
        // Their registration tells what is announced.
        for (record, _) in self.records.iter().zip(changed).filter(|(_, changed)| *changed) {
            record.wake();
        }
    }

    /// Takes a site's connection in the place of an older one, which is told so.
    pub fn connect(&mut self, key: &SiteKey, known: Option<Known>) -> Option<Session> {
        let number = *self.numbers.get(key)?;
        self.connections += 1;
        let record = &mut self.records[number as usize];
        record.wake();
        let link = Link { id: self.connections, wake: Arc::new(Notify::new()) };
        // There is something to say from the start.
        link.wake.notify_one();
        let session =
            Session { key: *key, id: link.id, wake: link.wake.clone(), known, told: None, registration: None };
        record.link = Some(link);
        Some(session)
    }

    /// Returns whether the session was the site's connection until now.
    pub fn disconnect(&mut self, session: &Session) -> bool {
        let current = self.current(session);
        if let Some(number) = current {
            self.records[number as usize].link = None;
        }
        current.is_some()
    }

    /// What the connection has to say now. It counts as said.
    pub fn outgoing(&self, session: &mut Session) -> Outgoing {
        let end = |reason| Outgoing::End(Refusal { reason, detail: None });
        let Some(number) = self.current(session) else { return end(RefusalReason::Replaced) };
        let record = &self.records[number as usize];
        let state = match record.site.state {
            SiteState::Revoked => return end(RefusalReason::Revoked),
            SiteState::Pending => RegistrationState::Pending,
            SiteState::Approved => RegistrationState::Approved,
        };
        let registration = Registration {
            name: record.site.name.clone(),
            state,
            virtual_address: record.site.virtual_address,
            subnets: self.policy.announced(&record.site),
        };
        let mut messages = Vec::new();
        if session.registration.as_ref() != Some(&registration) {
            session.registration = Some(registration.clone());
            messages.push(CoordinatorMessage::Registration(registration));
        }
        if state == RegistrationState::Approved {
            messages.extend(self.catch_up(number, session));
        }
        Outgoing::Messages(messages)
    }

    fn catch_up(&self, number: u32, session: &mut Session) -> Option<CoordinatorMessage> {
        let view = &self.records[number as usize].view;
        let now = MapVersion { epoch: self.epoch, number: view.number };
        let known = session.known.take();
        let from = session.told.replace(now).or(known.map(|known| known.version));
        // Who says what it knows is told, even if it is that nothing changed.
        if from == Some(now) && known.is_none() {
            return None;
        }
        if let Some(changed) = from.filter(|from| from.epoch == self.epoch).and_then(|from| view.since(from.number)) {
            let changed: BTreeSet<u32> = changed.collect();
            let (upsert, remove): (Vec<_>, Vec<_>) = changed.into_iter().partition(|other| self.sees(number, *other));
            return Some(CoordinatorMessage::Update(Update {
                from: from?,
                to: now,
                upsert: upsert.into_iter().map(|other| (self.key(other), self.peer(other))).collect(),
                remove: remove.into_iter().map(|other| self.key(other)).collect(),
            }));
        }
        let map = self.map(number, now);
        match known {
            // Of an earlier life of ours. What the peers said of themselves meanwhile is all there is to say.
            Some(known) if known.digest == map.digest() => {
                let mut upsert = map.peers;
                upsert.retain(|_, peer| peer.reachability.is_some());
                Some(CoordinatorMessage::Update(Update { from: known.version, to: now, upsert, remove: Vec::new() }))
            }
            _ => Some(CoordinatorMessage::Map(map)),
        }
    }

    fn map(&self, number: u32, version: MapVersion) -> Map {
        let others = (0..self.records.len() as u32).filter(|other| self.sees(number, *other));
        Map {
            version,
            peers: others.map(|other| (self.key(other), self.peer(other))).collect(),
            relays: self.relays.clone(),
            stun_servers: self.stun_servers.clone(),
        }
    }

    pub(super) fn key(&self, number: u32) -> SiteKey {
        self.records[number as usize].site.key
    }

    fn peer(&self, number: u32) -> Peer {
        let record = &self.records[number as usize];
        Peer {
            name: record.site.name.clone(),
            virtual_address: record.site.virtual_address,
            subnets: self.policy.announced(&record.site),
            reachability: record.reachability.clone(),
        }
    }

    fn sees(&self, observer: u32, other: u32) -> bool {
        self.policy.joins(&self.records[observer as usize].site, &self.records[other as usize].site)
    }

    fn current(&self, session: &Session) -> Option<u32> {
        let number = *self.numbers.get(&session.key)?;
        let link = self.records[number as usize].link.as_ref()?;
        (link.id == session.id).then_some(number)
    }

    /// Changes one record, and notes it in the views of all who saw it before or see it now.
    fn change(&mut self, number: u32, change: impl FnOnce(&mut Record)) {
        let others = 0..self.records.len() as u32;
        let before: Vec<bool> = others.clone().map(|other| self.sees(number, other)).collect();
        let approved = |state: &Self| state.site_of(number).state == SiteState::Approved;
        let was_approved = approved(self);
        change(&mut self.records[number as usize]);
        if was_approved != approved(self) {
            self.feed.note(number, number);
        }
        for other in others {
            let (was, is) = (before[other as usize], self.sees(number, other));
            if was || is {
                self.records[other as usize].note(number);
            }
            if was != is {
                self.records[number as usize].note(other);
                self.feed.note(number, other);
            }
        }
        self.records[number as usize].wake();
    }
}

impl Record {
    fn note(&mut self, peer: u32) {
        self.view.note(peer);
        self.wake();
    }

    fn wake(&self) {
        self.link.iter().for_each(|link| link.wake.notify_one());
    }
}

impl View {
    fn note(&mut self, peer: u32) {
        if self.changed.len() == HISTORY_LIMIT {
            self.changed.pop_front();
        }
        self.changed.push_back(peer);
        self.number += 1;
    }

    /// The peers that changed after the state of that number; none if it is not remembered so far back.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = u32> + '_> {
        let missed = usize::try_from(self.number.checked_sub(number)?).ok()?;
        let skipped = self.changed.len().checked_sub(missed)?;
        Some(self.changed.iter().skip(skipped).copied())
    }
}

#[cfg(test)]
mod tests;
