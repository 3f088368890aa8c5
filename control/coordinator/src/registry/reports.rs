//! What gateways report of their paths, once somebody wants to know. It stays in memory, the latest report as long as
//! the gateway is connected, the [history](super::history) for two hours; no other site is told of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use penstock_proto::coordination::{PathReport, Paths, Reports, SiteKey};

use super::history::{History, Past};
use super::{Registry, Session};

/// Shortest time between two reports of a gateway, in seconds.
const EVERY: u32 = 10;
/// How many reports all gateways together send per second.
const REPORTS_PER_SECOND: u32 = 100;

/// The latest report of each gateway, and how its paths were before.
#[derive(Debug)]
pub(super) struct Reported {
    wanted: AtomicBool,
    latest: Mutex<HashMap<SiteKey, Arc<[PathReport]>>>,
    history: Mutex<History>,
}

impl Reported {
    pub fn new(now: Instant) -> Self {
        Self { wanted: AtomicBool::new(false), latest: Mutex::default(), history: Mutex::new(History::new(now)) }
    }

    pub fn latest(&self) -> MutexGuard<'_, HashMap<SiteKey, Arc<[PathReport]>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Has gateways that connect from now on report their paths.
    pub fn want_reports(&self) {
        self.reported.wanted.store(true, Ordering::Relaxed);
    }

    /// What to ask gateways for.
    #[must_use]
    pub fn wanted_reports(&self) -> Option<Reports> {
        let sites = || u32::try_from(self.state().sites().count()).unwrap_or(u32::MAX);
        let wanted = self.reported.wanted.load(Ordering::Relaxed);
        wanted.then(|| Reports { every: EVERY.max(sites() / REPORTS_PER_SECOND) })
    }

    /// Takes note of a gateway's paths, unless nobody has asked for them.
    pub fn set_paths(&self, session: &Session, paths: Paths) {
        if self.reported.wanted.load(Ordering::Relaxed) {
            self.reported.latest().insert(session.key(), paths.paths.into());
        }
    }
    /// Adds the latest reports to the history. To be called every [`EVERY`](super::history::EVERY).
    pub fn record_history(&self, now: Instant) {
        let latest = self.reported.latest().clone();
        self.reported.history().record(now, &latest);
    }

    /// How far back the history reaches, and the past of these links.
    #[must_use]
    pub fn past<'a>(&self, links: impl IntoIterator<Item = [&'a SiteKey; 2]>) -> (Duration, Vec<Past>) {
        let history = self.reported.history();
        (history.span(), links.into_iter().map(|ends| history.link(ends)).collect())
    }
}
