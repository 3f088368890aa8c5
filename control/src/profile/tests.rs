use std::path::Path;

use penstock_proto::coordination::Fingerprint;
use zeroize::Zeroizing;

use super::*;
use crate::key::KeyError;

const PATH: &str = "/etc/penstock/profiles/a.profile";

/// A complete profile, one line per field.
const FULL: &str = r#"{
  "Name": "amsterdam",
  "LocalPort": 47100,
  "VirtualAddress": "100.64.0.1",
  "PrivateKeyFile": "amsterdam.key",
  "Wan": { "Interface": "eth0", "Mode": "auto" },
  "Lan": {
    "Interfaces": ["eth1"],
    "Mode": "auto",
    "Subnets": ["10.101.0.0/24"]
  },
  "Workers": 0,
  "Peers": [
    {
      "Name": "berlin",
      "PublicKey": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
      "PresharedKeyFile": null,
      "Endpoint": "192.0.2.2:47100",
      "AllowedIPs": ["10.102.0.0/24", "fd00:2::1:2/64"],
      "PersistentKeepalive": 25
    },
    {
      "Name": "cairo",
      "PublicKey": "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
      "PresharedKeyFile": "cairo.psk",
      "Endpoint": "gateway.cairo.example:47100",
      "AllowedIPs": ["10.103.0.0/24"], "Suite": "aes-256-gcm"
    }
  ],
  "Mtu": 1400
}
"#;

const SMALL: &str = r#"{"Name": "a", "PrivateKeyFile": "/keys/a", "Wan": {"Interface": "eth0"}}"#;

// RFC 7748, section 6.1: Alice's keys.
const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";

fn read_fake_key(file: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("missing") => Err(std::io::Error::from(std::io::ErrorKind::NotFound).into()),
        Some("exposed") => Err(KeyFileError::Exposed { mode: 0o644 }),
        Some("garbage") => Err(KeyError::NotBase64.into()),
        _ => Ok(Zeroizing::new(format!("{PRIVATE}\n"))),
    }
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Profile, ProfileError> {
    let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Profile::parse(text.as_bytes(), Path::new(PATH), &environment, &mut read_fake_key)
}

fn parse(text: &str) -> Result<Profile, ProfileError> {
    parse_with(text, &[])
}

/// The error when `old` is replaced by `new` in the complete profile.
fn complaint(old: &str, new: &str) -> String {
    assert!(FULL.contains(old), "{old}");
    let error = parse(&FULL.replacen(old, new, 1)).expect_err(new).to_string();
    let error = error.strip_prefix(PATH).expect(&error).to_owned();
    assert!(!error.contains('\n') && !error.contains('`'), "{error}");
    error.trim_start_matches(':').trim_start().to_owned()
}

