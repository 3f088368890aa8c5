//! What the gateway reports about itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, UNIX_EPOCH};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports::PortInfo;
use penstock_dataplane::work::{RingFilled, WorkDone};
use penstock_proto::coordination::{RegistrationState, Waiting};
use penstock_proto::pmtu::PathMtu;
use penstock_proto::{Suite, path};

use super::Gateway;
use super::handshakes::kebab;
use super::overlay::Overlay;
use super::peers::Peer;
use super::plane::Plane;
use super::plane::cipher::Chosen;
use super::plane::drives::Drive;
use super::plane::proof::Verdict;
use super::statements::Refused;
use super::suites;
use crate::coordinator::State;
use crate::key::PublicKey;
use crate::problem::{Problem, Severity};
use crate::status::{self, Health, Mode, PathKind, Port, RingFill, Status, Steering, WorkerLoad};

/// The gateway's state, as `status --json` prints it.
pub fn status(gateway: &Gateway, now: Instant) -> Status {
    let Gateway { site, handshakes, overlay, guard, plane, .. } = gateway;
    let nat = overlay.as_ref().map(|overlay| overlay.traversal.report()).filter(|report| report.is_known());
    let problems = problems(gateway, now);
    Status {
        name: site.name.to_string(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        public_key: site.private_key.public_key(),
        local_port: plane.local_port(),
        nat_type: nat.map_or_else(|| "unknown".to_owned(), ToString::to_string),
        nat: nat.copied(),
        coordinator: overlay.as_ref().map(coordinator),
        relays: overlay.as_ref().map(|overlay| overlay.traversal.relays(now)).unwrap_or_default(),
        tunnel_mtu: plane.tunnel_mtu(),
        workers: plane.worker_count() as u16,
        cipher: cipher(plane),
        wan_mode: mode(std::slice::from_ref(&plane.drives().wan), "udp"),
        lan_mode: mode(&plane.drives().lan, "tun"),
        ports: plane.workers().ports().map(|(worker, info)| port(plane, worker, info, Millis::at(now))).collect(),
        peers: handshakes.peers.iter().map(|peer| self::peer(gateway, peer, now)).collect(),
        drops: drops(gateway),
        firewall: plane.firewall(&handshakes.peers),
        steering: steering(plane),
        health: if problems.iter().any(|p| p.severity == Severity::Error) { Health::Degraded } else { Health::Healthy },
        forwarding: plane.forwards(),
        problems,
        guarded: guard.prefixes().into_iter().collect(),
        worker_loads: plane.workers().work().into_iter().map(worker_load).collect(),
    }
}

/// How many packets were dropped for each reason, since the start of the gateway.
pub fn drops(gateway: &Gateway) -> BTreeMap<String, u64> {
    let mut drops = gateway.plane.workers().drops();
    drops.extend(gateway.handshakes.drops());
    drops
}

fn problems(gateway: &Gateway, now: Instant) -> Vec<Problem> {
    let mut all = gateway.problems.list(now);
    all.extend(gateway.ground.problems(now));
    all.extend(gateway.plane.problems(now));
    all.extend(gateway.metrics.problems(now));
    all.extend(gateway.handshakes.problems(now));
    all.extend(gateway.overlay.iter().flat_map(|overlay| overlay.problems(now)));
    all
}

fn worker_load(work: WorkDone) -> WorkerLoad {
    WorkerLoad {
        batches: work.batches.iter().sum(),
        batch_sizes: work.batches,
        packets: work.packets,
        wan_rings: ring_fill(work.wan_rings),
        lan_rings: ring_fill(work.lan_rings),
        sleeps: work.sleeps,
        slept_ms: work.slept.as_millis() as u64,
        shaped: status::Shaped {
            packets: work.shaped.packets,
            bytes: work.shaped.bytes,
            waiting_packets: work.shaped.waiting_packets,
            waiting_bytes: work.shaped.waiting_bytes,
        },
    }
}

fn ring_fill(filled: RingFilled) -> RingFill {
    RingFill { times: filled.times, packets: filled.packets }
}

fn port(plane: &Plane, worker: usize, info: &PortInfo, now: Millis) -> Port {
    let mut port = Port {
        interface: info.interface.clone(),
        kind: info.kind.to_owned(),
        queue: info.queue,
        worker: worker as u16,
        xdp_mode: None,
        zero_copy: info.zero_copy,
        reason: String::new(),
        receiving: None,
        sending: None,
    };
    let drives = plane.drives();
    match info.kind {
        "xdp" => describe_xdp(plane, &mut port, now),
        "udp" => {
            port.interface.clone_from(&drives.wan.name);
            port.reason = kernels_reason(std::slice::from_ref(&drives.wan));
        }
        _ => port.reason = kernels_reason(&drives.lan),
    }
    port
}

fn describe_xdp(plane: &Plane, port: &mut Port, now: Millis) {
    let mut drives = std::iter::once(&plane.drives().wan).chain(&plane.drives().lan);
    let Some(drive) = drives.find(|d| d.name == port.interface) else { return };
    let lan = plane.steering().lan.iter().find(|lan| Some(lan.index) == drive.index());
    let attached = match (lan, &plane.steering().wan) {
        (Some(lan), _) => Some((lan.program.mode(), lan.program.fallback())),
        (None, Some(wan)) => Some((wan.program.mode(), wan.program.fallback())),
        (None, None) => None,
    };
    port.xdp_mode = attached.map(|(mode, _)| mode.name().to_owned());
    port.reason = drive.reason().to_owned();
    if let Some((_, Some(fallback))) = attached {
        port.reason = format!("{}; not native: {fallback}", drive.reason());
    }
    if let Some(copies) = &plane.drives().copies {
        port.reason = format!("{}; {copies}", port.reason);
    }
    if let Some([receiving, sending]) = drive.verdicts(port.queue) {
        (port.receiving, port.sending) = (Some(proof(receiving, now)), Some(proof(sending, now)));
    }
}

fn proof(verdict: Verdict, now: Millis) -> status::Proof {
    let Verdict { state, proven, seen } = verdict;
    let proven_seconds_ago = proven.map(|at| now.since(at).0 / 1_000);
    status::Proof { state: state.name().to_owned(), proven_seconds_ago, seen }
}

/// The gateway in a few words, for `systemctl status`.
pub fn summary(gateway: &Gateway, now: Instant) -> String {
    let peers = &gateway.handshakes.peers;
    let millis = Millis::at(now);
    let count = |kind| peers.iter().filter(|peer| path_kind(peer, millis) == kind).count();
    let counted = |count: usize, what: &str| if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") };
    let mut parts = vec![
        counted(peers.iter().count(), "peer"),
        format!("{} direct", count(PathKind::Direct)),
        format!("{} relayed", count(PathKind::Relay)),
    ];
    match problems(gateway, now).as_slice() {
        [] => {}
        [problem] => parts.push(format!("1 problem: {}: {}", problem.subject, problem.sentence)),
        several => parts.push(counted(several.len(), "problem")),
    }
    parts.join(", ")
}

fn path_kind(peer: &Peer, now: Millis) -> PathKind {
    let live = peer.sending().is_some_and(|session| session.alive(now));
    match peer.found.map(|found| found.path) {
        Some(path::Path::Direct { .. }) => PathKind::Direct,
        Some(path::Path::Relay { .. }) => PathKind::Relay,
        Some(path::Path::None) => PathKind::None,
        None if live => PathKind::Direct,
        None => PathKind::None,
    }
}

/// A peer, as `status --json` prints it.
pub fn peer(gateway: &Gateway, peer: &Peer, now: Instant) -> status::PeerStatus {
    let last = gateway.handshakes.proto.peer(peer.id).and_then(penstock_proto::Peer::last_handshake);
    let overlay = gateway.overlay.as_ref();
    let round_trip = match peer.found {
        Some(_) => overlay.and_then(|overlay| overlay.traversal.round_trip(&peer.public_key.into())),
        None => gateway.probing.round_trip(&peer.public_key),
    };
    let session = peer.sending().filter(|session| session.alive(Millis::at(now)));
    let (suite, suite_reason) = suite(gateway, peer, session.map(|session| suites::proto(session.suite())));
    status::PeerStatus {
        name: peer.name.clone(),
        public_key: peer.public_key,
        path: path_kind(peer, Millis::at(now)),
        reason: peer.found.map(|found| found.reason.to_string()),
        reason_kind: peer.found.map(|found| kebab(&format!("{:?}", found.reason))),
        relay: overlay.and_then(|overlay| overlay.relay_of(peer)),
        path_changes: peer.path_changes,
        endpoint: peer.endpoint,
        round_trip_ms: round_trip.map(|round_trip| round_trip.as_secs_f64() * 1e3),
        answering: overlay.map(|overlay| answering(overlay, peer)).unwrap_or_default(),
        last_handshake: last.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_secs()),
        handshakes: peer.handshakes,
        suite,
        suite_reason,
        mtu: path_mtu(peer, gateway.plane.tunnel_mtu()),
        trains: gateway.plane.trains_to(&peer.public_key).map(|verdict| proof(verdict, Millis::at(now))),
        rx_bytes: peer.received_bytes(),
        tx_bytes: peer.sent_bytes(),
        rx_packets: peer.counters.received.packets.load(Relaxed),
        tx_packets: peer.counters.sent.packets.load(Relaxed),
        statement: overlay.and_then(|overlay| overlay.vouched(peer)).map(|vouched| vouched.status(now)),
        allowed_ips: peer.allowed_ips().iter().copied().collect(),
    }
}

