use std::net::SocketAddr;

use penstock_proto::coordination::Dependence::{self, AddressAndPortDependent, AddressDependent, EndpointIndependent};
use penstock_proto::stun::NatReport;

use super::*;
use crate::port_mapping::{External, Mapping, Protocol};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn nat(translated: bool, mapping: Dependence, filtering: Dependence) -> Family {
    Family::new(NatReport {
        udp_blocked: false,
        reflexive: Some(address("11.1.0.2:47100")),
        translated: Some(translated),
        mapping: Some(mapping),
        filtering: Some(filtering),
        port_preservation: Some(true),
        hairpinning: Some(false),
    })
}

fn report(ipv4: Family) -> Report {
    Report::new(Parts { local_port: 47100, pinned: true, ipv4: Some(ipv4), ..Parts::default() })
}

fn blocked() -> Family {
    Family::new(NatReport { udp_blocked: true, ..NatReport::default() })
}

fn subjects(report: &Report) -> Vec<Subject> {
    report.advice.iter().map(|advice| advice.subject).collect()
}

fn relayed(report: &Report) -> Vec<NatClass> {
    report.direct.iter().filter(|to| to.direct == Some(false)).map(|to| to.nat_type).collect()
}

#[test]
fn each_nat_has_its_name_its_relayed_peers_and_its_advice() {
    use NatClass::{PortRestricted, Symmetric, UdpBlocked};
    let hopeless = vec![UdpBlocked];
    for (family, class, reachable, relays, advice) in [
        (nat(false, EndpointIndependent, EndpointIndependent), NatClass::None, Reachable::Open, &hopeless, vec![]),
        (nat(true, EndpointIndependent, EndpointIndependent), NatClass::FullCone, Reachable::Open, &hopeless, vec![]),
        (
            nat(true, EndpointIndependent, AddressDependent),
            NatClass::AddressRestricted,
            Reachable::Closed,
            &hopeless,
            vec![],
        ),
        (
            nat(true, EndpointIndependent, AddressAndPortDependent),
            PortRestricted,
            Reachable::Closed,
            &vec![Symmetric, UdpBlocked],
            vec![Subject::Filtering],
        ),
        (
            nat(false, EndpointIndependent, AddressAndPortDependent),
            NatClass::Firewall,
            Reachable::Closed,
            &vec![Symmetric, UdpBlocked],
            vec![Subject::Filtering],
        ),
        (
            nat(true, AddressDependent, AddressAndPortDependent),
            Symmetric,
            Reachable::Closed,
            &vec![PortRestricted, Symmetric, UdpBlocked],
            vec![Subject::Mapping],
        ),
        (blocked(), UdpBlocked, Reachable::Blocked, &NatClass::OF_PEERS.to_vec(), vec![Subject::UdpBlocked]),
    ] {
        let report = report(family);
        assert_eq!((report.nat_type, report.reachable), (class, reachable));
        assert_eq!(relayed(&report), *relays, "{class:?}");
        assert_eq!(subjects(&report), advice, "{class:?}");
        let text = render(&report);
        assert!(text.contains(&class.to_string()), "{text}");
        for advice in &report.advice {
            let first = advice.text.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
            assert!(text.contains(&first), "{text}");
        }
    }
}

#[test]
fn a_mapped_port_makes_a_symmetric_nat_harmless_and_a_private_one_does_not() {
    let family = nat(true, AddressAndPortDependent, AddressAndPortDependent);
    let mapped = |external| Mapping {
        external: Some(External { address: address(external), protocol: Protocol::Pcp }),
        found: vec![Protocol::Pcp],
    };
    let with =
        |external| Report::new(Parts { ipv4: Some(family), port_mapping: Some(mapped(external)), ..Parts::default() });
    let good = with("11.1.0.2:47100");
    assert_eq!((good.reachable, subjects(&good)), (Reachable::Mapped, vec![]));
    assert_eq!(relayed(&good), [NatClass::UdpBlocked]);
    assert!(render(&good).contains("11.1.0.2:47100 leads here by PCP"));
    let double = with("192.168.1.7:47100");
    assert_eq!((double.reachable, subjects(&double)), (Reachable::Closed, vec![Subject::Mapping, Subject::DoubleNat]));
    assert!(render(&double).contains("192.168.1.7"));
}

