//! Who may connect: a connection that has not proven anything gets a slot for a short while, and no more than that.
//!
//! A proven site has one connection, so their number is bounded by the number of sites. This module bounds all others.
//! [`Admission`] decides, without I/O and with time as an argument; [`Door`] is its lock, and tells connections when
//! their slot is gone. All figures are in [`limits`].
//!
//! - Each source has a rate of connections, which is checked before TLS.
//! - When all slots are taken, a newcomer gets the slot of the oldest connection of the fullest prefix, unless that
//!   would make a prefix of the newcomer's just as full; a connection from the same address may be replaced in any
//!   case. So a flood loses its own slots, whatever prefixes it comes from; and where all are equal, as when all
//!   gateways come back at once, no connection that has begun is dropped for another.
//! - The more slots are taken, the sooner the oldest connection is dropped.
//! - Some slots are reserved for sources where a site has proven itself lately; strangers cannot take them.
//! - A wrong proof is answered late, and holds its slot until then. A right one never waits, so nobody who shares a
//!   site's address can keep it out by failing. Before TLS the two cannot be told apart: whoever shares the site's
//!   address and connects faster than the rate uses up the site's share of it.

mod door;
pub mod limits;
mod rates;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_proto::path::SiteId;

pub use door::{Door, DoorReport, Slot};
pub use rates::Rates;
pub(crate) use rates::address;

use limits::{
    FAILURE_DELAY, FAILURES, HANDSHAKES, KNOWN_FOR, KNOWN_LIMIT, KNOWN_SLOTS, LINES, PATIENCE, PATIENCE_WHEN_FULL,
    STRANGER_SLOTS, V4, V6,
};
use rates::prefixes;

/// The number of a slot. Numbers are ascending and never reused.
pub type SlotNumber = u64;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// All slots are taken, and no prefix is fuller than the newcomer's.
    #[error("there are too many connections without a proof")]
    Full,
    /// The source connects too often.
    #[error("too many connections in a row from this address")]
    TooFast,
}

impl AdmissionError {
    /// The reason in a word, for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::TooFast => "too-fast",
        }
    }
}

/// Decides who has a slot.
#[derive(Debug)]
pub struct Admission {
    strangers: Pool,
    known: Pool,
    sources: Sources,
    handshakes: Rates,
    failures: Rates,
    lines: Rates,
    last: SlotNumber,
    evicted: Vec<SlotNumber>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            strangers: Pool::new(STRANGER_SLOTS),
            known: Pool::new(KNOWN_SLOTS),
            sources: Sources::default(),
            handshakes: Rates::new(HANDSHAKES),
            failures: Rates::new(FAILURES),
            lines: Rates::new(LINES),
            last: 0,
            evicted: Vec::new(),
        }
    }
}

impl Admission {
    /// Gives a slot to a connection from this address; others may lose theirs, see [`Admission::poll_evicted`].
    ///
    /// # Errors
    /// There is no slot.
    pub fn admit(&mut self, now: Instant, ip: IpAddr) -> Result<SlotNumber, AdmissionError> {
        let is_known = self.sources.is_known(now, ip);
        // A known source is not limited by its neighbours' connections.
        let in_time = if is_known { self.handshakes.allow_address(now, ip) } else { self.handshakes.allow(now, ip) };
        if !in_time {
            return Err(AdmissionError::TooFast);
        }
        self.last += 1;
        let held = Held { ip, since: now };
        let taken = is_known && self.known.take(self.last, held, &mut self.evicted)
            || self.strangers.take(self.last, held, &mut self.evicted);
        if taken { Ok(self.last) } else { Err(AdmissionError::Full) }
    }

    /// A slot that was lost to another connection since the last call.
    pub fn poll_evicted(&mut self) -> Option<SlotNumber> {
        self.evicted.pop()
    }

    /// The connection is a site's, and no longer needs a slot. Its source is known from now on.
    pub fn proven(&mut self, now: Instant, slot: SlotNumber, site: SiteId) {
        if let Some(held) = self.remove(slot) {
            self.sources.note(now, held.ip, site);
        }
    }

    /// The connection showed a wrong proof or key. Returns how long the answer has to wait.
    pub fn failed(&mut self, now: Instant, ip: IpAddr) -> Duration {
        self.failures.charge(now, ip, FAILURE_DELAY)
    }

    /// A slot is no longer needed.
    pub fn leave(&mut self, slot: SlotNumber) {
        self.remove(slot);
    }

    fn remove(&mut self, slot: SlotNumber) -> Option<Held> {
        self.strangers.leave(slot).or_else(|| self.known.leave(slot))
    }

    /// Whether a line about this address may be logged.
    pub fn may_log(&mut self, now: Instant, ip: IpAddr) -> bool {
        self.lines.allow(now, ip)
    }

    /// How many slots are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.strangers.held.len() + self.known.held.len()
    }
}

/// The holder of a slot.
#[derive(Clone, Copy, Debug)]
struct Held {
    ip: IpAddr,
    since: Instant,
}

