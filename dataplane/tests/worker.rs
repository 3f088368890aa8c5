//! Workers behind memory ports: two gateways whose WANs the test connects.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::drop::{DropReason, Drops};
use penstock_dataplane::engine::{Engine, EngineConfig, WorkerSetup};
use penstock_dataplane::frame::Pool;
use penstock_dataplane::peer::PeerCounters;
use penstock_dataplane::ports::evidence::Evidence;
use penstock_dataplane::ports::memory::{MemoryPort, Message, Wire};
use penstock_dataplane::ports::{Batch, Link, Port, PortInfo};
use penstock_dataplane::prefix::PrefixMap;
use penstock_dataplane::session::{BY_KERNEL, Cipher, Session, SessionConfig, Suite, by_ring};
use penstock_dataplane::shaper::WanRate;
use penstock_dataplane::slow_path::{Command, Notice};
use penstock_dataplane::table::{PeerEntry, SessionEntry, Table};
use penstock_dataplane::worker::Worker;

/// A gateway of one worker, and the far ends of its ports.
struct Gateway {
    engine: Engine,
    worker: Worker,
    wan: Wire,
    lan: Wire,
    address: SocketAddr,
}

/// Enough for every packet that a test has in flight at once.
const FRAMES: u32 = 2048;

const SITES: [(&str, &str, u8); 2] = [("192.0.2.1:1", "10.0.0.0", 1), ("192.0.2.2:2", "10.1.0.0", 2)];

impl Gateway {
    /// Site `me` of two, with a session to the other; receiver indices are 100 + the site's number.
    fn new(me: usize) -> Self {
        let (wan, lan) = (Wire::default(), Wire::default());
        let (engine, mut workers) = Engine::prepare(config(&wan, &lan, table(me, true))).unwrap();
        Self { engine, worker: workers.remove(0), wan, lan, address: SITES[me].0.parse().unwrap() }
    }

    fn turn(&mut self) {
        while self.worker.turn() > 0 {}
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.drops().find(|(r, _)| *r == reason).unwrap().1
    }

    fn send_lan(&mut self, packet: &[u8]) -> bool {
        self.lan.send(self.worker.pool(), ([0; 4], 0).into(), 0, packet)
    }

    fn send_wan(&mut self, from: SocketAddr, tos: u8, datagram: &[u8]) -> bool {
        self.wan.send(self.worker.pool(), from, tos, datagram)
    }

    fn sent_to_lan(&mut self) -> Option<Message> {
        self.lan.receive(self.worker.pool())
    }

    fn sent_to_wan(&mut self) -> Option<Message> {
        self.wan.receive(self.worker.pool())
    }

    fn all_drops(&self) -> u64 {
        self.engine.drops().map(|(_, n)| n).sum()
    }
}

/// One worker between these queues.
fn config(wan: &Wire, lan: &Wire, table: Table) -> EngineConfig {
    let setup = WorkerSetup {
        pool: Pool::heap(FRAMES),
        wan: vec![Box::new(MemoryPort::new("wan", wan.clone()))],
        lan: vec![Box::new(MemoryPort::new("lan", lan.clone()))],
        core: None,
        busy_poll: false,
    };
    EngineConfig { workers: vec![setup], table, cipher: Cipher::detect() }
}

fn table(me: usize, with_session: bool) -> Table {
    let other = 1 - me;
    let peer = Arc::new(PeerCounters::new(7));
    let session = Arc::new(Session::new(SessionConfig {
        local_index: 100 + me as u32,
        remote_index: 100 + other as u32,
        suite: Suite::ChaCha20Poly1305,
        send_key: &[SITES[me].2; 32],
        receive_key: &[SITES[other].2; 32],
        born: Millis::now(),
        confirmed: me == 0,
        peer: Arc::clone(&peer),
    }));
    let mut allowed_ips = PrefixMap::default();
    allowed_ips.insert(SITES[other].1.parse().unwrap(), 16, 0);
    allowed_ips.insert(IpAddr::from([0xfd, 0, 0, other as u16, 0, 0, 0, 0]), 64, 0);
    let mut table = Table {
        peers: vec![PeerEntry {
            peer,
            endpoint: Some(SITES[other].0.parse::<SocketAddr>().unwrap().into()),
            roams: true,
            link: None,
            mtu: 1420,
            sending: with_session.then(|| Arc::clone(&session)),
            next: None,
        }],
        allowed_ips: Arc::new(allowed_ips),
        icmp_v4: Some([10, me as u8, 0, 254].into()),
        ..Table::default()
    };
    table.sessions.insert(session.local_index, SessionEntry { session, peer: 0 });
    table
}

