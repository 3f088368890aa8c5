//! A rate as the profile writes it: `20 Mbit/s`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The units, from the largest: one is 1000 of the next.
const UNITS: [(&str, u64); 3] = [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000)];
/// From 64 kbit/s, in which a second has five full packets, to 1000 Gbit/s.
const BOUNDS: std::ops::RangeInclusive<u64> = 64_000..=1_000_000_000_000;

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// In bits per second.
    #[must_use]
    pub fn bits_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = UNITS.into_iter().find_map(|(unit, bits)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(bits)
        });
        rate.filter(|rate| BOUNDS.contains(rate)).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is not a rate: a whole number of kbit/s, Mbit/s or Gbit/s, from \"64 kbit/s\" to \"1000 Gbit/s\""
            )
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [.., last] = UNITS;
        let (unit, bits) = UNITS.into_iter().find(|(_, bits)| self.0.is_multiple_of(*bits)).unwrap_or(last);
        write!(f, "{} {unit}", self.0 / bits)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate such as \"20 Mbit/s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown() {
        for (text, bits, shown) in [
            ("20 Mbit/s", 20_000_000, "20 Mbit/s"),
            ("20Mbit/s", 20_000_000, "20 Mbit/s"),
            ("1500 kbit/s", 1_500_000, "1500 kbit/s"),
            ("2000 kbit/s", 2_000_000, "2 Mbit/s"),
            ("1000 Gbit/s", 1_000_000_000_000, "1000 Gbit/s"),
            ("64 kbit/s", 64_000, "64 kbit/s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.bits_per_second(), rate.to_string().as_str()), (bits, shown));
        }
        let absurd = format!("{} Gbit/s", u64::MAX);
        for text in ["", "20", "Mbit/s", "-1 Mbit/s", "1.5 Mbit/s", "63 kbit/s", "1001 Gbit/s", "20 MB/s", &absurd] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
