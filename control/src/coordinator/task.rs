//! The task of a client: connect, talk, wait, and again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use penstock_connect::{Backoff, Outbound};
use penstock_proto::Bucket;
use penstock_proto::coordination::limits::{CANDIDATES_LIMIT, PEERS_LIMIT, SILENCE_LIMIT};
use penstock_proto::coordination::{
    CoordinatorMessage, Documents, GatewayMessage, Map, Paths, Reachability, RefusalReason, Registration,
    RegistrationState,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};

use super::cache::Cached;
use super::session::{End, Identity, Session};
use super::{Config, Event, State};

/// Pauses between two attempts: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Pause after a refusal that trying again cannot undo, though an administrator may.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// Pause when the network has changed: more changes may follow at once.
const HURRIED_PAUSE: Duration = Duration::from_millis(300);
/// A connection that lasted this long was a good one: pauses start again with the shortest.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);
/// How long the coordinator may take to answer when the network has changed.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How often we may announce where we are: in a row, and on average. The coordinator allows twice as much.
const ANNOUNCE_BURST: u32 = 10;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
/// How soon the next announcement is tried when there were too many.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(500);
/// Shortest average time between two writes of the cached map, and writes in a row: addresses change often, but what is
/// new should not be lost when we crash.
const CACHE_INTERVAL: Duration = Duration::from_secs(5);
const CACHE_BURST: u32 = 10;

/// What the gateway has to say, the latest of each.
pub(super) struct Said {
    pub announced: watch::Receiver<Option<Reachability>>,
    pub reported: watch::Receiver<Paths>,
}

/// Runs until the client is dropped, or told to stop by `stop`; then it writes what is not in the file yet.
pub(super) async fn run(
    config: Config,
    outbound: Outbound,
    events: mpsc::Sender<Event>,
    said: Said,
    hurry: Arc<Notify>,
    state: Arc<Mutex<State>>,
    stop: oneshot::Receiver<()>,
) {
    // What is wrong with the file was already logged by whoever read it first.
    let known = Cached::read(&config.cache, &config.private_key, &config.url).ok().flatten();
    let (cache, to_be_cached) = watch::channel(None);
    let (map, registration) = known.map_or((None, None), |known| (Some(Arc::new(known.map)), Some(known.registration)));
    let task = Task { map, registration, outbound, events, said, reports: false, hurry, state, cache, config };
    let stopping = Notify::new();
    let writer = write_cache(task.config.clone(), to_be_cached, &stopping);
    let connection = async {
        tokio::select! {
            () = task.run() => {}
            _ = stop => {}
        }
        stopping.notify_one();
    };
    tokio::join!(connection, writer);
}

/// The last thing to be done to the file; `None`: nothing yet.
type Write = Option<Content>;

#[derive(Clone)]
enum Content {
    Keep(Registration, Arc<Map>),
    Remove,
}

