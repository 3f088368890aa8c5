use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use x25519_dalek::{PublicKey, StaticSecret};

use super::binding::BINDING_LIFETIME;
use super::client::{Progress, RENEW_EVERY, RelayClient};
use super::*;
use crate::path::PROBE_LENGTH;
use crate::{Gateway, PeerConfig, generate_private_key};

const STREAM: Source = Source::Stream(7);

fn address(n: u8) -> Source {
    Source::Udp(([192, 0, 2, n], 47100).into())
}

struct Site {
    private: StaticSecret,
    public: PublicKey,
    client: RelayClient,
    at: Source,
}

struct Bench {
    now: Instant,
    relay: Relay,
    public: PublicKey,
    sites: Vec<Site>,
}

impl Bench {
    /// `n` sites that know the relay and are not bound; all but the last may talk to each other, and nobody to the
    /// last.
    fn new(n: u8) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let now = Instant::now() + Duration::from_secs(1000);
        let private = generate_private_key(&mut rng);
        let public = PublicKey::from(&private);
        let mut relay = Relay::new(private, [9; 32].into(), RelayLimits::default());
        let sites: Vec<Site> = (1..=n)
            .map(|i| {
                let private = generate_private_key(&mut rng);
                let client = RelayClient::new(now, &private, &public).unwrap();
                Site { public: PublicKey::from(&private), private, client, at: address(i) }
            })
            .collect();
        let friends: Vec<PublicKey> = sites[..sites.len() - 1].iter().map(|site| site.public).collect();
        for site in &sites {
            let peers = friends.iter().filter(|_| friends.contains(&site.public)).copied();
            relay.set_site(site.public, peers);
        }
        Self { now, relay, public, sites }
    }

    /// Binds a site where it is; how many messages it took.
    fn bind(&mut self, i: usize) -> usize {
        let (now, site) = (self.now, &mut self.sites[i]);
        site.client.renew(now);
        for round in 1..=3 {
            let message = site.client.poll_transmit(now).expect("due");
            let Ok(Outcome::Answer(answer)) = self.relay.handle_datagram(now, site.at, &message) else {
                panic!("no answer")
            };
            assert!(answer.len() < message.len(), "an amplifier");
            if let Some(Progress::Bound { .. }) = site.client.handle_datagram(now, &answer) {
                return round;
            }
        }
        panic!("never bound");
    }

    fn send(&mut self, i: usize, datagram: &[u8]) -> Result<Outcome, RelayDrop> {
        self.relay.handle_datagram(self.now, self.sites[i].at, datagram)
    }

    fn probe(&self, to: usize) -> Vec<u8> {
        let mut probe = vec![0; PROBE_LENGTH];
        probe[..4].copy_from_slice(&[FIRST_BYTE, 1, 1, 0]);
        probe[4..12].copy_from_slice(&SiteId::of(&self.sites[to].public).0);
        probe
    }
}

fn data(receiver: u32, len: usize) -> Vec<u8> {
    let mut datagram = vec![0x5a; len];
    datagram[..4].copy_from_slice(&[4, 0, 0, 0]);
    datagram[4..8].copy_from_slice(&receiver.to_le_bytes());
    datagram
}

#[test]
fn a_site_is_challenged_once_and_then_renews() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.bind(0), 2);
    assert_eq!(bench.bind(0), 1);
    assert!(bench.sites[0].client.is_bound(bench.now));
    assert_eq!(bench.sites[0].client.poll_timeout(), bench.now + RENEW_EVERY);
    bench.sites[0].at = STREAM;
    assert_eq!(bench.bind(0), 2);
}

#[test]
fn a_recorded_message_does_not_move_a_site_back() {
    let mut bench = Bench::new(3);
    bench.bind(0);
    bench.sites[0].client.renew(bench.now);
    let recorded = bench.sites[0].client.poll_transmit(bench.now).unwrap();
    bench.sites[0].at = address(77);
    bench.bind(0);
    bench.bind(1);
    let answer = bench.relay.handle_datagram(bench.now, address(1), &recorded);
    assert!(matches!(answer, Ok(Outcome::Answer(challenge)) if challenge.len() == CHALLENGE_LENGTH));
    assert_eq!(bench.send(1, &bench.probe(0)), Ok(Outcome::Forward(address(77))));
}

