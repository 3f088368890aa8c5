//! Two sites come together: first packets, preshared keys, restarts, roaming, changes of configuration.

use penstock_proto::{AddPeerError, Gateway, Key, PeerConfig, PeerId, Reject, Role, Suite, Timings};

use crate::network::*;

#[test]
fn a_waiting_packet_arrives_after_one_round_trip() {
    let (mut world, a, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run(millis(40));
    assert_eq!(world.sites[1].received, [b"hello"]);
    let (role, local, remote) = world.sites[0].sends_on(b).unwrap();
    assert_eq!(role, Role::Initiator);
    assert_eq!(world.sites[1].sends_on(a), Some((Role::Responder, remote, local)));
    for (site, peer) in [(0, b), (1, a)] {
        let last = world.sites[site].gateway.peer(peer).unwrap().last_handshake().unwrap();
        assert!(last >= wall() && last <= wall() + millis(40));
    }
}

#[test]
fn the_responder_is_silent_until_it_is_confirmed() {
    let (mut world, a, b) = World::pair(1);
    world.block.insert(4);
    world.send(0, b, b"hello");
    world.run(seconds(1));
    assert_eq!(world.sites[1].established(), 1);
    assert_eq!(world.sites[1].sends_on(a), None);
    assert_eq!(world.sites[1].gateway.peer(a).unwrap().last_handshake(), None);
    world.send(1, a, b"too early");
    world.run(seconds(1));
    assert!(world.sent_by(1, 4).is_empty());
}

#[test]
fn preshared_keys_must_match() {
    let config = PeerConfig { preshared_key: Some(Key::from([7; 32])), ..PeerConfig::default() };
    let (mut world, a, b) = World::pair_with(1, config);
    world.send(0, b, b"one");
    world.run(seconds(1));
    assert_eq!(world.sites[1].received.len(), 1);

    // Existing sessions go on; the next handshake fails without an answer.
    world.sites[1].gateway.set_preshared_key(a, Some(Key::from([8; 32])));
    world.send(0, b, b"two");
    world.run(seconds(1));
    assert_eq!(world.sites[1].received.len(), 2);
    world.run_until(seconds(200));
    let before = world.sites[0].established();
    world.send(0, b, b"three");
    world.run(seconds(30));
    assert_eq!(world.sites[0].established(), before);
    assert!(world.sites[0].count(|h| *h == Happened::Rejected(Reject::Response)) >= 5);
    assert_eq!(world.sites[1].received.len(), 2);

    world.sites[0].gateway.set_preshared_key(b, Some(Key::from([8; 32])));
    world.run(seconds(6));
    assert_eq!(world.sites[1].received.len(), 3);
}

#[test]
fn both_at_once_settle_on_one_session() {
    for seed in 0..50 {
        let (mut world, a, b) = World::pair(seed);
        world.faults.delay = millis(5)..millis(20);
        world.send(0, b, b"from a");
        world.send(1, a, b"from b");
        world.run(seconds(1));
        assert_eq!(world.sites[0].received, [b"from b"], "seed {seed}");
        assert_eq!(world.sites[1].received, [b"from a"], "seed {seed}");
        world.send(0, b, b"more from a");
        world.send(1, a, b"more from b");
        world.run(seconds(1));
        let (role, local, remote) = world.sites[0].sends_on(b).unwrap();
        let (other_role, other_local, other_remote) = world.sites[1].sends_on(a).unwrap();
        assert_eq!((local, remote), (other_remote, other_local), "seed {seed}");
        assert_ne!(role, other_role);
        world.run_until(seconds(100));
        assert!(world.sent_by(0, 1).len() + world.sent_by(1, 1).len() <= 3, "seed {seed}");
    }
}

#[test]
fn a_restarted_site_is_back_at_once() {
    for (site, other) in [(0, 1), (1, 0)] {
        let (mut world, a, b) = World::pair(1);
        let peers = [b, a];
        world.send(0, b, b"hello");
        world.run(seconds(1));
        let peer = world.restart(site, other);
        world.send(site, peer, b"again");
        world.run(millis(50));
        assert_eq!(world.sites[other].received.last().unwrap(), b"again");
        world.send(other, peers[other], b"welcome");
        world.run(millis(50));
        assert_eq!(world.sites[site].received.last().unwrap(), b"welcome");
    }
}

#[test]
fn data_by_a_session_of_before_a_restart_is_answered_by_a_call() {
    let (mut world, a, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run(seconds(1));
    let peer = world.restart(1, 0);
    let calls = |world: &World| world.sent_by(1, 1).len();
    // The first initiation and its retry are lost; another one follows a second later at the earliest.
    world.block.insert(1);
    for _ in 0..20 {
        world.sites[1].gateway.handle_unknown_session(world.now, peer);
        world.run(millis(50));
    }
    assert_eq!(calls(&world), 2);
    world.block.clear();
    world.run(millis(300));
    world.sites[1].gateway.handle_unknown_session(world.now, peer);
    world.run(millis(50));
    assert_eq!((calls(&world), world.sites[1].established()), (3, 2));
    world.send(0, b, b"by the new session");
    world.run(millis(50));
    assert_eq!(world.sites[1].received, [b"hello".to_vec(), b"by the new session".to_vec()]);

    // With a session, or without an endpoint, no initiation is sent.
    for _ in 0..5 {
        world.sites[1].gateway.handle_unknown_session(world.now, peer);
        world.sites[0].gateway.handle_unknown_session(world.now, b);
        world.run(seconds(1));
    }
    assert_eq!((calls(&world), world.sent_by(0, 1).len()), (3, 1));
    let peer = world.restart(1, 0);
    world.sites[1].gateway.set_endpoint(peer, None);
    world.sites[1].gateway.handle_unknown_session(world.now, peer);
    world.run(seconds(1));
    assert_eq!(calls(&world), 3);
    let _ = a;
}

#[test]
fn only_authentic_packets_move_the_endpoint() {
    let (mut world, a, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run(seconds(1));
    let home = world.sites[0].address;
    let away = "[2001:db8::7]:4242".parse().unwrap();

    let mut forged = world.sent_by(0, 1)[0].bytes.clone();
    forged[50] ^= 1;
    let replayed = world.sent_by(0, 1)[0].bytes.clone();
    assert_eq!(world.inject(1, away, &forged), Err(Reject::Mac1));
    assert_eq!(world.inject(1, away, &replayed), Err(Reject::Replay));
    assert_eq!(world.sites[1].gateway.peer(a).unwrap().endpoint(), Some(home));

    world.sites[0].address = away;
    world.send(0, b, b"from elsewhere");
    world.run(millis(20));
    assert_eq!(world.sites[1].gateway.peer(a).unwrap().endpoint(), Some(away));
    assert_eq!(world.sites[1].count(|h| *h == Happened::Endpoint(away)), 1);
    world.send(1, a, b"found you");
    world.run(millis(20));
    assert_eq!(world.sites[0].received, [b"found you"]);

    // And by a handshake.
    world.sites[0].address = home;
    world.run_until(seconds(130));
    world.send(0, b, b"old");
    world.run(seconds(1));
    assert_eq!(world.sites[1].gateway.peer(a).unwrap().endpoint(), Some(home));
}

#[test]
fn a_fixed_endpoint_stays_wherever_packets_come_from() {
    let (mut world, a, b) = World::pair_with(1, PeerConfig { fixed_endpoint: true, ..PeerConfig::default() });
    let home = world.sites[1].address;
    world.sites[1].address = "[2001:db8::7]:4242".parse().unwrap();
    world.send(1, a, b"from elsewhere, by a handshake");
    world.run(seconds(1));
    world.send(1, a, b"and by data");
    world.run(seconds(1));
    assert_eq!(world.sites[0].received.len(), 2);
    assert_eq!(world.sites[0].gateway.peer(b).unwrap().endpoint(), Some(home));
    assert_eq!(world.sites[0].count(|h| matches!(h, Happened::Endpoint(_))), 0);
}

#[test]
fn a_new_path_does_not_wait_for_the_old_ones_timeout() {
    let (mut world, a, b) = World::pair(1);
    let home = world.sites[1].address;
    world.sites[0].gateway.set_endpoint(b, "192.0.2.99:9".parse().ok());
    world.send(0, b, b"lost on the way");
    world.run(millis(100));
    world.sites[0].gateway.set_endpoint(b, Some(home));
    let now = world.now;
    world.sites[0].gateway.handle_path(now, b, false);
    world.run(millis(100));
    assert_eq!(world.sites[0].established(), 0, "the first one may still be answered");
    world.run(millis(250));
    assert_eq!(world.sites[0].established(), 1);

    // Nothing is under way: only a renewal starts a handshake.
    let (initiations, now) = (world.sent_by(0, 1).len(), world.now);
    world.sites[0].gateway.handle_path(now, b, false);
    world.run(seconds(1));
    assert_eq!(world.sent_by(0, 1).len(), initiations);
    let now = world.now;
    world.sites[0].gateway.handle_path(now, b, true);
    world.run(seconds(1));
    assert_eq!(world.sent_by(0, 1).len(), initiations + 1);
    assert_eq!((world.sites[0].established(), world.sites[1].established()), (2, 2));
    world.send(1, a, b"by the new session");
    world.run(seconds(1));
    assert_eq!(world.sites[0].received.len(), 1);
}

#[test]
fn a_renewal_on_a_new_path_takes_no_answer_from_the_old_one() {
    // The second initiation comes 5 ms after the first, so that the peer takes it for a repetition, or 40 ms after it.
    for between in [5, 40] {
        let (mut world, _, b) = World::pair(1);
        world.faults.delay = millis(60)..millis(61);
        world.send(0, b, b"waits for a session");
        world.run(millis(between));
        let now = world.now;
        world.sites[0].gateway.handle_path(now, b, true);
        world.run(millis(700));
        let indices = world.sent_by(0, 1).into_iter().map(|sent| sent.bytes[4..8].to_vec()).collect::<Vec<_>>();
        let (role, local, _) = world.sites[0].sends_on(b).expect("a session long before the usual five seconds");
        assert_eq!(role, Role::Initiator);
        assert_ne!(indices[0], local.to_le_bytes(), "the relay on the new path has never seen this session");
        assert_eq!(world.sites[1].received, [b"waits for a session"]);
    }
}

#[test]
fn a_peer_without_endpoint_waits_for_the_other() {
    let (mut world, a, b) = World::pair(1);
    world.sites[0].gateway.set_endpoint(b, None);
    assert!(!world.sites[0].gateway.handle_wanted(world.now, b));
    world.run(seconds(10));
    assert!(world.wire.is_empty());
    world.send(1, a, b"I know where you are");
    world.run(seconds(1));
    assert_eq!(world.sites[0].received.len(), 1);
    assert_eq!(world.sites[0].gateway.peer(b).unwrap().endpoint(), Some(world.sites[1].address));
}

#[test]
fn another_private_key_is_another_gateway() {
    let (mut world, a, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run(seconds(1));
    let same = world.sites[0].gateway.private_key().clone();
    assert_eq!(world.sites[0].gateway.set_private_key(same), None);
    assert!(world.sites[0].sends_on(b).is_some(), "the same key changes nothing");

    world.sites[0].gateway.set_private_key(other_key(77));
    world.drain(0);
    assert_eq!(world.sites[0].sends_on(b), None);
    assert_eq!(world.sites[0].gateway.live_indices(), 0);
    world.send(0, b, b"who am I");
    world.run(seconds(1));
    assert_eq!(world.sites[1].count(|h| *h == Happened::Rejected(Reject::UnknownPeer)), 1);

    let key = *world.sites[0].gateway.public_key();
    world.sites[1].gateway.remove_peer(a);
    let address = Some(world.sites[0].address);
    let config = PeerConfig { endpoint: address, ..PeerConfig::default() };
    world.sites[1].gateway.add_peer(world.now, key, config).unwrap();
    world.run(seconds(10));
    assert_eq!(world.sites[1].received.last().unwrap(), b"who am I");

    let peers_key = other_key(78);
    let config = PeerConfig::default();
    let public = penstock_proto::PublicKey::from(&peers_key);
    let id = world.sites[0].gateway.add_peer(world.now, public, config).unwrap();
    assert_eq!(world.sites[0].gateway.set_private_key(peers_key), Some(id));
    assert!(world.sites[0].gateway.peer(id).is_none());
}

#[test]
fn peers_come_and_go() {
    let (mut world, _, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run(seconds(1));
    let now = world.now;
    let gateway = &mut world.sites[0].gateway;
    let key = *gateway.peer(b).unwrap().public_key();
    let own = *gateway.public_key();
    let add = |gateway: &mut Gateway, key| gateway.add_peer(now, key, PeerConfig::default());
    assert_eq!(add(gateway, key), Err(AddPeerError::Duplicate(b)));
    assert_eq!(add(gateway, own), Err(AddPeerError::OwnKey));
    gateway.remove_peer(b);
    gateway.remove_peer(b);
    assert_eq!((gateway.live_indices(), gateway.peers().count()), (0, 0));
    assert_eq!(gateway.poll_timeout(), None);
    let again = add(gateway, key).unwrap();
    assert_ne!(again, b, "an old name names nobody");
    assert!(gateway.peer(b).is_none());
    assert!(!gateway.handle_wanted(now, b));
    assert_eq!(gateway.peer_of(&key), Some(again));
    world.drain(0);
    assert_eq!(world.sites[0].count(|h| matches!(h, Happened::Expired(_))), 1);
}

#[test]
fn a_gateway_can_move_to_another_thread() {
    fn sendable<T: Send>() {}
    sendable::<Gateway>();
}

/// Two sites with these suites, and what each accepts from the other.
fn suites(ours: (Suite, bool), theirs: (Suite, bool)) -> (World, PeerId, PeerId) {
    let config = |(suite, any_suite)| PeerConfig { suite, any_suite, ..PeerConfig::default() };
    let mut world = World::new(1, Timings::default(), 2);
    let b = world.introduce(0, 1, config(ours));
    let a = world.introduce(1, 0, config(theirs));
    (world, a, b)
}

#[test]
fn the_initiator_decides_the_suite_where_both_are_accepted() {
    for (initiator, responder) in Suite::ALL.into_iter().flat_map(|i| Suite::ALL.map(|r| (i, r))) {
        let (mut world, a, b) = suites((initiator, false), (responder, true));
        world.send(0, b, b"hello");
        world.run(seconds(1));
        world.send(1, a, b"welcome");
        world.run(seconds(1));
        assert_eq!((world.sites[1].received.len(), world.sites[0].received.len()), (1, 1));
        for (site, peer) in [(0, b), (1, a)] {
            let index = world.sites[site].plane.current[&peer];
            assert_eq!(world.sites[site].plane.sessions[&index].keys.suite, initiator);
        }
    }
}

#[test]
fn sites_that_disagree_about_the_suite_never_complete_a_handshake() {
    for suite in Suite::ALL {
        let (mut world, a, b) = suites((suite, false), (suite.other(), false));
        world.send(0, b, b"hello");
        world.send(1, a, b"hello");
        world.run(seconds(80));
        for (site, theirs) in [(0, suite.other()), (1, suite)] {
            assert_eq!(world.sites[site].established(), 0);
            assert!(world.sent_by(site, 2).is_empty(), "no initiation is answered");
            assert!(world.sent_by(site, 1).len() > 10, "it goes on trying, with its own suite");
            let refused = world.sites[site].count(|h| *h == Happened::SuiteRefused(theirs));
            assert!(refused > 10, "each side knows why: {refused}");
        }

        // A refused initiation is not refused a second time when somebody replays it.
        let repeated = world.sent_by(0, 1).last().unwrap().bytes.clone();
        let from = world.sites[0].address;
        assert_eq!(world.inject(1, from, &repeated), Err(Reject::Replay));

        // They agree at the next initiation.
        world.sites[1].gateway.set_suite(a, suite, false);
        world.send(0, b, b"hello");
        world.run(seconds(10));
        assert!(world.sites[0].established() > 0);
    }
}

#[test]
fn another_suite_comes_with_the_next_handshake() {
    let (mut world, _, b) = suites((Suite::ChaCha20Poly1305, true), (Suite::ChaCha20Poly1305, true));
    world.send(0, b, b"one");
    world.run(seconds(1));
    let suite = |world: &World| world.sites[0].plane.sessions[&world.sites[0].plane.current[&b]].keys.suite;
    world.sites[0].gateway.set_suite(b, Suite::Aes256Gcm, true);
    world.send(0, b, b"two");
    world.run(seconds(1));
    assert_eq!(suite(&world), Suite::ChaCha20Poly1305, "sessions live on");
    world.run_until(seconds(125));
    world.send(0, b, b"three");
    world.run(seconds(1));
    assert_eq!(suite(&world), Suite::Aes256Gcm);
    world.send(0, b, b"four");
    world.run(seconds(1));
    assert_eq!(world.sites[1].received.len(), 4);
}
