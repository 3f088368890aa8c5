//! Requests on the socket of the `wg` tool.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock::uapi;

fuzz_target!(|request: &[u8]| {
    let _ = uapi::parse(request);
});
