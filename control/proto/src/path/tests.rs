//! One agent and its peer, driven by hand: what is refused, and what is limited.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::{PublicKey, StaticSecret};

use super::constants::{MAX_CANDIDATES, MAX_PEER_REFLEXIVE, ROUND_BURST, TARGET_BURST, TARGET_PINGS_PER_SECOND};
use super::probe::ProbeKey;
use super::rounds::digest;
use super::*;
use crate::coordination::{Candidate, CandidateKind, NatType};
use crate::pmtu::{LinkMtu, MtuSource};
use crate::{Endpoint, Traffic};

mod given;

struct Bench {
    now: Instant,
    agent: PathAgent,
    peer: PublicKey,
    key: ProbeKey,
    ours: SiteId,
    theirs: SiteId,
    rng: StdRng,
}

fn bench() -> Bench {
    bench_of(1, 2)
}

fn bench_of(us: u8, them: u8) -> Bench {
    let (us, them) = (StaticSecret::from([us; 32]), StaticSecret::from([them; 32]));
    let (our_key, peer) = (PublicKey::from(&us), PublicKey::from(&them));
    let now = Instant::now();
    let mut agent = PathAgent::new(us, PathConfig::default(), StdRng::seed_from_u64(1));
    agent.add_peer(now, peer).unwrap();
    let key = ProbeKey::new(&them, &peer, &our_key).unwrap();
    let (ours, theirs) = (SiteId::of(&our_key), SiteId::of(&peer));
    Bench { now, agent, peer, key, ours, theirs, rng: StdRng::seed_from_u64(2) }
}

fn from(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

fn ping(transaction: u64) -> Probe {
    Probe::Ping(Ping { transaction, opened: None, birthday: false, selected: false, round: 0 })
}

impl Bench {
    fn give(&mut self, from: SocketAddr, probe: &Probe) -> Result<(), ProbeReject> {
        let bytes = self.key.seal(self.ours, self.theirs, probe, &mut self.rng);
        self.agent.handle_datagram(self.now, SocketId::TUNNEL, from, &bytes)
    }

    /// The pings: their destinations, and whether they say that the path is in use.
    fn told(&mut self) -> Vec<(SocketAddr, bool)> {
        let sent = self.transmits();
        let open = |sent: &PathTransmit| self.key.open(&Envelope::parse(&sent.bytes).unwrap()).unwrap();
        let told = |sent: &PathTransmit| match open(sent) {
            Probe::Ping(ping) => Some((sent.to, ping.selected)),
            _ => None,
        };
        sent.iter().filter_map(told).collect()
    }

    fn transmits(&mut self) -> Vec<PathTransmit> {
        std::iter::from_fn(|| self.agent.poll_transmit()).collect()
    }

    /// Does what becomes due within this time; returns what was sent.
    fn run(&mut self, span: Duration) -> Vec<PathTransmit> {
        let end = self.now + span;
        let mut sent = self.transmits();
        while let Some(at) = self.agent.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.agent.handle_timeout(self.now);
            sent.extend(self.transmits());
        }
        self.now = end;
        sent
    }
}

#[test]
fn keys_that_cannot_be_peers_are_refused() {
    let mut bench = bench();
    let own = PublicKey::from(&StaticSecret::from([1; 32]));
    assert_eq!(bench.agent.add_peer(bench.now, own), Err(AddSiteError::OwnKey));
    assert_eq!(bench.agent.add_peer(bench.now, bench.peer), Err(AddSiteError::Duplicate));
    assert_eq!(bench.agent.add_peer(bench.now, PublicKey::from([0; 32])), Err(AddSiteError::LowOrderKey));
}

