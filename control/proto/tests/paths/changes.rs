//! What happens to a path: upgrade, death, a NAT that forgets, an address that changes.

use penstock_proto::path::{Path, Reason};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::simulator::nat::{Kind, direct_works};
use crate::simulator::{Faults, RELAY, World, millis, seconds};
use crate::{plain, seeds};

/// Pairs that get a direct path, in every way there is.
const DIRECT: [(Kind, Kind); 7] = [
    (Kind::None, Kind::Symmetric),
    (Kind::FullCone, Kind::FullCone),
    (Kind::AddressRestricted, Kind::Symmetric),
    (Kind::PortRestricted, Kind::PortRestricted),
    (Kind::Masquerade, Kind::Masquerade),
    (Kind::Masquerade, Kind::PortRestricted),
    (Kind::Firewall, Kind::AddressRestricted),
];

fn settled(seed: u64, a: Kind, b: Kind) -> World {
    let mut world = World::new(seed, &[a, b], plain());
    world.send_data(millis(50));
    world.run(seconds(10));
    assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0), "seed {seed}: {a:?} and {b:?}");
    world
}

fn lost(world: &World, from: usize, to: usize) -> Vec<u64> {
    let received = &world.gateways[to].received[&from];
    let first = *received.first().unwrap();
    // Those still in flight are not lost.
    (first..world.gateways[from].sent[&to] - 10).filter(|number| !received.contains(number)).collect()
}

#[test]
fn the_upgrade_from_relay_to_direct_loses_nothing() {
    for seed in seeds(2, 20) {
        for (a, b) in DIRECT {
            let world = settled(seed, a, b);
            assert!(world.gateways[0].diary.iter().any(|(_, _, path, _)| matches!(path, Path::Relay { .. })));
            for (from, to) in [(0, 1), (1, 0)] {
                assert_eq!(lost(&world, from, to), Vec::<u64>::new(), "seed {seed}: {a:?} and {b:?}");
                assert!(world.gateways[to].longest_gap(from) < millis(500));
            }
        }
    }
}

#[test]
fn a_cut_direct_path_falls_back_within_five_seconds_and_comes_back() {
    for seed in seeds(2, 20) {
        for (a, b) in DIRECT {
            let mut world = settled(seed, a, b);
            let far = world.nats[1].ip;
            world.nats[0].cut.push(far);
            let before = world.elapsed();
            world.run(seconds(8));
            for (site, peer) in [(0, 1), (1, 0)] {
                let shell = &world.gateways[site];
                assert!(shell.is_relayed(peer), "seed {seed}: {a:?} and {b:?}, site {site}: {:?}", shell.paths[&peer]);
                let change = shell.diary.iter().find(|(at, ..)| *at >= before).unwrap();
                assert!(change.0 - before < seconds(5), "seed {seed}: {:?}", change.0 - before);
                assert_eq!(change.3, Reason::DirectDied);
                assert!(shell.longest_gap(peer) < seconds(5));
            }
            world.nats[0].cut.clear();
            world.run(seconds(120));
            assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0), "seed {seed}: {a:?}, {b:?}");
        }
    }
}

#[test]
fn a_cut_in_one_direction_is_noticed_by_whom_it_concerns() {
    let mut world = settled(1, Kind::None, Kind::None);
    // What site 0 sends does not arrive; what it receives is fine.
    let far = world.nats[1].ip;
    let (zero, one) = (&world.gateways[0], &world.gateways[1]);
    assert!(zero.is_direct(1) && one.is_direct(0));
    world.nats[0].cut.push(far);
    world.run(seconds(5));
    assert!(world.gateways[0].is_relayed(1));
}

#[test]
fn an_idle_path_is_held_with_few_probes() {
    let mut world = settled(3, Kind::PortRestricted, Kind::PortRestricted);
    world.pace = None;
    world.nats.iter_mut().for_each(|nat| nat.timeout = seconds(30));
    world.run(seconds(60));
    world.wire = Some(vec![]);
    world.run(seconds(600));
    assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0));
    let ends: Vec<_> = world.nats.iter().map(|nat| nat.ip).collect();
    let wire = world.wire.take().unwrap();
    let probes = wire.iter().filter(|seen| ends.contains(&seen.from.ip()) && ends.contains(&seen.to.ip())).count();
    // Two sites, with a ping and a pong each every 25 s.
    assert!((90..=100).contains(&probes), "{probes} probes in ten minutes");
}

