//! Somebody who sees every datagram and can send anything from any address, but has no key.

use std::net::SocketAddr;

use penstock_proto::path::{FIRST_BYTE, PROBE_LENGTH, Path, SiteId};
use penstock_proto::{PublicKey, generate_private_key};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::simulator::nat::Kind;
use crate::simulator::{Datagram, World, millis, seconds};
use crate::{plain, seeds};

/// What is injected: copies from other addresses, copies with a flipped bit, and made-up bytes.
fn forge(seen: &[Datagram], world: &mut World, rng: &mut StdRng) {
    let random =
        |rng: &mut StdRng| SocketAddr::from(([192, 0, 2, rng.random_range(1..255)], rng.random_range(1..=u16::MAX)));
    for _ in 0..10 {
        let original = seen[rng.random_range(0..seen.len())].clone();
        let Datagram { from, mut bytes, .. } = original.clone();
        let other = seen[rng.random_range(0..seen.len())].from;
        let from = match rng.random_range(0..3) {
            0 => from,
            1 => other,
            _ => random(rng),
        };
        match rng.random_range(0..4) {
            0 => {
                let bit = rng.random_range(0..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            1 => bytes.truncate(rng.random_range(1..=bytes.len())),
            2 if bytes[0] == FIRST_BYTE && bytes.len() == PROBE_LENGTH => rng.fill(&mut bytes[20..]),
            _ => {}
        }
        // Data is judged by the data plane. And somebody who carries on what a NAT has dropped makes a real path, as
        // long as he does so.
        if bytes[0] == 4 || (from == original.from && bytes == original.bytes) {
            continue;
        }
        let site = rng.random_range(0..world.gateways.len());
        world.inject(site, from, &bytes);
    }
}

#[test]
fn a_forger_changes_no_path() {
    for seed in seeds(6, 100) {
        let kinds = [Kind::FullCone, Kind::None, Kind::Symmetric, Kind::PortRestricted, Kind::UdpBlocked];
        let mut rng = StdRng::seed_from_u64(seed);
        let kinds = [kinds[rng.random_range(0..4)], kinds[rng.random_range(0..5)]];
        let mut world = World::new(seed, &kinds, plain());
        world.wire = Some(vec![]);
        world.send_data(millis(100));
        world.run(seconds(10));
        let before = [world.gateways[0].path_to(1), world.gateways[1].path_to(0)];
        world.gateways.iter_mut().for_each(|shell| shell.diary.clear());
        for _ in 0..200 {
            world.run(millis(100));
            let mut seen = world.wire.take().unwrap();
            seen.drain(..seen.len().saturating_sub(500));
            forge(&seen, &mut world, &mut rng);
            world.wire = Some(seen);
        }
        for (site, peer) in [(0, 1), (1, 0)] {
            let shell = &world.gateways[site];
            assert_eq!(shell.path_to(peer), before[site], "seed {seed}: {kinds:?}");
            let strayed = shell.diary.iter().find(|(_, _, path, _)| *path != before[site]);
            assert!(strayed.is_none(), "seed {seed}: {kinds:?}: {strayed:?}");
        }
    }
}

#[test]
fn probes_of_strangers_are_not_answered() {
    let mut world = World::new(1, &[Kind::None, Kind::None], plain());
    world.run(seconds(5));
    let site = world.gateways[0].site;
    let stranger = SiteId::of(&PublicKey::from(&generate_private_key(&mut StdRng::seed_from_u64(99))));
    let peer = world.gateways[1].site;
    let from: SocketAddr = "192.0.2.66:6".parse().unwrap();
    for sender in [stranger, peer, site] {
        let mut bytes = [&[FIRST_BYTE, 1, 1, 0][..], &site.0, &sender.0].concat();
        bytes.resize(PROBE_LENGTH, 7);
        world.wire = Some(vec![]);
        for _ in 0..1000 {
            world.inject(0, from, &bytes);
        }
        assert_eq!(world.wire.take().unwrap().iter().filter(|sent| sent.to == from).count(), 0);
    }
}

#[test]
fn a_replayed_ping_is_answered_no_more_and_moves_nothing() {
    let mut world = World::new(2, &[Kind::None, Kind::None], plain());
    world.wire = Some(vec![]);
    world.run(seconds(10));
    let seen = world.wire.replace(vec![]).unwrap();
    let to = world.gateways[0].local()[0];
    let pings: Vec<_> = seen.into_iter().filter(|sent| sent.to == to && sent.bytes[..2] == [FIRST_BYTE, 1]).collect();
    assert!(pings.len() > 5);
    let thief: SocketAddr = "192.0.2.66:6".parse().unwrap();
    for ping in &pings {
        world.inject(0, thief, &ping.bytes);
    }
    world.run(seconds(5));
    assert_eq!(world.wire.take().unwrap().iter().filter(|sent| sent.to == thief).count(), 0);
    assert!(matches!(world.gateways[0].path_to(1), Path::Direct { address, .. } if address != thief));
}
