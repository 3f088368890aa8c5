//! Many seeds of a bad network: whatever it does, packets flow again, and state stays bounded.

use penstock_proto::PeerConfig;

use crate::network::*;

#[test]
fn a_bad_network_delays_but_never_disconnects() {
    for seed in 0..40 {
        let (mut world, a, b) = World::pair(seed);
        world.sampling = Some(millis(250));
        world.faults.loss = 0.3;
        world.faults.duplication = 0.2;
        world.faults.delay = millis(1)..millis(400);
        for round in 0..400_u32 {
            world.send(0, b, &round.to_be_bytes());
            world.send(1, a, &round.to_be_bytes());
            world.run(seconds(1));
        }
        world.faults.loss = 0.0;
        world.run(seconds(20));
        for (site, peer) in [(0, b), (1, a)] {
            let received = world.sites[1 - site].received.len();
            assert!(received > 400 * 6 / 10, "seed {seed}: {received} of 400");
            world.send(site, peer, b"last");
            world.run(seconds(1));
            let last = world.sites[1 - site].received.last();
            assert_eq!(last.map(Vec::as_slice), Some(&b"last"[..]), "seed {seed}");
        }
        let handshakes = world.sent_by(0, 1).len() + world.sent_by(1, 1).len();
        assert!(handshakes < 60, "seed {seed}: {handshakes} initiations in 400 s");
    }
}

#[test]
fn a_cut_of_any_length_heals() {
    for cut in [1, 10, 60, 100, 170, 200, 600] {
        let (mut world, a, b) = World::pair(cut);
        world.sampling = Some(millis(250));
        world.send(0, b, b"hello");
        world.run(seconds(2));
        world.faults.loss = 1.0;
        for _ in 0..cut {
            world.send(0, b, b"lost");
            world.send(1, a, b"lost");
            world.run(seconds(1));
        }
        world.faults.loss = 0.0;
        world.run(seconds(12));
        world.sites.iter_mut().for_each(|site| site.received.clear());
        for _ in 0..20 {
            world.send(0, b, b"found");
            world.send(1, a, b"found");
            world.run(seconds(1));
        }
        for site in &world.sites {
            assert!(site.received.len() >= 19, "cut of {cut} s: {}", site.received.len());
        }
    }
}

#[test]
fn a_mesh_of_five_connects() {
    for seed in 0..5 {
        let mut world = World::new(seed, penstock_proto::Timings::default(), 5);
        world.sampling = Some(millis(250));
        world.faults.loss = 0.2;
        world.faults.duplication = 0.1;
        world.faults.delay = millis(1)..millis(100);
        let mut links = vec![];
        for from in 0..5 {
            for to in (0..5).filter(|to| *to != from) {
                links.push((from, world.introduce(from, to, PeerConfig::default())));
            }
        }
        for _ in 0..150 {
            for &(site, peer) in &links {
                world.send(site, peer, b"mesh");
            }
            world.run(seconds(1));
        }
        for site in &world.sites {
            assert!(site.received.len() > 4 * 150 * 7 / 10, "seed {seed}");
        }
    }
}
