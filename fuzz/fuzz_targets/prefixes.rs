//! The rules for prefixes: which offers a coordinator puts in force, and which of them a gateway routes.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use penstock_proto::coordination::Name;
use penstock_proto::trust::{Elsewhere, Offer, Server, Subnets, Surroundings, is_private, judge};

/// Lists of prefixes, one after the other: a byte for list and family, four for the address, one for the
/// length.
fn prefixes(input: &[u8], list: u8) -> Vec<ipnet::IpNet> {
    let (entries, _) = input.as_chunks::<6>();
    entries
        .iter()
        .filter(|[kind, ..]| kind & 7 == list)
        .filter_map(|[kind, a, b, c, d, length]| {
            let address: IpAddr = match kind & 8 {
                0 => [*a, *b, *c, *d].into(),
                _ => [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]), 0, 0, 0, 0, 0, 1].into(),
            };
            let bits = if address.is_ipv4() { 33 } else { 129 };
            let net = ipnet::IpNet::new(address, length % bits).ok()?;
            Some(if kind & 16 == 0 { net.trunc() } else { net })
        })
        .collect()
}

fuzz_target!(|input: &[u8]| {
    let [offered, own, servers, others, granted, accept] = [0, 1, 2, 3, 4, 5].map(|list| prefixes(input, list));
    let servers: Vec<_> = servers.iter().map(|net| (net.addr(), Server::Relay)).collect();
    let name: Name = "other".parse().expect("a name");
    let elsewhere = Elsewhere::new(others.iter().map(|net| (*net, name.clone())), servers.clone());
    let granted = Subnets::new(granted).ok();
    let decision = elsewhere.decide(Offer { subnets: &offered, in_force: &[], granted: granted.as_ref() });
    assert_eq!(decision.in_force.len() + decision.waiting.len(), offered.len());
    // A prefix in force without a grant is one that a gateway routes without `Accept`.
    let plain = Surroundings::new([], None, servers.clone());
    for subnet in &decision.in_force {
        match &granted {
            Some(granted) => assert!(granted.contain(subnet)),
            None => assert!(is_private(subnet) && plain.admit(*subnet).is_ok()),
        }
    }
    let accept = (!accept.is_empty()).then_some(accept);
    let surroundings = Surroundings::new(own.clone(), accept.clone(), servers);
    let judgement = judge(offered.iter().map(|net| (0, *net)), &surroundings, |_| false, 0);
    for prefix in judgement.accepted.keys() {
        assert!(!own.iter().any(|own| own.contains(prefix)));
        assert!(accept.is_some() || prefix.prefix_len() > 0);
    }
    for (_, refused) in judgement.refused {
        assert!(!refused.to_string().is_empty());
    }
});
