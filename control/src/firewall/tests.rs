use std::path::Path;

use clap::ValueEnum;

use super::rules::{Format, rules};
use super::*;
use crate::profile::Environment;

const KEYS: [&str; 2] =
    ["xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="];

fn of(fields: &str) -> Needs {
    let text = format!(
        r#"{{"Name": "a", "PrivateKeyFile": "k", "Wan": {{"Interface": "eth0"}}, "Lan": {{"Interfaces": ["eth1"]}}, {fields}}}"#
    );
    let mut key = |_: &Path| Ok("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".to_owned().into());
    let profile = Profile::parse(text.as_bytes(), Path::new("/p"), &Environment::default(), &mut key);
    needs(&profile.unwrap_or_else(|error| panic!("{error}")), None)
}

fn lines(needs: &Needs) -> Vec<String> {
    let port = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |port| port.to_string());
    let line = |f: &Flow| {
        format!("{} {} {} {} {} {}", f.direction, f.protocol, port(f.local_port), f.remote, port(f.remote_port), f.need)
    };
    needs.flows.iter().map(line).collect()
}

fn with_peers() -> Needs {
    of(&format!(
        r#""LocalPort": 47100, "Peers": [
            {{"Name": "b\"; flush ruleset", "PublicKey": "{}", "Endpoint": "192.0.2.2:51820"}},
            {{"Name": "c", "PublicKey": "{}"}}]"#,
        KEYS[0], KEYS[1]
    ))
}

fn with_coordinator() -> Needs {
    of(r#""Coordinator": {"Url": "https://coordinator.example.net"}"#)
}

#[test]
fn static_peers() {
    assert_eq!(lines(&with_peers()), ["out udp 47100 192.0.2.2 51820 yes", "in udp 47100 any any yes"]);
    assert!(with_peers().flows[1].why.ends_with("these must call first: c"));
    let named =
        of(&format!(r#""Peers": [{{"Name": "b", "PublicKey": "{}", "Endpoint": "gw.example.net:51820"}}]"#, KEYS[0]));
    let expected = ["out udp any gw.example.net 51820 yes", "out udp any any 53 yes", "out tcp any any 53 yes"];
    assert_eq!(lines(&named), expected, "a random port cannot be let in");
}

#[test]
fn a_coordinator_needs_no_open_port() {
    assert_eq!(
        lines(&with_coordinator()),
        [
            "out tcp any coordinator.example.net 443 yes",
            "out udp any coordinator.example.net 3478 better",
            "out udp any any any better",
            "out udp any any 5351 better",
            "out udp any any 53 yes",
            "out tcp any any 53 yes",
        ]
    );
    let pinned =
        of(r#""LocalPort": 47100, "PortMapping": false, "Coordinator": {"Url": "https://[2001:db8::1]:8443"}"#);
    assert_eq!(
        lines(&pinned),
        [
            "in udp 47100 any any better",
            "out tcp any 2001:db8::1 8443 yes",
            "out udp 47100 2001:db8::1 3478 better",
            "out udp 47100 any any better",
        ]
    );
}

#[test]
fn every_format_has_every_flow_and_no_name_breaks_out() {
    for needs in [with_peers(), with_coordinator()] {
        for format in Format::value_variants().iter().copied().filter(|format| *format != Format::Table) {
            let text = rules(&needs, format);
            let expected =
                needs.flows.iter().filter(|flow| format != Format::Firewalld || flow.direction == Direction::In);
            for flow in expected {
                let port = match flow.direction {
                    Direction::In => flow.local_port,
                    Direction::Out => flow.remote_port,
                };
                let port = port.map(|port| port.to_string()).unwrap_or_default();
                assert!(text.lines().any(|line| line.contains(&port)), "{format:?} lacks {flow:?}:\n{text}");
            }
            assert!(!text.contains("b\"; flush"), "{format:?}: {text}");
        }
    }
}
