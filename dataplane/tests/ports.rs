//! The TUN and UDP ports on real devices, in separate network namespaces.
//!
//! Needs root; without it the tests say that they were skipped.

#![expect(unsafe_code, reason = "counting allocations, and system calls without a safe wrapper")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use penstock_dataplane::drop::{DropReason as Reason, Drops};
use penstock_dataplane::frame::{ANCHOR, Pool};
use penstock_dataplane::ports::tun::{TunConfig, TunPort};
use penstock_dataplane::ports::udp::{Bundling, Source, UdpConfig, UdpPort};
use penstock_dataplane::ports::xdp::{Binding, RING, XdpPort};
use penstock_dataplane::ports::{BATCH, Batch, EGRESS_ROOM, Packet, Port, set_option};
use penstock_dataplane::steer::{AttachMode, WanSteering};
use penstock_netns::Namespace;

/// Counts the calling thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it only forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn is_root() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// Bytes that depend on their position.
fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(0x9e37_79b1) >> 13) as u8
}

/// Moves packets between two ports in both directions until told to stop.
fn glue(ports: [&mut dyn Port; 2], stop: &AtomicBool, drops: &Drops, mut change: impl FnMut(&mut Pool, &mut Batch)) {
    let mut pool = Pool::heap(1024);
    let mut batch = Batch::default();
    while !stop.load(Relaxed) {
        let mut idle = true;
        for (from, to) in [(0, 1), (1, 0)] {
            ports[from].receive(&mut pool, &mut batch, drops);
            if !batch.is_empty() {
                idle = false;
                change(&mut pool, &mut batch);
                ports[to].transmit(&mut pool, &mut batch, drops);
            }
        }
        if idle {
            wait(ports.each_ref().map(|port| &**port), 20);
        }
    }
}

fn wait<const N: usize>(ports: [&dyn Port; N], milliseconds: i32) {
    let mut fds =
        ports.map(|port| libc::pollfd { fd: port.fd().unwrap().as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: the list has the given length.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, milliseconds) };
}

/// Receives until this many packets are there. The loopback device delivers from a softirq, which may run only after
/// the sender's system call has returned.
fn receive(port: &mut UdpPort, pool: &mut Pool, batch: &mut Batch, drops: &Drops, packets: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while batch.len() < packets {
        assert!(Instant::now() < deadline, "{} of {packets} packets arrived", batch.len());
        wait([port], 100);
        port.receive(pool, batch, drops);
    }
}

/// Two namespaces whose TUN devices are connected.
struct Glued {
    ends: [Namespace; 2],
    stop: Arc<AtomicBool>,
    drops: Arc<Drops>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Glued {
    fn new(mtu: u16, queues: usize, change: impl FnMut(&mut Pool, &mut Batch) + Send + 'static) -> Self {
        let ends = [Namespace::new("port"), Namespace::new("port")];
        let mut ports = ends.each_ref().map(|end| end.enter(|| open("tun0", mtu, queues)));
        for (i, end) in ends.iter().enumerate() {
            end.ip(&format!("addr add 10.9.0.{}/24 dev tun0", i + 1));
            if mtu >= 1280 {
                end.ip(&format!("addr add fd09::{}/64 dev tun0 nodad", i + 1));
            }
        }
        let (stop, drops) = (Arc::new(AtomicBool::new(false)), Arc::new(Drops::default()));
        let (stopped, counters) = (Arc::clone(&stop), Arc::clone(&drops));
        let thread = thread::spawn(move || {
            let [a, b] = &mut ports;
            glue([&mut a[0], &mut b[0]], &stopped, &counters, change);
        });
        Self { ends, stop, drops, thread: Some(thread) }
    }

    /// Sends `len` bytes by TCP from one end to the other and back, and checks them.
    fn echo(&self, address: IpAddr, len: usize) {
        let [client, server] = &self.ends;
        let listener = server.enter(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let bytes = read_pattern(&mut stream, len);
                stream.write_all(&bytes).unwrap();
            });
            let mut stream = client.enter(|| TcpStream::connect(address).unwrap());
            let mut sender = stream.try_clone().unwrap();
            scope.spawn(move || sender.write_all(&(0..len).map(pattern).collect::<Vec<_>>()).unwrap());
            read_pattern(&mut stream, len);
        });
    }
}

