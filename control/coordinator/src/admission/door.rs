//! [`Admission`] for connections that are tasks: each watches for its own eviction while it works.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use penstock_proto::path::SiteId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::limits::PATIENCE;
use super::{Admission, AdmissionError, SlotNumber};

/// The entrance of all connections.
#[derive(Debug, Default)]
pub struct Door {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    admission: Admission,
    /// Tells a connection that its slot is lost.
    lost: HashMap<SlotNumber, watch::Sender<bool>>,
    refused: BTreeMap<&'static str, u64>,
    lines_left_out: u64,
}

/// How many connections have not proven themselves yet, and how many were refused since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DoorReport {
    /// Connections that have not proven anything yet.
    pub unproven: usize,
    /// Refused connections, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Log lines about these that were suppressed because there were too many.
    pub lines_left_out: u64,
}

/// The slot of a connection without a proof. Released when dropped or proven.
#[derive(Debug)]
pub struct Slot {
    door: Arc<Door>,
    number: SlotNumber,
    ip: IpAddr,
    deadline: Instant,
    lost: watch::Receiver<bool>,
}

impl Door {
    /// Takes a slot for a connection from this address.
    ///
    /// # Errors
    /// There is no slot.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Result<Slot, AdmissionError> {
        let mut inner = self.lock();
        let outcome = inner.admission.admit(now, ip);
        while let Some(evicted) = inner.admission.poll_evicted() {
            inner.lost.remove(&evicted).into_iter().for_each(|lost| _ = lost.send(true));
        }
        let number = outcome.inspect_err(|error| inner.refuse(error.name()))?;
        let (sender, lost) = watch::channel(false);
        inner.lost.insert(number, sender);
        drop(inner);
        Ok(Slot { door: self.clone(), number, ip, deadline: now + PATIENCE, lost })
    }

    /// How many wait at this moment, and how many were refused so far.
    #[must_use]
    pub fn report(&self) -> DoorReport {
        let inner = self.lock();
        DoorReport {
            unproven: inner.admission.taken(),
            refused: inner.refused.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            lines_left_out: inner.lines_left_out,
        }
    }

    // Nothing inside is ever left half-changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn refuse(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }
}

impl Slot {
    /// Counts a refused connection.
    pub fn refused(&self, reason: &'static str) {
        self.door.lock().refuse(reason);
    }

    /// Returns when the slot is lost or its time is over. Must not be called after the proof.
    pub async fn over(&self) {
        let mut lost = self.lost.clone();
        let lost = async {
            if lost.wait_for(|lost| *lost).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = lost => {}
            () = sleep_until(self.deadline.into()) => {}
        }
    }

    /// The connection is a site's: it no longer needs the slot.
    pub fn proven(&self, site: SiteId) {
        let mut inner = self.door.lock();
        inner.lost.remove(&self.number);
        inner.admission.proven(Instant::now(), self.number, site);
    }

    /// The client showed a wrong proof or key. Returns how long the answer has to wait.
    #[must_use]
    pub fn failed(&self) -> Duration {
        self.door.lock().admission.failed(Instant::now(), self.ip)
    }

    /// Whether a line may be logged about this connection.
    #[must_use]
    pub fn may_log(&self) -> bool {
        let mut inner = self.door.lock();
        let may = inner.admission.may_log(Instant::now(), self.ip);
        inner.lines_left_out += u64::from(!may);
        may
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.door.lock();
        inner.lost.remove(&self.number);
        inner.admission.leave(self.number);
    }
}
