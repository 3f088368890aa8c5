//! The running gateway: it starts everything in order, then waits for whatever comes next, and stops
//! everything in the opposite order.
//!
//! ```text
//!   workers' notices ─┐                              ┌─► table ─► workers
//!   handshake timers ─┤                              ├─► commands ─► workers
//!   traffic samples ──┼─► handshakes, peers, network ┼─► routes, blackholes
//!   netlink news ─────┤                              ├─► steering maps
//!   coordinator ──────┤                              ├─► handshake datagrams, probes
//!   wg, status, stop ─┘                              └─► what the coordinator is told
//! ```
//! `start` has the start order, `settle` what follows from a change, `sessions` the way between
//! handshakes and workers, `overlay` what comes of a coordinator. The gateway is owned by one task;
//! nothing here is shared.

mod configure;
mod drives;
mod forwarding;
mod modes;
mod netcheck;
mod network;
mod overlay;
mod peers;
mod privileges;
mod report;
mod resolver;
mod routes;
mod sessions;
mod settle;
mod start;
mod steering;
mod tables;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use penstock_dataplane::engine::Engine;
use penstock_dataplane::ports::udp::UdpSender;
use penstock_dataplane::slow_path::Command;
use penstock_proto::{PeerId, Reject};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::control_socket;
use crate::key::PrivateKey;
use crate::netlink::{Change, Monitor, Netlink};
use crate::profile::Profile;
use crate::socket_file::Service;
use crate::uapi;

use drives::Drives;
use forwarding::Forwarding;
use network::Network;
use overlay::Overlay;
use peers::Peers;
use resolver::Resolver;
use routes::{Routes, Tunnel};
use settle::Due;
use steering::Steering;
use tables::{Parts, Path};

/// How often the traffic counters are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// How often neighbours that AF_XDP sends to are confirmed: the kernel does not see that traffic, and
/// would forget them after a minute.
const CONFIRM_EVERY: Duration = Duration::from_secs(15);
/// How long network news are gathered before they are acted upon.
const NEWS_DELAY: Duration = Duration::from_millis(20);
/// How often the handshakes are told the time of day, by which initiations are stamped.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// A gateway with its workers running.
pub struct Gateway {
    name: String,
    private_key: PrivateKey,
    local_port: u16,
    /// Whether the profile says so.
    pinned: bool,
    tunnel_mtu: u16,
    virtual_addresses: Vec<IpAddr>,
    /// Whether they are the profile's; else the coordinator gives one.
    own_address: bool,

    proto: penstock_proto::Gateway,
    peers: Peers,
    /// Handshake messages that were dropped, by reason.
    rejects: HashMap<Reject, u64>,
    /// Packets that waited for a session in vain.
    lost_waiting: u64,
    clock_set: Instant,
    resolver: Resolver,
    udp: UdpSender,
    /// With a coordinator.
    overlay: Option<Overlay>,

    netlink: Netlink,
    network: Network,
    drives: Drives,
    tunnel: Tunnel,
    routes: Routes,
    forwarding: Forwarding,

    engine: Engine,
    steering: Steering,
    parts: Parts,
    paths: HashMap<PeerId, Path>,
    /// Peers whose endpoint is routed into the tunnel.
    looping: HashSet<PeerId>,
    /// Neighbours that AF_XDP sends the tunnel to, by interface.
    next_hops: BTreeSet<(u32, IpAddr)>,
    /// When unresolved neighbours were last asked for.
    asked: HashMap<(u32, IpAddr), Instant>,
    /// What was changed and is not yet in force.
    due: Due,
    /// For the workers, when the table is published.
    commands: Vec<Command>,
    /// Leave the blackholes when stopping.
    fail_closed: bool,
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// One sentence: why it did not start, or why it had to stop.
pub async fn run(profile: Profile) -> Result<()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = stop_signals(&stopping)?;
    let _lock = control_socket::lock(&profile.name)?;
    // Bound before the start: whoever asks meanwhile is answered when it is done.
    let control = control_socket::serve(&profile.name).context("cannot open the control socket")?;
    let uapi = uapi::socket::serve(&profile.name)
        .with_context(|| format!("cannot open WireGuard's socket in {}", uapi::socket::DIRECTORY))?;
    let mut gateway = Gateway::start(&profile)?;
    let outcome = gateway.serve(control, uapi, stop).await;
    stopping.store(true, Ordering::Release);
    if let Some(overlay) = gateway.overlay.take() {
        overlay.stop().await;
    }
    gateway.stop();
    outcome
}

