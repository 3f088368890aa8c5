//! Counting cycles: the core's own, where the kernel and the machine have a counter for them; else ticks of the
//! x86 time stamp counter, which are not the same and are called otherwise.

use std::io;

use perf_event::events::{Event, Hardware};
use perf_event::{Builder, Counter};

/// Where cycles are read.
#[derive(Debug)]
pub enum Cycles {
    /// A counter of the kernel's perf events, which counts while the thread runs in user mode.
    Core(Box<Counter>),
    /// The time stamp counter: a constant rate, whatever the core's clock is.
    Tsc,
    /// Nothing on this machine counts cycles.
    Missing,
}

impl Cycles {
    /// The best that this machine has, for the calling thread.
    pub fn open() -> Cycles {
        match Self::perf(Hardware::CPU_CYCLES) {
            Ok(cycles) => cycles,
            Err(_) if cfg!(target_arch = "x86_64") => Cycles::Tsc,
            Err(_) => Cycles::Missing,
        }
    }

    fn perf(event: impl Event) -> io::Result<Cycles> {
        // Pinned: the counter is never shared in turns with others, so its value needs no scaling.
        let mut counter = Builder::new(event).pinned(true).exclude_kernel(true).exclude_hv(true).build()?;
        counter.enable()?;
        counter.read()?;
        Ok(Cycles::Core(Box::new(counter)))
    }

    /// The count so far; only differences mean something.
    #[inline]
    pub fn read(&mut self) -> u64 {
        match self {
            Cycles::Core(counter) => counter.read().expect("a pinned counter that was read once reads on"),
            Cycles::Tsc => time_stamp(),
            Cycles::Missing => 0,
        }
    }

    /// What is counted, as a unit; `None` where nothing is.
    pub fn unit(&self) -> Option<&'static str> {
        match self {
            Cycles::Core(_) => Some("cycles"),
            Cycles::Tsc => Some("TSC cycles"),
            Cycles::Missing => None,
        }
    }

    /// What is counted, as a sentence.
    pub fn describe(&mut self) -> String {
        match self {
            Cycles::Core(_) => "core cycles in user mode, by the processor's counter (perf_event_open)".into(),
            Cycles::Tsc => format!(
                "TSC cycles: the time stamp counter at {:.3} GHz (measured); the machine has no counter of core cycles",
                time_stamp_rate() / 1e9
            ),
            Cycles::Missing => "not counted: the machine has no counter that may be read".into(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "an instruction without a safe wrapper")]
#[inline]
fn time_stamp() -> u64 {
    // SAFETY: reads a register; every x86-64 processor on which Linux lets programs run has it enabled.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn time_stamp() -> u64 {
    0
}

/// Ticks of the time stamp counter a second, against the system's clock.
fn time_stamp_rate() -> f64 {
    // Long enough that reading two clocks one after the other does not show in three digits.
    const WHILE: std::time::Duration = std::time::Duration::from_millis(20);
    let (clock, ticks) = (std::time::Instant::now(), time_stamp());
    std::thread::sleep(WHILE);
    let (ticks, elapsed) = (time_stamp() - ticks, clock.elapsed());
    ticks as f64 / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use perf_event::events::Software;

    use super::*;

    fn spent(cycles: &mut Cycles, turns: u64) -> u64 {
        let before = cycles.read();
        black_box((0..turns).fold(1u64, |sum, i| black_box(sum.wrapping_mul(3) ^ i)));
        cycles.read() - before
    }

    #[test]
    fn more_work_takes_more_cycles() {
        let mut cycles = Cycles::open();
        if cycles.unit().is_none() {
            return eprintln!("skipped: {}", cycles.describe());
        }
        let least = |cycles: &mut Cycles, turns| (0..20).map(|_| spent(cycles, turns)).min().expect("twenty");
        let (short, long) = (least(&mut cycles, 1_000), least(&mut cycles, 100_000));
        assert!(short > 0 && long > 20 * short && long < 500 * short, "{short}, {long}");
    }

    /// The way that processors with a counter take, by a counter that every kernel has.
    #[test]
    fn a_counter_of_the_kernel_is_read() {
        match Cycles::perf(Software::TASK_CLOCK) {
            Ok(mut cycles) => {
                assert_eq!(cycles.unit(), Some("cycles"));
                assert!(spent(&mut cycles, 1_000_000) > 0);
            }
            Err(error) => eprintln!("skipped: perf_event_open is not allowed here ({error})"),
        }
    }
}
