//! The timers of the WireGuard paper, section 6, each checked against the clock.

use std::time::Duration;

use penstock_proto::{PeerConfig, PeerId, Role, Suite, Timings, Traffic, Used};

use crate::network::*;

/// One packet per second from site 0 to site 1.
fn chatter(world: &mut World, peer: PeerId, until: Duration) {
    while world.elapsed() < until {
        world.send(0, peer, b"tick");
        world.run(seconds(1));
    }
}

fn initiations(world: &World, site: usize) -> Vec<Duration> {
    world.sent_by(site, 1).iter().map(|sent| sent.at).collect()
}

fn established(happened: &Happened) -> bool {
    matches!(happened, Happened::Established(_))
}

#[test]
fn the_initiator_rekeys_every_120_seconds_and_nothing_is_lost() {
    let (mut world, _, b) = World::pair(1);
    chatter(&mut world, b, seconds(500));
    let times = initiations(&world, 0);
    assert_eq!(times.len(), 5, "{times:?}");
    for pair in times.windows(2) {
        let gap = pair[1] - pair[0];
        assert!((seconds(120)..seconds(122)).contains(&gap), "{times:?}");
    }
    assert!(initiations(&world, 1).is_empty());
    assert_eq!(world.sites[1].received.len(), 500);
    let expired = world.sites[0].times(|h| matches!(h, Happened::Expired(_)));
    let born = world.sites[0].times(established);
    for (born, expired) in born.iter().zip(&expired) {
        assert!(*expired <= *born + LIFETIME);
    }
    assert!(world.sites[0].gateway.live_indices() <= 2);
}

#[test]
fn a_session_that_is_not_used_ends_at_180_seconds_without_a_word() {
    let (mut world, _, b) = World::pair(1);
    world.send(0, b, b"once");
    world.run_until(seconds(600));
    assert!(world.sites[0].sends_on(b).is_none());
    let born = world.sites[0].times(established)[0];
    let expired = world.sites[0].times(|h| matches!(h, Happened::Expired(_)));
    assert_eq!(expired, [born + seconds(180)]);
    assert_eq!(initiations(&world, 0).len(), 1);
    assert_eq!(world.sites[0].gateway.live_indices(), 0);
    assert_eq!(world.sites[1].gateway.live_indices(), 0);
    assert_eq!(world.sites[0].gateway.poll_timeout(), None);
}

#[test]
fn an_unanswered_handshake_is_repeated_every_5_seconds_and_given_up_after_90() {
    let (mut world, _, b) = World::pair(1);
    world.block.extend([1, 2]);
    world.send(0, b, b"anyone?");
    world.run_until(seconds(300));
    let times = initiations(&world, 0);
    assert!((17..=18).contains(&times.len()), "{times:?}");
    for pair in times.windows(2) {
        let gap = pair[1] - pair[0];
        assert!((millis(5000)..=millis(5333)).contains(&gap), "{gap:?}");
    }
    assert_eq!(world.sites[0].times(|h| *h == Happened::GaveUp), [seconds(90)]);
    assert_eq!(world.sites[0].gateway.live_indices(), 0);
    let indices: std::collections::HashSet<_> =
        world.sent_by(0, 1).iter().map(|sent| sent.bytes[4..8].to_vec()).collect();
    assert_eq!(indices.len(), times.len(), "each initiation has its own index");
}

#[test]
fn a_handshake_is_given_up_after_90_seconds_under_traffic_too() {
    let (mut world, _, b) = World::pair(1);
    world.block.extend([1, 2]);
    while world.elapsed() < seconds(300) {
        world.send(0, b, b"anyone?");
        world.run(millis(100));
    }
    let gave_up = world.sites[0].times(|h| *h == Happened::GaveUp);
    assert_eq!(gave_up.len(), 3, "{gave_up:?}");
    assert_eq!(gave_up[0], seconds(90));
    for pair in gave_up.windows(2) {
        assert!((seconds(90)..seconds(96)).contains(&(pair[1] - pair[0])), "{gave_up:?}");
    }
    // The next packet starts another handshake, and no initiation leaves any sooner because of it.
    for pair in initiations(&world, 0).windows(2) {
        assert!((millis(5000)..=millis(5433)).contains(&(pair[1] - pair[0])));
    }
}

#[test]
fn a_silent_path_is_told_with_every_repetition() {
    let (mut world, _, b) = World::pair(1);
    world.block.extend([1, 2]);
    world.send(0, b, b"anyone?");
    world.run_until(seconds(60));
    let repeated = initiations(&world, 0).split_off(1);
    assert!(repeated.len() >= 11, "{repeated:?}");
    assert_eq!(world.sites[0].times(|h| *h == Happened::Silent), repeated);
}

