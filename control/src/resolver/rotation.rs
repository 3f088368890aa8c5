//! Which address of an endpoint's name is used, and when the name is resolved again. Without I/O: time is an argument,
//! questions come out, answers and silence go in.
//!
//! Only silence ends a path. While a path works, a new answer is kept for later, even if it leaves out the address in
//! use. On silence the addresses are tried in turn, and the name is resolved again at once unless that was just done.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::key::PublicKey;

/// A name is not resolved again sooner than this, however short its time to live.
const TTL_MIN: Duration = Duration::from_secs(10);
/// A name is resolved again after this, however long its time to live.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// A name that does not resolve is tried again after this time, which doubles with every failure.
const RETRY: Duration = Duration::from_secs(5);
/// The longest such time.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// While a path is silent, its name is resolved again this long after the last time.
const SILENT_PAUSE: Duration = Duration::from_secs(30);
/// Silence is over when it has not been reported for this long: an initiation is repeated every 5 s.
const SILENCE: Duration = Duration::from_secs(11);

/// The endpoints that have names.
#[derive(Debug, Default)]
pub struct Rotation {
    peers: HashMap<PublicKey, Named>,
    /// When names are to be resolved, except those under way.
    due: BTreeSet<(Instant, PublicKey)>,
    changes: VecDeque<Change>,
    numbers: u64,
}

/// A name to be resolved. There is one at a time for each peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose endpoint it is.
    pub peer: PublicKey,
    /// The host name.
    pub name: String,
    /// To be passed back with the answer: an answer to an earlier question, for a name since replaced, is ignored.
    pub number: u64,
}

/// The address at which a peer is to be reached from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The peer.
    pub peer: PublicKey,
    /// An address of its name; after silence it may be the present one again, if there is no other.
    pub endpoint: SocketAddr,
}

/// The outcome of a question: addresses, the best first, and their time to live; `None` if there are none.
pub type Outcome = Option<(Vec<SocketAddr>, Duration)>;

#[derive(Debug)]
struct Named {
    name: String,
    port: u16,
    /// The last answer, kept until there is a newer one.
    addresses: Vec<SocketAddr>,
    current: Option<SocketAddr>,
    /// The number of the question under way.
    under_way: Option<u64>,
    /// When the name is resolved next, unless a question is under way.
    due: Instant,
    asked: Option<Instant>,
    failures: u32,
    silent: Option<Instant>,
}

impl Rotation {
    /// A peer's endpoint has this name from now on. The same name again changes nothing.
    pub fn watch(&mut self, now: Instant, peer: PublicKey, name: &str, port: u16) {
        if self.peers.get(&peer).is_some_and(|named| named.name == name && named.port == port) {
            return;
        }
        self.forget(&peer);
        let named = Named {
            name: name.to_owned(),
            port,
            addresses: Vec::new(),
            current: None,
            under_way: None,
            due: now,
            asked: None,
            failures: 0,
            silent: None,
        };
        self.peers.insert(peer, named);
        self.due.insert((now, peer));
    }

    /// A peer's endpoint no longer has a name, or the peer is gone.
    pub fn forget(&mut self, peer: &PublicKey) {
        if let Some(named) = self.peers.remove(peer) {
            self.due.remove(&(named.due, *peer));
            self.changes.retain(|change| change.peer != *peer);
        }
    }

    /// The peer does not answer at its present address.
    pub fn handle_silence(&mut self, now: Instant, peer: &PublicKey) {
        let Some(named) = self.peers.get_mut(peer) else { return };
        named.silent = Some(now);
        let place = named.addresses.iter().position(|address| Some(*address) == named.current);
        let next = place.map_or(0, |place| (place + 1) % named.addresses.len());
        if let Some(&endpoint) = named.addresses.get(next) {
            named.current = Some(endpoint);
            self.changes.push_back(Change { peer: *peer, endpoint });
        }
        // A name that does not resolve is on a schedule of its own.
        if named.failures == 0 {
            let soon = named.asked.map_or(now, |asked| now.max(asked + SILENT_PAUSE));
            let due = named.due.min(soon);
            self.schedule(*peer, due);
        }
    }

    /// The next name to resolve.
    pub fn poll_question(&mut self, now: Instant) -> Option<Question> {
        let (_, peer) = *self.due.first().filter(|(due, _)| *due <= now)?;
        self.due.pop_first();
        let named = self.peers.get_mut(&peer)?;
        self.numbers += 1;
        named.under_way = Some(self.numbers);
        named.asked = Some(now);
        Some(Question { peer, name: named.name.clone(), number: self.numbers })
    }

    /// The port of a peer's endpoint.
    pub fn port(&self, peer: &PublicKey) -> Option<u16> {
        self.peers.get(peer).map(|named| named.port)
    }

    /// The outcome of a question. Returns how many in a row have failed.
    pub fn handle_answer(&mut self, now: Instant, peer: &PublicKey, number: u64, outcome: Outcome) -> u32 {
        let Some(named) = self.peers.get_mut(peer).filter(|named| named.under_way == Some(number)) else { return 0 };
        named.under_way = None;
        let pause = match outcome.filter(|(addresses, _)| !addresses.is_empty()) {
            Some((addresses, ttl)) => {
                named.failures = 0;
                named.addresses = addresses;
                let silent = named.silent.is_some_and(|at| now < at + SILENCE);
                let known = named.current.filter(|current| !silent || named.addresses.contains(current));
                if known.is_none() {
                    let endpoint = named.addresses[0];
                    named.current = Some(endpoint);
                    self.changes.push_back(Change { peer: *peer, endpoint });
                }
                ttl.clamp(TTL_MIN, TTL_MAX)
            }
            None => {
                named.failures += 1;
                (RETRY * 2_u32.saturating_pow(named.failures - 1).min(1024)).min(RETRY_MAX)
            }
        };
        let failures = named.failures;
        self.schedule(*peer, now + pause);
        failures
    }

    /// The next change of an endpoint.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// When [`poll_question`](Self::poll_question) next has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Sets when a name is resolved next, unless a question is under way.
    fn schedule(&mut self, peer: PublicKey, due: Instant) {
        let Some(named) = self.peers.get_mut(&peer).filter(|named| named.under_way.is_none()) else { return };
        self.due.remove(&(named.due, peer));
        named.due = due;
        self.due.insert((due, peer));
    }
}

#[cfg(test)]
mod tests;
