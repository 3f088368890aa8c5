//! Answers about port mapping from a router, or from whoever answers in its place: SSDP, HTTP, XML.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use penstock::port_mapping::igd::{Url, location, parse_answer, service, text_of};

fuzz_target!(|input: &[u8]| {
    let router = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
    // Nothing leads to another host, and nothing can break a request line.
    let sound = |url: &Url| {
        assert_eq!(url.address.ip(), router);
        assert!(url.path.starts_with('/') && url.path.bytes().all(|byte| byte.is_ascii_graphic()));
    };
    if let Some(url) = location(input, router) {
        sound(&url);
    }
    let at = Url { address: SocketAddr::new(router, 5000), path: "/".into() };
    let text = String::from_utf8_lossy(input).into_owned();
    for body in [Some(text), parse_answer(input).map(|(_, body)| body)].into_iter().flatten() {
        if let Some((_, control)) = service(&body, &at) {
            sound(&control);
        }
        let _ = text_of(&body, "errorCode");
    }
});
