//! Floods, simulated in milliseconds: what happens to honest gateways meanwhile, and to the slots.

use super::limits::{FAILURE_BURST, FAILURE_INTERVAL};
use super::*;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

const SLOTS: usize = STRANGER_SLOTS + KNOWN_SLOTS;
/// How long an honest gateway far away, on a slow line, takes from TCP to its proof.
const HONEST: Duration = Duration::from_secs(1);

/// The `host`-th address of the `net`-th /24.
fn v4(net: u32, host: u32) -> IpAddr {
    Ipv4Addr::from_bits(net << 8 | host).into()
}

fn site(number: u64) -> SiteId {
    SiteId(number.to_be_bytes())
}

struct Flood {
    admission: Admission,
    now: Instant,
    lost: BTreeSet<SlotNumber>,
}

impl Flood {
    fn new() -> Self {
        Self { admission: Admission::default(), now: Instant::now(), lost: BTreeSet::new() }
    }

    fn admit(&mut self, ip: IpAddr) -> Result<SlotNumber, AdmissionError> {
        let outcome = self.admission.admit(self.now, ip);
        while let Some(evicted) = self.admission.poll_evicted() {
            self.lost.insert(evicted);
        }
        assert!(self.admission.taken() <= SLOTS);
        outcome
    }

    /// The attackers together connect 10,000 times per second and send nothing; meanwhile an honest gateway connects
    /// from each address, 100 ms apart. Returns how many of these got in.
    fn against(&mut self, attackers: &[IpAddr], honest: &[IpAddr]) -> usize {
        let mut let_in = 0;
        let mut under_way: Vec<(SlotNumber, Instant)> = Vec::new();
        let mut honest = honest.iter();
        let mut attacker = attackers.iter().cycle();
        // The attack begins earlier, so that it has everything it can get.
        for step in 0..400 + 10 * honest.len() + 200 {
            for _ in 0..100 {
                let _ = attacker.next().map(|attacker| self.admit(*attacker));
            }
            if step >= 400
                && step % 10 == 0
                && let Some(gateway) = honest.next()
                && let Ok(slot) = self.admit(*gateway)
            {
                under_way.push((slot, self.now));
            }
            under_way.retain(|(slot, since)| {
                let done = self.now.duration_since(*since) >= HONEST;
                if done && !self.lost.contains(slot) {
                    self.admission.proven(self.now, *slot, site(*slot));
                    let_in += 1;
                }
                !done
            });
            self.now += Duration::from_millis(10);
        }
        let_in
    }
}

#[test]
fn silent_connections_of_a_few_addresses_lose_their_own_places() {
    let honest: Vec<IpAddr> = (0..30).map(|number| v4(10_000 + number, 1)).collect();
    let scattered: Vec<IpAddr> = (0..34).map(|number| v4(number, 1)).collect();
    assert_eq!(Flood::new().against(&scattered, &honest), honest.len());
    let one_net: Vec<IpAddr> = (0..254).map(|host| v4(7, host)).collect();
    assert_eq!(Flood::new().against(&one_net, &honest), honest.len());
    let v6 = |number: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | number << 64 | 1));
    let one_48: Vec<IpAddr> = (0..2000).map(v6).collect();
    assert_eq!(Flood::new().against(&one_48, &honest), honest.len());
}

#[test]
fn who_is_known_does_not_pay_for_its_neighbors() {
    let mut flood = Flood::new();
    let honest: Vec<IpAddr> = (0..30).map(|host| v4(7, 200 + host)).collect();
    for (number, gateway) in honest.iter().enumerate() {
        let slot = flood.admit(*gateway).unwrap();
        flood.admission.proven(flood.now, slot, site(number as u64));
    }
    let neighbors: Vec<IpAddr> = (0..100).map(|host| v4(7, host)).collect();
    assert_eq!(flood.against(&neighbors, &honest), honest.len());
}

#[test]
fn a_flood_from_everywhere_does_not_take_the_places_of_known_sources() {
    let mut flood = Flood::new();
    let honest: Vec<IpAddr> = (0..30).map(|number| v4(100_000 + number, 1)).collect();
    for (number, gateway) in honest.iter().enumerate() {
        let slot = flood.admit(*gateway).unwrap();
        flood.admission.proven(flood.now, slot, site(number as u64));
    }
    let bots: Vec<IpAddr> = (0..3000).map(|number| v4(number, 1)).collect();
    assert_eq!(flood.against(&bots, &honest), honest.len());
    let strangers: Vec<IpAddr> = (0..30).map(|number| v4(200_000 + number, 1)).collect();
    println!("strangers let in beside 3,000 bots: {} of 30", flood.against(&bots, &strangers));
}

