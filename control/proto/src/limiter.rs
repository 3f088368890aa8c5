//! How many handshakes the gateway does: for all sources together ([`Load`]) and, once that is too many, for each
//! source that has proven its address ([`Limiter`]).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand::RngCore;

use crate::Key;
use crate::constants::{
    LOAD_BURST, LOAD_HANDSHAKES_PER_SECOND, LOAD_HOLD, SOURCE_HANDSHAKE_BURST, SOURCE_HANDSHAKES_PER_SECOND,
};
use crate::cookie::mac;

/// Decides whether the gateway is under load, from the rate of handshakes that would need curve arithmetic.
#[derive(Default)]
pub(crate) struct Load {
    /// When the handshakes seen so far would be worked off at the allowed rate.
    worked_off: Option<Instant>,
    /// The gateway is under load until this time.
    until: Option<Instant>,
}

impl Load {
    /// Counts one handshake and tells whether the gateway is under load.
    pub fn note(&mut self, now: Instant) -> bool {
        const COST: Duration = Duration::from_nanos(1_000_000_000 / LOAD_HANDSHAKES_PER_SECOND as u64);
        let full = COST * LOAD_BURST;
        let before = self.worked_off.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let backlog = before + COST;
        if backlog > full {
            self.until = Some(now + LOAD_HOLD);
        }
        self.worked_off = Some(now + backlog.min(full));
        self.until.is_some_and(|until| now < until)
    }
}

/// A token bucket per source, in a table of fixed size.
///
/// A set that is full forgets the source that was silent for longest. That source starts again with a full bucket, so
/// whoever fills the table can neither lock others out nor make it grow.
pub(crate) struct Limiter {
    secret: Key,
    sets: Vec<[Option<Bucket>; WAYS]>,
}

const SETS: usize = 1024;
const WAYS: usize = 8;
const COST: Duration = Duration::from_nanos(1_000_000_000 / SOURCE_HANDSHAKES_PER_SECOND as u64);
const FULL: Duration = COST.saturating_mul(SOURCE_HANDSHAKE_BURST);

#[derive(Clone, Copy)]
struct Bucket {
    source: Source,
    /// Tokens left at `at`, as the time that it takes to earn them.
    credit: Duration,
    at: Instant,
}

/// An IPv4 address, or the /64 of an IPv6 address, since a host usually has a whole one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Limiter {
    pub fn new(rng: &mut dyn RngCore) -> Self {
        let mut secret = Key::zero();
        rng.fill_bytes(secret.as_mut());
        Self { secret, sets: Vec::new() }
    }

    /// Takes a token from the source's bucket, if it has one.
    pub fn allow(&mut self, now: Instant, ip: IpAddr) -> bool {
        if self.sets.is_empty() {
            self.sets = vec![[None; WAYS]; SETS];
        }
        let source = Source::of(ip);
        let set = &mut self.sets[source.set(&self.secret)];
        let known = set.iter_mut().flatten().find(|bucket| bucket.source == source);
        if let Some(bucket) = known {
            return bucket.take(now);
        }
        if let Some(place) = set.iter_mut().min_by_key(|place| place.map(|bucket| bucket.at)) {
            *place = Some(Bucket { source, credit: FULL - COST, at: now });
        }
        true
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at);
        self.credit = (self.credit + earned).min(FULL);
        self.at = now;
        match self.credit.checked_sub(COST) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }
}

impl Source {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }

    /// The hash is keyed, so that nobody can choose sources that share a set.
    fn set(self, secret: &Key) -> usize {
        let [low, high, ..] = match self {
            Self::V4(ip) => mac(secret.as_bytes(), &[&ip]),
            Self::V6(net) => mac(secret.as_bytes(), &[&net]),
        };
        usize::from(u16::from_le_bytes([low, high])) % SETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn limiter() -> Limiter {
        Limiter::new(&mut StdRng::seed_from_u64(1))
    }

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    fn v6(number: u128) -> IpAddr {
        Ipv6Addr::from_bits(number).into()
    }

    #[test]
    fn a_burst_of_five_then_twenty_a_second() {
        let mut limiter = limiter();
        let start = Instant::now();
        let allowed = (0..100).filter(|_| limiter.allow(start, v4(1))).count();
        assert_eq!(allowed, 5);
        let allowed =
            (1..=10_000).filter(|millis| limiter.allow(start + Duration::from_millis(*millis), v4(1))).count();
        assert_eq!(allowed, 200);
        assert!(limiter.allow(start, v4(2)), "another source has its own bucket");
    }

    #[test]
    fn an_ipv6_source_is_its_64_and_a_mapped_one_is_ipv4() {
        let mut limiter = limiter();
        let now = Instant::now();
        assert_eq!((0..100).filter(|low| limiter.allow(now, v6(1 << 64 | low))).count(), 5);
        assert!(limiter.allow(now, v6(2 << 64)));
        let mapped = |number| Ipv4Addr::from_bits(number).to_ipv6_mapped().into();
        assert_eq!((0..100).filter(|_| limiter.allow(now, mapped(7))).count(), 5);
        assert!(!limiter.allow(now, v4(7)));
        assert!(limiter.allow(now, mapped(8)));
    }

    #[test]
    fn a_flood_of_sources_locks_nobody_out() {
        let mut limiter = limiter();
        let now = Instant::now();
        for number in 0..100_000 {
            assert!(limiter.allow(now, v4(number)));
        }
        assert!(limiter.allow(now, v4(u32::MAX)));
        assert_eq!(limiter.sets.len(), SETS);
    }

    #[test]
    fn load_comes_with_the_rate_and_goes_with_it() {
        let mut load = Load::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert!(!(0..LOAD_BURST).any(|_| load.note(start)), "a burst is no load");
        assert!(load.note(start));
        assert!(load.note(start + second / 2));
        assert!(!load.note(start + 3 * second));
        let mut steady = Load::default();
        let pace = second / LOAD_HANDSHAKES_PER_SECOND;
        assert!(!(0..10_000).any(|number| steady.note(start + pace * number)));
        let mut faster = Load::default();
        let loaded = (0..10_000).filter(|number| faster.note(start + pace / 2 * *number)).count();
        assert!((8_900..9_000).contains(&loaded), "{loaded}");
    }
}
