//! The sizes that are measured, and the packets of a batch for each.

use std::fmt;
use std::str::FromStr;

use crate::packet::Mix;

/// Packets that go round together, but for the mix: about what a busy queue yields at a time, and few enough
/// frames for the second-level cache.
pub const BATCH: usize = 64;

/// The smallest packet that can be built, IPv4 and UDP with nothing in it; the largest of which the sealed
/// message still fits the largest frame of memory.
const LIMITS: std::ops::RangeInclusive<usize> = 28..=60_000;

/// How large the inner IP packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All the same, in bytes.
    Bytes(usize),
    /// A mix of small, middle and large ones: see [`Size::packets`].
    Imix,
}

impl Size {
    /// What is measured unless asked otherwise: the smallest packet, a middle one, what fills a tunnel of MTU
    /// 1420, the mix, and a jumbo frame's.
    pub const ALL: [Size; 5] = [Size::Bytes(64), Size::Bytes(512), Size::Bytes(1420), Size::Imix, Size::Bytes(9000)];

    /// The sizes of a batch's packets in bytes, in the order of sending. The mix is whole and evenly spread: 28
    /// packets of 46 bytes, 16 of 552 and 4 of 1500, which are Ethernet frames of 64, 570 and 1518.
    pub fn packets(self) -> Vec<usize> {
        match self {
            Size::Bytes(bytes) => vec![bytes; BATCH],
            Size::Imix => Mix::imix(0).sizes().to_vec(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => write!(f, "{bytes} B"),
            Size::Imix => write!(f, "IMIX"),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Size::Imix);
        }
        let bytes = text.parse().ok().filter(|bytes| LIMITS.contains(bytes));
        bytes.map(Size::Bytes).ok_or_else(|| {
            format!("\"{text}\" is neither \"imix\" nor a number of bytes from {} to {}", LIMITS.start(), LIMITS.end())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_exact_and_spread() {
        let packets = Size::Imix.packets();
        let of = |bytes| packets.iter().filter(|packet| **packet == bytes).count();
        assert_eq!((of(46), of(552), of(1500), packets.len()), (28, 16, 4, 48));
        for dozen in packets.chunks(12) {
            let of = |bytes| dozen.iter().filter(|packet| **packet == bytes).count();
            assert_eq!((of(46), of(552), of(1500)), (7, 4, 1), "{dozen:?}");
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, size) in [("64", Size::Bytes(64)), ("IMIX", Size::Imix), ("imix", Size::Imix)] {
            assert_eq!(text.parse(), Ok(size));
        }
        for wrong in ["", "27", "60001", "-64", "64 B", "mix"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
