//! What a measured packet carries: a magic number, its sequence number and its send time, then a pattern.
//!
//! ```text
//! 0      4            10           16
//! │magic │ sequence   │ send time  │ pattern: a function of the position only
//! ```
//! Sixteen bytes, so that the smallest IPv6 packet of interest (64 bytes: 40 + 8 + 16) has room for them.
//! Both numbers are 48 bits, big-endian: a sequence number never wraps, a time wraps after 78 hours, and
//! differences are taken modulo 2^48.

use std::sync::LazyLock;

/// "PSTK".
pub const MAGIC: u32 = 0x5053_544b;
/// Bytes of the stamp, and so the smallest payload.
pub const STAMP_LEN: usize = 16;

const MASK_48: u64 = (1 << 48) - 1;
/// Longer than any payload an AF_XDP frame holds.
const PATTERN_LEN: usize = 4096;

static PATTERN: LazyLock<[u8; PATTERN_LEN]> =
    LazyLock::new(|| std::array::from_fn(|i| (i as u8).wrapping_mul(167) ^ (i >> 8) as u8));

/// Which packet this is and when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counts all packets of a generator, over its flows, from 0.
    pub sequence: u64,
    /// CLOCK_MONOTONIC in nanoseconds modulo 2^48. When the generator is paced this is the time at which
    /// the packet was *due*, so that a stalled generator shows as latency.
    pub sent_at: u64,
}

impl Stamp {
    /// Writes the stamp at the start of a payload of at least [`STAMP_LEN`] bytes.
    #[inline]
    pub fn write(self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        payload[4..10].copy_from_slice(&self.sequence.to_be_bytes()[2..]);
        payload[10..16].copy_from_slice(&self.sent_at.to_be_bytes()[2..]);
    }

    /// Reads the stamp; `None` if the payload is not one of ours.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Stamp> {
        let stamp = payload.first_chunk::<STAMP_LEN>()?;
        let [magic @ .., _, _, _, _, _, _, _, _, _, _, _, _] = *stamp;
        (u32::from_be_bytes(magic) == MAGIC).then(|| Stamp { sequence: read_48(stamp, 4), sent_at: read_48(stamp, 10) })
    }

    /// Nanoseconds from the send time to `now`.
    pub fn age(self, now: u64) -> u64 {
        now.wrapping_sub(self.sent_at) & MASK_48
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the same clock in every process of a machine.
#[inline]
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Fills a payload behind the stamp.
pub fn write_pattern(payload: &mut [u8]) {
    let len = payload.len();
    payload[STAMP_LEN..].copy_from_slice(&PATTERN[STAMP_LEN..len]);
}

/// Is everything behind the stamp as [`write_pattern`] left it?
pub fn pattern_is_intact(payload: &[u8]) -> bool {
    payload.len() <= PATTERN_LEN
        && payload.len() >= STAMP_LEN
        && payload[STAMP_LEN..] == PATTERN[STAMP_LEN..payload.len()]
}

#[inline]
fn read_48(bytes: &[u8; STAMP_LEN], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[2..].copy_from_slice(&bytes[at..at + 6]);
    u64::from_be_bytes(wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_payload() {
        let stamp = Stamp { sequence: 0x1234_5678_9abc, sent_at: MASK_48 };
        let mut payload = [0; 64];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(Stamp::read(&payload[..STAMP_LEN - 1]), None);
        payload[3] ^= 1;
        assert_eq!(Stamp::read(&payload), None);
    }

    #[test]
    fn age_wraps_with_the_clock() {
        let stamp = Stamp { sequence: 0, sent_at: MASK_48 - 9 };
        assert_eq!(stamp.age((1 << 48) + 90), 100);
    }

    #[test]
    fn one_flipped_bit_is_seen() {
        let mut payload = [0; 1400];
        write_pattern(&mut payload);
        assert!(pattern_is_intact(&payload));
        for at in [STAMP_LEN, 700, 1399] {
            payload[at] ^= 4;
            assert!(!pattern_is_intact(&payload));
            payload[at] ^= 4;
        }
    }
}
