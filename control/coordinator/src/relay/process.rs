//! A relay on a machine of its own: UDP and TLS streams like those of the coordinator's relay; the coordinator tells it
//! who may talk.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use penstock_connect::CoordinatorUrl;
use penstock_metrics::http;
use penstock_proto::coordination::SiteKey;
use penstock_proto::relay::RelayLimits;
use penstock_proto::trust::AuthorityKey;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::kept::Kept;
use super::snapshot::SnapshotFile;
use super::uplink::Uplink;
use super::{RelayServer, key};
use crate::admission::Door;
use crate::certificate::Identity;
use crate::config::Serving;
use crate::metrics::{self, Snapshot};
use crate::pulse::{Calls, Program, Pulse};
use crate::run::{Lock, Served, StartError, listen, serve, take};
use crate::server::{self, Stop, Streams};
use crate::udp::{self, Sockets};

/// The configuration of a relay.
pub struct RelayConfig {
    /// Where and as whom it serves: TLS streams, and UDP with STUN.
    pub serving: Serving,
    /// Where the coordinator is.
    pub coordinator: CoordinatorUrl,
    /// The TLS configuration for it, and so which certificates are accepted.
    pub tls: Arc<ClientConfig>,
    /// The overlay's authority. Without it the relay passes on whatever the coordinator showed last.
    pub authority: Option<AuthorityKey>,
}

/// A relay that runs until it is dropped.
pub struct RelayProcess {
    /// Where it takes TLS streams.
    pub addresses: Vec<SocketAddr>,
    /// Where its metrics are served, if they are.
    pub metrics_address: Option<SocketAddr>,
    /// The relay.
    pub relay: Arc<RelayServer>,
    /// Its UDP sockets.
    pub udp: Arc<Sockets>,
    /// Its certificate; `None` if it is obtained by ACME.
    pub identity: Option<Identity>,
    calls: Vec<Calls>,
    // Dropping it ends the streams.
    _stop: watch::Sender<bool>,
    _certificate: watch::Sender<Arc<rustls::ServerConfig>>,
    _tasks: [JoinSet<()>; 2],
    _lock: Lock,
}

impl RelayProcess {
    /// Starts to serve. Must be called within a tokio runtime. Until the relay has reached the coordinator for the
    /// first time, no site can bind.
    ///
    /// # Errors
    /// What is missing, in one sentence.
    pub async fn start(config: RelayConfig) -> Result<Self, StartError> {
        let RelayConfig { serving, coordinator, tls: uplink_tls, authority } = config;
        let lock = take(&serving.state)?;
        let kept = authority.map(|authority| Kept::load(&serving.state, authority)).transpose()?;
        let Served { tls, identity, acme } = serve(&serving)?;
        let private_key = key::load(&serving.state)?;
        let relay = Arc::new(RelayServer::new(private_key.clone(), RelayLimits::default()));
        let file = SnapshotFile::new(&serving.state, &private_key, &coordinator);
        let mut uplink = Uplink { url: coordinator, tls: uplink_tls, private_key, kept, shown: Vec::new(), file };
        uplink.recall(&relay);
        let (listeners, addresses) = listen(&serving.listen).await?;
        let (page, page_addresses) = listen(serving.metrics.as_slice()).await?;
        let udp = Arc::new(udp::bind(&serving.udp.listen).map_err(StartError::Udp)?);
        let (stop, stopped) = watch::channel(false);
        let stopped = Stop(stopped);
        let streams = Streams { relay: relay.clone(), udp: Some(udp.clone()), stop: stopped.clone() };
        let router = server::router(None, Some(Arc::new(streams)));
        let (certificate, tls) = watch::channel(tls);
        let door = Arc::new(Door::default());
        let mut tasks = JoinSet::new();
        let mut calls = Vec::new();
        for listener in listeners {
            let router = router.clone();
            let (call, called) = mpsc::channel(1);
            calls.push(call);
            tasks.spawn(server::accept(listener, tls.clone(), router, door.clone(), called, stopped.clone()));
        }
        for listener in page {
            let (relay, udp) = (relay.clone(), udp.clone());
            let door = door.clone();
            let snapshot = move || Snapshot::of_relay(&relay, &udp, &door);
            tasks.spawn(http::serve(listener, move || ready(metrics::page(snapshot()).ok())));
        }
        if let Some(acme) = acme {
            tasks.spawn(acme.run(certificate.clone()));
        }
        tasks.spawn(uplink.run(relay.clone()));
        let tasks = [tasks, udp::serve(&udp, Some(&relay))];
        Ok(Self {
            addresses,
            metrics_address: page_addresses.first().copied(),
            relay,
            udp,
            identity,
            calls,
            _stop: stop,
            _certificate: certificate,
            _tasks: tasks,
            _lock: lock,
        })
    }

    /// Whether it is alive.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse::new(Program::Relay(self.relay.clone()), self.calls.clone())
    }

    /// The key that the coordinator's configuration has to name.
    #[must_use]
    pub fn public_key(&self) -> SiteKey {
        self.relay.public_key()
    }
}
