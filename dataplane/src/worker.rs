//! A worker: one thread that owns a queue of each port and takes packets all the way from one to
//! another, a batch at a time.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, Cache};

use crate::clock::Millis;
use crate::drop::{DropReason, Drops};
use crate::egress::{self, Hop, Routed};
use crate::engine::{Shared, WorkerSetup};
use crate::frame::{ANCHOR, Pool};
use crate::icmp::Limiter;
use crate::ingress;
use crate::ports::{Batch, EGRESS_ROOM, Packet, Port};
use crate::slow_path::{Command, Mailbox};
use crate::table::Table;

/// While packets come by ports that are cheap to ask, the others are polled once in so many turns.
const POLL_EVERY: u32 = 8;
/// Commands carried out in one turn, at most.
const COMMANDS_PER_TURN: usize = 64;

/// A worker's state. Nothing of it is shared but the table, the mailboxes and the drop counters.
pub struct Worker {
    pool: Pool,
    wan: Side,
    lan: Side,
    received: Batch,
    routed: Routed,
    errors: Batch,
    limiter: Limiter,
    shared: Arc<Shared>,
    tables: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    /// The table of this turn.
    table: Arc<Table>,
    /// Peers, by place in the table, that have moved since it was published.
    roamed: Vec<(u32, SocketAddr)>,
    commands: Arc<Mailbox<Command>>,
    drops: Arc<Drops>,
    core: Option<core_affinity::CoreId>,
    busy_poll: bool,
    poll_fds: Vec<libc::pollfd>,
}

/// The ports of one side, and what waits to be sent by each.
struct Side {
    ports: Vec<Box<dyn Port>>,
    interfaces: Vec<Option<u32>>,
    out: Vec<Batch>,
    /// Whether the port may have packets. Always so for those that are cheap to ask.
    ready: Vec<bool>,
}

impl Side {
    fn new(ports: Vec<Box<dyn Port>>) -> Self {
        Self {
            interfaces: ports.iter().map(|p| p.link_interface()).collect(),
            out: ports.iter().map(|_| Batch::default()).collect(),
            ready: vec![true; ports.len()],
            ports,
        }
    }

    fn transmit(&mut self, pool: &mut Pool, drops: &Drops) {
        for (port, batch) in self.ports.iter_mut().zip(&mut self.out) {
            if !batch.is_empty() {
                port.transmit(pool, batch, drops);
            }
        }
    }

    /// Receives from port `i` if it may have packets. Returns how many there were.
    fn receive(&mut self, i: usize, pool: &mut Pool, received: &mut Batch, drops: &Drops) -> usize {
        let port = &mut self.ports[i];
        let cheap = port.cheap_to_ask();
        if !cheap && !self.ready[i] {
            return 0;
        }
        port.receive(pool, received, drops);
        self.ready[i] = cheap || !received.is_empty();
        received.len()
    }

    fn all_cheap(&self) -> bool {
        self.ports.iter().all(|p| p.cheap_to_ask())
    }

    fn none_ready(&self) -> bool {
        self.ports.iter().zip(&self.ready).all(|(port, ready)| port.cheap_to_ask() || !ready)
    }
}

