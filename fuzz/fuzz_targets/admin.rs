//! Requests on the coordinator's control socket, and the files of its authority.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_coordinator::admin::Request;
use penstock_coordinator::signer::{Export, Requests, Spare};

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
});
