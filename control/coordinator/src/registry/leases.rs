//! Leases: what keeps the statements of approved sites alive.
//!
//! Each site's lease is renewed when an eighth of it is over, and pushed to whoever is connected. Only a bound on the
//! serials is stored, once an hour.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use penstock_proto::coordination::SiteKey;
use penstock_proto::trust::{LeaseKey, LeaseLength, Lessor, Serial, SigningKey};

use super::state::State;
use super::{ChangeError, Ledger, Registry};
use crate::signer;

/// The most leases signed under the lock at a time: two milliseconds.
const AT_A_TIME: usize = 64;
/// How many serials are reserved at a time: an hour of milliseconds, since serials are times.
const RESERVED: u64 = 3_600_000;
/// When this few are left, more are reserved.
const FEW: u64 = 600_000;

/// Signs the leases of sites, and renews them.
pub(super) struct Leases {
    lessor: Mutex<Lessor>,
    pub length: LeaseLength,
    given: AtomicU64,
}

impl Leases {
    /// `last` is a serial that no lease has had yet.
    pub fn new(key: SigningKey, length: LeaseLength, last: Serial) -> Self {
        Self { lessor: Mutex::new(Lessor::new(key, length, last)), length, given: AtomicU64::new(0) }
    }

    pub fn key(&self) -> LeaseKey {
        self.lessor().key()
    }

    pub fn lessor(&self) -> MutexGuard<'_, Lessor> {
        self.lessor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Makes sure that leases can be issued: that, even after a restart, none of the next serials has been used before.
    pub(super) async fn reserve_leases(&mut self, leases: &Leases) -> Result<(), ChangeError> {
        let next = leases.lessor().last().0.max(signer::now().0.saturating_mul(1_000));
        if next.saturating_add(FEW) > self.lease_bound.0 {
            let bound = Serial(next.saturating_add(RESERVED));
            self.store.reserve_leases(bound).await?;
            self.lease_bound = bound;
        }
        Ok(())
    }
}

impl Registry {
    /// How often [`renew_leases`](Self::renew_leases) is to be called.
    #[must_use]
    pub fn lease_interval(&self) -> Duration {
        (self.leases.length.renewal() / 8).clamp(Duration::from_millis(250), Duration::from_secs(60))
    }

    /// How many leases were issued since the start.
    #[must_use]
    pub fn leases_given(&self) -> u64 {
        self.leases.given.load(Relaxed)
    }

    /// Issues new leases to the sites whose lease is due, and tells the others.
    ///
    /// # Errors
    /// It could not be stored which serials are used; it will be retried.
    pub async fn renew_leases(&self) -> Result<(), ChangeError> {
        self.ledger.lock().await.reserve_leases(&self.leases).await?;
        let due = self.state().leases_due(Instant::now(), self.leases.length.renewal());
        if due.is_empty() {
            return Ok(());
        }
        for some in due.chunks(AT_A_TIME) {
            self.lease(some, |_| ());
            tokio::task::yield_now().await;
        }
        self.wake_all().await;
        Ok(())
    }

    /// Gives each of these sites a lease, if it is approved after the change that is made in the same step.
    pub(super) fn lease(&self, sites: &[SiteKey], change: impl FnOnce(&mut State)) {
        // The lessor stays locked until the leases are in place, so that none is put there after one with a higher
        // serial.
        let mut lessor = self.leases.lessor();
        let now = signer::now();
        let leases: Vec<_> = sites.iter().map(|site| lessor.lease(now, *site)).collect();
        self.leases.given.fetch_add(leases.len() as u64, Relaxed);
        let mut state = self.state();
        change(&mut state);
        leases.into_iter().for_each(|lease| state.take_lease(Instant::now(), lease));
    }

    /// Makes every connection check whether there is something to send, some at a time.
    pub(super) async fn wake_all(&self) {
        let mut next = 0;
        loop {
            let after = self.state().wake_some(next);
            let Some(after) = after else { return };
            next = after;
            tokio::task::yield_now().await;
        }
    }
}