/// Carries what one gateway sends to the other.
fn carry(from: &mut Gateway, to: &mut Gateway) -> Vec<Message> {
    let mut carried = Vec::new();
    while let Some(message) = from.sent_to_wan() {
        assert_eq!(message.remote, to.address);
        assert!(to.send_wan(from.address, message.tos, &message.bytes));
        carried.push(message);
    }
    carried
}

fn packet(source: [u8; 4], destination: [u8; 4], ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, ttl, 17, 0, 0];
    p[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    p.extend_from_slice(&source);
    p.extend_from_slice(&destination);
    let mut sum: u32 = p.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    p[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    p.extend_from_slice(payload);
    p
}

/// An IPv6 packet between hosts of the networks with these numbers, which are the sites'.
fn packet6(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, 0, payload.len() as u8, 17, 64];
    for network in [source, destination] {
        p.extend_from_slice(&Ipv6Addr::new(0xfd, 0, 0, network, 0, 0, 0, 1).octets());
    }
    p.extend_from_slice(payload);
    p
}

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 1, 0, 1];

#[test]
fn packets_of_every_size_cross_in_order() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    for size in 0..=1400 {
        a.send_lan(&packet(A, B, 64, &vec![size as u8; size]));
    }
    a.turn();
    assert_eq!(carry(&mut a, &mut b).len(), 1401);
    b.turn();
    for size in 0..=1400 {
        let message = b.sent_to_lan().unwrap();
        // Each gateway is a router: the TTL is lower by two.
        assert_eq!(message.bytes, packet(A, B, 62, &vec![size as u8; size]));
    }
    assert_eq!((a.all_drops(), b.all_drops()), (0, 0));
    assert!(
        matches!(b.engine.notices().pop(), Some(Notice::Confirmed { local_index: 101, from }) if from == a.address.into())
    );
    let (sent, received) = (&a.engine.table().peers[0].peer.sent, &b.engine.table().peers[0].peer.received);
    assert_eq!(sent.bytes.load(Relaxed), received.bytes.load(Relaxed));
    assert_eq!(sent.packets.load(Relaxed), 1401);
}

/// A busy worker counts batches and packets, but not turns without packets.
#[test]
fn a_workers_batches_and_packets_are_counted() {
    let mut gateway = Gateway::new(0);
    for packets in [3, 1] {
        for _ in 0..packets {
            gateway.send_lan(&packet(A, B, 64, b"counted"));
        }
        gateway.turn();
    }
    let done = gateway.engine.work().next().unwrap();
    assert_eq!((done.batches, done.packets, done.sleeps), ([1, 0, 1, 0, 0, 0, 0, 0], 4, 0));
}

/// A worker without packets sleeps. The time of a sleep is counted while it lasts, the sleep when it ends.
#[test]
fn a_workers_sleep_is_counted() {
    let begun = Instant::now();
    let engine = Engine::start(config(&Wire::default(), &Wire::default(), table(0, true))).unwrap();
    let work = || engine.work().next().unwrap();
    let until = |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    until("it does not sleep", &|| work().slept >= Duration::from_millis(50));
    // Nobody has woken it since.
    assert_eq!(work().sleeps, 0);
    engine.call();
    until("it does not wake", &|| work().sleeps > 0);
    let done = work();
    assert!(done.slept >= Duration::from_millis(50) && done.slept <= begun.elapsed(), "{done:?}");
    assert_eq!(done.packets, 0);
}

/// Sessions alternate in a batch, and dropped packets leave gaps: order, peers and counters stay right.
#[test]
fn a_batch_of_two_peers_and_all_fates_stays_in_order() {
    const SECOND: [u8; 4] = [10, 2, 0, 1];
    let mut b = Gateway::new(1);
    let mut table = (*b.engine.table()).clone();
    let session = |local_index, remote_index, peer: &Arc<PeerCounters>| {
        Arc::new(Session::new(SessionConfig {
            local_index,
            remote_index,
            suite: Suite::ChaCha20Poly1305,
            send_key: &[9; 32],
            receive_key: &[9; 32],
            born: Millis::now(),
            confirmed: true,
            peer: Arc::clone(peer),
        }))
    };
    let second = Arc::new(PeerCounters::new(8));
    table.sessions.insert(151, SessionEntry { session: session(151, 0, &second), peer: 1 });
    table.peers.push(PeerEntry { peer: second, ..table.peers[0].clone() });
    let mut allowed_ips = (*table.allowed_ips).clone();
    allowed_ips.insert(SECOND.into(), 16, 1);
    table.allowed_ips = Arc::new(allowed_ips);
    b.engine.publish(table);
    let first = self::table(0, true).sessions[&100].session.clone();
    let senders = [first, session(0, 151, &Arc::new(PeerCounters::new(0)))];

    // The sender, the source, and whether it arrives damaged.
    let batch = [(0, A, false), (1, SECOND, false), (0, A, true), (0, A, false), (1, A, false), (1, SECOND, false)];
    let mut expected = Vec::new();
    for (round, (sender, source, broken)) in batch.iter().cycle().take(60).enumerate() {
        let inner = packet(*source, B, 64, &[round as u8; 12]);
        let mut message = [&[0; 16][..], &inner, &[0; 16]].concat();
        let counter = senders[*sender].reserve(1, 64).unwrap();
        b.engine.cipher().seal_batch(&mut [senders[*sender].sealing(counter, &mut message)]);
        if *broken {
            *message.last_mut().unwrap() ^= 1;
        } else if (*sender, *source) != (1, A) {
            expected.push(packet(*source, B, 63, &[round as u8; 12]));
        }
        assert!(b.send_wan(b.address, 0, &message));
    }
    b.turn();
    assert_eq!(std::iter::from_fn(|| b.sent_to_lan()).map(|m| m.bytes).collect::<Vec<_>>(), expected);
    assert_eq!((b.dropped(DropReason::BadTag), b.dropped(DropReason::SpoofedSource), b.all_drops()), (10, 10, 20));
    let received = |place: usize| b.engine.table().peers[place].peer.received.packets.load(Relaxed);
    assert_eq!((received(0), received(1)), (20, 30));
}

