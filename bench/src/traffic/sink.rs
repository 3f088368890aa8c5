//! The receiving side of a trial.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::BATCH;
use super::arrivals::{Arrivals, TARDY};
use super::payload::now;
use super::socket::{self, Batch, Receiver, SocketDrops};

/// How long a sleeping sink may take to notice that the trial is over. It also wakes up before it would count as being
/// without a core.
const NAP: Duration = TARDY.saturating_sub(Duration::from_millis(1));
/// How long to wait for copies after every packet has arrived.
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
    /// Everything that had arrived by then has been received.
    pub(super) caught_up: u64,
}

/// When a sink may stop.
#[derive(Debug)]
pub struct Ending {
    sent: AtomicU64,
    at: AtomicU64,
}

impl Ending {
    /// At this time of [`now`], whatever has arrived.
    pub fn at(time: u64) -> Ending {
        Ending { sent: AtomicU64::new(UNKNOWN), at: AtomicU64::new(time) }
    }

    /// Not before the generator's side has announced the end.
    pub fn unknown() -> Ending {
        Ending::at(u64::MAX)
    }

    /// This many packets were sent; they are waited for no longer than `wait`.
    pub fn announce(&self, sent: u64, wait: Duration) {
        self.at.store(now() + wait.as_nanos() as u64, Ordering::Relaxed);
        self.sent.store(sent, Ordering::Release);
    }

    /// When to stop, if this many packets have been received, the last of them at `last`.
    fn time(&self, received: u64, last: u64) -> u64 {
        let all_came = received >= self.sent.load(Ordering::Acquire);
        let at = self.at.load(Ordering::Relaxed);
        if all_came { at.min(last + LINGER.as_nanos() as u64) } else { at }
    }
}

impl Sink {
    pub(super) fn new(inlets: Vec<Inlet>) -> Sink {
        Sink { inlets }
    }

    /// Receives one trial's packets; returns what the kernel dropped in front of our sockets in that time. `spin`:
    /// never sleep.
    pub fn receive(
        &mut self,
        arrivals: &mut Arrivals,
        ending: &Ending,
        spin: bool,
        stop: &AtomicBool,
    ) -> io::Result<SocketDrops> {
        let before = self.drops()?;
        let mut last = now();
        self.inlets.iter_mut().for_each(|inlet| inlet.caught_up = last);
        let mut distinct = 0;
        loop {
            let mut received = 0;
            for inlet in &mut self.inlets {
                received += inlet.receive(arrivals);
            }
            let time = now();
            // Other packets do not prolong the wait.
            if arrivals.counts().distinct > distinct {
                (distinct, last) = (arrivals.counts().distinct, time);
            }
            if time >= ending.time(distinct, last) || stop.load(Ordering::Relaxed) {
                break;
            }
            if received == 0 {
                // Spinning calls the kernel too: some drivers take frames to receive into only then.
                let nap = if spin { Duration::ZERO } else { NAP };
                socket::wait(self.inlets.iter().map(|inlet| &inlet.receiver), nap)?;
            }
        }
        Ok(self.drops()?.with(&before, u64::saturating_sub))
    }

    fn drops(&self) -> io::Result<SocketDrops> {
        let add = |sum: SocketDrops, inlet: &Inlet| Ok(sum.with(&inlet.receiver.drops()?, u64::saturating_add));
        self.inlets.iter().try_fold(SocketDrops::default(), add)
    }
}

impl Inlet {
    #[inline]
    fn receive(&mut self, arrivals: &mut Arrivals) -> usize {
        let received = self.receiver.receive(&mut self.batch, BATCH);
        let time = now();
        if received > 0 {
            let caught_up = self.caught_up;
            self.batch.for_each(|frame| arrivals.packet(frame, time, caught_up));
            arrivals.end_of_batch(time);
            self.batch.give(&mut self.free, BATCH);
        }
        if received < BATCH {
            self.caught_up = time;
        }
        // Frames that did not fit before may fit now.
        self.receiver.fill(&mut self.free);
        received
    }
}
