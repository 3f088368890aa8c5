//! STUN messages as anybody can send them, to the decoder, to the server, and to a discovery and a
//! measurement of the lifetime in every step.
#![no_main]

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use penstock_coordinator::stun::Corners;
use penstock_proto::stun::message::{
    Change, Message, decode, encode_request, encode_request_for_port, encode_success, is_stun,
};
use penstock_proto::stun::{Discovery, Lifetime, Reflexive};
use rand::SeedableRng;
use rand::rngs::StdRng;

fuzz_target!(|input: &[u8]| {
    let _ = is_stun(input);
    match decode(input) {
        Ok(Message::Request { transaction, change, response_port }) => {
            let again = decode(&encode_request(&transaction, change));
            assert_eq!(again, Ok(Message::Request { transaction, change, response_port: None }));
            if let Some(port) = response_port {
                let (again, change) = (decode(&encode_request_for_port(&transaction, port)), Change::default());
                assert_eq!(again, Ok(Message::Request { transaction, change, response_port }));
            }
            let from: SocketAddr = ([203, 0, 113, 5], 9).into();
            let corners = Corners::new(([192, 0, 2, 1], 3478).into(), Some(([192, 0, 2, 2], 3479).into())).unwrap();
            if let Some(answer) = corners.answer(0, None, from, input) {
                assert_eq!(answer.to.ip(), from.ip());
                assert_eq!(answer.is_larger, answer.bytes.len() > input.len());
                assert!(!answer.is_larger || answer.bytes.len() == 32 && answer.to == from && answer.by == 0);
                assert_eq!(answer.to.port(), response_port.map_or(9, NonZeroU16::get));
            }
        }
        Ok(Message::Success { transaction, mapped, other }) => {
            // Addresses are written canonically: IPv4 mapped into IPv6 is read as IPv6 and written as IPv4.
            let again = decode(&encode_success(&transaction, mapped, mapped, other));
            assert!(matches!(again, Ok(Message::Success { .. })));
        }
        _ => {}
    }
    let mut now = Instant::now();
    let server: SocketAddr = ([192, 0, 2, 1], 3478).into();
    let mut discovery = Discovery::new(now, &[server], &[([10, 0, 0, 1], 5).into()], StdRng::seed_from_u64(1));
    let mut reflexive = Reflexive::new(now, server, StdRng::seed_from_u64(2));
    let silences = [1, 3].map(Duration::from_secs);
    let mut lifetime = Lifetime::new(now, &[server], &silences, StdRng::seed_from_u64(3));
    let mut rest = input;
    while let Some((&length, tail)) = rest.split_first() {
        let (answer, tail) = tail.split_at(tail.len().min(usize::from(length)));
        let socket = rest.len() / 4 % lifetime.sockets();
        let mut of_lifetime = answer.to_vec();
        if let Some((_, query)) = lifetime.poll_transmit(now).filter(|_| of_lifetime.len() >= 20) {
            of_lifetime[4..20].copy_from_slice(&query.bytes[4..20]);
        }
        lifetime.handle_datagram(now, socket, &of_lifetime);
        // The rest of a message whose header answers the last request.
        let asked = discovery.poll_transmit(now).or_else(|| reflexive.poll_transmit(now));
        let mut bytes = answer.to_vec();
        if let Some(query) = asked.filter(|_| bytes.len() >= 20) {
            bytes[4..20].copy_from_slice(&query.bytes[4..20]);
        }
        discovery.handle_datagram(now, &bytes);
        reflexive.handle_datagram(&bytes);
        now += Duration::from_millis(250);
        rest = tail;
    }
    let _ = discovery.poll_report();
    if let Some(Ok(bracket)) = lifetime.poll_outcome() {
        assert!(bracket.to.is_none_or(|to| to > bracket.from));
    }
});
