//! How fast a cipher is on this machine, for the choice of a suite.

use std::time::{Duration, Instant};

use crate::{Cipher, Key, NONCE, Opening, Sealing, Suite, TAG};

/// A batch of full-size packets.
const MESSAGES: usize = 32;
const LENGTH: usize = 1424;

impl Cipher {
    /// Bytes per second that this thread seals and opens with `suite` in batches of full-size packets. Takes `time`, or
    /// as long as one batch; the best batch counts, so other activity on the machine hardly matters.
    pub fn speed(self, suite: Suite, time: Duration) -> u64 {
        let end = Instant::now() + time;
        // Neither the key nor the text is secret.
        let key = Key::new(suite, &[0; 32]);
        let mut messages = vec![[0_u8; LENGTH + TAG]; MESSAGES];
        let mut best = Duration::MAX;
        loop {
            let begin = Instant::now();
            let mut sealings: Vec<_> = messages.iter_mut().map(|m| Sealing::new(&key, [0; NONCE], m)).collect();
            self.seal_batch(&mut sealings);
            let mut openings: Vec<_> = messages.iter_mut().map(|m| Opening::new(&key, [0; NONCE], m, 0)).collect();
            self.open_batch(&mut openings);
            let now = Instant::now();
            best = best.min(now - begin);
            if now >= end {
                break;
            }
        }
        let bytes = 2 * MESSAGES * LENGTH;
        (bytes as f64 / best.as_secs_f64().max(1e-9)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_measured_in_the_time_that_is_given() {
        for suite in [Suite::ChaCha20Poly1305, Suite::Aes256Gcm] {
            let begin = Instant::now();
            let speed = Cipher::detect().speed(suite, Duration::from_millis(5));
            assert!(begin.elapsed() >= Duration::from_millis(5));
            // From a slow machine without optimization up to sixteen AES units.
            assert!((100_000..100_000_000_000).contains(&speed), "{suite:?}: {speed}");
            assert!(Cipher::detect().speed(suite, Duration::ZERO) > 0, "one batch at least");
        }
    }
}
