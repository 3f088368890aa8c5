//! Gateways on a simulated network stack: thousands of random sequences of what can happen to one, with a check after
//! every operation whether a packet of a guarded prefix could leave in the clear.
//!
//! `PENSTOCK_TEST_SEQUENCES` sets the number of sequences, `PENSTOCK_TEST_SEED` repeats one of them.

mod lookup;
mod oracle;
mod stack;
mod world;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use oracle::{LAYERS, flush};
use stack::{Handle, Stack};
use world::World;

use super::{DEFAULT_TABLE, Ground, Interest, Saved};
use crate::netlink::{Interface, News, Route};
use crate::profile::Name;

const SEQUENCES: u64 = 500;
const STEPS: usize = 10;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        (0..STEPS).for_each(|_| world.step());
        world.end_all();
    }));
    assert!(outcome.is_ok(), "seed {seed} fails, PENSTOCK_TEST_SEED={seed} replays it: {:#?}", world.events);
}

#[test]
fn nothing_leaks_whatever_happens() {
    if let Some(seed) = number("PENSTOCK_TEST_SEED") {
        return run(seed);
    }
    let sequences = number("PENSTOCK_TEST_SEQUENCES").unwrap_or(SEQUENCES);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || (thread..sequences).step_by(threads as usize).for_each(run));
        }
    });
}

/// The oracle can fail: with every layer flushed it sees a leak, with all but one it sees none.
#[test]
fn the_oracle_sees_a_leak_when_every_layer_is_gone() {
    let mut seen = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        (0..3).for_each(|_| world.step());
        let stack = world.stack.borrow();
        if stack.watch.guarded.is_empty() || !stack.watch.damaged.is_empty() {
            continue;
        }
        let mut bare = stack.clone();
        LAYERS.into_iter().for_each(|layer| flush(&mut bare, layer));
        let reachable = bare.watch.guarded.iter().any(|p| p.addr().is_ipv4()) && bare.named("wan0").is_some();
        let routed = bare.routes.iter().any(|r| r.destination.prefix_len() == 0 && r.destination.addr().is_ipv4());
        if reachable && routed {
            assert!(bare.watch.leak(&bare).is_some(), "seed {seed}: nothing is seen");
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} worlds had anything to see");
}

/// Routes that the kernel removes silently are noticed at once a few times, then as soon as the number of routes
/// allows.
#[test]
fn routes_that_go_silently_are_noticed_soon_where_there_are_few() {
    let notices_after = |others: u32| {
        let stack = Rc::new(RefCell::new(Stack::default()));
        let lan = stack.borrow_mut().add_interface("lan0", 1500, true);
        let wan = stack.borrow_mut().add_interface("wan0", 1500, true);
        stack.borrow_mut().add_address(lan, "10.101.0.1/24");
        let other = |number: u32| {
            let to = IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number)));
            Route { table: 100, ..Route::by(to, wan, None, 0, 4) }
        };
        stack.borrow_mut().routes.extend((0..others).map(other));
        let now = Instant::now();
        let handle = Handle { stack: stack.clone(), printed: None };
        let interest = Interest { table: DEFAULT_TABLE, lan: BTreeSet::from(["lan0".to_owned()]) };
        let mut ground =
            Ground::open_with(handle, &Name::try_from("wg".to_owned()).unwrap(), interest, Saved::default(), now);
        let up = stack.borrow().interfaces[&lan].clone();
        let down = Interface { up: false, ..up.clone() };
        let flaps = || [News::Interface(up.clone()), News::Interface(down.clone())];
        let is_known = |ground: &Ground<Handle>| ground.network().routes().any(|route| route.interface == Some(lan));
        (0..10).for_each(|_| drop(ground.refresh(now, flaps())));
        stack.borrow_mut().routes.retain(|route| route.interface != Some(lan));
        ground.refresh(now, flaps());
        assert!(is_known(&ground), "read every time");
        let at = ground.poll_timeout().unwrap();
        ground.refresh(at, []);
        assert!(!is_known(&ground), "not read again");
        at - now
    };
    assert_eq!(notices_after(100), Duration::from_millis(500));
    assert_eq!(notices_after(20_000).as_secs(), 2);
    assert_eq!(notices_after(300_000), Duration::from_secs(5));
}
