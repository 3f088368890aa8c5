//! How large a peer's datagrams may be: the search of [`pmtu`](crate::pmtu) on the selected path.
//!
//! Each path keeps its result for as long as it lives. Only the path in use is probed, and an idle one only until there
//! is a first result. Datagrams of the size that was found make the trains that are asked for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::agent::Shared;
use super::check::Route;
use super::constants::{PathTimings, SIZED_ANSWER_BURST, SIZED_ANSWERS_PER_SECOND};
use super::peer::Peer;
use super::probe::{PROBE_LENGTH, Probe, ProbeReject, SizeCheck};
use super::{PathEvent, SocketId, Train};
use crate::pmtu::{Conditions, MtuSource, PathMtu, Search, SizedProbe, TooBig, ceiling, header, overhead};
use crate::relay::DATAGRAM_LIMIT;
use crate::{Bucket, Traffic};

/// The state of a peer, whatever its path.
#[derive(Default)]
pub(crate) struct Sizes {
    /// When data was last sent to the peer.
    data: Option<Instant>,
    /// The path that is probed at present.
    on: Option<Route>,
    pub reported: Option<PathMtu>,
    answers: Bucket,
}

impl Sizes {
    pub fn note_traffic(&mut self, now: Instant, traffic: Traffic) {
        if traffic.sent_data {
            self.data = Some(now);
        }
    }

    /// Whether the path being probed leads to this address.
    pub fn go_to(&self, to: SocketAddr) -> bool {
        self.on.is_some_and(|route| route.to == to)
    }

    fn is_busy(&self, now: Instant, timings: &PathTimings) -> bool {
        self.data.is_some_and(|at| now < at + timings.active_hold)
    }
}

impl Peer {
    /// Sends the probes that are due, and tells what has changed. To be called after the path was selected.
    pub fn settle_sizes(&mut self, now: Instant, shared: &mut Shared) {
        let used = self.sized_route(shared);
        let on = used.map(|(route, _)| route);
        if self.sizes.on != on {
            let before = std::mem::replace(&mut self.sizes.on, on).and_then(|before| self.check_mut(before));
            before.and_then(|check| check.sizes.as_mut()).into_iter().for_each(Search::pause);
        }
        let Some((route, most)) = used else { return };
        let measured = self.sizes.reported.filter(|mtu| !matches!(mtu.source, MtuSource::Link | MtuSource::Icmp));
        let previous = measured.map(|mtu| mtu.inner + overhead(route.to.ip()));
        let Some(conditions) = self.conditions(now, shared, route) else { return };
        let Some(check) = self.check_mut(route) else { return };
        let smallest = PROBE_LENGTH as u16 + header(route.to.ip());
        let search = check.sizes.get_or_insert_with(|| Search::new(most, smallest, previous));
        search.set_ceiling(now, most);
        let due = search.advance(now, &conditions, &mut shared.sized_budget, &mut shared.rng);
        let (outer, source) = search.value();
        for SizedProbe { transaction, size } in due {
            let length = size.saturating_sub(header(route.to.ip()));
            self.transmit(shared, route, None, &Probe::SizedPing(SizeCheck { transaction, length }));
        }
        let mtu = PathMtu::new(route.to.ip(), outer, source, shared.config.pinned_mtu);
        if self.sizes.reported != Some(mtu) {
            self.sizes.reported = Some(mtu);
            shared.events.push_back(PathEvent::Mtu { peer: self.public_key, mtu });
        }
    }

    /// The selected path, and the largest packet that may be tried on it; `None` if that is not known.
    fn sized_route(&self, shared: &Shared) -> Option<(Route, u16)> {
        let route = self.selected?;
        let to = route.to.ip();
        let link = shared.links.mtu(to)?.min(DATAGRAM_LIMIT as u16 + header(to));
        Some((route, ceiling(to, link, shared.config.pinned_mtu)))
    }

    pub fn sizes_deadline(&self, now: Instant, shared: &Shared) -> Option<Instant> {
        let (route, _) = self.sized_route(shared)?;
        self.check(route)?.sizes.as_ref()?.deadline(now, &self.conditions(now, shared, route)?)
    }

    fn conditions(&self, now: Instant, shared: &Shared, route: Route) -> Option<Conditions> {
        let busy = self.sizes.is_busy(now, &shared.config.timings);
        let check = self.check(route)?;
        Some(Conditions { alive: check.is_alive(), busy, round_trip: check.round_trip(), heard: check.heard })
    }

    pub fn handle_sized_ping(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        socket: SocketId,
        from: SocketAddr,
        ping: SizeCheck,
    ) -> Result<(), ProbeReject> {
        if usize::from(ping.length) > shared.receive_limit {
            return Err(ProbeReject::Length);
        }
        self.remember(ping.transaction)?;
        let cost = Duration::from_secs(1) / SIZED_ANSWERS_PER_SECOND;
        if self.sizes.answers.take(now, cost, cost * SIZED_ANSWER_BURST) && shared.budget.urgent(now) {
            self.transmit(shared, Route { socket, to: from }, None, &Probe::SizedPong(ping));
        }
        Ok(())
    }

    /// Pings of the largest size that passes on the selected path, if that leaves from the tunnel's own socket.
    pub fn make_train(&mut self, shared: &mut Shared, count: usize, longest: u16) -> Option<Train> {
        let Route { socket: SocketId::TUNNEL, to } = self.selected? else { return None };
        let length = self.sizes.reported?.outer.saturating_sub(header(to.ip())).min(longest);
        let pings = (0..count).map(|_| SizeCheck { transaction: shared.random(), length });
        self.train = pings.collect();
        let pings = self.train.iter().map(|ping| (ping.transaction, self.seal_sized(shared, *ping))).collect();
        Some(Train { to, length, pings })
    }

    pub fn handle_sized_pong(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        socket: SocketId,
        from: SocketAddr,
        pong: SizeCheck,
    ) -> Result<(), ProbeReject> {
        if let Some(at) = self.train.iter().position(|ping| *ping == pong) {
            self.train.swap_remove(at);
            let peer = self.public_key;
            shared.events.push_back(PathEvent::Arrived { peer, transaction: pong.transaction });
            return Ok(());
        }
        let answer = SizedProbe { transaction: pong.transaction, size: pong.length.saturating_add(header(from.ip())) };
        let check = self.check_mut(Route { socket, to: from });
        let answered =
            check.and_then(|check| check.sizes.as_mut()).is_some_and(|search| search.handle_answer(now, answer));
        if answered { Ok(()) } else { Err(ProbeReject::Unasked) }
    }

    /// Takes a router's message about a datagram of ours; `proven` if only somebody who has seen the peers' data can
    /// have sent it.
    pub fn handle_too_big(&mut self, now: Instant, told: &TooBig<'_>, proven: bool) {
        let check = self.sizes.on.and_then(|route| self.check_mut(route));
        if let Some(search) = check.and_then(|check| check.sizes.as_mut()) {
            search.handle_hint(now, told.mtu, proven);
        }
    }
}
