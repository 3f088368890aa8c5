//! A worker: one thread that owns a queue of each port and takes packets all the way from one to
//! another, a batch at a time.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use smallvec::SmallVec;

use crate::clock::{self, Millis};
use crate::drop::{DropReason, Drops};
use crate::engine::{Shared, WorkerSetup};
use crate::filter::FlowCache;
use crate::frame::{ANCHOR, Pool};
use crate::icmp::Limiter;
use crate::ports::{BATCH, Batch, EGRESS_ROOM, Endpoint, Packet};
use crate::session::by_ring;
use crate::shaper::Shaper;
use crate::side::Side;
use crate::slow_path::{Command, Mailbox};
use crate::table::Table;
use crate::turn::{Notices, ROAMED_MAX, Turn};
use crate::work::{Origin, Work};
use crate::{egress, ingress};

/// While the ports that are cheap to ask have packets, the others are polled only once in this many turns.
const POLL_EVERY: u32 = 8;
/// How often the kernel is asked for lost packets.
const LOSSES_EVERY: Millis = Millis(1000);
/// How soon the kernel is asked again to send what a device was too busy for.
const UNSENT_EVERY: Duration = Duration::from_millis(1);
/// The most commands carried out in one turn.
const COMMANDS_PER_TURN: usize = 64;
/// Descriptors that can be polled without an allocation: those of a gateway with a dozen interfaces.
const DESCRIPTORS: usize = 16;

