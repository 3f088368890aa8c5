//! Routers' reports about our datagrams, as raw sockets deliver them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock::icmp;

fuzz_target!(|message: &[u8]| {
    for parsed in [icmp::parse_v4(message), icmp::parse_v6(message)].into_iter().flatten() {
        let too_big = parsed.too_big();
        assert!(too_big.payload.len() < message.len());
        let _ = too_big.is_plausible();
    }
});
