//! Receiver indices: to which site a message with an index goes.
//!
//! A receiver index is chosen by the site that will receive by it and told to the other in the sender field
//! of a handshake message. So when a message of S to D carries the sender index `i`, what D sends to receiver
//! index `i` is for S.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::RelayDrop;
use crate::path::SiteId;

/// How long an index is remembered: no session lives longer than 180 s, and its handshake took up to 90.
pub(super) const ROUTE_LIFETIME: Duration = Duration::from_secs(270);
/// Indices that one site may be told, at most; the oldest are forgotten first.
pub(super) const ROUTES_PER_SITE: usize = 4096;

/// The routes of a relay.
#[derive(Default)]
pub(super) struct Routes {
    by_sender: HashMap<SiteId, OfSite>,
}

/// Where messages of one site go.
#[derive(Default)]
struct OfSite {
    by_index: HashMap<u32, Route>,
    /// In the order in which they were learnt.
    learnt: VecDeque<(u32, Instant)>,
}

struct Route {
    to: SiteId,
    learnt: Instant,
}

impl Routes {
    /// Notes that what `from` sends to receiver index `index` is for `to`.
    pub fn learn(&mut self, now: Instant, from: SiteId, index: u32, to: SiteId) {
        let OfSite { by_index, learnt } = self.by_sender.entry(from).or_default();
        by_index.insert(index, Route { to, learnt: now });
        learnt.push_back((index, now));
        while let Some((oldest, at)) = learnt.front().copied() {
            if learnt.len() <= ROUTES_PER_SITE && now.duration_since(at) < ROUTE_LIFETIME {
                break;
            }
            learnt.pop_front();
            // An index that was learnt again has a younger entry.
            if by_index.get(&oldest).is_some_and(|route| route.learnt == at) {
                by_index.remove(&oldest);
            }
        }
    }

    /// For whom a message of `from` to receiver index `index` is.
    ///
    /// # Errors
    /// [`RelayDrop::UnknownReceiver`].
    pub fn find(&self, now: Instant, from: SiteId, index: u32) -> Result<SiteId, RelayDrop> {
        let route = self.by_sender.get(&from).and_then(|site| site.by_index.get(&index));
        route
            .filter(|route| now.duration_since(route.learnt) < ROUTE_LIFETIME)
            .map(|route| route.to)
            .ok_or(RelayDrop::UnknownReceiver)
    }

    /// Forgets what one site sends to the other.
    pub fn forget(&mut self, from: SiteId, to: SiteId) {
        let Some(site) = self.by_sender.get_mut(&from) else { return };
        site.by_index.retain(|_, route| route.to != to);
        if site.by_index.is_empty() {
            self.by_sender.remove(&from);
        }
    }
}
