//! Two path agents with a live path of 1400 bytes, and an attacker on it who drops, truncates, extends, damages and
//! repeats datagrams and sends ICMP. Whatever the attacker does, only sizes that arrived are believed.
#![no_main]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use penstock_proto::coordination::{Candidate, CandidateKind, NatType};
use penstock_proto::path::{PathAgent, PathConfig, SocketId};
use penstock_proto::pmtu::{LinkMtu, MtuSource, TooBig};
use penstock_proto::{PublicKey, StaticSecret, Traffic};
use rand::SeedableRng;
use rand::rngs::StdRng;

const MTU: usize = 1400;
const DATA: Traffic = Traffic { sent_data: true, sent_any: true, received_data: false, received_any: false };

struct Site {
    agent: PathAgent,
    key: PublicKey,
    at: SocketAddr,
}

fn site(now: Instant, ours: u8, theirs: u8) -> Site {
    let (ours_key, theirs_key) = (StaticSecret::from([ours; 32]), StaticSecret::from([theirs; 32]));
    let (key, peer) = (PublicKey::from(&ours_key), PublicKey::from(&theirs_key));
    let at = |number: u8| SocketAddr::from(([192, 0, 2, number], 9));
    let mut agent = PathAgent::new(ours_key, PathConfig::default(), StdRng::seed_from_u64(ours.into()));
    agent.add_peer(now, peer).expect("the only peer");
    agent.set_links(now, &[LinkMtu { network: "0.0.0.0/0".parse().expect("a prefix"), mtu: 1500 }]);
    let candidate = Candidate { kind: CandidateKind::Host, address: at(theirs) };
    agent.set_remote(now, &peer, &[candidate], NatType::default());
    Site { agent, key, at: at(ours) }
}

/// Changes a datagram on its way.
fn mangle(bytes: &mut Vec<u8>, how: u8, what: u8) {
    match how & 7 {
        0 => bytes.clear(),
        1 => bytes.truncate(bytes.len() * usize::from(what) / 256),
        2 => bytes.resize(bytes.len() + usize::from(what) * 8, 0),
        3 => {
            let at = usize::from(what) * bytes.len() / 256;
            bytes[at] ^= 1 << (how >> 3 & 7);
        }
        _ => {}
    }
}

fuzz_target!(|input: &[u8]| {
    let mut now = Instant::now();
    let mut sites = [site(now, 1, 2), site(now, 2, 1)];
    let keys = [sites[1].key, sites[0].key];
    let mut seen: Vec<(usize, Vec<u8>)> = vec![];
    // More in one input only makes the run slow.
    let mut script = input[..input.len().min(512)].chunks_exact(2);
    for step in 0..100_u32 {
        for (number, peer) in keys.iter().enumerate() {
            let mut sent = vec![];
            let Site { agent, .. } = &mut sites[number];
            agent.handle_traffic(now, peer, DATA);
            agent.handle_timeout(now);
            while agent.poll_event().is_some() {}
            while let Some(transmit) = agent.poll_transmit() {
                sent.push(transmit.bytes);
            }
            for mut bytes in sent {
                if step > 5
                    && let Some([how, what]) = script.next()
                {
                    seen.push((1 - number, bytes.clone()));
                    mangle(&mut bytes, *how, *what);
                    let payload = [&[4, 0, 0, 0][..], &[*what; 4]].concat();
                    let to = sites[1 - number].at;
                    let told = TooBig { to, mtu: u16::from(*what) * 8, length: 1500, payload: &payload };
                    sites[number].agent.handle_too_big(now, &told, |_, index| index & 1 == 0);
                }
                if bytes.len() + 28 <= MTU {
                    let from = sites[number].at;
                    let _ = sites[1 - number].agent.handle_datagram(now, SocketId::TUNNEL, from, &bytes);
                }
            }
        }
        if let Some((to, bytes)) = seen.get(step as usize * 7 % seen.len().max(1)) {
            let from = sites[1 - to].at;
            // Repeating a large one would mean that it has arrived.
            if bytes.len() + 28 <= MTU {
                let _ = sites[*to].agent.handle_datagram(now, SocketId::TUNNEL, from, bytes);
            }
        }
        for (site, peer) in sites.iter().zip(&keys) {
            let Some(mtu) = site.agent.mtu(peer) else { continue };
            assert!(mtu.inner >= 1280 && mtu.outer <= 1500);
            assert!(mtu.source != MtuSource::Probed || usize::from(mtu.outer) <= MTU, "{mtu:?}");
        }
        now += Duration::from_millis(60);
    }
});
