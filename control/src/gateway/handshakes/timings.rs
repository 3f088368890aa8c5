//! The handshakes' timings.

use std::time::Duration;

use anyhow::{Result, anyhow};
use penstock_proto::Timings;

/// Shortens the handshakes' timings, for tests.
const TEST_REKEY: &str = "PENSTOCK_TEST_REKEY_AFTER_SECONDS";

/// WireGuard's timings, unless a test wants them shorter. Release builds have no such switch.
pub fn timings() -> Result<Timings> {
    if !cfg!(debug_assertions) {
        return Ok(Timings::default());
    }
    let Ok(text) = std::env::var(TEST_REKEY) else { return Ok(Timings::default()) };
    let seconds: u64 = text
        .parse()
        .ok()
        .filter(|seconds| (1..=120).contains(seconds))
        .ok_or_else(|| anyhow!("{TEST_REKEY}={text:?} is not a number of seconds from 1 to 120"))?;
    tracing::warn!("{TEST_REKEY}={seconds}: TIMINGS ARE SHORTENED FOR TESTS; never run a site like this");
    Ok(shortened(Duration::from_secs(seconds)))
}

fn shortened(rekey_after: Duration) -> Timings {
    let real = Timings::default();
    let scale = rekey_after.as_secs_f64() / real.rekey_after_time.as_secs_f64();
    Timings {
        rekey_after_time: rekey_after,
        reject_after_time: real.reject_after_time.mul_f64(scale),
        rekey_timeout: real.rekey_timeout.mul_f64(scale).max(Duration::from_millis(200)),
        rekey_timeout_jitter: real.rekey_timeout_jitter.mul_f64(scale),
        keepalive_timeout: real.keepalive_timeout.mul_f64(scale).max(Duration::from_millis(400)),
        ..real
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_timings_keep_their_order() {
        for seconds in [1, 3, 10, 120] {
            let t = shortened(Duration::from_secs(seconds));
            assert!(t.rekey_after_time < t.reject_after_time);
            assert!(t.keepalive_timeout + t.rekey_timeout < t.reject_after_time, "{seconds}");
        }
        assert_eq!(shortened(Duration::from_secs(120)), Timings::default());
    }
}
