use std::num::NonZeroU16;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::message::{Message, decode, encode_error, encode_success};
use super::*;

/// The socket of the shortest silence, behind Y's and the control's.
const SHORTEST: usize = 2;

/// What stands between the sockets and the server, and how the server behaves.
#[derive(Clone, Copy)]
struct World {
    /// How long a mapping lives after its last packet, in either direction.
    life: Duration,
    /// The same before packets have gone both ways for two seconds.
    young_life: Duration,
    server: Server,
    /// The NAT shows every socket at another address.
    scattered: bool,
    /// This many answers for the shortest silence are lost.
    lost: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Silent,
    /// As before RESPONSE-PORT was known: no answer, an error, or an answer to the sender.
    Drops,
    Refuses,
    Ignores,
    Heeds,
}

const GOOD: World =
    World { life: seconds(50), young_life: seconds(50), server: Server::Heeds, scattered: false, lost: 0 };

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

struct Mapping {
    born: Instant,
    last: Instant,
}

struct Run {
    outcome: Result<Bracket, LifetimeError>,
    took: Duration,
    /// By socket, when something was sent.
    sent: Vec<Vec<Duration>>,
    survived: Vec<Duration>,
}

fn run(mut world: World, silences: &[u64]) -> Run {
    let start = Instant::now();
    let server: SocketAddr = "192.0.2.1:3478".parse().unwrap();
    let silences: Vec<Duration> = silences.iter().copied().map(seconds).collect();
    let mut lifetime = Lifetime::new(start, &[server], &silences, StdRng::seed_from_u64(7));
    let mut mappings: Vec<Option<Mapping>> = (0..lifetime.sockets()).map(|_| None).collect();
    let mut sent = vec![vec![]; lifetime.sockets()];
    let (mut now, mut survived) = (start, vec![]);
    loop {
        while let Some((socket, query)) = lifetime.poll_transmit(now) {
            assert_eq!(query.to, server);
            sent[socket].push(now - start);
            let mapped = |socket: usize| -> SocketAddr {
                let host = if world.scattered { 1 + socket as u8 } else { 1 };
                ([198, 51, 100, host], 1000 + socket as u16).into()
            };
            let alive = |mapping: &Mapping| {
                let young = mapping.last - mapping.born < seconds(2);
                now - mapping.last < if young { world.young_life } else { world.life }
            };
            match &mut mappings[socket] {
                Some(mapping) if alive(mapping) => mapping.last = now,
                dead => *dead = Some(Mapping { born: now, last: now }),
            }
            let Ok(Message::Request { transaction, response_port, .. }) = decode(&query.bytes) else { panic!() };
            let answer = encode_success(&transaction, mapped(socket), server, None);
            let Some(port) = response_port.map(NonZeroU16::get) else {
                if world.server != Server::Silent {
                    lifetime.handle_datagram(now, socket, &answer);
                }
                continue;
            };
            match world.server {
                Server::Silent | Server::Drops => continue,
                Server::Refuses => lifetime.handle_datagram(now, socket, &encode_error(&transaction, 420)),
                Server::Ignores => lifetime.handle_datagram(now, socket, &answer),
                Server::Heeds => {
                    let to = usize::from(port - 1000);
                    if mapped(to).ip() != mapped(socket).ip() {
                        continue;
                    }
                    if to == SHORTEST && world.lost > 0 {
                        world.lost -= 1;
                    } else if let Some(mapping) = mappings[to].as_mut().filter(|mapping| alive(mapping)) {
                        mapping.last = now;
                        lifetime.handle_datagram(now, to, &answer);
                    }
                }
            }
        }
        survived.extend(lifetime.survived().filter(|known| survived.last() != Some(known)));
        if let Some(outcome) = lifetime.poll_outcome() {
            assert!(lifetime.poll_timeout().is_none() && lifetime.poll_transmit(now).is_none());
            return Run { outcome, took: now - start, sent, survived };
        }
        now = lifetime.poll_timeout().expect("it goes on");
    }
}

