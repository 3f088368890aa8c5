//! A running coordinator: puts the parts together, and takes them apart in order.

use std::fs::{DirBuilder, File, TryLockError};
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_connect::TrustError;
use penstock_metrics::http;
use penstock_proto::relay::RelayLimits;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::acme::Renewer;
use crate::admin::{self, Status};
use crate::admission::Door;
use crate::certificate::{CertificateError, Identity};
use crate::config::{CertificateFiles, Config, Serving};
use crate::metrics;
use crate::owner::{self, Exposed};
use crate::page::oidc::Oidc;
use crate::page::origin::Origins;
use crate::page::session::Sessions;
use crate::page::{self, Entrance};
use crate::public::{self, NoAddress};
use crate::pulse::{Calls, Program, Pulse};
use crate::registry::{ChangeError, HISTORY_EVERY, Reader, Registry, Servers, Signing};
use crate::relay::RelayServer;
use crate::relay::access::Follower;
use crate::relay::kept::KeptError;
use crate::relay::key;
use crate::secret::SecretError;
use crate::server::{self, Server, Stop, Streams};
use crate::signer::Keys;
use crate::store::{Store, StoreError};
use crate::udp;

const DATABASE: &str = "coordinator.db";
const LOCK: &str = "lock";

/// How often sites' last connection times are stored.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);
/// How often to check whether a site's time is over.
const END_INTERVAL: Duration = Duration::from_secs(1);
/// How long connections may take to close.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const STOP_STEP: Duration = Duration::from_millis(10);

/// A coordinator that runs. If dropped, it stops without notice, as if it had crashed.
pub struct Coordinator {
    addresses: Vec<SocketAddr>,
    udp_addresses: Vec<SocketAddr>,
    metrics_addresses: Vec<SocketAddr>,
    page_addresses: Vec<SocketAddr>,
    identity: Option<Identity>,
    given: Option<CertificateFiles>,
    certificate: watch::Sender<Arc<ServerConfig>>,
    registry: Arc<Registry>,
    calls: Vec<Calls>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    sockets: JoinSet<()>,
    // Held as long as we use the directory.
    _lock: Lock,
}

