use super::*;
use crate::trust::{Authority, LeaseLength, SigningKey, UnixTime};
use crate::{Speeds, generate_private_key};
use rand::SeedableRng;
use rand::rngs::StdRng;
use x25519_dalek::PublicKey;

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn hello(subnets: usize) -> GatewayMessage {
    let private = generate_private_key(&mut rng());
    let challenger = Challenger::new(&mut rng());
    GatewayMessage::Hello(Hello {
        public_key: PublicKey::from(&private).into(),
        proof: prove(&private, challenger.challenge(), "coordinator.example.net").unwrap(),
        subnets: vec!["2001:db8:ffff:ffff:ffff:ffff:ffff:fffe/128".parse().unwrap(); subnets],
        enrolment: Some(Enrolment {
            key: EnrolmentKey::generate(&mut rng(), Some(Fingerprint([1; 32]))),
            name: "x".repeat(limits::NAME_LIMIT).parse().unwrap(),
        }),
        known: Some(Map::default().known()),
        bound_proof: None,
    })
}

fn reachability(candidates: usize) -> GatewayMessage {
    let address = "[2001:db8:ffff:ffff:ffff:ffff:ffff:fffe]:65535".parse().unwrap();
    GatewayMessage::Reachability(Reachability {
        candidates: vec![Candidate { kind: CandidateKind::ServerReflexive, address }; candidates],
        nat_type: Some(NatType {
            mapping: Some(Dependence::AddressAndPortDependent),
            filtering: None,
            udp_blocked: false,
        }),
        speeds: Some(Speeds { chacha20_poly1305: u32::MAX, aes_256_gcm: u32::MAX }),
        enforces_allow: true,
    })
}

fn paths(count: usize) -> GatewayMessage {
    let path = PathReport {
        peer: [0xff; 32].into(),
        path: PathKind::Direct,
        relay: Some("x".repeat(limits::NAME_LIMIT).parse().unwrap()),
        reason: "x".repeat(limits::REASON_LIMIT),
        round_trip: Some(u32::MAX),
        received: u64::MAX,
        sent: u64::MAX,
    };
    GatewayMessage::Paths(Paths { paths: vec![path; count] })
}

#[test]
fn the_largest_messages_fit_and_come_back_as_they_were() {
    for message in [hello(limits::SUBNETS_LIMIT), reachability(limits::CANDIDATES_LIMIT)] {
        let text = message.encode();
        assert!(text.len() < limits::GATEWAY_MESSAGE_LIMIT / 2, "{}", text.len());
        assert_eq!(GatewayMessage::decode(&text), Ok(message));
    }
    let message = paths(limits::PATHS_LIMIT);
    let text = message.encode();
    assert_eq!(GatewayMessage::decode(&text), Ok(message), "{}", text.len());
    let long = text.replace(&"x".repeat(limits::REASON_LIMIT), &"x".repeat(limits::REASON_LIMIT + 1));
    assert!(matches!(GatewayMessage::decode(&long), Err(DecodeError::Malformed { .. })));
}

#[test]
fn lists_that_are_too_long_are_refused() {
    for message in
        [hello(limits::SUBNETS_LIMIT + 1), reachability(limits::CANDIDATES_LIMIT + 1), paths(limits::PATHS_LIMIT + 1)]
    {
        assert!(matches!(GatewayMessage::decode(&message.encode()), Err(DecodeError::Malformed { .. })));
    }
}

#[test]
fn a_text_that_is_too_long_is_not_looked_at() {
    let text = " ".repeat(limits::GATEWAY_MESSAGE_LIMIT + 1);
    assert!(matches!(GatewayMessage::decode(&text), Err(DecodeError::TooLong { .. })));
}

#[test]
fn truncated_and_bent_messages_are_errors_without_their_text() {
    let text = hello(2).encode();
    for end in 0..text.len() {
        let error = GatewayMessage::decode(&text[..end]).unwrap_err();
        assert!(!error.to_string().contains("penstock1-"));
    }
    for bad in ["", "null", "[]", "{}", r#"{"Type":"Nonsense"}"#, r#"{"Type":"Hello"}"#, "\u{0}"] {
        assert!(GatewayMessage::decode(bad).is_err(), "{bad:?}");
    }
    let deep = "[".repeat(10_000);
    assert!(GatewayMessage::decode(&deep).is_err());
}

#[test]
fn what_a_newer_coordinator_says_is_ignored() {
    let text = r#"{"Type":"Weather","Rain":[1,2]}"#;
    assert_eq!(CoordinatorMessage::decode(text), Ok(CoordinatorMessage::Unknown));
    let text = r#"{"Type":"Refused","Reason":"Moon","Phase":3}"#;
    let refusal = Refusal { reason: RefusalReason::Other, detail: None };
    assert_eq!(CoordinatorMessage::decode(text), Ok(CoordinatorMessage::Refused(refusal)));
}

