//! The fast path allocates nothing: counted, over many batches in both directions.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::engine::{Engine, WorkerSetup};
use penstock_dataplane::frame::Pool;
use penstock_dataplane::peer::Peer;
use penstock_dataplane::ports::memory::{MemoryPort, Wire};
use penstock_dataplane::prefix::PrefixMap;
use penstock_dataplane::session::{Session, SessionConfig, Suite};
use penstock_dataplane::table::{PeerEntry, SessionEntry, Table};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn no_allocation_per_packet() {
    const SESSION: u32 = 9;
    let endpoint: SocketAddr = ([192, 0, 2, 2], 2).into();
    let peer = Arc::new(Peer::new(0));
    // A session with itself: what is sealed can be opened again.
    let session = Arc::new(Session::new(SessionConfig {
        local_index: SESSION,
        remote_index: SESSION,
        suite: Suite::ChaCha20Poly1305,
        send_key: [1; 32].into(),
        receive_key: [1; 32].into(),
        born: Millis::now(),
        confirmed: true,
        peer: Arc::clone(&peer),
    }));
    let mut allowed_ips = PrefixMap::default();
    allowed_ips.insert([10, 0, 0, 0].into(), 8, 0);
    let mut table = Table { allowed_ips: Arc::new(allowed_ips), ..Table::default() };
    table.peers.push(PeerEntry { peer, endpoint: Some(endpoint), link: None, sending: Some(Arc::clone(&session)) });
    table.sessions.insert(SESSION, SessionEntry { session, peer: 0 });

    let (wan, lan) = (Wire::default(), Wire::default());
    let setup = WorkerSetup {
        pool: Pool::heap(512),
        wan: vec![Box::new(MemoryPort::new("wan", wan.clone()))],
        lan: vec![Box::new(MemoryPort::new("lan", lan.clone()))],
        core: None,
        busy_poll: false,
    };
    let (_engine, mut workers) = Engine::prepare(vec![setup], table).unwrap();

    let mut packet = vec![0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.resize(84, 7);
    let mut before = 0;
    for round in 0..200 {
        if round == 20 {
            // Buffers have grown to what the traffic needs.
            before = ALLOCATIONS.load(Relaxed);
        }
        for _ in 0..100 {
            lan.send(endpoint, 0, &packet);
        }
        workers[0].turn();
        while let Some(message) = wan.receive() {
            wan.send(endpoint, 0, &message.bytes);
            wan.recycle(message);
        }
        workers[0].turn();
        let mut delivered = 0;
        while let Some(message) = lan.receive() {
            delivered += 1;
            lan.recycle(message);
        }
        assert_eq!(delivered, 100);
    }
    assert_eq!(ALLOCATIONS.load(Relaxed) - before, 0);
}
