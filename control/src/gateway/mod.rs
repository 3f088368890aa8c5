//! The running gateway: what should be against what is, again and again.
//!
//! ```text
//!   Site         who we are, from the profile
//!   Handshakes   peers, WireGuard's state, sessions          ─┐
//!   Overlay      the coordinator's map, paths to its peers    ├─► what should be
//!   Guard        the prefixes that are blocked, on disk      ─┘        │
//!                                                       ┌──────────────┤
//!   Ground       routes, rules, firewall, settings  ◄───┘  Wanted      │ table, paths, steering
//!   Plane        interfaces, ports, workers         ◄──────────────────┘
//! ```
//! Each part owns its state; [`Gateway`] only passes between them. Inputs change one part and leave a mark of what is
//! due; [`Gateway::follow_up`] then sees to everything that is due, in the order in which nothing can leak. A start
//! is the first time of that, and nothing ends the gateway but its administrator, a worker's panic, or a start that
//! its profile makes impossible: what fails is a problem with a name, and is tried again.

mod configure;
pub mod device;
mod handshakes;
mod heartbeat;
mod metrics;
mod netcheck;
mod overlay;
mod peers;
mod plane;
mod privileges;
mod reload;
mod report;
mod site;
mod statements;
mod suites;
mod unsaved;
mod wanted;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use penstock_dataplane::slow_path::Notice;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::control_socket::{self, Release, Released};
use crate::endpoints::LastEndpoints;
use crate::ground::{Changed, Ground, Guard, Interest, Linux, Origin, Refusal};
use crate::netlink::{Monitor, News};
use crate::problem::{Problem, Problems};
use crate::profile::Profile;
use crate::socket_file::Service;
use crate::state;
use crate::uapi;

use handshakes::{Due, Handshakes};
use heartbeat::Heartbeat;
use metrics::Metrics;
use overlay::{Outcome, Overlay};
use plane::Plane;
use site::Site;

/// How often the traffic counters are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// How often neighbours that AF_XDP sends to are confirmed.
const CONFIRM_EVERY: Duration = Duration::from_secs(15);
/// How long network news are gathered before they are acted upon.
const NEWS_DELAY: Duration = Duration::from_millis(20);
/// Notices taken at a time: a flood of handshakes may not keep the other inputs waiting.
const NOTICES_PER_TURN: usize = 256;
const SIGNALS: &str = "cannot handle signals";

/// A gateway with its workers running.
pub struct Gateway {
    /// The profile in force, but for what `wg set` has changed since.
    profile: Profile,
    site: Site,
    handshakes: Handshakes,
    /// With a coordinator.
    overlay: Option<Overlay>,
    guard: Guard,
    ground: Ground<Linux>,
    plane: Plane,
    metrics: Metrics,
    /// What is wrong with the guard and the profile.
    problems: Problems,
    /// What was changed and is not yet in force.
    due: Due,
    /// Whether the network changed in a way that matters to the ways to the endpoints.
    paths_due: bool,
    /// Whether the kernel is to be compared with what should be.
    ground_due: bool,
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// One sentence: why it did not start, or why it had to stop. Remote prefixes are blocked all the same.
pub async fn run(profile: Profile) -> Result<()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = stop_signals(&stopping)?;
    let reload = signal(SignalKind::hangup()).context(SIGNALS)?;
    let _lock = control_socket::lock(&profile.name)?;
    // Bound before the start: whoever asks meanwhile is answered when it is done.
    let control = control_socket::serve(&profile.name).context("cannot open the control socket")?;
    let uapi = uapi::socket::serve(&profile.name)
        .with_context(|| format!("cannot open WireGuard's socket in {}", uapi::socket::DIRECTORY))?;
    // From before the first look on, so that nothing is missed between the two.
    let monitor = Monitor::open().context("cannot hear of network changes")?;
    let mut gateway = Gateway::start(profile)?;
    privileges::reduce();
    let outcome = gateway.serve(monitor, control, uapi, stop, reload).await;
    stopping.store(true, Ordering::Release);
    if let Some(overlay) = gateway.overlay.take() {
        overlay.stop().await;
    }
    gateway.stop();
    outcome
}

