//! Limits the bytes of padded probes that are sent.

use std::time::{Duration, Instant};

use super::constants::{PATH_BURST, PATH_BYTES_PER_SECOND, TOTAL_BURST, TOTAL_BYTES_PER_SECOND};
use crate::Bucket;

/// The budget of one path, or of all together.
pub(crate) struct ByteBudget {
    bucket: Bucket,
    per_second: u32,
    burst: u32,
}

impl ByteBudget {
    pub fn of_path() -> Self {
        Self { bucket: Bucket::default(), per_second: PATH_BYTES_PER_SECOND, burst: PATH_BURST }
    }

    pub fn of_all() -> Self {
        Self { bucket: Bucket::default(), per_second: TOTAL_BYTES_PER_SECOND, burst: TOTAL_BURST }
    }

    /// Takes this many bytes from the budget. What is urgent, confirming a size in use, may use the whole burst.
    pub fn take(&mut self, now: Instant, bytes: u32, urgent: bool) -> bool {
        let time = |bytes: u32| Duration::from_secs(1) * bytes / self.per_second;
        let full = if urgent { self.burst } else { self.burst / 2 };
        self.bucket.take(now, time(bytes), time(full))
    }
}