#[test]
fn a_forwarded_port_is_seen_beside_what_the_nat_does_otherwise() {
    let mut family = nat(true, EndpointIndependent, AddressAndPortDependent);
    family.port_filtering = Some(EndpointIndependent);
    let report = report(family);
    assert_eq!((report.nat_type, report.reachable), (NatClass::PortRestricted, Reachable::Open));
    assert_eq!((relayed(&report), subjects(&report)), (vec![NatClass::UdpBlocked], vec![]));
    assert!(render(&report).contains("filtering, this port"));
}

#[test]
fn what_is_not_known_is_not_claimed() {
    let nothing = Report::new(Parts::default());
    assert_eq!((nothing.nat_type, nothing.reachable), (NatClass::Unknown, Reachable::Unknown));
    assert!(nothing.direct.iter().all(|to| (to.nat_type == NatClass::UdpBlocked) == to.direct.is_some()));
    assert!(nothing.advice.is_empty());
    // A server with one address can find out no more than this.
    let nat = NatReport { reflexive: Some(address("11.1.0.2:5")), translated: Some(true), ..NatReport::default() };
    let one = report(Family::new(nat));
    assert_eq!((one.nat_type, subjects(&one)), (NatClass::Unknown, vec![Subject::Unmeasured]));
    let text = &one.advice[0].text;
    assert!(
        text.contains("cannot tell how the NAT maps and filters: name a server that has two, with --stun."),
        "{text}"
    );
    // One with another port, as a coordinator has it by default, also finds out how the NAT maps: that is enough for all
    // peers but those behind symmetric NATs.
    let family = Family::new(NatReport { translated: Some(false), mapping: Some(EndpointIndependent), ..nat });
    let two_ports = report(family);
    let works = |class| two_ports.direct.iter().find(|to| to.nat_type == class).and_then(|to| to.direct);
    let [.., port_restricted, symmetric, blocked] = NatClass::OF_PEERS.map(works);
    assert_eq!(
        (works(NatClass::None), port_restricted, symmetric, blocked),
        (Some(true), Some(true), None, Some(false))
    );
    assert!(two_ports.advice[0].text.contains("cannot tell who is let in"), "{:?}", two_ports.advice);
    assert!(render(&two_ports).contains("none, though a firewall may let in only answers"));
    assert!(render(&one).contains("not measured"));
}