#[test]
fn a_ping_is_answered_once_where_it_came_from_and_asked_back() {
    let mut bench = bench();
    assert_eq!(bench.give(from(7), &ping(1)), Ok(()));
    let sent = bench.transmits();
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|sent| sent.to == from(7) && sent.socket == SocketId::TUNNEL && sent.ttl.is_none()));
    let opened: Vec<Probe> =
        sent.iter().map(|sent| bench.key.open(&Envelope::parse(&sent.bytes).unwrap()).unwrap()).collect();
    assert_eq!(opened[0], Probe::Pong(Pong { transaction: 1, seen: from(7) }));
    let Probe::Ping(asked) = opened[1] else { panic!("{opened:?}") };
    // A copy says nothing, and neither does a pong from elsewhere or to no ping.
    assert_eq!(bench.give(from(8), &ping(1)), Err(ProbeReject::Replay));
    let pong = Probe::Pong(Pong { transaction: asked.transaction, seen: from(9) });
    assert_eq!(bench.give(from(8), &pong), Err(ProbeReject::Unasked));
    let other = Probe::Pong(Pong { transaction: asked.transaction ^ 1, seen: from(9) });
    assert_eq!(bench.give(from(7), &other), Err(ProbeReject::Unasked));
    assert!(bench.transmits().is_empty());
    assert_eq!(bench.agent.path(&bench.peer).unwrap().0, Path::None);
    assert_eq!(bench.give(from(7), &pong), Ok(()));
    let direct = Path::Direct { socket: SocketId::TUNNEL, address: from(7) };
    assert_eq!(bench.agent.path(&bench.peer).unwrap().0, direct);
    assert_eq!(bench.give(from(7), &pong), Err(ProbeReject::Unasked), "a copy");
}

fn two_relays() -> [Relay; 2] {
    [1_u16, 2].map(|number| {
        let address = ([198, 51, 100, 1], number).into();
        Relay { id: RelayId(number.into()), kind: RelayKind::Udp, address }
    })
}

#[test]
fn both_sides_use_the_same_relay() {
    let relays = two_relays();
    let selected = |bench: &Bench| match bench.agent.path(&bench.peer).unwrap().0 {
        Path::Relay { address, .. } => address,
        other => panic!("{other:?}"),
    };
    // The peer has the lower id, so it chooses.
    let mut bench = bench_of(2, 1);
    assert!(bench.theirs < bench.ours);
    bench.agent.set_relays(bench.now, &relays);
    assert_eq!(selected(&bench), relays[0].address);
    assert_eq!(bench.told(), [(relays[0].address, true), (relays[1].address, false)]);
    // The peer sends through the other one.
    let ping = Ping { transaction: 5, opened: None, birthday: false, selected: true, round: 0 };
    bench.give(relays[1].address, &Probe::Ping(ping)).unwrap();
    assert_eq!(selected(&bench), relays[1].address);
    let mut chooser = bench_of(1, 2);
    chooser.agent.set_relays(chooser.now, &relays);
    chooser.give(relays[1].address, &Probe::Ping(ping)).unwrap();
    assert_eq!(selected(&chooser), relays[0].address, "or both would change for ever");
    // It dies here: a relay that still works is better than following.
    for _ in 0..100 {
        bench.now += Duration::from_millis(100);
        bench.agent.handle_timeout(bench.now);
        for sent in bench.transmits().iter().filter(|sent| sent.to == relays[0].address) {
            let Ok(Probe::Ping(ping)) = bench.key.open(&Envelope::parse(&sent.bytes).unwrap()) else { continue };
            let pong = Probe::Pong(Pong { transaction: ping.transaction, seen: from(1) });
            bench.give(relays[0].address, &pong).unwrap();
        }
    }
    assert_eq!(selected(&bench), relays[0].address);
}

#[test]
fn a_chosen_relay_is_named_again_to_a_peer_that_uses_another() {
    let relays = two_relays();
    let mut chooser = bench_of(1, 2);
    chooser.agent.set_relays(chooser.now, &relays);
    chooser.transmits();
    chooser.now += Duration::from_millis(100);
    let mut says = |transaction| {
        let ping = Ping { transaction, opened: None, birthday: false, selected: true, round: 0 };
        chooser.give(relays[1].address, &Probe::Ping(ping)).unwrap();
        chooser.told().into_iter().filter(|(_, selected)| *selected).collect::<Vec<_>>()
    };
    assert_eq!(says(1), [(relays[0].address, true)]);
    assert_eq!(says(2), [], "but not all the time");
}

