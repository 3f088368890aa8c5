//! One worker whose WAN is joined to itself, and the packets that circulate in it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use penstock_dataplane::clock::Millis;
use penstock_dataplane::filter::{Counter, DefaultRule, Firewall, FlowCache, Protocol, Rule, Rules, Service, Verdict};
use penstock_dataplane::frame::{ANCHOR, FRAME_SIZE, Frame, Pool};
use penstock_dataplane::loopback::{Loopback, SESSION};
use penstock_dataplane::peer::PeerCounters;
use penstock_dataplane::ports::{EGRESS_ROOM, Link};
use penstock_dataplane::prefix::PrefixMap;
use penstock_dataplane::session::{Session, SessionConfig, Suite, TAG};
use penstock_dataplane::table::{PeerEntry, SessionEntry, Table};

use super::size::Size;

/// Slots of packet memory: more than circulate, and few enough to be available on any machine.
const FRAMES: u32 = 256;
/// Sites that the gateway knows, each with a session, a /24 and a gateway address, so that lookups have something to
/// search.
pub const SITES: u8 = 64;
/// The tunnel's UDP port on both ends.
pub(super) const PORT: u16 = 47100;
/// The tunnel's MTU, unless the packets are larger.
const MTU: usize = 1420;
const HOPS: u8 = 64;
const HEADERS: usize = 20 + 8;
/// The hosts that send and receive: both in site 0, which is the gateway's own peer.
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 101, 0, 5);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 101, 0, 9);

/// The worker, its table and its traffic.
pub struct Rig {
    pub(super) gateway: Loopback,
    pub(super) table: Arc<Table>,
    /// The flows that are known when the firewall is called without the worker.
    pub(super) flows: FlowCache,
    /// The inner packets of a batch, as a LAN host sends them.
    pub(super) packets: Vec<Vec<u8>>,
    /// The path to the peer.
    pub(super) link: Link,
}

impl Rig {
    /// A worker for packets of `size`, sealed with `suite`. Its session lives for
    /// [`REJECT_AFTER`](penstock_dataplane::session::REJECT_AFTER).
    ///
    /// # Errors
    /// No descriptors are available.
    pub fn new(size: Size, suite: Suite) -> io::Result<Self> {
        Self::with(size, suite, None)
    }

    /// The same, with a firewall that lets the packets pass.
    ///
    /// # Errors
    /// No descriptors are available.
    pub fn filtered(size: Size, suite: Suite) -> io::Result<Self> {
        Self::with(size, suite, Some(Arc::new(firewall())))
    }

    fn with(size: Size, suite: Suite, firewall: Option<Arc<Firewall>>) -> io::Result<Self> {
        let packets: Vec<Vec<u8>> = size.packets().into_iter().map(packet).collect();
        let largest = packets.iter().map(Vec::len).max().unwrap_or_default();
        let pages = (ANCHOR + EGRESS_ROOM + largest + TAG).div_ceil(FRAME_SIZE);
        let gateway = Loopback::with(Pool::heap_of(FRAMES, pages), suite)?;
        let link = Link::new(1, [192, 0, 2, 1].into(), [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], None);
        gateway.engine.publish(Table { firewall, ..table(&gateway, largest.max(MTU), link) });
        let table = gateway.engine.table();
        Ok(Self { gateway, table, flows: FlowCache::new(), packets, link })
    }

    /// The number of packets that circulate.
    pub fn batch(&self) -> usize {
        self.packets.len()
    }

    /// The bytes of all packets of a batch.
    pub fn bytes(&self) -> usize {
        self.packets.iter().map(Vec::len).sum()
    }

    /// Sends a batch from the LAN to where the worker will receive it.
    ///
    /// # Panics
    /// If there are too few frames, which means that packets were lost.
    pub(super) fn load(&mut self) {
        let Loopback { worker, lan, endpoint, .. } = &mut self.gateway;
        for packet in &self.packets {
            assert!(lan.send(worker.pool(), *endpoint, 0, packet), "no frame for a packet");
        }
    }

