//! The wall clock, used only to timestamp initiations and to date handshakes.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::constants::TIMESTAMP_GRANULARITY;
use crate::noise::Timestamp;

/// The wall clock's reading at some instant.
pub(crate) struct Clock {
    now: Instant,
    wall: SystemTime,
    last: Timestamp,
}

impl Clock {
    pub fn new(now: Instant, wall: SystemTime) -> Self {
        Self { now, wall, last: [0; 12] }
    }

    /// Timestamps given out so far still count.
    pub fn set(&mut self, now: Instant, wall: SystemTime) {
        self.now = now;
        self.wall = wall;
    }

    pub fn wall(&self, now: Instant) -> SystemTime {
        self.wall + now.saturating_duration_since(self.now)
    }

    /// TAI64N, rounded down, and later than every timestamp given out before.
    pub fn stamp(&mut self, now: Instant) -> Timestamp {
        let since_epoch = self.wall(now).duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = tai64n(since_epoch.as_secs(), since_epoch.subsec_nanos());
        self.last = if stamp > self.last { stamp } else { following(&self.last) };
        self.last
    }
}

/// Unix second 0 in TAI64. Leap seconds are ignored, as every WireGuard implementation does.
const TAI64_EPOCH: u64 = (1 << 62) + 10;

fn tai64n(seconds: u64, nanos: u32) -> Timestamp {
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&(TAI64_EPOCH + seconds).to_be_bytes());
    stamp[8..].copy_from_slice(&(nanos & !(TIMESTAMP_GRANULARITY - 1)).to_be_bytes());
    stamp
}

fn following(stamp: &Timestamp) -> Timestamp {
    let (seconds, nanos) = stamp.split_at(8);
    let mut seconds = u64::from_be_bytes(seconds.try_into().unwrap_or_default());
    let mut nanos = u32::from_be_bytes(nanos.try_into().unwrap_or_default());
    nanos += TIMESTAMP_GRANULARITY;
    if nanos >= 1_000_000_000 {
        (seconds, nanos) = (seconds + 1, 0);
    }
    tai64n(seconds - TAI64_EPOCH, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_epoch_and_the_rounding() {
        assert_eq!(tai64n(0, 0)[..8], [0x40, 0, 0, 0, 0, 0, 0, 10]);
        assert_eq!(tai64n(0, TIMESTAMP_GRANULARITY - 1)[8..], [0; 4]);
        assert_eq!(tai64n(0, TIMESTAMP_GRANULARITY)[8..], [1, 0, 0, 0]);
    }

    #[test]
    fn stamps_grow_even_when_the_clock_does_not() {
        let start = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut clock = Clock::new(start, wall);
        let mut last = clock.stamp(start);
        for step in 0..200 {
            match step {
                50 => clock.set(start, UNIX_EPOCH),
                100 => clock.set(start, UNIX_EPOCH - Duration::from_secs(1)),
                150 => clock.set(start, wall + Duration::from_secs(9)),
                _ => {}
            }
            let stamp = clock.stamp(start);
            assert!(stamp > last);
            assert!(u32::from_be_bytes(stamp[8..].try_into().unwrap()) < 1_000_000_000);
            last = stamp;
        }
        assert!(clock.stamp(start + Duration::from_millis(20)) > last);
    }
}
