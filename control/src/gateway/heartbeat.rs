//! What the service manager is told (sd_notify(3)): that the gateway is ready, its state, and that it is alive.
//!
//! It is alive as long as control reaches this code and every worker answers control's call, which wakes it if it
//! sleeps. When one of them is stuck nothing more is reported, and the service manager kills the gateway and starts it
//! again; the guard holds meanwhile.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::time::Interval;

use super::run::ticks;
use super::{Gateway, report};

/// How often the report is updated.
const EVERY: Duration = Duration::from_secs(5);
/// Heartbeats within the service manager's limit: a worker has one interval to answer, and a few may come late.
const BEATS: u32 = 4;

/// The service manager's side of a gateway; idle where there is none.
pub struct Heartbeat {
    /// `None` without a service manager.
    ticks: Option<Interval>,
    watched: bool,
    told: String,
}

impl Heartbeat {
    /// Reports that the gateway is ready. The first beat is due at once.
    pub fn begin() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        let every = watchdog.map_or(EVERY, |limit| EVERY.min(limit / BEATS));
        let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
        let heartbeat = Self { ticks: managed.then(|| ticks(every)), watched: watchdog.is_some(), told: String::new() };
        heartbeat.tell(&[NotifyState::Ready]);
        heartbeat
    }

    /// Waits for the next beat. Cancel safe.
    pub async fn due(&mut self) {
        match &mut self.ticks {
            Some(ticks) => drop(ticks.tick().await),
            None => std::future::pending().await,
        }
    }

    /// Reports the gateway's state, and that it is alive if it is.
    pub fn beat(&mut self, gateway: &Gateway) {
        if self.ticks.is_none() {
            return;
        }
        let summary = report::summary(gateway, Instant::now());
        if summary != self.told {
            self.tell(&[NotifyState::Status(&summary)]);
            self.told = summary;
        }
        if !self.watched {
            return;
        }
        match gateway.plane.workers().call().as_slice() {
            [] => self.tell(&[NotifyState::Watchdog]),
            silent => tracing::error!("workers {silent:?} do not answer; the service manager will end this gateway"),
        }
    }

    /// Reports that the gateway is about to end.
    pub fn end(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        // Without a service manager this does nothing.
        if let Err(error) = sd_notify::notify(state) {
            tracing::warn!("cannot notify the service manager: {error}");
        }
    }
}
