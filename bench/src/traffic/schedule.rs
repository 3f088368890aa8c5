//! When packets are due: an open loop, never slowed down by what the network does.

use std::num::NonZeroU64;

const SECOND: u128 = 1_000_000_000;

/// The send times of a generator, in nanoseconds of [`crate::traffic::payload::now`].
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start: u64,
    rate: Option<NonZeroU64>,
}

impl Schedule {
    /// Packet 0 is due at `start`; `rate` is packets a second, `None` as fast as possible.
    pub fn new(start: u64, rate: Option<NonZeroU64>) -> Schedule {
        Schedule { start, rate }
    }

    /// How many packets are due at `now`, counted from the start.
    #[inline]
    pub fn due(&self, now: u64) -> u64 {
        match self.rate {
            None => u64::MAX,
            Some(rate) => match now.checked_sub(self.start) {
                None => 0,
                Some(elapsed) => (u128::from(elapsed) * u128::from(rate.get()) / SECOND) as u64 + 1,
            },
        }
    }

    /// When packet `n` is due; `None` when unpaced.
    #[inline]
    pub fn due_at(&self, n: u64) -> Option<u64> {
        let rate = u128::from(self.rate?.get());
        Some(self.start + (u128::from(n) * SECOND).div_ceil(rate) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_due_exactly_from_its_time_on() {
        for rate in [1, 3, 999, 1_000_000, 14_880_952] {
            let schedule = Schedule::new(5_000, NonZeroU64::new(rate));
            for n in [0, 1, 2, 10, 1_000_003] {
                let at = schedule.due_at(n).expect("paced");
                assert!(schedule.due(at) > n, "rate {rate}, packet {n}");
                assert!(schedule.due(at - 1) <= n, "rate {rate}, packet {n}");
            }
        }
    }

    #[test]
    fn unpaced_is_always_due() {
        let schedule = Schedule::new(5, None);
        assert_eq!(schedule.due(0), u64::MAX);
        assert_eq!(schedule.due_at(7), None);
    }
}
