//! Datagrams to a path agent: as anybody can send them, and with a valid header, from several addresses and at several
//! times. None may result in a path.
#![no_main]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use penstock_proto::coordination::{Candidate, CandidateKind, NatType};
use penstock_proto::path::{Path, PathAgent, PathConfig, SiteId, SocketId};
use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::{PublicKey, StaticSecret};

fuzz_target!(|input: &[u8]| {
    let mut now = Instant::now();
    let (ours, theirs) = (StaticSecret::from([1; 32]), PublicKey::from(&StaticSecret::from([2; 32])));
    let site = SiteId::of(&PublicKey::from(&ours));
    let mut agent = PathAgent::new(ours, PathConfig::default(), StdRng::seed_from_u64(1));
    agent.add_peer(now, theirs).expect("the only peer");
    let candidate = Candidate { kind: CandidateKind::ServerReflexive, address: ([192, 0, 2, 9], 9).into() };
    agent.set_remote(now, &theirs, &[candidate], NatType::default());
    // More in one input only makes the run slow.
    let mut rest = &input[..input.len().min(1024)];
    let mut left = 32;
    while let Some((&length, tail)) = rest.split_first() {
        let (datagram, tail) = tail.split_at(tail.len().min(usize::from(length)));
        let from: SocketAddr = ([192, 0, 2, length], 9).into();
        let _ = agent.handle_datagram(now, SocketId(u32::from(length & 1)), from, datagram);
        let kind = [1, 2, 6, 7][usize::from(length & 3)];
        let headed = [&[0x50, kind, 1, 0][..], &site.0, &SiteId::of(&theirs).0, datagram].concat();
        assert!(agent.handle_datagram(now, SocketId::TUNNEL, from, &headed).is_err());
        now += Duration::from_millis(100);
        agent.handle_timeout(now);
        while let Some(sent) = agent.poll_transmit() {
            assert_eq!(sent.to, candidate.address, "a stranger is never answered");
        }
        left -= 1;
        rest = if left == 0 { &[] } else { tail };
    }
    while agent.poll_event().is_some() {}
    assert!(matches!(agent.path(&theirs), Some((Path::None, ..))));
});