/// A port that links can name, like an AF_XDP ring.
struct Ring(MemoryPort);

const RING_INTERFACE: u32 = 7;

impl Port for Ring {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        self.0.receive(pool, batch, drops);
    }

    fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch, drops: &Drops) {
        self.0.transmit(pool, batch, drops);
    }

    fn evidence(&self) -> Option<Arc<Evidence>> {
        self.0.evidence()
    }

    fn link_interface(&self) -> Option<u32> {
        Some(RING_INTERFACE)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }

    fn cheap_to_ask(&self) -> bool {
        true
    }

    fn info(&self) -> PortInfo {
        self.0.info()
    }
}

/// What proves a ring: the links by which a session's messages had left when the peer was first heard in it, and
/// whether the messages received from the ring were intact.
#[test]
fn a_session_tells_by_which_ways_it_was_answered() {
    let (ring, kernel, lan) = (Wire::default(), Wire::default(), Wire::default());
    let mut config = config(&kernel, &lan, table(0, true));
    let port = Ring(MemoryPort::new("ring", ring.clone()));
    let evidence = port.evidence().expect("it counts");
    config.workers[0].wan.insert(0, Box::new(port));
    let (engine, mut workers) = Engine::prepare(config).unwrap();
    let (mut worker, mut b) = (workers.remove(0), Gateway::new(1));
    let link = Link::new(RING_INTERFACE, SITES[0].0.parse::<SocketAddr>().unwrap().ip(), [2; 6], [4; 6], None);
    let from: SocketAddr = SITES[0].0.parse().unwrap();

    for (links, wires, ways) in [
        (&[Some(link)][..], &[&ring][..], by_ring(0)),
        (&[None], &[&kernel], BY_KERNEL),
        (&[None, Some(link)], &[&kernel, &ring], by_ring(0) | BY_KERNEL),
    ] {
        // New sessions on both sides.
        b.engine.publish(table(1, true));
        let mut fresh = table(0, true);
        let session = Arc::clone(&fresh.sessions[&100].session);
        assert_eq!((session.ours, session.left_by(), session.answered(), session.first_data()), (true, 0, None, None));
        for (link, wire) in links.iter().zip(wires) {
            fresh.peers[0].link = *link;
            engine.publish(fresh.clone());
            assert!(lan.send(worker.pool(), from, 0, &packet(A, B, 64, b"asked")));
            worker.turn();
            let message = wire.receive(worker.pool()).unwrap();
            assert!(b.send_wan(from, message.tos, &message.bytes));
        }
        assert_eq!((session.left_by(), session.answered()), (ways, None), "nothing was heard yet");
        assert!(session.first_data().is_some());
        b.turn();
        b.send_lan(&packet(B, A, 64, b"answered"));
        b.turn();
        let answer = b.sent_to_wan().unwrap();
        assert!(ring.send(worker.pool(), answer.remote, 0, &answer.bytes));
        worker.turn();
        assert_eq!(session.answered(), Some(ways));
        // A link used later has not been answered.
        session.leaves_by(by_ring(3), true, Millis::now());
        session.note_received();
        assert_eq!(session.answered(), Some(ways));
        let mut damaged = answer.bytes;
        *damaged.last_mut().unwrap() ^= 1;
        assert!(ring.send(worker.pool(), answer.remote, 0, &damaged));
        worker.turn();
        std::iter::from_fn(|| lan.receive(worker.pool())).for_each(drop);
    }
    let passed = evidence.passed();
    assert_eq!((passed.verified, passed.damaged), (3, 3));
}

