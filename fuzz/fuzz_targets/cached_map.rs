//! The files of a cached map and of the signed documents, and the URLs of coordinators, relays and proxies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock::coordinator::{Cached, seen};
use penstock::key::PrivateKey;
use penstock_connect::{CoordinatorUrl, HttpsUrl, Proxy};

fuzz_target!(|input: &[u8]| {
    let key = PrivateKey::from_bytes([1; 32]);
    let url: CoordinatorUrl = "https://coordinator.example.net".parse().expect("a URL");
    // Written by anybody; no input has a valid MAC by chance.
    assert!(Cached::decode(input, &key, &url).is_err());
    // As if we had written it ourselves.
    if let Ok(cached) = Cached::decode(&Cached::seal(input, &key, &url), &key, &url) {
        let again = Cached::decode(&cached.encode(&key, &url), &key, &url);
        assert_eq!(again.ok().as_ref(), Some(&cached));
    }
    assert!(seen::decode(input, &key).is_err());
    if let Ok(state) = seen::decode(&seen::seal(input, &key).0, &key) {
        assert_eq!(seen::decode(&seen::encode(&state, &key), &key).ok().as_ref(), Some(&state));
    }

    let Ok(text) = std::str::from_utf8(input) else { return };
    let (address, variable) = text.split_once(' ').unwrap_or((text, "http://proxy.example.net:3128"));
    let _ = Proxy::new(variable, address);
    if let Ok(url) = address.parse::<HttpsUrl>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
    if let Ok(url) = address.parse::<CoordinatorUrl>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
});