/// Why a coordinator does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error("{path}: {error}")]
    Directory {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The state directory, or a file in it, is open to others.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// Another coordinator uses it.
    #[error("another coordinator uses the state directory {0}")]
    Taken(PathBuf),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the database cannot be used.
    #[error(transparent)]
    Content(#[from] ChangeError),
    /// There is no certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The authorities that are to vouch for the ACME server, or for the page's provider, cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A private key cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The signed documents that a relay has kept cannot be used.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// A UDP address cannot be listened at.
    #[error("cannot listen at {0}")]
    Udp(io::Error),
    /// There is no address to tell gateways.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
}

impl Coordinator {
    /// Starts to serve. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What is missing, in one sentence.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let Config { serving, relays, stun_servers, lease, page: page_config } = config;
        let lock = take(&serving.state)?;
        let Served { tls, identity, acme } = serve(&serving)?;
        let store = Store::open(&serving.state.join(DATABASE)).await?;
        let fingerprint = identity.as_ref().filter(|identity| identity.pinned).map(|identity| identity.fingerprint);

        let (listeners, addresses) = listen(&serving.listen).await?;
        let (metrics_listener, metrics_addresses) = listen(serving.metrics.as_slice()).await?;
        let page_listen: Vec<SocketAddr> = page_config.iter().map(|page| page.listen).collect();
        let (page_listeners, page_addresses) = listen(&page_listen).await?;
        let udp = Arc::new(udp::bind(&serving.udp.listen).map_err(StartError::Udp)?);
        let udp_addresses: Vec<SocketAddr> = udp.addresses().collect();
        let told = public::addresses(&serving.udp, &udp_addresses, &serving.names).await?;
        let coordinator = public::coordinator(&serving.names, &addresses).await;
        let mut servers = Servers { relays, stun_servers, coordinator };
        if serving.udp.stun {
            servers.stun_servers.splice(0..0, told.iter().copied());
        }
        let relay = match serving.udp.relay {
            true => Some(Arc::new(RelayServer::new(key::load(&serving.state)?, RelayLimits::default()))),
            false => None,
        };
        if let Some(relay) = &relay {
            let told = public::relay(&serving.names, addresses.first().copied(), fingerprint, relay.public_key(), told);
            servers.relays.insert(0, told);
        }
        let signing = Signing { keys: Keys::of(&serving.state), lease };
        let registry = Arc::new(Registry::load(store, servers, fingerprint, signing).await?);
        let socket = serving.state.join(admin::SOCKET);
        let admin = admin::bind(&socket).map_err(|error| StartError::Directory { path: socket, error })?;

        let (stop, stopped) = watch::channel(false);
        let stopped = Stop(stopped);
        let names = serving.names.clone();
        let server = Arc::new(Server { registry: registry.clone(), names: serving.names, stop: stopped.clone() });
        let streams = relay.clone().map(|relay| Streams { relay, udp: Some(udp.clone()), stop: stopped.clone() });
        let router = server::router(Some(server), streams.map(Arc::new));
        let (certificate, tls) = watch::channel(tls);
        let door = Arc::new(Door::default());
        let mut tasks = JoinSet::new();
        if let Some(relay) = &relay {
            let (reader, follower) = (registry.read_access(), Follower::new(relay.clone()));
            tasks.spawn(follow(registry.clone(), reader, follower));
        }
        let mut calls = Vec::new();
        for listener in listeners {
            let (call, called) = mpsc::channel(1);
            calls.push(call);
            let (tls, router, stopped) = (tls.clone(), router.clone(), stopped.clone());
            tasks.spawn(server::accept(listener, tls, router, door.clone(), called, stopped));
        }
        let sockets = udp::serve(&udp, relay.as_ref());
        let report = acme.as_ref().map(Renewer::report);
        let state = serving.state;
        let entrance = page_config.zip(page_addresses.first()).map(|(page, address)| {
            registry.want_reports();
            tasks.spawn(record_history(registry.clone()));
            let oidc = page.oidc.map(Oidc::new).transpose()?;
            let origins = Origins::new(*address, page.url.as_ref(), &names);
            Ok::<_, StartError>(Arc::new(Entrance { sessions: Sessions::default(), origins, oidc }))
        });
        let entrance = entrance.transpose()?;
        let page = entrance.clone();
        let status =
            Arc::new(Status { registry: registry.clone(), relay, udp, door, page, acme: report, state, names });
        for (listener, entrance) in page_listeners.into_iter().zip(entrance) {
            let open = listener.local_addr().is_ok_and(|address| !address.ip().is_loopback());
            let tls = open.then(|| certificate.subscribe());
            tasks.spawn(page::serve(listener, tls, entrance, status.clone()));
        }
        for listener in metrics_listener {
            let status = status.clone();
            tasks.spawn(http::serve(listener, move || ready(metrics::page(status.report().into()).ok())));
        }
        tasks.spawn(admin::serve(admin, status));
        tasks.spawn(store_seen(registry.clone()));
        tasks.spawn(end_sites(registry.clone()));
        tasks.spawn(renew_leases(registry.clone()));
        if let Some(acme) = acme {
            tasks.spawn(acme.run(certificate.clone()));
        }
        let given = serving.certificate;
        Ok(Self {
            addresses,
            udp_addresses,
            metrics_addresses,
            page_addresses,
            identity,
            given,
            certificate,
            registry,
            calls,
            stop,
            tasks,
            sockets,
            _lock: lock,
        })
    }

    /// Reads a given certificate again, and says whether there is one. If it cannot be used, the one in use stays.
    ///
    /// # Errors
    /// It cannot be read, or is not a certificate.
    pub fn reload(&mut self) -> Result<bool, CertificateError> {
        if let Some(files) = &self.given {
            let identity = Identity::given(files)?;
            self.certificate.send_replace(identity.tls.clone());
            self.identity = Some(identity);
        }
        Ok(self.given.is_some())
    }

    /// Tells whether the coordinator is alive. Must be dropped before the coordinator stops.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse::new(Program::Coordinator(self.registry.clone()), self.calls.clone())
    }

    /// Where its metrics are served, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_addresses.first().copied()
    }

    /// Where its page is served, if it is.
    #[must_use]
    pub fn page_address(&self) -> Option<SocketAddr> {
        self.page_addresses.first().copied()
    }

    /// Where it listens by UDP.
    #[must_use]
    pub fn udp_addresses(&self) -> &[SocketAddr] {
        &self.udp_addresses
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its certificate; `None` if an authority is asked for one by ACME.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Stops in order: takes no new connections, closes the existing ones, and closes the store.
    ///
    /// # Errors
    /// The store could not be closed; nothing that was acknowledged is lost.
    pub async fn stop(mut self) -> Result<(), ChangeError> {
        let _ = self.stop.send(true);
        self.tasks.shutdown().await;
        // The next coordinator may want the same ports at once.
        self.sockets.shutdown().await;
        // Connections hold the registry, and the stop signal, as long as they are there.
        let gone = async {
            while self.stop.receiver_count() > 0 {
                tokio::time::sleep(STOP_STEP).await;
            }
        };
        let _ = timeout(STOP_TIMEOUT, gone).await;
        match Arc::try_unwrap(self.registry) {
            Ok(registry) => registry.close().await,
            // A connection still holds it; what was acknowledged is on disk.
            Err(registry) => registry.store_seen().await,
        }
    }
}