#[test]
fn what_must_not_pass_is_dropped_and_counted() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    // A foreign source inside a genuine session.
    a.send_lan(&packet([10, 9, 0, 1], B, 64, &[]));
    a.send_lan(&packet(A, B, 64, &[1, 2, 3]));
    a.send_lan(&packet(A, [10, 2, 0, 1], 64, &[]));
    a.send_lan(&packet(A, [224, 0, 0, 22], 64, &[]));
    a.send_lan(&[0x45, 0, 0]);
    a.turn();
    let reasons = [DropReason::NoPeer, DropReason::NoPeerMulticast, DropReason::BadInner];
    assert_eq!(reasons.map(|reason| a.dropped(reason)), [1, 1, 1]);
    let sent = carry(&mut a, &mut b);
    b.turn();
    assert_eq!(b.dropped(DropReason::SpoofedSource), 1);
    assert!(b.sent_to_lan().is_some() && b.sent_to_lan().is_none());
    // The same again, altered, truncated, and addressed to nobody.
    let honest = &sent[1].bytes;
    b.send_wan(a.address, 0, honest);
    let mut changed = honest.clone();
    *changed.last_mut().unwrap() ^= 1;
    b.send_wan(a.address, 0, &changed);
    b.send_wan(a.address, 0, &honest[..31]);
    b.send_wan(a.address, 0, &honest[..3]);
    let mut nobody = honest.clone();
    nobody[4] ^= 0x80;
    b.send_wan(a.address, 0, &nobody);
    b.turn();
    for (reason, times) in [
        (DropReason::Replayed, 1),
        (DropReason::BadTag, 1),
        (DropReason::Truncated, 2),
        (DropReason::UnknownSession, 1),
        (DropReason::SpoofedSource, 1),
    ] {
        assert_eq!(b.dropped(reason), times, "{reason:?}");
    }
    assert!(b.sent_to_lan().is_none());
}

/// From the tunnel only packets to this site are delivered, in both families, unless transit is allowed.
#[test]
fn what_is_not_this_sites_is_not_delivered() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    let packets =
        [packet(A, B, 64, &[1]), packet(A, [10, 1, 9, 9], 64, &[2]), packet6(0, 1, &[3]), packet6(0, 9, &[4])];
    for (reachable, delivered) in
        [(None, 4), (Some(vec![(IpAddr::from(B), 32), ("fd:0:0:1::".parse().unwrap(), 64)]), 2)]
    {
        let mut table = Arc::unwrap_or_clone(b.engine.table());
        table.reachable = reachable.map(|prefixes| {
            let mut map = PrefixMap::default();
            for (address, length) in prefixes {
                map.insert(address, length, ());
            }
            Arc::new(map)
        });
        b.engine.publish(table);
        // Everything beyond A belongs to B.
        let mut table = Arc::unwrap_or_clone(a.engine.table());
        let mut all = PrefixMap::default();
        all.insert(IpAddr::from([0; 4]), 0, 0);
        all.insert(IpAddr::from([0; 16]), 0, 0);
        table.allowed_ips = Arc::new(all);
        a.engine.publish(table);
        packets.iter().for_each(|packet| assert!(a.send_lan(packet)));
        a.turn();
        carry(&mut a, &mut b);
        b.turn();
        let arrived = std::iter::from_fn(|| b.sent_to_lan()).count();
        assert_eq!((arrived, b.dropped(DropReason::Transit)), (delivered, 4 - delivered as u64));
    }
}

#[test]
fn routers_answer_what_they_cannot_forward() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    a.send_lan(&packet(A, B, 1, &[0; 8]));
    a.send_lan(&packet(A, B, 64, &[0; 1401]));
    a.turn();
    let (expired, too_big) = (a.sent_to_lan().unwrap().bytes, a.sent_to_lan().unwrap().bytes);
    assert_eq!((expired[20], &expired[12..20]), (11, &[10, 0, 0, 254, 10, 0, 0, 1][..]));
    assert_eq!((&too_big[20..22], &too_big[26..28]), (&[3, 4][..], &1420u16.to_be_bytes()[..]));
    // A packet whose TTL runs out behind the tunnel is answered through the tunnel.
    a.send_lan(&packet(A, B, 2, &[0; 8]));
    a.turn();
    carry(&mut a, &mut b);
    b.turn();
    carry(&mut b, &mut a);
    a.turn();
    let answer = a.sent_to_lan().unwrap().bytes;
    assert_eq!((answer[20], &answer[12..20]), (11, &[10, 1, 0, 254, 10, 0, 0, 1][..]));
}

/// A SYN that offers this segment size.
fn syn(source: [u8; 4], destination: [u8; 4], mss: u16) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    let tcp = [0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0x02, 0, 0, 0, 0, 0, 0, 2, 4, high, low];
    let mut packet = packet(source, destination, 64, &tcp);
    packet[9] = 6;
    packet
}