/// Puts up the guard of a gateway that does not run, as at boot.
///
/// # Errors
/// The kernel cannot be spoken to, or something of the guard is not in force.
pub fn guard(profile: &Profile) -> Result<()> {
    let Standing { mut guard, mut ground, mut problems, site } = Standing::of(profile)?;
    let now = Instant::now();
    ground.reconcile(now, &wanted::guard_only(&site, &guard));
    guard.save(now, &mut problems);
    first_of(ground.problems(now).into_iter().chain(problems.list(now)))
}

/// Lifts the guard of a gateway that does not run.
///
/// # Errors
/// The kernel cannot be spoken to, or something of the guard is still in force.
pub fn release(profile: &Profile, what: &Release) -> Result<Released> {
    let Standing { mut guard, mut ground, mut problems, site } = Standing::of(profile)?;
    let now = Instant::now();
    let released = release_from(&mut guard, what, &BTreeSet::new());
    ground.reconcile(now, &wanted::guard_only(&site, &guard));
    guard.save(now, &mut problems);
    first_of(ground.problems(now).into_iter().chain(problems.list(now)))?;
    Ok(released)
}

/// The prefixes that are guarded though the gateway does not run.
///
/// # Errors
/// The kernel cannot be spoken to.
pub fn guarded(profile: &Profile) -> Result<Vec<IpNet>> {
    Ok(Standing::of(profile)?.guard.prefixes().into_iter().collect())
}

fn first_of(mut problems: impl Iterator<Item = Problem>) -> Result<()> {
    problems.next().map_or(Ok(()), |problem| bail!("{}: {}", problem.subject, problem.sentence))
}

/// Releases prefixes but those `in_use`.
fn release_from(guard: &mut Guard, what: &Release, in_use: &BTreeSet<IpNet>) -> Released {
    let asked: Vec<IpNet> = match what {
        Release::All => guard.prefixes().difference(in_use).copied().collect(),
        Release::Prefixes(prefixes) => prefixes.iter().map(IpNet::trunc).collect(),
    };
    let (in_use, free): (Vec<IpNet>, Vec<IpNet>) = asked.into_iter().partition(|prefix| in_use.contains(prefix));
    let unknown = guard.release(free.iter().copied());
    let released = free.into_iter().filter(|prefix| !unknown.contains(prefix)).collect();
    Released { released, in_use, unknown }
}

/// What stands without a running gateway: the guard as it was kept, joined with what the kernel still has of it.
struct Standing {
    site: Site,
    guard: Guard,
    ground: Ground<Linux>,
    problems: Problems,
}

impl Standing {
    fn of(profile: &Profile) -> Result<Self> {
        let now = Instant::now();
        let site = Site::of(profile);
        let kernel = Linux::open().context("cannot speak netlink")?;
        let interest = Interest { table: site.table, lan: site.lan.clone() };
        let ground = Ground::open(kernel, &site.name, interest, &control_socket::directory(), now);
        let mut problems = Problems::default();
        let path = Guard::path(&state::directory(), &site.name);
        let guard = Guard::load(&path, &site.private_key, &site.name, &ground.held(), now, &mut problems);
        Ok(Self { site, guard, ground, problems })
    }
}

impl Gateway {
    /// Starts a gateway: first the guard, then everything a packet could take.
    ///
    /// # Errors
    /// One sentence: what is missing or in the way. The guard stays.
    fn start(profile: Profile) -> Result<Self> {
        let now = Instant::now();
        let Standing { site, mut guard, mut ground, mut problems } = Standing::of(&profile)?;
        note_refused(&mut problems, now, guard.profile_changed(&profile.remote()));
        guard.save(now, &mut problems);
        ground.reconcile(now, &wanted::guard_only(&site, &guard));
        privileges::check(profile.demands_xdp())?;
        let name = &site.name;
        if ground.network().named(name.as_str()).is_some() {
            bail!("there is a network device {name} already, which is not ours; remove it or rename the gateway");
        }
        let plane = Plane::start(&profile, ground.network())?;
        let last_endpoints = LastEndpoints::load(&state::directory(), &site.private_key, name, now);
        let mut handshakes = Handshakes::new(&site.private_key, last_endpoints, plane.speeds(), plane.sender(), now)?;
        for peer in &profile.peers {
            handshakes.add(now, peer)?;
        }
        let overlay = Overlay::start(now, &profile, plane.sender());
        let metrics = Metrics::new(profile.metrics);
        let mut gateway = Self {
            profile,
            site,
            handshakes,
            overlay,
            guard,
            ground,
            plane,
            metrics,
            problems,
            due: Due::PEERS,
            paths_due: true,
            ground_due: true,
        };
        // With the tun device in it.
        gateway.ground.refresh(now, [News::Lost]);
        gateway.take_address();
        gateway.apply_map(now);
        gateway.network_changed(now, &Changed::everything());
        gateway.follow_up(now);
        gateway.metrics.follow(now);
        Ok(gateway)
    }