#[test]
fn sized_probes_pass_like_data_up_to_the_same_length() {
    let mut bench = Bench::new(3);
    bench.bind(0);
    bench.bind(1);
    for (kind, len, passes) in [
        (6, PROBE_LENGTH - 1, false),
        (6, PROBE_LENGTH, true),
        (6, 1472, true),
        (6, DATAGRAM_LIMIT, true),
        (6, DATAGRAM_LIMIT + 1, false),
        (7, PROBE_LENGTH, true),
        (7, PROBE_LENGTH + 1, false),
        (1, PROBE_LENGTH + 1, false),
    ] {
        let mut probe = bench.probe(1);
        probe[1] = kind;
        probe.resize(len, 0xa5);
        let expected = if passes { Ok(Outcome::Forward(address(2))) } else { Err(RelayDrop::Malformed) };
        assert_eq!(bench.send(0, &probe), expected, "kind {kind}, {len} bytes");
    }
}

/// Two sites behind one source are one to the relay. When the first moves away, the other keeps its place.
#[test]
fn a_site_that_leaves_a_source_takes_only_itself_along() {
    let mut bench = Bench::new(4);
    bench.bind(0);
    bench.sites[1].at = bench.sites[0].at;
    bench.bind(1);
    bench.bind(2);
    assert_eq!(bench.send(2, &bench.probe(0)), Err(RelayDrop::UnboundReceiver));
    bench.sites[0].at = address(77);
    bench.bind(0);
    assert_eq!(bench.send(2, &bench.probe(0)), Ok(Outcome::Forward(address(77))));
    assert_eq!(bench.send(2, &bench.probe(1)), Ok(Outcome::Forward(address(1))));
}

#[test]
fn nobody_binds_himself_as_another() {
    let mut bench = Bench::new(3);
    let (now, thief) = (bench.now, address(66));
    // With the victim's name and the attacker's own key.
    let mut client = RelayClient::new(now, &bench.sites[1].private, &bench.public).unwrap();
    let mut message = client.poll_transmit(now).unwrap();
    message[4..12].copy_from_slice(&SiteId::of(&bench.sites[0].public).0);
    let Ok(Outcome::Answer(challenge)) = bench.relay.handle_datagram(now, thief, &message) else { panic!("silence") };
    message[12..28].copy_from_slice(&challenge[12..28]);
    assert_eq!(bench.relay.handle_datagram(now, thief, &message), Err(RelayDrop::BadProof));
    // Another's cookie, a changed bit anywhere, every truncation.
    let honest = bench.sites[0].client.poll_transmit(now).unwrap();
    let Ok(Outcome::Answer(challenge)) = bench.relay.handle_datagram(now, address(1), &honest) else { panic!() };
    bench.sites[0].client.handle_datagram(now, &challenge);
    let honest = bench.sites[0].client.poll_transmit(now).unwrap();
    assert!(
        matches!(bench.relay.handle_datagram(now, thief, &honest), Ok(Outcome::Answer(a)) if a.len() == CHALLENGE_LENGTH)
    );
    for bit in 0..44 * 8 {
        let mut changed = honest;
        changed[bit / 8] ^= 1 << (bit % 8);
        let outcome = bench.relay.handle_datagram(now, address(1), &changed);
        assert!(!matches!(outcome, Ok(Outcome::Answer(a)) if a.len() == BOUND_LENGTH), "bit {bit}");
    }
    for len in 0..BIND_LENGTH {
        let outcome = bench.relay.handle_datagram(now, address(1), &honest[..len]);
        assert_eq!(outcome, Err(RelayDrop::Malformed), "{len} bytes");
    }
    assert_eq!(bench.relay.bindings.source_of(now, SiteId::of(&bench.sites[0].public)), None);
}

