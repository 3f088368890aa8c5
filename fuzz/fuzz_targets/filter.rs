//! The firewall: any inner packet in either direction is judged, or dropped with a reason, and a flow that passed once
//! passes again, whichever worker has it.
//!
//! The lowest bit of the first byte is the direction in which the rest goes, as a packet.
#![no_main]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use penstock_dataplane::clock::Millis;
use penstock_dataplane::drop::DropReason;
use penstock_dataplane::filter::{
    Counter, DefaultRule, Direction, Firewall, FlowCache, Flows, Protocol, Rule, Rules, Service, Verdict,
};
use penstock_dataplane::inner::Inner;

thread_local! {
    static FLOWS: Arc<Flows> = Arc::default();
    static CACHES: RefCell<[FlowCache; 2]> = RefCell::new([FlowCache::new(), FlowCache::new()]);
}

/// Lets everything out; lets in answers, pings, and UDP to the lower ports.
fn firewall(flows: Arc<Flows>) -> Firewall {
    let default = |verdict| DefaultRule { verdict, counter: Counter::default() };
    let services = vec![
        Service { protocol: Protocol::Icmp, ports: None },
        Service { protocol: Protocol::Number(17), ports: Some(0..=1023) },
    ];
    let rule = Rule {
        direction: Some(Direction::In),
        peers: None,
        sources: None,
        destinations: None,
        services: Some(services),
        verdict: Verdict::Accept,
        counter: Counter::default(),
    };
    let rules = Rules {
        inward: default(Verdict::Drop),
        outward: default(Verdict::Accept),
        rules: vec![rule],
        restrictions: HashMap::new(),
    };
    Firewall::new(rules, flows)
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let Some(inner) = Inner::parse(bytes) else { return };
    let direction = if kind & 1 == 0 { Direction::In } else { Direction::Out };
    // A new one each time: earlier flows are judged again.
    let firewall = firewall(FLOWS.with(Arc::clone));
    CACHES.with_borrow_mut(|[one, other]| {
        let now = Millis(1000);
        let admit = |cache: &mut FlowCache| firewall.admit(cache, bytes, &inner, (7, direction), now);
        match admit(one) {
            Ok(()) => assert_eq!((admit(other), admit(one)), (Ok(()), Ok(())), "what passed once passes again"),
            Err(DropReason::FilterDenied | DropReason::FilterFragment | DropReason::FilterMalformed) => {}
            Err(DropReason::FilterFull) => {}
            Err(reason) => panic!("{reason:?} is not one of the firewall's reasons"),
        }
    });
});