/// One side's path MTU is in its answers, and in the segment sizes of both sides.
#[test]
fn each_peer_has_its_own_mtu() {
    let mss = |message: &Message| u16::from_be_bytes([message.bytes[42], message.bytes[43]]);
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    let mut table = (*a.engine.table()).clone();
    table.peers[0].mtu = 1300;
    a.engine.publish(table);
    a.send_lan(&packet(A, B, 64, &[0; 1281]));
    a.turn();
    let too_big = a.sent_to_lan().unwrap().bytes;
    assert_eq!((&too_big[20..22], &too_big[26..28]), (&[3, 4][..], &1300u16.to_be_bytes()[..]));
    a.send_lan(&packet(A, B, 64, &[0; 1280]));
    a.turn();
    assert_eq!(carry(&mut a, &mut b).len(), 1);
    b.turn();
    assert_eq!(b.sent_to_lan().unwrap().bytes.len(), 1300);

    a.send_lan(&syn(A, B, 1460));
    a.turn();
    carry(&mut a, &mut b);
    b.turn();
    assert_eq!(mss(&b.sent_to_lan().unwrap()), 1260, "what comes back will not fit more");
    b.send_lan(&syn(B, A, 1460));
    b.turn();
    carry(&mut b, &mut a);
    a.turn();
    assert_eq!(mss(&a.sent_to_lan().unwrap()), 1260, "what is sent there will not fit more");
}

#[test]
fn ecn_crosses_the_tunnel() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    let mut marked = packet(A, B, 64, &[0; 8]);
    marked[1] = 0xb8 | 2;
    a.send_lan(&marked);
    a.turn();
    let message = a.sent_to_wan().unwrap();
    assert_eq!(message.tos, 2, "ECN is copied, DSCP is not");
    a.engine.publish(Table { copy_dscp: true, ..table(0, true) });
    a.send_lan(&marked);
    a.turn();
    assert_eq!(a.sent_to_wan().unwrap().tos, 0xb8 | 2);
    b.send_wan(a.address, 3, &message.bytes);
    b.turn();
    assert_eq!(b.sent_to_lan().unwrap().bytes[1], 0xb8 | 3);
}

#[test]
fn what_cannot_be_decided_goes_to_control_and_comes_back() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    a.engine.publish(table(0, false));
    let waiting = packet(A, B, 64, &[5; 8]);
    a.send_lan(&waiting);
    a.turn();
    let Some(Notice::NoSession { peer: 7, packet }) = a.engine.notices().pop() else { panic!("no notice") };
    a.engine.publish(table(0, true));
    assert!(a.engine.command(0, Command::Send(packet)));
    assert!(a.engine.command(0, Command::Keepalive(7)));
    a.worker.poll(false);
    let carried = carry(&mut a, &mut b);
    assert_eq!(carried.iter().map(|m| m.bytes.len()).collect::<Vec<_>>(), [64, 32]);
    b.turn();
    assert_eq!(b.sent_to_lan().unwrap().bytes[20..], [5; 8]);
    assert!(b.sent_to_lan().is_none());

    // Handshakes are for control.
    b.send_wan(a.address, 0, &[1, 0, 0, 0, 9]);
    b.turn();
    b.engine.notices().pop();
    assert!(
        matches!(b.engine.notices().pop(), Some(Notice::Datagram { from, payload, .. }) if from == a.address.into() && payload.len() == 5)
    );

    // An authenticated message from another address moves the endpoint; an unauthenticated one does not.
    a.send_lan(&waiting);
    a.turn();
    let moved = a.sent_to_wan().unwrap();
    let elsewhere: SocketAddr = "198.51.100.9:9".parse().unwrap();
    let mut forged = moved.bytes.clone();
    forged[20] ^= 1;
    b.send_wan(elsewhere, 0, &forged);
    b.send_wan(elsewhere, 0, &moved.bytes);
    b.turn();
    assert!(
        matches!(b.engine.notices().pop(), Some(Notice::Roamed { local_index: 101, from }) if from == elsewhere.into())
    );
    assert!(b.engine.notices().pop().is_none());
    // The answer does not wait for control, which decides in the end.
    b.send_lan(&self::packet(B, A, 64, &[]));
    b.turn();
    assert_eq!(b.sent_to_wan().unwrap().remote, elsewhere);
    b.engine.publish(Arc::unwrap_or_clone(b.engine.table()));
    b.send_lan(&self::packet(B, A, 64, &[]));
    b.turn();
    assert_eq!(b.sent_to_wan().unwrap().remote, a.address);

    // If nothing was known about a peer, its first message says where the answer goes.
    let mut unknown = Arc::unwrap_or_clone(b.engine.table());
    unknown.peers[0].endpoint = None;
    b.engine.publish(unknown);
    let for_control = |b: &mut Gateway| {
        b.send_lan(&self::packet(B, A, 64, &[]));
        b.turn();
        assert!(b.sent_to_wan().is_none());
        assert!(matches!(b.engine.notices().pop(), Some(Notice::NoSession { peer: 7, .. })));
    };
    for_control(&mut b);
    a.send_lan(&waiting);
    a.turn();
    let first = a.sent_to_wan().unwrap();
    b.send_wan(elsewhere, 0, &first.bytes);
    b.send_lan(&self::packet(B, A, 64, &[]));
    b.turn();
    assert_eq!(b.sent_to_wan().unwrap().remote, elsewhere);
    b.sent_to_lan().expect("the packet");
    b.engine.notices().pop();
    // A table that was made before control heard of the message makes the worker forget the address, but nothing is
    // lost.
    b.engine.publish(Arc::unwrap_or_clone(b.engine.table()));
    for_control(&mut b);
    let mut known = Arc::unwrap_or_clone(b.engine.table());
    known.peers[0].endpoint = Some(a.address.into());
    b.engine.publish(known);

    // A peer whose path control chooses may send from any address, and is not followed there.
    let mut fixed = Arc::unwrap_or_clone(b.engine.table());
    fixed.peers[0].roams = false;
    b.engine.publish(fixed);
    a.send_lan(&waiting);
    a.turn();
    let moved = a.sent_to_wan().unwrap();
    b.send_wan(elsewhere, 0, &moved.bytes);
    b.turn();
    b.sent_to_lan().expect("the packet");
    assert!(b.engine.notices().pop().is_none());
    b.send_lan(&self::packet(B, A, 64, &[]));
    b.turn();
    assert_eq!(b.sent_to_wan().unwrap().remote, a.address);
}

