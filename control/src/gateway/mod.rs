//! The running gateway: compares what should be with what is, again and again.
//!
//! ```text
//!   Site         who we are, from the profile
//!   Handshakes   peers, WireGuard's state, sessions          ─┐
//!   Overlay      the coordinator's map, paths to its peers    ├─► what should be
//!   Probing      the MTU of the paths to the other peers      │
//!   Guard        the prefixes that are blocked, on disk      ─┘        │
//!                                                       ┌──────────────┤
//!   Ground       routes, rules, firewall, settings  ◄───┘  Wanted      │ table, paths, steering
//!   Plane        interfaces, ports, workers         ◄──────────────────┘
//! ```
//! Each part owns its state; [`Gateway`] only passes between them. Inputs change one part and mark what is due;
//! [`Gateway::follow_up`] then does everything that is due, in an order in which nothing can leak. The start is simply
//! the first such pass, and nothing ends the gateway but its administrator, a worker's panic, or a profile that makes a
//! start impossible: whatever fails is a problem with a name, and is tried again.

mod bypass;
mod configure;
pub mod device;
mod due;
mod handshakes;
mod heartbeat;
mod history;
mod map;
mod metrics;
mod netcheck;
mod network;
mod overlay;
mod path_mtu;
mod paths;
mod peers;
mod plane;
mod privileges;
mod probing;
mod reload;
mod report;
mod run;
mod site;
mod standing;
mod statements;
mod suites;
mod traffic;
mod unsaved;
mod wanted;

use std::time::Instant;

use penstock_dataplane::drop::DropReason;

use crate::ground::{Ground, Guard, Linux};
use crate::netlink::News;
use crate::problem::Problems;
use crate::profile::Profile;

use bypass::Bypass;
use due::Due;
use handshakes::Handshakes;
use history::Recorder;
use metrics::Metrics;
use overlay::Overlay;
use plane::Plane;
use probing::Probing;
pub use run::run;
use site::Site;
pub use standing::{Absent, guard, guard_without_profile, guarded, release};

/// The reasons for which a gateway drops packets, under the names that `status` shows.
pub fn drop_reasons() -> impl Iterator<Item = String> {
    let workers = DropReason::ALL.iter().map(|reason| reason.name().to_owned());
    workers.chain(handshakes::drop_reasons())
}

/// A gateway with its workers running.
pub struct Gateway {
    /// The profile in force, except for what `wg set` has changed since.
    profile: Profile,
    site: Site,
    handshakes: Handshakes,
    /// `None` without a coordinator.
    overlay: Option<Overlay>,
    probing: Probing,
    guard: Guard,
    ground: Ground<Linux>,
    plane: Plane,
    /// The rules that AF_XDP would bypass.
    bypass: Bypass,
    metrics: Metrics,
    history: Recorder,
    /// Problems of the guard and the profile.
    problems: Problems,
    /// Changes that are not in force yet.
    due: Due,
}

impl Gateway {
    /// Does everything that follows from the changes. Guard and routes come before the table, so that no worker gets a
    /// packet that has no route, and the table comes before the commands that rely on it.
    fn follow_up(&mut self, now: Instant) {
        self.handshakes.take_events(now, 0);
        if let Some(overlay) = &mut self.overlay {
            overlay.follow_paths(now, &mut self.handshakes);
        }
        if self.probing.step(now, &mut self.handshakes) {
            self.due.add(Due::SIZES);
        }
        let renewed = self.plane.renew(now);
        self.handshakes.set_sender(now, self.plane.sender());
        let Self { profile, handshakes, overlay, .. } = self;
        let moved = overlay.as_mut().is_some_and(|overlay| overlay.follow_socket(now, profile, handshakes));
        if renewed.is_some() || moved {
            // Peers are told about a new port before anything that takes time.
            let (due, commands) = self.handshakes.take_due();
            self.due.add(due);
            self.plane.workers_mut().command(commands);
            self.handshakes.lost(self.plane.workers_mut().send_commands());
            renewed.into_iter().flatten().for_each(|notice| traffic::take_notice(self, now, notice));
            // The tun device may be a new one.
            let changed = self.ground.refresh(now, [News::Lost]);
            network::changed(self, now, &changed);
            self.due.add(Due::PEERS);
        }
        let (due, commands) = self.handshakes.take_due();
        self.due.add(due);
        self.plane.workers_mut().command(commands);
        let mut due = std::mem::take(&mut self.due);
        if due.prefixes {
            self.plane.renew_allowed_ips(&self.handshakes.peers);
            self.plane.renew_firewall(self.profile.firewall.as_ref(), &self.handshakes.peers);
            standing::cover(self, now);
            self.bypass.note_prefixes(now);
        }
        path_mtu::follow(self, now, &mut due);
        if due.ground || due.endpoints {
            network::reconcile(self, now);
        }
        let mut table = due.table;
        if due.paths || due.endpoints {
            table |= network::find_paths(self, due.paths);
        }
        if table {
            self.plane.publish(&self.handshakes.peers);
        }
        self.handshakes.transmit();
        let lost = self.plane.workers_mut().send_commands();
        self.handshakes.lost(lost);
    }
}