#[test]
fn a_lost_rekey_on_a_path_that_works_is_no_silence() {
    let (mut world, a, b) = World::pair(1);
    let mut both_ways = |until: Duration| {
        while world.elapsed() < until {
            world.send(0, b, b"ping");
            world.run(millis(500));
            if world.sites[1].sends_on(a).is_some() {
                world.send(1, a, b"pong");
            }
            world.run(millis(500));
            if world.elapsed() == seconds(100) {
                world.block.extend([1, 2]);
            }
        }
        (initiations(&world, 0).len(), world.sites[0].times(|h| *h == Happened::Silent))
    };
    let (sent, silent) = both_ways(seconds(175));
    assert!(sent > 8 && silent.is_empty(), "{sent} initiations, silent at {silent:?}");
    // The session ends at 180 s, and after that nothing is received.
    let (_, silent) = both_ways(seconds(220));
    assert!((seconds(195)..seconds(202)).contains(&silent[0]), "{silent:?}");
}

#[test]
fn a_path_that_dies_under_traffic_is_silent_20_seconds_later() {
    let (mut world, _, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run_until(seconds(30));
    world.block.extend([1, 2, 4]);
    chatter(&mut world, b, seconds(60));
    let silent = world.sites[0].times(|h| *h == Happened::Silent);
    assert!((seconds(50)..=millis(50_500)).contains(&silent[0]), "{silent:?}");
}

#[test]
fn wanting_a_session_again_and_again_sends_no_more() {
    let (mut world, _, b) = World::pair(1);
    world.block.insert(1);
    for _ in 0..2000 {
        world.send(0, b, b"now!");
        world.run(millis(5));
    }
    assert_eq!(initiations(&world, 0).len(), 2);
}

#[test]
fn data_received_is_answered_within_10_seconds() {
    let (mut world, _, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run_until(seconds(100));
    let keepalives = world.sites[1].times(|h| *h == Happened::Keepalive);
    assert_eq!(keepalives.len(), 1);
    assert!((seconds(10)..seconds(11)).contains(&keepalives[0]), "{keepalives:?}");
    // The initiator's only keepalive confirms the session; a keepalive is not answered.
    assert_eq!(world.sites[0].count(|h| *h == Happened::Keepalive), 1);
}

#[test]
fn traffic_both_ways_needs_no_keepalives() {
    let (mut world, a, b) = World::pair(1);
    for _ in 0..50 {
        world.send(0, b, b"ping");
        world.run(millis(500));
        if world.sites[1].sends_on(a).is_some() {
            world.send(1, a, b"pong");
        }
        world.run(millis(500));
    }
    assert_eq!(world.sites[0].count(|h| *h == Happened::Keepalive), 1, "the confirming one");
    assert_eq!(world.sites[1].count(|h| *h == Happened::Keepalive), 0);
}

#[test]
fn no_answer_for_15_seconds_begins_a_handshake() {
    let (mut world, _, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run_until(seconds(30));
    world.block.extend([1, 2, 4]);
    world.send(0, b, b"are you there?");
    world.run_until(seconds(60));
    let times = initiations(&world, 0);
    assert_eq!(times[1], seconds(45), "{times:?}");
    world.block.clear();
    world.run_until(seconds(70));
    assert_eq!(world.sites[0].established(), 2);
}

#[test]
fn a_persistent_keepalive_connects_and_keeps_connected() {
    let config = PeerConfig { persistent_keepalive: Some(seconds(25)), ..PeerConfig::default() };
    let (mut world, a, _) = World::pair_with(1, config);
    world.run_until(seconds(1000));
    let mut last = Duration::ZERO;
    for sent in &world.wire {
        if sent.from == world.sites[0].address {
            assert!(sent.at - last <= seconds(25), "silent from {last:?} to {:?}", sent.at);
            last = sent.at;
        }
    }
    assert!(world.sites[1].sends_on(a).is_some());
    assert!(world.wire.iter().filter(|sent| sent.at > seconds(10)).count() < 100);
}

#[test]
fn a_persistent_keepalive_is_changed_and_ended() {
    let (mut world, _, b) = World::pair(1);
    world.run_until(seconds(50));
    assert!(world.wire.is_empty());
    let now = world.now;
    world.sites[0].gateway.set_persistent_keepalive(now, b, Some(seconds(10)));
    world.run_until(seconds(100));
    assert_eq!(world.sites[0].count(|h| *h == Happened::Keepalive), 5);
    let now = world.now;
    world.sites[0].gateway.set_persistent_keepalive(now, b, Some(Duration::ZERO));
    let sent = world.sent_by(0, 4).len();
    world.run_until(seconds(300));
    assert_eq!(world.sent_by(0, 4).len(), sent);
}

#[test]
fn a_persistent_keepalive_goes_on_after_a_handshake_was_given_up() {
    let config = PeerConfig { persistent_keepalive: Some(seconds(25)), ..PeerConfig::default() };
    let (mut world, a, _) = World::pair_with(1, config);
    world.block.insert(1);
    world.run_until(seconds(300));
    assert!(world.sites[0].count(|h| *h == Happened::GaveUp) >= 1);
    world.block.clear();
    world.run_until(seconds(340));
    assert!(world.sites[1].sends_on(a).is_some());
}

#[test]
fn an_initiator_that_only_receives_rekeys_once_at_165_seconds() {
    let (mut world, _, b) = World::pair(1);
    world.send(0, b, b"hello");
    let receiving = Traffic { received_any: true, ..Traffic::default() };
    let receive = |world: &mut World, at| {
        world.run_until(at);
        let now = world.now;
        world.sites[0].gateway.handle_traffic(now, b, receiving);
        world.drain(0);
        initiations(world, 0).len()
    };
    world.run_until(seconds(1));
    world.block.insert(1);
    assert_eq!(receive(&mut world, seconds(130)), 1);
    assert_eq!(receive(&mut world, seconds(165)), 1, "its birth was a round trip later");
    assert_eq!(receive(&mut world, millis(165_100)), 2);
    assert_eq!(receive(&mut world, millis(165_200)), 2);
}

#[test]
fn the_responder_rekeys_at_170_seconds_when_the_initiator_does_not() {
    let (mut world, a, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run_until(seconds(1));
    world.sites[0].gateway.remove_peer(b);
    world.drain(0);
    while world.elapsed() < seconds(175) {
        let now = world.now;
        let sending = Traffic { sent_any: true, received_any: true, ..Traffic::default() };
        world.sites[1].gateway.handle_traffic(now, a, sending);
        world.run(seconds(1));
    }
    let times = initiations(&world, 1);
    assert!((seconds(170)..seconds(172)).contains(&times[0]), "{times:?}");
}

fn messages(messages: u64) -> Used {
    Used { messages, blocks: 0 }
}

#[test]
fn used_up_sessions_are_replaced_and_then_refused() {
    let (mut world, a, b) = World::pair(1);
    world.send(0, b, b"hello");
    world.run_until(seconds(10));
    let (_, index, _) = world.sites[0].sends_on(b).unwrap();
    let (_, other, _) = world.sites[1].sends_on(a).unwrap();
    let now = world.now;
    world.sites[0].gateway.handle_session_used(now, b, index, messages(1 << 60));
    world.run(seconds(1));
    assert_eq!(world.sites[0].established(), 1, "2^60 messages are allowed");
    let now = world.now;
    world.sites[1].gateway.handle_session_used(now, a, other, messages((1 << 60) + 1));
    world.run(seconds(1));
    assert_eq!(world.sites[0].established(), 2, "the responder asks too");

    let (_, index, _) = world.sites[0].sends_on(b).unwrap();
    let now = world.now;
    world.sites[0].gateway.handle_session_used(now, b, index, messages(u64::MAX - (1 << 13)));
    world.drain(0);
    assert_eq!(world.sites[0].sends_on(b), None);
    world.run(seconds(6));
    assert!(world.sites[0].sends_on(b).is_some());
}

#[test]
fn many_blocks_are_as_many_messages() {
    let aes = PeerConfig { suite: Suite::Aes256Gcm, ..PeerConfig::default() };
    let mut world = World::new(1, Timings::default(), 2);
    let b = world.introduce(0, 1, aes.clone());
    world.introduce(1, 0, aes);
    world.send(0, b, b"hello");
    world.run_until(seconds(10));
    let used = |world: &mut World, blocks| {
        let (_, index, _) = world.sites[0].sends_on(b).unwrap();
        let now = world.now;
        world.sites[0].gateway.handle_session_used(now, b, index, Used { messages: 1000, blocks });
        world.drain(0);
        world.sites[0].sends_on(b).is_some()
    };
    assert!(used(&mut world, 1 << 35));
    world.run(seconds(1));
    assert_eq!(world.sites[0].established(), 1, "2^35 blocks are allowed");
    assert!(used(&mut world, (1 << 35) + 1), "the session lives while its successor is made");
    world.run(seconds(1));
    assert_eq!(world.sites[0].established(), 2);
    assert!(!used(&mut world, 1 << 36), "no more than 2^36");
    world.run(seconds(6));
    assert!(world.sites[0].sends_on(b).is_some());
}

#[test]
fn shortened_timings_shorten_everything() {
    let timings = Timings {
        rekey_after_time: seconds(2),
        reject_after_time: seconds(4),
        rekey_timeout: millis(300),
        rekey_timeout_jitter: millis(20),
        rekey_attempt_time: seconds(3),
        keepalive_timeout: millis(500),
        ..Timings::default()
    };
    let mut world = World::new(1, timings, 2);
    let b = world.introduce(0, 1, PeerConfig::default());
    world.introduce(1, 0, PeerConfig::default());
    for _ in 0..100 {
        world.send(0, b, b"tick");
        world.run(millis(100));
    }
    assert_eq!(world.sites[1].received.len(), 100);
    let rekeys = world.sites[0].count(|h| *h == Happened::Established(Role::Initiator));
    assert!((4..=6).contains(&rekeys), "{rekeys}");
}
