//! A gateway's life: it starts, takes one input after the other and does what follows from each, until it is told to
//! stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::bypass::Bypass;
use super::due::Due;
use super::handshakes::Handshakes;
use super::heartbeat::Heartbeat;
use super::history::{self, Recorder};
use super::metrics::Metrics;
use super::overlay::Overlay;
use super::plane::Plane;
use super::plane::drives::Drives;
use super::probing::Probing;
use super::site::Site;
use super::standing::{self, Standing};
use super::{
    Gateway, bypass, configure, map, netcheck, network, path_mtu, paths, privileges, reload, report, traffic, unsaved,
    wanted,
};
use crate::control_socket;
use crate::endpoints::LastEndpoints;
use crate::ground::Changed;
use crate::icmp::Routers;
use crate::netlink::{Monitor, News};
use crate::profile::Profile;
use crate::socket_file::Service;
use crate::state;
use crate::uapi;

/// How often the traffic counters are read.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// How often receive queues are counted again, and neighbours that AF_XDP sends to are confirmed.
const CONFIRM_EVERY: Duration = Duration::from_secs(15);
/// How long network changes are gathered before they are acted upon.
const NEWS_DELAY: Duration = Duration::from_millis(20);
const SIGNALS: &str = "cannot handle signals";

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// Why it did not start, or why it had to stop, in one sentence. Remote prefixes remain blocked in any case.
pub async fn run(profile: Profile) -> Result<()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = stop_signals(&stopping)?;
    let reload = signal(SignalKind::hangup()).context(SIGNALS)?;
    let mut lock = control_socket::lock(&profile.name)?;
    lock.set_profile(&profile.path).context("the lock")?;
    // Before anything that can fail.
    let standing = Standing::put_up(&profile)?;
    // Bound before the start, so that whoever asks meanwhile is answered when it is done.
    let control = control_socket::serve(&profile.name).context("cannot open the control socket")?;
    let uapi = uapi::socket::serve(&profile.name)
        .with_context(|| format!("cannot open WireGuard's socket in {}", uapi::socket::DIRECTORY))?;
    // Opened before the first look, so that nothing is missed between the two.
    let monitor = Monitor::open().context("cannot follow network changes")?;
    let mut gateway = start(profile, standing)?;
    privileges::reduce();
    let outcome = serve(&mut gateway, monitor, control, uapi, stop, reload).await;
    stopping.store(true, Ordering::Release);
    if let Some(overlay) = gateway.overlay.take() {
        overlay.stop().await;
    }
    take_down(gateway);
    outcome
}

/// Starts everything that carries packets; the guard is already up.
///
/// # Errors
/// What is missing or in the way, in one sentence. The guard stays.
fn start(profile: Profile, standing: Standing) -> Result<Gateway> {
    let now = Instant::now();
    let Standing { guard, ground, problems, .. } = standing;
    let site = Site::of(&profile);
    state::check(&state::directory())?;
    privileges::check(profile.demands_xdp())?;
    let name = &site.name;
    if ground.network().named(name.as_str()).is_some() {
        bail!("there is already a network device {name}, which is not ours; remove it or rename the gateway");
    }
    let mut drives = Drives::of(&profile);
    drives.follow(ground.network());
    let bypass = Bypass::start(now, &mut drives, &site, &guard.prefixes(), ground.network());
    let plane = Plane::start(&profile, drives)?;
    let last_endpoints = LastEndpoints::load(&state::directory(), &site.private_key, name, now);
    let mut handshakes = Handshakes::new(&site.private_key, last_endpoints, plane.speeds(), plane.sender(), now)?;
    for peer in &profile.peers {
        handshakes.add(now, peer)?;
    }
    let overlay = Overlay::start(now, &profile, plane.sender());
    let probing = Probing::new(&site.private_key);
    let metrics = Metrics::new(profile.metrics);
    let mut gateway = Gateway {
        profile,
        site,
        handshakes,
        overlay,
        probing,
        guard,
        ground,
        plane,
        bypass,
        metrics,
        history: Recorder::new(Instant::now()),
        problems,
        due: Due::PEERS,
    };
    // Now the tun device exists as well.
    gateway.ground.refresh(now, [News::Lost]);
    map::take_address(&mut gateway);
    map::apply(&mut gateway, now);
    network::changed(&mut gateway, now, &Changed::everything());
    gateway.follow_up(now);
    gateway.metrics.follow(now);
    Ok(gateway)
}