impl Drop for Glued {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || thread::panicking());
    }
}

fn open(name: &str, mtu: u16, queues: usize) -> Vec<TunPort> {
    TunPort::open(&TunConfig { name: name.into(), mtu, queues }).unwrap()
}

fn read_pattern(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "the content changed");
    bytes
}

fn no_drops(drops: &Drops) {
    for reason in Reason::ALL {
        assert_eq!(drops.of(*reason), 0, "{}", reason.name());
    }
}

#[test]
fn tcp_between_two_tun_devices() {
    if !is_root() {
        return;
    }
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&largest);
    let glued = Glued::new(1420, 1, move |_, batch| {
        seen.fetch_max(batch.len(), Relaxed);
        assert!(batch.as_slice().iter().all(|packet| packet.frame.start() == ANCHOR + EGRESS_ROOM));
        assert!(batch.as_slice().iter().all(|packet| packet.frame.len() <= 1420));
    });
    glued.echo("10.9.0.2".parse().unwrap(), 20_000_000);
    glued.echo("fd09::2".parse().unwrap(), 20_000_000);
    glued.echo("10.9.0.2".parse().unwrap(), 1);
    assert!(largest.load(Relaxed) > 20, "no super-packets: {largest:?}");
    no_drops(&glued.drops);
}

#[test]
fn a_super_packet_larger_than_the_batch() {
    if !is_root() {
        return;
    }
    let full = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&full);
    let glued = Glued::new(296, 1, move |_, batch| {
        seen.fetch_add((batch.room() == 0).into(), Relaxed);
    });
    glued.echo("10.9.0.2".parse().unwrap(), 10_000_000);
    assert!(full.load(Relaxed) > 0, "the batch was never full");
    no_drops(&glued.drops);
}

#[test]
fn a_corrupted_packet_is_never_made_good() {
    if !is_root() {
        return;
    }
    let mut count = 0;
    let glued = Glued::new(1420, 1, move |pool, batch| {
        for packet in batch.as_slice() {
            count += 1;
            let bytes = pool.packet_mut(&packet.frame);
            if count % 301 == 0 && bytes.len() > 200 {
                bytes[150] ^= 0x40;
            }
        }
    });
    glued.echo("10.9.0.2".parse().unwrap(), 3_000_000);
    glued.echo("fd09::2".parse().unwrap(), 3_000_000);
}

#[test]
fn udp_of_every_size_between_two_tun_devices() {
    if !is_root() {
        return;
    }
    let glued = Glued::new(1420, 1, |_, _| ());
    for (a, b, headers) in [("10.9.0.1", "10.9.0.2", 28), ("fd09::1", "fd09::2", 48)] {
        let bind = |end: &Namespace, address: &str| {
            end.enter(|| UdpSocket::bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap())
        };
        let (a, b) = (bind(&glued.ends[0], a), bind(&glued.ends[1], b));
        b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let size: libc::c_int = 500;
        for bundles in [false, true] {
            if bundles {
                let value = (&raw const size).cast();
                // SAFETY: the option is an int.
                let set = unsafe { libc::setsockopt(a.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4) };
                assert_eq!(set, 0);
            }
            for len in (0..=1420 - headers).step_by(7) {
                let payload: Vec<u8> = (0..len).map(pattern).collect();
                a.send_to(&payload, b.local_addr().unwrap()).unwrap();
                let pieces: Vec<&[u8]> =
                    if bundles && len > 0 { payload.chunks(500).collect() } else { vec![&payload] };
                for piece in pieces {
                    let mut buffer = [0; 2000];
                    let received = b.recv(&mut buffer).unwrap();
                    assert_eq!(&buffer[..received], piece);
                }
            }
        }
    }
    no_drops(&glued.drops);
}

