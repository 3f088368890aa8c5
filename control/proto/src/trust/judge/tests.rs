use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn surroundings(accept: Option<&[&str]>) -> Surroundings {
    let server = |address: &str, server| (address.parse().unwrap(), server);
    Surroundings::new(
        nets(&["10.101.0.0/24", "192.168.178.20/24", "2001:db8:1::/64", "fd01::/48"]),
        accept.map(nets),
        [
            server("10.50.0.5", Server::Endpoint),
            server("::ffff:10.50.1.5", Server::Coordinator),
            server("10.50.1.5", Server::Relay),
            server("198.51.100.7", Server::Stun),
            server("fd50::1", Server::Relay),
            server("100.64.9.9", Server::Endpoint),
        ],
    )
}

/// The sentence about a prefix, if it is refused.
fn refusal(prefix: &str, accept: Option<&[&str]>) -> Option<String> {
    surroundings(accept).admit(net(prefix)).err().map(|refused| refused.to_string())
}

#[test]
fn private_prefixes_and_virtual_addresses_pass() {
    for good in ["10.102.0.0/24", "172.16.0.0/12", "192.168.0.0/24", "fd02::/48", "10.9.9.9/32", "100.64.0.7/32"] {
        assert_eq!(refusal(good, None), None, "{good}");
    }
}

#[test]
fn nothing_of_our_own_is_given_away() {
    let everything: &[&str] = &["0.0.0.0/0", "::/0"];
    for accept in [None, Some(everything)] {
        for own in ["10.101.0.0/24", "10.101.0.128/25", "10.101.0.7/32", "192.168.178.0/24", "fd01::/48", "fd01::1/128"]
        {
            assert!(refusal(own, accept).unwrap().contains(", a network of this gateway"), "{own}");
        }
        for covering in ["10.101.0.0/16", "192.168.0.0/16", "fd00::/15"] {
            assert_eq!(refusal(covering, accept), None, "{covering}");
        }
    }
    assert_eq!(
        refusal("10.101.0.128/25", None).unwrap(),
        "10.101.0.128/25 is not routed: it lies inside 10.101.0.0/24, a network of this gateway"
    );
}

#[test]
fn public_prefixes_and_default_routes_take_an_accept() {
    for default in ["0.0.0.0/0", "::/0"] {
        assert!(refusal(default, None).unwrap().contains("it is a default route"), "{default}");
    }
    for public in ["8.0.0.0/7", "2000::/3", "0.0.0.0/1", "100.64.0.0/10", "100.64.1.0/31", "172.0.0.0/8", "fc00::/6"] {
        assert!(refusal(public, None).unwrap().contains("it is not a private prefix"), "{public}");
    }
    let accept: &[&str] = &["8.0.0.0/8", "0.0.0.0/0"];
    assert_eq!(refusal("0.0.0.0/0", Some(accept)), None);
    assert_eq!(refusal("8.8.8.0/24", Some(accept)), None);
    assert!(refusal("::/0", Some(accept)).is_some());
}

#[test]
fn no_server_is_drawn_into_the_tunnel() {
    let holds = |prefix| refusal(prefix, None).unwrap();
    assert!(holds("10.50.0.0/24").contains("holds 10.50.0.5, the outer address of a site,"));
    assert!(holds("10.50.1.0/24").contains("holds 10.50.1.5, the coordinator's address,"), "the weightiest is named");
    assert!(holds("fd50::1/128").contains("holds fd50::1, a relay's address,"));
    assert!(holds("100.64.9.9/32").contains("the outer address of a site"));
    assert_eq!(refusal("10.50.0.6/31", None), None);
    assert_eq!(refusal("10.50.0.0/24", Some(&["10.50.0.0/16"])), None, "Accept admits");
    assert!(refusal("100.64.9.9/32", Some(&["10.0.0.0/8"])).is_some());
}

#[test]
fn accept_limits() {
    let accept: &[&str] = &["10.102.0.0/16"];
    assert_eq!(refusal("10.102.7.0/24", Some(accept)), None);
    assert_eq!(refusal("100.64.0.7/32", Some(accept)), None, "virtual addresses are no subnets");
    for other in ["10.103.0.0/24", "10.0.0.0/8", "fd02::/48"] {
        assert!(refusal(other, Some(accept)).unwrap().contains("Accept in the profile does not contain it"), "{other}");
    }
    assert!(refusal("10.102.0.0/24", Some(&[])).is_some(), "an empty list accepts nothing");
}

#[test]
fn some_addresses_are_behind_nobody() {
    for bad in ["127.0.0.1/32", "224.0.0.0/4", "255.255.255.255/32", "0.0.0.0/8", "::1/128", "fe80::/64", "ff02::/16"] {
        assert!(refusal(bad, Some(&["0.0.0.0/0", "::/0"])).unwrap().contains("its addresses"), "{bad}");
    }
    assert!(refusal("::ffff:10.1.0.0/112", Some(&["::/0"])).is_some(), "IPv4 in disguise");
    assert!(refusal("10.102.0.1/24", None).unwrap().contains("an address within a prefix"));
}