#[test]
fn the_full_profile() {
    let profile = parse(FULL).unwrap();
    assert_eq!(profile.name.as_str(), "amsterdam");
    assert_eq!(profile.local_port, LocalPort::Pinned(47100));
    assert_eq!(profile.virtual_addresses, ["100.64.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(profile.private_key_file, Path::new("/etc/penstock/profiles/amsterdam.key"));
    assert_eq!(profile.wan, Wan { interface: "eth0".into(), mode: WanMode::Auto });
    assert_eq!(profile.lan.interfaces, ["eth1"]);
    assert_eq!(profile.lan.subnets, ["10.101.0.0/24".parse::<IpNet>().unwrap()]);
    let [berlin, cairo] = profile.peers.as_slice() else { panic!("two peers") };
    assert_eq!(berlin.endpoint, Some(Endpoint::Address("192.0.2.2:47100".parse().unwrap())));
    assert_eq!(berlin.allowed_ips[1], "fd00:2::/64".parse::<IpNet>().unwrap());
    assert_eq!(berlin.persistent_keepalive, Some(Duration::from_secs(25)));
    assert!(berlin.preshared_key.is_none());
    let host = Endpoint::Host { name: "gateway.cairo.example".into(), port: 47100 };
    assert_eq!(cairo.endpoint, Some(host));
    assert_eq!(cairo.preshared_key_file.as_deref(), Some(Path::new("/etc/penstock/profiles/cairo.psk")));
    assert!(cairo.preshared_key.is_some());
    assert_eq!(cairo.persistent_keepalive, None);
    assert_eq!((berlin.suite, cairo.suite), (SuiteSetting::ChaCha20Poly1305, SuiteSetting::Aes256Gcm));
}

#[test]
fn the_smallest_profile_has_defaults() {
    let profile = parse(SMALL).unwrap();
    assert_eq!(profile.local_port, LocalPort::Random);
    assert_eq!(profile.private_key_file, Path::new("/keys/a"));
    assert_eq!((profile.wan.mode, profile.lan.mode), (WanMode::Auto, LanMode::Auto));
    assert!(profile.lan.interfaces.is_empty() && profile.peers.is_empty());
    assert_eq!((profile.workers, profile.mtu), (0, None));
    assert!(profile.udp_gso && !profile.busy_poll && !profile.copy_dscp);
    assert_eq!(profile.cipher, CipherImplementation::Auto);
}

#[test]
fn what_it_shows_parses_to_the_same_and_has_no_secret() {
    let profile = parse(FULL).unwrap();
    let shown = serde_json::to_string_pretty(&profile.document()).unwrap();
    let again = parse(&shown).unwrap();
    assert_eq!(format!("{profile:?}"), format!("{again:?}"));
    assert!(!shown.contains(PRIVATE) && !format!("{profile:?}").contains(PRIVATE));
}

#[test]
fn every_field_has_a_variable() {
    let document = serde_json::to_value(parse(FULL).unwrap().document()).unwrap();
    for (key, value) in document.as_object().unwrap() {
        let inner = value.as_object().map(|inner| inner.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        let known = |path: &[&str]| FIELDS.iter().any(|field| field.path == path);
        assert!(known(&[key]) || inner.iter().all(|name| known(&[key, name])) || key == "Coordinator", "{key}");
    }
    let variables: Vec<_> = FIELDS.iter().map(Field::variable).collect();
    assert!(variables.contains(&"PENSTOCK_PRIVATE_KEY_FILE".to_owned()), "{variables:?}");
    assert!(variables.contains(&"PENSTOCK_WAN_MODE".to_owned()), "{variables:?}");
}

#[test]
fn shape_errors_name_line_and_field() {
    for (old, new, expected) in [
        ("\"LocalPort\"", "\"LocalPrt\"", "3:3: field LocalPrt: there is no such field; did you mean LocalPort?"),
        (
            "\"Mode\": \"auto\" }",
            "\"Mod\": \"udp\" }",
            "6:33: field Wan.Mod: there is no such field; did you mean Mode?",
        ),
        ("47100,", "\"x\",", "3:16: field LocalPort: expected a whole number from 0 to 65535, not \"x\""),
        ("47100,", "70000,", "3:16: field LocalPort: expected a whole number from 0 to 65535, not 70000"),
        ("\"auto\" }", "\"fast\" }", "6:41: field Wan.Mode: \"fast\" is not one of auto, xdp, udp"),
        ("\"auto\",", "\"udp\",", "9:13: field Lan.Mode: \"udp\" is not one of auto, xdp, tun"),
        (
            "\"aes-256-gcm\"",
            "\"aes\"",
            "27:49: field Peers[1].Suite: \"aes\" is not one of auto, chacha20-poly1305, aes-256-gcm",
        ),
        (
            "\"Workers\": 0",
            "\"Cipher\": { \"Implementation\": \"neon\" }",
            "12:33: field Cipher.Implementation: \"neon\" is not one of auto, ifma512, ifma256, avx2, ring",
        ),
        ("  \"Name\": \"amsterdam\",\n", "", "1:1: Name is missing"),
        ("\"Interface\": \"eth0\", ", "", "6:10: field Wan: Interface is missing"),
        ("\"Name\": \"cairo\",", "", "22:5: field Peers[1]: Name is missing"),
        ("\"Workers\": 0", "\"Name\": 0", "12:3: field Name: given twice in one object"),
        ("\"LocalPort\"", "\"ListenPort\"", "3:3: field ListenPort: there is no such field; did you mean LocalPort?"),
        (
            "\"VirtualAddress\"",
            "\"Address\"",
            "4:3: field Address: there is no such field; did you mean VirtualAddress?",
        ),
        ("\"Peers\"", "\"Sites\"", "13:3: field Sites: there is no such field; man penstock.profile lists them all"),
    ] {
        let error = complaint(old, new);
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn value_errors_name_line_and_field() {
    for (old, new, expected) in [
        ("\"amsterdam\"", "\"a/b\"", "2:11: field Name: \"a/b\" is not a valid name: "),
        ("\"amsterdam\"", "\"sixteen-letters!\"", "2:11: field Name: \"sixteen-letters!\" is not a valid name: "),
        ("\"amsterdam\"", "\"all\"", "2:11: field Name: \"all\" is reserved"),
        ("\"amsterdam\"", "\"eth0\"", "6:25: field Wan.Interface: eth0 is the gateway's Name"),
        ("100.64.0.1", "100.64.0.1/24", "4:21: field VirtualAddress: \"100.64.0.1/24\" is not an IP address"),
        ("\"100.64.0.1\"", "[\"100.64.0.1\", \"100.64.0.2\"]", "4:21: field VirtualAddress: at most one IPv4"),
        ("\"100.64.0.1\"", "[\"fd00::1\", \"x\"]", "4:21: field VirtualAddress: \"x\" is not an IP address"),
        ("[\"eth1\"]", "[\"eth0\"]", "8:20: field Lan.Interfaces[0]: eth0 is already Wan.Interface"),
        ("[\"eth1\"]", "[\"eth/1\"]", "8:20: field Lan.Interfaces[0]: \"eth/1\" cannot be a network interface"),
        ("10.101.0.0/24", "10.101.0.0/33", "10:17: field Lan.Subnets[0]: \"10.101.0.0/33\" is not a prefix"),
        ("\"Workers\": 0", "\"Workers\": 257", "12:14: field Workers: 257 workers are more"),
        ("\"Mtu\": 1400", "\"Mtu\": 575", "30:10: field Mtu: 575 is not from 576 to 9000"),
        (
            "192.0.2.2:47100",
            "192.0.2.256:47100",
            "18:19: field Peers[0].Endpoint: \"192.0.2.256:47100\" is not an endpoint",
        ),
        ("192.0.2.2:47100", "192.0.2.2", "18:19: field Peers[0].Endpoint: \"192.0.2.2\" is not an endpoint"),
        ("192.0.2.2:47100", "192.0.2.2:0", "18:19: field Peers[0].Endpoint: \"192.0.2.2:0\" has port 0"),
        ("\"berlin\"", "\"\"", "15:15: field Peers[0].Name: \"\" is not a name"),
        ("xTIBA5rb", "xTIBA5r", "16:20: field Peers[0].PublicKey: a key is 44 characters"),
        ("\"Mtu\": 1400", "\"Metrics\": 9586", "30:14: field Metrics: expected a string, not 9586"),
        (
            "\"Mtu\": 1400",
            "\"Metrics\": \"localhost\"",
            "30:14: field Metrics: \"localhost\" is not an address with a port, such as 127.0.0.1:9586",
        ),
        ("\"Mtu\": 1400", "\"WanRate\": 20", "30:14: field WanRate: expected a rate such as \"20 Mbit/s\", not 20"),
    ] {
        let error = complaint(old, new);
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn rules_name_both_sides() {
    for (old, new, expected) in [
        ("\"cairo\"", "\"berlin\"", "23:15: field Peers[1].Name: there are two peers named berlin"),
        (
            "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
            "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "24:20: field Peers[1].PublicKey: cairo has the same public key as berlin",
        ),
        (
            "10.103.0.0/24",
            "10.102.0.7/24",
            "27:22: field Peers[1].AllowedIPs[0]: 10.102.0.0/24 belongs to both berlin and cairo",
        ),
        (
            "10.102.0.0/24",
            "10.101.0.128/25",
            "19:22: field Peers[0].AllowedIPs[0]: 10.101.0.128/25 of berlin lies in this gateway's own 10.101.0.0/24 (Lan.Subnets)",
        ),
        (
            "10.102.0.0/24",
            "100.64.0.1",
            "19:22: field Peers[0].AllowedIPs[0]: 100.64.0.1/32 of berlin lies in this gateway's own 100.64.0.1/32 (VirtualAddress)",
        ),
        (
            "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
            "24:20: field Peers[1].PublicKey: cairo has this gateway's own public key",
        ),
        (
            "\"Mtu\": 1400",
            "\"Coordinator\": {\"Url\": \"http://c.example\", \"CaFile\": null}",
            "30:26: field Coordinator.Url: \"http://c.example\" is not a URL such as https://",
        ),
        (
            "\"Mtu\": 1400",
            "\"Coordinator\": {\"Url\": \"https://c.example/x\"}",
            "30:26: field Coordinator.Url: \"https://c.example/x\" has a path",
        ),
        (
            "\"Mtu\": 1400",
            "\"Coordinator\": {\"Url\": \"https://c.example\", \"Fingerprint\": \"ab\"}",
            "30:62: field Coordinator.Fingerprint: a SHA-256 fingerprint is 64 hexadecimal digits",
        ),
        (
            "\"Mtu\": 1400",
            "\"Coordinator\": {\"Url\": \"https://c.example\", \"Fingerprint\": \"ab\", \"CaFile\": \"ca.pem\"}",
            "30:78: field Coordinator.CaFile: a certificate that is pinned by Fingerprint needs no authorities",
        ),
        ("\"Mtu\": 1400", "\"Firewall\": []", "30:15: field Firewall: expected an object, not a list"),
        ("\"Mtu\": 1400", "\"Table\": -1", "30:12: field Table: expected a whole number from 0 to 4294967295, not -1"),
        ("\"Mtu\": 1400", "\"Metrics\": \"127.0.0.1:0\"", "30:14: field Metrics: 127.0.0.1:0 has port 0"),
        ("\"amsterdam.key\"", "\"x.missing\"", "5:21: field PrivateKeyFile: /etc/penstock/profiles/x.missing: "),
        (
            "\"amsterdam.key\"",
            "\"x.exposed\"",
            "5:21: field PrivateKeyFile: /etc/penstock/profiles/x.exposed: its mode 0644",
        ),
        (
            "\"cairo.psk\"",
            "\"x.garbage\"",
            "25:27: field Peers[1].PresharedKeyFile: /etc/penstock/profiles/x.garbage: a key",
        ),
    ] {
        let error = parse(&FULL.replacen(old, new, 1)).expect_err(new).to_string();
        let error = error.strip_prefix(&format!("{PATH}:")).unwrap_or(&error);
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn metrics_are_served_where_the_profile_says() {
    let profile = parse(&FULL.replacen("\"Mtu\": 1400", "\"Metrics\": \"[::1]:9586\"", 1)).unwrap();
    assert_eq!(profile.metrics, Some("[::1]:9586".parse().unwrap()));
    let shown = serde_json::to_string(&profile.document()).unwrap();
    assert_eq!(parse(&shown).unwrap().metrics, profile.metrics);
    assert_eq!(parse(FULL).unwrap().metrics, None);
    assert_eq!(profile.fields_that_differ(&parse(FULL).unwrap()), ["Mtu", "Metrics"]);
}

/// The complete profile with a firewall, on its line 30.
fn with_firewall(firewall: &str) -> String {
    FULL.replacen("\"Mtu\": 1400", &format!("\"Firewall\": {firewall}"), 1).replacen(
        "\"Suite\": \"aes-256-gcm\"",
        "\"Tags\": [\"hub\"]",
        1,
    )
}

#[test]
fn a_firewall_has_defaults_and_rules() {
    use firewall::{Direction, SiteSelector, Verdict};

    assert_eq!(parse(FULL).unwrap().firewall, None);
    let least = parse(&with_firewall("{}")).unwrap().firewall.unwrap();
    assert_eq!((least.inward, least.outward, least.rules.len()), (Verdict::Drop, Verdict::Accept, 0));

    let text = with_firewall(
        r#"{"In": "accept", "Out": "drop", "Rules": [
            {"Name": "web", "Verdict": "accept", "Direction": "out", "Sites": ["berlin", "tag:hub"],
             "Sources": ["10.101.0.7"], "Destinations": ["10.102.0.9/24"], "Services": ["tcp/443", "icmp"]},
            {"Verdict": "drop"}]}"#,
    );
    let profile = parse(&text).unwrap();
    assert_eq!(profile.peers[1].tags, ["hub".parse().unwrap()]);
    let firewall = profile.firewall.clone().unwrap();
    assert_eq!((firewall.inward, firewall.outward), (Verdict::Accept, Verdict::Drop));
    let [web, rest] = firewall.rules.as_slice() else { panic!("two rules") };
    assert_eq!((web.name.as_deref(), web.direction), (Some("web"), Some(Direction::Out)));
    let sites = [SiteSelector::Site("berlin".into()), SiteSelector::Tag("hub".parse().unwrap())];
    assert_eq!(web.sites.as_deref(), Some(&sites[..]));
    assert_eq!(web.destinations.as_ref().unwrap()[0].0, "10.102.0.0/24".parse().unwrap());
    assert_eq!((rest.verdict, rest.services.is_none()), (Verdict::Drop, true));
    // It is printed as it was read, and its parts can be overridden.
    let shown = serde_json::to_string(&profile.document()).unwrap();
    assert_eq!(parse(&shown).unwrap().firewall, profile.firewall);
    assert_eq!(
        profile.fields_that_differ(&parse(&with_firewall("{}")).unwrap()),
        ["Firewall.In", "Firewall.Out", "Firewall.Rules"]
    );
    let overridden = parse_with(&text, &[("PENSTOCK_FIREWALL_IN", "drop"), ("PENSTOCK_FIREWALL_RULES", "[]")]).unwrap();
    assert_eq!(overridden.firewall, Some(Firewall { inward: Verdict::Drop, outward: Verdict::Drop, rules: vec![] }));
}

#[test]
fn what_is_wrong_with_a_firewall_is_named() {
    let rule = |rest: &str| format!(r#"{{"Rules": [{{"Verdict": "accept"{rest}}}]}}"#);
    let many = |what: &str, count: usize| format!("[{}]", vec![what; count].join(","));
    for (firewall, expected) in [
        (r#"{"In": "reject"}"#.to_owned(), "30:22: field Firewall.In: \"reject\" is not one of accept, drop"),
        (r#"{"Inn": "drop"}"#.into(), "30:16: field Firewall.Inn: there is no such field; did you mean In?"),
        (r#"{"Rules": [{}]}"#.into(), "30:26: field Firewall.Rules[0]: Verdict is missing"),
        (rule(r#", "Port": 1"#), "30:48: field Firewall.Rules[0].Port: there is no such field"),
        (rule(r#", "Direction": "both""#), "30:61: field Firewall.Rules[0].Direction: \"both\" is not one of in, out"),
        (
            rule(r#", "Services": ["http"]"#),
            "30:61: field Firewall.Rules[0].Services[0]: \"http\" is not a service such as tcp/443",
        ),
        (
            rule(r#", "Sources": ["10.0.0.0/33"]"#),
            "30:60: field Firewall.Rules[0].Sources[0]: \"10.0.0.0/33\" is not a prefix",
        ),
        (rule(r#", "Sites": []"#), "30:57: field Firewall.Rules[0].Sites: an empty list selects nothing"),
        (rule(r#", "Sites": ["tag:"]"#), "30:58: field Firewall.Rules[0].Sites[0]: \"tag:\" is not a tag"),
        (rule(r#", "Sites": ["rome"]"#), "30:58: field Firewall.Rules[0].Sites[0]: there is no peer named rome"),
        (rule(r#", "Sites": ["tag:x"]"#), "30:58: field Firewall.Rules[0].Sites[0]: there is no peer with the tag x"),
        (rule(r#", "Name": """#), "30:56: field Firewall.Rules[0].Name: \"\" is not a name"),
        (
            r#"{"Rules": [{"Name": "a", "Verdict": "drop"}, {"Name": "a", "Verdict": "drop"}]}"#.into(),
            "30:69: field Firewall.Rules[1].Name: there are two rules named a",
        ),
        (
            rule(&format!(r#", "Services": {}"#, many("\"icmp\"", 257))),
            "30:60: field Firewall.Rules[0].Services: 257 entries are more than the limit of 256",
        ),
        (
            format!(r#"{{"Rules": {}}}"#, many(r#"{"Verdict":"drop"}"#, 513)),
            "30:25: field Firewall.Rules: 513 rules are more than the limit of 512",
        ),
    ] {
        let error = parse(&with_firewall(&firewall)).expect_err(&firewall).to_string();
        let error = error.strip_prefix(&format!("{PATH}:")).unwrap_or(&error);
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
    // With a coordinator there may be other sites.
    let text = with_firewall(&rule(r#", "Sites": ["rome"]"#));
    assert!(parse_with(&text, &[("PENSTOCK_COORDINATOR_URL", "https://c.example")]).is_ok());
}

#[test]
fn a_coordinator_is_trusted_by_a_pin_or_by_authorities() {
    let with = |fields: &str| {
        let coordinator = format!("\"Coordinator\": {{\"Url\": \"https://C.example:8443/\"{fields}}}");
        let profile = parse(&FULL.replacen("\"Mtu\": 1400", &coordinator, 1)).unwrap();
        let shown = serde_json::to_string(&profile.document()).unwrap();
        assert_eq!(parse(&shown).unwrap().coordinator, profile.coordinator);
        let coordinator = profile.coordinator.unwrap();
        assert_eq!(coordinator.url.to_string(), "https://c.example:8443");
        coordinator.trust
    };
    assert_eq!(with(""), Trust::Authorities(None));
    assert_eq!(with(", \"CaFile\": \"ca.pem\""), Trust::Authorities(Some("/etc/penstock/profiles/ca.pem".into())));
    let pin = format!(", \"Fingerprint\": \"{}\", \"CaFile\": null", "aB".repeat(32));
    assert_eq!(with(&pin), Trust::Pinned(Fingerprint([0xab; 32])));
    let pins = format!(", \"Fingerprint\": \"{}, {}\"", "ab".repeat(32), "cd".repeat(32));
    assert_eq!(with(&pins), Trust::Rolling([Fingerprint([0xab; 32]), Fingerprint([0xcd; 32])]));
    for wrong in [format!("{0},{0},{0}", "ab".repeat(32)), format!("{},", "ab".repeat(32))] {
        let variables = [("PENSTOCK_COORDINATOR_URL", "https://c"), ("PENSTOCK_COORDINATOR_FINGERPRINT", &wrong)];
        let error = parse_with(SMALL, &variables).unwrap_err().to_string();
        assert!(error.contains("a SHA-256 fingerprint is 64 hexadecimal digits"), "{error}");
    }
    let many: Vec<String> = (0..65).map(|number| format!("10.{number}.0.0/16")).collect();
    let variables = [("PENSTOCK_LAN_SUBNETS", many.join(",")), ("PENSTOCK_COORDINATOR_URL", "https://c".into())];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let error = parse_with(SMALL, &variables).unwrap_err().to_string();
    assert!(error.starts_with("PENSTOCK_LAN_SUBNETS: field Lan.Subnets: 65 subnets are more than the 64"), "{error}");
}

#[test]
fn a_wider_prefix_may_hold_a_narrower_one() {
    // A hub with the default route, and a site inside another's prefix.
    let text = FULL.replacen("10.102.0.0/24", "0.0.0.0/0", 1).replacen("10.103.0.0/24", "10.0.0.0/8", 1);
    assert!(parse(&text).is_ok());
}

#[test]
fn variables_override_fields() {
    let profile = parse_with(
        FULL,
        &[
            ("PENSTOCK_LOCAL_PORT", "0"),
            ("PENSTOCK_WAN_MODE", "udp"),
            ("PENSTOCK_LAN_SUBNETS", "10.7.0.0/16, fd00:7::/64"),
            ("PENSTOCK_VIRTUAL_ADDRESS", "100.64.0.7,fd00::7"),
            ("PENSTOCK_UDP_SEGMENTATION", "false"),
            ("PENSTOCK_METRICS", ""),
            ("PENSTOCK_PEERS", "[]"),
            ("PENSTOCK_TEST_REKEY_AFTER_SECONDS", "5"),
        ],
    )
    .unwrap();
    assert_eq!(profile.local_port, LocalPort::Random);
    assert_eq!(profile.wan.mode, WanMode::Udp);
    assert_eq!(profile.lan.subnets.len(), 2);
    assert_eq!(profile.virtual_addresses.len(), 2);
    assert!(!profile.udp_gso && profile.peers.is_empty());
    // Even fields that are missing in the file.
    let profile = parse_with(SMALL, &[("PENSTOCK_LAN_INTERFACES", "eth1")]).unwrap();
    assert_eq!(profile.lan.interfaces, ["eth1"]);
    assert!(parse_with(SMALL, &[("PENSTOCK_COORDINATOR_CA_FILE", "")]).is_ok());
}

#[test]
fn errors_of_variables_name_them() {
    for (variable, value, expected) in [
        ("PENSTOCK_LOCAL_PORT", "many", "PENSTOCK_LOCAL_PORT: field LocalPort: \"many\" is not a whole number"),
        (
            "PENSTOCK_LOCAL_PORT",
            "65536",
            "PENSTOCK_LOCAL_PORT: field LocalPort: expected a whole number from 0 to 65535, not 65536",
        ),
        ("PENSTOCK_WAN_MODE", "tun", "PENSTOCK_WAN_MODE: field Wan.Mode: \"tun\" is not one of auto, xdp, udp"),
        ("PENSTOCK_BUSY_POLL", "yes", "PENSTOCK_BUSY_POLL: field BusyPoll: \"yes\" is neither true nor false"),
        ("PENSTOCK_NAME", "", "PENSTOCK_NAME: field Name: "),
        ("PENSTOCK_LAN_SUBNETS", "10.0.0.0/8,x", "PENSTOCK_LAN_SUBNETS: field Lan.Subnets[1]: \"x\" is not a prefix"),
        ("PENSTOCK_PEERS", "none", "PENSTOCK_PEERS: field Peers: this is not JSON: a word that is neither true, false"),
        ("PENSTOCK_PEERS", "[{}]", "PENSTOCK_PEERS: field Peers[0]: Name is missing"),
        ("PENSTOCK_PRIVATE_KEY_FILE", "x.exposed", "PENSTOCK_PRIVATE_KEY_FILE: field PrivateKeyFile: /etc/"),
    ] {
        let error = parse_with(FULL, &[(variable, value)]).expect_err(variable).to_string();
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
}

#[test]
fn misspelt_variables_are_told_and_others_left_alone() {
    let environment = |names: &[&str]| -> Environment {
        names.iter().map(|name| (format!("PENSTOCK_{name}"), String::new())).collect()
    };
    for (name, meant) in [("LOCALPORT", "LOCAL_PORT"), ("WAN_MOD", "WAN_MODE"), ("LAN_SUBNET", "LAN_SUBNETS")] {
        let environment = environment(&[name]);
        assert_eq!(environment.misspelt(), [(&*format!("PENSTOCK_{name}"), format!("PENSTOCK_{meant}"))]);
    }
    let others = environment(&[
        "LOCAL_PORT",
        "WAN_MODE",
        "PROFILE",
        "RUNTIME_DIR",
        "STATE_DIR",
        "BIN",
        "TEST_LONG",
        "TEST_AS",
        "TEST_KEEP",
        "TEST_SEED",
        "TEST_ROUTES",
        "TEST_REQUIRED",
        "TEST_REKEY_AFTER_SECONDS",
        "LAB_CARD",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "PORT",
        "PORT_47100_UDP_ADDR",
    ]);
    assert_eq!(others.misspelt(), []);
}

#[test]
fn what_is_not_json_is_refused_with_its_line() {
    for (text, expected) in [
        ("", " the file is empty"),
        (" \n", " the file is empty"),
        ("{ \"Name\": \"a\"", "1:13: this is not JSON: it ends within an object"),
        ("{\n  \"Name\" \"a\"\n}", "2:10: this is not JSON: expected :"),
        ("[]", "1:1: a profile is a JSON object"),
        ("{}\n{}", "2:1: this is not JSON: trailing characters"),
        ("{ // comment\n}", "1:3: this is not JSON: key must be a string; JSON has no comments"),
        ("{\n# comment\n}", "2:1: this is not JSON: key must be a string; JSON has no comments"),
        ("{ \"Name\": “a” }", "1:11: this is not JSON: expected a value; JSON has only the quotation mark"),
        ("{ 'Name': 'a' }", "1:3: this is not JSON: key must be a string; JSON has only the quotation mark"),
        (&"[".repeat(100_000), "1:128: this is not JSON: recursion limit exceeded"),
    ] {
        let error = parse(text).unwrap_err().to_string().replace('`', "");
        assert!(error.starts_with(&format!("{PATH}:{expected}")), "{error}\n{expected}");
    }
    let error = Profile::parse(b"{\"Name\": \"\xff\"}", Path::new(PATH), &Environment::default(), &mut read_fake_key);
    assert_eq!(error.unwrap_err().line_number(), Some(1));
    let error = Profile::parse(b"\xff\xfe{\0", Path::new(PATH), &Environment::default(), &mut read_fake_key);
    assert!(error.unwrap_err().to_string().ends_with("has to be saved as UTF-8"));
    let long = vec![b' '; FILE_LIMIT as usize + 1];
    let error = Profile::parse(&long, Path::new(PATH), &Environment::default(), &mut read_fake_key).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[test]
fn a_profile_from_windows_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, format!("\u{feff}{}", FULL.replace('\n', "\r\n"))).unwrap();
    let text = read_file(file.path()).unwrap();
    Profile::parse(&text, Path::new(PATH), &Environment::default(), &mut read_fake_key).unwrap();
}

#[test]
fn no_cut_or_changed_profile_panics() {
    let mut random = 1u32;
    for cut in 0..FULL.len() {
        let _ = parse(&FULL[..cut]);
        let mut text = FULL.as_bytes().to_vec();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text[cut] = (random >> 24) as u8;
        let _ = Profile::parse(&text, Path::new(PATH), &Environment::default(), &mut read_fake_key);
    }
}

#[test]
fn load_says_what_file_is_not_there() {
    let error = Profile::load(Path::new("/nonexistent/a.profile"), &Environment::default()).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/a.profile: No such file"), "{error}");
    assert!(error.to_string().contains("`penstock import` makes one"), "{error}");
}

#[test]
fn edits_leave_the_rest_as_it_was() {
    let edited = edit(FULL, &["LocalPort=0", "Peers.cairo.Endpoint=[2001:db8::1]:5"]).unwrap();
    let expected = FULL.replacen("47100", "0", 1).replacen("gateway.cairo.example:47100", "[2001:db8::1]:5", 1);
    assert_eq!(edited, expected);
}

#[test]
fn edits_add_and_remove_fields() {
    let edited =
        edit(SMALL, &["Mtu=1400", "Lan.Interfaces=eth1,eth2", "Wan.Mode=udp", "VirtualAddress=fd00::1"]).unwrap();
    let profile = parse(&edited).unwrap();
    assert_eq!(profile.mtu, Some(1400));
    assert_eq!(profile.lan.interfaces, ["eth1", "eth2"]);
    assert_eq!(profile.wan.mode, WanMode::Udp);
    let again = edit(&edited, &["Mtu=", "Lan.Interfaces=", "Workers="]).unwrap();
    assert_eq!(parse(&again).unwrap().mtu, None);
    assert!(!again.contains("Mtu") && !again.contains("eth1"), "{again}");
}

#[test]
fn impossible_edits_are_refused() {
    for (assignment, expected) in [
        ("LocalPort", "\"LocalPort\" is not KEY=VALUE"),
        ("LocalPrt=1", "there is no field LocalPrt"),
        ("LocalPort=x", "field LocalPort: \"x\" is not a whole number"),
        ("Peers.oslo.Endpoint=1.2.3.4:5", "there is no peer named oslo"),
        ("Peers.berlin.Nonsense=1", "there is no field Peers.berlin.Nonsense"),
    ] {
        let error = edit(FULL, &[assignment]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}\n{expected}");
    }
    assert!(edit("[]", &["LocalPort=1"]).is_err());
}
