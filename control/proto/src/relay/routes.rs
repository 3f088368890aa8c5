//! Receiver indices: to which site a message with an index goes.
//!
//! A receiver index is chosen by the site that will receive with it, and told to the other site in the sender field of
//! a handshake message. So when a message from S to D carries the sender index `i`, what D sends to receiver index `i`
//! is for S.
//!
//! Anyone who knows the receiver's public key can make an initiation, and where source addresses can be forged, can
//! make it in another site's name. So its index is only a *call* until the other site answers it. A response has to
//! name a call that waits for it, and only one response can do so. An answered call is a *session*, and calls never
//! displace sessions. Each pair has its own calls and sessions, so that nobody can fill another pair's; and an index in
//! use by one peer cannot be taken by another.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::RelayDrop;
use crate::path::SiteId;

/// How long an index is remembered: no session lives longer than 180 s, and its handshake may have taken 90.
pub(super) const ROUTE_LIFETIME: Duration = Duration::from_secs(270);
/// Calls from one site to another that may wait for an answer. They are 5 s apart; the oldest are forgotten first.
pub(super) const CALLS_PER_PAIR: usize = 8;
/// Sessions of one site with another: three or four at a time, and more when either restarts again and again.
pub(super) const SESSIONS_PER_PAIR: usize = 32;

/// The routes of a relay.
#[derive(Default)]
pub(super) struct Routes {
    by_sender: HashMap<SiteId, HashMap<u32, Route>>,
    /// What the first site sends to the second.
    pairs: HashMap<(SiteId, SiteId), OfPair>,
}

struct Route {
    to: SiteId,
    learnt: Instant,
    is_call: bool,
}

/// Indices in the order in which they were learnt.
#[derive(Default)]
struct OfPair {
    calls: VecDeque<(u32, Instant)>,
    sessions: VecDeque<(u32, Instant)>,
}

impl Routes {
    /// An initiation of `caller` names the index with which `called` can answer.
    pub fn call(&mut self, now: Instant, caller: SiteId, called: SiteId, index: u32) {
        self.learn(now, called, index, caller, true);
    }

    /// A response of `sender` to the index of a call names its own index. Returns the site that it is for. A response
    /// to something already answered teaches nothing, but is passed on: it may be a copy that was delayed.
    ///
    /// # Errors
    /// [`RelayDrop::UnknownReceiver`].
    pub fn answer(&mut self, now: Instant, sender: SiteId, call: u32, index: u32) -> Result<SiteId, RelayDrop> {
        let caller = self.find(now, sender, call)?;
        if self.by_sender.get(&sender).and_then(|routes| routes.get(&call)).is_some_and(|route| route.is_call) {
            self.learn(now, sender, call, caller, false);
            self.learn(now, caller, index, sender, false);
        }
        Ok(caller)
    }

    /// The site that a message of `from` to receiver index `index` is for.
    ///
    /// # Errors
    /// [`RelayDrop::UnknownReceiver`].
    pub fn find(&self, now: Instant, from: SiteId, index: u32) -> Result<SiteId, RelayDrop> {
        let route = self.by_sender.get(&from).and_then(|routes| routes.get(&index));
        route.filter(|route| route.is_live(now)).map(|route| route.to).ok_or(RelayDrop::UnknownReceiver)
    }

    /// Forgets what one site sends to the other.
    pub fn forget(&mut self, from: SiteId, to: SiteId) {
        self.pairs.remove(&(from, to));
        let Some(routes) = self.by_sender.get_mut(&from) else { return };
        routes.retain(|_, route| route.to != to);
        if routes.is_empty() {
            self.by_sender.remove(&from);
        }
    }

    /// Notes that what `from` sends to receiver index `index` is for `to`.
    fn learn(&mut self, now: Instant, from: SiteId, index: u32, to: SiteId, is_call: bool) {
        let routes = self.by_sender.entry(from).or_default();
        let taken = |route: &Route| route.is_live(now) && (route.to != to || is_call && !route.is_call);
        if routes.get(&index).is_some_and(taken) {
            return;
        }
        routes.insert(index, Route { to, learnt: now, is_call });
        let OfPair { calls, sessions } = self.pairs.entry((from, to)).or_default();
        let (learnt, limit) = if is_call { (calls, CALLS_PER_PAIR) } else { (sessions, SESSIONS_PER_PAIR) };
        learnt.push_back((index, now));
        while let Some((oldest, at)) = learnt.front().copied() {
            if learnt.len() <= limit && now.duration_since(at) < ROUTE_LIFETIME {
                break;
            }
            learnt.pop_front();
            // An index that was learnt again, or belongs to somebody else by now, has an entry elsewhere.
            let is_this = |route: &Route| (route.to, route.learnt, route.is_call) == (to, at, is_call);
            if routes.get(&oldest).is_some_and(is_this) {
                routes.remove(&oldest);
            }
        }
    }
}

impl Route {
    fn is_live(&self, now: Instant) -> bool {
        now.duration_since(self.learnt) < ROUTE_LIFETIME
    }
}
