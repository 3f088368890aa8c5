//! Replaces addresses, names and public keys in texts, each by the same replacement everywhere, so that what belongs
//! together can still be recognised.
//!
//! - Addresses keep their structure: two from one subnet are from one subnet afterwards, at every prefix length. The
//!   kind of an address (private, link-local, loopback, multicast) is kept as well.
//! - MAC addresses keep the manufacturer's part.
//! - A public key or a certificate's fingerprint becomes another text of 32 bytes, in base64 or in hexadecimal.
//! - Known names, those of sites, relays and hosts, are replaced wherever they stand as words.
//!
//! The secret that decides on the replacements lives as long as the [`Anonymiser`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::prelude::{BASE64_STANDARD, Engine};
use blake2::Blake2sMac256;
use blake2::digest::Mac;

use crate::key::PublicKey;

/// Characters of a key's base64.
const KEY_LENGTH: usize = 44;
/// Hexadecimal digits of a fingerprint or key.
const HEX_LENGTH: usize = 64;

/// Replaces everything that shows whose text it is.
pub struct Anonymiser {
    secret: [u8; 32],
    /// Names and their replacements.
    names: BTreeMap<String, String>,
}

impl Anonymiser {
    /// With a fresh secret.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret, names: BTreeMap::new() }
    }

    /// Registers a name of this kind ("site", "host") for replacement. Addresses are not taken as names, and the first
    /// kind of a name counts.
    pub fn add(&mut self, kind: &str, name: &str) {
        let is_address = name.parse::<IpAddr>().is_ok();
        if !name.is_empty() && !is_address && !self.names.contains_key(name) {
            let number = self.names.values().filter(|known| known.starts_with(kind)).count() + 1;
            self.names.insert(name.to_owned(), format!("{kind}-{number}"));
        }
    }

    /// The text with everything replaced.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        // The character before the current position.
        let mut before = None;
        while let Some(first) = rest.chars().next() {
            let (length, replaced) = match before.is_some_and(is_part) {
                true => (first.len_utf8(), None),
                false => self.replace(rest),
            };
            let (taken, after) = rest.split_at(length);
            match replaced {
                Some(other) => out.push_str(&other),
                None => out.push_str(taken),
            }
            before = taken.chars().next_back();
            rest = after;
        }
        out
    }

    /// What is at the beginning of a text: its length, and its replacement.
    fn replace(&self, text: &str) -> (usize, Option<String>) {
        self.address(text)
            .or_else(|| self.key(text))
            .or_else(|| self.hex(text))
            .or_else(|| self.name(text))
            .map_or_else(
                || (text.chars().next().map_or(1, char::len_utf8), None),
                |(length, other)| (length, Some(other)),
            )
    }

    fn name(&self, text: &str) -> Option<(usize, String)> {
        let fits = |(name, _): &(&String, &String)| {
            text.strip_prefix(name.as_str()).is_some_and(|after| !after.starts_with(is_part))
        };
        // The longest match: "a.example" before "a".
        let (name, other) = self.names.iter().filter(fits).max_by_key(|(name, _)| name.len())?;
        Some((name.len(), other.clone()))
    }

    /// A public key in base64.
    fn key(&self, text: &str) -> Option<(usize, String)> {
        let key = text.get(..KEY_LENGTH)?;
        if text[KEY_LENGTH..].starts_with(|c: char| is_part(c) || c == '=') {
            return None;
        }
        let bytes = BASE64_STANDARD.decode(key).ok().filter(|bytes| bytes.len() == 32)?;
        Some((KEY_LENGTH, BASE64_STANDARD.encode(self.hash(b"key", &bytes))))
    }

    /// A fingerprint or a public key in hexadecimal.
    fn hex(&self, text: &str) -> Option<(usize, String)> {
        let digits = text.get(..HEX_LENGTH).filter(|_| !text[HEX_LENGTH..].starts_with(is_part))?;
        let bytes = PublicKey::from_hex(digits).ok()?;
        Some((HEX_LENGTH, PublicKey::from_bytes(self.hash(b"key", bytes.as_bytes())).to_hex()))
    }

    /// An IP address, perhaps with a prefix length, or a MAC address.
    fn address(&self, text: &str) -> Option<(usize, String)> {
        let run = text.find(|c: char| !c.is_ascii_hexdigit() && c != ':' && c != '.').unwrap_or(text.len());
        if text[run..].starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return None;
        }
        if let Some(mac) = text.get(..17).filter(|_| run == 17).and_then(|mac| self.mac(mac)) {
            return Some((17, mac));
        }
        // A port, or the end of a sentence, may follow.
        let mut ends: Vec<usize> = vec![run];
        ends.extend(text[..run].rmatch_indices([':', '.']).map(|(at, _)| at));
        let (end, address) = ends.into_iter().find_map(|end| Some((end, text[..end].parse::<IpAddr>().ok()?)))?;
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let digits =
            text[end..].strip_prefix('/').map_or(0, |after| after.bytes().take_while(u8::is_ascii_digit).count());
        let length = text.get(end + 1..end + 1 + digits).and_then(|digits| digits.parse::<u32>().ok());
        let length = length.filter(|length| *length <= bits).unwrap_or(bits);
        Some((end, self.ip(address, length).to_string()))
    }

    fn mac(&self, text: &str) -> Option<String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts.next().filter(|part| part.len() == 2).and_then(|part| u8::from_str_radix(part, 16).ok())?;
        }
        // A group address, or an empty one.
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Some(text.to_owned());
        }
        let hash = self.hash(b"mac", &bytes);
        bytes[3..].copy_from_slice(&hash[..3]);
        Some(bytes.map(|byte| format!("{byte:02x}")).join(":"))
    }

    /// Another address of the same kind. If it is the network address of a prefix of this length, so is the
    /// replacement.
    fn ip(&self, address: IpAddr, length: u32) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                let bits = u128::from(v4.to_bits()) << 96;
                let other = self.scramble(4, bits, kept_v4(v4), 32, length);
                Ipv4Addr::from_bits((other >> 96) as u32).into()
            }
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => match self.ip(v4.into(), length.saturating_sub(96)) {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
                    v6 => v6,
                },
                None => Ipv6Addr::from_bits(self.scramble(6, v6.to_bits(), kept_v6(v6), 128, length)).into(),
            },
        }
    }

    /// Flips each bit between `kept` and `length`, or not, depending on the bits before it and the secret: so two
    /// addresses that share their first n bits still share them.
    fn scramble(&self, version: u8, bits: u128, kept: u32, all: u32, length: u32) -> u128 {
        let after_length = bits.checked_shl(length).unwrap_or(0);
        let end = if after_length == 0 { length } else { all };
        let mut other = bits;
        for at in kept..end {
            let prefix = if at == 0 { 0 } else { bits >> (128 - at) };
            let [first, ..] = self.hash(&[version, at as u8], &prefix.to_be_bytes());
            other ^= u128::from(first & 1) << (127 - at);
        }
        other
    }

    fn hash(&self, kind: &[u8], bytes: &[u8]) -> [u8; 32] {
        let mac = Blake2sMac256::new_from_slice(&self.secret).expect("a key of 32 bytes is allowed");
        mac.chain_update(kind).chain_update(bytes).finalize().into_bytes().into()
    }
}

