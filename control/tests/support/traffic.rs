//! Traffic through the tunnel, and its results: pings, datagrams, TCP.

use super::{PATIENCE, eventually};
use penstock_netns::Namespace;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Every payload of this module contains it; no capture of a WAN may.
pub const CLEAR_TEXT_MARKER: &[u8] = b"PENSTOCK-TEST-CLEAR-TEXT";

/// Longer than any delay of an idle local tunnel, shorter than a test's patience.
const ANSWER: Duration = Duration::from_millis(400);

/// How late answers may be on a busy machine.
const LATE: Duration = Duration::from_millis(300);

/// What one run of `ping` reported.
pub struct Ping {
    pub sent: u32,
    pub received: u32,
    pub text: String,
}

impl Ping {
    pub fn all_answered(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }

    /// The MTU that a router reported: "Frag needed and DF set (mtu = N)" or "Packet too big: mtu=N", or what the host
    /// had learnt before: "message too long, mtu=N".
    pub fn reported_mtu(&self) -> Option<u16> {
        let after = self.text.rsplit("mtu").next().filter(|_| self.text.contains("mtu"))?;
        let digits: String =
            after.trim_start_matches([' ', '=', ':']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    }

    /// Who answered in place of the target: "From 10.101.0.1 icmp_seq=1 Time to live exceeded".
    pub fn reporter(&self) -> Option<IpAddr> {
        self.text.lines().find_map(|line| {
            let word = line.strip_prefix("From ")?.split_whitespace().next()?;
            word.trim_end_matches(':').parse().ok()
        })
    }
}

/// Runs `ping` in `namespace` with further `options`; each answer may take one second.
///
/// Once it has an answer, ping(8) waits for the last ones only as long as the interval, whatever `-W` says. So if only the
/// last ones are missing, and all of them may be late, as many more pings decide.
pub fn ping(namespace: &Namespace, target: IpAddr, options: &[&str]) -> Ping {
    let mut pings = ping_once(namespace, target, options);
    let answered = |sequence: &u32| pings.text.contains(&format!("icmp_seq={sequence} ttl="));
    let last_answered = (1..=pings.sent).rev().find(answered).unwrap_or(0);
    let missing = pings.sent - last_answered;
    let interval = options.windows(2).find(|pair| pair[0] == "-i").and_then(|pair| pair[1].parse().ok()).unwrap_or(1.0);
    if last_answered > 0 && missing > 0 && f64::from(missing - 1) * interval <= LATE.as_secs_f64() {
        pings.received += ping_once(namespace, target, &[options, &["-c", &missing.to_string()]].concat()).received;
    }
    pings
}

fn ping_once(namespace: &Namespace, target: IpAddr, options: &[&str]) -> Ping {
    let target = target.to_string();
    let mut words = vec!["ping", "-n", "-W", "1"];
    words.extend(options);
    words.push(&target);
    let (_, text) = namespace.attempt(&words);
    let number = |marker: &str| {
        let line = text.lines().find(|line| line.contains("packets transmitted"))?;
        let before = line[..line.find(marker)?].trim_end();
        before.rsplit([' ', ',']).next()?.parse().ok()
    };
    let sent = number("packets transmitted").unwrap_or(0);
    let received = number("received").unwrap_or(0);
    Ping { sent, received, text }
}

/// A UDP echo server.
pub struct UdpEcho {
    pub address: SocketAddr,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Serves on a free port of `address` in `namespace`.
    pub fn start(namespace: &Namespace, address: IpAddr) -> Self {
        let socket = namespace.enter(|| UdpSocket::bind((address, 0))).expect("echo socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let address = socket.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), received.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { address, received, stop, thread: Some(thread) }
    }

    /// Datagrams that have arrived.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `length` bytes that differ from datagram to datagram and contain the marker if there is room.
fn payload(length: usize, salt: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = CLEAR_TEXT_MARKER.iter().copied().cycle().take(length).collect();
    for (index, byte) in bytes.iter_mut().enumerate().skip(CLEAR_TEXT_MARKER.len()) {
        *byte = (index as u64).wrapping_mul(salt | 1).wrapping_add(salt) as u8;
    }
    bytes
}

/// Sends one datagram of each size from `namespace` to the echo server and expects each back unchanged. Up to four
/// attempts each: the first packet on a path may find no neighbour, and one beyond the MTU is answered with the size to
/// fragment to.
pub fn datagram_sizes(namespace: &Namespace, server: SocketAddr, sizes: impl IntoIterator<Item = usize>) {
    let socket = udp_client(namespace, server);
    let mut buffer = vec![0; 1 << 16];
    for size in sizes {
        let sent = payload(size, size as u64 + 1);
        let echoed = (0..4).any(|_| {
            // The host refuses a datagram that it has just learnt to be too big; then it fragments it.
            if socket.send(&sent).is_err() {
                super::pause(20);
                return false;
            }
            echo_of(&socket, &sent, &mut buffer)
        });
        assert!(echoed, "no echo of a {size}-byte datagram from {server}");
    }
}

/// How many of `count` datagrams, each sent after the previous answer, came back.
pub fn udp_echoes(namespace: &Namespace, server: SocketAddr, count: usize) -> usize {
    let socket = udp_client(namespace, server);
    let mut buffer = vec![0; 1 << 16];
    (0..count)
        .filter(|&index| {
            let sent = payload(200, index as u64);
            socket.send(&sent).is_ok() && echo_of(&socket, &sent, &mut buffer)
        })
        .count()
}

fn udp_client(namespace: &Namespace, server: SocketAddr) -> UdpSocket {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    namespace.enter(|| {
        let socket = UdpSocket::bind((any, 0)).expect("client socket");
        socket.connect(server).expect("a route");
        socket.set_read_timeout(Some(ANSWER)).expect("timeout");
        socket
    })
}

/// Whether `sent` comes back, ignoring late echoes of others.
fn echo_of(socket: &UdpSocket, sent: &[u8], buffer: &mut [u8]) -> bool {
    let deadline = Instant::now() + ANSWER;
    while Instant::now() < deadline {
        match socket.recv(buffer) {
            Ok(length) if buffer[..length] == *sent => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error about an earlier datagram.
            Err(_) => return false,
        }
    }
    false
}

/// Transfers `bytes` over TCP from a client in `from` to a server in `to`, and the same amount
/// back, comparing every byte.
pub fn tcp_both_ways(from: &Namespace, to: &Namespace, server: IpAddr, bytes: usize) {
    tcp_transfer(from, to, server, bytes);
    let listener = to.enter(|| TcpListener::bind((server, 0))).expect("listener");
    let address = listener.local_addr().expect("bound");
    std::thread::scope(|scope| {
        let source = scope.spawn(move || send_pattern(&mut accept(&listener), bytes));
        receive_pattern(&mut connect(from, address), bytes);
        source.join().expect("source");
    });
}

/// Transfers `bytes` over TCP from a client in `from` to a server in `to`, comparing every byte.
pub fn tcp_transfer(from: &Namespace, to: &Namespace, server: IpAddr, bytes: usize) {
    let listener = to.enter(|| TcpListener::bind((server, 0))).expect("listener");
    let address = listener.local_addr().expect("bound");
    std::thread::scope(|scope| {
        let sink = scope.spawn(move || receive_pattern(&mut accept(&listener), bytes));
        send_pattern(&mut connect(from, address), bytes);
        sink.join().expect("sink");
    });
}

fn connect(namespace: &Namespace, address: SocketAddr) -> TcpStream {
    let stream = namespace.enter(|| TcpStream::connect_timeout(&address, PATIENCE));
    with_patience(stream.unwrap_or_else(|error| panic!("TCP to {address}: {error}")))
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("listener");
    let mut accepted = None;
    eventually(PATIENCE, "a TCP connection arrives", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.expect("just seen");
    stream.set_nonblocking(false).expect("stream");
    with_patience(stream)
}

fn with_patience(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    stream
}

/// The pattern repeats after a prime, so a lost or duplicated segment shifts it.
const PATTERN: usize = 65_521;

fn send_pattern(stream: &mut TcpStream, bytes: usize) {
    let pattern = payload(PATTERN, 7);
    let mut left = bytes;
    while left > 0 {
        let part = left.min(PATTERN);
        stream.write_all(&pattern[..part]).expect("TCP send");
        left -= part;
    }
}

fn receive_pattern(stream: &mut TcpStream, bytes: usize) {
    let pattern = payload(PATTERN, 7);
    let mut buffer = vec![0; PATTERN];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(PATTERN);
        stream.read_exact(&mut buffer[..part]).expect("TCP receive");
        assert!(buffer[..part] == pattern[..part], "TCP data changed on its way");
        left -= part;
    }
}

/// A TCP sink that discards everything, for load that survives interruptions.
pub struct TcpSink {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    received: Arc<AtomicU64>,
}

impl TcpSink {
    /// Starts the sink in `to` and `streams` senders in `from`.
    pub fn flood(from: &Namespace, to: &Namespace, server: IpAddr, streams: usize) -> Self {
        let listener = to.enter(|| TcpListener::bind((server, 0))).expect("listener");
        let address = listener.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for _ in 0..streams {
            let mut sender = connect(from, address);
            let mut receiver = accept(&listener);
            sender.set_write_timeout(Some(Duration::from_millis(100))).expect("timeout");
            receiver.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
            let stopped = stop.clone();
            threads.push(std::thread::spawn(move || {
                let data = payload(PATTERN, 3);
                while !stopped.load(Ordering::Relaxed) {
                    let _ = sender.write(&data);
                }
            }));
            let (stopped, count) = (stop.clone(), received.clone());
            threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; PATTERN];
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok(length) = receiver.read(&mut buffer) {
                        count.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
            }));
        }
        Self { address, stop, threads, received }
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for TcpSink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Runs iperf3 from a client in `from` to a server in `to`; returns the bits per second that arrived. `options` go to
/// the client: `-R`, `-P 4`, `-t 2`.
pub fn iperf3(from: &Namespace, to: &Namespace, server: IpAddr, options: &[&str], scratch: &Path) -> f64 {
    let number = penstock_netns::unique();
    let log = scratch.join(format!("iperf3-{number}.log"));
    let server = server.to_string();
    // Different ports, since the servers of one address run in parallel.
    let port = (20_000 + number % 10_000).to_string();
    let words = ["iperf3", "-s", "-1", "--forceflush", "-B", &server, "-p", &port];
    let mut listener = to.spawn(&words, &log);
    eventually(PATIENCE, "iperf3 listens", || listener.log().contains("listening"));
    // Where nothing gets through, iperf3 waits for minutes.
    let mut words = vec!["timeout", "60", "iperf3", "-J", "-c", &server, "-p", &port];
    words.extend(options);
    let (success, text) = from.attempt(&words);
    assert!(success, "iperf3 {options:?}: {text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("iperf3 -J");
    listener.wait(PATIENCE);
    report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate")
}
