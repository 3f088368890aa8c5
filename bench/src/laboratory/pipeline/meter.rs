//! Measures time, cycles and allocations of a piece of work on the calling thread.

use std::time::{Duration, Instant};

use super::allocations;
use super::cycles::Cycles;
use super::median;

/// The number of empty measurements from which the meter's own cost is determined.
const CALIBRATIONS: usize = 2001;

/// The cost of a piece of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// By the monotonic clock.
    pub time: Duration,
    /// As counted by the meter's [`Cycles`].
    pub cycles: u64,
    /// Requests to the allocator.
    pub allocations: u64,
}

/// A stopwatch that subtracts its own cost.
#[derive(Debug)]
pub struct Meter {
    cycles: Cycles,
    own: Spent,
}

impl Meter {
    /// A meter for the calling thread.
    pub fn new() -> Self {
        let mut meter = Self { cycles: Cycles::open(), own: Spent::default() };
        let empty: Vec<Spent> = (0..CALIBRATIONS).map(|_| meter.take(|| {})).collect();
        meter.own.time = median(empty.iter().map(|spent| spent.time).collect(), Ord::cmp);
        meter.own.cycles = median(empty.iter().map(|spent| spent.cycles).collect(), Ord::cmp);
        meter
    }

    /// Does the work once, and measures it.
    #[inline]
    pub fn take(&mut self, work: impl FnOnce()) -> Spent {
        let allocations = allocations::so_far();
        let cycles = self.cycles.read();
        let start = Instant::now();
        work();
        let time = start.elapsed();
        let cycles = self.cycles.read() - cycles;
        Spent {
            time: time.saturating_sub(self.own.time),
            cycles: cycles.saturating_sub(self.own.cycles),
            allocations: allocations::so_far() - allocations,
        }
    }

    /// The counter of the cycles.
    pub fn cycles(&self) -> &Cycles {
        &self.cycles
    }

    /// The cost of an empty measurement, which is subtracted from each measurement.
    pub fn own(&self) -> Spent {
        self.own
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_allocations_are_those_of_the_work() {
        let mut meter = Meter::new();
        let spent = meter.take(|| {
            std::thread::sleep(Duration::from_millis(3));
            drop(std::hint::black_box(Box::new(1u8)));
        });
        assert!(spent.time >= Duration::from_millis(3) - meter.own().time);
        assert_eq!(spent.allocations, 1);
        assert_eq!(meter.take(|| {}).allocations, 0);
    }

    #[test]
    fn nothing_takes_next_to_nothing() {
        let mut meter = Meter::new();
        let empty: Vec<Duration> = (0..101).map(|_| meter.take(|| {}).time).collect();
        assert!(median(empty, Ord::cmp) < Duration::from_micros(1));
    }
}
