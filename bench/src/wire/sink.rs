//! The receiving side of a trial.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::BATCH;
use crate::arrivals::Arrivals;
use crate::payload::now;
use crate::socket::{self, Batch, Receiver};

/// How long a sleeping sink may overlook that the trial is over.
const NAP: Duration = Duration::from_millis(5);
/// When every packet has come, copies of them may still follow for so long.
const LINGER: Duration = Duration::from_millis(10);
/// [`Ending::sent`] while the generator is still running.
const UNKNOWN: u64 = u64::MAX;

/// All queues of an interface.
#[derive(Debug)]
pub struct Sink {
    inlets: Vec<Inlet>,
}

/// One of its queues.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) receiver: Receiver,
    pub(super) batch: Batch,
    pub(super) free: Batch,
}

/// When a sink may stop: told by the generator's side.
#[derive(Debug)]
pub(super) struct Ending {
    sent: AtomicU64,
    at: AtomicU64,
}

impl Ending {
    pub(super) fn unknown() -> Ending {
        Ending { sent: AtomicU64::new(UNKNOWN), at: AtomicU64::new(0) }
    }

    /// So many packets were sent, and nobody waits for them any longer than `wait`.
    pub(super) fn announce(&self, sent: u64, wait: Duration) {
        self.at.store(now() + wait.as_nanos() as u64, Ordering::Relaxed);
        self.sent.store(sent, Ordering::Release);
    }

    /// When to stop, with so many packets received.
    fn time(&self, received: u64, last: u64) -> u64 {
        match self.sent.load(Ordering::Acquire) {
            UNKNOWN => u64::MAX,
            sent if received >= sent => (last + LINGER.as_nanos() as u64).min(self.at.load(Ordering::Relaxed)),
            _ => self.at.load(Ordering::Relaxed),
        }
    }
}

impl Sink {
    pub(super) fn new(inlets: Vec<Inlet>) -> Sink {
        Sink { inlets }
    }

    /// Receives one trial's packets; yields how many packets the kernel dropped in front of our sockets
    /// meanwhile. `spin`: never sleep.
    pub(super) fn receive(
        &mut self,
        arrivals: &mut Arrivals,
        ending: &Ending,
        spin: bool,
        stop: &AtomicBool,
    ) -> io::Result<u64> {
        let before = self.drops()?;
        let mut last = now();
        loop {
            let mut received = 0;
            for inlet in &mut self.inlets {
                received += inlet.receive(arrivals);
            }
            let time = now();
            if received > 0 {
                last = time;
            } else {
                if time >= ending.time(arrivals.counts().distinct, last) || stop.load(Ordering::Relaxed) {
                    break;
                }
                // Spinning asks the kernel too: some drivers take frames to receive into only then.
                let nap = if spin { Duration::ZERO } else { NAP };
                socket::wait(self.inlets.iter().map(|inlet| &inlet.receiver), nap)?;
            }
        }
        Ok(self.drops()?.saturating_sub(before))
    }

    fn drops(&self) -> io::Result<u64> {
        self.inlets.iter().try_fold(0, |sum, inlet| Ok(sum + inlet.receiver.drops()?.total()))
    }
}

impl Inlet {
    #[inline]
    fn receive(&mut self, arrivals: &mut Arrivals) -> usize {
        let received = self.receiver.receive(&mut self.batch, BATCH);
        if received > 0 {
            let time = now();
            self.batch.for_each(|frame| arrivals.packet(frame, time));
            arrivals.end_of_batch(time);
            self.batch.give(&mut self.free, BATCH);
        }
        // What did not fit before may fit now.
        self.receiver.fill(&mut self.free);
        received
    }
}
