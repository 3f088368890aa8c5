//! The replay window of RFC 6479: a ring of blocks of bits. The newest block is cleared as the window moves, so that
//! nothing is ever shifted.

/// Bits in the ring.
const BITS: u64 = 8192;
const BLOCK_BITS: u64 = u64::BITS as u64;
const BLOCKS: usize = (BITS / BLOCK_BITS) as usize;

/// How far behind the newest counter a packet may be: one block is always being cleared.
pub const WINDOW: u64 = BITS - BLOCK_BITS;

/// The counters that were seen.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the highest counter seen.
    next: u64,
    blocks: [u64; BLOCKS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, blocks: [0; BLOCKS] }
    }
}

impl ReplayWindow {
    /// Marks a counter as seen; `false` if it already was, or is too old to know. Call this only after the packet was
    /// authenticated.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        // The reject limit keeps counters far below the maximum.
        if counter == u64::MAX || counter + WINDOW + 1 < self.next {
            return false;
        }
        let block = counter / BLOCK_BITS;
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / BLOCK_BITS;
            let passed = (block - newest).min(BLOCKS as u64);
            for b in 1..=passed {
                self.blocks[(newest + b) as usize % BLOCKS] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = (&mut self.blocks[block as usize % BLOCKS], 1 << (counter % BLOCK_BITS));
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// A sequence of counters, and whether each is to be accepted.
    #[test]
    fn edges_of_the_window() {
        const T: u64 = WINDOW;
        let runs: &[&[(u64, bool)]] = &[
            &[(0, true), (0, false), (1, true), (1, false), (9, true), (8, true), (7, true), (7, false)],
            &[
                (T, true),
                (T - 1, true),
                (T - 1, false),
                (T - 2, true),
                (2, true),
                (2, false),
                (T + 16, true),
                (3, false),
            ],
            &[(T + 16, true), (T + 16, false), (16, true), (15, false), (T * 4, true), (T * 4 - (T - 1), true)],
            &[(T * 4, true), (10, false), (T * 4 - T, true), (T * 4 - T - 1, false), (T * 4 - (T - 1), true)],
            &[(T * 4 - 2, true), (T * 4 + 1 - T, true), (0, false), (u64::MAX, false)],
            &[(BITS - 1, true), (BITS, true), (BITS - 1, false), (BITS - BLOCK_BITS, true), (2 * BITS, true)],
        ];
        for run in runs {
            let mut window = ReplayWindow::default();
            for (i, &(counter, fresh)) in run.iter().enumerate() {
                assert_eq!(window.accept(counter), fresh, "{counter} at {i} of {run:?}");
            }
        }
    }

    #[test]
    fn a_whole_window_arrives_backwards() {
        let mut window = ReplayWindow::default();
        assert!((1..=WINDOW + 1).rev().all(|c| window.accept(c)));
        assert!((0..=WINDOW + 1).all(|c| !window.accept(c)));
    }

    /// Compared with a set that remembers everything.
    #[test]
    fn agrees_with_a_set() {
        let (mut window, mut seen, mut highest) = (ReplayWindow::default(), HashSet::new(), 0u64);
        let mut seed = 7u64;
        for _ in 0..200_000 {
            crate::random::xorshift(&mut seed);
            let counter = match seed % 16 {
                0 => highest + (seed >> 8) % (2 * BITS),
                1..=8 => highest + 1,
                _ => highest.saturating_sub((seed >> 8) % (BITS + 100)),
            };
            let fresh = counter + WINDOW >= highest && seen.insert(counter);
            highest = highest.max(counter);
            assert_eq!(window.accept(counter), fresh, "{counter} under {highest}");
        }
    }
}
