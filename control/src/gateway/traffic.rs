//! Between the workers and the other parts: the workers' notices, and what their counters tell the timers.

use std::time::Instant;

use anyhow::{Result, bail};
use penstock_dataplane::slow_path::Notice;

use super::Gateway;

/// The most notices taken at once: a flood of handshakes must not keep the other inputs waiting.
pub const NOTICES_PER_TURN: usize = 256;

/// Takes the workers' notices.
///
/// # Errors
/// A worker has died.
pub fn take_notices(gateway: &mut Gateway, now: Instant) -> Result<()> {
    for notice in gateway.plane.workers().notices(NOTICES_PER_TURN) {
        if let Notice::WorkerDied { worker } = notice {
            bail!("worker {worker} panicked; remote prefixes stay blocked");
        }
        take_notice(gateway, now, notice);
    }
    Ok(())
}

/// Takes one notice.
pub fn take_notice(gateway: &mut Gateway, now: Instant, notice: Notice) {
    let Gateway { handshakes, overlay, probing, plane, .. } = gateway;
    if let Notice::Datagram { from, interface, payload } = &notice
        && (probing.handle_datagram(now, &handshakes.sender(), *from, payload)
            || overlay.as_mut().is_some_and(|overlay| {
                handshakes.refuses_probe(plane.tun() == Some(*interface), payload)
                    || overlay.traversal.handle_datagram(now, *from, payload)
            }))
    {
        return;
    }
    handshakes.handle_notice(now, notice);
}

/// Reads the traffic counters and tells the timers, and does what is done step by step.
pub fn sample(gateway: &mut Gateway, now: Instant) {
    let (linux, _) = gateway.ground.parts();
    let calls = gateway.handshakes.begun();
    if let Some(peer) = gateway.plane.prove(now, linux.netlink(), &gateway.handshakes.peers, calls) {
        gateway.handshakes.proto.handle_path(now, peer, true);
    }
    gateway.handshakes.call(now);
    // Writes what could not be written when it changed.
    gateway.guard.save(now, &mut gateway.problems);
    gateway.handshakes.save(now, false, &mut gateway.problems);
    let mut traversal = gateway.overlay.as_mut().map(|overlay| &mut overlay.traversal);
    gateway.handshakes.sample(now, |peer, traffic| match &mut traversal {
        Some(traversal) if peer.found.is_some() => traversal.handle_traffic(now, &peer.public_key.into(), traffic),
        _ => gateway.probing.handle_traffic(now, &peer.public_key, traffic),
    });
    gateway.plane.test_trains(now, &gateway.handshakes, traversal, &mut gateway.probing);
    if gateway.plane.drives().wan.xdp() {
        gateway.handshakes.show_flows(now);
    }
}