/// The slots, and how many of them each prefix has.
#[derive(Debug)]
struct Pool {
    capacity: usize,
    /// Oldest first.
    held: BTreeMap<SlotNumber, Held>,
    counts: HashMap<IpNet, u32>,
    /// The same prefixes, the fullest last.
    order: BTreeSet<(u32, IpNet)>,
}

impl Pool {
    fn new(capacity: usize) -> Self {
        Self { capacity, held: BTreeMap::new(), counts: HashMap::new(), order: BTreeSet::new() }
    }

    fn take(&mut self, slot: SlotNumber, newcomer: Held, evicted: &mut Vec<SlotNumber>) -> bool {
        while let Some((oldest, held)) = self.held.first_key_value()
            && newcomer.since.saturating_duration_since(held.since) > self.patience()
        {
            let oldest = *oldest;
            self.leave(oldest);
            evicted.push(oldest);
        }
        if self.held.len() >= self.capacity {
            let Some((fullest, prefix)) = self.order.last().copied() else { return false };
            let own = prefixes(newcomer.ip).map(|(prefix, level)| fullness(self.count(prefix) + 1, level)).max();
            let is_fuller = Some(fullest) > own;
            if !is_fuller && !prefix.contains(&newcomer.ip.to_canonical()) {
                return false;
            }
            let Some(victim) = self.oldest_of_the_fullest_address(prefix) else { return false };
            if !is_fuller && address(self.held[&victim].ip) != address(newcomer.ip) {
                return false;
            }
            self.leave(victim);
            evicted.push(victim);
        }
        self.held.insert(slot, newcomer);
        self.count_again(newcomer.ip, |count| count + 1);
        true
    }

    fn leave(&mut self, slot: SlotNumber) -> Option<Held> {
        let held = self.held.remove(&slot)?;
        self.count_again(held.ip, |count| count - 1);
        Some(held)
    }

    fn count_again(&mut self, ip: IpAddr, change: impl Fn(u32) -> u32) {
        for (prefix, level) in prefixes(ip) {
            let before = self.count(prefix);
            self.order.remove(&(fullness(before, level), prefix));
            match change(before) {
                0 => _ = self.counts.remove(&prefix),
                count => {
                    self.counts.insert(prefix, count);
                    self.order.insert((fullness(count, level), prefix));
                }
            }
        }
    }

    /// How long connections may take at this moment.
    fn patience(&self) -> Duration {
        let free = self.capacity.saturating_sub(self.held.len()) as u32;
        let half = (self.capacity / 2).max(1) as u32;
        PATIENCE_WHEN_FULL + (PATIENCE - PATIENCE_WHEN_FULL) * free.min(half) / half
    }

    fn oldest_of_the_fullest_address(&self, prefix: IpNet) -> Option<SlotNumber> {
        let within = self.held.iter().filter(|(_, held)| prefix.contains(&held.ip.to_canonical()));
        let count = |held: &Held| self.count(address(held.ip));
        // Among equals the last is taken, so the order is from the youngest to the oldest.
        within.rev().max_by_key(|(_, held)| count(held)).map(|(slot, _)| *slot)
    }

    fn count(&self, prefix: IpNet) -> u32 {
        self.counts.get(&prefix).copied().unwrap_or_default()
    }
}

/// How full a kind of prefix is with this many slots, in parts of a single address's slot.
fn fullness(count: u32, level: &limits::Level) -> u32 {
    const PARTS: u32 = V4[V4.len() - 1].hosts * V6[V6.len() - 1].hosts;
    count * PARTS / level.hosts
}

/// Where sites have proven themselves lately. Each site has one source, so nobody can fill the table.
#[derive(Debug, Default)]
struct Sources {
    by_site: HashMap<SiteId, IpNet>,
    known: HashMap<IpNet, Known>,
}

#[derive(Debug)]
struct Known {
    sites: u32,
    last: Instant,
}

impl Sources {
    fn is_known(&self, now: Instant, ip: IpAddr) -> bool {
        let fresh = |known: &Known| now.saturating_duration_since(known.last) < KNOWN_FOR;
        self.known.get(&address(ip)).is_some_and(fresh)
    }

    fn note(&mut self, now: Instant, ip: IpAddr, site: SiteId) {
        let address = address(ip);
        if self.by_site.len() >= KNOWN_LIMIT && !self.by_site.contains_key(&site) {
            // Some of these sites no longer exist; the others are noted again when they come back.
            self.by_site.clear();
            self.known.clear();
        }
        let before = self.by_site.insert(site, address);
        if before != Some(address) {
            self.known.entry(address).or_insert(Known { sites: 0, last: now }).sites += 1;
            if let Some(before) = before
                && let Some(known) = self.known.get_mut(&before)
            {
                known.sites -= 1;
                if known.sites == 0 {
                    self.known.remove(&before);
                }
            }
        }
        self.known.get_mut(&address).into_iter().for_each(|known| known.last = now);
    }
}
