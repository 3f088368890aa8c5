//! How large datagrams may be: whole path agents over links that drop what is too large.

use std::net::SocketAddr;
use std::time::Duration;

use penstock_proto::path::{FIRST_BYTE, PathConfig, Reason};
use penstock_proto::pmtu::{MtuSource, PathMtu, TooBig};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::simulator::nat::Kind;
use crate::simulator::{Faults, RELAY, World, millis, seconds};
use crate::{plain, seeds};

const PAIRS: [(Kind, Kind); 4] = [
    (Kind::None, Kind::None),
    (Kind::FullCone, Kind::PortRestricted),
    (Kind::Masquerade, Kind::Firewall),
    (Kind::Symmetric, Kind::AddressRestricted),
];

/// Two gateways, each with a path of a different size to the other, which may drop silently.
fn world(seed: u64, rng: &mut StdRng) -> World {
    let (a, b) = PAIRS[seed as usize % PAIRS.len()];
    let mut world = World::new(seed, &[a, b], plain());
    world.faults = Faults::some(rng);
    world.faults.loss = 0.0;
    for (from, to) in [(0, 1), (1, 0)] {
        world.set_pipe(from, to, rng.random_range(1280..=1500), rng.random_bool(0.3));
    }
    world
}

fn pipe(world: &World, from: usize, to: usize) -> u16 {
    world.pipes.0[&(world.nats[from].ip, world.nats[to].ip)].mtu
}

fn mtu(world: &World, from: usize, to: usize) -> PathMtu {
    let told = world.gateways[from].mtus[&to];
    let key = world.gateways[to].key;
    assert_eq!(world.gateways[from].agent.mtu(&key), Some(told));
    told
}

fn is_found(world: &World, from: usize, to: usize) -> bool {
    let (found, most) = (mtu(world, from, to), pipe(world, from, to));
    found.source == MtuSource::Probed && found.outer <= most && most - found.outer < 16
}

/// The longest time since then without full-size data at a gateway.
fn gap(world: &World, site: usize, peer: usize, since: std::time::Instant) -> Duration {
    let arrivals = world.gateways[site].arrivals[&peer].iter().copied().filter(|at| *at >= since);
    let all: Vec<_> = std::iter::once(since).chain(arrivals).chain([world.now]).collect();
    all.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[test]
fn each_direction_of_a_path_finds_its_own_size() {
    for seed in seeds(30, 1000) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = world(seed, &mut rng);
        world.send_data(millis(100));
        world.run(seconds(15));
        for (from, to) in [(0, 1), (1, 0)] {
            assert!(world.gateways[from].is_direct(to), "seed {seed}");
            let found = mtu(&world, from, to);
            assert!(is_found(&world, from, to), "seed {seed}: {found:?} of {}", pipe(&world, from, to));
            assert_eq!(found.inner, (found.outer - 60).max(1280), "seed {seed}");
            assert_eq!(found.fragmented, found.outer < 1340, "seed {seed}");
        }
    }
}

#[test]
fn loss_delays_and_misleads_little() {
    let mut found = 0;
    for seed in seeds(10, 500) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = world(seed, &mut rng);
        world.faults.loss = 0.1;
        world.send_data(millis(100));
        world.run(seconds(60));
        for (from, to) in [(0, 1), (1, 0)] {
            let most = pipe(&world, from, to);
            let direct = |at: &Duration| *at > seconds(15);
            let told = world.gateways[from].mtu_diary.iter().filter(|(at, ..)| direct(at));
            for (at, _, told) in told.filter(|(_, _, told)| told.source == MtuSource::Probed) {
                // A direct path that 10 % loss has killed for a while gives way to the relay, which fragments.
                let relayed = world.gateways[from].diary.iter().any(|(_, _, _, why)| *why == Reason::DirectDied);
                assert!(told.outer <= most || relayed, "seed {seed}, {at:?}: {told:?} of {most}");
            }
            found += u64::from(is_found(&world, from, to));
        }
    }
    let all = 2 * seeds(10, 500).end;
    assert!(found * 100 >= all * 95, "{found} of {all}");
}

