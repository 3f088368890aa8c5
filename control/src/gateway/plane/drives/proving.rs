//! Gathers the evidence for the ports' proofs: counters of the programs, the rings and the kernel, and how the peers
//! have answered. An interface whose proof has failed is driven differently.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::engine::Engine;
use penstock_dataplane::session::{BY_KERNEL, Session, by_ring};
use penstock_dataplane::steer::{AttachError, AttachMode, XdpMode};
use penstock_proto::{PeerId, path};

use super::{Drive, Drives, Obstacle};
use crate::gateway::peers::{Found, Peer, Peers};
use crate::gateway::plane::Plane;
use crate::gateway::plane::modes::Plan;
use crate::gateway::plane::offloads::may_come_uncut;
use crate::gateway::plane::ports::WorkerPorts;
use crate::gateway::plane::proof::{Arrivals, Bound, Counters, DirectSession, Fallen, Fault, Method, Verdict};
use crate::gateway::plane::steering::{Counted, Steering};
use crate::netlink::Netlink;

/// How often the ports are checked, and whether another XDP program is still in the way.
const EVERY: Duration = Duration::from_secs(1);

impl Plane {
    /// Examines what has passed through the AF_XDP ports. Where packets are lost, other ports replace them when the
    /// workers are next renewed. Returns a peer with which a session should be started, for the sake of a proof.
    /// `calls` is how many handshakes were started so far.
    pub fn prove(&mut self, now: Instant, netlink: &mut Netlink, peers: &Peers, calls: u64) -> Option<PeerId> {
        if now.duration_since(self.proved) < EVERY {
            return None;
        }
        self.proved = now;
        let now = Millis::at(now);
        let Self { workers, drives, steering, .. } = self;
        if let Some(engine) = workers.engine() {
            let xdp = drives.all_mut().filter(|drive| drive.xdp());
            let told = xdp.fold(false, |told, drive| drive.prove(now, engine, steering, netlink, calls) | told);
            if told {
                drives.note_problems();
            }
            if drives.wan.xdp() {
                tell_sessions(now, drives, engine, peers);
            }
        }
        let (wan, mut restarted) = (drives.wan.index(), false);
        let mut changed = drives.note_programs(netlink);
        for drive in drives.all_mut() {
            if drive.proof.take_restart() {
                changed |= drive.restart(steering).is_err();
                restarted |= drive.index() == wan;
            }
            if drive.proof.handle_timeout(now) {
                drive.take_method();
                changed = true;
            }
        }
        if changed {
            drives.note_problems();
            self.stale = true;
        }
        match restarted {
            // To learn whether it has helped.
            true => peers.iter().find(|peer| is_direct(peer) && peer.endpoint.is_some()).map(|peer| peer.id),
            false => drives.wan.proof.asks(now).then(|| sent_to(peers)).flatten(),
        }
    }
}

/// The peer that a ring last sent to.
fn sent_to(peers: &Peers) -> Option<PeerId> {
    let by_ring = |peer: &&Peer| peer.sending().is_some_and(|session| session.left_by() & !BY_KERNEL != 0);
    let direct = peers.iter().filter(|peer| is_direct(peer)).filter(by_ring);
    direct.max_by_key(|peer| peer.counters.sent.last.load(Relaxed)).map(|peer| peer.id)
}

impl Drives {
    /// Looks whether other XDP programs are still where they were in the way. Returns whether one is gone.
    fn note_programs(&mut self, netlink: &mut Netlink) -> bool {
        if !self.all().any(|drive| matches!(drive.obstacle, Some(Obstacle::Program { .. }))) {
            return false;
        }
        let Ok(programs) = netlink.xdp_programs() else { return false };
        let attached = |drive: &Drive| drive.index().is_some_and(|index| programs.contains_key(&index));
        self.all_mut().fold(false, |gone, drive| drive.note_program(attached(drive)) | gone)
    }
}

impl Drive {
    /// Examines its ports. Returns whether there is something new to report.
    fn prove(&mut self, now: Millis, engine: &Engine, steering: &Steering, netlink: &mut Netlink, calls: u64) -> bool {
        let Some(interface) = self.interface.as_ref().filter(|interface| interface.up) else { return false };
        let passed: Vec<_> = engine.passed().filter(|(_, port, _)| port.interface == self.name).collect();
        let queues = passed.iter().map(|(_, port, _)| port.queue + 1).max().unwrap_or(0);
        let Ok(Counted { shown, redirected, missed }) = steering.counted(interface.index, queues) else { return false };
        self.proof.begin(now);
        for (_, port, passed) in passed {
            let redirected = redirected.get(port.queue as usize).copied().unwrap_or_default();
            self.proof.handle_counters(now, port.queue, Counters { redirected, passed });
        }
        if self.proof.zero_copy()
            && let Ok(Some(counted)) = netlink.arrived(interface.index)
        {
            self.proof.handle_arrivals(now, Arrivals { counted, shown, calls });
        }
        self.proof.handle_missed(now, redirected.iter().sum(), &missed)
    }

    /// Has its driver restart the card.
    ///
    /// # Errors
    /// The program could not be attached again: the ports have to be replaced.
    fn restart(&self, steering: &mut Steering) -> Result<(), AttachError> {
        let Some(interface) = &self.interface else { return Ok(()) };
        tracing::warn!("{}: nothing has arrived since AF_XDP was bound; its card is started anew", self.name);
        let attached = steering.attach_again(interface);
        attached.inspect_err(|error| tracing::warn!("{}: the program could not be attached again: {error}", self.name))
    }