#[test]
fn what_is_for_others_from_others_or_forged_is_silence() {
    let mut bench = bench();
    let Bench { ours, theirs, now, .. } = bench;
    let nobody = SiteId([9; 8]);
    let expected = [
        (nobody, theirs, ProbeReject::Receiver),
        (ours, nobody, ProbeReject::Sender),
        (ours, ours, ProbeReject::Sender),
        (theirs, ours, ProbeReject::Receiver),
    ];
    for (receiver, sender, reject) in expected {
        let bytes = bench.key.seal(receiver, sender, &ping(1), &mut bench.rng);
        assert_eq!(bench.agent.handle_datagram(now, SocketId::TUNNEL, from(7), &bytes), Err(reject));
    }
    let mut bytes = bench.key.seal(ours, theirs, &ping(1), &mut bench.rng);
    for length in 0..PROBE_LENGTH {
        assert!(bench.agent.handle_datagram(now, SocketId::TUNNEL, from(7), &bytes[..length]).is_err());
    }
    bytes[50] ^= 1;
    let forged = bench.agent.handle_datagram(now, SocketId::TUNNEL, from(7), &bytes);
    assert_eq!(forged, Err(ProbeReject::NotAuthentic));
    assert!(bench.transmits().is_empty());
}

#[test]
fn a_flood_of_forgeries_ends_for_strangers_and_never_for_a_peers_own_address() {
    let mut bench = bench();
    bench.give(from(7), &ping(1)).unwrap();
    let forged = {
        let mut bytes = bench.key.seal(bench.ours, bench.theirs, &ping(2), &mut bench.rng);
        bytes[91] ^= 1;
        bytes
    };
    let stranger: SocketAddr = ([192, 0, 2, 66], 7).into();
    let mut limited = 0;
    for _ in 0..1000 {
        let reject = bench.agent.handle_datagram(bench.now, SocketId::TUNNEL, stranger, &forged);
        limited += usize::from(reject == Err(ProbeReject::RateLimited));
        let known = bench.agent.handle_datagram(bench.now, SocketId::TUNNEL, from(7), &forged);
        assert_eq!(known, Err(ProbeReject::NotAuthentic));
    }
    assert_eq!(limited, 800);
    assert_eq!(bench.give(from(7), &ping(3)), Ok(()));
}

#[test]
fn candidates_are_bounded_and_unsound_ones_ignored() {
    let mut bench = bench();
    let host = |address: SocketAddr| Candidate { kind: CandidateKind::Host, address };
    let unsound = ["127.0.0.1:53", "224.0.0.1:5", "0.0.0.0:5", "255.255.255.255:5", "192.0.2.1:0", "[ff02::1]:5"];
    let mut candidates: Vec<Candidate> = unsound.iter().map(|at| host(at.parse().unwrap())).collect();
    candidates.extend((1..1000).map(|port| host(from(port))));
    bench.agent.set_remote(bench.now, &bench.peer, &candidates, NatType::default());
    let sent = bench.transmits();
    assert_eq!(sent.len(), MAX_CANDIDATES);
    assert!(sent.iter().all(|sent| sent.to.ip() == from(1).ip() && sent.to.port() > 0));
    // Peer-reflexive candidates too: an authentic peer may come from anywhere, but not from everywhere.
    for number in 0..100 {
        bench.give(([198, 51, 100, number], 7).into(), &ping(u64::from(number))).unwrap();
    }
    bench.transmits();
    bench.now += Duration::from_millis(600);
    bench.agent.handle_timeout(bench.now);
    let asked = bench.transmits().len();
    assert!(asked <= MAX_CANDIDATES + MAX_PEER_REFLEXIVE, "{asked}");
}

#[test]
fn a_candidate_behind_a_nat_is_first_asked_by_a_probe_that_does_not_arrive() {
    let mut bench = bench();
    let candidates = [Candidate { kind: CandidateKind::ServerReflexive, address: from(7) }];
    bench.agent.set_remote(bench.now, &bench.peer, &candidates, NatType::default());
    let sent = bench.transmits();
    assert_eq!(sent.iter().map(|sent| (sent.to, sent.ttl)).collect::<Vec<_>>(), [(from(7), Some(2))]);
    // Without a relay that could tell when the peer is ready, waiting a second has to do.
    bench.now += Duration::from_secs(1);
    bench.agent.handle_timeout(bench.now);
    let sent = bench.transmits();
    assert_eq!(sent.iter().map(|sent| (sent.to, sent.ttl)).collect::<Vec<_>>(), [(from(7), None)]);
}

