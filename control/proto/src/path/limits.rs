//! How many probes are sent in total and to one address, how often a peer can make us start a round, and how many
//! probes from strangers are examined.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand::RngCore;

use super::constants::{PING_BURST, PINGS_PER_SECOND, ROUND_BURST};
use crate::cookie::mac;
use crate::{Bucket, Key};

/// Lets one through at a rate of `per_second`, unless more than `burst` are ahead of it.
fn take(bucket: &mut Bucket, now: Instant, per_second: u32, burst: u32) -> bool {
    let cost = Duration::from_secs(1) / per_second;
    bucket.take(now, cost, cost * burst)
}

/// The pings of all peers together.
#[derive(Default)]
pub(crate) struct Budget(Bucket);

impl Budget {
    /// A ping that keeps a path alive, or that answers one of a peer's.
    pub fn urgent(&mut self, now: Instant) -> bool {
        take(&mut self.0, now, PINGS_PER_SECOND, PING_BURST)
    }

    /// A ping in search of a better path.
    pub fn searching(&mut self, now: Instant) -> bool {
        take(&mut self.0, now, PINGS_PER_SECOND, PING_BURST / 2)
    }
}

/// The rounds that one peer causes: it announces other addresses, or starts a round of its own.
#[derive(Default)]
pub(crate) struct Prompted(Bucket);

impl Prompted {
    /// Whether a round may start; if not, when it may. After each `interval` one more may.
    pub fn allow(&mut self, now: Instant, interval: Duration) -> Result<(), Instant> {
        let full = interval * ROUND_BURST;
        if self.0.take(now, interval, full) {
            return Ok(());
        }
        Err(now + (self.0.backlog(now) + interval).saturating_sub(full))
    }
}

const BUCKETS: usize = 1024;

/// Rates per address: of addresses that send probes and are nobody's candidate, or of addresses that are probed. The
/// table has a fixed size, so addresses may share a bucket; an address that shares one with a flood waits until the
/// flood is over, and the relayed path works meanwhile.
pub(crate) struct PerAddress {
    secret: Key,
    buckets: Vec<Bucket>,
    per_second: u32,
    burst: u32,
}

impl PerAddress {
    pub fn new(rng: &mut dyn RngCore, per_second: u32, burst: u32) -> Self {
        let mut secret = Key::zero();
        rng.fill_bytes(secret.as_mut());
        Self { secret, buckets: vec![Bucket::default(); BUCKETS], per_second, burst }
    }

    pub fn allow(&mut self, now: Instant, ip: IpAddr) -> bool {
        let [low, high, ..] = match ip {
            IpAddr::V4(ip) => mac(self.secret.as_bytes(), &[&ip.octets()]),
            // Whoever has one address of a /64 has all of them.
            IpAddr::V6(ip) => mac(self.secret.as_bytes(), &[&ip.octets()[..8]]),
        };
        let bucket = usize::from(u16::from_le_bytes([low, high])) % BUCKETS;
        take(&mut self.buckets[bucket], now, self.per_second, self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::constants::{STRANGER_BURST, STRANGER_PROBES_PER_SECOND};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn searching_leaves_half_to_what_is_urgent() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let searching = (0..PING_BURST).filter(|_| budget.searching(now)).count();
        assert_eq!(searching, PING_BURST as usize / 2);
        let urgent = (0..2 * PING_BURST).filter(|_| budget.urgent(now)).count();
        assert_eq!(urgent, PING_BURST as usize / 2);
        let later = now + Duration::from_secs(1);
        assert!(budget.urgent(later) && budget.searching(later));
    }

    #[test]
    fn a_strangers_flood_is_cut_and_does_not_last() {
        let now = Instant::now();
        let rng = &mut StdRng::seed_from_u64(1);
        let mut strangers = PerAddress::new(rng, STRANGER_PROBES_PER_SECOND, STRANGER_BURST);
        let source = "2001:db8::1".parse().unwrap();
        assert_eq!((0..10_000).filter(|_| strangers.allow(now, source)).count(), STRANGER_BURST as usize);
        assert!(!strangers.allow(now, "2001:db8::2".parse().unwrap()), "the same /64");
        assert!(strangers.allow(now, "192.0.2.1".parse().unwrap()));
        assert!(strangers.allow(now + Duration::from_secs(1), source));
    }

    #[test]
    fn a_peer_prompts_some_rounds_and_then_one_at_a_time() {
        let (start, interval) = (Instant::now(), Duration::from_secs(30));
        let mut prompted = Prompted::default();
        assert_eq!((0..100).filter(|_| prompted.allow(start, interval).is_ok()).count(), ROUND_BURST as usize);
        let next = prompted.allow(start, interval).unwrap_err();
        assert_eq!(next, start + interval);
        assert!(prompted.allow(next, interval).is_ok() && prompted.allow(next, interval).is_err());
    }
}
