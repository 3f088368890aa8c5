//! A running coordinator: puts the parts together, and takes them apart in order.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;

use crate::admin;
use crate::admission::Admission;
use crate::certificate::{CertificateError, Identity};
use crate::config::Config;
use crate::registry::{ChangeError, Registry, Servers};
use crate::server::{self, Server};
use crate::store::{Store, StoreError};

const DATABASE: &str = "coordinator.db";
const LOCK: &str = "lock";

/// How often it is stored when sites were last connected.
const SEEN_INTERVAL: Duration = Duration::from_secs(60);
/// How long connections have to say goodbye.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const STOP_STEP: Duration = Duration::from_millis(10);

/// A coordinator that runs. Dropped, it stops without a word, as if it had crashed.
pub struct Coordinator {
    addresses: Vec<SocketAddr>,
    identity: Identity,
    registry: Arc<Registry>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    // Held as long as we use the directory.
    _lock: File,
}

/// Why a coordinator does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error("{path}: {error}")]
    Directory {
        /// What of it.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The state directory is open to others, so they could reach the control socket.
    #[error("{0} is open to other users: chmod 700 it")]
    Open(PathBuf),
    /// Another coordinator uses it.
    #[error("another coordinator runs with {0}")]
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
        let lock = take(&config.state)?;
        let identity = match &config.certificate {
            Some(files) => Identity::given(files)?,
            None => Identity::own(&config.state, &config.names)?,
        };
        let store = Store::open(&config.state.join(DATABASE)).await?;
        let servers = Servers { relays: config.relays, stun_servers: config.stun_servers };
        let fingerprint = identity.pinned.then_some(identity.fingerprint);
        let registry = Arc::new(Registry::load(store, servers, fingerprint).await?);

        let mut listeners = Vec::new();
        for address in config.listen {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|error| StartError::Listen { address, error })?);
        }
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let socket = config.state.join(admin::SOCKET);
        let admin = admin::bind(&socket).map_err(|error| StartError::Directory { path: socket, error })?;

        let (stop, stopped) = watch::channel(false);
        let server = Arc::new(Server {
            registry: registry.clone(),
            admission: Arc::new(Admission::default()),
            names: config.names,
            stop: stopped,
        });
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let tls = TlsAcceptor::from(identity.tls.clone());
            tasks.spawn(server::accept(listener, tls, server.clone()));
        }
        tasks.spawn(admin::serve(admin, registry.clone()));
        tasks.spawn(store_seen(registry.clone()));
        Ok(Self { addresses, identity, registry, stop, tasks, _lock: lock })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its certificate.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Stops in order: no new connections, a goodbye to those there are, and the store closed.
    ///
    /// # Errors
    /// The store could not be closed; nothing that was acknowledged is lost.
    pub async fn stop(mut self) -> Result<(), ChangeError> {
        let _ = self.stop.send(true);
        self.tasks.shutdown().await;
        // Connections hold the registry, and the stop signal, as long as they are there.
        let gone = async {
            while self.stop.receiver_count() > 0 {
                tokio::time::sleep(STOP_STEP).await;
            }
        };
        let _ = timeout(STOP_TIMEOUT, gone).await;
        match Arc::try_unwrap(self.registry) {
            Ok(registry) => registry.close().await,
            // Somebody does not let go; what is acknowledged is on the disk.
            Err(registry) => registry.store_seen().await,
        }
    }
}

/// Makes the state directory, for its owner only, and takes it.
fn take(directory: &Path) -> Result<File, StartError> {
    let failed = |path: &Path, error| StartError::Directory { path: path.to_owned(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| failed(directory, error))?;
    let mode = directory.metadata().map_err(|error| failed(directory, error))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(StartError::Open(directory.to_owned()));
    }
    let path = directory.join(LOCK);
    let lock = File::options().write(true).create(true).truncate(false).open(&path);
    let lock = lock.map_err(|error| failed(&path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
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
