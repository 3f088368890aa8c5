//! The data plane without devices: a worker between `memory` ports on one core, whole and stage by stage.
//!
//! ```text
//!   LAN port ─► route ─► TTL, MSS, ECN ─► seal ─────────────────────────────────────────► WAN port   encrypt
//!   WAN port ─► session lookup ─► open ─► replay ─► allowed IPs ─► ECN, next hop, TTL ──► LAN port   decrypt
//! ```
//! [`subject`] names what is measured, and [`stages`] measures it, over the frames of one [`rig`] whose packets have
//! the sizes of [`size`]. A [`meter`] takes time, cycles ([`cycles`]) and allocations ([`allocations`]). This module
//! combines passes into rounds, and rounds into a [`Report`].

pub mod allocations;
pub mod cycles;
mod figures;
pub mod meter;
pub mod rig;
pub mod size;
mod stages;
pub mod subject;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use penstock_dataplane::session::Suite;

use crate::report::Report;
use figures::Rows;
use meter::Meter;
use rig::Rig;
use size::Size;
pub use stages::Pass;
use subject::Subject;

/// The longest time of one measurement: all subjects of a size share a session, which lives for 180 s.
pub const LONGEST: Duration = Duration::from_secs(3);
/// A measurement is taken in this many parts, in turn with those of the other subjects of its size. Whatever else the
/// machine does then affects all of them alike, and differences between them are meaningful.
const SLICES: u32 = 20;
/// Passes at the beginning of a part that do not count: they warm up caches and predictors, and let queues grow to the
/// size that the traffic needs.
const WARM_UP: usize = 2;
/// The least number of passes in a part.
const LEAST_PASSES: usize = 1;

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sizes of the inner packets.
    pub sizes: Vec<Size>,
    /// The AEAD of all sessions, and of ring alone.
    pub suite: Suite,
    /// How often everything is measured.
    pub rounds: usize,
    /// How long one measurement takes: a subject at a size in a round. At most [`LONGEST`].
    pub time: Duration,
    /// The core to be pinned to; `None`: the last one that the process may use.
    pub core: Option<usize>,
}

impl Options {
    /// The number of steps of about equal length: one per size and round.
    pub fn steps(&self) -> usize {
        self.rounds * self.sizes.len()
    }
}

/// Measures. Rounds are interleaved over all sizes, so that a slow minute of the machine spoils one sample of each
/// instead of all samples of one. `step` is called [`Options::steps`] times with what comes next.
///
/// The calling thread stays pinned.
///
/// # Errors
/// The core or the descriptors are not available, or `stop` was set ([`io::ErrorKind::Interrupted`]).
pub fn run(options: &Options, stop: &AtomicBool, step: &mut dyn FnMut(&str)) -> io::Result<Report> {
    let core = pin(options.core)?;
    let mut meter = Meter::new();
    let subjects: Vec<Subject> = Subject::all().collect();
    let mut rows: Vec<Rows> = options.sizes.iter().map(|size| Rows::new(*size, &subjects)).collect();
    for nth in 1..=options.rounds {
        for rows in &mut rows {
            let mut rigs = Rigs::new(rows.size, options.suite)?;
            rows.mean_bytes = rigs.plain.bytes() as f64 / rigs.plain.batch() as f64;
            step(&format!("round {nth}, {}", rows.size));
            let samples = round(&mut rigs, &subjects, &mut meter, options.time.min(LONGEST), stop)?;
            rows.subjects.iter_mut().zip(samples).for_each(|((_, samples), sample)| samples.push(sample));
        }
    }
    Ok(figures::report(&rows, options.suite, &meter, core))
}

/// Pins the calling thread.
fn pin(core: Option<usize>) -> io::Result<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    // The first core has most of the machine's interrupts.
    let found = match core {
        Some(wanted) => cores.into_iter().find(|core| core.id == wanted),
        None => cores.into_iter().next_back(),
    };
    let pinned = found.filter(|core| core_affinity::set_for_current(*core));
    pinned.map(|core| core.id).ok_or_else(|| {
        let which = core.map_or("a core".into(), |core| format!("core {core}"));
        io::Error::new(io::ErrorKind::InvalidInput, format!("cannot be pinned to {which}"))
    })
}

/// The workers of a round.
struct Rigs {
    plain: Rig,
    filtered: Rig,
}

impl Rigs {
    fn new(size: Size, suite: Suite) -> io::Result<Self> {
        Ok(Self { plain: Rig::new(size, suite)?, filtered: Rig::filtered(size, suite)? })
    }

    /// The one in which a subject is measured.
    fn of(&mut self, subject: Subject) -> &mut Rig {
        if subject.is_filtered() { &mut self.filtered } else { &mut self.plain }
    }
}

/// One subject's figures of a round, all per packet.
#[derive(Clone, Copy, Debug)]
struct Sample {
    nanoseconds: f64,
    cycles: f64,
    allocations: f64,
}

/// The passes of one measurement so far.
#[derive(Default)]
struct Passes {
    nanoseconds: Vec<f64>,
    cycles: Vec<f64>,
    allocations: u64,
    packets: usize,
}

impl Passes {
    /// Does passes for some time, after a few that do not count.
    fn extend(&mut self, rig: &mut Rig, subject: Subject, meter: &mut Meter, time: Duration) {
        (0..WARM_UP).for_each(|_| _ = rig.pass(subject, meter));
        let (start, before) = (Instant::now(), self.nanoseconds.len());
        while start.elapsed() < time || self.nanoseconds.len() < before + LEAST_PASSES {
            let Pass { spent, packets } = rig.pass(subject, meter);
            self.nanoseconds.push(spent.time.as_nanos() as f64 / packets as f64);
            self.cycles.push(spent.cycles as f64 / packets as f64);
            self.allocations += spent.allocations;
            self.packets += packets;
        }
    }

    /// Medians: the passes are alike, so one that took longer was interrupted. Allocations are counted over all of
    /// them.
    fn sample(self) -> Sample {
        Sample {
            nanoseconds: median(self.nanoseconds, f64::total_cmp),
            cycles: median(self.cycles, f64::total_cmp),
            allocations: self.allocations as f64 / self.packets as f64,
        }
    }
}

/// Measures all subjects of a size once, in turn.
fn round(
    rigs: &mut Rigs,
    subjects: &[Subject],
    meter: &mut Meter,
    time: Duration,
    stop: &AtomicBool,
) -> io::Result<Vec<Sample>> {
    let mut measured: Vec<Passes> = subjects.iter().map(|_| Passes::default()).collect();
    for _ in 0..SLICES {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        for (passes, subject) in measured.iter_mut().zip(subjects) {
            passes.extend(rigs.of(*subject), *subject, meter, time / SLICES);
        }
    }
    Ok(measured.into_iter().map(Passes::sample).collect())
}

fn median<T: Copy>(mut values: Vec<T>, order: impl FnMut(&T, &T) -> std::cmp::Ordering) -> T {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, order).1
}

#[cfg(test)]
mod tests;
