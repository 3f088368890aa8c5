//! The gateway's side of coordination: an outbound connection to the coordinator, which is kept up.
//!
//! ```text
//!            ┌ connect ┐  ┌── session ──┐
//!   TCP/443  │ proxy   │  │ challenge,  │   events    ┌─────────┐
//!  ◄────────►│ TLS 1.3 ├─►│ proof, map, ├────────────►│ gateway │
//!            │ upgrade │  │ updates     │◄────────────┤         │
//!            └─────────┘  └──────┬──────┘  announce   └─────────┘
//!                                └────────► cached map, a file
//! ```
//! A [`Client`] owns one task that connects, applies updates to the map, and reconnects when the connection is lost.
//! What is known stays known meanwhile: a coordinator that is down takes nothing away. [`RelayStream`] is the path to a
//! relay where UDP is blocked.
//!
//! Reading order: [`penstock_connect`], `connect`, `session`, `task`, [`cache`], [`stream`](RelayStream).

pub mod cache;
mod connect;
mod enrol;
pub mod seen;
mod session;
mod stream;
mod task;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use penstock_connect::{CoordinatorUrl, Destinations, Outbound, Proxy, Trust};
use penstock_proto::coordination::{Map, Paths, Reachability, Refusal, Registration, Reports};
use penstock_proto::trust::{AuthorityKey, Document};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::key::PrivateKey;
use crate::profile::{Name, Profile};

pub use cache::{CacheError, Cached};
pub use enrol::{EnrolError, Enrolled, enrol};
pub use stream::RelayStream;
use task::Said;

/// Events that may wait for the gateway. When the queue is full, the coordinator has to wait.
const EVENT_QUEUE: usize = 16;

/// How long writing the map may take at the end: a disk that hangs must not keep the gateway from stopping.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The configuration of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The coordinator's URL.
    pub url: CoordinatorUrl,
    /// Which certificates the coordinator may have.
    pub trust: Trust,
    /// This site's private key.
    pub private_key: PrivateKey,
    /// The subnets that we offer, without host bits.
    pub subnets: Vec<IpNet>,
    /// The authority that must have signed what the coordinator says about sites; `None`: its own word counts.
    pub authority: Option<AuthorityKey>,
    /// The file of the cached map.
    pub cache: PathBuf,
    /// The file of the signed documents that this gateway has seen.
    pub seen: PathBuf,
    /// The firewall mark of our sockets (SO_MARK); 0 for no mark.
    pub mark: u32,
}

/// An event of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The coordinator has accepted us. A [`Registered`](Self::Registered) follows at once.
    Connected,
    /// Its record of us, sent again whenever it changes. While it is pending, no map comes.
    Registered(Registration),
    /// Signed documents, ahead of what depends on them.
    Documents(Vec<Document>),
    /// The whole map, with the latest changes applied.
    Map(Arc<Map>),
    /// The coordinator wants reports on paths, as long as this connection lasts.
    Reports(Reports),
    /// The connection is lost, or could not be made; the reason in one sentence. It will be tried again. All that is
    /// known stays in force.
    Lost(String),
    /// The coordinator refused us. It will be tried again all the same, slowly if that is unlikely to help. After
    /// [`Revoked`](penstock_proto::coordination::RefusalReason::Revoked) the cached map is deleted, and the peers from
    /// it are to be removed too; after any other reason what is known stays in force.
    Refused(Refusal),
}

/// The state of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first attempt has not ended yet.
    Connecting,
    /// The coordinator has accepted us.
    Connected {
        /// Since this time.
        since: SystemTime,
    },
    /// There is no connection; it is tried again and again.
    Disconnected {
        /// Since this time.
        since: SystemTime,
        /// The last error, in one sentence.
        why: String,
    },
}

