//! Keys leave no trace in a gateway's memory once their session has ended, and the memory leaves none on disk.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant, SystemTime};

use crate::support::*;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use penstock::key::{PrivateKey, PublicKey};
use penstock_proto::{Event, Gateway as Proto, PeerConfig, SessionKeys};
use rand::SeedableRng;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

const LIMIT: Duration = Duration::from_secs(10);
/// Longest region of memory that is read at once.
const CHUNK: usize = 1 << 20;

/// A peer that is not a gateway but this test, so that it knows the keys of its sessions.
struct TestPeer {
    proto: Proto,
    socket: UdpSocket,
    gateway: SocketAddr,
    ours: IpAddr,
    host: IpAddr,
}

impl TestPeer {
    /// In the place of B's gateway, whose key and prefixes it has.
    fn new(topology: &Topology, private_key: &str, gateway: &str) -> Self {
        let key: PrivateKey = private_key.parse().expect("a key");
        let now = Instant::now();
        let mut proto = Proto::new(key.to_secret(), rand::rngs::StdRng::from_os_rng(), now, SystemTime::now());
        let to = topology.a.endpoint(Outer::V4);
        let config = PeerConfig { endpoint: Some(to), ..PeerConfig::default() };
        let theirs: PublicKey = gateway.parse().expect("a key");
        proto.add_peer(now, theirs.into(), config).expect("a peer");
        let socket = topology.b.gateway.enter(|| UdpSocket::bind(("0.0.0.0", PORT)).expect("a socket"));
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
        Self { proto, socket, gateway: to, ours: topology.b.host4(), host: topology.a.host4() }
    }

    /// A handshake, and echo requests to A's host until one is answered: by then the keys have been everywhere.
    fn session(&mut self) -> SessionKeys {
        let id = self.proto.peers().next().expect("a peer").id();
        self.proto.handle_path(Instant::now(), id, true);
        let transmit = self.proto.poll_transmit().expect("an initiation");
        self.socket.send_to(&transmit.contents, transmit.to).expect("sent");
        let mut buffer = [0; 2048];
        let keys = loop {
            let (length, from) = self.socket.recv_from(&mut buffer).expect("a response");
            let _ = self.proto.handle_datagram(Instant::now(), from, &buffer[..length]);
            let mut events = std::iter::from_fn(|| self.proto.poll_event());
            let established = events.find_map(|event| match event {
                Event::SessionEstablished { session, .. } => Some(*session),
                _ => None,
            });
            if let Some(keys) = established {
                break keys;
            }
        };
        let cipher = |key: &penstock_proto::Key| ChaCha20Poly1305::new(key.as_bytes().into());
        let nonce = |counter: u64| [&[0; 4][..], &counter.to_le_bytes()].concat();
        for counter in 0..20 {
            let mut packet = self.echo_request(counter as u16);
            let nonce = nonce(counter);
            cipher(&keys.send).encrypt_in_place(nonce.as_slice().into(), &[], &mut packet).expect("sealed");
            let header = [&[4, 0, 0, 0], &keys.remote_index.to_le_bytes()[..], &counter.to_le_bytes()].concat();
            self.socket.send_to(&[header, packet].concat(), self.gateway).expect("sent");
        }
        let answered = std::iter::repeat_with(|| self.socket.recv(&mut buffer).map(|n| buffer[..n].to_vec()));
        let answer = answered.map(|answer| answer.expect("an answer")).find(|a| a[0] == 4 && a.len() > 32);
        let answer = answer.expect("they come until one is it");
        let mut packet = answer[16..].to_vec();
        let counter = u64::from_le_bytes(answer[8..16].try_into().expect("eight bytes"));
        let opened = cipher(&keys.receive).decrypt_in_place(nonce(counter).as_slice().into(), &[], &mut packet);
        opened.expect("the answer is sealed by the session's key");
        keys
    }