#[test]
fn a_device_has_queues_and_goes_with_them() {
    if !is_root() {
        return;
    }
    let namespace = Namespace::new("port");
    for queues in [1, 3] {
        namespace.enter(|| {
            let ports = open("tun7", 1400, queues);
            assert_eq!(ports.len(), queues);
            assert!(ports.iter().enumerate().all(|(i, port)| port.info().queue == i as u32));
            assert!(ports.iter().all(|port| port.ifindex() == ports[0].ifindex() && port.name() == "tun7"));
            let again = TunPort::open(&TunConfig { name: "tun7".into(), mtu: 1400, queues });
            assert_eq!(again.err().unwrap().kind(), std::io::ErrorKind::AlreadyExists);
            drop(ports);
            // A process that another test forks holds the descriptors for a moment, until it calls exec.
            let exists = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("tun7");
            let deadline = Instant::now() + Duration::from_secs(5);
            while exists() {
                assert!(Instant::now() < deadline, "the device stays");
                thread::sleep(Duration::from_millis(5));
            }
        });
    }
}

/// Two namespaces joined by a veth pair, a UDP port in each.
struct Wire {
    _ends: [Namespace; 2],
    ports: [UdpPort; 2],
    pool: Pool,
    drops: Drops,
}

impl Wire {
    fn new(mtu: u16) -> Self {
        let ends = [Namespace::new("port"), Namespace::new("port")];
        link([&ends[0], &ends[1]], ["w0", "w0"], mtu, ["10.8.0.1/24", "10.8.0.2/24"]);
        for (i, end) in ends.iter().enumerate() {
            end.ip(&format!("addr add fd08::{}/64 dev w0 nodad", i + 1));
        }
        let config = UdpConfig { interface: Some("w0".into()), port: 0, workers: 1, gso: true, mark: 0 };
        let ports = ends.each_ref().map(|end| end.enter(|| UdpPort::bind(&config).unwrap().remove(0)));
        Self { _ends: ends, ports, pool: Pool::heap(4096), drops: Drops::default() }
    }

    /// Sends payloads of these sizes from the first port to the second, and checks what arrives.
    fn carry(&mut self, family: u8, sizes: &[usize], tos: u8) {
        let at = |end: usize| if family == 4 { format!("10.8.0.{end}") } else { format!("fd08::{end}") };
        let [a, b] = &mut self.ports;
        let to = SocketAddr::new(at(2).parse().unwrap(), b.local_port());
        let from = SocketAddr::new(at(1).parse().unwrap(), a.local_port());
        let mut batch = Batch::default();
        for (i, size) in sizes.iter().enumerate() {
            let mut frame = self.pool.take().unwrap();
            frame.set(ANCHOR + 42, *size);
            self.pool.packet_mut(&frame).iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(at + i * 4096));
            batch.push(Packet { remote: to, tos, ..Packet::new(frame) });
            if batch.room() == 0 || i + 1 == sizes.len() {
                a.transmit(&mut self.pool, &mut batch, &self.drops);
            }
        }
        let mut arrived = 0;
        let deadline = Instant::now() + Duration::from_secs(5);
        while arrived < sizes.len() {
            assert!(Instant::now() < deadline, "{arrived} of {} arrived", sizes.len());
            wait([b], 100);
            b.receive(&mut self.pool, &mut batch, &self.drops);
            for packet in batch.drain() {
                assert_eq!((packet.remote, packet.tos), (from, tos));
                assert_eq!(packet.frame.start(), ANCHOR + 42);
                let bytes = self.pool.packet(&packet.frame);
                assert_eq!(bytes.len(), sizes[arrived], "datagram {arrived}");
                assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at + arrived * 4096)));
                self.pool.give(packet.frame);
                arrived += 1;
            }
        }
    }
}

/// A veth pair between namespaces.
fn link(ends: [&Namespace; 2], names: [&str; 2], mtu: u16, addresses: [&str; 2]) {
    let [a, b] = ends;
    a.ip(&format!("link add {} mtu {mtu} type veth peer name {} mtu {mtu} netns {}", names[0], names[1], b.name()));
    for ((end, name), address) in ends.into_iter().zip(names).zip(addresses) {
        end.ip(&format!("addr add {address} dev {name}"));
        end.ip(&format!("link set {name} up"));
    }
}