fn bracket(from: u64, to: Option<u64>) -> Result<Bracket, LifetimeError> {
    Ok(Bracket { from: seconds(from), to: to.map(seconds) })
}

const STEPS: [u64; 5] = [15, 30, 60, 120, 300];

#[test]
fn the_bracket_is_the_one_that_the_life_lies_in() {
    for (life, expected) in [
        (1, bracket(0, Some(15))),
        (20, bracket(15, Some(30))),
        (50, bracket(30, Some(60))),
        (299, bracket(120, Some(300))),
        (301, bracket(300, None)),
    ] {
        // A mapping that dies during the warm-up is made again, and is young.
        let world = World { life: seconds(life), young_life: seconds(life), ..GOOD };
        let run = run(world, &STEPS);
        assert_eq!(run.outcome, expected, "{life}");
        let upper = expected.unwrap().to.unwrap_or(seconds(300));
        assert!(run.took <= upper + OVERHEAD, "{life}: {:?}", run.took);
    }
}

#[test]
fn the_first_deadly_silence_ends_it() {
    let run = run(GOOD, &STEPS);
    assert!(run.took < seconds(60 + 6), "{:?}", run.took);
    assert_eq!(run.survived, [seconds(15), seconds(30)], "what is told meanwhile");
}

#[test]
fn an_x_warms_up_and_is_silent_then() {
    let young = World { young_life: seconds(20), ..GOOD };
    let run = run(young, &STEPS);
    assert_eq!(run.outcome, bracket(30, Some(60)), "the life of a flow both ways, not of a single exchange");
    for sent in &run.sent[SHORTEST..] {
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert_eq!(sent[1] - sent[0], WARMING_UP);
    }
}

#[test]
fn losses_do_not_shorten_a_life() {
    // Five of the six requests for the first silence.
    assert_eq!(run(World { lost: 5, ..GOOD }, &STEPS).outcome, bracket(30, Some(60)));
    assert_eq!(run(World { lost: 5, ..GOOD }, &[3, 5]).outcome, bracket(5, None));
    // All of them: a longer silence that was survived is the proof.
    assert_eq!(run(World { lost: 6, ..GOOD }, &[3, 5]).outcome, bracket(5, None));
}

#[test]
fn what_cannot_be_measured_is_no_bracket() {
    for (server, expected) in [
        (Server::Silent, LifetimeError::Blocked),
        (Server::Drops, LifetimeError::Unsupported),
        (Server::Refuses, LifetimeError::Unsupported),
        (Server::Ignores, LifetimeError::Unsupported),
    ] {
        let run = run(World { server, ..GOOD }, &STEPS);
        assert_eq!(run.outcome, Err(expected));
        assert!(run.took < seconds(7), "{:?}", run.took);
    }
    assert_eq!(run(World { scattered: true, ..GOOD }, &STEPS).outcome, Err(LifetimeError::Unsupported));
    let none = Lifetime::new(Instant::now(), &[], &[], StdRng::seed_from_u64(1)).poll_transmit(Instant::now());
    assert!(none.is_none());
}

#[test]
fn what_is_asked_is_bounded() {
    let server: SocketAddr = "192.0.2.1:3478".parse().unwrap();
    let silences: Vec<Duration> = (1..100).rev().map(seconds).collect();
    let lifetime = Lifetime::new(Instant::now(), &[server; 9], &silences, StdRng::seed_from_u64(1));
    assert_eq!(lifetime.sockets(), 1 + MAX_SERVERS + MAX_SILENCES);
    assert_eq!(lifetime.silences.last(), Some(&seconds(16)));
    let long = Lifetime::new(Instant::now(), &[server], &[seconds(9999)], StdRng::seed_from_u64(1));
    assert_eq!(long.silences, [MAX_SILENCE]);
}