#[test]
fn peers_and_the_coordinator_are_told_of() {
    let coordinator = Coordinator {
        address: "coordinator.example.net:443".into(),
        proxy: None,
        reachable: false,
        problem: Some("Connection refused".into()),
    };
    let report = Report::new(Parts {
        ipv4: Some(nat(true, EndpointIndependent, AddressAndPortDependent)),
        coordinator: Some(coordinator),
        peers: vec![
            RemoteSite { name: "berlin".into(), nat: NatClass::Symmetric.nat_type(), ..RemoteSite::default() },
            RemoteSite { name: "madrid".into(), nat: NatClass::FullCone.nat_type(), ..RemoteSite::default() },
            RemoteSite { name: "oslo".into(), nat: NatType::default(), ..RemoteSite::default() },
        ],
        ..Parts::default()
    });
    let direct: Vec<_> = report.peers.iter().map(|peer| peer.direct).collect();
    assert_eq!(direct, [Some(false), Some(true), None]);
    assert_eq!(subjects(&report), [Subject::Coordinator, Subject::Filtering]);
    let text = render(&report);
    for word in ["berlin", "Connection refused", "HTTPS_PROXY"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_running_gateway_tells_how_its_peers_are_reached() {
    let peer = |name: &str, class: NatClass, path, reason: &str| RemoteSite {
        name: name.into(),
        nat: class.nat_type(),
        path: Some(path),
        reason: Some(reason.into()),
    };
    let parts = Parts {
        running: true,
        ipv4: Some(nat(true, EndpointIndependent, AddressAndPortDependent)),
        peers: vec![
            peer("berlin", NatClass::FullCone, PathKind::Direct, "the peer answers directly"),
            peer("madrid", NatClass::Symmetric, PathKind::Relay, "its NAT is symmetric"),
            peer("oslo", NatClass::FullCone, PathKind::None, "it is silent"),
        ],
        ..Parts::default()
    };
    let report = Report::new(parts.clone());
    let text = render(&report);
    for words in [
        "works     now direct\n",
        "relayed   now relayed\n",
        "works     now not reached\n",
        "\nmadrid is relayed: its NAT is symmetric.\n",
        "\noslo is not reached: it is silent.\n",
        "the gateway runs",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("berlin is"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    let expected = serde_json::json!({
        "Name": "madrid",
        "NatType": "symmetric",
        "Direct": false,
        "Path": "relay",
        "Reason": "its NAT is symmetric",
    });
    assert_eq!(json["Peers"][1], expected);
    let report = Report::new(Parts { measuring: true, ..parts });
    assert_eq!(subjects(&report), [Subject::Filtering, Subject::Unmeasured]);
    assert!(render(&report).contains("still measuring"));
}

#[test]
fn a_lifetime_is_told_in_words_and_a_short_one_is_advised_against() {
    let with = |lifetime: MappingLifetime| {
        let mut report =
            report(Family { mapping_lifetime: Some(lifetime), ..nat(true, EndpointIndependent, EndpointIndependent) });
        report.advise();
        report
    };
    let between = |from, to| MappingLifetime { from: Some(from), to, problem: None };
    for (lifetime, words, short) in [
        (between(0, Some(15)), "less than 15 s of silence", true),
        (between(15, Some(25)), "between 15 and 25 s of silence", true),
        (between(15, Some(30)), "between 15 and 30 s of silence", false),
        (between(300, None), "more than 300 s of silence", false),
        (LifetimeProblem::NoMapping.into(), "no mapping: nothing is translated", false),
        (LifetimeProblem::Unsupported.into(), "not measured: no STUN server answers to another port", false),
    ] {
        let report = with(lifetime);
        let text = render(&report);
        let line = text.lines().find(|line| line.trim_start().starts_with("mapping lifetime")).expect("a line");
        assert!(line.contains(words), "{line}");
        assert_eq!(subjects(&report) == [Subject::MappingLifetime], short, "{line}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
    let unasked = report(nat(true, EndpointIndependent, EndpointIndependent));
    assert!(!render(&unasked).contains("lifetime"));
    assert_eq!(serde_json::to_value(&unasked).unwrap()["IPv4"]["MappingLifetime"], serde_json::Value::Null);
}

/// docs/nat.md promises these names.
#[test]
fn the_json_is_a_contract() {
    let json = serde_json::to_value(report(nat(true, EndpointIndependent, AddressDependent))).unwrap();
    let names = |value: &serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let mut top = names(&json);
    top.sort();
    let expected = [
        "Advice",
        "Coordinator",
        "Direct",
        "IPv4",
        "IPv6",
        "LocalPort",
        "Measuring",
        "NatType",
        "Peers",
        "Pinned",
        "PortMapping",
        "Reachable",
        "Running",
    ];
    assert_eq!(top, expected);
    assert_eq!(json["NatType"], "address-restricted");
    assert_eq!(json["Reachable"], "Closed");
    assert_eq!(json["IPv4"]["Nat"]["Filtering"], "AddressDependent");
    assert_eq!(json["Direct"][0], serde_json::json!({ "NatType": "none", "Direct": true }));
    let back: Report = serde_json::from_value(json).unwrap();
    assert_eq!(back, report(nat(true, EndpointIndependent, AddressDependent)));
}
