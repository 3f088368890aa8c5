//! Peers whose address is given: those of the profile. The address is that of the WireGuard session, which only the
//! peer's authentic packets can move, so there is nothing to choose. The path's MTU is searched for there as on any
//! other path.
//!
//! A plain WireGuard peer answers no pings. So every session begins with a few of them, and no more follow until one
//! was answered; after that, there is one a second while anything is sent.

use std::net::IpAddr;
use std::time::Instant;

use super::agent::Shared;
use super::check::{Check, Kind, Route, State};
use super::peer::Peer;
use crate::Endpoint;
use crate::pmtu::Search;

/// What is given for such a peer, besides its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// Our address that datagrams to it leave from, unless the route chooses.
    pub local: Option<IpAddr>,
    /// The session with it.
    session: Option<u32>,
}

impl Peer {
    /// Whether exactly this was already given for the peer.
    pub fn is_given(&self, endpoint: Endpoint, session: Option<u32>) -> bool {
        let Endpoint { remote, local } = endpoint;
        self.given == Some(Given { local, session }) && self.selected == Some(Route::tunnel(remote))
    }

    /// Takes over where the peer is, and asks whether anybody there answers.
    pub fn give(&mut self, Endpoint { remote, local }: Endpoint, session: Option<u32>) {
        self.given = Some(Given { local, session });
        let route = Route::tunnel(remote);
        let mut check = match self.checks.pop() {
            Some(check) if check.route == route => check,
            before => {
                let mut check = Check::new(route, Kind::Given);
                // The size of the path to a host does not depend on the port.
                check.sizes = before.filter(|check| check.route.to.ip() == remote.ip()).and_then(|check| check.sizes);
                check.sizes.iter_mut().for_each(Search::pause);
                check
            }
        };
        check.ask_anew();
        self.checks = vec![check];
        self.selected = Some(route);
    }

    /// When the next ping to the given address is due; `None` if none is planned.
    pub fn given_due(&self, now: Instant, shared: &Shared, check: &Check) -> Option<Instant> {
        self.given?.session?;
        let timings = &shared.config.timings;
        let asks = check.heard.is_none() || check.unanswered > 0;
        let interval = if asks && check.state != State::Dead {
            check.retry(timings)
        } else if check.heard.is_some() && self.has_traffic(now, timings) {
            timings.active
        } else {
            return None;
        };
        Some(check.last_sent.map_or(now, |at| at + interval))
    }
}
