//! Starts workers, gives them tables, and stops them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use penstock_aead::Cipher;

use crate::drop::{DropReason, Drops};
use crate::frame::Pool;
use crate::ports::evidence::{Evidence, Passed};
use crate::ports::{Port, PortInfo};
use crate::slow_path::{COMMANDS, Command, Mailbox, NOTICES, Notice};
use crate::table::Table;
use crate::work::{Work, WorkDone};
use crate::worker::Worker;

/// What an engine starts with.
pub struct EngineConfig {
    /// The workers.
    pub workers: Vec<WorkerSetup>,
    /// The first table.
    pub table: Table,
    /// The implementation of the ciphers.
    pub cipher: Cipher,
}

/// What a worker starts with: its memory and its ports.
pub struct WorkerSetup {
    /// Packet memory, shared by the worker's ports.
    pub pool: Pool,
    /// Ports that carry the tunnel. The last one is the kernel's UDP socket, which takes packets that have no link.
    pub wan: Vec<Box<dyn Port>>,
    /// Ports that carry the site's packets. The last one is the tun device, which takes packets that have no link.
    pub lan: Vec<Box<dyn Port>>,
    /// The core to pin the worker to; `None` leaves it to the scheduler.
    pub core: Option<core_affinity::CoreId>,
    /// Whether it never sleeps: lower latency at the price of a whole core.
    pub busy_poll: bool,
}

/// What all workers share with control.
pub(crate) struct Shared {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) cipher: Cipher,
    pub(crate) notices: Mailbox<Notice>,
    pub(crate) stop: AtomicBool,
    /// How many times the workers were called.
    pub(crate) calls: AtomicU32,
}

/// Running workers.
pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<Running>,
}

struct Running {
    thread: Option<JoinHandle<()>>,
    commands: Arc<Mailbox<Command>>,
    drops: Arc<Drops>,
    /// The last call that the worker has answered.
    answered: Arc<AtomicU32>,
    work: Arc<Work>,
    ports: Vec<PortInfo>,
    /// What has passed each port.
    evidence: Vec<Option<Arc<Evidence>>>,
}

impl Engine {
    /// Starts a thread for every worker.
    ///
    /// # Errors
    /// A thread or a descriptor could not be created.
    pub fn start(config: EngineConfig) -> io::Result<Self> {
        let (mut engine, workers) = Self::prepare(config)?;
        for (index, mut worker) in workers.into_iter().enumerate() {
            let shared = Arc::clone(&engine.shared);
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let _notice = PanicNotice { shared, worker: index };
                worker.run();
            })?;
            engine.workers[index].thread = Some(thread);
        }
        Ok(engine)
    }

    /// Creates the workers without threads: the caller calls their [`Worker::turn`].
    ///
    /// # Errors
    /// A descriptor could not be created.
    pub fn prepare(config: EngineConfig) -> io::Result<(Self, Vec<Worker>)> {
        let shared = Arc::new(Shared {
            table: Arc::new(ArcSwap::from_pointee(config.table)),
            cipher: config.cipher,
            notices: Mailbox::new(NOTICES)?,
            stop: AtomicBool::new(false),
            calls: AtomicU32::new(0),
        });
        let mut engine = Self { shared: Arc::clone(&shared), workers: Vec::new() };
        let mut workers = Vec::new();
        for (index, setup) in config.workers.into_iter().enumerate() {
            let commands = Arc::new(Mailbox::new(COMMANDS)?);
            let drops = Arc::new(Drops::default());
            let ports = || setup.wan.iter().chain(&setup.lan);
            let evidence = ports().map(|port| port.evidence()).collect();
            let ports = ports().map(|port| port.info()).collect();
            let worker = Worker::new(index, setup, Arc::clone(&shared), Arc::clone(&commands), Arc::clone(&drops));
            let (answered, work) = (worker.answered(), worker.work());
            engine.workers.push(Running { thread: None, commands, drops, answered, work, ports, evidence });
            workers.push(worker);
        }
        Ok((engine, workers))
    }

    /// Gives the workers a new table. Each one adopts it before its next batch; an idle one adopts it at once, since it
    /// must not keep the keys of sessions that have ended.
    pub fn publish(&self, table: Table) {
        self.shared.table.store(Arc::new(table));
        self.workers.iter().for_each(|worker| worker.commands.ring());
    }

    /// The cipher that seals and opens.
    pub fn cipher(&self) -> Cipher {
        self.shared.cipher
    }

    /// The table in force.
    pub fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// The workers' notices: poll it as a descriptor, silence it, then empty it.
    pub fn notices(&self) -> &Mailbox<Notice> {
        &self.shared.notices
    }

    /// Sends a worker a command; `false` when its queue is full or there is no such worker.
    pub fn command(&self, worker: usize, command: Command) -> bool {
        let Some(worker) = self.workers.get(worker) else { return false };
        let taken = worker.commands.push(command);
        worker.commands.ring();
        taken
    }

    /// Calls every worker, including sleeping ones: one that does not answer soon is stuck.
    pub fn call(&self) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        self.workers.iter().for_each(|worker| worker.commands.ring());
    }

    /// The workers that have not answered the last call.
    pub fn silent(&self) -> impl Iterator<Item = usize> + '_ {
        let calls = self.shared.calls.load(Ordering::Relaxed);
        let silent = move |worker: &Running| worker.answered.load(Ordering::Relaxed) != calls;
        self.workers.iter().enumerate().filter(move |(_, worker)| silent(worker)).map(|(index, _)| index)
    }

    /// How many packets were dropped for each reason, over all workers.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.workers.iter().map(|w| w.drops.of(reason)).sum()))
    }

    /// What each worker has done since the start.
    pub fn work(&self) -> impl Iterator<Item = WorkDone> + '_ {
        self.workers.iter().map(|worker| worker.work.done())
    }

    /// The ports of every worker, as bound.
    pub fn ports(&self) -> impl Iterator<Item = (usize, &PortInfo)> {
        self.workers.iter().enumerate().flat_map(|(i, w)| w.ports.iter().map(move |p| (i, p)))
    }

    /// The ports that may lose packets silently, with what has passed each.
    pub fn passed(&self) -> impl Iterator<Item = (usize, &PortInfo, Passed)> {
        self.workers.iter().enumerate().flat_map(|(i, worker)| {
            let ports = worker.ports.iter().zip(&worker.evidence);
            ports.filter_map(move |(port, evidence)| Some((i, port, evidence.as_ref()?.passed())))
        })
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Stops the workers and waits for them; their ports close. Their last notices can still be read.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in &mut self.workers {
            worker.commands.ring();
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A worker that panicked has said so in a notice.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells control when a worker's thread panics.
struct PanicNotice {
    shared: Arc<Shared>,
    worker: usize,
}

impl Drop for PanicNotice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.notices.push(Notice::WorkerDied { worker: self.worker });
            self.shared.notices.ring();
        }
    }
}
