//! Sizes of packets: one for all, or a repeated mix of several.

use std::fmt;
use std::str::FromStr;

use super::ETHERNET_LEN;

/// Bytes of an Ethernet frame's check sequence, which RFC 2544 counts and AF_XDP never shows.
pub const FRAME_CHECK_LEN: usize = 4;
/// The "simple IMIX": how many frames of which size, check sequence included.
const IMIX: [(usize, usize); 3] = [(28, 64), (16, 570), (4, 1518)];
/// Longest mix: more would only be a longer table.
const LONGEST: usize = 255;

/// Sizes of IP packets in the order in which they are sent, over and over (RFC 6985 calls it a genome).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    name: String,
    sizes: Vec<usize>,
}

impl Mix {
    /// IP packets of one size.
    pub fn packets(size: usize) -> Mix {
        Mix { name: format!("{size} B packets"), sizes: vec![size] }
    }

    /// Ethernet frames of one size, check sequence included, as RFC 2544 counts; `None` if there is no
    /// room for the Ethernet header.
    pub fn frames(size: usize) -> Option<Mix> {
        Some(Mix { name: format!("{size} B"), sizes: vec![packet_len(size)?] })
    }

    /// The simple IMIX: 28 frames of 64, 16 of 570 and 4 of 1518 B, evenly spread. A packet shorter than
    /// `least` (IPv6 needs more than 64 B) is made that long.
    pub fn imix(least: usize) -> Mix {
        let total: usize = IMIX.iter().map(|(weight, _)| weight).sum();
        let mut sent = [0; IMIX.len()];
        let sizes = (1..=total).map(|n| {
            // Whichever is furthest behind its share comes next.
            let behind = |i: usize| (IMIX[i].0 * n) as isize - (sent[i] * total) as isize;
            let next = (0..IMIX.len()).max_by_key(|&i| behind(i)).unwrap_or(0);
            sent[next] += 1;
            packet_len(IMIX[next].1).unwrap_or(0).max(least)
        });
        Mix { name: "IMIX".into(), sizes: sizes.collect() }
    }

    /// A mix of the command line: "imix" in any case, or frame sizes.
    ///
    /// # Errors
    /// It is neither, as a sentence.
    pub fn read(text: &str, least: usize) -> Result<Mix, String> {
        match text.eq_ignore_ascii_case("imix") {
            true => Ok(Mix::imix(least)),
            false => text.parse(),
        }
    }

    /// For people: "64 B", "IMIX".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes of IP packets, never empty, at most 255.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Bytes of the mean IP packet.
    pub fn mean(&self) -> f64 {
        self.sizes.iter().sum::<usize>() as f64 / self.sizes.len() as f64
    }
}

fn packet_len(frame: usize) -> Option<usize> {
    frame.checked_sub(ETHERNET_LEN + FRAME_CHECK_LEN)
}

/// Frame sizes with check sequence, in the order of sending: "64+64+1518".
impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let refuse = || format!("\"{text}\" is not a frame size in bytes like 64, or several like 64+64+1518");
        let size = |part: &str| part.parse().ok().and_then(packet_len).ok_or_else(refuse);
        let sizes: Vec<usize> = text.split('+').map(size).collect::<Result<_, _>>()?;
        match sizes.len() {
            1 => Ok(Mix { name: format!("{text} B"), sizes }),
            2..=LONGEST => Ok(Mix { name: format!("mix {text}"), sizes }),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simple_imix_has_its_shares_and_is_spread() {
        let mix = Mix::imix(0);
        let count = |size| mix.sizes().iter().filter(|&&s| s == size).count();
        assert_eq!((count(46), count(552), count(1500)), (28, 16, 4));
        assert_eq!(mix.mean(), (28 * 46 + 16 * 552 + 4 * 1500) as f64 / 48.0);
        // Each quarter of the mix has a quarter of the packets of each size.
        for quarter in mix.sizes().chunks(12) {
            assert_eq!(quarter.iter().filter(|&&s| s == 46).count(), 7);
            assert_eq!(quarter.iter().filter(|&&s| s == 1500).count(), 1);
        }
        assert_eq!(Mix::imix(64).sizes().iter().min(), Some(&64));
    }

    #[test]
    fn mixes_are_read_strictly() {
        assert_eq!("64".parse::<Mix>(), Ok(Mix::frames(64).expect("long enough")));
        assert_eq!("64+1518".parse::<Mix>().map(|mix| mix.sizes().to_vec()), Ok(vec![46, 1500]));
        for imix in ["imix", "IMIX", "Imix"] {
            assert_eq!(Mix::read(imix, 64), Ok(Mix::imix(64)));
        }
        assert_eq!(Mix::read("64", 0), "64".parse());
        assert!(Mix::read("mix", 0).is_err());
        for wrong in ["", "17", "64+", "-64", "64,64", &"64+".repeat(300)] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }
}
