//! Counts the core's cycles, if kernel and machine have a counter for them.

use std::io;

use perf_event::events::{Event, Hardware};
use perf_event::{Builder, Counter};

/// A counter of the kernel's perf events that counts while the calling thread runs in user mode.
#[derive(Debug)]
pub struct Cycles(Option<Box<Counter>>);

impl Cycles {
    /// Opens one for the calling thread. Virtual machines often have no counter; then nothing is counted.
    pub fn open() -> Cycles {
        Cycles(Self::perf(Hardware::CPU_CYCLES).ok())
    }

    fn perf(event: impl Event) -> io::Result<Box<Counter>> {
        // Pinned: the counter is never multiplexed with others, so its value needs no scaling.
        let mut counter = Builder::new(event).pinned(true).exclude_kernel(true).exclude_hv(true).build()?;
        counter.enable()?;
        counter.read()?;
        Ok(Box::new(counter))
    }

    /// The count so far; only differences are meaningful.
    #[inline]
    pub fn read(&mut self) -> u64 {
        self.0.as_mut().map_or(0, |counter| counter.read().expect("a pinned counter that was read once reads on"))
    }

    /// Whether anything is counted.
    pub fn are_counted(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use perf_event::events::Software;

    use super::*;

    /// With a counter that every kernel has.
    #[test]
    fn a_counter_of_the_kernel_is_read() {
        match Cycles::perf(Software::TASK_CLOCK) {
            Ok(counter) => {
                let mut cycles = Cycles(Some(counter));
                let before = cycles.read();
                black_box((0..1_000_000).fold(1u64, |sum, i| black_box(sum.wrapping_mul(3) ^ i)));
                assert!(cycles.read() > before);
            }
            Err(error) => eprintln!("skipped: perf_event_open is not allowed here ({error})"),
        }
    }
}