    fn echo_request(&self, number: u16) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.ours, self.host) else { panic!("IPv4") };
        let mut echo = vec![8, 0, 0, 0, 1, 2];
        echo.extend(number.to_be_bytes());
        echo.extend([0; 24]);
        let sum = checksum(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x45, 0, 0, 52, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend(from.octets());
        packet.extend(to.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(echo);
        packet.resize(64, 0);
        packet
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Where in a process's memory there is either half of a key: a cipher may keep the two apart.
fn traces(pid: u32, keys: &SessionKeys) -> Vec<String> {
    let halves: Vec<&[u8]> = [&keys.send, &keys.receive].iter().flat_map(|key| key.as_bytes().chunks(16)).collect();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("root may");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may");
    let mut traces = Vec::new();
    let mut buffer = vec![0; CHUNK + 16];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, name) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("two addresses");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        let (start, end) = (address(start), address(end));
        for at in (start..end).step_by(CHUNK) {
            let length = buffer.len().min((end - at) as usize);
            // Memory of socket rings and other devices cannot be read.
            let Ok(read) = memory.read_at(&mut buffer[..length], at) else { continue };
            let found = halves.iter().flat_map(|half| places(&buffer[..read], half));
            traces.extend(found.map(|place| format!("{:x} of {range} {name}", at + place as u64)));
        }
    }
    traces
}

/// Where a sequence starts in memory, at word-aligned addresses. In an unoptimised build the loop must be short.
fn places(memory: &[u8], wanted: &[u8]) -> Vec<usize> {
    let first = u32::from_ne_bytes(wanted[..4].try_into().expect("four bytes"));
    let words = memory.as_chunks::<4>().0;
    let mut places = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if u32::from_ne_bytes(words[at]) == first && memory[4 * at..].starts_with(wanted) {
            places.push(4 * at);
        }
        at += 1;
    }
    places
}

/// A gateway with the test as its peer.
fn scene(topology: &Topology, kind: Kind, rekey: Option<u32>) -> (Gateway, TestPeer, String) {
    let (mut a, b) = pair_config(topology, kind, kind, Outer::V4);
    if let Some(seconds) = rekey {
        a.rekey_after(seconds);
    }
    // Only the test initiates handshakes.
    a.peers[0].endpoint = None;
    let a = Gateway::start(&topology.a, a);
    let peer = TestPeer::new(topology, &b.private_key, &a.public_key());
    (a, peer, b.public_key())
}

/// How a session may end.
type End = (&'static str, fn(&Gateway, &str, &mut TestPeer));

#[test]
fn keys_of_ended_sessions_are_nowhere_in_memory() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let ends: [End; 5] = [
        ("removed by wg", |a, peer, _| a.set(&["peer", peer, "remove"])),
        ("removed by a reload", |a, _, _| {
            a.reload(|profile| profile["Peers"] = serde_json::json!([]));
        }),
        ("removed after the workers were made anew", |a, peer, _| {
            a.reload(|profile| profile["BusyPoll"] = true.into());
            a.set(&["peer", peer, "remove"]);
        }),
        ("another private key", |a, _, _| a.set(&["private-key", &a.secret_file("other.key", &genkey())])),
        // One is kept for receiving, so two have to follow.
        ("replaced", |_, _, peer| {
            for _ in 0..2 {
                pause(60);
                peer.session();
            }
        }),
    ];
    for kind in [Kind::XDP, Kind::SOCKET] {
        for (end, happen) in ends {
            let topology = Topology::new(Options::switch());
            let (a, mut peer, key) = scene(&topology, kind, None);
            let keys = peer.session();
            let before = traces(a.process.pid(), &keys);
            assert!(before.len() >= 2, "the scan finds nothing while the session lives: {before:?}");
            happen(&a, &key, &mut peer);
            let mut left = Vec::new();
            let none = holds_within(LIMIT, || {
                left = traces(a.process.pid(), &keys);
                left.is_empty()
            });
            assert!(none, "{kind:?}, {end}: {left:#?}");
        }
    }
}

/// A session that nobody uses ends by age, though the workers sleep. Only a debug build of the gateway has ages that a
/// test can wait for.
#[test]
fn keys_of_idle_sessions_go_when_they_expire() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::switch());
    let (a, mut peer, _) = scene(&topology, Kind::SOCKET, Some(1));
    let keys = peer.session();
    assert!(!traces(a.process.pid(), &keys).is_empty(), "the scan finds nothing while the session lives");
    let mut left = Vec::new();
    let none = holds_within(LIMIT, || {
        left = traces(a.process.pid(), &keys);
        left.is_empty()
    });
    assert!(none, "{left:#?}");
}

/// A crash writes no core, whatever the limits are.
#[test]
fn a_crash_dumps_no_core() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let hard = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: hard, maximum: hard }).expect("a soft limit may be raised");
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let pid = a.process.pid();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("readable");
    let limits = read("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(read("coredump_filter").trim(), "00000000");
    a.process.signal(Signal::ABORT);
    let ended = a.process.wait(LIMIT);
    assert!(ended.signal() == Some(libc::SIGABRT) && !ended.core_dumped(), "{ended:?}");
}