    /// Takes one input after the other, and sees to what follows from each.
    async fn serve(
        &mut self,
        monitor: Monitor,
        mut control: Service<control_socket::Request>,
        mut uapi: Service<uapi::Request>,
        stop: impl Future<Output = &'static str>,
        mut reload: Signal,
    ) -> Result<()> {
        let mut news: Vec<News> = Vec::new();
        let mut news_due = None;
        let mut samples = ticks(SAMPLE_EVERY);
        let mut confirmations = ticks(CONFIRM_EVERY);
        // Whoever waits for us to be ready finds the guard and the control socket.
        let mut heartbeat = Heartbeat::begin(self);
        tokio::pin!(stop);
        tracing::info!("{} is up, UDP port {}", self.site.name, self.plane.local_port());

        loop {
            self.follow_up(Instant::now());
            let timeout = self.poll_timeout(Instant::now()).map(tokio::time::Instant::from_std);
            tokio::select! {
                reason = &mut stop => {
                    tracing::info!("stopping: {reason}");
                    heartbeat.end();
                    return Ok(());
                }
                () = heartbeat.due() => heartbeat.beat(self),
                Some(()) = reload.recv() => drop(reload::reload(self, Instant::now())),
                ready = self.plane.readable() => {
                    ready.context("the workers' notices cannot be heard")?;
                    self.take_notices(Instant::now())?;
                }
                () = at(timeout) => self.handle_timeout(Instant::now()),
                _ = samples.tick() => self.sample(Instant::now()),
                _ = confirmations.tick() => self.confirm_neighbours(),
                more = monitor.news() => {
                    news.extend(more.context("network changes cannot be heard")?);
                    news_due.get_or_insert_with(|| tokio::time::Instant::now() + NEWS_DELAY);
                }
                () = at(news_due) => {
                    news_due = None;
                    let now = Instant::now();
                    let changed = self.ground.refresh(now, news.drain(..));
                    self.network_changed(now, &changed);
                }
                input = Overlay::next(&mut self.overlay) => self.take_input(Instant::now(), input),
                change = self.handshakes.resolved() => self.handshakes.handle_resolved(Instant::now(), change),
                Some(reply) = self.metrics.asked() => drop(reply.send(report::status(self, Instant::now()))),
                Some(request) = uapi.requests.recv() => configure::serve(self, Instant::now(), request),
                Some(request) = control.requests.recv() => {
                    if self.answer(Instant::now(), request).await {
                        heartbeat.end();
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Answers over the control socket. Returns whether the gateway is to stop.
    async fn answer(&mut self, now: Instant, request: control_socket::Request) -> bool {
        use control_socket::Request;
        // Whoever asked may have gone.
        match request {
            Request::Status { reply } => drop(reply.send(report::status(self, now))),
            Request::Netcheck { reply } => drop(reply.send(netcheck::report(self))),
            Request::Reload { reply } => drop(reply.send(reload::reload(self, now))),
            Request::Unsaved { reply } => drop(reply.send(unsaved::unsaved(self))),
            Request::Release { what, reply } => {
                let released = release_from(&mut self.guard, &what, &self.handshakes.peers.remote());
                self.ground_due = true;
                self.follow_up(now);
                drop(reply.send(released));
            }
            Request::Stop { release, reply } => {
                if release {
                    self.guard.release_all();
                }
                let _ = reply.send(());
                // The answer is on its way before its connection ends with us.
                tokio::task::yield_now().await;
                tracing::info!("stopping: asked over the control socket");
                return true;
            }
        }
        false
    }

    fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let found = self.overlay.as_mut().and_then(|overlay| overlay.poll_timeout(now));
        let timers = [
            self.handshakes.proto.poll_timeout(),
            found,
            self.ground.poll_timeout(),
            self.plane.poll_timeout(),
            self.metrics.poll_timeout(),
        ];
        timers.into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handshakes.proto.handle_timeout(now);
        self.metrics.follow(now);
        self.ground_due |= self.ground.poll_timeout().is_some_and(|at| at <= now);
        if self.overlay.as_mut().is_some_and(|overlay| overlay.handle_timeout(now)) {
            self.apply_map(now);
        }
    }

    /// Sees to everything that follows from what was changed. Guard and routes come before the table, so that no
    /// worker is given a packet that has no way, and the table before the commands that rely on it.
    fn follow_up(&mut self, now: Instant) {
        self.handshakes.take_events(now, 0);
        if let Some(overlay) = &mut self.overlay {
            overlay.follow_paths(now, &mut self.handshakes);
        }
        let renewed = self.plane.renew(now);
        self.handshakes.set_sender(now, self.plane.sender());
        let Self { profile, handshakes, overlay, .. } = self;
        let moved = overlay.as_mut().is_some_and(|overlay| overlay.follow_socket(now, profile, handshakes));
        if renewed.is_some() || moved {
            // Peers hear of another port before anything that takes its time.
            let (due, commands) = self.handshakes.take_due();
            self.due.add(due);
            self.plane.command(commands);
            self.handshakes.lost(self.plane.send_commands());
            renewed.into_iter().flatten().for_each(|notice| self.take_notice(now, notice));
            // The tun device may be another.
            let changed = self.ground.refresh(now, [News::Lost]);
            self.network_changed(now, &changed);
            self.due = Due::PEERS;
        }
        let (due, commands) = self.handshakes.take_due();
        self.due.add(due);
        self.plane.command(commands);
        let due = std::mem::take(&mut self.due);
        if due.prefixes {
            self.plane.renew_allowed_ips(&self.handshakes.peers);
            self.cover(now);
        }
        // An endpoint may lie inside a remote prefix.
        if std::mem::take(&mut self.ground_due) || due.prefixes || due.paths {
            let Self { site, handshakes, overlay, guard, plane, ground, .. } = self;
            let wanted = wanted::wanted(site, &handshakes.peers, overlay.as_ref(), guard, plane, ground.network());
            self.ground.reconcile(now, &wanted);
            // What was released is forgotten only now that the kernel has forgotten it.
            self.guard.save(now, &mut self.problems);
        }
        let mut table = due.table || due.prefixes;
        if std::mem::take(&mut self.paths_due) || due.prefixes || due.paths {
            table |= self.find_paths();
        }
        if table {
            self.plane.publish(&self.handshakes.peers);
        }
        self.handshakes.transmit();
        let lost = self.plane.send_commands();
        self.handshakes.lost(lost);
    }

    /// Takes the prefixes of all peers into the guard.
    fn cover(&mut self, now: Instant) {
        let mut refused = Vec::new();
        for peer in self.handshakes.peers.iter() {
            let origin = match peer.origin {
                Origin::Overlay if self.site.accept.is_some() => Origin::Accepted,
                origin => origin,
            };
            refused.extend(self.guard.cover(peer.allowed_ips().iter().copied(), origin));
        }
        note_refused(&mut self.problems, now, refused);
        self.guard.save(now, &mut self.problems);
    }

    /// Finds the ways to the endpoints and tells the steering programs; whether the table has to follow.
    fn find_paths(&mut self) -> bool {
        let (linux, network) = self.ground.parts();
        let changed = self.plane.find_paths(linux.netlink(), network, &self.handshakes.peers);
        let addresses = self.plane.drives().wan.index().into_iter().flat_map(|wan| network.addresses_of(wan));
        let remote: Vec<_> = self.handshakes.peers.remote().into_iter().collect();
        let kept = network.kept(&remote);
        self.plane.steer(
            addresses.map(|address| address.address).collect(),
            plane::steering::prefixes(&self.handshakes.peers, &kept),
        );
        changed
    }

    /// Follows what the kernel says is new.
    fn network_changed(&mut self, now: Instant, changed: &Changed) {
        self.ground_due |= changed.ground;
        let network = self.ground.network();
        if changed.interfaces {
            let mtu = self.plane.follow(network);
            self.due.table |= mtu;
            self.ground_due |= mtu;
        }
        if *changed == Changed::default() {
            return;
        }
        self.due.table |= self.plane.follow_hops(network, &self.site.virtual_addresses, self.site.behind());
        let endpoints = self.handshakes.peers.iter().filter_map(|peer| peer.endpoint);
        self.paths_due |= changed.neighbours || endpoints.into_iter().any(|endpoint| changed.affects(endpoint.ip()));
        if let Some(overlay) = &mut self.overlay {
            let (hosts, router) = wanted::place(&self.site, &self.plane, network);
            overlay.set_place(now, hosts, router, wanted::default_routes(network));
        }
        if changed.interfaces || changed.addresses {
            // What of the map is taken depends on the networks here.
            self.apply_map(now);
        }
    }

    /// Makes peers of the coordinator's map.
    fn apply_map(&mut self, now: Instant) {
        if let Some(overlay) = &mut self.overlay {
            overlay.judge(now);
            let surroundings = wanted::surroundings(&self.site, &self.handshakes.peers, overlay, self.ground.network());
            overlay.apply(now, &mut self.handshakes, &surroundings);
        }
    }

    /// Takes the address that the coordinator gives, unless the profile has one.
    fn take_address(&mut self) {
        let Some(address) = self.overlay.as_ref().and_then(Overlay::address) else { return };
        if !self.site.own_address && self.site.virtual_addresses != [address] {
            self.site.virtual_addresses = vec![address];
            self.due.table |=
                self.plane.follow_hops(self.ground.network(), &self.site.virtual_addresses, self.site.behind());
            self.ground_due = true;
        }
    }

    fn take_input(&mut self, now: Instant, input: overlay::Input) {
        let Some(overlay) = &mut self.overlay else { return };
        match overlay.handle_input(now, input) {
            Outcome::Nothing => {}
            Outcome::Map => self.apply_map(now),
            Outcome::Address => self.take_address(),
        }
    }

    /// Takes what the workers have to say.
    ///
    /// # Errors
    /// A worker has died.
    fn take_notices(&mut self, now: Instant) -> Result<()> {
        for notice in self.plane.notices(NOTICES_PER_TURN) {
            if let Notice::WorkerDied { worker } = notice {
                bail!("worker {worker} has died by a panic; remote prefixes stay blocked");
            }
            self.take_notice(now, notice);
        }
        Ok(())
    }

    fn take_notice(&mut self, now: Instant, notice: Notice) {
        if let (Some(overlay), Notice::Datagram { from, payload }) = (&mut self.overlay, &notice)
            && (self.handshakes.refuses_probe(from.remote.ip(), payload)
                || overlay.traversal.handle_datagram(now, *from, payload))
        {
            return;
        }
        self.handshakes.handle_notice(now, notice);
    }

    /// Looks at the traffic counters and tells the timers, and does what is done little by little.
    fn sample(&mut self, now: Instant) {
        self.handshakes.call(now);
        self.handshakes.save(now, false, &mut self.problems);
        let traversal = self.overlay.as_mut().map(|overlay| &mut overlay.traversal);
        match traversal {
            Some(traversal) => self.handshakes.sample(now, |peer, traffic| {
                if peer.found.is_some() {
                    traversal.handle_traffic(now, &peer.public_key.into(), traffic);
                }
            }),
            None => self.handshakes.sample(now, |_, _| {}),
        }
    }

    fn confirm_neighbours(&mut self) {
        let (linux, network) = self.ground.parts();
        self.plane.confirm_neighbours(linux.netlink(), network);
        // Those that were silent get another chance.
        self.paths_due = true;
    }

    /// Takes everything down but the guard.
    fn stop(self) {
        let Self { site, mut handshakes, overlay, mut guard, mut ground, plane, mut problems, .. } = self;
        let now = Instant::now();
        let wanted = wanted::wanted(&site, &handshakes.peers, overlay.as_ref(), &guard, &plane, ground.network());
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
}

fn note_refused(problems: &mut Problems, now: Instant, refused: Vec<(IpNet, Refusal)>) {
    for (prefix, refusal) in refused {
        let what_to_do = "remove prefixes, or release those that are no longer needed";
        problems.note(now, &format!("guard of {prefix}"), &refusal.to_string(), what_to_do);
    }
}

/// A future that ends with SIGTERM or SIGINT. Once `stopping` is set, another one kills the process.
fn stop_signals(stopping: &Arc<AtomicBool>) -> Result<impl Future<Output = &'static str>> {
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
