//! A handshake leaves its session's keys where it hands them over, and nowhere else in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Instant, SystemTime};

use penstock_proto::{Event, Gateway, PeerConfig, SessionKeys, clamped_private_key};
use rand::SeedableRng;

const CHUNK: usize = 1 << 20;

/// A handshake between two gateways; returns the keys of both.
fn handshake() -> [Box<SessionKeys>; 2] {
    let now = Instant::now();
    let gateway = |byte| {
        let rng = rand::rngs::StdRng::from_os_rng();
        Gateway::new(clamped_private_key([byte; 32]), rng, now, SystemTime::now())
    };
    let (mut a, mut b) = (gateway(1), gateway(2));
    let endpoint = "192.0.2.1:1".parse().expect("an endpoint");
    let config = || PeerConfig { endpoint: Some(endpoint), ..PeerConfig::default() };
    let peer = a.add_peer(now, *b.public_key(), config()).expect("a peer");
    b.add_peer(now, *a.public_key(), config()).expect("a peer");
    assert!(a.handle_wanted(now, peer));
    let initiation = a.poll_transmit().expect("an initiation");
    b.handle_datagram(now, endpoint, &initiation.contents).expect("an authentic initiation");
    let response = b.poll_transmit().expect("a response");
    a.handle_datagram(now, endpoint, &response.contents).expect("an authentic response");
    [&mut a, &mut b].map(|gateway| {
        let mut events = std::iter::from_fn(|| gateway.poll_event());
        let established = events.find_map(|event| match event {
            Event::SessionEstablished { session, .. } => Some(session),
            _ => None,
        });
        established.expect("a session")
    })
}

/// Where a key is in this process's memory. `buffer` is where memory is read to.
fn places(key: &[u8; 32], buffer: &mut [u8]) -> Vec<usize> {
    let memory = File::open("/proc/self/mem").expect("our own memory");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our own memory");
    let ours = buffer.as_ptr_range();
    let ours = ours.start as usize..ours.end as usize;
    let mut places = Vec::new();
    for range in maps.lines().filter(|line| line.contains(" rw")).filter_map(|line| line.split(' ').next()) {
        let (start, end) = range.split_once('-').expect("two addresses");
        let address = |text| usize::from_str_radix(text, 16).expect("an address");
        for at in (address(start)..address(end)).step_by(CHUNK) {
            let Ok(read) = memory.read_at(buffer, at as u64) else { continue };
            let words = buffer[..read].chunks_exact(8).enumerate();
            let found = words.filter(|(_, word)| **word == key[..8]).map(|(place, _)| 8 * place);
            let whole = found.filter(|place| buffer[*place..read].starts_with(key)).map(|place| at + place);
            places.extend(whole.filter(|place| !ours.contains(place)));
        }
    }
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn session_keys_are_where_they_are_handed_out_and_nowhere_else() {
    let (keys_out, keys) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    // The thread stays alive, and so does its stack as the handshake left it.
    let thread = std::thread::spawn(move || {
        keys_out.send(handshake()).expect("somebody waits");
        let _ = ended.recv();
    });
    let [a, b] = keys.recv().expect("keys");
    let mut buffer = vec![0; CHUNK + 32];
    for (ours, theirs) in [(&a.send, &b.receive), (&a.receive, &b.send)] {
        assert_eq!(ours.as_bytes(), theirs.as_bytes());
        let mut handed_out = [ours, theirs].map(|key| key.as_bytes().as_ptr() as usize);
        handed_out.sort_unstable();
        assert_eq!(places(ours.as_bytes(), &mut buffer), handed_out);
    }
    drop(end);
    thread.join().expect("the thread ends");
}
