//! The fast path allocates nothing: counted, over many batches in both directions.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use penstock_dataplane::loopback::Loopback;

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
    let Loopback { mut worker, wan, lan, endpoint, .. } = Loopback::new(512).unwrap();

    let mut packet = vec![0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.resize(84, 7);
    let mut before = 0;
    for round in 0..200 {
        if round == 20 {
            // Buffers have grown to what the traffic needs.
            before = ALLOCATIONS.load(Relaxed);
        }
        for _ in 0..100 {
            assert!(lan.send(worker.pool(), endpoint, 0, &packet));
        }
        worker.turn();
        assert_eq!(wan.turn_around(endpoint), 100);
        worker.turn();
        assert_eq!(lan.discard(worker.pool()), 100);
    }
    assert_eq!(ALLOCATIONS.load(Relaxed) - before, 0);
}
