//! A peer: its addresses, the probes to and from them, and what is due when.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use x25519_dalek::PublicKey;

use super::agent::Shared;
use super::birthday::Birthday;
use super::check::{Check, Kind, Route, State};
use super::constants::{MAX_CANDIDATES, MAX_PEER_REFLEXIVE, OPENING_TTL, PathTimings, REPLAY_MEMORY};
use super::given::Given;
use super::probe::{Envelope, Ping, Pong, Probe, ProbeKey, ProbeReject, SiteId, SizeCheck};
use super::rounds::{Phase, Rounds};
use super::sizes::Sizes;
use super::{Path, PathEvent, PathTransmit, Reason, SocketId};
use crate::coordination::{Candidate, CandidateKind, NatType};

pub(crate) struct Peer {
    pub public_key: PublicKey,
    pub site: SiteId,
    key: ProbeKey,
    /// Set if its only address is given; then nothing is found or chosen.
    pub given: Option<Given>,
    pub nat: NatType,
    pub checks: Vec<Check>,
    pub selected: Option<Route>,
    /// The relay that the peer last said it sends through.
    pub peers_relay: Option<Route>,
    pub reported: Option<(Path, Reason)>,
    pub rounds: Rounds,
    pub birthday: Birthday,
    postponed: Option<Postponed>,
    /// When the data plane last sent something to the peer.
    pub traffic: Option<Instant>,
    pub sizes: Sizes,
    /// Pings of the last train that were not answered yet.
    pub train: Vec<SizeCheck>,
    /// Whether the last direct path died.
    pub died: bool,
    seen: VecDeque<u64>,
    pub scheduled: Option<Instant>,
}

/// The last of a peer's signals, when they come too often.
struct Postponed {
    until: Instant,
    candidates: Vec<Candidate>,
    nat: NatType,
}

impl Peer {
    pub fn new(public_key: PublicKey, site: SiteId, key: ProbeKey) -> Self {
        Self {
            public_key,
            site,
            key,
            given: None,
            nat: NatType::default(),
            checks: Vec::new(),
            selected: None,
            peers_relay: None,
            reported: None,
            rounds: Rounds::default(),
            birthday: Birthday::default(),
            postponed: None,
            traffic: None,
            sizes: Sizes::default(),
            train: Vec::new(),
            died: false,
            seen: VecDeque::new(),
            scheduled: None,
        }
    }

    pub fn open(&self, envelope: &Envelope<'_>) -> Result<Probe, ProbeReject> {
        self.key.open(envelope)
    }

    pub fn knows(&self, from: SocketAddr) -> bool {
        self.checks.iter().any(|check| check.route.to == from)
    }

    pub fn check(&self, route: Route) -> Option<&Check> {
        self.checks.iter().find(|check| check.route == route)
    }

    pub fn check_mut(&mut self, route: Route) -> Option<&mut Check> {
        self.checks.iter_mut().find(|check| check.route == route)
    }

    pub fn is_direct(&self) -> bool {
        self.selected.and_then(|route| self.check(route)).is_some_and(Check::is_direct)
    }

    pub fn round_trip(&self) -> Option<Duration> {
        self.check(self.selected?)?.round_trip()
    }

    /// Takes over the agent's relays; checks of those that remain go on.
    pub fn set_relays(&mut self, shared: &Shared) {
        let kept = |check: &Check| match check.kind {
            Kind::Relay(relay) => shared.relays.contains(&relay),
            _ => true,
        };
        self.checks.retain(kept);
        for relay in &shared.relays {
            let route = Route::tunnel(relay.address);
            if self.check(route).is_none() {
                self.checks.push(Check::new(route, Kind::Relay(*relay)));
            }
        }
    }