/// Gives the bench a direct path that is alive, on a link of 1500 bytes.
fn with_path() -> Bench {
    let mut bench = bench();
    bench.set_link(1500);
    bench.give(from(7), &ping(1)).unwrap();
    let asked = bench.opened().into_iter().find_map(|(_, probe)| match probe {
        Probe::Ping(ping) => Some(ping.transaction),
        _ => None,
    });
    bench.give(from(7), &Probe::Pong(Pong { transaction: asked.unwrap(), seen: from(9) })).unwrap();
    bench
}

impl Bench {
    fn set_link(&mut self, mtu: u16) {
        self.agent.set_links(self.now, &[LinkMtu { network: "0.0.0.0/0".parse().unwrap(), mtu }]);
    }

    fn opened(&mut self) -> Vec<(PathTransmit, Probe)> {
        let sent = self.transmits();
        let open = |sent: &PathTransmit| self.key.open(&Envelope::parse(&sent.bytes).unwrap()).unwrap();
        sent.into_iter().map(|sent| (sent.clone(), open(&sent))).collect()
    }

    fn size_checks(&mut self) -> Vec<(PathTransmit, SizeCheck)> {
        let sized = |(sent, probe)| match probe {
            Probe::SizedPing(check) => Some((sent, check)),
            _ => None,
        };
        self.opened().into_iter().filter_map(sized).collect()
    }
}

#[test]
fn sizes_are_asked_small_first_and_then_all_at_once_and_may_not_be_fragmented() {
    let mut bench = with_path();
    let [(sent, first)] = bench.size_checks()[..].to_vec().try_into().unwrap();
    assert_eq!((sent.bytes.len(), first.length, sent.dont_fragment), (PROBE_LENGTH, 92, true));
    let mtu = |bench: &Bench| bench.agent.mtu(&bench.peer).map(|mtu| (mtu.outer, mtu.inner, mtu.source)).unwrap();
    assert_eq!(mtu(&bench), (1500, 1440, MtuSource::Link));
    // From elsewhere, of another length, with another transaction: not an answer.
    assert_eq!(bench.give(from(8), &Probe::SizedPong(first)), Err(ProbeReject::Unasked));
    for wrong in [SizeCheck { length: 1472, ..first }, SizeCheck { transaction: 9, ..first }] {
        assert_eq!(bench.give(from(7), &Probe::SizedPong(wrong)), Err(ProbeReject::Unasked));
    }
    assert!(bench.size_checks().is_empty());
    assert_eq!(bench.give(from(7), &Probe::SizedPong(first)), Ok(()));
    let asked = bench.size_checks();
    assert!(asked.iter().all(|(sent, check)| sent.bytes.len() == usize::from(check.length) && sent.dont_fragment));
    let sizes: Vec<u16> = asked.iter().map(|(_, check)| check.length + 28).collect();
    assert_eq!(sizes, [1500, 1492, 1480, 1452, 1420, 1400, 1360, 1280]);
    assert_eq!(bench.give(from(7), &Probe::SizedPong(asked[3].1)), Ok(()));
    assert_eq!(mtu(&bench).2, MtuSource::Link, "more may come");
    assert_eq!(bench.give(from(7), &Probe::SizedPong(asked[0].1)), Ok(()));
    assert_eq!(mtu(&bench), (1500, 1440, MtuSource::Probed));
    let told: Vec<PathEvent> = std::iter::from_fn(|| bench.agent.poll_event()).collect();
    let mtus = told.iter().filter(|event| matches!(event, PathEvent::Mtu { .. })).count();
    assert_eq!(mtus, 2, "{told:?}");
    // A link that compresses gains nothing from the padding.
    let padding = &asked[0].0.bytes[PROBE_LENGTH..];
    assert!(padding.chunks_exact(8).all(|chunk| chunk != [0; 8]) && padding[..64] != padding[64..128]);
    // The size is confirmed only while data flows: keepalives are small.
    for data in [false, true] {
        for _ in 0..10 {
            bench.now += Duration::from_millis(100);
            let traffic = Traffic { sent_any: true, sent_data: data, ..Traffic::default() };
            bench.agent.handle_traffic(bench.now, &bench.peer, traffic);
            bench.agent.handle_timeout(bench.now);
        }
        assert_eq!(!bench.size_checks().is_empty(), data);
    }
}

