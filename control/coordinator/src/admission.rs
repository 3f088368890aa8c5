//! Who may connect: limits on those who have proven nothing yet.
//!
//! A proven site has one connection, so their number is bounded by the number of sites. What is bounded
//! here is everybody else: how many at once, in all and from one source, and how often one source may
//! fail.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most connections without a proof. Each takes some 50 kB of TLS and HTTP buffers.
pub const UNPROVEN_LIMIT: u32 = 1024;
/// Most of them from one source: gateways behind one NAT that come back all at once.
pub const UNPROVEN_SOURCE_LIMIT: u32 = 32;
/// How many failures in a row a source has: typing a key wrong takes one.
pub const FAILURE_BURST: u32 = 20;
/// How long until a source may fail once more.
pub const FAILURE_INTERVAL: Duration = Duration::from_secs(3);
/// Most sources remembered. Beyond, the failures of those without a connection are forgotten.
const SOURCES_LIMIT: usize = 65_536;

/// Counts connections and failures.
#[derive(Debug, Default)]
pub struct Admission {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    unproven: u32,
    sources: HashMap<Source, Entry>,
}

/// An IPv4 address, or the /64 of an IPv6 address: a host has a whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(IpAddr);

#[derive(Debug, Default)]
struct Entry {
    unproven: u32,
    /// When the failures so far are forgiven.
    forgiven: Option<Instant>,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// There are too many without a proof.
    #[error("too many connections without a proof")]
    Full,
    /// There are too many of this source.
    #[error("too many connections without a proof from this source")]
    SourceFull,
    /// The source failed too often.
    #[error("too many failures from this source")]
    Failures,
}

/// The place of a connection without a proof. Given back when dropped or proven.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    source: Source,
    held: AtomicBool,
}

impl Admission {
    /// Takes a place for a connection from that address.
    ///
    /// # Errors
    /// There is none.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Result<Place, Turned> {
        let source = Source::of(ip);
        let mut table = self.table();
        if table.unproven >= UNPROVEN_LIMIT {
            return Err(Turned::Full);
        }
        if table.sources.len() >= SOURCES_LIMIT {
            table.sources.retain(|_, entry| entry.unproven > 0);
        }
        let entry = table.sources.entry(source).or_default();
        if entry.debt(now) + FAILURE_INTERVAL > FAILURE_INTERVAL * FAILURE_BURST {
            return Err(Turned::Failures);
        }
        if entry.unproven >= UNPROVEN_SOURCE_LIMIT {
            return Err(Turned::SourceFull);
        }
        entry.unproven += 1;
        table.unproven += 1;
        drop(table);
        Ok(Place { admission: self.clone(), source, held: AtomicBool::new(true) })
    }

    // A counter is never left half-changed.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The one who connected is a site: it needs no place any more.
    pub fn proven(&self) {
        self.give_back(None);
    }

    /// The one who connected showed a wrong proof or key.
    pub fn failed(&self, now: Instant) {
        self.give_back(Some(now));
    }

    fn give_back(&self, failed: Option<Instant>) {
        if !self.held.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut table = self.admission.table();
        table.unproven -= 1;
        let Some(entry) = table.sources.get_mut(&self.source) else { return };
        entry.unproven -= 1;
        if let Some(now) = failed {
            entry.forgiven = Some(now + entry.debt(now) + FAILURE_INTERVAL);
        }
        if entry.unproven == 0 && entry.forgiven.is_none_or(|forgiven| forgiven <= failed.unwrap_or_else(Instant::now))
        {
            table.sources.remove(&self.source);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

impl Entry {
    fn debt(&self, now: Instant) -> Duration {
        self.forgiven.map_or(Duration::ZERO, |forgiven| forgiven.saturating_duration_since(now))
    }
}

impl Source {
    fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
            v4 => v4,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn places_are_bounded_in_all_and_per_source_and_come_back() {
        let admission = Arc::new(Admission::default());
        let now = Instant::now();
        let mut places: Vec<Place> = (0..UNPROVEN_SOURCE_LIMIT).map(|_| admission.admit(v4(1), now).unwrap()).collect();
        assert_eq!(admission.admit(v4(1), now).unwrap_err(), Turned::SourceFull);
        places[0].proven();
        let again = admission.admit(v4(1), now).unwrap();
        drop(places.remove(0));
        assert_eq!(admission.admit(v4(1), now).unwrap_err(), Turned::SourceFull, "a place is given back once");
        for number in 0..UNPROVEN_LIMIT - UNPROVEN_SOURCE_LIMIT {
            places.push(admission.admit(v4(2 + number), now).unwrap());
        }
        assert_eq!(admission.admit(v4(u32::MAX), now).unwrap_err(), Turned::Full);
        drop((places, again));
        assert!(admission.table().sources.is_empty());
        assert_eq!(admission.table().unproven, 0);
    }

    #[test]
    fn failures_are_forgiven_with_time() {
        let admission = Arc::new(Admission::default());
        let start = Instant::now();
        for _ in 0..FAILURE_BURST {
            admission.admit(v4(1), start).unwrap().failed(start);
        }
        assert_eq!(admission.admit(v4(1), start).unwrap_err(), Turned::Failures);
        assert!(admission.admit(v4(2), start).is_ok(), "another source is not concerned");
        let later = start + FAILURE_INTERVAL;
        admission.admit(v4(1), later).unwrap().failed(later);
        assert_eq!(admission.admit(v4(1), later).unwrap_err(), Turned::Failures);
        let forgiven = later + FAILURE_INTERVAL * FAILURE_BURST;
        for _ in 0..FAILURE_BURST {
            admission.admit(v4(1), forgiven).unwrap().failed(forgiven);
        }
        assert_eq!(admission.admit(v4(1), forgiven).unwrap_err(), Turned::Failures);
    }

    #[test]
    fn a_host_has_a_whole_64() {
        let admission = Arc::new(Admission::default());
        let now = Instant::now();
        let address = |high: u128, low: u128| IpAddr::V6(Ipv6Addr::from_bits(high << 64 | low));
        let _places: Vec<Place> = (0..u128::from(UNPROVEN_SOURCE_LIMIT))
            .map(|low| admission.admit(address(0x2001_0db8 << 32, low), now).unwrap())
            .collect();
        assert_eq!(admission.admit(address(0x2001_0db8 << 32, 99), now).unwrap_err(), Turned::SourceFull);
        assert!(admission.admit(address((0x2001_0db8 << 32) + 1, 99), now).is_ok());
    }

    #[test]
    fn the_table_does_not_grow_without_end() {
        let admission = Arc::new(Admission::default());
        let now = Instant::now();
        for number in 0..SOURCES_LIMIT as u32 + 10 {
            admission.admit(v4(number), now).unwrap().failed(now);
        }
        assert!(admission.table().sources.len() <= SOURCES_LIMIT);
    }
}
