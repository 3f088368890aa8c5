//! Requests on the coordinator's control socket, and the files of its authority and of a relay.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use penstock_coordinator::admin::Request;
use penstock_coordinator::relay::RelayServer;
use penstock_coordinator::relay::access::Follower;
use penstock_coordinator::relay::snapshot::SnapshotFile;
use penstock_coordinator::signer::{Export, Requests, Spare};
use penstock_proto::StaticSecret;
use penstock_proto::relay::RelayLimits;

fuzz_target!(|line: &[u8]| {
    if let Some(request) = Request::parse(line) {
        let again = serde_json::to_vec(&request).expect("what was JSON is JSON");
        assert!(Request::parse(&again).is_some());
    }
    if let Ok(requests) = serde_json::from_slice::<Requests>(line) {
        let again = serde_json::to_vec(&requests).expect("what was JSON is JSON");
        assert_eq!(serde_json::from_slice::<Requests>(&again).ok(), Some(requests));
    }
    let _ = serde_json::from_slice::<Export>(line).map(Export::open);
    let _ = serde_json::from_slice::<Spare>(line).map(Spare::open);

    let url = "https://coordinator.example.net".parse().expect("a URL");
    let file = SnapshotFile::new(Path::new("/nowhere"), &StaticSecret::from([1; 32]), &url);
    // Written by anybody; no input has a valid MAC by chance.
    assert!(file.decode(line).is_err());
    // As if we had written it ourselves.
    let Ok(told) = file.decode(&file.seal(line)) else { return };
    let relay = || Arc::new(RelayServer::new(StaticSecret::from([1; 32]), RelayLimits::default()));
    let (first, again) = (relay(), relay());
    let mut follower = Follower::new(first.clone());
    if told.access.into_iter().try_for_each(|part| follower.take(part)).is_ok() {
        // The state that was kept can be passed on, and gives the same sites.
        let mut second = Follower::new(again.clone());
        follower.whole().into_iter().for_each(|part| second.take(part).expect("a whole"));
        assert_eq!(again.count(), first.count());
    }
});