/// Whether this character, before or after a match, makes it part of a longer word.
fn is_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '+')
}

/// How many bits determine the kind of address; all of them, if the address means the same everywhere.
fn kept_v4(address: Ipv4Addr) -> u32 {
    match address.octets() {
        [0 | 127 | 224..=255, ..] => 32,
        [10, ..] => 8,
        [169, 254, ..] | [192, 168, ..] => 16,
        [172, 16..=31, ..] => 12,
        [100, 64..=127, ..] => 10,
        // Blocks with a private range in them.
        [100 | 169 | 172 | 192, ..] => 16,
        _ => 8,
    }
}

fn kept_v6(address: Ipv6Addr) -> u32 {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, _] | [0xff00..=0xffff, ..] => 128,
        [0xfe80..=0xfebf, ..] => 64,
        [0xfc00..=0xfdff, ..] => 8,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymiser() -> Anonymiser {
        let mut anonymiser = Anonymiser::new([7; 32]);
        anonymiser.add("site", "berlin");
        anonymiser.add("host", "gw.berlin.example.net");
        anonymiser.add("site", "a");
        anonymiser.add("host", "192.0.2.1");
        anonymiser
    }

    fn common(a: &str, b: &str) -> u32 {
        let bits = |text: &str| text.parse::<Ipv4Addr>().unwrap().to_bits();
        (bits(a) ^ bits(b)).leading_zeros()
    }

    #[test]
    fn names_are_replaced_as_words() {
        let anonymous =
            anonymiser().apply("berlin: gw.berlin.example.net:443 (a) \"berlin\" berlins a-b alpha 1a eth0");
        assert_eq!(anonymous, "site-1: host-1:443 (site-2) \"site-1\" berlins site-2-b alpha 1a eth0");
    }

    #[test]
    fn the_same_address_becomes_the_same_and_subnets_stay_subnets() {
        let anonymiser = anonymiser();
        let one = |text: &str| anonymiser.apply(text);
        for (a, b) in [("203.0.113.1", "203.0.113.77"), ("203.0.113.1", "203.0.112.1"), ("10.1.2.3", "10.9.2.3")] {
            assert_eq!(common(a, b), common(&one(a), &one(b)), "{a} {b}");
            assert_ne!(one(a), a);
        }
        assert!(one("10.1.2.3").starts_with("10.") && one("192.168.9.9").starts_with("192.168."));
        let text = one("from 203.0.113.1:47100, 203.0.113.1. [2001:db8::1]:5 fe80::1%eth0 2001:db8::1");
        let words: Vec<&str> = text.split(' ').collect();
        let address = one("203.0.113.1");
        assert_eq!(words[1..3], [format!("{address}:47100,"), format!("{address}.")]);
        assert_eq!(words[3], format!("[{}]:5", words[5]));
        assert!(words[4].starts_with("fe80::") && words[4].ends_with("%eth0"), "{text}");
    }

    #[test]
    fn prefixes_stay_prefixes() {
        let anonymiser = anonymiser();
        for prefix in ["203.0.113.0/24", "10.102.0.0/16", "2001:db8:1::/48", "fd00:101::/64", "0.0.0.0/0", "::/0"] {
            let other: ipnet::IpNet = anonymiser.apply(prefix).parse().unwrap();
            assert_eq!(other.addr(), other.network(), "{prefix} became {other}");
            let inside = prefix.parse::<ipnet::IpNet>().unwrap().hosts().nth(5).unwrap().to_string();
            assert!(other.contains(&anonymiser.apply(&inside).parse::<IpAddr>().unwrap()), "{prefix} {other} {inside}");
        }
    }

    #[test]
    fn what_tells_nothing_stays() {
        let text = "127.0.0.1 ::1 0.0.0.0/0 ::/0 255.255.255.255 ff02::1 224.0.0.1 12:34:56 v6.18.15 deadbeef \
                    ff:ff:ff:ff:ff:ff 00:00:00:00:00:00 mtu 1500 face::x 1.5 ms \u{e4}";
        assert_eq!(anonymiser().apply(text), text);
    }

    #[test]
    fn keys_and_macs_become_others_of_their_form() {
        let anonymiser = anonymiser();
        let key = BASE64_STANDARD.encode([9; 32]);
        let other = anonymiser.apply(&key);
        assert!(other != key && BASE64_STANDARD.decode(&other).unwrap().len() == 32);
        assert_eq!(anonymiser.apply(&format!("\"{key}\",{key}")), format!("\"{other}\",{other}"));
        let fingerprints = [9, 8].map(|byte| format!("{byte:02x}").repeat(32)).join(",");
        let others = anonymiser.apply(&fingerprints);
        assert!(others != fingerprints && others.len() == fingerprints.len() && others.as_bytes()[64] == b',');
        let mac = anonymiser.apply("52:54:00:12:34:56");
        assert!(mac.starts_with("52:54:00:") && mac != "52:54:00:12:34:56" && mac.len() == 17);
    }
}
