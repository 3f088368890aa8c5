//! Every NAT against every other: the path within ten seconds, the reason, and the name of the NAT.

use penstock_proto::path::{Path, Reason, RelayKind};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::simulator::nat::{Kind, direct_works};
use crate::simulator::{Faults, World, millis, seconds};
use crate::{plain, seeds};

#[test]
fn every_pair_of_nats_gets_the_path_that_the_oracle_says() {
    let mut wrong: Vec<String> = vec![];
    for seed in seeds(3, 40) {
        for a in Kind::ALL {
            for b in Kind::ALL {
                let mut world = World::new(seed, &[a, b], plain());
                world.faults = Faults::some(&mut StdRng::seed_from_u64(seed));
                world.send_data(millis(100));
                world.run(seconds(10));
                let expected = direct_works(a, b);
                for (site, peer) in [(0, 1), (1, 0)] {
                    let path = world.gateways[site].path_to(peer);
                    let right = match path {
                        Path::Direct { .. } => expected,
                        Path::Relay { .. } => !expected,
                        Path::None => false,
                    };
                    if !right {
                        let reason = world.gateways[site].paths[&peer].1;
                        wrong.push(format!("seed {seed}: {a:?} and {b:?}, site {site}: {path:?}, {reason}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_nat_is_named_rightly() {
    for seed in seeds(5, 200) {
        for kind in Kind::ALL {
            let mut world = World::new(seed, &[kind], plain());
            world.faults = Faults::some(&mut StdRng::seed_from_u64(seed));
            world.run(seconds(12));
            let (report, nat) = (world.gateways[0].report.unwrap(), &world.nats[0]);
            assert_eq!(report.udp_blocked, kind == Kind::UdpBlocked, "seed {seed}: {kind:?}");
            if report.udp_blocked {
                continue;
            }
            assert_eq!(report.reflexive.unwrap().ip(), nat.ip);
            assert_eq!(report.translated, Some(kind.translates()));
            assert_eq!(report.mapping, Some(kind.mapping()), "seed {seed}: {kind:?}");
            assert_eq!(report.filtering, Some(kind.filtering()), "seed {seed}: {kind:?}");
            let keeps = nat.preserves_port || !kind.translates();
            assert_eq!(report.port_preservation, Some(keeps), "seed {seed}: {kind:?}");
        }
    }
}

#[test]
fn the_reason_says_what_is_in_the_way() {
    let reasons = |a, b| {
        let mut world = World::new(1, &[a, b], plain());
        world.run(seconds(60));
        [(0, 1), (1, 0)].map(|(site, peer): (usize, usize)| world.gateways[site].paths[&peer])
    };
    let why = |a, b| reasons(a, b).map(|(_, reason)| reason);
    assert_eq!(why(Kind::FullCone, Kind::Symmetric), [Reason::Answered; 2]);
    assert_eq!(why(Kind::Symmetric, Kind::AddressDependent), [Reason::BothEndpointDependent; 2]);
    let expected = [Reason::EndpointDependentHere, Reason::EndpointDependentThere];
    assert_eq!(why(Kind::Symmetric, Kind::PortRestricted), expected);
    assert_eq!(why(Kind::UdpBlocked, Kind::None), [Reason::UdpBlockedHere, Reason::UdpBlockedThere]);
    let [(path, _), _] = reasons(Kind::UdpBlocked, Kind::None);
    assert!(matches!(path, Path::Relay { kind: RelayKind::Tls, .. }));
}

#[test]
fn many_peers_at_once_all_get_their_paths() {
    let kinds = [Kind::None, Kind::PortRestricted, Kind::Symmetric, Kind::Masquerade, Kind::FullCone, Kind::UdpBlocked];
    let mut world = World::new(7, &kinds, plain());
    world.faults = Faults::some(&mut StdRng::seed_from_u64(7));
    world.run(seconds(15));
    for (a, first) in kinds.iter().enumerate() {
        for (b, second) in kinds.iter().enumerate().filter(|(b, _)| *b != a) {
            let expected = direct_works(*first, *second);
            let shell = &world.gateways[a];
            assert_eq!((shell.is_direct(b), shell.is_relayed(b)), (expected, !expected), "{first:?} and {second:?}");
        }
    }
}
