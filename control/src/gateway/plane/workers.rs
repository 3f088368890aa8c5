//! The running workers, and the counters of those that have ended.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use penstock_dataplane::drop::DropReason;
use penstock_dataplane::engine::{Engine, EngineConfig};
use penstock_dataplane::ports::PortInfo;
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_dataplane::table::Table;
use penstock_dataplane::work::WorkDone;
use tokio::io::unix::AsyncFd;

/// Workers, running or not; the counters go on when workers are replaced.
#[derive(Default)]
pub struct Workers {
    running: Option<Running>,
    /// Commands to be sent when the next table is published.
    commands: Vec<Command>,
    /// How many packets were dropped by workers that have ended.
    dropped: BTreeMap<&'static str, u64>,
    /// What these had done, by worker number.
    worked: Vec<WorkDone>,
}

/// Workers, and a watch on their notices.
struct Running {
    engine: Engine,
    notices: AsyncFd<OwnedFd>,
}

impl Workers {
    /// Starts workers, when there are none.
    ///
    /// # Errors
    /// A thread or a descriptor could not be created.
    pub fn start(&mut self, config: EngineConfig) -> Result<()> {
        let engine = Engine::start(config).context("cannot start the workers")?;
        let notices = crate::readable::watch(engine.notices()).context("cannot receive the workers' notices")?;
        self.running = Some(Running { engine, notices });
        Ok(())
    }

    /// Stops them, and returns their last notices and their table.
    pub fn stop(&mut self) -> (Vec<Notice>, Table) {
        let Some(Running { mut engine, .. }) = self.running.take() else { return Default::default() };
        engine.stop();
        for (reason, count) in engine.drops() {
            *self.dropped.entry(DropReason::name(reason)).or_default() += count;
        }
        add(&mut self.worked, engine.work());
        (std::iter::from_fn(|| engine.notices().pop()).collect(), Table::clone(&engine.table()))
    }

    /// The engine, if they run.
    pub fn engine(&self) -> Option<&Engine> {
        self.running.as_ref().map(|running| &running.engine)
    }

    /// Waits until there are notices. Cancel safe.
    ///
    /// # Errors
    /// Notices can no longer be received.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.running {
            Some(running) => {
                running.notices.readable().await?.clear_ready();
                Ok(())
            }
            None => std::future::pending().await,
        }
    }

    /// Takes up to `limit` notices. If more remain, the next call of `readable` returns at once.
    pub fn notices(&self, limit: usize) -> Vec<Notice> {
        let Some(engine) = self.engine() else { return Vec::new() };
        engine.notices().silence();
        let notices: Vec<Notice> = std::iter::from_fn(|| engine.notices().pop()).take(limit).collect();
        if notices.len() == limit {
            engine.notices().ring();
        }
        notices
    }

    /// The ports of every worker.
    pub fn ports(&self) -> impl Iterator<Item = (usize, &PortInfo)> {
        self.engine().into_iter().flat_map(Engine::ports)
    }

    /// How many packets were dropped for each reason, since the start of the gateway.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops: BTreeMap<String, u64> =
            self.dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        for (reason, count) in self.engine().into_iter().flat_map(Engine::drops) {
            *drops.entry(DropReason::name(reason).to_owned()).or_default() += count;
        }
        drops
    }

    /// What each worker has done since the start of the gateway, including workers that have ended.
    pub fn work(&self) -> Vec<WorkDone> {
        let mut all = self.worked.clone();
        add(&mut all, self.engine().into_iter().flat_map(Engine::work));
        all
    }

    /// Pings the workers, which have to answer soon. Returns those that have not answered the previous call.
    pub fn call(&self) -> Vec<usize> {
        let Some(engine) = self.engine() else { return Vec::new() };
        let silent = engine.silent().collect();
        engine.call();
        silent
    }

    /// Has commands sent, once the next table is published.
    pub fn command(&mut self, commands: impl IntoIterator<Item = Command>) {
        self.commands.extend(commands);
    }

    /// Sends the commands, in order. Returns how many were lost.
    pub fn send_commands(&mut self) -> u64 {
        let Some(Running { engine, .. }) = &self.running else { return self.commands.drain(..).count() as u64 };
        // All go to one worker, so that waiting packets stay in order.
        self.commands.drain(..).map(|command| u64::from(!engine.command(0, command))).sum()
    }
}

/// Adds what each worker has done to the record of the workers with the same number.
fn add(all: &mut Vec<WorkDone>, more: impl Iterator<Item = WorkDone>) {
    for (worker, done) in more.enumerate() {
        match all.get_mut(worker) {
            Some(before) => *before += done,
            None => all.push(done),
        }
    }
}
