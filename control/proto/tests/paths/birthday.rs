//! Guessing ports, where one NAT has endpoint-dependent mapping and the other filters by port.

use penstock_proto::path::{Path, PathConfig, SocketId};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::simulator::nat::Kind;
use crate::simulator::{Faults, RELAY, World, millis, seconds};
use crate::{plain, seeds};

const PAIRS: [(Kind, Kind); 2] = [(Kind::Symmetric, Kind::PortRestricted), (Kind::Symmetric, Kind::Masquerade)];

#[test]
fn most_pairs_win_a_direct_path() {
    let (mut won, mut all) = (0, 0);
    for seed in seeds(8, 60) {
        for (hard, easy) in PAIRS {
            let mut world = World::new(seed, &[hard, easy], PathConfig::default());
            world.faults = Faults::some(&mut StdRng::seed_from_u64(seed));
            world.send_data(millis(100));
            world.run(seconds(40));
            let (here, there) = (&world.gateways[0], &world.gateways[1]);
            assert!(here.opened_sockets <= 256);
            all += 1;
            if here.is_direct(1) && there.is_direct(0) {
                won += 1;
                let Path::Direct { socket, .. } = here.path_to(1) else { unreachable!() };
                // A guess may also hit the tunnel's own mapping.
                let extra = usize::from(socket != SocketId::TUNNEL);
                assert_eq!(here.sockets.len(), 1 + extra, "the tunnel's and the winner");
            } else {
                assert!(here.is_relayed(1) && there.is_relayed(0));
                assert_eq!(here.sockets.len(), 1, "all are closed again");
            }
            assert!(here.longest_gap(1) < seconds(1) && there.longest_gap(0) < seconds(1));
            // What was won lasts, and nothing is tried again soon.
            let direct = here.is_direct(1);
            world.run(seconds(120));
            assert_eq!(world.gateways[0].is_direct(1), direct);
            assert!(world.gateways[0].opened_sockets <= 256);
        }
    }
    // In theory 98.3 %, a little less with lost probes.
    assert!(won * 100 >= all * 90, "{won} of {all}");
    println!("{won} of {all}");
}

#[test]
fn the_number_and_pace_of_guesses_are_bounded() {
    let mut world = World::new(3, &[Kind::Symmetric, Kind::PortRestricted], PathConfig::default());
    world.run(seconds(4));
    // All guesses miss, because the hard side's NAT lets nobody in.
    let easy = world.nats[1].ip;
    let hard = world.nats[0].ip;
    world.wire = Some(vec![]);
    world.nats[0].cut.push(easy);
    for _ in 0..60 {
        let before = world.wire.as_ref().unwrap().len();
        world.run(seconds(1));
        let sent = world.wire.as_ref().unwrap()[before..].iter();
        let guesses = sent.filter(|sent| sent.to.ip() == hard && sent.from.ip() == easy).count();
        assert!(guesses <= 125, "{guesses} in a second");
    }
    let wire = world.wire.take().unwrap();
    let guesses = wire.iter().filter(|sent| sent.to.ip() == hard && sent.from.ip() == easy).count();
    assert!((1000..1200).contains(&guesses), "{guesses}");
    assert!(world.gateways[0].is_relayed(1) && world.gateways[1].is_relayed(0));
}

#[test]
fn the_switch_turns_it_off_on_either_side() {
    for off in [plain(), PathConfig::default()] {
        let kinds =
            if off.birthday { [Kind::Symmetric, Kind::Symmetric] } else { [Kind::Symmetric, Kind::PortRestricted] };
        let mut world = World::new(4, &kinds, off);
        world.run(seconds(60));
        assert_eq!(world.gateways[0].opened_sockets + world.gateways[1].opened_sockets, 0);
        assert!(world.gateways[0].is_relayed(1));
    }
}

/// A member can claim at any time that its addresses have changed.
#[test]
fn guessing_is_once_in_ten_minutes_whatever_changes() {
    let mut world = World::new(5, &[Kind::Symmetric, Kind::PortRestricted], PathConfig::default());
    world.run(seconds(4));
    let easy = world.nats[1].ip;
    world.nats[0].cut.push(easy);
    world.wire = Some(vec![]);
    for minute in 1..=20 {
        for _ in 0..2 {
            world.run(seconds(30));
            world.change_address(0);
        }
        let attempts = world.gateways[0].opened_sockets.div_ceil(256);
        assert!(attempts <= 1 + minute / 10, "{attempts} attempts in {minute} minutes");
    }
    assert!(world.gateways[0].opened_sockets >= 256, "it was tried");
    // Each guess goes to a different port.
    let wire = world.wire.take().unwrap();
    let sent = wire.iter().filter(|sent| sent.from.ip() == easy && sent.to.ip() != RELAY.ip());
    let guessed: std::collections::BTreeSet<_> = sent.map(|sent| sent.to).collect();
    assert!(guessed.len() <= 2 * 1024 + 200, "{} addresses were probed", guessed.len());
}