#[test]
fn bundles_arrive_whole_in_order_with_their_class() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1500);
    for family in [4, 6] {
        for tos in [0, 0xb8, 3] {
            let mut sizes = vec![1452; 300];
            sizes.push(700);
            wire.carry(family, &sizes, tos);
            wire.carry(family, &sizes, tos);
        }
    }
    assert!(wire.ports[0].sender().refused().is_none());
    no_drops(&wire.drops);
}

#[test]
fn bundles_go_as_one_only_to_whom_they_may() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1500);
    let sender = wire.ports[0].sender();
    let there = SocketAddr::new("10.8.0.2".parse().unwrap(), wire.ports[1].local_port());
    let sends = |wire: &mut Wire, usual: bool, except: &[SocketAddr]| {
        sender.set_bundling(&Bundling { usual, except: except.to_vec() });
        let before = sender.bundles();
        wire.carry(4, &[1452; 100], 0);
        sender.bundles() > before
    };
    assert!(sends(&mut wire, true, &[]) && sends(&mut wire, false, &[there]));
    assert!(!sends(&mut wire, false, &[]) && !sends(&mut wire, true, &[there]));
    // An exception for another destination changes nothing.
    let elsewhere = SocketAddr::new(there.ip(), there.port() ^ 1);
    assert!(sends(&mut wire, true, &[elsewhere]));
    no_drops(&wire.drops);
}

#[test]
fn a_bundle_that_the_kernel_refuses_arrives_in_pieces() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1500);
    let sender = wire.ports[0].sender();
    // The kernel refuses bundles from sockets that send no checksums.
    let send_checksums = |wire: &Wire, on: bool| {
        let socket = wire.ports[0].fd().expect("a socket");
        set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, &i32::from(!on).to_ne_bytes()).expect("set");
    };
    send_checksums(&wire, false);
    wire.carry(4, &[1452; 100], 0);
    assert_eq!(sender.refused().and_then(|error| error.raw_os_error()), Some(libc::EINVAL));
    assert_eq!(sender.bundles(), 0);
    // This lasts until control wants another attempt.
    send_checksums(&wire, true);
    wire.carry(4, &[1452; 100], 0);
    assert_eq!(sender.bundles(), 0);
    sender.forget_refusal();
    wire.carry(4, &[1452; 100], 0);
    assert!(sender.refused().is_none() && sender.bundles() > 0);
    no_drops(&wire.drops);
}

#[test]
fn datagrams_of_mixed_sizes() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1500);
    let mut state = 9u32;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for round in 0..60 {
        let mut sizes = Vec::new();
        while sizes.len() < 200 {
            let size = [0, 1, 32, 96, 112, 1432, 1452, random(1453)][random(8)];
            sizes.extend(std::iter::repeat_n(size, 1 + random(90)));
        }
        wire.carry(if round % 2 == 0 { 4 } else { 6 }, &sizes, 0);
    }
    no_drops(&wire.drops);
}

#[test]
fn bundles_beyond_the_mtu_go_in_pieces() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1300);
    for family in [4, 6] {
        wire.carry(family, &[1452; 40], 0);
        wire.carry(family, &[1452, 1452, 1452, 100, 100, 100, 1452, 3000, 3000], 0);
    }
    no_drops(&wire.drops);
}

#[test]
fn beside_datagrams_that_must_not_be_fragmented_others_are() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1300);
    let sender = wire.ports[0].sender();
    // Too large for the link, so that none of them arrives among the others.
    let probes = ["10.8.0.2:9", "[fd08::2]:9"].map(|to| to.parse::<SocketAddr>().unwrap());
    let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Otherwise a panic below would wait for the thread forever.
    let deadline = Instant::now() + Duration::from_secs(60);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) && Instant::now() < deadline {
                for to in probes {
                    let error = sender.send_unfragmented(None, &[0; 1400], to).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
                    refused.fetch_add(1, Relaxed);
                }
                thread::yield_now();
            }
        });
        // On a busy machine the other thread gets its turns late.
        let mut rounds = 0;
        while rounds < 20 || refused.load(Relaxed) <= 100 && Instant::now() < deadline {
            [4, 6].into_iter().for_each(|family| wire.carry(family, &[1452; 40], 0));
            rounds += 1;
        }
        stop.store(true, Relaxed);
    });
    assert!(refused.load(Relaxed) > 100, "{refused:?} probes");
    no_drops(&wire.drops);
}

