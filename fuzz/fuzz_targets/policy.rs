//! Policies from anybody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_coordinator::policy::{Policy, Reach};
use penstock_coordinator::site::{Site, SiteState};

fn site(number: u8) -> Site {
    Site {
        key: [number; 32].into(),
        name: ["a", "b", "c"][usize::from(number)].parse().expect("a name"),
        virtual_address: [100, 64, 0, number].into(),
        subnets: vec!["10.0.0.0/24".parse().expect("a subnet")],
        in_force: vec!["10.0.0.0/24".parse().expect("a subnet")],
        granted: None,
        channel_binding: Default::default(),
        tags: [["x", "y"][usize::from(number & 1)].parse().expect("a name")].into(),
        state: SiteState::Approved,
        created: 0,
        last_seen: None,
        ends: None,
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Policy::parse(text) {
        Ok(policy) => {
            assert_eq!(Policy::parse(&policy.to_text()).as_ref(), Ok(&policy));
            let sites = [0, 1, 2].map(site);
            for (one, other) in sites.iter().flat_map(|one| sites.iter().map(move |other| (one, other))) {
                assert_eq!(policy.joins(one, other), policy.joins(other, one));
                assert!(!policy.joins(one, one));
                let nothing = |from, to| policy.reach(from, to) == Reach::NOTHING;
                assert!(
                    policy.joins(one, other) || one.key == other.key || (nothing(one, other) && nothing(other, one))
                );
                assert!(policy.announced(one).iter().all(|subnet| one.in_force.contains(subnet)));
            }
        }
        Err(sentence) => assert!(!sentence.is_empty()),
    }
});
