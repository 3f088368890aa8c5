//! What share of the tunnel's packets AF_XDP carries at all. The program leaves to the kernel what a ring cannot take:
//! too large a packet, a queue without a socket, a frame without room in front. When that is most of the traffic,
//! AF_XDP costs more than it gains.

use std::collections::BTreeMap;
use std::fmt;

use penstock_dataplane::clock::Millis;

/// How long frames are counted before they are compared.
const WINDOW: Millis = Millis(5_000);
/// How many windows in a row have to agree.
const WINDOWS: u8 = 3;
/// Fewer frames than this in a window, a hundred a second, say nothing about which way is faster.
const BUSY: u64 = 500;

/// Most of the tunnel's frames do not come to the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Frames for the tunnel in a window.
    pub frames: u64,
    /// Those of them that the program left to the kernel.
    pub to_kernel: u64,
    /// The verdict by which it left most of them, by its counter's name.
    pub verdict: &'static str,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, to_kernel, verdict } = self;
        write!(f, "of {frames} frames for the tunnel {to_kernel} still went to the kernel, most because of {verdict}")
    }
}

/// Compares the frames that a program has redirected with the tunnel's frames that it has left to the kernel.
#[derive(Clone, Debug, Default)]
pub struct Share {
    began: Option<(Millis, u64, BTreeMap<&'static str, u64>)>,
    /// How many windows in a row have found the same.
    same: u8,
    missing: bool,
    /// What the last windows found.
    pub missed: Option<Missed>,
}

impl Share {
    /// Nothing is known about the time since the last counters.
    pub fn forgive(&mut self) {
        self.began = None;
    }

    /// Takes frames redirected, and frames left to the kernel by verdict, since the program was attached. Returns whether
    /// [`Self::missed`] has changed, apart from its numbers.
    pub fn handle(&mut self, now: Millis, redirected: u64, left: &BTreeMap<&'static str, u64>) -> bool {
        let Some((since, redirected_before, left_before)) = &self.began else {
            self.began = Some((now, redirected, left.clone()));
            return false;
        };
        if now.since(*since) < WINDOW {
            return false;
        }
        let grown = |(verdict, frames): (&&'static str, &u64)| {
            (*verdict, frames.saturating_sub(left_before.get(*verdict).copied().unwrap_or_default()))
        };
        let by_verdict: Vec<(&'static str, u64)> = left.iter().map(grown).collect();
        let to_kernel = by_verdict.iter().map(|(_, frames)| frames).sum();
        let frames = redirected.saturating_sub(*redirected_before) + to_kernel;
        let verdict = by_verdict.into_iter().max_by_key(|(_, frames)| *frames).map_or("", |(verdict, _)| verdict);
        self.began = Some((now, redirected, left.clone()));
        if frames < BUSY {
            self.same = 0;
            return false;
        }
        let missing = to_kernel * 4 > frames * 3;
        self.same = if missing == self.missing { self.same.saturating_add(1) } else { 1 };
        self.missing = missing;
        if self.same < WINDOWS {
            return false;
        }
        let missed = missing.then_some(Missed { frames, to_kernel, verdict });
        let changed = missed.is_some() != self.missed.is_some();
        self.missed = missed;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames per second to the ring and to the kernel.
    struct Traffic {
        share: Share,
        now: u64,
        redirected: u64,
        left: BTreeMap<&'static str, u64>,
    }

    impl Traffic {
        fn new() -> Self {
            Self { share: Share::default(), now: 0, redirected: 0, left: BTreeMap::new() }
        }

        /// Returns after how many seconds of this traffic the verdict changes, if within a minute.
        fn changes_after(&mut self, to_ring: u64, to_kernel: u64) -> Option<u64> {
            (1..=60).find(|_| {
                self.now += 1_000;
                self.redirected += to_ring;
                *self.left.entry("merged").or_default() += to_kernel;
                *self.left.entry("no_socket").or_default() += to_kernel / 10;
                self.share.handle(Millis(self.now), self.redirected, &self.left)
            })
        }
    }

    #[test]
    fn most_frames_for_some_time_are_needed_in_both_directions() {
        let mut traffic = Traffic::new();
        assert_eq!(traffic.changes_after(1_000, 1_000), None, "half of them is not most");
        let after = traffic.changes_after(100, 1_000).expect("most");
        assert!((15..=20).contains(&after), "{after}");
        assert_eq!(traffic.share.missed.as_ref().map(|missed| missed.verdict), Some("merged"));
        assert_eq!(traffic.changes_after(100, 1_000), None, "it is said once");
        assert_eq!(traffic.changes_after(0, 0), None, "silence changes nothing");
        let after = traffic.changes_after(1_000, 100).expect("it is over");
        assert!((15..=20).contains(&after), "{after}");
        assert_eq!(traffic.share.missed, None);
    }

    #[test]
    fn few_frames_and_bursts_say_nothing() {
        let mut traffic = Traffic::new();
        assert_eq!(traffic.changes_after(0, 50), None);
        for _ in 0..6 {
            for (to_ring, to_kernel) in [(0, 5_000), (5_000, 0)] {
                (0..5).for_each(|_| {
                    traffic.now += 1_000;
                    traffic.redirected += to_ring;
                    *traffic.left.entry("merged").or_default() += to_kernel;
                    assert!(!traffic.share.handle(Millis(traffic.now), traffic.redirected, &traffic.left));
                });
            }
        }
    }

    /// After a pause in which nothing was counted, a new window starts.
    #[test]
    fn what_was_not_counted_is_not_compared() {
        let mut traffic = Traffic::new();
        traffic.changes_after(1_000, 0);
        traffic.share.forgive();
        assert!(!traffic.share.handle(Millis(traffic.now + 600_000), traffic.redirected, &traffic.left));
        assert_eq!(traffic.share.began.as_ref().map(|(since, ..)| since.0), Some(traffic.now + 600_000));
    }
}