    /// Frames of the worker's own memory, the same ones that packets travel in, each with its packet where a LAN port
    /// would have put it.
    pub(super) fn frames(&mut self) -> Vec<Frame> {
        let pool = self.gateway.worker.pool();
        let mut frames = Vec::with_capacity(self.packets.len());
        for packet in &self.packets {
            let mut frame = pool.take().expect("all packets are back");
            frame.set(ANCHOR + EGRESS_ROOM, packet.len());
            pool.packet_mut(&frame).copy_from_slice(packet);
            frames.push(frame);
        }
        frames
    }

    /// Returns frames, so that the same ones are taken again in the same order.
    pub(super) fn give(&mut self, frames: Vec<Frame>) {
        let pool = self.gateway.worker.pool();
        frames.into_iter().rev().for_each(|frame| pool.give(frame));
    }
}

/// A firewall whose last rule lets this side open flows with these packets.
fn firewall() -> Firewall {
    let default = || DefaultRule { verdict: Verdict::Drop, counter: Counter::default() };
    let rule = |number, verdict| Rule {
        direction: None,
        peers: None,
        sources: None,
        destinations: None,
        services: Some(vec![Service { protocol: Protocol::Number(number), ports: None }]),
        verdict,
        counter: Counter::default(),
    };
    let rules = Rules {
        inward: default(),
        outward: default(),
        rules: vec![rule(6, Verdict::Drop), rule(17, Verdict::Accept)],
        restrictions: HashMap::new(),
    };
    Firewall::new(rules, Arc::default())
}

/// The table of a gateway that knows [`SITES`] sites, of which the first is the worker itself.
fn table(gateway: &Loopback, mtu: usize, link: Link) -> Table {
    let own = gateway.engine.table();
    let mut table = Table { mtu, ..(*own).clone() };
    table.peers.iter_mut().for_each(|peer| peer.mtu = mtu);
    let mut allowed_ips = PrefixMap::default();
    for site in 0..SITES {
        if site > 0 {
            add_peer(&mut table, site, gateway.session.suite());
        }
        let address = |host| IpAddr::from([10, 101 + site, 0, host]);
        allowed_ips.insert(address(0), 24, u32::from(site));
        allowed_ips.insert(IpAddr::from([100, 64, 0, site]), 32, u32::from(site));
    }
    table.allowed_ips = Arc::new(allowed_ips);
    let mut hops = PrefixMap::default();
    hops.insert(IpAddr::from([10, 101, 0, 0]), 24, None);
    hops.insert(DESTINATION.into(), 32, Some(link.with_mtu(u16::try_from(mtu).unwrap_or(u16::MAX))));
    table.hops = Arc::new(hops);
    table
}

fn add_peer(table: &mut Table, site: u8, suite: Suite) {
    let peer = Arc::new(PeerCounters::new(u32::from(site)));
    // Real indices are random; these must differ from each other and from the first peer's.
    let local_index = SESSION + u32::from(site) * 0x0101_0107;
    let session = Arc::new(Session::new(SessionConfig {
        local_index,
        remote_index: local_index,
        suite,
        send_key: &[site; 32],
        receive_key: &[site; 32],
        born: Millis::now(),
        confirmed: true,
        peer: Arc::clone(&peer),
    }));
    table.sessions.insert(local_index, SessionEntry { session: Arc::clone(&session), peer: u32::from(site) });
    let endpoint = Some(SocketAddr::from(([192, 0, 2, site], PORT)).into());
    table.peers.push(PeerEntry {
        peer,
        endpoint,
        roams: true,
        link: None,
        mtu: table.mtu,
        sending: Some(session),
        next: None,
    });
}

/// An IPv4 UDP packet of `len` bytes, UDP without a checksum.
fn packet(len: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(len);
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&(len as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, HOPS, 17, 0, 0]);
    packet.extend_from_slice(&SOURCE.octets());
    packet.extend_from_slice(&DESTINATION.octets());
    let sum: u32 = packet.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    // Twenty bytes cannot carry more than once after this.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    for word in [40_000, 48_000, (len - 20) as u16, 0] {
        packet.extend_from_slice(&word.to_be_bytes());
    }
    packet.extend((0..len - HEADERS).map(|i| i as u8));
    packet
}