#[test]
fn handshakes_are_sent_from_the_same_port() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1500);
    let sender = wire.ports[0].sender();
    let [a, b] = &mut wire.ports;
    assert_eq!(sender.local_port(), a.local_port());
    for (to, from) in [("10.8.0.2", "10.8.0.1"), ("fd08::2", "fd08::1")] {
        sender.send_to(b"initiation", SocketAddr::new(to.parse().unwrap(), b.local_port()), 0x88, None).unwrap();
        let mut batch = Batch::default();
        wait([b], 1000);
        b.receive(&mut wire.pool, &mut batch, &wire.drops);
        let packet = &batch.as_slice()[0];
        assert_eq!(wire.pool.packet(&packet.frame), b"initiation");
        assert_eq!(packet.remote, SocketAddr::new(from.parse().unwrap(), a.local_port()));
        assert_eq!(packet.tos, 0x88);
    }
}

#[test]
fn a_host_without_ipv6_addresses_is_served() {
    if !is_root() {
        return;
    }
    let namespace = Namespace::new("port");
    namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    let config = UdpConfig { interface: None, port: 0, workers: 2, gso: true, mark: 0 };
    let mut ports = namespace.enter(|| UdpPort::bind(&config).unwrap());
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), ports[0].local_port());
    ports[1].sender().send_to(b"x", to, 0, None).unwrap();
    let (mut pool, mut batch, drops) = (Pool::heap(256), Batch::default(), Drops::default());
    // Either of them may get it.
    wait([&ports[0], &ports[1]], 5000);
    ports.iter_mut().for_each(|port| port.receive(&mut pool, &mut batch, &drops));
    assert_eq!(batch.len(), 1);
    assert_eq!(batch.as_slice()[0].remote, to);
}

