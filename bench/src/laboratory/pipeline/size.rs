//! The sizes that are measured, and the packets of a batch for each of them.

use std::fmt;
use std::str::FromStr;

use crate::traffic::packet::Mix;

/// The packets that circulate together, except for the mix: about what a busy queue yields at a time, and few enough
/// frames for the second-level cache.
pub const BATCH: usize = 64;

/// The smallest packet that can be built, IPv4 and UDP without a payload; and the largest whose sealed message still
/// fits the largest frame of memory.
const LIMITS: std::ops::RangeInclusive<usize> = 28..=60_000;

/// How large the inner IP packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All of the same size, in bytes.
    Bytes(usize),
    /// A mix of small, medium and large ones: see [`Size::packets`].
    Imix,
}

impl Size {
    /// The sizes measured by default: the smallest packet, a medium one, one that fills a tunnel of MTU 1420, the mix,
    /// and a jumbo frame's.
    pub const ALL: [Size; 5] = [Size::Bytes(64), Size::Bytes(512), Size::Bytes(1420), Size::Imix, Size::Bytes(9000)];

    /// The sizes of a batch's packets in bytes, in the order in which they are sent. The mix is complete and evenly
    /// spread: 28 packets of 46 bytes, 16 of 552 and 4 of 1500, which are Ethernet frames of 64, 570 and 1518.
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
    fn sizes_are_read_as_they_are_written() {
        for (text, size) in [("64", Size::Bytes(64)), ("IMIX", Size::Imix), ("imix", Size::Imix)] {
            assert_eq!(text.parse(), Ok(size));
        }
        for wrong in ["", "27", "60001", "-64", "64 B", "mix"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
