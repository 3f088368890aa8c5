//! How large packets the path between two addresses carries, and whether a router reports those that are too large.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use penstock_proto::PublicKey;
use penstock_proto::path::SiteId;
use penstock_proto::pmtu::{LinkMtu, TooBig};
use rand::Rng;

use super::{Datagram, Happening, World};

/// One direction.
#[derive(Clone, Copy, Debug)]
pub struct Pipe {
    /// The largest IP packet.
    pub mtu: u16,
    /// Whether ICMP comes back when one is larger; otherwise it just vanishes.
    pub tells: bool,
}

/// The pipes by source and destination; without one, everything gets through.
#[derive(Default)]
pub struct Pipes(pub BTreeMap<(IpAddr, IpAddr), Pipe>);

impl Pipes {
    /// The pipe in which a datagram gets stuck. Routers fragment IPv4 where that is allowed.
    pub fn stops(&self, datagram: &Datagram) -> Option<Pipe> {
        let pipe = self.0.get(&(datagram.from.ip(), datagram.to.ip()))?;
        let whole = datagram.dont_fragment || datagram.to.is_ipv6();
        (whole && datagram.length() > pipe.mtu).then_some(*pipe)
    }
}

impl Datagram {
    /// The length of the IP packet.
    pub fn length(&self) -> u16 {
        self.bytes.len() as u16 + if self.to.is_ipv6() { 48 } else { 28 }
    }
}

impl World {
    /// Sets what fits through the network from one gateway's first address to the other's.
    pub fn set_pipe(&mut self, from: usize, to: usize, mtu: u16, tells: bool) {
        let ends = (self.nats[self.gateways[from].nats[0]].ip, self.nats[self.gateways[to].nats[0]].ip);
        self.pipes.0.insert(ends, Pipe { mtu, tells });
    }

    /// The same in both directions.
    pub fn set_pipes(&mut self, mtu: u16, tells: bool) {
        self.set_pipe(0, 1, mtu, tells);
        self.set_pipe(1, 0, mtu, tells);
    }

    /// A gateway's interface has this MTU, for all destinations.
    pub fn set_link(&mut self, number: usize, mtu: u16) {
        let everywhere = ["0.0.0.0/0", "::/0"].map(|network| network.parse::<IpNet>().unwrap());
        let shell = &mut self.gateways[number];
        shell.link = Some(mtu);
        shell.agent.set_links(self.now, &everywhere.map(|network| LinkMtu { network, mtu }));
        self.drain(number);
    }

    /// Tells the sender of a datagram that it was too large.
    pub(super) fn tell(&mut self, sender: usize, datagram: Datagram, pipe: Pipe) {
        let delay = self.rng.random_range(self.faults.delay.clone());
        self.at(delay, Happening::TooBig { sender, datagram, mtu: pipe.mtu });
    }

    pub(super) fn too_big(&mut self, sender: usize, datagram: &Datagram, mtu: u16) {
        let told = TooBig { to: datagram.to, mtu, length: datagram.length(), payload: &datagram.bytes };
        // The simulator's data has the receiver's name in the place of the index.
        let is_receiver = |peer: &PublicKey, index: u32| SiteId::of(peer).0[..4] == index.to_le_bytes();
        self.gateways[sender].agent.handle_too_big(self.now, &told, is_receiver);
        self.drain(sender);
    }
}
