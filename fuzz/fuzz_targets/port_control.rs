//! PCP and NAT-PMP answers from a router, or from whoever answers in its place.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use libfuzzer_sys::fuzz_target;
use penstock_proto::port_control::{Answer, Request};

fuzz_target!(|input: &[u8]| {
    let port = NonZeroU16::new(47_100).unwrap();
    let client = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2));
    for request in [
        Request::PcpMap { nonce: [7; 12], client, port, external: 47_100, lifetime: 1200 },
        Request::NatPmpAddress,
        Request::NatPmpMap { port, external: 47_100, lifetime: 1200 },
    ] {
        let Some(Ok(answer)) = request.answer(input) else { continue };
        match (request, answer) {
            (Request::NatPmpAddress, Answer::Address(_)) => {}
            (Request::PcpMap { .. }, Answer::Mapping { address, .. }) => assert!(address.is_some()),
            (Request::NatPmpMap { .. }, Answer::Mapping { address, .. }) => assert!(address.is_none()),
            (request, answer) => panic!("{answer:?} to {request:?}"),
        }
    }
});
