//! A gateway with many peers: new documents cost a signature each, known ones next to nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use penstock_proto::coordination::{Peer, SiteKey};
use penstock_proto::trust::{Document, LeaseLength, SiteGrant, Subnets};

use super::overlay::{Gateway, Overlay};

/// Site 0 is the gateway's own.
fn sites(count: u16) -> Vec<SiteGrant> {
    let site = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let mut key = [1; 32];
        (key[0], key[1]) = (high, low);
        SiteGrant {
            public_key: key.into(),
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: [100, 64, high, low].into(),
            tags: Default::default(),
            subnets: Subnets::new([format!("10.{high}.{low}.0/24").parse().unwrap()]).unwrap(),
            validity: Default::default(),
        }
    };
    (0..count).map(site).collect()
}

/// 5,000 peers and the figures with `PENSTOCK_TEST_LONG=1 cargo test --release … scale -- --nocapture`.
#[test]
fn what_is_known_is_not_verified_again() {
    let count = if std::env::var_os("PENSTOCK_TEST_LONG").is_some() { 5_001 } else { 201 };
    let mut overlay = Overlay::new(LeaseLength::DEFAULT);
    let grants = sites(count);
    for grant in &grants {
        overlay.authority.approve(overlay.now, grant.clone()).unwrap();
    }
    let told = overlay.told();
    let mut gateway = Gateway::with_own(grants[0].public_key, &overlay);
    let learn = |gateway: &mut Gateway, documents: &[Document]| {
        let begun = Instant::now();
        let learnt = gateway.learn(documents);
        assert_eq!(learnt.refused, []);
        (learnt.changed, begun.elapsed())
    };
    let (changed, new) = learn(&mut gateway, &told);
    assert!(changed);
    let (changed, known) = learn(&mut gateway, &told);
    assert!(!changed);
    let peer = |grant: &SiteGrant| -> (SiteKey, Peer) {
        let SiteGrant { public_key, name, virtual_address, subnets, .. } = grant.clone();
        let (tags, allow, reachability) = (Vec::new(), None, None);
        (public_key, Peer { name, virtual_address, subnets: subnets.into(), tags, allow, reachability })
    };
    let map: BTreeMap<SiteKey, Peer> = grants[1..].iter().map(peer).collect();
    let now = gateway.now();
    let begun = Instant::now();
    let admission = gateway.verifier.admit(now, &map);
    let admit = begun.elapsed();
    assert_eq!((admission.peers.len(), admission.prefixes.len()), (map.len(), 0));
    assert!(admission.peers.values().all(|peer| peer.prefixes.len() == 2));
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{} documents: {:.1} ms new, {:.2} ms known; {} peers admitted in {:.2} ms",
        told.len(),
        milliseconds(new),
        milliseconds(known),
        map.len(),
        milliseconds(admit)
    );
    // A signature costs a thousand comparisons; a factor of ten leaves room for a busy machine.
    assert!(known < new / 10, "{known:?} for what is known, {new:?} for what is new");
}
