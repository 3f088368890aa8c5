//! Running trials.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;

use super::Outcome;
use crate::traffic::arrivals::{Arrivals, MOST_PACKETS};
use crate::traffic::generator::{Generator, Plan};
use crate::traffic::packet::Template;
use crate::traffic::payload::now;
use crate::traffic::sink::{Ending, Sink};

/// From the start of the threads to the first packet: long enough for all of them to be ready.
const LEAD: Duration = Duration::from_millis(10);
/// How long an idle bench may take to notice that it should stop.
const NAP: Duration = Duration::from_millis(50);
/// The highest rate, in packets a second, for which an unpaced generator has enough numbers.
const FASTEST: f64 = 20e6;

/// A generator, and the sink that should receive its packets.
#[derive(Debug)]
pub struct Direction {
    /// Its name for people: "left to right".
    pub name: String,
    /// Where packets enter.
    pub generator: Generator,
    /// Where they should be received.
    pub sink: Sink,
}

/// The settings that are the same in every trial.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to wait after the last packet for those still in flight (RFC 2544, section 23: 2 s).
    pub wait: Duration,
    /// How long the device rests before a trial (RFC 2544, section 23: 5 s).
    pub settle: Duration,
    /// Verify checksums and payloads.
    pub verify: bool,
    /// Sinks never sleep. Their wake-up is then no part of the latency, but each occupies a core.
    pub spin: bool,
    /// Cores for generator and sink of each direction in turn; empty: the scheduler places them.
    pub cores: Vec<usize>,
}

/// The load of a trial in each direction.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Packets a second; `None`: as fast as possible.
    pub rate: Option<NonZeroU64>,
    /// The duration.
    pub duration: Duration,
}

/// Generators and sinks, ready for trials.
#[derive(Debug)]
pub struct Bench {
    directions: Vec<Direction>,
    options: Options,
    /// Numbers are used only once, so that late packets of a trial are not taken for those of a later one.
    next: u64,
}

impl Bench {
    /// A bench of one or two directions.
    pub fn new(directions: Vec<Direction>, options: Options) -> Bench {
        Bench { directions, options, next: 0 }
    }

    /// Its directions.
    pub fn directions(&self) -> &[Direction] {
        &self.directions
    }

    /// The settings that are the same in every trial.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Replaces the packets that are sent: one template per direction.
    pub fn change(&mut self, templates: Vec<Template>) -> io::Result<()> {
        self.directions.iter_mut().zip(templates).try_for_each(|(direction, t)| direction.generator.change(t))
    }

    /// The rate of the first direction's generator, alone and unpaced, beside that of a loop that only transmits:
    /// packets a second of both, measured in turn, `pairs` times for `duration` each.
    pub fn generator_and_bare_loop(
        &mut self,
        pairs: usize,
        duration: Duration,
        stop: &AtomicBool,
    ) -> io::Result<Vec<(f64, f64)>> {
        let Some(Direction { generator, .. }) = self.directions.first_mut() else {
            return Ok(vec![]);
        };
        let most = (duration.as_secs_f64() * FASTEST) as u64;
        let mut rates = vec![];
        for pair in 0..pairs {
            let plan = Plan { first: self.next, start: 0, duration, rate: None, most };
            self.next += most;
            // The one that is measured second may find the machine in a different state.
            let early = if pair % 2 == 0 { None } else { Some(generator.transmit_bare(duration, stop)?) };
            let full = generator.run(plan, stop)?.packets_per_second;
            let bare = early.map_or_else(|| generator.transmit_bare(duration, stop), Ok)?;
            rates.push((full, bare));
        }
        Ok(rates)
    }

    /// Runs one trial. The outcomes are in the order of the directions.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` if the trial has more packets than there are numbers for; `Interrupted` after
    /// `stop`.
    pub fn run(&mut self, load: Load, stop: &AtomicBool) -> io::Result<Vec<Outcome>> {
        let most = load.most_packets()?;
        let rested = Instant::now() + self.options.settle;
        while let Some(rest) = rested.checked_duration_since(Instant::now()).filter(|_| !stop.load(Ordering::Relaxed)) {
            thread::sleep(rest.min(NAP));
        }
        let first = self.next;
        self.next += most;
        let start = now() + LEAD.as_nanos() as u64;
        let plan = Plan { first, start, duration: load.duration, rate: load.rate, most };
        let options = &self.options;
        let outcomes: io::Result<Vec<Outcome>> = thread::scope(|scope| {
            let directions = self.directions.iter_mut().enumerate();
            let threads = directions.map(|(n, d)| scope.spawn(move || d.trial(plan, options, n, stop)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        outcomes
    }
}

impl Load {
    /// The number of packets in each direction.
    ///
    /// # Errors
    /// `InvalidInput`: more than there are numbers for.
    pub fn most_packets(&self) -> io::Result<u64> {
        let most = match self.rate {
            Some(rate) => self.duration.as_secs_f64() * rate.get() as f64 + 1.0,
            None => (self.duration.as_secs_f64() * FASTEST).clamp(1.0, MOST_PACKETS as f64),
        };
        if most > MOST_PACKETS as f64 {
            let text = format!("a trial of {most:.0} packets is too long: {MOST_PACKETS} can be told apart");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(most as u64)
    }
}

impl Direction {
    fn trial(&mut self, plan: Plan, options: &Options, number: usize, stop: &AtomicBool) -> io::Result<Outcome> {
        let Direction { generator, sink, .. } = self;
        let numbers = plan.first..plan.first + plan.most;
        let mut arrivals = Arrivals::new(numbers, options.verify);
        let ending = Ending::unknown();
        let core = |n: usize| options.cores.get(2 * number + n).map(|&id| CoreId { id });
        thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                core(1).map(core_affinity::set_for_current);
                sink.receive(&mut arrivals, &ending, options.spin, stop)
            });
            core(0).map(core_affinity::set_for_current);
            let sent = generator.run(plan, stop);
            ending.announce(sent.as_ref().map_or(0, |sent| sent.packets), options.wait);
            let drops = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((sent?, drops?))
        })
        .map(|(sent, drops)| Outcome::new(sent, &arrivals, drops.total()))
    }
}