#[test]
fn the_form_of_messages_does_not_change() {
    let map = Map {
        version: MapVersion { epoch: u64::MAX, number: 2 },
        peers: [(
            SiteKey::from([0; 32]),
            Peer {
                name: "berlin".parse().unwrap(),
                virtual_address: "100.64.0.2".parse().unwrap(),
                subnets: vec!["10.102.0.0/24".parse().unwrap()],
                tags: Vec::new(),
                allow: None,
                reachability: Some(Reachability {
                    candidates: vec![Candidate {
                        kind: CandidateKind::Host,
                        address: "192.0.2.2:47100".parse().unwrap(),
                    }],
                    ..Reachability::default()
                }),
            },
        )]
        .into(),
        ..Map::default()
    };
    let text = concat!(
        r#"{"Type":"Map","Version":{"Epoch":18446744073709551615,"Number":2},"Peers":{"#,
        r#""AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=":{"Name":"berlin","VirtualAddress":"100.64.0.2","#,
        r#""Subnets":["10.102.0.0/24"],"Reachability":{"Candidates":[{"Kind":"Host","Address":"192.0.2.2:47100"}],"#,
        r#""NatType":null}}},"Relays":[],"StunServers":[]}"#
    );
    let message = CoordinatorMessage::Map(map);
    assert_eq!(message.encode(), text);
    assert_eq!(CoordinatorMessage::decode(text), Ok(message));
}

/// A site that does not know suites or `Allow` says nothing about them, and ignores what others say.
#[test]
fn what_a_site_can_do_is_told_and_may_be_missing() {
    let older = r#"{"Candidates":[],"NatType":null}"#;
    assert_eq!(serde_json::from_str::<Reachability>(older).unwrap(), Reachability::default());
    assert_eq!(serde_json::to_string(&Reachability::default()).unwrap(), older);
    let speeds = Some(Speeds { chacha20_poly1305: 2300, aes_256_gcm: 5000 });
    let newer =
        r#"{"Candidates":[],"NatType":null,"Speeds":{"ChaCha20Poly1305":2300,"Aes256Gcm":5000},"EnforcesAllow":true}"#;
    let told = Reachability { speeds, enforces_allow: true, ..Reachability::default() };
    assert_eq!(serde_json::to_string(&told).unwrap(), newer);
    assert_eq!(serde_json::from_str::<Reachability>(newer).unwrap(), told);
}

#[test]
fn candidates_that_nobody_should_probe_are_not_sound() {
    let sound = |address: &str| Candidate { kind: CandidateKind::Host, address: address.parse().unwrap() }.is_sound();
    for good in ["192.0.2.1:1", "10.0.0.1:47100", "[2001:db8::1]:65535", "169.254.1.1:5", "[::ffff:192.0.2.1]:1"] {
        assert!(sound(good), "{good}");
    }
    let bad = [
        "192.0.2.1:0",
        "0.0.0.0:1",
        "0.1.2.3:1",
        "127.0.0.1:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::]:1",
        "[::1]:1",
        "[ff02::1]:1",
        "[fe80::1]:1",
        "[::ffff:127.0.0.1]:1",
    ];
    for bad in bad {
        assert!(!sound(bad), "{bad}");
    }
}

#[test]
fn a_relay_is_told_in_few_bytes_and_no_more_than_it_may_be() {
    let pairs = |count: usize| vec![(20_000, 19_999); count];
    let access = |count| Access { joined: pairs(count), ..Access::default() };
    let message = CoordinatorMessage::Access(access(limits::ACCESS_PAIRS_LIMIT));
    let text = message.encode();
    assert!(text.len() < 1 << 20, "{}", text.len());
    assert_eq!(CoordinatorMessage::decode(&text), Ok(message));
    let text = CoordinatorMessage::Access(access(limits::ACCESS_PAIRS_LIMIT + 1)).encode();
    assert!(matches!(CoordinatorMessage::decode(&text), Err(DecodeError::Malformed { .. })));
    let empty = CoordinatorMessage::Access(Access::default());
    assert_eq!(CoordinatorMessage::decode(r#"{"Type":"Access","Part":"Change"}"#), Ok(empty));
}

#[test]
fn signed_documents_come_a_few_at_a_time() {
    let key = SigningKey::generate(&mut rng());
    let lease_key = key.lease_key();
    let mut authority = Authority::found(key);
    let documents = authority.certify(UnixTime(5), lease_key, LeaseLength::Never).unwrap();
    let message =
        |count| CoordinatorMessage::Documents(Documents { documents: vec![documents[0].clone(); count] }).encode();
    let text = message(1);
    assert_eq!(text, format!(r#"{{"Type":"Documents","Documents":["{}"]}}"#, documents[0]));
    let read = CoordinatorMessage::decode(&text).unwrap();
    assert_eq!(read, CoordinatorMessage::Documents(Documents { documents: documents.clone() }));
    assert!(CoordinatorMessage::decode(&message(limits::DOCUMENTS_LIMIT)).is_ok());
    assert!(CoordinatorMessage::decode(&message(limits::DOCUMENTS_LIMIT + 1)).is_err());
    const { assert!(limits::DOCUMENTS_LIMIT * 2_048 + crate::trust::DOCUMENT_LIMIT < limits::COORDINATOR_MESSAGE_LIMIT) };
}
