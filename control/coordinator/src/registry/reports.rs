//! What gateways tell of their paths, once somebody wants to know. It stays in memory, as long as the gateway is
//! connected, and no other site is told of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use penstock_proto::coordination::{PathReport, Paths, Reports, SiteKey};

use super::{Registry, Session};

/// Shortest time between two reports of a gateway, in seconds.
const EVERY: u32 = 10;
/// All gateways together report so often in a second.
const REPORTS_PER_SECOND: u32 = 100;

/// The latest report of each gateway.
#[derive(Debug, Default)]
pub(super) struct Reported {
    wanted: AtomicBool,
    latest: Mutex<HashMap<SiteKey, Arc<[PathReport]>>>,
}

impl Reported {
    pub fn latest(&self) -> MutexGuard<'_, HashMap<SiteKey, Arc<[PathReport]>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Has gateways that connect from now on tell of their paths.
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
}
