//! Longest-prefix match, as an immutable snapshot: one hash table per prefix length in use, searched from the longest
//! to the shortest. A site has few different lengths, so a lookup is a probe or two.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

/// A map from prefixes to values; the most specific prefix that contains an address wins.
#[derive(Clone, Debug)]
pub struct PrefixMap<T> {
    v4: Vec<Length<u32, T>>,
    v6: Vec<Length<u128, T>>,
}

#[derive(Clone, Debug)]
struct Length<K, T> {
    mask: K,
    entries: HashMap<K, T, BuildHasherDefault<Mix>>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T> PrefixMap<T> {
    /// Adds a prefix; host bits of `address` are ignored, and lengths beyond the address are clamped. An existing value
    /// is replaced and returned.
    pub fn insert(&mut self, address: IpAddr, length: u8, value: T) -> Option<T> {
        match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
                insert(&mut self.v4, a.to_bits(), mask, value)
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
                insert(&mut self.v6, a.to_bits(), mask, value)
            }
        }
    }

    /// The value of the longest prefix that contains the address.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(a) => {
                let a = a.to_bits();
                self.v4.iter().find_map(|l| l.entries.get(&(a & l.mask)))
            }
            IpAddr::V6(a) => {
                let a = a.to_bits();
                self.v6.iter().find_map(|l| l.entries.get(&(a & l.mask)))
            }
        }
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.v4.iter().map(|l| l.entries.len()).sum::<usize>() + self.v6.iter().map(|l| l.entries.len()).sum::<usize>()
    }

    /// Whether there are no prefixes.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// The last answer about an address: packets of one flow come in runs.
#[derive(Debug)]
pub(crate) struct Last<T>(Option<(IpAddr, T)>);

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Copy> Last<T> {
    /// The answer about this address, which is only asked for if it is not the last one's.
    #[inline]
    pub(crate) fn or_ask(&mut self, address: IpAddr, ask: impl FnOnce(IpAddr) -> T) -> T {
        match self.0 {
            Some((last, answer)) if last == address => answer,
            _ => self.0.insert((address, ask(address))).1,
        }
    }
}

fn insert<K, T>(lengths: &mut Vec<Length<K, T>>, address: K, mask: K, value: T) -> Option<T>
where
    K: Copy + Ord + Eq + std::hash::Hash + std::ops::BitAnd<Output = K>,
{
    // Longer prefixes have larger masks: the list is kept in descending order.
    let at = match lengths.binary_search_by(|l| mask.cmp(&l.mask)) {
        Ok(at) => at,
        Err(at) => {
            lengths.insert(at, Length { mask, entries: HashMap::default() });
            at
        }
    };
    lengths[at].entries.insert(address & mask, value)
}

/// A multiplicative hash. The keys come from configuration, so nobody can choose collisions; it also serves receiver
/// indices, which we choose at random.
#[derive(Clone, Debug, Default)]
pub struct Mix(u64);

impl Mix {
    #[inline]
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    #[inline]
    fn write_u128(&mut self, word: u128) {
        self.mix(word as u64);
        self.mix((word >> 64) as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn the_most_specific_prefix_wins() {
        let mut map = PrefixMap::default();
        map.insert(ip("0.0.0.0"), 0, 0);
        map.insert(ip("10.0.0.0"), 8, 8);
        map.insert(ip("10.1.2.3"), 32, 32);
        map.insert(ip("10.1.0.0"), 16, 16);
        map.insert(ip("::"), 0, 100);
        map.insert(ip("fd00:1::"), 32, 132);
        for (address, value) in
            [("10.1.2.3", 32), ("10.1.2.4", 16), ("10.2.0.1", 8), ("11.0.0.1", 0), ("fd00:1::1", 132), ("fd01::1", 100)]
        {
            assert_eq!(map.lookup(ip(address)), Some(&value), "{address}");
        }
        assert_eq!(map.len(), 6);
    }

    #[test]
    fn a_prefix_is_replaced_whatever_its_host_bits() {
        let mut map = PrefixMap::default();
        assert_eq!(map.insert(ip("10.0.0.1"), 8, 1), None);
        assert_eq!(map.insert(ip("10.9.9.9"), 8, 2), Some(1));
        assert_eq!(map.lookup(ip("10.3.3.3")), Some(&2));
        assert_eq!(map.lookup(ip("fd00::1")), None);
    }

    /// Compared with a naive list, with prefixes that nest and collide.
    #[test]
    fn agrees_with_a_linear_search() {
        let mut seed = 1;
        let mut random = move || crate::random::xorshift(&mut seed);
        for v6 in [false, true] {
            let bits: u32 = if v6 { 128 } else { 32 };
            let address = |r: u64| {
                // Few different high bits, so that prefixes nest.
                if v6 {
                    IpAddr::from(((u128::from(r & 0x0303_0303)) << 96 | u128::from(r >> 32)).to_be_bytes())
                } else {
                    IpAddr::from(((r as u32) & 0x0303_0303).to_be_bytes())
                }
            };
            let number = |a: IpAddr| match a {
                IpAddr::V4(a) => u128::from(a.to_bits()),
                IpAddr::V6(a) => a.to_bits(),
            };
            let (mut map, mut list) = (PrefixMap::default(), Vec::<(u128, u32, usize)>::new());
            for value in 0..400 {
                let (a, length) = (address(random()), (random() % u64::from(bits + 1)) as u32);
                map.insert(a, length as u8, value);
                let key = if length == 0 { 0 } else { number(a) >> (bits - length) };
                list.retain(|e| (e.0, e.1) != (key, length));
                list.push((key, length, value));
            }
            for _ in 0..20_000 {
                let a = address(random());
                let naive = list
                    .iter()
                    .filter(|(key, length, _)| *length == 0 || number(a) >> (bits - length) == *key)
                    .max_by_key(|e| e.1)
                    .map(|e| e.2);
                assert_eq!(map.lookup(a).copied(), naive, "{a}");
            }
        }
    }
}