#[test]
fn answers_of_others_do_not_fool_a_site() {
    let mut bench = Bench::new(3);
    let (now, site) = (bench.now, &mut bench.sites[0]);
    let message = site.client.poll_transmit(now).unwrap();
    let Ok(Outcome::Answer(challenge)) = bench.relay.handle_datagram(now, site.at, &message) else { panic!() };
    assert_eq!(site.client.handle_datagram(now, &challenge), Some(Progress::Asked));
    let message = site.client.poll_transmit(now).unwrap();
    let Ok(Outcome::Answer(bound)) = bench.relay.handle_datagram(now, site.at, &message) else { panic!() };
    for bit in 0..bound.len() * 8 {
        let mut changed = bound.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(site.client.handle_datagram(now, &changed), Some(Progress::Bound { .. })), "bit {bit}");
    }
    for len in 0..bound.len() {
        assert_eq!(site.client.handle_datagram(now, &bound[..len]), None);
    }
    assert_eq!(site.client.handle_datagram(now, &bound), Some(Progress::Bound { round_trip: Duration::ZERO }));
    assert_eq!(site.client.handle_datagram(now, &bound), None, "nothing is awaited");
}

/// Every few forged challenges delay a binding by a second; they do not prevent it.
#[test]
fn forged_challenges_do_not_lock_a_site_out() {
    let mut bench = Bench::new(3);
    let id = SiteId::of(&bench.sites[0].public);
    for forged in 0..10u8 {
        let client = &mut bench.sites[0].client;
        bench.now = bench.now.max(client.poll_timeout());
        assert!(client.poll_transmit(bench.now).is_some());
        client.handle_datagram(bench.now, &message::challenge(id, &[forged + 1; 16]));
    }
    let Site { client, at, .. } = &mut bench.sites[0];
    for _ in 0..3 {
        bench.now = bench.now.max(client.poll_timeout());
        let bind = client.poll_transmit(bench.now).expect("due");
        let Ok(Outcome::Answer(answer)) = bench.relay.handle_datagram(bench.now, *at, &bind) else { panic!("silence") };
        client.handle_datagram(bench.now, &answer);
    }
    assert!(client.is_bound(bench.now));
}

#[test]
fn a_silent_relay_is_noticed_and_asked_less_and_less() {
    let mut bench = Bench::new(3);
    bench.bind(0);
    let client = &mut bench.sites[0].client;
    let mut sent = Vec::new();
    while sent.len() < 8 {
        let now = client.poll_timeout();
        assert!(client.poll_transmit(now).is_some() && client.poll_transmit(now).is_none());
        sent.push(now.duration_since(bench.now).as_secs());
    }
    assert_eq!(sent, [20, 21, 23, 27, 35, 51, 71, 91]);
    assert!(!client.is_bound(bench.now + Duration::from_secs(28)));
}

/// A real handshake in both directions, with the data that follows it.
#[test]
fn handshakes_and_data_find_their_way() {
    let mut bench = Bench::new(4);
    (0..4).for_each(|i| assert_eq!(bench.bind(i), 2));
    let mut rng = StdRng::seed_from_u64(2);
    let relay = "198.51.100.1:3479".parse().unwrap();
    for (a, b) in [(0, 1), (1, 0), (2, 1)] {
        let mut gateway = |own: usize, other: usize| {
            let rng = StdRng::seed_from_u64(rng.next_u64());
            let mut gateway = Gateway::new(bench.sites[own].private.clone(), rng, bench.now, SystemTime::now());
            let config = PeerConfig { endpoint: Some(relay), ..PeerConfig::default() };
            let peer = gateway.add_peer(bench.now, bench.sites[other].public, config).unwrap();
            (gateway, peer)
        };
        let ((mut initiator, peer), (mut responder, _)) = (gateway(a, b), gateway(b, a));
        initiator.handle_wanted(bench.now, peer);
        let initiation = initiator.poll_transmit().expect("an initiation").contents;
        assert_eq!(bench.send(a, &initiation), Ok(Outcome::Forward(bench.sites[b].at)));
        responder.handle_datagram(bench.now, relay, &initiation).unwrap();
        let response = responder.poll_transmit().expect("a response").contents;
        assert_eq!(bench.send(b, &response), Ok(Outcome::Forward(bench.sites[a].at)));
        let (ours, theirs) = (word(&initiation, 4), word(&response, 4));
        assert_eq!(bench.send(a, &data(theirs, 32)), Ok(Outcome::Forward(bench.sites[b].at)));
        assert_eq!(bench.send(b, &data(ours, 1452)), Ok(Outcome::Forward(bench.sites[a].at)));
        assert_eq!(bench.send(a, &data(theirs ^ 1, 32)), Err(RelayDrop::UnknownReceiver));
        // The fourth site is bound but nobody's peer: the same bytes from there go nowhere.
        assert_eq!(bench.send(3, &data(theirs, 32)), Err(RelayDrop::UnknownReceiver));
        assert_eq!(bench.send(3, &initiation), Err(RelayDrop::UnknownReceiver));
        let stranger = bench.relay.handle_datagram(bench.now, address(99), &data(theirs, 32));
        assert_eq!(stranger, Err(RelayDrop::UnboundSource));
    }
}

