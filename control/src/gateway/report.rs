//! What the gateway tells about itself.

use std::collections::BTreeMap;
use std::time::{Instant, UNIX_EPOCH};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::drop::DropReason;
use penstock_dataplane::ports::PortInfo;
use penstock_proto::coordination::RegistrationState;
use penstock_proto::path;

use super::Gateway;
use super::drives::Drive;
use super::overlay::Overlay;
use super::peers::Peer;
use crate::coordinator::State;
use crate::status::{self, Mode, PathKind, Port, Status, Steering};

impl Gateway {
    /// The gateway's state, as `status --json` prints it.
    pub(super) fn status(&self) -> Status {
        let now = Millis::now();
        let mut drops: BTreeMap<String, u64> =
            self.engine.drops().map(|(reason, count)| (DropReason::name(reason).to_owned(), count)).collect();
        drops.insert("no-session".to_owned(), self.lost_waiting);
        for (reject, count) in &self.rejects {
            drops.insert(format!("handshake-{}", kebab(&format!("{reject:?}"))), *count);
        }
        let nat = self.overlay.as_ref().map(|overlay| overlay.traversal.report()).filter(|report| report.is_known());
        Status {
            name: self.name.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            public_key: self.private_key.public_key(),
            local_port: self.local_port,
            nat_type: nat.map_or_else(|| "unknown".to_owned(), ToString::to_string),
            nat: nat.copied(),
            coordinator: self.coordinator_status(),
            relays: self.overlay.as_ref().map(|overlay| overlay.traversal.relays(Instant::now())).unwrap_or_default(),
            tunnel_mtu: self.tunnel_mtu,
            workers: self.engine.workers() as u16,
            wan_mode: mode(std::slice::from_ref(&self.drives.wan), "udp"),
            lan_mode: mode(&self.drives.lan, "tun"),
            ports: self.engine.ports().map(|(worker, info)| self.port(worker, info)).collect(),
            peers: self.peers.iter().map(|peer| self.peer_status(peer, now)).collect(),
            drops,
            steering: self.steering_status(),
        }
    }

    fn port(&self, worker: usize, info: &PortInfo) -> Port {
        let mut port = Port {
            interface: info.interface.clone(),
            kind: info.kind.to_owned(),
            queue: info.queue,
            worker: worker as u16,
            xdp_mode: None,
            zero_copy: info.zero_copy,
            reason: String::new(),
        };
        let (wan, lan) = (std::slice::from_ref(&self.drives.wan), self.drives.lan.as_slice());
        match info.kind {
            "xdp" => self.describe_xdp(&mut port),
            "udp" => {
                port.interface.clone_from(&self.drives.wan.interface.name);
                port.reason = kernels_reason(wan);
            }
            _ => port.reason = kernels_reason(lan),
        }
        port
    }

    fn describe_xdp(&self, port: &mut Port) {
        let mut drives = std::iter::once(&self.drives.wan).chain(&self.drives.lan);
        let Some(drive) = drives.find(|d| d.interface.name == port.interface) else { return };
        let lan = self.steering.lan.iter().find(|(index, _)| *index == drive.interface.index);
        let attached = match (lan, &self.steering.wan) {
            (Some((_, program)), _) => Some((program.mode(), program.fallback())),
            (None, Some(program)) => Some((program.mode(), program.fallback())),
            (None, None) => None,
        };
        port.xdp_mode = attached.map(|(mode, _)| mode.name().to_owned());
        port.reason = drive.reason().to_owned();
        if let Some((_, Some(fallback))) = attached {
            port.reason = format!("{}; not native: {fallback}", drive.reason());
        }
    }

    pub(super) fn peer_status(&self, peer: &Peer, now: Millis) -> status::Peer {
        let last = self.proto.peer(peer.id).and_then(penstock_proto::Peer::last_handshake);
        let overlay = self.overlay.as_ref();
        let round_trip = overlay.and_then(|overlay| overlay.traversal.round_trip(&peer.public_key.into()));
        let live = peer.sending().is_some_and(|session| session.alive(now));
        status::Peer {
            name: peer.name.clone(),
            public_key: peer.public_key,
            path: match peer.found.map(|found| found.path) {
                Some(path::Path::Direct { .. }) => PathKind::Direct,
                Some(path::Path::Relay { .. }) => PathKind::Relay,
                Some(path::Path::None) => PathKind::None,
                None if live => PathKind::Direct,
                None => PathKind::None,
            },
            reason: peer.found.map(|found| found.reason.to_string()),
            relay: self.relay_of(peer),
            endpoint: peer.endpoint,
            round_trip_ms: peer.found.and(round_trip).map(|round_trip| round_trip.as_secs_f64() * 1e3),
            last_handshake: last.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_secs()),
            rx_bytes: peer.received_bytes(),
            tx_bytes: peer.sent_bytes(),
            allowed_ips: self.peers.allowed_ips_of(peer.id),
        }
    }

    fn coordinator_status(&self) -> Option<status::Coordinator> {
        let Overlay { url, client, registration, .. } = self.overlay.as_ref()?;
        let (connected, error) = match client.state() {
            State::Connected { .. } => (true, None),
            State::Connecting => (false, None),
            State::Disconnected { why, .. } => (false, Some(why)),
        };
        Some(status::Coordinator {
            url: url.to_string(),
            connected,
            site: registration.as_ref().map(|registration| registration.name.to_string()),
            pending: registration.as_ref().is_some_and(|r| r.state == RegistrationState::Pending),
            error,
        })
    }

    fn steering_status(&self) -> Steering {
        let mut steering = Steering::default();
        let counted = |counters: Result<Vec<(&'static str, u64)>, _>| counters.unwrap_or_default();
        for (verdict, count) in self.steering.wan.iter().flat_map(|p| counted(p.counters())) {
            *steering.wan.entry(verdict.to_owned()).or_default() += count;
        }
        for (verdict, count) in self.steering.lan.iter().flat_map(|(_, p)| counted(p.counters())) {
            *steering.lan.entry(verdict.to_owned()).or_default() += count;
        }
        steering
    }
}

fn mode(drives: &[Drive], socket: &str) -> Mode {
    let mut reasons: Vec<&str> = drives.iter().map(Drive::reason).collect();
    reasons.dedup();
    let mode = if drives.iter().any(Drive::xdp) { "xdp" } else { socket };
    Mode { mode: mode.to_owned(), reason: reasons.join("; ") }
}

/// Why there is a port of the kernel's on this side.
fn kernels_reason(drives: &[Drive]) -> String {
    if drives.iter().any(Drive::xdp) { "takes what AF_XDP does not".to_owned() } else { mode(drives, "").reason }
}

/// `UnknownPeer` as `unknown-peer`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}
