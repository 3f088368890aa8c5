//! The coarse clock of the data plane: milliseconds since the process first read it, read once per batch, and small
//! enough for an atomic.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Milliseconds on the data plane's clock, or between two points of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Nanoseconds on the same clock, for pacing.
pub(crate) fn nanos() -> u64 {
    start().elapsed().as_nanos() as u64
}

static START: OnceLock<Instant> = OnceLock::new();

impl Millis {
    /// The time now. Never zero, so that zero can mean "never".
    #[inline]
    pub fn now() -> Self {
        Self::at(Instant::now())
    }

    /// A point in time on this clock; times before the clock's beginning count as its beginning.
    #[inline]
    pub fn at(instant: Instant) -> Self {
        Self(instant.saturating_duration_since(start()).as_millis() as u64 + 1)
    }

    /// The time between an earlier point and this one; zero if it is not earlier.
    #[inline]
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// When the clock begins: before it is first read, so that instants a little in the past can be expressed.
fn start() -> Instant {
    *START.get_or_init(|| Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or_else(Instant::now))
}
