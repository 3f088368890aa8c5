//! One side of a worker, WAN or LAN: its ports, and the packets that wait to be sent by each.

use std::sync::Arc;

use crate::drop::Drops;
use crate::ingress::Opened;
use crate::ports::evidence::Evidence;
use crate::ports::{Batch, Link, Packet, Port};
use crate::turn::{Exit, Turn};

/// The ports of one side. The last one is the kernel's: the UDP socket, or the tun device.
pub(crate) struct Side {
    ports: Vec<Box<dyn Port>>,
    /// By port: the interface that a [`Link`] must name.
    interfaces: Vec<Option<u32>>,
    /// By port: the packets that wait to be sent by it.
    out: Vec<Batch>,
    /// By port: whether it may have packets. Always true for those that are cheap to ask.
    ready: Vec<bool>,
    /// By port: what has passed through it.
    evidence: Vec<Option<Arc<Evidence>>>,
}

impl Side {
    pub(crate) fn new(ports: Vec<Box<dyn Port>>) -> Self {
        Self {
            interfaces: ports.iter().map(|port| port.link_interface()).collect(),
            out: ports.iter().map(|_| Batch::default()).collect(),
            ready: vec![true; ports.len()],
            evidence: ports.iter().map(|port| port.evidence()).collect(),
            ports,
        }
    }

    pub(crate) fn ports(&self) -> &[Box<dyn Port>] {
        &self.ports
    }

    /// By port: whether it may have packets, for whoever polls them.
    pub(crate) fn ready_mut(&mut self) -> &mut [bool] {
        &mut self.ready
    }

    pub(crate) fn all_cheap(&self) -> bool {
        self.ports.iter().all(|port| port.cheap_to_ask())
    }

    pub(crate) fn none_ready(&self) -> bool {
        self.ports.iter().zip(&self.ready).all(|(port, ready)| port.cheap_to_ask() || !ready)
    }

    /// Whether packets of a port wait for a device that was busy, and for the kernel to be asked.
    pub(crate) fn any_unsent(&mut self) -> bool {
        self.ports.iter_mut().any(|port| port.unsent())
    }

    /// The port by which a link leaves, if any.
    #[inline]
    pub(crate) fn port_of(&self, link: &Link) -> Option<u16> {
        self.interfaces.iter().position(|interface| *interface == Some(link.ifindex)).map(|port| port as u16)
    }

    /// The kernel's port.
    #[inline]
    pub(crate) fn kernel(&self) -> u16 {
        (self.ports.len() - 1) as u16
    }

    /// Whether the kernel routes behind its port.
    #[inline]
    pub(crate) fn kernel_routes(&self) -> bool {
        self.ports[usize::from(self.kernel())].kernel_routes()
    }

    /// Counts the packets that the kernel has lost at these ports; returns whether any port can tell.
    pub(crate) fn count_losses(&mut self, drops: &Drops) -> bool {
        self.ports.iter_mut().fold(false, |any, port| port.count_losses(drops) | any)
    }

    /// Notes what happened to the messages that came in by port `i`.
    #[inline]
    pub(crate) fn opened(&self, i: usize, opened: Opened) {
        if let Some(evidence) = &self.evidence[i] {
            evidence.opened(opened.verified, opened.damaged);
        }
    }

    /// Receives from port `i` if it may have packets. Returns how many there were.
    pub(crate) fn receive(&mut self, i: usize, turn: &mut Turn<'_>, received: &mut Batch) -> usize {
        let port = &mut self.ports[i];
        let cheap = port.cheap_to_ask();
        if !cheap && !self.ready[i] {
            return 0;
        }
        port.receive(turn.pool, received, turn.drops);
        self.ready[i] = cheap || !received.is_empty();
        received.len()
    }

    /// Takes each packet to its exit, and transmits by all ports.
    pub(crate) fn send(&mut self, turn: &mut Turn<'_>, packets: &mut Batch, exits: &[Exit]) {
        match same(exits) {
            // Most batches go one way.
            Some(Exit::Port(port)) => packets.append_to(&mut self.out[usize::from(port)]),
            _ => packets.drain().zip(exits).for_each(|(packet, exit)| self.take(turn, packet, *exit)),
        }
        for (port, batch) in self.ports.iter_mut().zip(&mut self.out) {
            if !batch.is_empty() {
                port.transmit(turn.pool, batch, turn.drops);
            }
        }
    }

    /// Takes one packet to its exit; packets that leave by a port wait for [`Self::send`].
    pub(crate) fn take(&mut self, turn: &mut Turn<'_>, packet: Packet, exit: Exit) {
        match exit {
            Exit::Port(port) => self.out[usize::from(port)].push(packet),
            Exit::Error => turn.errors.push(packet),
            Exit::Consumed => turn.pool.give(packet.frame),
            Exit::Dropped(reason) => {
                turn.drops.count(reason);
                turn.pool.give(packet.frame);
            }
        }
    }

    /// Sends ICMP errors back through the ports by which their causes came in.
    pub(crate) fn answer(&mut self, i: usize, turn: &mut Turn<'_>) {
        if !turn.errors.is_empty() {
            self.ports[i].transmit(turn.pool, turn.errors, turn.drops);
        }
    }
}

/// The decision about all packets of a batch, if it is the same for each and there are any.
#[inline]
fn same(exits: &[Exit]) -> Option<Exit> {
    let (first, others) = exits.split_first()?;
    others.iter().all(|exit| exit == first).then_some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_is_so_for_all_and_not_for_none() {
        let [a, b] = [Exit::Port(3), Exit::Port(4)];
        assert_eq!((same(&[a, a, a]), same(&[a, a, b]), same(&[b, a, a]), same(&[])), (Some(a), None, None, None));
    }
}
