//! What a service manager is told (sd_notify(3)): how many sites there are, and that the coordinator, or the relay on a
//! machine of its own, is alive. One that is stuck is killed and started again.
//!
//! It is alive as long as its runtime runs tasks, the lock of the registry or the relay can be taken, and the task of
//! each listener gets round to its next connection.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::registry::{Count, Registry};
use crate::relay::RelayServer;

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
    program: Program,
    listeners: Vec<Calls>,
}

/// What is behind the listeners.
#[derive(Clone)]
pub enum Program {
    /// A coordinator.
    Coordinator(Arc<Registry>),
    /// A relay on a machine of its own.
    Relay(Arc<RelayServer>),
}

impl Pulse {
    /// For a program with these listeners.
    #[must_use]
    pub fn new(program: Program, listeners: Vec<Calls>) -> Self {
        Self { program, listeners }
    }

    /// Tells the service manager the program's state, and that it is alive, as long as that is so. Does nothing without
    /// a service manager.
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
            let state = self.state().await;
            if told.as_ref() != Some(&state) {
                tell(NotifyState::Status(&state));
                told = Some(state);
            }
            if watchdog.is_some() {
                tell(NotifyState::Watchdog);
            }
        }
    }

    /// Returns when everything has answered; never, if something does not.
    async fn state(&self) -> String {
        let program = self.program.clone();
        // In a task, because the runtime's own threads have to be able to run one.
        let Ok(state) = tokio::spawn(async move { program.state() }).await else { return pending().await };
        for listener in &self.listeners {
            let (answer, answered) = oneshot::channel();
            if listener.send(answer).await.is_err() || answered.await.is_err() {
                return pending().await;
            }
        }
        state
    }
}

impl Program {
    /// Its state in a line.
    fn state(&self) -> String {
        let sites = |count| format!("{count} {}", if count == 1 { "site" } else { "sites" });
        match self {
            Self::Coordinator(registry) => {
                let Count { approved, connected, waiting, .. } = registry.count();
                let more = if waiting == 0 { String::new() } else { format!(", {waiting} waiting for approval") };
                format!("{}, {connected} connected{more}", sites(approved))
            }
            Self::Relay(relay) => {
                let (known, bound) = relay.count();
                format!("{}, {bound} bound", sites(known))
            }
        }
    }
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
        timeout(within, pulse.state()).await.is_ok()
    }

    const SOON: Duration = Duration::from_secs(10);
    const WHILE: Duration = Duration::from_millis(300);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_stops_with_the_registry_and_with_a_listener() {
        let directory = tempfile::tempdir().unwrap();
        let coordinator = coordinator(directory.path()).await;
        let pulse = Arc::new(coordinator.pulse());
        assert!(is_alive(&pulse, SOON).await);
        let Program::Coordinator(registry) = &pulse.program else { panic!("it is a coordinator") };
        let stuck = registry.stuck();
        let during = pulse.clone();
        let counted = tokio::spawn(async move { during.state().await });
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