#[test]
fn a_train_is_of_the_size_that_passes_and_each_of_its_pings_is_asked_for_by_name() {
    let mut bench = with_path();
    let peer = bench.peer;
    let train = bench.agent.make_train(&peer, 3, 4_000).unwrap();
    assert_eq!((train.to, train.length, train.pings.len()), (from(7), 1472, 3));
    let answers = |bench: &Bench| {
        let open = |bytes: &[u8]| bench.key.open(&Envelope::parse(bytes).unwrap()).unwrap();
        let asked = train.pings.iter().map(|(name, bytes)| match open(bytes) {
            Probe::SizedPing(check) if (check.transaction, bytes.len()) == (*name, 1472) => check,
            other => panic!("{other:?}"),
        });
        asked.collect::<Vec<_>>()
    };
    let answers = answers(&bench);
    let give = |bench: &mut Bench, check: SizeCheck| bench.give(from(7), &Probe::SizedPong(check));
    // A shorter one arrived, and one of no train.
    for wrong in [SizeCheck { length: 1471, ..answers[1] }, SizeCheck { transaction: 9, ..answers[1] }] {
        assert_eq!(give(&mut bench, wrong), Err(ProbeReject::Unasked));
    }
    assert_eq!(give(&mut bench, answers[1]), Ok(()));
    assert_eq!(give(&mut bench, answers[1]), Err(ProbeReject::Unasked), "a copy");
    let arrived = |bench: &mut Bench| {
        let names = std::iter::from_fn(|| bench.agent.poll_event()).filter_map(|event| match event {
            PathEvent::Arrived { transaction, .. } => Some(transaction),
            _ => None,
        });
        names.collect::<Vec<_>>()
    };
    assert_eq!(arrived(&mut bench), [answers[1].transaction]);
    assert!(bench.agent.make_train(&peer, 3, 4_000).is_some());
    assert_eq!(give(&mut bench, answers[2]), Err(ProbeReject::Unasked), "of the train before");
}

#[test]
fn a_sized_ping_is_answered_once_by_a_small_datagram_and_changes_nothing() {
    let mut bench = bench();
    let give = |bench: &mut Bench, transaction: u64, length: usize| {
        let probe = Probe::SizedPing(SizeCheck { transaction, length: length as u16 });
        let mut bytes = bench.key.seal(bench.ours, bench.theirs, &probe, &mut bench.rng).to_vec();
        bytes.resize(length, 0xa5);
        bench.agent.handle_datagram(bench.now, SocketId::TUNNEL, from(7), &bytes)
    };
    assert_eq!(give(&mut bench, 1, 1472), Ok(()));
    let [(sent, answer)] = bench.opened()[..].to_vec().try_into().unwrap();
    assert_eq!((sent.to, sent.bytes.len(), sent.dont_fragment), (from(7), PROBE_LENGTH, false));
    assert_eq!(answer, Probe::SizedPong(SizeCheck { transaction: 1, length: 1472 }));
    assert_eq!(give(&mut bench, 1, 1472), Err(ProbeReject::Replay));
    // What the data plane could not receive is not answered.
    bench.agent.set_receive_limit(1472);
    assert_eq!(give(&mut bench, 2, 1473), Err(ProbeReject::Length));
    assert_eq!(give(&mut bench, 3, 1472), Ok(()));
    assert_eq!(bench.transmits().len(), 1);
    assert_eq!(bench.agent.path(&bench.peer).unwrap().0, Path::None);
    // A peer that keeps asking is not answered forever, even from an address that is known to be its own.
    bench.give(from(7), &ping(5)).unwrap();
    bench.transmits();
    for transaction in 10..1010 {
        give(&mut bench, transaction, 1472).unwrap();
    }
    let answers = bench.transmits().len();
    assert!((90..=100).contains(&answers), "{answers}");
}