/// Takes one input after the other, and does what follows from each.
async fn serve(
    gateway: &mut Gateway,
    monitor: Monitor,
    mut control: Service<control_socket::Request>,
    mut uapi: Service<uapi::Request>,
    stop: impl Future<Output = &'static str>,
    mut reload: Signal,
) -> Result<()> {
    let mut news: Vec<News> = Vec::new();
    let mut news_due = None;
    let routers = Routers::open();
    let mut samples = ticks(SAMPLE_EVERY);
    let mut points = ticks(history::EVERY);
    let mut confirmations = ticks(CONFIRM_EVERY);
    // Whoever waits for us to be ready finds the guard and the control socket in place.
    let mut heartbeat = Heartbeat::begin();
    tokio::pin!(stop);
    tracing::info!("{} is up, UDP port {}", gateway.site.name, gateway.plane.local_port());

    loop {
        gateway.follow_up(Instant::now());
        let timeout = poll_timeout(gateway, Instant::now()).map(tokio::time::Instant::from_std);
        tokio::select! {
            reason = &mut stop => {
                tracing::info!("stopping: {reason}");
                heartbeat.end();
                return Ok(());
            }
            () = heartbeat.due() => heartbeat.beat(gateway),
            Some(()) = reload.recv() => drop(reload::reload(gateway, Instant::now())),
            ready = gateway.plane.workers().readable() => {
                ready.context("the workers' notices cannot be received")?;
                traffic::take_notices(gateway, Instant::now())?;
            }
            () = at(timeout) => handle_timeout(gateway, Instant::now()),
            ruleset = gateway.bypass.next() => bypass::take(gateway, Instant::now(), ruleset),
            messages = routers.next() => path_mtu::handle_too_big(gateway, Instant::now(), &messages),
            _ = samples.tick() => traffic::sample(gateway, Instant::now()),
            _ = points.tick() => {
                let now = Instant::now();
                history::sample(gateway, now);
                paths::send_report(gateway, now);
            }
            _ = confirmations.tick() => network::confirm(gateway),
            more = monitor.news() => {
                news.extend(more.context("network changes cannot be received")?);
                news_due.get_or_insert_with(|| tokio::time::Instant::now() + NEWS_DELAY);
            }
            () = at(news_due) => {
                news_due = None;
                let now = Instant::now();
                let changed = gateway.ground.refresh(now, news.drain(..));
                network::changed(gateway, now, &changed);
            }
            input = Overlay::next(&mut gateway.overlay) => map::handle_input(gateway, Instant::now(), input),
            change = gateway.handshakes.resolved() => gateway.handshakes.handle_resolved(Instant::now(), change),
            Some(reply) = gateway.metrics.asked() => drop(reply.send(report::status(gateway, Instant::now()))),
            Some(request) = uapi.requests.recv() => configure::serve(gateway, Instant::now(), request),
            Some(request) = control.requests.recv() => {
                if answer(gateway, Instant::now(), request).await {
                    heartbeat.end();
                    return Ok(());
                }
            }
        }
    }
}

/// Answers over the control socket. Returns whether the gateway is to stop.
async fn answer(gateway: &mut Gateway, now: Instant, request: control_socket::Request) -> bool {
    use control_socket::Request;
    // Whoever asked may be gone.
    match request {
        Request::Status { reply } => drop(reply.send(report::status(gateway, now))),
        Request::History { wanted, reply } => drop(reply.send(gateway.history.answer(&wanted))),
        Request::Netcheck { reply } => drop(reply.send(netcheck::report(gateway))),
        Request::Reload { reply } => drop(reply.send(reload::reload(gateway, now))),
        Request::Unsaved { reply } => drop(reply.send(unsaved::unsaved(gateway))),
        Request::Release { what, reply } => {
            let released = standing::release_from(&mut gateway.guard, &what, &gateway.handshakes.peers.remote());
            gateway.due.ground = true;
            gateway.follow_up(now);
            drop(reply.send(released.checked(&gateway.ground.held())));
        }
        Request::Stop { release, reply } => {
            if release {
                gateway.guard.release_all();
            }
            let _ = reply.send(());
            // Lets the answer leave before its connection ends with us.
            tokio::task::yield_now().await;
            tracing::info!("stopping: asked over the control socket");
            return true;
        }
    }
    false
}

fn poll_timeout(gateway: &mut Gateway, now: Instant) -> Option<Instant> {
    let found = gateway.overlay.as_mut().and_then(|overlay| overlay.poll_timeout(now));
    let timers = [
        gateway.handshakes.proto.poll_timeout(),
        found,
        gateway.probing.poll_timeout(),
        gateway.ground.poll_timeout(),
        gateway.plane.poll_timeout(),
        gateway.bypass.poll_timeout(),
        gateway.metrics.poll_timeout(),
    ];
    timers.into_iter().flatten().min()
}

fn handle_timeout(gateway: &mut Gateway, now: Instant) {
    gateway.handshakes.proto.handle_timeout(now);
    gateway.metrics.follow(now);
    bypass::handle_timeout(gateway, now);
    if gateway.ground.poll_timeout().is_some_and(|at| at <= now) {
        gateway.due.ground = true;
        let changed = gateway.ground.refresh(now, []);
        network::changed(gateway, now, &changed);
    }
    if gateway.overlay.as_mut().is_some_and(|overlay| overlay.handle_timeout(now)) {
        map::apply(gateway, now);
    }
}

/// Takes everything down but the guard.
fn take_down(gateway: Gateway) {
    let Gateway { profile, site, mut handshakes, overlay, mut guard, mut ground, plane, mut problems, .. } = gateway;
    let (now, placement) = (Instant::now(), site.placement(&profile.path));
    let wanted =
        wanted::wanted(&site, placement, &handshakes.peers, overlay.as_ref(), &guard, &plane, ground.network());
    ground.withdraw(now, &wanted);
    guard.save(now, &mut problems);
    handshakes.save(now, true, &mut problems);
    drop(plane);
    let blocked = guard.prefixes().len();
    if blocked > 0 {
        tracing::info!("stopped; {blocked} remote prefixes stay blocked until `penstock release`");
    } else {
        tracing::info!("stopped");
    }
}

/// A future that ends with SIGTERM or SIGINT. Once `stopping` is set, another one kills the process.
pub fn stop_signals(stopping: &Arc<AtomicBool>) -> Result<impl Future<Output = &'static str>> {
    for number in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register_conditional_default(number, Arc::clone(stopping)).context(SIGNALS)?;
    }
    let mut terminate = signal(SignalKind::terminate()).context(SIGNALS)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(SIGNALS)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Ticks with this period; a late one delays the next.
pub fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Sleeps until this time; forever if there is none.
pub async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