fn answering(overlay: &Overlay, peer: &Peer) -> Vec<status::Answering> {
    let answering = overlay.traversal.answering(&peer.public_key.into()).filter_map(|(path, round_trip)| {
        let (path, relay, address) = match path {
            path::Path::Direct { address, .. } => (PathKind::Direct, None, address),
            path::Path::Relay { relay, address, .. } => (PathKind::Relay, overlay.traversal.relay_name(relay), address),
            path::Path::None => return None,
        };
        Some(status::Answering { path, relay, address, round_trip_ms: round_trip.as_secs_f64() * 1e3 })
    });
    answering.collect()
}

fn path_mtu(peer: &Peer, tunnel: u16) -> Option<status::PathMtu> {
    let PathMtu { outer, fragmented, source, .. } = peer.mtu?;
    Some(status::PathMtu { inner: peer.mtu_within(tunnel), outer, fragmented, reason: source.to_string() })
}

/// The suite in use with a peer, or the one of the next handshake, and why.
fn suite(gateway: &Gateway, peer: &Peer, present: Option<Suite>) -> (String, String) {
    let suites::Choice { suite, reason } = gateway.handshakes.suite(peer);
    match present.filter(|present| *present != suite) {
        Some(present) => (present.to_string(), format!("until the next handshake, which will be {suite}; {reason}")),
        None => (suite.to_string(), reason),
    }
}