/// A worker's state. It shares only the table, the mailboxes and the counters.
pub struct Worker {
    pool: Pool,
    wan: Side,
    lan: Side,
    received: Batch,
    errors: Batch,
    limiter: Limiter,
    unknown: Limiter,
    shared: Arc<Shared>,
    tables: Cache<Arc<ArcSwap<Table>>, Arc<Table>>,
    /// The table of this turn.
    table: Arc<Table>,
    /// Peers, by place in the table, that have moved since it was published.
    roamed: Vec<(u32, Endpoint)>,
    /// Takes no memory as long as there is no firewall.
    flows: FlowCache,
    /// Exists while there is a rate, or while packets still wait.
    shaper: Option<Box<Shaper>>,
    commands: Arc<Mailbox<Command>>,
    drops: Arc<Drops>,
    /// The last call from control that was answered.
    answered: Arc<AtomicU32>,
    /// The time of the last turn.
    now: Millis,
    /// When the kernel was last asked for lost packets; `None` when no port can tell.
    losses: Option<Millis>,
    work: Arc<Work>,
    core: Option<core_affinity::CoreId>,
    busy_poll: bool,
    /// See [`Turn::ring`].
    ring: u64,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        setup: WorkerSetup,
        shared: Arc<Shared>,
        commands: Arc<Mailbox<Command>>,
        drops: Arc<Drops>,
    ) -> Self {
        let table = shared.table.load_full();
        let mut worker = Self {
            pool: setup.pool,
            wan: Side::new(setup.wan),
            lan: Side::new(setup.lan),
            received: Batch::default(),
            errors: Batch::default(),
            limiter: Limiter::default(),
            unknown: Limiter::default(),
            tables: Cache::new(Arc::clone(&shared.table)),
            flows: FlowCache::for_table(&table),
            shaper: None,
            table,
            roamed: Vec::with_capacity(ROAMED_MAX),
            shared,
            commands,
            drops,
            answered: Arc::default(),
            now: Millis::default(),
            losses: Some(Millis::default()),
            work: Arc::default(),
            core: setup.core,
            busy_poll: setup.busy_poll,
            ring: by_ring(index),
        };
        worker.follow_rate();
        worker
    }

    /// The number of the last call that it has answered.
    pub(crate) fn answered(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.answered)
    }

    /// The counters of its work.
    pub(crate) fn work(&self) -> Arc<Work> {
        Arc::clone(&self.work)
    }

    /// Works until the engine stops.
    pub(crate) fn run(&mut self) {
        drop_capabilities();
        if let Some(core) = self.core {
            // Refused in a cpuset narrower than at the start: then the scheduler decides.
            let _ = core_affinity::set_for_current(core);
        }
        let mut turns = 0u32;
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.answered.store(self.shared.calls.load(Ordering::Relaxed), Ordering::Relaxed);
            let packets = self.turn();
            self.count_losses();
            turns = turns.wrapping_add(1);
            let idle = packets == 0 && self.wan.none_ready() && self.lan.none_ready();
            if idle && !self.busy_poll {
                self.poll(true);
                continue;
            }
            if idle {
                // Gives the core to others now, before the scheduler takes it from us.
                std::thread::yield_now();
            }
            if turns.is_multiple_of(POLL_EVERY) {
                self.poll(false);
            }
        }
        // Packets lost since the last count must be counted.
        self.losses = self.losses.map(|_| Millis::default());
        self.count_losses();
        if let Some(shaper) = &self.shaper {
            self.drops.count_many(DropReason::ShaperFull, shaper.waiting().0 as u64);
            self.work.waiting((0, 0));
        }
        // The C library keeps the stack for the next thread.
        penstock_aead::wipe_stack();
    }

    /// Counts the packets that the kernel has lost, once a second.
    fn count_losses(&mut self) {
        let now = self.now;
        if self.losses.is_some_and(|last| now.since(last) >= LOSSES_EVERY) {
            let wan = self.wan.count_losses(&self.drops);
            let told = self.lan.count_losses(&self.drops) || wan;
            self.losses = told.then_some(now);
        }
    }

    /// The packet memory, for a device that is itself in memory: the far end of a `memory` port.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// One turn: a batch from every port, each packet taken to its destination. Returns how many packets there were.
    pub fn turn(&mut self) -> usize {
        let (mut turn, Ends { wan, lan, received, work }) = self.begin();
        let mut packets = 0;
        for i in 0..wan.ports().len() {
            let count = wan.receive(i, &mut turn, received);
            if count > 0 {
                packets += count;
                work.received(Origin::Wan, count, wan.ports()[i].waiting());
                let opened = ingress::run(&mut turn, received, lan);
                wan.opened(i, opened);
                // Errors about a peer's packets are our own packets, and go back into the tunnel.
                if !turn.errors.is_empty() {
                    std::mem::swap(received, turn.errors);
                    egress::run(&mut turn, received, None, wan);
                }
            }
        }
        for i in 0..lan.ports().len() {
            let count = lan.receive(i, &mut turn, received);
            if count > 0 {
                packets += count;
                work.received(Origin::Lan, count, lan.ports()[i].waiting());
                egress::run(&mut turn, received, Some(&*lan.ports()[i]), wan);
                lan.answer(i, &mut turn);
            }
        }
        while egress::release(&mut turn, received, wan, work) == BATCH {}
        packets
    }

    /// Begins a turn, with the newest table.
    #[inline]
    fn begin(&mut self) -> (Turn<'_>, Ends<'_>) {
        self.take_up_table();
        self.now = Millis::now();
        let Self {
            pool,
            table,
            shared,
            drops,
            errors,
            limiter,
            unknown,
            roamed,
            flows,
            shaper,
            wan,
            lan,
            received,
            work,
            now,
            ring,
            ..
        } = self;
        let (cipher, notices, now, ring) = (shared.cipher, Notices::new(&shared.notices), *now, *ring);
        (
            Turn { pool, table, cipher, now, drops, notices, errors, limiter, unknown, ring, roamed, flows, shaper },
            Ends { wan, lan, received, work },
        )
    }

    /// Switches to the newest table, and drops the previous one with its sessions.
    #[inline]
    fn take_up_table(&mut self) {
        let newest = self.tables.load();
        if !Arc::ptr_eq(newest, &self.table) {
            self.table = Arc::clone(newest);
            self.roamed.clear();
            if self.flows.is_empty() {
                self.flows = FlowCache::for_table(&self.table);
            }
            self.follow_rate();
            // Keys of sessions that have ended may have been on this stack.
            penstock_aead::wipe_stack();
        }
    }

    /// Applies the rate of a new table. Without one, the packets that still wait are sent.
    fn follow_rate(&mut self) {
        let Some(rate) = &self.table.wan_rate else { return };
        match &mut self.shaper {
            Some(shaper) => shaper.set_rate(rate),
            None => self.shaper = Some(Shaper::new(&self.pool, rate).into()),
        }
    }

    /// Checks which ports have packets, and whether there are commands or a new table. If `wait` is set, it sleeps
    /// until there is something to do.
    pub fn poll(&mut self, wait: bool) {
        let (wan, lan) = (&mut self.wan, &mut self.lan);
        let unsent = (wait && (wan.any_unsent() || lan.any_unsent())).then_some(UNSENT_EVERY);
        if !wait && wan.all_cheap() && lan.all_cheap() && self.commands.is_empty() {
            return;
        }
        // A port without a descriptor is always ready.
        let ports = wan.ports().iter().chain(lan.ports()).map(|port| port.fd().unwrap_or(self.commands.as_fd()));
        let polled = ports.chain([self.commands.as_fd()]);
        let mut fds: SmallVec<[_; DESCRIPTORS]> =
            polled.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // The kernel wakes nobody when it loses packets.
        let look = self.losses.map(|_| Duration::from_secs(1));
        let release = self.shaper.as_ref().and_then(|shaper| shaper.pause(clock::nanos()));
        let timeout = match wait {
            false => Some(Duration::ZERO),
            true => look.into_iter().chain(release).chain(unsent).min(),
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if wait {
            self.work.falls_asleep();
        }
        let count = poll(&mut fds, timeout.as_ref()).unwrap_or(0);
        if wait {
            self.work.wakes();
        }
        if count == 0 {
            return;
        }
        let came: SmallVec<[bool; DESCRIPTORS]> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (ready, came) in wan.ready_mut().iter_mut().chain(lan.ready_mut()).zip(&came) {
            *ready |= came;
        }
        if came.last() == Some(&true) {
            self.commands.silence();
            self.carry_out();
        }
    }

    /// Carries out control's commands.
    fn carry_out(&mut self) {
        let commands = Arc::clone(&self.commands);
        let (mut turn, Ends { wan, received, .. }) = self.begin();
        for _ in 0..COMMANDS_PER_TURN {
            let Some(command) = commands.pop() else { return };
            let Some(mut frame) = turn.pool.take() else {
                turn.drops.count(DropReason::NoFrame);
                continue;
            };
            let start = ANCHOR + EGRESS_ROOM;
            match command {
                Command::Send(packet) if start + packet.len() <= turn.pool.frame_size() => {
                    frame.set(start, packet.len());
                    turn.pool.packet_mut(&frame).copy_from_slice(&packet);
                    received.push(Packet::new(frame));
                    egress::run(&mut turn, received, None, wan);
                }
                Command::Send(_) => {
                    turn.drops.count(DropReason::Oversized);
                    turn.pool.give(frame);
                }
                Command::Keepalive(peer) => {
                    frame.set(start, 0);
                    match turn.table.peers.iter().position(|entry| entry.peer.id == peer) {
                        Some(place) => {
                            received.push(Packet::new(frame));
                            egress::seal(&mut turn, received, &[Ok(place as u32)], wan);
                        }
                        None => turn.pool.give(frame),
                    }
                }
            }
        }
        // More commands wait: the bell brings us back once the ports have had their turn.
        commands.ring();
    }
}

/// Workers read what strangers send, so they run without privileges: every device and socket is open by now.
fn drop_capabilities() {
    let none = CapabilitySet::empty();
    // Having nothing to drop is not a failure, and no other failure is possible.
    let _ = set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none });
}

/// Where a turn's packets come from and go to.
struct Ends<'a> {
    wan: &'a mut Side,
    lan: &'a mut Side,
    received: &'a mut Batch,
    work: &'a Work,
}
