//! Does `wire` report what happened? Links with a known rate, loss and delay, a device that stalls, and a generator
//! that stalls.
//!
//! ```text
//!  ┌─── left ────┐      ┌──── middle ────┐      ┌─── right ───┐
//!  │        east ├──────┤ west      east ├──────┤ west        │
//!  └─────────────┘ veth └────────────────┘ veth └─────────────┘
//!     generator          kernel or program           sink
//! ```
//! Needs root, `ip`, `tc` and `nft`; without root the tests
//! say so and pass. They run one after another, and allow for a machine that is busy with something else:
//! each tolerance is stated where it is used.

mod device;
mod honesty;
mod program;
mod stall;
#[path = "../support/mod.rs"]
mod support;

use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use penstock_bench::laboratory::wire::topology::veth;
use penstock_bench::laboratory::wire::{Bench, Direction, Load, Options, Outcome, Traffic};
use penstock_bench::traffic::interface::Interface;
use penstock_bench::traffic::packet::{Addresses, Flows, Mac, Mix};
use penstock_bench::traffic::port::Port;
use penstock_netns::Namespace;

static NO_STOP: AtomicBool = AtomicBool::new(false);
const PORT: u16 = 48_000;

const LEFT: Mac = Mac([2, 0, 0, 0, 1, 1]);
const MIDDLE_WEST: Mac = Mac([2, 0, 0, 0, 1, 2]);
const MIDDLE_EAST: Mac = Mac([2, 0, 0, 0, 2, 1]);
const RIGHT: Mac = Mac([2, 0, 0, 0, 2, 2]);

/// Three namespaces in a row.
struct Row {
    left: Namespace,
    middle: Namespace,
    right: Namespace,
    /// Held while this test's packets are on their way.
    _alone: MutexGuard<'static, ()>,
}

impl Row {
    /// Without root it prints a message and returns `None`.
    fn new() -> Option<Row> {
        let alone = alone()?;
        let [left, middle, right] = ["left", "middle", "right"].map(Namespace::new);
        let row = Row { left, middle, right, _alone: alone };
        veth(&row.left, LEFT, &row.middle, MIDDLE_WEST).expect("a veth pair");
        veth(&row.middle, MIDDLE_EAST, &row.right, RIGHT).expect("a veth pair");
        Some(row)
    }

    /// A bench from left to right.
    fn bench(&self, mix: &Mix) -> Bench {
        self.bench_of(&self.traffic(), mix)
    }

    fn bench_of(&self, traffic: &Traffic, mix: &Mix) -> Bench {
        let template = traffic.templates(mix).expect("a template").remove(0);
        let interface =
            |namespace: &Namespace, name: &str| Interface { namespace: namespace.clone(), name: name.into() };
        let mut from = Port::open(&interface(&self.left, "east"), true, false).expect("a port");
        let mut to = Port::open(&interface(&self.right, "west"), false, true).expect("a port");
        let generator = from.generator(template).expect("it sends");
        let direction = Direction { name: "forth".into(), generator, sink: to.sink() };
        let options = Options {
            wait: Duration::from_millis(300),
            settle: Duration::ZERO,
            verify: true,
            spin: false,
            cores: vec![],
        };
        Bench::new(vec![direction], options)
    }

    fn traffic(&self) -> Traffic {
        let addresses = Addresses {
            source_mac: LEFT,
            destination_mac: MIDDLE_WEST,
            source: [198, 18, 0, 1].into(),
            destination: [198, 19, 0, 1].into(),
            source_port: 40_000,
            destination_port: PORT,
        };
        Traffic { addresses: vec![addresses], flows: Flows { count: 4, hosts: 1 } }
    }
}

/// One trial at a rate.
fn trial(bench: &mut Bench, rate: u64, seconds: f64) -> Outcome {
    let load = Load { rate: NonZeroU64::new(rate), duration: Duration::from_secs_f64(seconds) };
    bench.run(load, &NO_STOP).expect("a trial").remove(0)
}

/// Permission to send packets, for one test at a time; without root it prints a message and returns `None`.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}