    /// Drives it as its proof says, and reports it.
    fn take_method(&mut self) {
        match self.proof.fallen() {
            Some(fallen) => tracing::warn!("{}: {}", self.name, why(fallen)),
            None => tracing::info!("{}: AF_XDP is tried again", self.name),
        }
        self.renew_plan();
    }

    /// Why frames are copied on all interfaces, if it is because of this one: they share memory, and so must all copy.
    pub(in crate::gateway::plane) fn copies(&self) -> Option<String> {
        let copies = self.proof.method() >= Method::Copy;
        copies.then(|| format!("all frames are copied, since those of {} must be", self.name))
    }

    /// The verdicts on a queue: receiving, sending.
    pub fn verdicts(&self, queue: u32) -> Option<[Verdict; 2]> {
        self.proof.verdicts(queue)
    }

    /// The sentence that AF_XDP carries little of the tunnel's traffic, if it does.
    pub(super) fn missed(&self) -> Option<String> {
        let missed = self.proof.missed().filter(|_| self.xdp())?;
        Some(format!("AF_XDP carries little on {}: {missed}", self.name))
    }

    /// Why AF_XDP was given up, if it has lost packets.
    pub(super) fn lost(&self) -> Option<(String, &'static str)> {
        let Fallen { fault, method, .. } = self.proof.fallen().filter(|f| !matches!(f.fault, Fault::Missed(_)))?;
        let method = method.name();
        if let Fault::Silent { .. } = fault {
            let sentence = format!("AF_XDP may carry nothing: {fault}; fell back to {method} for some minutes");
            let what_to_do = "if packets arrive now, try another kernel or driver, or set the modes to sockets for good; \
                              otherwise look at the cable and the router";
            return Some((sentence, what_to_do));
        }
        let sentence = format!(
            "AF_XDP lost packets: {fault}; fell back to {method} until the interface changes, or for some minutes"
        );
        Some((sentence, "try another kernel or driver, or set the mode of this side to sockets for good"))
    }
}

/// The plan, replaced by what it has fallen back to.
pub(super) fn fall(mut plan: Plan, fallen: &Fallen) -> Plan {
    match &mut plan {
        Plan::Xdp { attach, reason, .. } if fallen.method < Method::Sockets => {
            *attach = if fallen.method == Method::Generic { AttachMode::Generic } else { *attach };
            *reason = format!("{reason}; {}", why(fallen));
            plan
        }
        _ => Plan::Socket(why(fallen)),
    }
}

fn why(fallen: &Fallen) -> String {
    format!("fell back to {}, since {}", fallen.method.name(), fallen.fault)
}

/// Tells the proofs what was bound.
pub(in crate::gateway::plane) fn note_bound(drives: &mut Drives, steering: &Steering, ports: &[WorkerPorts]) {
    let now = Millis::now();
    let infos: Vec<_> = ports.iter().flat_map(|p| p.wan.iter().chain(&p.lan)).map(|port| port.info()).collect();
    let wan = drives.wan.index();
    for drive in drives.all_mut() {
        let mut ports = infos.iter().filter(|info| info.interface == drive.name).peekable();
        let bound = ports.peek().is_some().then(|| Bound {
            wan: drive.index() == wan,
            zero_copy: ports.any(|info| info.zero_copy == Some(true)),
            native: drive.index().and_then(|index| steering.mode(index)) == Some(XdpMode::Native),
            required: drive.is_required(),
            uncut: drive.interface.as_ref().is_some_and(may_come_uncut),
            shown: drive.index().and_then(|index| steering.counted(index, 0).ok()).map_or(0, |counted| counted.shown),
        });
        drive.proof.bound(now, bound);
    }
}

/// Tells the proof of the WAN about every session.
fn tell_sessions(now: Millis, drives: &mut Drives, engine: &Engine, peers: &Peers) {
    // A worker sends through the first ring that it has on the WAN.
    let mut rings: Vec<(usize, u32)> = Vec::new();
    for (worker, port, _) in engine.passed().filter(|(_, port, _)| port.interface == drives.wan.name) {
        if rings.last().is_none_or(|(last, _)| *last != worker) {
            rings.push((worker, port.queue));
        }
    }
    for peer in peers.iter().filter(|peer| is_direct(peer) && !peer.sessions.is_empty()) {
        let label = peer.label();
        let mut sessions: Vec<&Session> = peer.sessions.iter().map(|session| &**session).collect();
        sessions.sort_by_key(|session| session.born());
        for (i, session) in sessions.iter().enumerate() {
            let next_born = sessions.get(i + 1).map(|next| next.born());
            let session = direct_session(&label, session, next_born);
            for &(worker, queue) in &rings {
                drives.wan.proof.handle_session(now, queue, by_ring(worker), &session);
            }
        }
    }
}

/// A relay may lose data as well.
fn is_direct(peer: &Peer) -> bool {
    matches!(peer.found, None | Some(Found { path: path::Path::Direct { .. }, .. }))
}

fn direct_session<'a>(peer: &'a str, session: &Session, next_born: Option<Millis>) -> DirectSession<'a> {
    DirectSession {
        peer,
        index: session.local_index,
        ours: session.ours,
        left_by: session.left_by(),
        answered: session.answered(),
        sent: session.sent(),
        first_data: session.first_data(),
        born: session.born(),
        next_born,
    }
}
