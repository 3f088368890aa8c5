//! What a service manager is told (sd_notify(3)): how many sites there are, and that the coordinator is alive. One that
//! is stuck is killed and started again.
//!
//! It is alive as long as its runtime runs tasks, the registry's lock can be taken, and the task of each listener gets
//! round to its next connection.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::registry::{Count, Registry};

/// How often the sites are counted.
const EVERY: Duration = Duration::from_secs(5);
/// Reports per interval of the service manager, since some may be late.
const BEATS: u32 = 4;

/// Calls a listener's task, which answers as soon as it has nothing else to do.
pub type Calls = mpsc::Sender<oneshot::Sender<()>>;
/// The listener's side.
pub type Called = mpsc::Receiver<oneshot::Sender<()>>;

/// Everything that has to answer.
pub struct Pulse {
    registry: Arc<Registry>,
    listeners: Vec<Calls>,
}

impl Pulse {
    /// For a coordinator with this registry and these listeners.
    #[must_use]
    pub fn new(registry: Arc<Registry>, listeners: Vec<Calls>) -> Self {
        Self { registry, listeners }
    }

    /// Tells the service manager the coordinator's state, and that it is alive as long as it is. Does nothing without a
    /// service manager.
    pub async fn beat(self) -> Infallible {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return pending().await;
        }
        let watchdog = sd_notify::watchdog_enabled();
        let mut ticks = interval(watchdog.map_or(EVERY, |limit| EVERY.min(limit / BEATS)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            ticks.tick().await;
            let count = self.count().await;
            if told != Some(count) {
                tell(NotifyState::Status(&summary(count)));
                told = Some(count);
            }
            if watchdog.is_some() {
                tell(NotifyState::Watchdog);
            }
        }
    }

    /// Returns when everything has answered; never, if something does not.
    async fn count(&self) -> Count {
        let registry = self.registry.clone();
        // In a task, because the runtime's own threads have to be able to run one.
        let Ok(count) = tokio::spawn(async move { registry.count() }).await else { return pending().await };
        for listener in &self.listeners {
            let (answer, answered) = oneshot::channel();
            if listener.send(answer).await.is_err() || answered.await.is_err() {
                return pending().await;
            }
        }
        count
    }
}

/// The coordinator's state in a line.
fn summary(Count { approved, connected, waiting, .. }: Count) -> String {
    let sites = if approved == 1 { "site" } else { "sites" };
    let more = if waiting == 0 { String::new() } else { format!(", {waiting} waiting for approval") };
    format!("{approved} {sites}, {connected} connected{more}")
}

/// Tells the service manager something. Does nothing without one.
pub fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot notify the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::config::Document;
    use crate::run::Coordinator;

    async fn coordinator(state: &std::path::Path) -> Coordinator {
        std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700)).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let document = Document {
            listen: Some(vec![any]),
            udp_listen: Some(vec![any]),
            names: Some(vec!["coordinator.test".into()]),
            state: Some(state.to_owned()),
            stun_alternate_port: Some(0),
            ..Document::default()
        };
        Coordinator::start(document.try_into().unwrap()).await.unwrap()
    }

    async fn is_alive(pulse: &Pulse, within: Duration) -> bool {
        timeout(within, pulse.count()).await.is_ok()
    }

    const SOON: Duration = Duration::from_secs(10);
    const WHILE: Duration = Duration::from_millis(300);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_stops_with_the_registry_and_with_a_listener() {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path()).await;
        let pulse = Arc::new(coordinator.pulse());
        assert!(is_alive(&pulse, SOON).await);
        let stuck = pulse.registry.stuck();
        let during = pulse.clone();
        let counted = tokio::spawn(async move { during.count().await });
        // Not by the runtime's timers: the coordinator's own tasks may have taken its threads to wait for the lock.
        std::thread::sleep(WHILE);
        assert!(!counted.is_finished(), "the registry's lock is held");
        drop(stuck);
        assert!(timeout(SOON, counted).await.is_ok());
        drop(coordinator);
        let listening = async { while is_alive(&pulse, WHILE).await {} };
        timeout(SOON, listening).await.expect("nobody listens");
    }
}