/// A future that ends with SIGTERM or SIGINT. Once `stopping` is set, another one kills the process.
fn stop_signals(stopping: &Arc<AtomicBool>) -> Result<impl Future<Output = &'static str>> {
    let context = "cannot handle signals";
    for number in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register_conditional_default(number, Arc::clone(stopping)).context(context)?;
    }
    let mut terminate = signal(SignalKind::terminate()).context(context)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(context)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

impl Gateway {
    /// Takes one input after the other, and sees to what follows from each.
    async fn serve(
        &mut self,
        mut control: Service<control_socket::Request>,
        mut uapi: Service<uapi::Request>,
        stop: impl Future<Output = &'static str>,
    ) -> Result<()> {
        let notices = crate::readable::watch(self.engine.notices())?;
        let monitor = Monitor::open().context("cannot hear of network changes")?;
        // What happened between the first look and the monitor is found by looking again.
        let mut news = Change::everything();
        let mut news_due = Some(tokio::time::Instant::now());
        let mut samples = ticks(SAMPLE_EVERY);
        let mut confirmations = ticks(CONFIRM_EVERY);
        tokio::pin!(stop);
        tracing::info!("{} is up, UDP port {}", self.name, self.local_port);

        loop {
            self.follow_up();
            let found = self.overlay.as_mut().and_then(|overlay| overlay.traversal.poll_timeout(Instant::now()));
            let timeout = self.proto.poll_timeout().into_iter().chain(found).min().map(tokio::time::Instant::from_std);
            tokio::select! {
                reason = &mut stop => {
                    tracing::info!("stopping: {reason}");
                    return Ok(());
                }
                ready = notices.readable() => {
                    ready.context("the workers' notices cannot be heard")?.clear_ready();
                    self.take_notices(Instant::now())?;
                }
                () = at(timeout) => self.proto.handle_timeout(Instant::now()),
                _ = samples.tick() => self.sample(Instant::now()),
                _ = confirmations.tick() => self.confirm_neighbours(),
                change = monitor.changed() => {
                    news.add(change.context("network changes cannot be heard")?);
                    news_due.get_or_insert_with(|| tokio::time::Instant::now() + NEWS_DELAY);
                }
                () = at(news_due) => {
                    news_due = None;
                    self.network_changed(std::mem::take(&mut news))?;
                }
                input = Overlay::next(&mut self.overlay) => self.take_input(Instant::now(), input),
                resolved = self.resolver.next() => self.resolved(Instant::now(), resolved),
                Some(request) = uapi.requests.recv() => self.serve_uapi(Instant::now(), request),
                Some(request) = control.requests.recv() => match request {
                    control_socket::Request::Status { reply } => {
                        // The asker may have gone.
                        let _ = reply.send(self.status());
                    }
                    control_socket::Request::Netcheck { reply } => {
                        let _ = reply.send(self.netcheck());
                    }
                    control_socket::Request::Stop { reply } => {
                        let _ = reply.send(());
                        // The answer is on its way before its connection ends with us.
                        tokio::task::yield_now().await;
                        tracing::info!("stopping: asked over the control socket");
                        return Ok(());
                    }
                },
            }
        }
    }

    /// After an input: what the handshakes want, then what the changes need, then what relies on it.
    fn follow_up(&mut self) {
        self.take_events(Instant::now(), 0);
        self.follow_paths(Instant::now());
        if let Err(e) = self.settle() {
            tracing::error!("{e:#}");
        }
        self.transmit();
        self.command();
    }

    /// Takes everything down, in the opposite order of the start. Blackholes go last, and stay when
    /// packets could else leave in the clear without anybody having asked for it.
    fn stop(self) {
        let Self { mut netlink, mut routes, mut forwarding, steering, engine, udp, fail_closed, .. } = self;
        drop(steering);
        routes.leave(&mut netlink);
        drop(engine);
        drop(udp);
        forwarding.restore();
        if !fail_closed {
            routes.unguard(&mut netlink);
        } else if routes.guards() {
            tracing::warn!("remote prefixes stay blocked by blackhole routes");
        }
        tracing::info!("stopped");
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Sleeps until then; for ever without a time.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