#[test]
fn a_prefix_has_one_peer() {
    let here = surroundings(None);
    let offers = [(1, "10.102.0.0/24"), (1, "10.102.0.0/24"), (2, "10.102.0.0/24"), (2, "10.102.0.0/25")];
    let offers = offers.map(|(peer, prefix)| (peer, net(prefix)));
    let taken = RefusedPrefix { prefix: net("10.102.0.0/24"), reason: PrefixReason::Taken };
    let judgement = judge(offers, &here, |_| false, 0);
    assert_eq!(judgement.accepted, [(net("10.102.0.0/24"), 1), (net("10.102.0.0/25"), 2)].into());
    assert_eq!(judgement.refused, [(2, taken)]);
    // Another peer has it already.
    let judgement = judge(offers, &here, |prefix| *prefix == net("10.102.0.0/24"), 1);
    assert_eq!(judgement.accepted, [(net("10.102.0.0/25"), 2)].into());
    assert_eq!(judgement.refused, [(1, taken), (1, taken), (2, taken)]);
}

#[test]
fn a_map_cannot_grow_without_end() {
    let prefix = |number: u32| IpNet::new(IpAddr::from((0x0a00_0000 + number).to_be_bytes()), 32).unwrap();
    let offers = (0..PREFIXES_LIMIT as u32 + 3).map(|number| (number / 65, prefix(number)));
    for in_force in [0, 7, PREFIXES_LIMIT + 1] {
        let judgement = judge(offers.clone(), &Surroundings::default(), |_| false, in_force);
        let room = PREFIXES_LIMIT.saturating_sub(in_force);
        assert_eq!(judgement.accepted.len(), room);
        assert_eq!(judgement.refused.len(), PREFIXES_LIMIT + 3 - room);
        assert!(judgement.refused.iter().all(|(_, refused)| refused.reason == PrefixReason::TooMany));
    }
}

/// Thousands of random gateways and offers, compared address by address with the rules as the documentation states
/// them.
#[test]
fn the_rules_hold_for_any_offer() {
    let mut rng = StdRng::seed_from_u64(10);
    // Few bits, so that prefixes collide; 10/8 and 11/8, so that some are public; fd../8 and 2a../8 likewise.
    let address = |rng: &mut StdRng| -> IpAddr {
        let low: u16 = rng.random_range(0..64);
        if rng.random() {
            let first = if rng.random_ratio(3, 4) { 10 } else { 11 };
            [first, 0, 0, low as u8 * 4].into()
        } else {
            let first = if rng.random_ratio(3, 4) { 0xfd00 } else { 0x2a00 };
            [first, 0, 0, 0, 0, 0, 0, low * 4].into()
        }
    };
    let prefix = |rng: &mut StdRng| {
        let address = address(rng);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let length = if rng.random_ratio(1, 20) { rng.random_range(0..9) } else { bits - rng.random_range(0..9) };
        IpNet::new(address, length).unwrap().trunc()
    };
    let (mut passed, mut refused, mut still) = (0, 0, [0; 2]);
    for _ in 0..5_000 {
        let own: Vec<IpNet> = (0..rng.random_range(0..3)).map(|_| prefix(&mut rng)).collect();
        let accept: Option<Vec<IpNet>> =
            rng.random::<bool>().then(|| (0..rng.random_range(0..4)).map(|_| prefix(&mut rng)).collect());
        let servers: Vec<IpAddr> = (0..rng.random_range(0..3)).map(|_| address(&mut rng)).collect();
        let surroundings = |servers: &[IpAddr], own: &[IpNet]| {
            let servers = servers.iter().map(|address| (*address, Server::Relay));
            Surroundings::new(own.iter().copied(), accept.clone(), servers)
        };
        let here = surroundings(&servers, &own);
        let before = surroundings(&servers[..servers.len() / 2], if rng.random() { &own } else { &[] });
        for _ in 0..10 {
            let prefix = prefix(&mut rng);
            let inside = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&prefix));
            let private = inside(&nets(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]));
            let expected = !inside(&own)
                && match &accept {
                    Some(accept) => inside(accept),
                    None => private && !servers.iter().any(|address| prefix.contains(address)),
                };
            // 0.0.0.0/8 and ::/16 belong to nobody.
            let nobodys = inside(&nets(&["0.0.0.0/8", "::/16"]));
            assert_eq!(here.admit(prefix).is_ok(), expected && !nobodys, "{prefix}, {here:?}");
            // What passed before is judged only by what is new; the outcome must be the same.
            if before.admit(prefix).is_ok() {
                assert_eq!(here.still_admit(Some(&before))(prefix), here.admit(prefix), "{before:?}, {here:?}");
                still[usize::from(here.admit(prefix).is_ok())] += 1;
            }
            *(if expected { &mut passed } else { &mut refused }) += 1;
        }
    }
    assert!(passed > 5_000 && refused > 5_000, "{passed} passed, {refused} refused");
    assert!(still.iter().all(|count| *count > 500), "{still:?}");
}
