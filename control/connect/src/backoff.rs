//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// Pauses that double with every failure, each shortened at random, so that the many clients that lose a server at the
/// same moment do not all come back at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses of up to `first` at the beginning and of up to `longest` later.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause: half of the present length, and a random part of the other half.
    pub fn pause(&mut self) -> Duration {
        let half = self.next / 2;
        self.next = (self.next * 2).min(self.longest);
        half + half.mul_f64(rand::rng().random())
    }

    /// Starts again with the shortest pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut backoff = Backoff::new(first, longest);
        let pauses: Vec<Duration> = (0..50).map(|_| backoff.pause()).collect();
        for (tries, pause) in pauses.iter().enumerate() {
            let full = (first * 2_u32.pow(tries.min(10) as u32)).min(longest);
            assert!(*pause >= full / 2 && *pause <= full, "{tries}: {pause:?}");
        }
        assert!(pauses[20..].windows(2).any(|two| two[0] != two[1]));
        backoff.reset();
        assert!(backoff.pause() <= first);
    }
}