/// One site was restarted, and the other goes on sending: control is told of data without a session from a known peer's
/// address, but not for every packet.
#[test]
fn data_without_a_session_is_told_if_a_peer_sent_it() {
    let mut b = Gateway::new(1);
    let peer: SocketAddr = SITES[0].0.parse().unwrap();
    let mut table = table(1, false);
    table.sessions.clear();
    table.endpoints = Arc::new([peer].into());
    b.engine.publish(table);
    let data: Vec<u8> = [&[4, 0, 0, 0, 9, 9, 9, 9][..], &[0; 24]].concat();
    let told = |b: &Gateway| {
        let notices = std::iter::from_fn(|| b.engine.notices().pop());
        notices.filter(|notice| matches!(notice, Notice::UnknownSession { from } if *from == peer)).count()
    };
    for from in ["198.51.100.9:9", "192.0.2.1:9"] {
        b.send_wan(from.parse().unwrap(), 0, &data);
    }
    b.turn();
    assert!(b.engine.notices().pop().is_none());
    for _ in 0..1000 {
        b.send_wan(peer, 0, &data);
    }
    b.turn();
    assert!((1..500).contains(&told(&b)));
    assert_eq!(b.dropped(DropReason::UnknownSession), 1002);
}

/// The peer has forgotten our sending session, as after its restart, and begun another.
#[test]
fn the_answer_to_a_new_session_goes_by_it() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    let mut table = Arc::unwrap_or_clone(b.engine.table());
    let new = table.peers[0].sending.take().unwrap();
    let old = Session::new(SessionConfig {
        local_index: 900,
        remote_index: 901,
        suite: Suite::ChaCha20Poly1305,
        send_key: &[9; 32],
        receive_key: &[8; 32],
        born: Millis::now(),
        confirmed: true,
        peer: Arc::clone(&table.peers[0].peer),
    });
    (table.peers[0].sending, table.peers[0].next) = (Some(Arc::new(old)), Some(new));
    b.engine.publish(table);
    let index = |message: &Message| u32::from_le_bytes(message.bytes[4..8].try_into().unwrap());

    b.send_lan(&packet(B, A, 64, &[]));
    b.turn();
    assert_eq!(index(&b.sent_to_wan().unwrap()), 901, "the peer has not shown that it has the new one");
    a.send_lan(&packet(A, B, 64, &[]));
    a.turn();
    carry(&mut a, &mut b);
    b.turn();
    b.sent_to_lan().expect("the packet");
    // Control has not read its queue.
    b.send_lan(&packet(B, A, 64, &[]));
    b.turn();
    assert_eq!(index(&b.sent_to_wan().unwrap()), 100);
}