#[test]
fn policy_cuts_what_it_once_allowed() {
    let mut bench = Bench::new(3);
    (0..2).for_each(|i| assert_eq!(bench.bind(i), 2));
    let (now, ids) = (bench.now, [0, 1].map(|i| SiteId::of(&bench.sites[i].public)));
    bench.relay.routes.call(now, ids[1], ids[0], 5);
    assert_eq!(bench.send(0, &data(5, 100)), Ok(Outcome::Forward(address(2))));
    assert_eq!(bench.send(0, &bench.probe(1)), Ok(Outcome::Forward(address(2))));
    // One side is enough.
    bench.relay.set_site(bench.sites[1].public, []);
    assert_eq!(bench.send(0, &data(5, 100)), Err(RelayDrop::UnknownReceiver));
    assert_eq!(bench.send(0, &bench.probe(1)), Err(RelayDrop::UnknownReceiver));
    bench.relay.set_site(bench.sites[1].public, [bench.sites[0].public]);
    assert_eq!(bench.send(0, &bench.probe(1)), Ok(Outcome::Forward(address(2))));
    assert_eq!(bench.send(0, &data(5, 100)), Err(RelayDrop::UnknownReceiver), "the index went with the policy");
    bench.relay.remove_site(&bench.sites[0].public);
    assert_eq!(bench.send(0, &bench.probe(1)), Err(RelayDrop::UnboundSource));
}

#[test]
fn pairs_are_joined_and_parted_one_by_one() {
    let mut bench = Bench::new(4);
    (0..3).for_each(|i| assert_eq!(bench.bind(i), 2));
    let (now, keys) = (bench.now, [0, 1, 2, 3].map(|i| bench.sites[i].public));
    let ids = keys.map(|key| SiteId::of(&key));
    for (from, index, to) in [(0, 5, 1), (0, 6, 2), (1, 7, 0)] {
        bench.relay.routes.call(now, ids[to], ids[from], index);
    }
    bench.relay.set_pair(&keys[1], &keys[0], false);
    assert!(!bench.relay.are_joined(&keys[0], &keys[1]) && !bench.relay.are_joined(&keys[1], &keys[0]));
    assert_eq!(bench.send(0, &data(5, 100)), Err(RelayDrop::UnknownReceiver));
    assert_eq!(bench.send(1, &data(7, 100)), Err(RelayDrop::UnknownReceiver));
    assert_eq!(bench.send(0, &data(6, 100)), Ok(Outcome::Forward(address(3))), "another pair is not concerned");
    bench.relay.set_pair(&keys[0], &keys[1], true);
    assert_eq!(bench.send(0, &bench.probe(1)), Ok(Outcome::Forward(address(2))));
    assert_eq!(bench.send(0, &data(5, 100)), Err(RelayDrop::UnknownReceiver), "the index went with the pair");
    // No site is joined to itself, or to an unknown one that may come in later.
    bench.relay.set_pair(&keys[0], &keys[0], true);
    bench.relay.remove_site(&keys[3]);
    bench.relay.set_pair(&keys[0], &keys[3], true);
    bench.relay.add_site(keys[3]);
    assert!(!bench.relay.are_joined(&keys[0], &keys[0]) && !bench.relay.are_joined(&keys[0], &keys[3]));
    // A removed site comes back without its peers.
    bench.relay.remove_site(&keys[1]);
    bench.relay.add_site(keys[1]);
    assert!(!bench.relay.are_joined(&keys[0], &keys[1]));
    assert_eq!(bench.relay.count(now), (4, 2));
}

