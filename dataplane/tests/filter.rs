//! The firewall in whole workers: two behind memory ports, with the packets of a flow spread over both.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use penstock_dataplane::drop::DropReason;
use penstock_dataplane::engine::{Engine, EngineConfig, WorkerSetup};
use penstock_dataplane::filter::{
    Counter, DefaultRule, Direction, Firewall, Flows, Protocol, Rule, Rules, Service, Verdict,
};
use penstock_dataplane::frame::Pool;
use penstock_dataplane::loopback::Loopback;
use penstock_dataplane::ports::memory::{MemoryPort, Wire};
use penstock_dataplane::session::{Cipher, DATA_HEADER, Session, TAG};
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_dataplane::table::Table;
use penstock_dataplane::worker::Worker;

const FRAMES: u32 = 128;
/// Remote host and local host, in each family.
const PAIRS: [(&str, &str); 2] = [("10.2.0.1", "10.1.0.1"), ("fd02::1", "fd01::1")];
const UDP: u8 = 17;

/// A gateway of two workers with a session to itself; its only peer may use all addresses.
struct Gateway {
    engine: Engine,
    workers: Vec<(Worker, Wire, Wire)>,
    session: Arc<Session>,
    flows: Arc<Flows>,
}

impl Gateway {
    fn new() -> Self {
        let Loopback { engine, session, .. } = Loopback::new(FRAMES).unwrap();
        let wires: Vec<(Wire, Wire)> = (0..2).map(|_| Default::default()).collect();
        let setup = |(wan, lan): &(Wire, Wire)| WorkerSetup {
            pool: Pool::heap(FRAMES),
            wan: vec![Box::new(MemoryPort::new("wan", wan.clone()))],
            lan: vec![Box::new(MemoryPort::new("lan", lan.clone()))],
            core: None,
            busy_poll: false,
        };
        let workers = wires.iter().map(setup).collect();
        let config = EngineConfig { workers, table: Table::clone(&engine.table()), cipher: Cipher::detect() };
        let (engine, workers) = Engine::prepare(config).unwrap();
        let workers = workers.into_iter().zip(wires).map(|(worker, (wan, lan))| (worker, wan, lan)).collect();
        Self { engine, workers, session, flows: Arc::default() }
    }

    /// Lets everything out, and lets in only what these rules accept.
    fn protect(&self, rules: Vec<Rule>) {
        let default = |verdict| DefaultRule { verdict, counter: Counter::default() };
        let (inward, outward) = (default(Verdict::Drop), default(Verdict::Accept));
        let rules = Rules { inward, outward, rules, restrictions: HashMap::new() };
        let firewall = Some(Arc::new(Firewall::new(rules, Arc::clone(&self.flows))));
        self.engine.publish(Table { firewall, ..Table::clone(&self.engine.table()) });
    }

    /// Gives this worker a packet from the LAN; returns the messages that it sends into the tunnel.
    fn send(&mut self, worker: usize, packet: &[u8]) -> usize {
        let (worker, wan, lan) = &mut self.workers[worker];
        assert!(lan.send(worker.pool(), ([0; 4], 0).into(), 0, packet));
        worker.turn();
        wan.discard(worker.pool())
    }

    /// Gives this worker a packet from the tunnel; returns what it delivers to the LAN.
    fn receive(&mut self, worker: usize, packet: &[u8]) -> Option<Vec<u8>> {
        let mut message = [&[0; DATA_HEADER], packet, &[0; TAG]].concat();
        let counter = self.session.reserve(1, message.len() as u64).unwrap();
        self.engine.cipher().seal_batch(&mut [self.session.sealing(counter, &mut message)]);
        let (worker, wan, lan) = &mut self.workers[worker];
        assert!(wan.send(worker.pool(), ([192, 0, 2, 2], 47100).into(), 0, &message));
        worker.turn();
        lan.receive(worker.pool()).map(|message| message.bytes)
    }

    /// Messages that a worker has sent into its own tunnel.
    fn told_the_peer(&mut self, worker: usize) -> usize {
        let (worker, wan, _) = &mut self.workers[worker];
        wan.discard(worker.pool())
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.drops().find(|(r, _)| *r == reason).unwrap().1
    }
}

fn accept_in(port: u16) -> Rule {
    Rule {
        direction: Some(Direction::In),
        peers: None,
        sources: None,
        destinations: None,
        services: Some(vec![Service { protocol: Protocol::Number(UDP), ports: Some(port..=port) }]),
        verdict: Verdict::Accept,
        counter: Counter::default(),
    }
}

/// A UDP packet without checksums.
fn udp(source: &str, destination: &str, ports: [u16; 2], hops: u8) -> Vec<u8> {
    let mut packet = match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let header = [0x45, 0, 0, 28, 0, 0, 0x40, 0, hops, UDP, 0, 0];
            [&header[..], &s.octets(), &d.octets()].concat()
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => [&[0x60, 0, 0, 0, 0, 8, UDP, hops][..], &s.octets(), &d.octets()].concat(),
        _ => panic!("mixed families"),
    };
    packet.extend([ports[0].to_be_bytes(), ports[1].to_be_bytes(), [0, 8], [0, 0]].concat());
    packet
}

