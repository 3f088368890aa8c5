//! The fast path allocates nothing: counted, over many batches in both directions.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use penstock_dataplane::filter::{Counter, DefaultRule, Firewall, Rules, Verdict};
use penstock_dataplane::loopback::Loopback;
use penstock_dataplane::shaper::WanRate;
use penstock_dataplane::table::Table;

struct Counting;

thread_local! {
    /// Of this thread: the test harness allocates in another.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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
    none_is_allocated(|table| table);
    none_is_allocated(|table| Table { firewall: Some(Arc::new(firewall())), ..table });
    none_is_allocated(|table| Table { wan_rate: Some(Arc::new(WanRate::new(1 << 40))), ..table });
}

/// A firewall that lets everything pass, as packets of known flows and of new ones.
fn firewall() -> Firewall {
    let default = || DefaultRule { verdict: Verdict::Accept, counter: Counter::default() };
    let rules = Rules { inward: default(), outward: default(), rules: Vec::new(), restrictions: HashMap::new() };
    Firewall::new(rules, Arc::default())
}

fn none_is_allocated(change: impl Fn(Table) -> Table) {
    let Loopback { engine, mut worker, wan, lan, endpoint, .. } = Loopback::new(512).expect("descriptors");
    engine.publish(change(Table::clone(&engine.table())));

    let mut packet = vec![0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.resize(84, 7);
    let mut before = 0;
    for round in 0..200u8 {
        if round == 20 {
            // The buffers have grown to the size that the traffic needs.
            before = ALLOCATIONS.get();
        }
        for port in 0..100 {
            packet[20] = round;
            packet[21] = port % 2 * port;
            assert!(lan.send(worker.pool(), endpoint, 0, &packet));
        }
        worker.turn();
        assert_eq!(wan.turn_around(endpoint), 100);
        worker.turn();
        assert_eq!(lan.discard(worker.pool()), 100);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
