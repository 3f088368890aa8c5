//! Requests on the coordinator's control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_coordinator::admin::Request;

fuzz_target!(|line: &[u8]| {
    if let Some(request) = Request::parse(line) {
        let again = serde_json::to_vec(&request).expect("what was JSON is JSON");
        assert!(Request::parse(&again).is_some());
    }
});