impl Worker {
    pub(crate) fn new(
        setup: WorkerSetup,
        shared: Arc<Shared>,
        commands: Arc<Mailbox<Command>>,
        drops: Arc<Drops>,
    ) -> Self {
        let (wan, lan) = (Side::new(setup.wan), Side::new(setup.lan));
        let fds = std::iter::once(Some(commands.as_fd())).chain(wan.ports.iter().chain(&lan.ports).map(|p| p.fd()));
        let poll_fds = fds
            .map(|fd| libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 })
            .collect();
        Self {
            pool: setup.pool,
            wan,
            lan,
            received: Batch::default(),
            routed: Routed::default(),
            errors: Batch::default(),
            limiter: Limiter::default(),
            tables: Cache::new(Arc::clone(&shared.table)),
            table: shared.table.load_full(),
            roamed: Vec::with_capacity(ingress::ROAMED_MAX),
            shared,
            commands,
            drops,
            core: setup.core,
            busy_poll: setup.busy_poll,
            poll_fds,
        }
    }

    /// Works until the engine stops.
    pub(crate) fn run(&mut self) {
        if let Some(core) = self.core {
            // Refused in a narrower cpuset than at start: then the scheduler decides.
            let _ = core_affinity::set_for_current(core);
        }
        let mut turns = 0u32;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let packets = self.turn();
            turns = turns.wrapping_add(1);
            let idle = packets == 0 && self.wan.none_ready() && self.lan.none_ready();
            if idle && !self.busy_poll {
                self.poll(-1);
                continue;
            }
            if idle {
                // Whoever else wants the core has it now, rather than when the scheduler takes it from us.
                std::thread::yield_now();
            }
            if turns.is_multiple_of(POLL_EVERY) {
                self.poll(0);
            }
        }
    }

    /// The packet memory, for a device that is in memory itself: the far end of a `memory` port.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// One turn: a batch from every port, taken to where it goes. Returns how many packets there were.
    pub fn turn(&mut self) -> usize {
        self.take_up_table();
        let now = Millis::now();
        let mut packets = 0;
        for i in 0..self.wan.ports.len() {
            if self.wan.receive(i, &mut self.pool, &mut self.received, &self.drops) > 0 {
                packets += self.received.len();
                self.ingress(now);
            }
        }
        for i in 0..self.lan.ports.len() {
            if self.lan.receive(i, &mut self.pool, &mut self.received, &self.drops) > 0 {
                packets += self.received.len();
                self.egress(Some(i), now);
            }
        }
        packets
    }

    /// Takes up the newest table.
    #[inline]
    fn take_up_table(&mut self) {
        let newest = self.tables.load();
        if !Arc::ptr_eq(newest, &self.table) {
            self.table = Arc::clone(newest);
            self.roamed.clear();
        }
    }

    /// Takes `received`, datagrams from the WAN, to the LAN.
    fn ingress(&mut self, now: Millis) {
        let Self { pool, lan, received, errors, limiter, shared, drops, table, roamed, .. } = self;
        let mut exits = ingress::Exits {
            last_routes: lan.ports.last().is_some_and(|p| p.kernel_routes()),
            lan: &mut lan.out,
            lan_interfaces: &lan.interfaces,
            errors,
            roamed,
            notices: &shared.notices,
            drops,
            limiter,
        };
        if ingress::run(received, pool, table, now, &mut exits) {
            shared.notices.ring();
        }
        lan.transmit(pool, drops);
        if !self.errors.is_empty() {
            std::mem::swap(&mut self.received, &mut self.errors);
            self.egress(None, now);
        }
    }

    /// Takes `received`, IP packets from LAN port `from` or our own, to the WAN.
    fn egress(&mut self, from: Option<usize>, now: Millis) {
        let Self { pool, wan, lan, received, routed, errors, limiter, shared, drops, table, roamed, .. } = self;
        let port = from.map(|i| &*lan.ports[i]);
        let hop = if port.is_none_or(|p| p.kernel_routes()) { Hop::Taken } else { Hop::ToTake };
        let mut exits = egress::Exits {
            wan: &mut wan.out,
            wan_interfaces: &wan.interfaces,
            from: port,
            errors,
            roamed,
            notices: &shared.notices,
            drops,
            limiter,
        };
        if egress::run(received, routed, hop, pool, table, now, &mut exits) {
            shared.notices.ring();
        }
        wan.transmit(pool, drops);
        if let Some(i) = from.filter(|_| !errors.is_empty()) {
            lan.ports[i].transmit(pool, errors, drops);
        }
    }

    /// Waits for packets or commands, -1 for as long as it takes, and notes which ports have some.
    #[expect(unsafe_code)]
    pub fn poll(&mut self, timeout: i32) {
        if timeout == 0 && self.wan.all_cheap() && self.lan.all_cheap() && self.commands.is_empty() {
            return;
        }
        // SAFETY: the array lives through the call, and its length is given.
        let n = unsafe { libc::poll(self.poll_fds.as_mut_ptr(), self.poll_fds.len() as libc::nfds_t, timeout) };
        if n <= 0 {
            return;
        }
        let ready = self.wan.ready.iter_mut().chain(&mut self.lan.ready);
        for (ready, fd) in ready.zip(&self.poll_fds[1..]) {
            *ready |= fd.revents != 0;
        }
        if self.poll_fds[0].revents != 0 {
            self.commands.silence();
            self.take_up_table();
            self.carry_out();
        }
    }

    /// Carries out what control has asked for.
    fn carry_out(&mut self) {
        let now = Millis::now();
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = self.commands.pop() else { return };
            let Some(mut frame) = self.pool.take() else {
                self.drops.count(DropReason::NoFrame);
                continue;
            };
            let start = ANCHOR + EGRESS_ROOM;
            match command {
                Command::Send(packet) if start + packet.len() <= self.pool.frame_size() => {
                    frame.set(start, packet.len());
                    self.pool.packet_mut(&frame).copy_from_slice(&packet);
                    self.received.push(Packet::new(frame));
                    self.egress(None, now);
                }
                Command::Send(_) => {
                    self.drops.count(DropReason::Oversized);
                    self.pool.give(frame);
                }
                Command::Keepalive(peer) => {
                    frame.set(start, 0);
                    self.keepalive(peer, frame, now);
                }
            }
        }
        // More wait: the bell brings us back after the ports had their turn.
        self.commands.ring();
    }

    fn keepalive(&mut self, peer: u32, frame: crate::frame::Frame, now: Millis) {
        let Self { pool, wan, routed, errors, limiter, shared, drops, table, roamed, .. } = self;
        let Some(place) = table.peers.iter().position(|entry| entry.peer.id == peer) else {
            return pool.give(frame);
        };
        let mut exits = egress::Exits {
            wan: &mut wan.out,
            wan_interfaces: &wan.interfaces,
            from: None,
            errors,
            roamed,
            notices: &shared.notices,
            drops,
            limiter,
        };
        egress::keepalive(place as u32, frame, routed, pool, table, now, &mut exits);
        wan.transmit(pool, drops);
    }
}
