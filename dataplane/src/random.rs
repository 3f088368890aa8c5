//! Random numbers for tests, the same in each run.

/// The next number after `seed`, which must not be 0 (Marsaglia, "Xorshift RNGs").
pub(crate) fn xorshift(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}
