//! Datagrams to a relay, from bound sources and from strangers, including bind messages with the header of a site.
//! Nothing is sent except to a site that the sender may talk to, and no answer is longer than its question. Also what a
//! site accepts as a relay's answer about signed documents.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use penstock_proto::path::SiteId;
use penstock_proto::relay::client::RelayClient;
use penstock_proto::relay::gossip::Gossip;
use penstock_proto::relay::{Outcome, Relay, RelayLimits, Source};
use penstock_proto::trust::{Authority, SigningKey, UnixTime};
use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::{PublicKey, StaticSecret};

const SITES: usize = 3;

fn at(number: usize) -> Source {
    if number == 1 { Source::Stream(number as u64) } else { Source::Udp(([192, 0, 2, number as u8], 9).into()) }
}

/// Sites 0 and 1 may talk; nobody may talk to 2. All are bound.
fn relay(now: Instant) -> (Relay, [PublicKey; SITES]) {
    let private = StaticSecret::from([9; 32]);
    let public = PublicKey::from(&private);
    let secrets = [1, 2, 3].map(|byte| StaticSecret::from([byte; 32]));
    let keys = secrets.each_ref().map(PublicKey::from);
    let mut relay = Relay::new(private, [7; 32].into(), RelayLimits::default());
    keys.iter().for_each(|key| relay.add_site(*key));
    relay.set_pair(&keys[0], &keys[1], true);
    let mut authority = Authority::found(SigningKey::from_seed([6; 32].into()));
    let documents = authority.revoke(UnixTime(1), [[4; 32].into()]).expect("room for one");
    relay.set_documents(&documents);
    for (number, secret) in secrets.iter().enumerate() {
        let mut client = RelayClient::new(now, secret, &public).expect("a sound key");
        while let Some(message) = client.poll_transmit(now) {
            let Ok(Outcome::Answer(answer)) = relay.handle_datagram(now, at(number), &message) else {
                panic!("no answer")
            };
            client.handle_datagram(now, &answer);
        }
        assert!(client.is_bound(now));
    }
    (relay, keys)
}

fuzz_target!(|input: &[u8]| {
    let mut now = Instant::now();
    let (mut relay, keys) = relay(now);
    let mut gossip = Gossip::new(now, StdRng::seed_from_u64(1));
    // More in one input only makes the run slow.
    let mut rest = &input[..input.len().min(4096)];
    while let [head, length, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        let sender = usize::from(head & 3);
        let named = SiteId::of(&keys[usize::from(head >> 2 & 3) % SITES]).0;
        let datagram = match head >> 4 & 3 {
            0 => bytes.to_vec(),
            1 => [&[0x50, 3, 1, 0][..], &named, bytes].concat(),
            2 => [&[0x50, [1, 6, 7, 8][usize::from(head >> 6)], 1, 0][..], &named, bytes].concat(),
            _ => {
                let kind = 1 + (head >> 6);
                let mut datagram = [&[kind, 0, 0, 0][..], bytes].concat();
                datagram.resize([148, 92, 64, 32 + bytes.len()][usize::from(head >> 6)], 0);
                datagram
            }
        };
        let from = if sender == SITES { Source::Udp(([203, 0, 113, 1], 1).into()) } else { at(sender) };
        match relay.handle_datagram(now, from, &datagram) {
            Ok(Outcome::Forward(to)) => assert!(sender < 2 && to == at(1 - sender), "{sender} reaches {to:?}"),
            Ok(Outcome::Answer(answer)) => assert!(answer.len() <= datagram.len()),
            Err(_) => {}
        }
        if let Some(mut ask) = gossip.poll_transmit(now) {
            // With its nonce, which only the relay knows.
            ask[1] = 9;
            ask.truncate(12);
            ask.extend_from_slice(bytes);
            assert!(gossip.handle_datagram(now, &ask).is_none_or(|documents| documents.len() <= bytes.len()));
            gossip.handle_datagram(now, bytes);
        }
        now += Duration::from_millis(u64::from(*length));
    }
    assert!(relay.count(now).1 <= SITES);
});