fn cipher(plane: &Plane) -> status::Cipher {
    let Chosen { implementation, reason, .. } = plane.cipher();
    status::Cipher {
        implementation: implementation.to_string(),
        reason: reason.clone(),
        speeds: Suite::ALL.into_iter().map(|suite| (suite.to_string(), plane.speeds().of(suite))).collect(),
    }
}

fn coordinator(overlay: &Overlay) -> status::Coordinator {
    let Overlay { config, client, registration, .. } = overlay;
    let (connected, error) = match client.state() {
        State::Connected { .. } => (true, None),
        State::Connecting => (false, None),
        State::Disconnected { why, .. } => (false, Some(why)),
    };
    status::Coordinator {
        url: config.url.to_string(),
        connected,
        site: registration.as_ref().map(|registration| registration.name.to_string()),
        pending: registration.as_ref().is_some_and(|r| r.state == RegistrationState::Pending),
        error,
        authority: overlay.statements.authority().map(|key| key.to_string()),
        refused: overlay.refused().iter().map(refused).collect(),
        waiting: registration.iter().flat_map(|registration| &registration.waiting).map(waiting).collect(),
    }
}

/// The coordinator may send any text, but not control characters to the administrator's terminal.
fn waiting(waiting: &Waiting) -> status::Waiting {
    let reason = waiting.reason.chars().filter(|c| !c.is_control()).collect();
    status::Waiting { subnet: waiting.subnet, reason }
}

fn refused(refused: &Refused) -> status::Refused {
    status::Refused {
        name: refused.name.to_string(),
        public_key: PublicKey::from_bytes(*refused.key.as_bytes()),
        prefix: refused.prefix,
        reason: refused.reason.clone(),
    }
}

fn steering(plane: &Plane) -> Steering {
    let mut steering = Steering::default();
    let counted = |counters: Result<Vec<(&'static str, u64)>, _>| counters.unwrap_or_default();
    for (verdict, count) in plane.steering().wan.iter().flat_map(|wan| counted(wan.program.counters())) {
        *steering.wan.entry(verdict.to_owned()).or_default() += count;
    }
    for (verdict, count) in plane.steering().lan.iter().flat_map(|lan| counted(lan.program.counters())) {
        *steering.lan.entry(verdict.to_owned()).or_default() += count;
    }
    steering
}

fn mode(drives: &[Drive], socket: &str) -> Mode {
    let mut reasons: Vec<&str> = drives.iter().map(Drive::reason).collect();
    reasons.dedup();
    let mode = if drives.iter().any(Drive::xdp) { "xdp" } else { socket };
    Mode { mode: mode.to_owned(), reason: reasons.join("; ") }
}

/// Why this side has a port of the kernel's.
fn kernels_reason(drives: &[Drive]) -> String {
    if drives.iter().any(Drive::xdp) { "takes what AF_XDP does not".to_owned() } else { mode(drives, "").reason }
}
