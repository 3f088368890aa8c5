//! How often something happens per source, in a table of limited size.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_proto::Bucket;

use super::limits::{Level, PREFIXES, Rate, V4, V6};

/// The prefixes that contain an address, from itself to the widest.
pub(super) fn prefixes(ip: IpAddr) -> impl Iterator<Item = (IpNet, &'static Level)> {
    let ip = ip.to_canonical();
    let levels: &'static [Level] = if ip.is_ipv4() { &V4 } else { &V6 };
    levels.iter().map(move |level| {
        let prefix = IpNet::new(ip, level.length).expect("no level is longer than an address");
        (prefix.trunc(), level)
    })
}

/// What counts as one address: for IPv6 a /64, since a host usually has a whole one.
pub(crate) fn address(ip: IpAddr) -> IpNet {
    prefixes(ip).next().expect("an address is a prefix").0
}

/// A bucket for each prefix.
#[derive(Debug)]
pub struct Rates {
    rate: Rate,
    buckets: HashMap<IpNet, Bucket>,
}

impl Rates {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new() }
    }

    /// Allows it once more, unless it is too often for one of the source's prefixes; then it counts for none of them.
    pub fn allow(&mut self, now: Instant, ip: IpAddr) -> bool {
        self.allow_all(now, || prefixes(ip))
    }

    /// As [`Rates::allow`], regardless of others in the wider prefixes.
    pub fn allow_address(&mut self, now: Instant, ip: IpAddr) -> bool {
        self.allow_all(now, || prefixes(ip).take(1))
    }

    fn allow_all<I: Iterator<Item = (IpNet, &'static Level)>>(
        &mut self,
        now: Instant,
        prefixes: impl Fn() -> I,
    ) -> bool {
        let (interval, full) = (self.rate.interval, self.rate.interval * self.rate.burst);
        let allows = |(prefix, level): (IpNet, &Level)| {
            self.buckets.get(&prefix).is_none_or(|bucket| bucket.allows(now, interval / level.hosts, full))
        };
        if !prefixes().all(allows) {
            return false;
        }
        self.make_room(now);
        for (prefix, level) in prefixes() {
            self.buckets.entry(prefix).or_default().take(now, interval / level.hosts, full);
        }
        true
    }

    /// Counts something that has happened and cannot be refused. Returns how much too early it was for the address,
    /// `limit` at most.
    pub fn charge(&mut self, now: Instant, ip: IpAddr, limit: Duration) -> Duration {
        self.make_room(now);
        let full = self.rate.interval * self.rate.burst;
        self.buckets.entry(address(ip)).or_default().charge(now, self.rate.interval, full, limit)
    }

    fn make_room(&mut self, now: Instant) {
        if self.buckets.len() + V6.len() > PREFIXES {
            self.buckets.retain(|_, bucket| !bucket.backlog(now).is_zero());
        }
        // This many sources at a time are a flood that rates per source cannot stop.
        if self.buckets.len() + V6.len() > PREFIXES {
            self.buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const RATE: Rate = Rate { burst: 10, interval: Duration::from_secs(1) };

    fn v4(text: &str) -> IpAddr {
        text.parse::<Ipv4Addr>().expect("an address").into()
    }

    fn allowed(rates: &mut Rates, now: Instant, sources: impl Iterator<Item = IpAddr>) -> usize {
        sources.filter(|source| rates.allow(now, *source)).count()
    }

    #[test]
    fn an_address_has_its_burst_and_its_prefix_some_of_them() {
        let (mut rates, now) = (Rates::new(RATE), Instant::now());
        let one = std::iter::repeat(v4("192.0.2.1"));
        assert_eq!(allowed(&mut rates, now, one.clone().take(1000)), 10);
        assert_eq!(allowed(&mut rates, now, (2..=255).map(|last| v4(&format!("192.0.2.{last}")))), 30);
        assert!(rates.allow(now, v4("192.0.3.1")), "another prefix is not concerned");
        let later = now + Duration::from_secs(3);
        assert_eq!(allowed(&mut rates, later, one.take(1000)), 3);
        assert_eq!(allowed(&mut rates, later, (2..=255).map(|last| v4(&format!("192.0.2.{last}")))), 9);
    }

    #[test]
    fn an_ipv6_host_has_a_whole_64_and_a_site_a_48() {
        let (mut rates, now) = (Rates::new(RATE), Instant::now());
        let net = |number: u128, host: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | number << 64 | host));
        assert_eq!(allowed(&mut rates, now, (0..100).map(|host| net(1, host))), 10);
        assert_eq!(allowed(&mut rates, now, (2..256).map(|number| net(number, 1))), 10, "of the same /56");
        assert_eq!(allowed(&mut rates, now, (256..65_536).map(|number| net(number, 1))), 20, "of the same /48");
        assert!(rates.allow(now, net(65_536, 1)));
    }

    #[test]
    fn the_table_does_not_grow_without_end() {
        let (mut rates, now) = (Rates::new(RATE), Instant::now());
        for number in 0..2 * PREFIXES as u32 {
            rates.allow(now, Ipv4Addr::from_bits(number << 8).into());
            rates.charge(now, Ipv4Addr::from_bits(number << 8).into(), Duration::from_secs(5));
            assert!(rates.buckets.len() <= PREFIXES);
        }
    }
}
