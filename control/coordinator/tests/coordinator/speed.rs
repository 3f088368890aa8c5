//! How much a relay carries, measured: `PENSTOCK_TEST_LONG=1 cargo test --release … speed -- --nocapture`.
//! Sender, relay and receiver share the machine.

use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_coordinator::relay::RelayServer;
use penstock_coordinator::relay::access::Follower;
use penstock_coordinator::udp::{self, Listen};
use penstock_proto::coordination::{Access, AccessPart, SiteKey};
use penstock_proto::relay::RelayLimits;
use penstock_proto::{PublicKey, StaticSecret};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

use crate::tunnel::{Link, Tunnel, handshake};

/// Segments that the sender hands over at a time: what a gateway's worker does.
const SEGMENTS: usize = 40;
const SECONDS: Duration = Duration::from_secs(3);

fn blocking(link: Link) -> (std::net::UdpSocket, UdpSocketState) {
    let Link::Udp(socket) = link else { panic!("by UDP") };
    let socket = socket.into_std().unwrap();
    let state = UdpSocketState::new((&socket).into()).unwrap();
    state.set_recv_buffer_size((&socket).into(), 4 << 20).unwrap();
    socket.set_nonblocking(false).unwrap();
    (socket, state)
}

fn send(link: Link, relay: SocketAddr, datagram: &[u8]) -> u64 {
    let (socket, state) = blocking(link);
    let contents = datagram.repeat(SEGMENTS.min(state.max_gso_segments()));
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < SECONDS {
        let segment_size = Some(datagram.len());
        let transmit = Transmit { destination: relay, ecn: None, contents: &contents, segment_size, src_ip: None };
        if state.try_send((&socket).into(), &transmit).is_ok() {
            sent += (contents.len() / datagram.len()) as u64;
        }
    }
    sent
}

fn receive(link: Link, length: usize) -> u64 {
    let (socket, state) = blocking(link);
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut memory = vec![0; 65_535];
    let (mut meta, mut received) = ([RecvMeta::default()], 0);
    loop {
        let mut slices = [IoSliceMut::new(&mut memory)];
        match state.recv((&socket).into(), &mut slices, &mut meta) {
            Ok(_) => received += (meta[0].len / length) as u64,
            Err(_) => return received,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_carries() {
    if std::env::var_os("PENSTOCK_TEST_LONG").is_none() {
        return eprintln!("skipped: it is a measurement; set PENSTOCK_TEST_LONG=1");
    }
    for contents in [32, 1392] {
        let limits = RelayLimits { pair_bytes_per_second: 1 << 40, pair_burst: 1 << 40 };
        let relay = Arc::new(RelayServer::new([9; 32].into(), limits));
        let listen =
            Listen { addresses: vec!["127.0.0.1:0".parse().unwrap()], public: Vec::new(), alternate_port: None };
        let sockets = Arc::new(udp::bind(&[listen]).unwrap());
        let _tasks = udp::serve(&sockets, Some(&relay));
        let address = sockets.addresses().next().unwrap();
        let secrets = [1, 2].map(|byte| StaticSecret::from([byte; 32]));
        let keys = secrets.each_ref().map(|secret| SiteKey::from(PublicKey::from(secret)));
        let mut follower = Follower::new(relay.clone());
        let sites = vec![(0, keys[0]), (1, keys[1])];
        follower.take(Access { part: AccessPart::First, sites, ..Access::default() }).unwrap();
        let joined = vec![(0, 1)];
        follower.take(Access { part: AccessPart::Last, joined, ..Access::default() }).unwrap();
        let mut a = Tunnel::new(&secrets[0], relay.public_key(), Link::udp(address).await);
        let mut b = Tunnel::new(&secrets[1], relay.public_key(), Link::udp(address).await);
        a.bind().await;
        b.bind().await;
        assert!(handshake(&mut a, &mut b).await);
        let datagram = a.seal(&vec![1; contents]);
        let length = datagram.len();
        let (to, from) = (a.link, b.link);
        let receiver = std::thread::spawn(move || receive(from, length));
        let sender = std::thread::spawn(move || send(to, address, &datagram));
        let (sent, received) =
            tokio::task::spawn_blocking(|| (sender.join().unwrap(), receiver.join().unwrap())).await.unwrap();
        let seconds = SECONDS.as_secs_f64();
        println!(
            "{length} B: {:.0} kpps offered, {:.0} kpps forwarded, {:.0} kpps received, {:.2} Gbit/s",
            sent as f64 / seconds / 1e3,
            relay.counters.totals().0 as f64 / seconds / 1e3,
            received as f64 / seconds / 1e3,
            received as f64 * length as f64 * 8.0 / seconds / 1e9,
        );
        assert!(received > 1000, "{received}");
    }
}