#[test]
fn a_path_that_shrinks_under_traffic_goes_on_within_two_seconds() {
    for seed in seeds(30, 1000) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = world(seed, &mut rng);
        world.set_pipes(1500, false);
        world.full_size = true;
        world.send_data(millis(20));
        world.run(millis(15_000 + seed * 7 % 1000));
        // Only in this direction, and sometimes below what every path should carry.
        let (less, tells) = (rng.random_range(1000..1490), rng.random_bool(0.3));
        world.set_pipe(0, 1, less, tells);
        let since = world.now;
        world.run(seconds(5));
        let took = gap(&world, 1, 0, since);
        assert!(took < seconds(2), "seed {seed}: {less}, {took:?}");
        assert!(gap(&world, 0, 1, since) < millis(500), "the other way is as before");
        assert_eq!(mtu(&world, 1, 0).outer, 1500);
        let found = mtu(&world, 0, 1);
        assert!(found.outer <= less.max(1280) && found.inner >= 1280, "seed {seed}: {less}, {found:?}");
        assert!(world.gateways[0].is_direct(1), "seed {seed}");
    }
}

#[test]
fn a_path_that_grows_is_found_within_a_minute() {
    for seed in seeds(10, 500) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = world(seed, &mut rng);
        world.set_pipes(rng.random_range(1000..1480), false);
        world.send_data(millis(100));
        world.run(seconds(20 + seed % 30));
        world.set_pipes(1500, false);
        world.run(seconds(60));
        assert_eq!([mtu(&world, 0, 1).outer, mtu(&world, 1, 0).outer], [1500; 2], "seed {seed}");
    }
}

#[test]
fn an_interface_that_changes_acts_at_once() {
    let mut world = World::new(1, &[Kind::None, Kind::None], plain());
    world.full_size = true;
    world.send_data(millis(20));
    world.run(seconds(15));
    assert_eq!(mtu(&world, 0, 1).outer, 1500);
    world.set_link(0, 1400);
    assert_eq!(mtu(&world, 0, 1).outer, 1400);
    let since = world.now;
    world.run(seconds(3));
    assert!(gap(&world, 1, 0, since) < millis(200));
    world.set_link(0, 9000);
    world.run(millis(500));
    assert_eq!(mtu(&world, 0, 1).outer, 9000);
    world.set_pipe(0, 1, 1500, false);
    world.run(seconds(2));
    assert!(mtu(&world, 0, 1).outer <= 1500);
}

#[test]
fn a_pinned_mtu_is_the_ceiling() {
    let config = PathConfig { pinned_mtu: Some(1380), ..plain() };
    for (link, inner) in [(1500, 1380), (1400, 1340), (1300, 1280)] {
        let mut world = World::new(1, &[Kind::None, Kind::None], config);
        world.set_pipes(link, false);
        world.send_data(millis(100));
        world.run(seconds(20));
        let found = mtu(&world, 0, 1);
        assert!(found.inner <= inner && found.inner + 16 > inner, "{found:?}");
        assert_eq!(found.fragmented, link == 1300);
    }
}

#[test]
fn ipv6_has_its_own_header_and_no_router_that_fragments() {
    let mut world = World::new(5, &[Kind::FullCone, Kind::PortRestricted], plain());
    world.add_ipv6(Kind::None);
    let hosts = [world.gateways[0].hosts[1], world.gateways[1].hosts[1]];
    let pipe = crate::simulator::pipes::Pipe { mtu: 1452, tells: false };
    world.pipes.0.insert((hosts[0], hosts[1]), pipe);
    world.send_data(millis(100));
    world.run(seconds(15));
    let (there, back) = (mtu(&world, 0, 1), mtu(&world, 1, 0));
    assert_eq!((there.outer, there.inner, there.source), (1452, 1372, MtuSource::Probed));
    assert_eq!((back.outer, back.inner, back.source), (1500, 1420, MtuSource::Probed));
}

#[test]
fn a_new_best_path_has_its_own_size_and_an_old_one_is_remembered() {
    let mut world = World::new(3, &[Kind::None, Kind::None], plain());
    world.set_pipes(1400, false);
    world.pipes.0.insert((world.nats[0].ip, RELAY.ip()), crate::simulator::pipes::Pipe { mtu: 1492, tells: false });
    world.full_size = true;
    world.send_data(millis(20));
    world.run(seconds(15));
    assert_eq!(mtu(&world, 0, 1).outer, 1400);
    let far = world.nats[1].ip;
    world.nats[0].cut.push(far);
    world.run(seconds(10));
    assert!(world.gateways[0].is_relayed(1));
    assert_eq!(mtu(&world, 0, 1).outer, 1492);
    world.nats[0].cut.clear();
    let since = world.now;
    world.run(seconds(120));
    assert!(world.gateways[0].is_direct(1));
    assert_eq!(mtu(&world, 0, 1).outer, 1400);
    assert!(gap(&world, 1, 0, since) < seconds(2), "{:?}", gap(&world, 1, 0, since));
}

