//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let refuse = || format!("\"{text}\" is not an Ethernet address like 02:00:00:00:00:01");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(refuse)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        match parts.next() {
            None => Ok(Mac(octets)),
            Some(_) => Err(refuse()),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_parse_strictly() {
        let text = "02:ab:00:00:00:ff";
        assert_eq!(text.parse::<Mac>().map(|m| m.to_string()), Ok(text.into()));
        for wrong in ["", "02:ab:00:00:00", "02:ab:00:00:00:ff:01", "2:ab:0:0:0:ff", "+2:ab:00:00:00:ff"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