#[test]
fn a_nat_that_forgets_its_mappings_is_worked_around() {
    for seed in seeds(2, 20) {
        for (a, b) in DIRECT {
            let mut world = settled(seed, a, b);
            world.faults = Faults::some(&mut StdRng::seed_from_u64(seed));
            world.nats[0].reboot();
            if seed % 2 == 1 {
                world.nats[1].reboot();
            }
            let before = world.now;
            world.run(seconds(10));
            for (site, peer) in [(0, 1), (1, 0)] {
                let gaps = &world.gateways[site].arrivals[&peer];
                let after: Vec<_> = gaps.iter().filter(|at| **at >= before).collect();
                let gap = after.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap();
                assert!(gap < seconds(6), "seed {seed}: {a:?} and {b:?}, {gap:?}");
            }
            world.run(seconds(180));
            assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0), "seed {seed}: {a:?}, {b:?}");
        }
    }
}

#[test]
fn an_address_that_changes_is_followed_also_on_both_sides_at_once() {
    for seed in seeds(2, 20) {
        for (a, b) in DIRECT {
            assert!(direct_works(a, b));
            let mut world = settled(seed, a, b);
            let before = world.now;
            world.change_address(0);
            if seed % 2 == 1 {
                world.change_address(1);
            }
            world.run(seconds(10));
            for (site, peer) in [(0, 1), (1, 0)] {
                let after: Vec<_> = world.gateways[site].arrivals[&peer].iter().filter(|at| **at >= before).collect();
                let gap = after.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap();
                assert!(gap < seconds(5), "seed {seed}: {a:?} and {b:?}, {gap:?}");
            }
            world.run(seconds(170));
            assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0), "seed {seed}: {a:?}, {b:?}");
        }
    }
}

#[test]
fn a_relay_that_dies_leaves_the_other_way_and_comes_back() {
    let mut world = World::new(1, &[Kind::Symmetric, Kind::Symmetric], plain());
    world.send_data(millis(100));
    world.run(seconds(10));
    assert!(world.gateways[0].is_relayed(1));
    world.relay.down = true;
    world.run(seconds(8));
    assert_eq!(world.gateways[0].path_to(1), Path::None);
    assert_eq!(world.gateways[0].paths[&1].1, Reason::PeerSilent);
    world.relay.down = false;
    world.run(seconds(40));
    assert!(world.gateways[0].is_relayed(1) && world.gateways[1].is_relayed(0));
    // UDP to the relay is cut on one side: TLS takes over.
    let relay = RELAY.ip();
    world.nats[0].cut.push(relay);
    world.run(seconds(70));
    assert!(world.gateways[0].is_relayed(1) && world.gateways[1].is_relayed(0));
    assert!(world.gateways[0].arrivals[&1].last().unwrap() > &(world.now - seconds(1)));
    assert!(world.gateways[1].arrivals[&0].last().unwrap() > &(world.now - seconds(1)));
}

#[test]
fn ipv6_is_taken_when_it_is_as_quick() {
    for kind in [Kind::None, Kind::Firewall] {
        let mut world = World::new(5, &[Kind::FullCone, Kind::PortRestricted], plain());
        world.add_ipv6(kind);
        world.run(seconds(10));
        for (site, peer) in [(0, 1), (1, 0)] {
            let path = world.gateways[site].path_to(peer);
            assert!(matches!(path, Path::Direct { address, .. } if address.is_ipv6()), "{kind:?}: {path:?}");
        }
    }
    // And where IPv4 finds no path at all, IPv6 does.
    let mut world = World::new(6, &[Kind::Symmetric, Kind::Symmetric], plain());
    world.add_ipv6(Kind::Firewall);
    world.run(seconds(10));
    assert!(world.gateways[0].is_direct(1) && world.gateways[1].is_direct(0));
}