    /// Takes over what the peer signals; new addresses start a round. If signals come too often the last one waits, or
    /// the peer could make us probe whatever addresses it names, forever.
    pub fn set_remote(&mut self, now: Instant, shared: &mut Shared, candidates: &[Candidate], nat: NatType) {
        self.postponed = None;
        let mut wanted: Vec<Candidate> = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.is_sound()) {
            let address = SocketAddr::new(candidate.address.ip().to_canonical(), candidate.address.port());
            let relay = shared.relays.iter().any(|relay| relay.address == address);
            // An address that is both a host's own and reflexive is not behind a NAT.
            let full = wanted.len() >= MAX_CANDIDATES;
            match wanted.iter_mut().find(|known| known.address == address) {
                Some(known) if candidate.kind == CandidateKind::Host => known.kind = CandidateKind::Host,
                None if !full && !relay => wanted.push(Candidate { address, ..*candidate }),
                _ => {}
            }
        }
        let is_gone = |check: &Check| {
            matches!(check.kind, Kind::Signalled(_)) && wanted.iter().all(|known| known.address != check.route.to)
        };
        let is_known = |candidate: &Candidate| self.check(Route::tunnel(candidate.address)).is_some();
        let changed = self.checks.iter().any(is_gone) || !wanted.iter().all(is_known);
        if changed && let Err(until) = self.rounds.prompted(now, shared) {
            self.postponed = Some(Postponed { until, candidates: wanted, nat });
            return;
        }
        self.nat = nat;
        let selected = self.selected;
        self.checks.retain_mut(|check| {
            if !is_gone(check) {
                return true;
            }
            // A path in use lives until it is silent, whatever the coordinator has been told.
            check.kind = Kind::PeerReflexive;
            selected == Some(check.route)
        });
        for candidate in wanted {
            let kind = Kind::Signalled(candidate.kind);
            match self.check_mut(Route::tunnel(candidate.address)) {
                Some(check) => check.kind = kind,
                None => self.checks.push(Check::new(Route::tunnel(candidate.address), kind)),
            }
        }
        if changed {
            self.birthday.change();
            self.start_round(now, shared, None);
        }
    }

    /// What was known to be alive may no longer be.
    pub fn handle_network_change(&mut self, now: Instant, shared: &mut Shared) {
        self.close_sockets(shared);
        self.checks.retain(|check| check.kind != Kind::PeerReflexive);
        self.checks.iter_mut().for_each(Check::forget);
        self.selected = None;
        self.died = false;
        self.birthday.change();
        self.start_round(now, shared, None);
    }

    pub fn handle_ping(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        socket: SocketId,
        from: SocketAddr,
        ping: Ping,
    ) -> Result<(), ProbeReject> {
        self.remember(ping.transaction)?;
        let route = Route { socket, to: from };
        if shared.budget.urgent(now) {
            let pong = Probe::Pong(Pong { transaction: ping.transaction, seen: from });
            self.transmit(shared, route, None, &pong);
        }
        if self.check(route).is_none() && !self.learn(route) {
            return Ok(());
        }
        if self.given.is_none() {
            self.note_ping(now, shared, route, &ping);
        }
        // The peer can reach us, so it is worth asking whether we can reach it (RFC 8445, 7.3.1.4).
        if let Some(check) = self.check_mut(route)
            && !check.is_alive()
            && check.is_rested(now, &shared.config.timings)
        {
            self.ping(now, shared, route, None, true);
        }
        Ok(())
    }

    /// Takes what a ping says about the search for a path.
    fn note_ping(&mut self, now: Instant, shared: &mut Shared, route: Route, ping: &Ping) {
        if ping.selected && self.check(route).is_some_and(|check| !check.is_direct()) {
            self.peers_relay = Some(route);
            self.insist(now, shared, route);
        }
        if ping.opened.is_some() {
            self.peer_opened(now, shared, ping);
        }
        if ping.birthday {
            self.spray(now, shared);
        }
        self.hear_choice(shared, route, ping);
    }

    /// Notes a ping that is about to be answered.
    pub fn remember(&mut self, transaction: u64) -> Result<(), ProbeReject> {
        if self.seen.contains(&transaction) {
            return Err(ProbeReject::Replay);
        }
        if self.seen.len() == REPLAY_MEMORY {
            self.seen.pop_front();
        }
        self.seen.push_back(transaction);
        Ok(())
    }

    /// Tells the peer again which relay we have chosen for both, when it says that it uses another: our earlier message
    /// was lost, or overtook an older one on a quicker path.
    fn insist(&mut self, now: Instant, shared: &Shared, theirs: Route) {
        let ours = self.selected.filter(|ours| self.chooses_relay(shared) && *ours != theirs);
        if let Some(check) = ours.and_then(|ours| self.check_mut(ours))
            && !check.is_direct()
            && check.is_rested(now, &shared.config.timings)
        {
            check.last_sent = None;
        }
    }

    pub fn handle_pong(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        pong: Pong,
    ) -> Result<(), ProbeReject> {
        let route = Route { socket, to: from };
        let hit = self.birthday.is_guess(from, pong.transaction) && self.check(route).is_none();
        if hit
            && self.learn(route)
            && let Some(check) = self.check_mut(route)
        {
            check.sent(now, pong.transaction, true);
        }
        let answered = self.check_mut(route).is_some_and(|check| check.answered(now, pong.transaction));
        if answered { Ok(()) } else { Err(ProbeReject::Unasked) }
    }

    /// Adds a peer-reflexive candidate; one that never answered makes room for it.
    fn learn(&mut self, route: Route) -> bool {
        if self.given.is_some() {
            return false;
        }
        let known = self.checks.iter().filter(|check| check.kind == Kind::PeerReflexive).count();
        if known >= MAX_PEER_REFLEXIVE {
            let selected = self.selected;
            let idle =
                |check: &Check| check.kind == Kind::PeerReflexive && !check.is_alive() && selected != Some(check.route);
            let Some(oldest) = self.checks.iter().position(idle) else {
                return false;
            };
            self.checks.remove(oldest);
        }
        self.checks.push(Check::new(route, Kind::PeerReflexive));
        true
    }

    /// Does what is due, selects a path, and tells what has changed.
    pub fn settle(&mut self, now: Instant, shared: &mut Shared) {
        if let Some(Postponed { candidates, nat, .. }) = self.postponed.take_if(|postponed| postponed.until <= now) {
            self.set_remote(now, shared, &candidates, nat);
        }
        self.advance_round(now, shared);
        self.advance_birthday(now, shared);
        self.select(shared);
        let due: Vec<Route> = self
            .checks
            .iter()
            .filter(|check| self.due(now, shared, check).is_some_and(|at| at <= now))
            .map(|check| check.route)
            .collect();
        let mut lost = false;
        for route in due {
            let given = self.given.is_some();
            let selected = self.selected == Some(route);
            let Some(check) = self.check_mut(route) else { continue };
            let urgent = if given { check.is_alive() } else { selected || !check.is_direct() };
            if check.is_lost(&shared.config.timings) {
                check.die();
                if given {
                    continue;
                }
                let direct = check.is_direct();
                if selected {
                    shared.events.push_back(PathEvent::RefreshCandidates);
                    lost |= direct;
                }
                if direct && urgent {
                    continue;
                }
            }
            self.ping(now, shared, route, None, urgent);
        }
        if lost {
            self.died = true;
            self.start_round(now, shared, None);
        }
        self.select(shared);
        self.report(shared);
        self.settle_sizes(now, shared);
    }

    /// When the next ping to this address is due; `None` if none is planned.
    fn due(&self, now: Instant, shared: &Shared, check: &Check) -> Option<Instant> {
        if self.given.is_some() {
            return self.given_due(now, shared, check);
        }
        let timings = &shared.config.timings;
        let selected = self.selected == Some(check.route);
        let busy = self.has_traffic(now, timings) || self.rounds.phase != Phase::Idle;
        let in_round = match self.rounds.phase {
            Phase::Idle => false,
            Phase::Opening { .. } => !check.needs_opening() || check.is_alive(),
            Phase::Checking { .. } => true,
        };
        let relay = !check.is_direct();
        let mut interval = None;
        let mut at_most =
            |duration: Duration| interval = Some(interval.map_or(duration, |known: Duration| known.min(duration)));
        if selected && busy {
            at_most(timings.active);
        }
        if selected || (relay && check.state != State::Dead) {
            at_most(if check.unanswered > 0 { check.retry(timings) } else { timings.keepalive });
        }
        if in_round && (relay || check.state != State::Dead || check.needs_opening()) {
            at_most(timings.check);
        }
        if relay && check.state == State::Dead {
            at_most(timings.relay_retry);
        }
        if relay && self.birthday.is_holding() {
            at_most(timings.active);
        }
        interval.map(|interval| check.last_sent.map_or(now, |at| at + interval))
    }

    /// Whether something was sent to the peer lately.
    pub fn has_traffic(&self, now: Instant, timings: &PathTimings) -> bool {
        self.traffic.is_some_and(|at| now < at + timings.active_hold)
    }

    pub fn deadline(&self, now: Instant, shared: &Shared) -> Option<Instant> {
        let pings = self.checks.iter().filter_map(|check| self.due(now, shared, check));
        let postponed = self.postponed.as_ref().map(|postponed| postponed.until);
        let others = [self.rounds.deadline(), self.birthday.deadline(), self.sizes_deadline(now, shared), postponed];
        pings.chain(others.into_iter().flatten()).min()
    }

    /// Pings an address; with a `ttl`, only to open our own NAT.
    pub fn ping(&mut self, now: Instant, shared: &mut Shared, route: Route, ttl: Option<u8>, urgent: bool) {
        // It is not known yet whether anybody there wants to be pinged.
        let stranger = !urgent && self.check(route).is_some_and(|check| !check.is_alive());
        let allowed = (!stranger || shared.targets.allow(now, route.to.ip()))
            && if urgent { shared.budget.urgent(now) } else { shared.budget.searching(now) };
        let transaction = shared.random();
        if let Some(check) = self.check_mut(route) {
            // A ping that exceeds the budget is left out, and not counted as missed.
            if !allowed {
                check.last_sent = Some(now);
                return;
            }
            check.sent(now, transaction, ttl.is_none());
        }
        self.send_ping(shared, route, ttl, transaction);
    }

    pub fn send_ping(&mut self, shared: &mut Shared, route: Route, ttl: Option<u8>, transaction: u64) {
        let opened = self.rounds.announces().then(|| self.rounds.remote_digest(&self.checks));
        let (birthday, selected) = (self.birthday.is_holding(), self.selected == Some(route));
        let ping = Ping { transaction, opened, birthday, selected, round: self.rounds.id };
        self.transmit(shared, route, ttl, &Probe::Ping(ping));
    }

    /// Opens our NAT towards an address.
    pub fn open_towards(&mut self, now: Instant, shared: &mut Shared, route: Route) {
        self.ping(now, shared, route, Some(OPENING_TTL), false);
    }

    pub fn transmit(&mut self, shared: &mut Shared, route: Route, ttl: Option<u8>, probe: &Probe) {
        let (bytes, dont_fragment) = match probe {
            Probe::SizedPing(ping) => (self.seal_sized(shared, *ping), true),
            _ => (self.key.seal(self.site, shared.site, probe, &mut shared.rng).to_vec(), false),
        };
        let Route { socket, to } = route;
        let local = self.given.filter(|_| self.selected == Some(route)).and_then(|given| given.local);
        shared.transmits.push_back(PathTransmit { socket, to, local, ttl, dont_fragment, bytes });
    }

    pub fn seal_sized(&self, shared: &mut Shared, ping: SizeCheck) -> Vec<u8> {
        self.key.seal_sized(self.site, shared.site, ping, &mut shared.rng)
    }

    fn report(&mut self, shared: &mut Shared) {
        if self.given.is_some() {
            return;
        }
        let path = self.selected.and_then(|route| self.check(route)).map_or(Path::None, Check::path);
        let reason = self.reason(shared, path);
        if self.reported != Some((path, reason)) {
            self.reported = Some((path, reason));
            shared.events.push_back(PathEvent::Selected { peer: self.public_key, path, reason });
        }
    }
}