#[test]
fn silence_of_everything_keeps_the_size() {
    for seed in seeds(10, 100) {
        let mut world = World::new(seed, &[Kind::None, Kind::None], plain());
        world.set_pipes(1452, false);
        world.send_data(millis(50));
        world.run(seconds(15));
        let told = world.gateways[0].mtu_diary.len();
        let far = world.nats[1].ip;
        world.nats[0].cut.push(far);
        world.run(millis(500 + seed * 130 % 1500));
        world.nats[0].cut.clear();
        world.run(seconds(5));
        // The path may have been given up meanwhile: then it comes back with the size that it had.
        let since = &world.gateways[0].mtu_diary[told..];
        assert!(since.iter().all(|(_, _, mtu)| mtu.outer == 1452), "seed {seed}: {since:?}");
        assert_eq!(mtu(&world, 0, 1).outer, 1452, "seed {seed}");
    }
}

/// Neither an older peer nor an older relay knows padded probes: both drop them.
#[test]
fn with_an_older_peer_the_link_and_routers_say_the_size() {
    let mut world = World::new(2, &[Kind::None, Kind::None], plain());
    world.gateways[1].is_old = true;
    world.gateways[1].link = None;
    world.wire = Some(vec![]);
    world.full_size = true;
    world.send_data(millis(50));
    world.run(seconds(120));
    assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0));
    let told = world.gateways[0].mtu_diary.iter().map(|(_, _, mtu)| (mtu.outer, mtu.source)).collect::<Vec<_>>();
    assert_eq!(told, [(1500, MtuSource::Link)]);
    assert!(world.gateways[1].mtus.is_empty());
    assert!(world.gateways[1].longest_gap(0) < millis(600));
    let wire = world.wire.take().unwrap();
    let ours = wire.iter().filter(|seen| seen.bytes[0] == FIRST_BYTE);
    assert!(ours.clone().all(|seen| seen.bytes.len() == 92 || seen.bytes.len() == 12), "and is sent no large ones");
    assert!(ours.filter(|seen| seen.bytes[1] == 6).count() < 60);
    // ICMP that quotes our own data counts.
    world.set_pipe(0, 1, 1400, true);
    world.run(seconds(1));
    assert_eq!((mtu(&world, 0, 1).outer, mtu(&world, 0, 1).source), (1400, MtuSource::Icmp));
    world.run(seconds(700));
    assert_eq!(mtu(&world, 0, 1).outer, 1400, "it was told again");

    let mut world = World::new(2, &[Kind::Symmetric, Kind::Symmetric], plain());
    world.relay.is_old = true;
    world.send_data(millis(50));
    world.run(seconds(60));
    assert!(world.gateways[0].is_relayed(1));
    assert_eq!((mtu(&world, 0, 1).outer, mtu(&world, 0, 1).source), (1500, MtuSource::Link));
}

#[test]
fn who_forges_icmp_and_answers_gains_probes_and_nothing_else() {
    for seed in seeds(3, 30) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(seed, &[Kind::None, Kind::None], plain());
        world.set_pipes(1452, false);
        world.send_data(millis(50));
        world.run(seconds(15));
        let told = world.gateways[0].mtu_diary.len();
        world.wire = Some(vec![]);
        let to = world.gateways[1].local()[0];
        for _ in 0..1000 {
            world.run(millis(10));
            let data = [&[4, 0, 0, 0][..], &world.gateways[1].site.0].concat();
            let icmp = TooBig { to, mtu: rng.random_range(0..1500), length: 1500, payload: &data };
            let now = world.now;
            world.gateways[0].agent.handle_too_big(now, &icmp, |_, _| true);
            world.drain(0);
            // Copies of what has been seen, from their real source, and with a flipped bit.
            let seen = world.wire.as_ref().unwrap();
            let Some(copy) = seen[seen.len().saturating_sub(50)..].choose(&mut rng) else { continue };
            let mut copy = copy.clone();
            let fake: SocketAddr = if rng.random_bool(0.5) { copy.from } else { to };
            if rng.random_bool(0.5) {
                let bit = rng.random_range(0..copy.bytes.len().min(92) * 8);
                copy.bytes[bit / 8] ^= 1 << (bit % 8);
            }
            if copy.bytes[0] == FIRST_BYTE {
                world.inject(0, fake, &copy.bytes);
            }
        }
        assert_eq!(world.gateways[0].mtu_diary.len(), told, "seed {seed}: {:?}", world.gateways[0].mtu_diary);
        let wire = world.wire.take().unwrap();
        let sent = wire.iter().filter(|seen| seen.to == to && seen.bytes[..2] == [FIRST_BYTE, 6]);
        let rate = sent.map(|seen| seen.bytes.len()).sum::<usize>() / 10;
        assert!(rate < 20_000, "seed {seed}: {rate} bytes a second");
    }
}