/// A flood that fills the queue to control does not lose the notices that a session depends on.
#[test]
fn a_confirmation_outlives_a_flood() {
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    while b.dropped(DropReason::SlowPathFull) == 0 {
        b.send_wan(a.address, 0, &[1, 0, 0, 0]);
        b.turn();
    }
    for _ in 0..2 {
        a.send_lan(&packet(A, B, 64, &[]));
        a.turn();
        carry(&mut a, &mut b);
        b.turn();
        while let Some(notice) = b.engine.notices().pop() {
            if matches!(notice, Notice::Confirmed { local_index: 101, .. }) {
                return;
            }
        }
    }
    panic!("control never hears of the confirmation");
}

/// Notices of any kind, in any number, leave room and turns for the others, which control must receive.
#[test]
fn a_flood_of_one_kind_leaves_room_for_the_others() {
    let stun = [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let kinds = [vec![1, 0, 0, 0, 9], stun, vec![0x50, 1, 1, 0], vec![0xff; 40]];
    for flood in &kinds {
        let mut b = Gateway::new(1);
        let from: SocketAddr = SITES[0].0.parse().unwrap();
        while b.dropped(DropReason::SlowPathFull) == 0 {
            b.send_wan(from, 0, flood);
            b.turn();
        }
        let dropped = b.dropped(DropReason::SlowPathFull);
        let others = || kinds.iter().filter(move |kind| *kind != flood);
        others().for_each(|kind| _ = b.send_wan(from, 0, kind));
        b.engine.publish(table(1, false));
        b.send_lan(&packet(B, A, 64, &[]));
        b.turn();
        assert_eq!(b.dropped(DropReason::SlowPathFull), dropped, "{flood:?}");
        let heard: Vec<Notice> = std::iter::from_fn(|| b.engine.notices().pop()).take(10).collect();
        let is =
            |notice: &Notice, kind: &[u8]| matches!(notice, Notice::Datagram { payload, .. } if **payload == *kind);
        for kind in others() {
            assert!(heard.iter().any(|notice| is(notice, kind)), "{flood:?} keeps {kind:?} back: {heard:?}");
        }
        assert!(heard.iter().any(|notice| matches!(notice, Notice::NoSession { peer: 7, .. })), "{heard:?}");
    }
}

/// A session ends with a table that lacks it; an idle worker must not keep its keys.
#[test]
fn an_idle_worker_lets_go_of_a_session() {
    let engine = Engine::start(config(&Wire::default(), &Wire::default(), table(0, true))).unwrap();
    let session = Arc::downgrade(&engine.table().sessions[&100].session);
    // It goes to sleep.
    std::thread::sleep(Duration::from_millis(100));
    assert!(session.upgrade().is_some());
    engine.publish(Table::default());
    let begun = Instant::now();
    while session.upgrade().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the session is kept");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Datagrams of every size with many contents: nothing panics, nothing is delivered, no frame is lost.
#[test]
fn random_datagrams_do_nothing() {
    let mut b = Gateway::new(1);
    let mut seed = 11u64;
    for size in (0..1500).chain(3700..4200) {
        let bytes: Vec<u8> = (0..size)
            .map(|i| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                // Half of them look like data for our session.
                if seed.is_multiple_of(2) && i < 8 { [4, 0, 0, 0, 101, 0, 0, 0][i] } else { seed as u8 }
            })
            .collect();
        b.send_wan(([192, 0, 2, 9], 9).into(), seed as u8, &bytes);
        b.send_lan(&bytes);
        b.turn();
        while b.engine.notices().pop().is_some() {}
    }
    assert!(b.sent_to_lan().is_none());
    assert_eq!(b.worker.pool().available(), FRAMES as usize - b.wan.discard(b.worker.pool()), "a frame is lost");
}

/// A table with a rate in bits per second.
fn slow(me: usize, rate: u64) -> Table {
    Table { wan_rate: Some(Arc::new(WanRate::new(rate))), ..table(me, true) }
}

/// With a rate packets wait, urgent and sparse ones go first, and counters are in the order of sending.
#[test]
fn what_waits_for_the_rate_leaves_in_another_order_with_counters_in_order() {
    const RATE: u64 = 8_000_000;
    let (mut a, mut b) = (Gateway::new(0), Gateway::new(1));
    a.engine.publish(slow(0, RATE));
    let bulk = |n: u8| packet(A, B, 64, &[&[1, 1, 1, 1, n][..], &[0; 1375]].concat());
    (0..60).for_each(|n| assert!(a.send_lan(&bulk(n))));
    a.turn();
    let mut urgent = packet(A, B, 64, &[2; 40]);
    urgent[1] = 0xc0;
    a.send_lan(&urgent);
    // Four, since a flow may by chance share the place of another.
    (3..7).for_each(|flow| assert!(a.send_lan(&packet(A, B, 64, &[flow; 40]))));
    let begun = Instant::now();
    let mut order = Vec::new();
    while order.len() < 65 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{order:?}");
        a.turn();
        let carried = carry(&mut a, &mut b);
        order.extend(carried.iter().map(|message| u64::from_le_bytes(message.bytes[8..16].try_into().unwrap())));
        std::thread::sleep(Duration::from_millis(1));
    }
    // 60 outer packets of 1,468 bytes, less the allowed burst.
    let least = Duration::from_secs_f64(60.0 * 1468.0 * 8.0 / RATE as f64) - Duration::from_millis(10);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    assert!(order.into_iter().eq(0..65), "counters are in the order of sending");
    b.turn();
    let inner: Vec<_> = std::iter::from_fn(|| b.sent_to_lan()).map(|message| message.bytes).collect();
    let place = |mark: u8| inner.iter().position(|packet| packet[20] == mark).unwrap();
    let (urgent, sparse) = (place(2), [3, 4, 5, 6].map(place));
    assert!(sparse.iter().all(|sparse| urgent < *sparse), "{urgent} {sparse:?}");
    assert!(sparse.iter().filter(|sparse| **sparse < 12).count() >= 3, "{sparse:?}");
    let bulk: Vec<u8> = inner.iter().filter(|packet| packet[20] == 1).map(|packet| packet[24]).collect();
    assert!(bulk.into_iter().eq(0..60), "a flow stays in order");
    let shaped = a.engine.work().next().unwrap().shaped;
    assert_eq!((shaped.packets, shaped.waiting_packets, shaped.waiting_bytes), (65, 0, 0));
    assert_eq!((a.all_drops(), b.all_drops()), (0, 0));
}