#[test]
fn bindings_end_and_streams_close() {
    let mut bench = Bench::new(3);
    bench.sites[1].at = STREAM;
    (0..2).for_each(|i| assert_eq!(bench.bind(i), 2));
    assert_eq!(bench.send(0, &bench.probe(1)), Ok(Outcome::Forward(STREAM)));
    bench.relay.stream_closed(7);
    assert_eq!(bench.send(0, &bench.probe(1)), Err(RelayDrop::UnboundReceiver));
    bench.now += BINDING_LIFETIME;
    assert_eq!(bench.send(0, &bench.probe(1)), Err(RelayDrop::UnboundSource));
}

#[test]
fn pairs_and_sites_are_bounded() {
    let mut bench = Bench::new(3);
    (0..2).for_each(|i| assert_eq!(bench.bind(i), 2));
    let ids = [0, 1].map(|i| SiteId::of(&bench.sites[i].public));
    bench.relay.routes.call(bench.now, ids[1], ids[0], 5);
    let RelayLimits { pair_bytes_per_second, pair_burst } = RelayLimits::default();
    let flood = |bench: &mut Bench| (0..).take_while(|_| bench.send(0, &data(5, 1000)).is_ok()).count() as u64;
    assert_eq!(flood(&mut bench), pair_burst / 1000);
    bench.now += Duration::from_millis(100);
    assert_eq!(flood(&mut bench), pair_bytes_per_second / 10 / 1000);
    assert_eq!(bench.send(0, &data(5, 1000)), Err(RelayDrop::OverBudget));
    // Initiations that are for nobody use up their sender's share.
    let mut initiation = vec![0; INITIATION_LENGTH];
    initiation[0] = INITIATION;
    let looked_at = (0..).take_while(|_| bench.send(1, &initiation) != Err(RelayDrop::TooManyInitiations)).count();
    assert_eq!(looked_at as u64, INITIATION_BURST);
}

/// An initiation with a MAC1 that holds, as whoever knows the receiver's public key can make it.
fn initiation(to: &PublicKey, index: u32) -> Vec<u8> {
    let mut datagram = vec![0; INITIATION_LENGTH];
    datagram[0] = INITIATION;
    datagram[4..8].copy_from_slice(&index.to_le_bytes());
    MacKeys::new(to).sign(&mut datagram, None);
    datagram
}

fn response(call: u32, index: u32) -> Vec<u8> {
    let mut datagram = vec![0; RESPONSE_LENGTH];
    datagram[0] = RESPONSE;
    datagram[4..8].copy_from_slice(&index.to_le_bytes());
    datagram[8..12].copy_from_slice(&call.to_le_bytes());
    datagram
}

/// Site 1 may talk to 0 and to 2; 2 is hostile, 0 and 1 have a session with the indices 100 and 101.
fn with_a_hostile_member() -> Bench {
    let mut bench = Bench::new(3);
    let keys = [0, 1, 2].map(|i| bench.sites[i].public);
    bench.relay.set_pair(&keys[1], &keys[2], true);
    (0..3).for_each(|i| assert_eq!(bench.bind(i), 2));
    assert!(bench.send(0, &initiation(&keys[1], 100)).is_ok());
    assert!(bench.send(1, &response(100, 101)).is_ok());
    bench
}