struct Task {
    config: Config,
    outbound: Outbound,
    events: mpsc::Sender<Event>,
    said: Said,
    /// Whether the coordinator has asked for reports on paths in this connection.
    reports: bool,
    hurry: Arc<Notify>,
    state: Arc<Mutex<State>>,
    cache: watch::Sender<Write>,
    /// What we know. `None`: the coordinator is to send the whole map.
    map: Option<Arc<Map>>,
    registration: Option<Registration>,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut said = String::new();
        loop {
            let start = Instant::now();
            let Err(end) = self.connect().await;
            if self.was_connected() && start.elapsed() >= GOOD_CONNECTION {
                backoff.reset();
            }
            let why = end.to_string();
            // The same reason is not reported twice in a row.
            if said != why {
                tracing::warn!("no connection to the coordinator {}: {why}", self.config.url);
                said.clone_from(&why);
            }
            self.set_disconnected(why.clone());
            let mut pause = backoff.pause();
            let event = match end {
                End::Refused(refusal) => {
                    if refusal.reason == RefusalReason::Revoked {
                        self.forget();
                    }
                    if !refusal.reason.is_passing() {
                        pause = REFUSED_PAUSE;
                    }
                    Event::Refused(refusal)
                }
                _ => Event::Lost(why),
            };
            self.tell(event).await;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.hurry.notified() => sleep(HURRIED_PAUSE).await,
            }
        }
    }

    /// One connection, from beginning to end.
    async fn connect(&mut self) -> Result<std::convert::Infallible, End> {
        let known = self.map.as_ref().map(|map| map.known());
        let identity = Identity {
            url: &self.config.url,
            trust: &self.config.trust,
            outbound: &self.outbound,
            private_key: &self.config.private_key,
            subnets: &self.config.subnets,
        };
        let (mut session, registration) = tokio::select! {
            opened = Session::open(identity, None, known) => opened?,
            // An attempt that was begun in another network may never end.
            () = self.hurry.notified() => return Err(End::Hurried),
        };
        tracing::info!("connected to the coordinator {}", self.config.url);
        self.set(State::Connected { since: SystemTime::now() });
        self.tell(Event::Connected).await;
        self.register(registration).await;
        self.converse(&mut session).await
    }

    async fn converse(&mut self, session: &mut Session) -> Result<std::convert::Infallible, End> {
        // Everything is announced again.
        self.said.announced.mark_changed();
        // The coordinator before may have asked for more than this one understands.
        self.reports = false;
        let mut announcements = Bucket::default();
        let mut next_announcement: Option<Instant> = None;
        let mut asked: Option<Instant> = None;
        loop {
            let deadline = match asked {
                Some(asked) if session.heard() < asked => asked + ANSWER_PATIENCE,
                _ => session.heard() + SILENCE_LIMIT,
            };
            let due = next_announcement.unwrap_or(deadline);
            tokio::select! {
                message = session.receive() => self.handle_message(message?).await?,
                Ok(()) = self.said.announced.changed(), if next_announcement.is_none() => {
                    next_announcement = Some(Instant::now());
                }
                () = sleep_until(due.into()), if next_announcement.is_some() => {
                    next_announcement = None;
                    if !announcements.take(Instant::now(), ANNOUNCE_INTERVAL, ANNOUNCE_INTERVAL * ANNOUNCE_BURST) {
                        next_announcement = Some(Instant::now() + ANNOUNCE_PAUSE);
                        continue;
                    }
                    let latest = self.said.announced.borrow_and_update().clone();
                    if let Some(mut reachability) = latest {
                        reachability.candidates.truncate(CANDIDATES_LIMIT);
                        session.send(&GatewayMessage::Reachability(reachability)).await?;
                    }
                }
                Ok(()) = self.said.reported.changed(), if self.reports => {
                    let paths = self.said.reported.borrow_and_update().clone();
                    session.send(&GatewayMessage::Paths(paths)).await?;
                }
                () = self.hurry.notified() => {
                    asked = Some(Instant::now());
                    session.ping().await?;
                }
                () = sleep_until(deadline.into()) => {
                    // Something may have come meanwhile, even if only part of a message.
                    let now = Instant::now();
                    match asked {
                        Some(asked) if session.heard() < asked && now >= asked + ANSWER_PATIENCE => {
                            return Err(End::Silent(ANSWER_PATIENCE));
                        }
                        _ if now >= session.heard() + SILENCE_LIMIT => return Err(End::Silent(SILENCE_LIMIT)),
                        _ => {}
                    }
                }
            }
        }
    }

    async fn handle_message(&mut self, message: CoordinatorMessage) -> Result<(), End> {
        match message {
            CoordinatorMessage::Registration(registration) => self.register(registration).await,
            CoordinatorMessage::Map(map) if map.peers.len() > PEERS_LIMIT => {
                return Err(End::Unexpected("a map with too many peers"));
            }
            CoordinatorMessage::Map(map) => {
                self.map = Some(Arc::new(map));
                self.tell_map().await;
            }
            CoordinatorMessage::Update(update) => {
                let applied = self.map.as_mut().map(|map| Arc::make_mut(map).apply(update));
                if !matches!(applied, Some(Ok(()))) {
                    // The next connection asks for the whole map. The gateway keeps what it has.
                    self.map = None;
                    return Err(End::Unexpected("an increment that does not fit the map"));
                }
                self.tell_map().await;
            }
            CoordinatorMessage::Documents(Documents { documents }) => self.tell(Event::Documents(documents)).await,
            CoordinatorMessage::Reports(reports) => {
                self.reports = true;
                self.said.reported.mark_unchanged();
                self.tell(Event::Reports(reports)).await;
            }
            CoordinatorMessage::Refused(refusal) => return Err(End::Refused(refusal)),
            CoordinatorMessage::Challenge(_) => return Err(End::Unexpected("a second challenge")),
            // Messages for relays do not concern us.
            CoordinatorMessage::Access(_) | CoordinatorMessage::Unknown => {}
        }
        Ok(())
    }

    async fn register(&mut self, registration: Registration) {
        if self.registration.as_ref() != Some(&registration) {
            match registration.state {
                RegistrationState::Approved => tracing::info!("registered as {}", registration.name),
                RegistrationState::Pending => {
                    tracing::warn!("{} waits for an administrator to approve it", registration.name);
                }
            }
        }
        self.registration = Some(registration.clone());
        self.tell(Event::Registered(registration)).await;
        self.keep();
    }

    async fn tell_map(&mut self) {
        let Some(map) = self.map.clone() else { return };
        self.keep();
        self.tell(Event::Map(map)).await;
    }

    async fn tell(&self, event: Event) {
        // An error means that the client is gone, and we soon will be too.
        let _ = self.events.send(event).await;
    }

    /// Has what we know written to the file.
    fn keep(&self) {
        if let (Some(registration), Some(map)) = (&self.registration, &self.map) {
            self.cache.send_replace(Some(Content::Keep(registration.clone(), map.clone())));
        }
    }

    fn forget(&mut self) {
        (self.map, self.registration) = (None, None);
        self.cache.send_replace(Some(Content::Remove));
    }

    fn was_connected(&self) -> bool {
        matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Connected { .. })
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn set_disconnected(&self, why: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*state {
            State::Disconnected { since, .. } => *since,
            State::Connecting | State::Connected { .. } => SystemTime::now(),
        };
        *state = State::Disconnected { since, why };
    }
}

/// Writes the file whenever its contents change, but not too often.
async fn write_cache(config: Config, mut content: watch::Receiver<Write>, stopping: &Notify) {
    let mut said = String::new();
    let mut writes = Bucket::default();
    while content.changed().await.is_ok() {
        let Some(latest) = content.borrow_and_update().clone() else { continue };
        let config = config.clone();
        let written = tokio::task::spawn_blocking(move || match latest {
            Content::Keep(registration, map) => {
                let cached = Cached { registration, map: Arc::unwrap_or_clone(map) };
                cached.write(&config.cache, &config.private_key, &config.url)
            }
            Content::Remove => crate::sealed::remove(&config.cache),
        });
        let why = match written.await {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error.to_string(),
            Err(gone) => gone.to_string(),
        };
        if said != why && !why.is_empty() {
            tracing::warn!("the map cannot be cached for a start without the coordinator: {why}");
        }
        said = why;
        while !writes.take(Instant::now(), CACHE_INTERVAL, CACHE_INTERVAL * CACHE_BURST) {
            // A stop cuts this short.
            if timeout(CACHE_INTERVAL, stopping.notified()).await.is_ok() {
                break;
            }
        }
    }
}
