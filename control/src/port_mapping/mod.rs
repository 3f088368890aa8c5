//! Asks the router to let in the tunnel's UDP port, by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP IGD.
//!
//! [`PortMapper`] is a task that owns the mapping: it asks with all three at once, keeps the best, renews it, retries
//! later where nobody answers, and deletes the mapping at the end. What a crash leaves behind lasts until its lifetime
//! is over. Only the default router is asked, never the whole network segment, which on a WAN belongs to strangers.

mod external;
pub mod igd;
mod lease;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub use external::is_public;
use lease::{Attempt, Lease, attempt};

/// The lifetime to ask for. RFC 6886 recommends two hours; with less, a crash leaves the port open for a shorter time,
/// and a renewal costs one datagram.
pub const LIFETIME: Duration = Duration::from_secs(1200);
/// Without an answer the router is asked again after this time, which doubles.
pub const RETRY: Duration = Duration::from_secs(60);
/// The longest such time.
pub const RETRY_MAX: Duration = Duration::from_secs(3600);
/// A mapping is never renewed sooner than this (RFC 6887, section 11.2.1).
pub const RENEWAL_MIN: Duration = Duration::from_secs(4);
/// How long deleting a mapping may take.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// The protocol for mapping ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// Port Control Protocol, RFC 6887.
    #[serde(rename = "PCP")]
    Pcp,
    /// NAT Port Mapping Protocol, RFC 6886.
    #[serde(rename = "NAT-PMP")]
    NatPmp,
    /// UPnP Internet Gateway Device.
    #[serde(rename = "UPnP IGD")]
    UpnpIgd,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::UpnpIgd => "UPnP IGD",
        })
    }
}

/// An external address that leads to our port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct External {
    /// As the router reports it.
    pub address: SocketAddr,
    /// The protocol that mapped it.
    pub protocol: Protocol,
}

/// The result of asking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mapping {
    /// The mapping in force.
    pub external: Option<External>,
    /// The protocols in which the router answered, whether or not it maps ports with them.
    pub found: Vec<Protocol>,
}

impl Mapping {
    /// The address to announce to others. `None` when the router is behind a NAT itself: its external address is a
    /// private one then, and useless.
    #[must_use]
    pub fn candidate(&self) -> Option<SocketAddr> {
        self.external.map(|external| external.address).filter(|address| is_public(address.ip()))
    }
}

/// Times that tests may shorten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// See [`LIFETIME`].
    pub lifetime: Duration,
    /// See [`RETRY`].
    pub retry: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self { lifetime: LIFETIME, retry: RETRY }
    }
}

/// Keeps the tunnel's port mapped.
pub struct PortMapper {
    mapping: watch::Receiver<Mapping>,
    again: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// What is to be mapped, and where to.
#[derive(Clone, Copy, Debug)]
struct Target {
    router: IpAddr,
    local: SocketAddr,
    port: NonZeroU16,
    lifetime: Duration,
    /// The firewall mark of our sockets.
    mark: u32,
}

impl PortMapper {
    /// Starts asking the router `gateway` to send UDP for `port` to our address `local`, from sockets with this
    /// firewall mark. Must be called within a tokio runtime. Nothing is asked for port 0.
    #[must_use]
    pub fn start(gateway: IpAddr, local: IpAddr, port: u16, mark: u32) -> Self {
        Self::start_with(gateway, local, port, mark, Timings::default())
    }

    /// The same with other times.
    #[must_use]
    pub fn start_with(gateway: IpAddr, local: IpAddr, port: u16, mark: u32, timings: Timings) -> Self {
        let (publish, mut mapping) = watch::channel(Mapping::default());
        mapping.mark_unchanged();
        let (stop, stopped) = oneshot::channel();
        let again = Arc::new(Notify::new());
        let task = match NonZeroU16::new(port) {
            Some(nonzero) => {
                let local = SocketAddr::new(local, port);
                let target = Target { router: gateway, local, port: nonzero, lifetime: timings.lifetime, mark };
                let upkeep = Upkeep { target, retry: timings.retry, publish, again: again.clone() };
                tokio::spawn(upkeep.run(stopped))
            }
            None => tokio::spawn(async move {
                publish.send_replace(Mapping::default());
                let _ = stopped.await;
            }),
        };
        Self { mapping, again, stop: Some(stop), task }
    }

    /// Waits for the first result, then for each change. Nothing is lost when it is dropped while waiting.
    pub async fn next(&mut self) -> Mapping {
        if self.mapping.changed().await.is_err() {
            // The task ends only with us.
            std::future::pending::<()>().await;
        }
        self.mapping.borrow_and_update().clone()
    }

    /// The present state.
    #[must_use]
    pub fn mapping(&self) -> Mapping {
        self.mapping.borrow().clone()
    }

    /// Asks again now, because the network has changed or the router has restarted.
    pub fn refresh(&self) {
        self.again.notify_one();
    }

    /// Deletes the mapping, within [`RELEASE_LIMIT`] or not at all.
    pub async fn release(mut self) {
        drop(self.stop.take());
        if timeout(RELEASE_LIMIT, &mut self.task).await.is_err() {
            tracing::debug!("the router did not remove the port mapping in time");
        }
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a [`PortMapper`].
struct Upkeep {
    target: Target,
    retry: Duration,
    publish: watch::Sender<Mapping>,
    again: Arc<Notify>,
}

impl Upkeep {
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        let mut lease: Option<Lease> = None;
        let mut pause = self.retry;
        let mut first = true;
        loop {
            let asked = async {
                let renewed = match &mut lease {
                    Some(lease) => lease.renew(&self.target).await,
                    None => false,
                };
                if renewed { None } else { Some(attempt(&self.target).await) }
            };
            let asked = tokio::select! {
                asked = asked => asked,
                _ = &mut stopped => break,
            };
            if let Some(Attempt { lease: new, found }) = asked {
                // The old one is kept until it expires: the router may only have been busy.
                lease = new.or(lease.filter(|lease| lease.expires() > Instant::now()));
                let changed = self.publish.send_if_modified(|mapping| {
                    let external = lease.as_ref().map(Lease::external);
                    let new = Mapping { external, found };
                    let changed = first || *mapping != new;
                    *mapping = new;
                    changed
                });
                if changed {
                    self.tell(lease.as_ref());
                }
            } else if let Some(lease) = &lease {
                let external = Some(lease.external());
                self.publish.send_if_modified(|mapping| std::mem::replace(&mut mapping.external, external) != external);
            }
            first = false;
            let wait = match &lease {
                Some(lease) => {
                    pause = self.retry;
                    lease.renewal()
                }
                None => {
                    let wait = pause;
                    pause = (pause * 2).min(RETRY_MAX);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.again.notified() => pause = self.retry,
                _ = &mut stopped => break,
            }
        }
        if let Some(lease) = lease {
            lease.release(&self.target).await;
        }
    }

    fn tell(&self, lease: Option<&Lease>) {
        match lease.map(Lease::external) {
            Some(External { address, protocol }) => {
                tracing::info!(%address, %protocol, "the router maps a port for the tunnel");
                if !is_public(address.ip()) {
                    tracing::warn!(%address, "the router is itself behind a NAT: the mapped port is of no use");
                }
            }
            None => tracing::debug!(router = %self.target.router, "the router maps no port"),
        }
    }
}