fn assert_the_session_holds(bench: &mut Bench) {
    let at = [0, 1].map(|i| bench.sites[i].at);
    assert_eq!(bench.send(0, &data(101, 100)), Ok(Outcome::Forward(at[1])));
    assert_eq!(bench.send(1, &data(100, 100)), Ok(Outcome::Forward(at[0])));
}

/// As fast as it may, for as long as a session lives.
#[test]
fn a_member_that_calls_all_the_time_pushes_out_no_session() {
    let mut bench = with_a_hostile_member();
    let victim = bench.sites[1].public;
    for index in 1000..6000 {
        bench.now += Duration::from_millis(50);
        if index % 200 == 0 {
            (0..3).for_each(|i| assert!(bench.bind(i) > 0));
        }
        assert!(bench.send(2, &initiation(&victim, index)).is_ok());
    }
    assert_the_session_holds(&mut bench);
}

/// By a member, and by whoever can forge the source of the other end.
#[test]
fn calls_that_nobody_answers_move_no_session() {
    let mut bench = with_a_hostile_member();
    let keys = [0, 1, 2].map(|i| bench.sites[i].public);
    assert!(bench.send(2, &initiation(&keys[1], 100)).is_ok(), "with the index of another's session");
    assert_the_session_holds(&mut bench);
    for index in 0..100 {
        assert!(bench.send(0, &initiation(&keys[1], index)).is_ok());
    }
    assert_the_session_holds(&mut bench);
}

#[test]
fn a_call_is_answered_once() {
    let mut bench = with_a_hostile_member();
    let keys = [0, 1, 2].map(|i| bench.sites[i].public);
    assert!(bench.send(1, &initiation(&keys[2], 500)).is_ok());
    for index in 600..700 {
        assert!(bench.send(2, &response(500, index)).is_ok());
    }
    assert!(bench.send(1, &data(600, 100)).is_ok());
    assert_eq!(bench.send(1, &data(601, 100)), Err(RelayDrop::UnknownReceiver));
    // An answer to a session, not to a call.
    assert_eq!(bench.send(0, &response(101, 700)), Ok(Outcome::Forward(bench.sites[1].at)));
    assert_eq!(bench.send(1, &data(700, 100)), Err(RelayDrop::UnknownReceiver));
}

#[test]
fn indices_are_forgotten_the_oldest_first_and_in_the_end_all() {
    let mut bench = Bench::new(3);
    let ids = [0, 1].map(|i| SiteId::of(&bench.sites[i].public));
    let (routes, now) = (&mut bench.relay.routes, bench.now);
    for index in 0..routes::CALLS_PER_PAIR as u32 + 10 {
        routes.call(now, ids[0], ids[1], index);
    }
    assert_eq!(routes.find(now, ids[1], 9), Err(RelayDrop::UnknownReceiver));
    assert_eq!(routes.find(now, ids[1], 10), Ok(ids[0]));
    for index in 100..100 + routes::SESSIONS_PER_PAIR as u32 + 10 {
        routes.call(now, ids[0], ids[1], index);
        assert_eq!(routes.answer(now, ids[1], index, index + 1000), Ok(ids[0]));
    }
    for (site, own) in [(ids[1], 0), (ids[0], 1000)] {
        assert_eq!(routes.find(now, site, 109 + own), Err(RelayDrop::UnknownReceiver));
        assert!(routes.find(now, site, 110 + own).is_ok());
        assert_eq!(routes.find(now + routes::ROUTE_LIFETIME, site, 110 + own), Err(RelayDrop::UnknownReceiver));
    }
}

#[test]
fn noise_of_every_size_goes_nowhere() {
    let mut bench = Bench::new(3);
    bench.bind(0);
    let mut rng = StdRng::seed_from_u64(3);
    for round in 0..20_000u32 {
        let mut datagram = vec![0; round as usize % 200];
        rng.fill_bytes(&mut datagram);
        if let Some(head) = datagram.first_chunk_mut::<4>() {
            *head = [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [4, 0, 0, 0], [0x50, 1, 1, 0], [0x50, 3, 1, 0]]
                [rng.next_u32() as usize % 6];
        }
        assert!(bench.send(0, &datagram).is_err());
    }
}