#[test]
fn who_moves_is_known_where_it_is_now() {
    let mut flood = Flood::new();
    for net in [1, 2, 1, 3] {
        let slot = flood.admit(v4(net, 1)).unwrap();
        flood.admission.proven(flood.now, slot, site(1));
    }
    let known = |flood: &Flood, net| flood.admission.sources.is_known(flood.now, v4(net, 1));
    assert_eq!([1, 2, 3].map(|net| known(&flood, net)), [false, false, true]);
    assert_eq!(flood.admission.sources.known.len(), 1);
    flood.now += KNOWN_FOR;
    assert!(!known(&flood, 3));
}

/// All 10,000 come back at once; the coordinator handles 500 proofs per second, in order of arrival.
#[test]
fn who_comes_back_with_all_others_is_not_sent_away_half_way() {
    let mut flood = Flood::new();
    let mut waiting: Vec<IpAddr> = (0..10_000).map(|number| v4(number / 4, number % 4)).collect();
    let mut under_way = std::collections::VecDeque::new();
    let mut seconds = 0;
    while !waiting.is_empty() || !under_way.is_empty() {
        // Gateways that were refused try again every second.
        waiting.retain(|gateway| match flood.admit(*gateway) {
            Ok(slot) => {
                under_way.push_back((slot, flood.now));
                false
            }
            Err(_) => true,
        });
        for _ in 0..500 {
            let Some((slot, _)) = under_way.pop_front() else { break };
            assert!(!flood.lost.contains(&slot), "half-way, after {seconds} s");
            flood.admission.proven(flood.now, slot, site(slot));
        }
        flood.now += Duration::from_secs(1);
        seconds += 1;
        assert!(seconds < 40);
    }
    assert_eq!(flood.admission.taken(), 0);
    assert!(flood.admission.strangers.counts.is_empty() && flood.admission.known.counts.is_empty());
}

#[test]
fn patience_shrinks_as_places_get_scarce() {
    let mut pool = Pool::new(100);
    let (now, mut evicted) = (Instant::now(), Vec::new());
    assert_eq!(pool.patience(), PATIENCE);
    for number in 0..100_u32 {
        assert!(pool.take(number.into(), Held { ip: v4(number, 1), since: now }, &mut evicted));
        assert_eq!(pool.patience() == PATIENCE, number < 50);
    }
    assert_eq!((pool.patience(), evicted.len()), (PATIENCE_WHEN_FULL, 0));
    let newcomer = |after| Held { ip: v4(1000, 1), since: now + after };
    assert!(!pool.take(100, newcomer(PATIENCE_WHEN_FULL), &mut evicted), "all are equal, and in time");
    let later = PATIENCE_WHEN_FULL + Duration::from_millis(1);
    assert!(pool.take(101, newcomer(later), &mut evicted));
    assert_eq!(evicted, [0], "the oldest, and no more than has to be");
}

#[test]
fn wrong_proofs_wait_longer_and_longer_and_for_nobody_else() {
    let mut flood = Flood::new();
    let (one, other) = (v4(1, 1), v4(1, 2));
    for _ in 0..FAILURE_BURST {
        assert_eq!(flood.admission.failed(flood.now, one), Duration::ZERO);
    }
    assert_eq!(flood.admission.failed(flood.now, one), FAILURE_INTERVAL);
    for _ in 0..100 {
        assert!(flood.admission.failed(flood.now, one) <= FAILURE_DELAY);
    }
    assert_eq!(flood.admission.failed(flood.now, other), Duration::ZERO);
    // Its site still gets a slot there, and so has its proof examined.
    let slot = flood.admit(one).unwrap();
    flood.admission.proven(flood.now, slot, site(1));
    flood.now += FAILURE_DELAY;
    assert_eq!(flood.admission.failed(flood.now, one), FAILURE_INTERVAL);
}

#[test]
fn handshakes_and_lines_of_one_source_are_bounded() {
    let mut flood = Flood::new();
    let mut begun = 0;
    for _ in 0..10_000 {
        if let Ok(slot) = flood.admit(v4(1, 1)) {
            begun += 1;
            flood.admission.leave(slot);
        }
        flood.now += Duration::from_millis(1);
    }
    let seconds = 10_000_u32 / 1000;
    let allowed = HANDSHAKES.burst + seconds * (Duration::from_secs(1).div_duration_f64(HANDSHAKES.interval) as u32);
    assert!((allowed - 1..=allowed + 1).contains(&begun), "{begun} of {allowed}");
    let lines = (0..10_000).filter(|_| flood.admission.may_log(flood.now, v4(1, 1))).count();
    assert_eq!(lines, LINES.burst as usize);
}