/// What connections are accepted with.
pub(crate) struct Served {
    pub tls: Arc<ServerConfig>,
    /// A given certificate, or our own.
    pub identity: Option<Identity>,
    /// Otherwise, what obtains one.
    pub acme: Option<Renewer>,
}

/// Loads the certificate, or prepares what obtains one.
pub(crate) fn serve(serving: &Serving) -> Result<Served, StartError> {
    if let Some(acme) = &serving.acme {
        let acme = Renewer::new(acme.clone(), &serving.names, &serving.state)?;
        return Ok(Served { tls: acme.tls(), identity: None, acme: Some(acme) });
    }
    let identity = match &serving.certificate {
        Some(files) => Identity::given(files)?,
        None => Identity::own(&serving.state, &serving.names)?,
    };
    Ok(Served { tls: identity.tls.clone(), identity: Some(identity), acme: None })
}

/// Binds TCP addresses; says which they are.
pub(crate) async fn listen(addresses: &[SocketAddr]) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), StartError> {
    let mut listeners = Vec::new();
    for &address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.map_err(|error| StartError::Listen { address, error })?);
    }
    let bound = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    Ok((listeners, bound))
}

/// Keeps the coordinator's own relay to what the registry says.
async fn follow(registry: Arc<Registry>, mut reader: Reader, mut follower: Follower) {
    let mut passed_on = None;
    loop {
        let common = registry.common();
        if passed_on.replace(common.number) != Some(common.number) {
            follower.pass_on(common.documents.iter());
        }
        while let Some(access) = registry.access(&mut reader) {
            if let Err(error) = follower.take(access) {
                tracing::error!("the coordinator's own relay cannot learn which sites may talk: {error}");
            }
        }
        reader.changed().await;
    }
}

/// A locked state directory.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it would not be enough while a child process that is just being started has a copy.
        let _ = self.0.unlock();
    }
}

/// Makes the state directory, for its owner only, and locks it.
pub(crate) fn take(directory: &Path) -> Result<Lock, StartError> {
    let failed = |path: &Path, error| StartError::Directory { path: path.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| failed(directory, error))?;
    owner::check(directory, &directory.metadata().map_err(|error| failed(directory, error))?)?;
    let path = directory.join(LOCK);
    let lock = File::options().write(true).create(true).truncate(false).open(&path);
    let lock = lock.map_err(|error| failed(&path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(Lock(lock)),
        Err(TryLockError::WouldBlock) => Err(StartError::Taken(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(&path, error)),
    }
}

async fn store_seen(registry: Arc<Registry>) {
    let mut ticks = interval(SEEN_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = registry.store_seen().await {
            tracing::error!("{error}");
        }
    }
}

async fn record_history(registry: Arc<Registry>) {
    let mut ticks = interval(HISTORY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        registry.record_history(Instant::now());
    }
}

async fn end_sites(registry: Arc<Registry>) {
    let mut ticks = interval(END_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = registry.end_sites().await.and(registry.end_keys().await) {
            tracing::error!("{error}");
            tokio::time::sleep(SEEN_INTERVAL).await;
        }
    }
}

async fn renew_leases(registry: Arc<Registry>) {
    let mut ticks = interval(registry.lease_interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = registry.renew_leases().await {
            tracing::error!("leases are not renewed: {error}");
        }
    }
}