#[test]
fn the_reply_reaches_another_worker() {
    for (remote, local) in PAIRS {
        let mut gateway = Gateway::new();
        gateway.protect(Vec::new());
        let (request, reply) = (udp(local, remote, [5000, 53], 64), udp(remote, local, [53, 5000], 64));
        assert_eq!(gateway.receive(1, &reply), None);
        assert_eq!(gateway.dropped(DropReason::FilterDenied), 1);
        for _ in 0..3 {
            assert_eq!(gateway.send(0, &request), 1);
            assert!(gateway.receive(1, &reply).is_some());
            assert!(gateway.receive(0, &reply).is_some());
            assert_eq!(gateway.send(1, &request), 1);
        }
        assert_eq!(gateway.dropped(DropReason::FilterDenied), 1);
    }
}

#[test]
fn what_is_accepted_on_one_worker_is_known_to_the_other_and_counted_once() {
    for (remote, local) in PAIRS {
        let mut gateway = Gateway::new();
        let rule = accept_in(53);
        let counter = Arc::clone(&rule.counter);
        gateway.protect(vec![rule]);
        for _ in 0..3 {
            assert!(gateway.receive(0, &udp(remote, local, [5000, 53], 64)).is_some());
            assert_eq!(gateway.send(1, &udp(local, remote, [53, 5000], 64)), 1);
            assert!(gateway.receive(1, &udp(remote, local, [5000, 53], 64)).is_some());
            assert!(gateway.receive(1, &udp(remote, local, [5000, 54], 64)).is_none());
        }
        assert_eq!((counter.load(Relaxed), gateway.dropped(DropReason::FilterDenied)), (1, 3));
    }
}

#[test]
fn without_a_firewall_all_pass_and_a_new_one_holds_at_once() {
    for (remote, local) in PAIRS {
        let mut gateway = Gateway::new();
        let (packet, other) = (udp(remote, local, [5000, 53], 64), udp(remote, local, [5000, 54], 64));
        assert!(gateway.receive(0, &packet).is_some() && gateway.receive(1, &other).is_some());
        gateway.protect(vec![accept_in(53)]);
        assert!(gateway.receive(0, &packet).is_some() && gateway.receive(1, &other).is_none());
        // With other rules, a flow that is no longer accepted ends, although it is known.
        gateway.protect(vec![accept_in(54)]);
        assert!(gateway.receive(1, &packet).is_none() && gateway.receive(0, &other).is_some());
    }
}

/// The gateway's own ICMP errors pass if the packet they are about did; a dropped packet causes none.
#[test]
fn errors_about_what_passed_go_back_into_the_tunnel() {
    for (remote, local) in PAIRS {
        let mut gateway = Gateway::new();
        let nothing_out =
            Rule { direction: Some(Direction::Out), services: None, verdict: Verdict::Drop, ..accept_in(0) };
        gateway.protect(vec![accept_in(53), nothing_out]);
        assert_eq!(gateway.receive(0, &udp(remote, local, [5000, 53], 1)), None);
        assert_eq!(gateway.told_the_peer(0), 1, "time exceeded");
        assert_eq!(gateway.receive(0, &udp(remote, local, [5000, 54], 1)), None);
        assert_eq!(gateway.told_the_peer(0), 0);
        assert_eq!((gateway.dropped(DropReason::FilterDenied), gateway.dropped(DropReason::HopLimit)), (1, 0));
    }
}

/// As in a kernel, which forwards nothing at its last hop and so does not ask its firewall.
#[test]
fn what_goes_no_further_begins_no_flow() {
    for (remote, local) in PAIRS {
        let mut gateway = Gateway::new();
        gateway.protect(Vec::new());
        assert_eq!(gateway.send(0, &udp(local, remote, [5000, 53], 1)), 0);
        let (worker, _, lan) = &mut gateway.workers[0];
        assert!(lan.receive(worker.pool()).is_some(), "time exceeded");
        assert_eq!(gateway.receive(0, &udp(remote, local, [53, 5000], 64)), None);
        assert_eq!((gateway.dropped(DropReason::FilterDenied), gateway.dropped(DropReason::HopLimit)), (1, 0));
    }
}

/// A packet that waited for a session still belongs to its flow.
#[test]
fn a_packet_that_waited_in_control_passes() {
    let (remote, local) = PAIRS[0];
    let mut gateway = Gateway::new();
    gateway.protect(Vec::new());
    let with_session = gateway.engine.table();
    let mut table = Table::clone(&with_session);
    table.peers[0].sending = None;
    gateway.engine.publish(table);
    assert_eq!(gateway.send(0, &udp(local, remote, [5000, 53], 64)), 0);
    let Some(Notice::NoSession { packet, .. }) = gateway.engine.notices().pop() else { panic!("no notice") };
    gateway.engine.publish(Table::clone(&with_session));
    assert!(gateway.engine.command(1, Command::Send(packet)));
    gateway.workers[1].0.poll(false);
    assert_eq!(gateway.told_the_peer(1), 1);
    assert!(gateway.receive(0, &udp(remote, local, [53, 5000], 64)).is_some());
}
