//! Times in seconds since 1970, and how people write them.

use std::time::{SystemTime, UNIX_EPOCH};

/// The present time. No other machine's clock is asked or believed.
#[must_use]
pub fn now() -> u64 {
    seconds(SystemTime::now())
}

/// A point in time; 0 if it is before 1970.
#[must_use]
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A number of seconds in the largest unit that fits twice.
#[must_use]
pub fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_grows_with_the_time() {
        let times = [0, 119, 120, 7199, 7200, 172_799, 172_800];
        assert_eq!(times.map(rough), ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
    }
}