/// Somebody who has nothing to do with the overlay.
const VICTIM: [u8; 4] = [203, 0, 113, 9];
/// The most probes to the addresses of one announcement: four a second while our NAT is opened and while they are
/// checked.
const PER_ROUND: usize = MAX_CANDIDATES * 4 * 7;

/// As many addresses as a member may announce, all of them the victim's, and different ones each time.
fn announced(number: u32) -> Vec<Candidate> {
    let address = |place: u32| SocketAddr::from((VICTIM, 1024 + ((number * 16 + place) % 60_000) as u16));
    let candidate = |place| Candidate { kind: CandidateKind::ServerReflexive, address: address(place) };
    (0..MAX_CANDIDATES as u32).map(candidate).collect()
}

fn to_victim(sent: &[PathTransmit]) -> usize {
    sent.iter().filter(|sent| sent.to.ip() == SocketAddr::from((VICTIM, 0)).ip()).count()
}

#[test]
fn a_member_that_announces_other_addresses_all_the_time_has_few_probes_sent() {
    const RATE: u32 = 259;
    const SECONDS: u32 = 70;
    let mut bench = bench();
    let mut probes = 0;
    for number in 0..RATE * SECONDS {
        bench.agent.set_remote(bench.now, &bench.peer, &announced(number), NatType::default());
        probes += to_victim(&bench.run(Duration::from_secs(1) / RATE));
    }
    let interval = PathTimings::default().round_interval.as_secs() as u32;
    let rounds = (ROUND_BURST + SECONDS / interval) as usize;
    assert!(probes <= rounds * PER_ROUND, "{probes} probes in {SECONDS} s");
    // What it announced last counts in the end.
    let honest = [Candidate { kind: CandidateKind::Host, address: from(7) }];
    bench.agent.set_remote(bench.now, &bench.peer, &honest, NatType::default());
    let sent = bench.run(PathTimings::default().round_interval);
    assert!(sent.iter().any(|sent| sent.to == from(7)));
}

#[test]
fn a_member_that_begins_rounds_all_the_time_has_few_probes_sent() {
    const SECONDS: u32 = 600;
    let mut bench = bench();
    let (relays, ours) = (two_relays(), [Candidate { kind: CandidateKind::Host, address: from(9) }]);
    bench.agent.set_local(bench.now, &ours, NatType::default());
    bench.agent.set_relays(bench.now, &relays);
    bench.agent.set_remote(bench.now, &bench.peer, &announced(0), NatType::default());
    let mut probes = 0;
    for round in 1..=10 * SECONDS {
        let (transaction, opened) = (round.into(), Some(digest(&ours)));
        let ping = Ping { transaction, opened, birthday: false, selected: true, round };
        bench.give(relays[0].address, &Probe::Ping(ping)).unwrap();
        probes += to_victim(&bench.run(Duration::from_millis(100)));
    }
    let interval = PathTimings::default().round_interval.as_secs() as u32;
    // As many rounds as it may start, and our own, which become rarer.
    let rounds = (ROUND_BURST + SECONDS / interval + 5) as usize;
    assert!(probes <= rounds * PER_ROUND, "{probes} probes in {SECONDS} s");
    assert!(probes > PER_ROUND / 2, "{probes} probes: the rounds are there");
}

#[test]
fn one_address_that_many_members_name_is_probed_no_faster() {
    const SECONDS: u64 = 5;
    let mut bench = bench();
    for number in 10..250 {
        let member = PublicKey::from(&StaticSecret::from([number; 32]));
        bench.agent.add_peer(bench.now, member).unwrap();
        bench.agent.set_remote(bench.now, &member, &announced(number.into()), NatType::default());
    }
    let probes = to_victim(&bench.run(Duration::from_secs(SECONDS)));
    let most = u64::from(TARGET_BURST) + SECONDS * u64::from(TARGET_PINGS_PER_SECOND);
    assert!(probes as u64 <= most, "{probes} probes");
    assert!(probes as u64 > most / 2, "{probes} probes: it is tried");
}