/// A connection to the coordinator that is kept up until this is dropped.
#[derive(Debug)]
pub struct Client {
    events: mpsc::Receiver<Event>,
    reachability: watch::Sender<Option<Reachability>>,
    paths: watch::Sender<Paths>,
    hurry: Arc<Notify>,
    state: Arc<Mutex<State>>,
    stop: oneshot::Sender<()>,
    // Aborted when dropped.
    task: JoinSet<()>,
}

impl Config {
    /// What the profile says about the coordinator, if it names one.
    #[must_use]
    pub fn of(profile: &Profile) -> Option<Self> {
        let coordinator = profile.coordinator.as_ref()?;
        Some(Self {
            url: coordinator.url.clone(),
            trust: coordinator.trust.clone(),
            private_key: profile.private_key.clone(),
            subnets: profile.lan.announced(),
            authority: coordinator.authority,
            cache: cache_file(&profile.name),
            seen: seen::file(&profile.name),
            mark: profile.mark,
        })
    }
}

/// Whether TCP gets through to the coordinator, directly or through the proxy. Nothing is sent over it.
///
/// # Errors
/// Why not, in one sentence.
pub async fn reach(url: &CoordinatorUrl, outbound: &Outbound) -> Result<(), String> {
    penstock_connect::reach(url.endpoint(), outbound).await.map(drop).map_err(|error| error.to_string())
}

/// The file of the cached map of the gateway of that name.
#[must_use]
pub fn cache_file(name: &Name) -> PathBuf {
    crate::state::directory().join(format!("{name}.map"))
}

impl Client {
    /// Starts connecting, through the proxy that the environment asks for, and notes its address. Must be called within
    /// a tokio runtime.
    #[must_use]
    pub fn start(config: Config, destinations: Destinations) -> Self {
        let outbound = Outbound { destinations, ..Outbound::new(Proxy::of_environment(), config.mark) };
        Self::start_through(config, outbound)
    }

    /// As [`start`](Self::start), by way of `outbound`.
    #[must_use]
    pub fn start_through(config: Config, outbound: Outbound) -> Self {
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
        let (reachability, announced) = watch::channel(None);
        let (paths, reported) = watch::channel(Paths::default());
        let hurry = Arc::new(Notify::new());
        let state = Arc::new(Mutex::new(State::Connecting));
        let mut tasks = JoinSet::new();
        let (stop, stopped) = oneshot::channel();
        let said = Said { announced, reported };
        tasks.spawn(task::run(config, outbound, event_sender, said, hurry.clone(), state.clone(), stopped));
        Self { events, reachability, paths, hurry, state, stop, task: tasks }
    }

    /// What the coordinator last said, for a start without it. `None` if there is nothing, or nothing that can be
    /// believed, which is logged.
    #[must_use]
    pub fn cached(config: &Config) -> Option<Cached> {
        match Cached::read(&config.cache, &config.private_key, &config.url) {
            Ok(cached) => cached,
            Err(error) => {
                tracing::warn!("the cached map {} is not used: {error}", config.cache.display());
                None
            }
        }
    }

    /// The next event. Nothing is lost if this is cancelled.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The task ends only with the client.
            None => std::future::pending().await,
        }
    }

    /// Tells the coordinator where we can be reached. This replaces what was announced before, and is announced again
    /// after each reconnect. No more than [`CANDIDATES_LIMIT`](penstock_proto::coordination::limits::CANDIDATES_LIMIT)
    /// candidates are sent.
    pub fn announce(&self, reachability: Reachability) {
        self.reachability.send_replace(Some(reachability));
    }

    /// Tells the coordinator of our paths, if it has asked for that in this connection.
    pub fn report(&self, paths: Paths) {
        self.paths.send_replace(paths);
    }

    /// The network has changed: an existing connection is tested, a missing one tried soon.
    pub fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Ends the connection, and makes sure that the map is stored for the next start.
    pub async fn stop(mut self) {
        drop(self.stop);
        // Otherwise the task might wait for room in a queue that nobody reads any more.
        self.events.close();
        let _ = tokio::time::timeout(STOP_LIMIT, self.task.join_next()).await;
    }

    /// The state of the connection.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