#[test]
fn all_that_leaves_carries_the_mark() {
    if !is_root() {
        return;
    }
    let namespace = Namespace::new("port");
    let rules = "table inet t {
        chain out {
            type filter hook output priority 0
            meta mark != 0x5057 drop
        }
    }";
    namespace.nft(rules);
    for (mark, arrived) in [(0x5057, 3), (0x5058, 0), (0, 0)] {
        let config = UdpConfig { interface: None, port: 0, workers: 1, gso: true, mark };
        let mut port = namespace.enter(|| UdpPort::bind(&config).unwrap()).remove(0);
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), port.local_port());
        let (mut pool, mut batch, drops) = (Pool::heap(256), Batch::default(), Drops::default());
        // One by control, and a bundle of two by the worker. What the firewall drops returns EPERM.
        assert_eq!(port.sender().mark(), mark);
        assert_eq!(port.sender().send_to(b"x", to, 0, None).is_ok(), arrived > 0);
        for _ in 0..2 {
            let mut frame = pool.take().unwrap();
            frame.set(ANCHOR + 42, 100);
            batch.push(Packet { remote: to, ..Packet::new(frame) });
        }
        port.transmit(&mut pool, &mut batch, &drops);
        receive(&mut port, &mut pool, &mut batch, &drops, arrived);
        port.receive(&mut pool, &mut batch, &drops);
        assert_eq!(batch.len(), arrived, "mark {mark:#x}");
        batch.drain().for_each(|packet| pool.give(packet.frame));
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_is_asked_for() {
    if !is_root() {
        return;
    }
    let namespace = Namespace::new("port");
    namespace.ip("addr add fd09::1/128 dev lo nodad");
    namespace.ip("addr add fd09::2/128 dev lo nodad");
    let config = UdpConfig { interface: None, port: 0, workers: 1, gso: true, mark: 0 };
    let mut port = namespace.enter(|| UdpPort::bind(&config).unwrap()).remove(0);
    let (sender, number) = (port.sender(), port.local_port());
    let (mut pool, mut batch, drops) = (Pool::heap(256), Batch::default(), Drops::default());
    for (from, to, stranger) in [("127.0.0.5", "127.0.0.1", "192.0.2.1"), ("fd09::2", "fd09::1", "fd09::3")] {
        let to = SocketAddr::new(to.parse().unwrap(), number);
        let source = |address: &str, interface| Source { address: address.parse().unwrap(), interface };
        for interface in [0, 1] {
            sender.send_from(source(from, interface), b"x", to, 0x88).unwrap();
            receive(&mut port, &mut pool, &mut batch, &drops, 1);
            let packet = batch.drain().next().unwrap();
            assert_eq!((packet.remote, packet.tos), (SocketAddr::new(from.parse().unwrap(), number), 0x88));
            pool.give(packet.frame);
        }
        assert!(sender.send_from(source(stranger, 0), b"x", to, 0).is_err(), "{stranger} is not ours");
        assert!(sender.send_from(source(from, 99), b"x", to, 0).is_err(), "there is no such interface");
    }
    let other_family = Source { address: "fd09::1".parse().unwrap(), interface: 0 };
    let to = SocketAddr::new("127.0.0.1".parse().unwrap(), number);
    assert_eq!(sender.send_from(other_family, b"x", to, 0).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn nothing_is_allocated_once_it_runs() {
    if !is_root() {
        return;
    }
    let mut wire = Wire::new(1500);
    let to = SocketAddr::new("10.8.0.2".parse().unwrap(), wire.ports[1].local_port());
    let mut batch = Batch::default();
    let before = ALLOCATIONS.with(Cell::get);
    let mut arrived = 0;
    for round in 0..100 {
        for i in 0..BATCH {
            let mut frame = wire.pool.take().unwrap();
            frame.set(ANCHOR + 42, if i % 40 == round % 40 { 100 } else { 1452 });
            batch.push(Packet { remote: to, ..Packet::new(frame) });
        }
        let [a, b] = &mut wire.ports;
        a.transmit(&mut wire.pool, &mut batch, &wire.drops);
        for _ in 0..4 {
            b.receive(&mut wire.pool, &mut batch, &wire.drops);
            arrived += batch.len();
            batch.drain().for_each(|packet| wire.pool.give(packet.frame));
        }
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert!(arrived > 100 * BATCH / 2, "{arrived}");

    let counted = Arc::new(AtomicUsize::new(0));
    let shared = Arc::clone(&counted);
    let mut first = None;
    let glued = Glued::new(1420, 1, move |_, _| {
        let now = ALLOCATIONS.with(Cell::get);
        let first = *first.get_or_insert(now);
        shared.store(now - first, Relaxed);
    });
    glued.echo("10.9.0.2".parse().unwrap(), 20_000_000);
    assert_eq!(counted.load(Relaxed), 0);
}

/// A worker that does not get a turn loses packets in the kernel; each is counted by where it was lost.
#[test]
fn what_the_kernel_loses_in_front_of_an_af_xdp_port_is_counted() {
    if !is_root() {
        return;
    }
    const SENT: u64 = 3000;
    let ends = [Namespace::new("port"), Namespace::new("port")];
    link([&ends[0], &ends[1]], ["w0", "w0"], 1500, ["10.8.0.1/24", "10.8.0.2/24"]);
    let (mut batch, drops) = (Batch::default(), Drops::default());
    // The memory is a socket too, and belongs to the namespace in which it was made.
    let (steering, mut port, mut pool) = ends[0].enter(|| {
        let mut pool = Pool::umem((4 * RING).try_into().unwrap(), RING).unwrap();
        let ifindex = rustix::net::netdevice::name_to_index(UdpSocket::bind("0.0.0.0:0").unwrap(), "w0").unwrap();
        let mut steering = WanSteering::attach("w0", ifindex, 47_100, AttachMode::Native).unwrap();
        steering.insert_local("10.8.0.1".parse().unwrap()).unwrap();
        let port =
            XdpPort::wan(&mut pool, &Binding { interface: "w0", ifindex, queue: 0, copy: false }, 47_100).unwrap();
        steering.set_socket(0, port.socket()).unwrap();
        (steering, port, pool)
    });
    let sender = ends[1].enter(|| UdpSocket::bind("10.8.0.2:0").unwrap());
    for n in 0..SENT {
        sender.send_to(&[&[4, 0, 0, 0][..], &[0; 28]].concat(), "10.8.0.1:47100").unwrap();
        if n % 32 == 0 {
            // The ring of the veth pair is shorter.
            thread::sleep(Duration::from_millis(1));
        }
    }
    thread::sleep(Duration::from_millis(50));
    let mut received = 0;
    loop {
        port.receive(&mut pool, &mut batch, &drops);
        received += batch.len() as u64;
        if batch.is_empty() {
            break;
        }
        batch.drain().for_each(|packet| pool.give(packet.frame));
    }
    let steered = steering.counters().unwrap();
    assert!(received < SENT);
    assert!(steered.contains(&("redirect", SENT)), "{steered:?}");
    assert_eq!(steering.redirected(2).unwrap(), [SENT, 0]);
    assert_eq!(port.evidence().unwrap().passed().received, received);
    for _ in 0..2 {
        assert!(port.count_losses(&drops));
        let lost = drops.of(Reason::RingFull) + drops.of(Reason::FillRingEmpty) + drops.of(Reason::SocketRefused);
        assert_eq!(lost, SENT - received, "each once");
        assert_eq!(drops.of(Reason::SocketRefused) + drops.of(Reason::InvalidDescriptor), 0);
    }
}

/// A UMEM made in one namespace binds to the device of another: everything is lost, and only the difference between the
/// program's counter for the queue and the port's own shows it.
#[test]
fn what_a_socket_of_another_namespace_swallows_shows_in_the_evidence() {
    if !is_root() {
        return;
    }
    const SENT: u64 = 20;
    let ends = [Namespace::new("port"), Namespace::new("port")];
    link([&ends[0], &ends[1]], ["w0", "w0"], 1500, ["10.8.0.1/24", "10.8.0.2/24"]);
    let (mut batch, drops) = (Batch::default(), Drops::default());
    let mut pool = ends[1].enter(|| Pool::umem((4 * RING).try_into().unwrap(), RING).unwrap());
    let (steering, mut port) = ends[0].enter(|| {
        let ifindex = rustix::net::netdevice::name_to_index(UdpSocket::bind("0.0.0.0:0").unwrap(), "w0").unwrap();
        let mut steering = WanSteering::attach("w0", ifindex, 47_100, AttachMode::Native).unwrap();
        steering.insert_local("10.8.0.1".parse().unwrap()).unwrap();
        let at = Binding { interface: "w0", ifindex, queue: 0, copy: true };
        let port = XdpPort::wan(&mut pool, &at, 47_100).unwrap();
        steering.set_socket(0, port.socket()).unwrap();
        (steering, port)
    });
    let sender = ends[1].enter(|| UdpSocket::bind("10.8.0.2:0").unwrap());
    for _ in 0..SENT {
        sender.send_to(&[&[4, 0, 0, 0][..], &[0; 28]].concat(), "10.8.0.1:47100").unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while steering.redirected(1).unwrap() != [SENT] {
        assert!(Instant::now() < deadline, "{:?}", steering.redirected(1));
        thread::sleep(Duration::from_millis(5));
    }
    port.receive(&mut pool, &mut batch, &drops);
    assert!(port.count_losses(&drops));
    assert_eq!((batch.len(), port.evidence().unwrap().passed().received), (0, 0));
    assert!(Reason::ALL.iter().all(|reason| drops.of(*reason) == 0), "{drops:?}");
}

/// Host, gateway, gateway, host: the throughput of a TCP stream through the ports alone, compared with kernel
/// forwarding. `cargo test --release -p penstock-dataplane --test ports -- --ignored --nocapture throughput`
#[test]
#[ignore = "prints throughput"]
fn throughput() {
    if !is_root() {
        return;
    }
    let [host_a, gate_a, gate_b, host_b] = std::array::from_fn(|_| Namespace::new("port"));
    link([&host_a, &gate_a], ["h0", "l0"], 1500, ["10.1.0.2/24", "10.1.0.1/24"]);
    link([&gate_a, &gate_b], ["w0", "w0"], 1500, ["10.8.0.1/24", "10.8.0.2/24"]);
    link([&gate_b, &host_b], ["l0", "h0"], 1500, ["10.2.0.1/24", "10.2.0.2/24"]);
    host_a.ip("route add default via 10.1.0.1");
    host_b.ip("route add default via 10.2.0.1");
    gate_a.sysctl("net/ipv4/ip_forward", "1");
    gate_b.sysctl("net/ipv4/ip_forward", "1");
    gate_a.ip("route add 10.2.0.0/24 via 10.8.0.2");
    gate_b.ip("route add 10.1.0.0/24 via 10.8.0.1");
    let measure = |what: &str| {
        let mut server = host_b
            .enter(|| Command::new("iperf3").args(["-s", "-1"]).stdout(std::process::Stdio::null()).spawn().unwrap());
        thread::sleep(Duration::from_millis(300));
        let arguments = ["-c", "10.2.0.2", "-t", "5", "-O", "1", "-f", "g"];
        let output = host_a.enter(|| Command::new("iperf3").args(arguments).output().unwrap());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.contains("receiver")).unwrap_or("nothing");
        println!("{what}: {line}");
        server.wait().unwrap();
    };
    measure("kernel forwarding");

    let stop = AtomicBool::new(false);
    let drops = [Drops::default(), Drops::default()];
    let gates = [(&gate_a, "10.2.0.0/24"), (&gate_b, "10.1.0.0/24")];
    let mut ports = gates.map(|(gate, route)| {
        let udp = UdpConfig { interface: Some("w0".into()), port: 47_100, workers: 1, gso: true, mark: 0 };
        let ports = gate.enter(|| (open("tun0", 1420, 1).remove(0), UdpPort::bind(&udp).unwrap().remove(0)));
        gate.ip(&format!("route replace {route} dev tun0"));
        ports
    });
    thread::scope(|scope| {
        let peers = ["10.8.0.2:47100", "10.8.0.1:47100"];
        for (((tun, udp), peer), drops) in ports.iter_mut().zip(peers).zip(&drops) {
            let (stop, peer): (_, SocketAddr) = (&stop, peer.parse().unwrap());
            scope.spawn(move || {
                let (mut count, mut batches) = (0, 0);
                glue([tun, udp], stop, drops, |_, batch| {
                    count += batch.len();
                    batches += 1;
                    for packet in batch.as_mut_slice() {
                        let (start, len) = (packet.frame.start(), packet.frame.len());
                        // Room for headers and tag is added and removed, as with encryption.
                        if start == ANCHOR + EGRESS_ROOM {
                            packet.frame.set(start - 16, len + 32);
                            packet.remote = peer;
                        } else {
                            packet.frame.set(start + 16, len - 32);
                        }
                    }
                });
                // SAFETY: all zeros is a valid rusage, and the pointer is to a local.
                let usage = unsafe {
                    let mut usage: libc::rusage = std::mem::zeroed();
                    libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
                    usage
                };
                let nanoseconds =
                    |time: libc::timeval| (time.tv_sec * 1_000_000_000 + time.tv_usec * 1000) / count as i64;
                let (user, system) = (nanoseconds(usage.ru_utime), nanoseconds(usage.ru_stime));
                println!("  {count} packets in {batches} batches; ns a packet: {user} user, {system} system");
            });
        }
        measure("tun, udp, veth, udp, tun");
        stop.store(true, Relaxed);
    });
    for drops in &drops {
        for reason in Reason::ALL.iter().filter(|reason| drops.of(**reason) > 0) {
            println!("  dropped, {}: {}", reason.name(), drops.of(*reason));
        }
    }

    let glued = Glued::new(1420, 1, |_, _| ());
    let [client, server] = &glued.ends;
    let mut listener =
        server.enter(|| Command::new("iperf3").args(["-s", "-1"]).stdout(std::process::Stdio::null()).spawn().unwrap());
    thread::sleep(Duration::from_millis(300));
    let output =
        client.enter(|| Command::new("iperf3").args(["-c", "10.9.0.2", "-t", "4", "-f", "g"]).output().unwrap());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("tun, tun: {}", text.lines().find(|line| line.contains("receiver")).unwrap_or("nothing"));
    listener.wait().unwrap();
}
