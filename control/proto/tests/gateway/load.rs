//! Under load: cookies, limits, and an honest peer that gets through a flood.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use penstock_proto::messages::{COOKIE_REPLY, INITIATION, RESPONSE};
use penstock_proto::{Gateway, PeerConfig, PublicKey, Reject};

use crate::network::*;

/// Somebody who knows the gateway's public key and sends initiations from arbitrary addresses.
struct Flood {
    gateway: Gateway,
    peer: penstock_proto::PeerId,
}

impl Flood {
    fn against(victim: &PublicKey, now: Instant) -> Self {
        let mut gateway = lone_gateway(99, now);
        let endpoint = Some("192.0.2.2:51820".parse().unwrap());
        let config = PeerConfig { endpoint, ..PeerConfig::default() };
        let peer = gateway.add_peer(now, *victim, config).unwrap();
        Self { gateway, peer }
    }

    /// A valid initiation from a peer that the victim does not know.
    fn initiation(&mut self, now: Instant) -> Vec<u8> {
        self.gateway.handle_wanted(now, self.peer);
        self.gateway.poll_transmit().unwrap().contents.to_vec()
    }
}

fn source(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0a00_0000 + number), 1000).into()
}

#[test]
fn an_honest_peer_connects_during_a_flood() {
    let (mut world, _, b) = World::pair(1);
    let start = world.start;
    let mut flood = Flood::against(world.sites[1].gateway.public_key(), start);
    let initiation = flood.initiation(start);
    let mut cookies = 0;
    for number in 0..20_000 {
        let result = world.inject(1, source(number), &initiation);
        match result {
            Err(Reject::UnknownPeer) => {}
            Err(Reject::UnderLoad) => cookies += 1,
            other => panic!("{other:?}"),
        }
        if number == 5_000 {
            world.send(0, b, b"honest");
        }
        world.run(millis(1));
    }
    assert!(cookies > 10_000, "{cookies}");
    let first = &world.sent_by(0, INITIATION)[0].bytes;
    let second = &world.sent_by(0, INITIATION)[1].bytes;
    assert_eq!(first[132..], [0; 16], "no MAC2 without a cookie");
    assert_ne!(second[132..], [0; 16]);
    assert_eq!(world.sent_by(0, INITIATION).len(), 2, "a cookie alone triggers nothing");
    assert_eq!(world.sites[1].received, [b"honest"]);

    // The load ends with the flood.
    world.run(seconds(3));
    assert_eq!(world.inject(1, source(0), &initiation), Err(Reject::UnknownPeer));
}

#[test]
fn a_flood_that_knows_no_key_is_no_load() {
    let (mut world, _, b) = World::pair(1);
    let mut datagram = [0; 148];
    datagram[0] = INITIATION;
    for number in 0..5000 {
        assert_eq!(world.inject(1, source(number), &datagram), Err(Reject::Mac1));
    }
    world.send(0, b, b"hello");
    world.run(millis(50));
    assert_eq!(world.sites[1].received.len(), 1);
    assert!(world.sent_by(1, COOKIE_REPLY).is_empty());
}

#[test]
fn a_proven_source_has_its_share_and_a_cookie_is_good_for_one_port() {
    let now = Instant::now();
    let mut victim = lone_gateway(1, now);
    let mut flood = Flood::against(&victim.public_key().clone(), now);
    let initiation = flood.initiation(now);
    let here = source(1);
    while victim.handle_datagram(now, here, &initiation) != Err(Reject::UnderLoad) {}
    let reply = std::iter::from_fn(|| victim.poll_transmit()).last().unwrap();
    assert_eq!((reply.to, reply.peer, reply.contents.len()), (here, None, 64));
    flood.gateway.handle_datagram(now, here, &reply.contents).unwrap();
    assert_eq!(
        flood.gateway.handle_datagram(now, here, &reply.contents),
        Err(Reject::CookieReply),
        "a cookie reply is taken once"
    );

    flood.gateway.handle_timeout(now + seconds(6));
    let proven = flood.gateway.poll_transmit().unwrap().contents.to_vec();
    let mut counts = [0; 3];
    for _ in 0..100 {
        match victim.handle_datagram(now, here, &proven) {
            Err(Reject::UnknownPeer) => counts[0] += 1,
            Err(Reject::RateLimited) => counts[1] += 1,
            _ => counts[2] += 1,
        }
    }
    assert_eq!(counts, [5, 95, 0]);
    let neighbour = SocketAddr::new(here.ip(), here.port() + 1);
    assert_eq!(victim.handle_datagram(now, neighbour, &proven), Err(Reject::UnderLoad));
    assert_eq!(victim.handle_datagram(now, source(2), &proven), Err(Reject::UnderLoad));
}

#[test]
fn a_responder_too_is_asked_for_a_cookie_and_gives_it_with_its_next_response() {
    let (mut world, _, b) = World::pair(1);
    let start = world.start;
    let mut flood = Flood::against(world.sites[0].gateway.public_key(), start);
    let initiation = flood.initiation(start);
    for number in 0..10_000 {
        let _ = world.inject(0, source(number), &initiation);
        if number == 2_000 {
            world.send(0, b, b"hello");
        }
        world.run(millis(1));
    }
    let responder = world.sites[1].address;
    let cookies = world.sent_by(0, COOKIE_REPLY);
    assert_eq!(cookies.iter().filter(|sent| sent.to == responder).count(), 1);
    let responses = world.sent_by(1, RESPONSE);
    assert_eq!(responses.len(), 2);
    assert_eq!(responses[0].bytes[76..], [0; 16]);
    assert_ne!(responses[1].bytes[76..], [0; 16]);
    assert_eq!(world.sites[1].received, [b"hello"]);
}
