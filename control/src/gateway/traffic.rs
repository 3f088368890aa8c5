//! Between the workers and the other parts: what they have to say, and what their counters tell the timers.

use std::time::Instant;

use anyhow::{Result, bail};
use penstock_dataplane::slow_path::Notice;

use super::Gateway;

/// Notices taken at a time: a flood of handshakes may not keep the other inputs waiting.
pub const NOTICES_PER_TURN: usize = 256;

/// Takes what the workers have to say.
///
/// # Errors
/// A worker has died.
pub fn take_notices(gateway: &mut Gateway, now: Instant) -> Result<()> {
    for notice in gateway.plane.notices(NOTICES_PER_TURN) {
        if let Notice::WorkerDied { worker } = notice {
            bail!("worker {worker} has died by a panic; remote prefixes stay blocked");
        }
        take_notice(gateway, now, notice);
    }
    Ok(())
}

/// Takes one of these.
pub fn take_notice(gateway: &mut Gateway, now: Instant, notice: Notice) {
    if let (Some(overlay), Notice::Datagram { from, payload }) = (&mut gateway.overlay, &notice)
        && (gateway.handshakes.refuses_probe(from.remote.ip(), payload)
            || overlay.traversal.handle_datagram(now, *from, payload))
    {
        return;
    }
    gateway.handshakes.handle_notice(now, notice);
}

/// Looks at the traffic counters and tells the timers, and does what is done little by little.
pub fn sample(gateway: &mut Gateway, now: Instant) {
    let (linux, _) = gateway.ground.parts();
    if let Some(peer) = gateway.plane.prove(now, linux.netlink(), &gateway.handshakes.peers) {
        gateway.handshakes.proto.handle_path(now, peer, true);
    }
    gateway.handshakes.call(now);
    // What could not be written when it changed.
    gateway.guard.save(now, &mut gateway.problems);
    gateway.handshakes.save(now, false, &mut gateway.problems);
    let traversal = gateway.overlay.as_mut().map(|overlay| &mut overlay.traversal);
    match traversal {
        Some(traversal) => gateway.handshakes.sample(now, |peer, traffic| {
            if peer.found.is_some() {
                traversal.handle_traffic(now, &peer.public_key.into(), traffic);
            }
        }),
        None => gateway.handshakes.sample(now, |_, _| {}),
    }
    if gateway.plane.drives().wan.xdp() {
        gateway.handshakes.show_flows(now);
    }
}