/// Packets that the queue refuses are counted, all frames come back, and without a rate everything that waits is sent.
#[test]
fn a_flood_at_a_rate_is_dropped_by_name_and_frames_come_back() {
    let mut a = Gateway::new(0);
    a.engine.publish(slow(0, 1_000_000));
    let sent = 500;
    for n in 0..sent {
        assert!(a.send_lan(&packet(A, B, 64, &[n as u8; 1380])));
        a.turn();
    }
    let shaped = a.engine.work().next().unwrap().shaped;
    assert!(shaped.waiting_packets > 5 && shaped.waiting_bytes <= 15_140, "{shaped:?}");
    assert_eq!(shaped.packets + shaped.waiting_packets + a.dropped(DropReason::ShaperFull), sent);
    a.engine.publish(table(0, true));
    a.turn();
    assert_eq!(a.wan.discard(a.worker.pool()) as u64, sent - a.dropped(DropReason::ShaperFull));
    assert_eq!((a.all_drops(), a.worker.pool().available()), (a.dropped(DropReason::ShaperFull), FRAMES as usize));
}

/// A waiting packet is sent only to the peer that it was judged to be for, and with a session that is alive.
#[test]
fn what_waits_follows_the_table() {
    let mut a = Gateway::new(0);
    let wait = |a: &mut Gateway| {
        a.engine.publish(slow(0, 1_000_000));
        (0..8).for_each(|_| assert!(a.send_lan(&packet(A, B, 64, &[9; 1380]))));
        a.turn();
        let waiting = a.engine.work().next().unwrap().shaped.waiting_packets;
        a.wan.discard(a.worker.pool());
        assert!(waiting > 0);
        waiting
    };
    let waiting = wait(&mut a);
    let mut other = table(0, true);
    other.peers[0].peer = Arc::new(PeerCounters::new(8));
    a.engine.publish(other);
    a.turn();
    assert_eq!((a.dropped(DropReason::NoPeer), a.wan.discard(a.worker.pool())), (waiting, 0));

    let waiting = wait(&mut a);
    a.engine.publish(table(0, false));
    a.turn();
    let told = std::iter::from_fn(|| a.engine.notices().pop()).filter(|n| matches!(n, Notice::NoSession { .. }));
    assert_eq!((told.count() as u64, a.wan.discard(a.worker.pool())), (waiting, 0));
}

/// A sleeping worker wakes up when a waiting packet may be sent.
#[test]
fn a_sleeping_worker_wakes_for_what_waits() {
    let (wan, lan) = (Wire::default(), Wire::default());
    let (mut engine, mut workers) = Engine::prepare(config(&wan, &lan, slow(0, 1_000_000))).unwrap();
    let mut worker = workers.remove(0);
    (0..8).for_each(|_| assert!(lan.send(worker.pool(), ([0; 4], 0).into(), 0, &packet(A, B, 64, &[9; 1380]))));
    while worker.turn() > 0 {}
    let mut sent = wan.discard(worker.pool());
    assert!(sent < 8);
    let begun = Instant::now();
    while sent < 8 {
        worker.poll(true);
        worker.turn();
        sent += wan.discard(worker.pool());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    // 12 ms per packet; anything else would have woken it only after a second.
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    engine.stop();
}
