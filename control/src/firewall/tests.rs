use std::net::Ipv4Addr;
use std::path::Path;

use clap::ValueEnum;

use super::rules::{Format, rules};
use super::*;
use crate::profile::Environment;

const KEYS: [&str; 2] =
    ["xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="];

/// The router and the proxy of the tests that have any.
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
const PROXY: &str = "http://user:secret@proxy.example.net:3128";

fn of(fields: &str) -> Needs {
    through(fields, "", None).unwrap()
}

/// `proxy` is the value of HTTPS_PROXY.
fn through(fields: &str, proxy: &str, router: Option<IpAddr>) -> Result<Needs, ProxyError> {
    let text = format!(
        r#"{{"Name": "a", "PrivateKeyFile": "k", "Wan": {{"Interface": "eth0"}}, "Lan": {{"Interfaces": ["eth1"]}}, {fields}}}"#
    );
    let mut key = |_: &Path| Ok("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".to_owned().into());
    let profile = Profile::parse(text.as_bytes(), Path::new("/p"), &Environment::default(), &mut key);
    let profile = profile.unwrap_or_else(|error| panic!("{error}"));
    let proxy = Proxy::new(proxy, "direct.example.net");
    needs(&profile, &Surroundings { port: None, proxy: &proxy, router })
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

const COORDINATOR: &str = r#""Coordinator": {"Url": "https://coordinator.example.net"}"#;

fn with_coordinator() -> Needs {
    through(COORDINATOR, "", Some(ROUTER)).unwrap()
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
            "out udp any coordinator.example.net 3478 recommended",
            "out udp any coordinator.example.net 3479 recommended",
            "out udp any any any recommended",
            "out udp any 192.168.1.1 5351 recommended",
            "out udp any 192.168.1.1 1900 recommended",
            "out tcp any 192.168.1.1 any recommended",
            "out udp any any 53 yes",
            "out tcp any any 53 yes",
        ]
    );
    let fields = r#""LocalPort": 47100, "PortMapping": false, "BirthdayProbing": false,
        "Coordinator": {"Url": "https://[2001:db8::1]:8443"}"#;
    let mut expected = vec![
        "in udp 47100 any any recommended",
        "out tcp any 2001:db8::1 8443 yes",
        "out udp 47100 2001:db8::1 3478 recommended",
        "out udp 47100 2001:db8::1 3479 recommended",
        "out udp 47100 any any recommended",
    ];
    assert_eq!(lines(&through(fields, "", Some(ROUTER)).unwrap()), expected);
    // Its ports are any.
    expected[4] = "out udp any any any recommended";
    assert_eq!(lines(&of(&fields.replace(r#""BirthdayProbing": false"#, r#""BirthdayProbing": true"#))), expected);
}

#[test]
fn a_proxy_takes_the_coordinators_place_for_tcp() {
    let fields = format!(r#""PortMapping": false, {COORDINATOR}"#);
    let needs = through(&fields, PROXY, None).unwrap();
    let udp = [
        "out udp any coordinator.example.net 3478 recommended",
        "out udp any coordinator.example.net 3479 recommended",
        "out udp any any any recommended",
    ];
    let dns = ["out udp any any 53 yes", "out tcp any any 53 yes"];
    assert_eq!(lines(&needs), [&["out tcp any proxy.example.net 3128 yes"], &udp[..], &dns].concat());
    assert_eq!(needs.flows[4].why, "name servers, for proxy.example.net", "the proxy resolves the coordinator's name");
    assert!(!format!("{needs:?}").contains("secret"));

    let by_address = through(&fields, "http://192.0.2.9", None).unwrap();
    assert_eq!(
        lines(&by_address),
        [&["out tcp any 192.0.2.9 80 yes"], &udp[..]].concat(),
        "there is no name to resolve"
    );
    let by_ipv6 = through(&fields, "http://[2001:db8::9]:3128", None).unwrap();
    assert_eq!(lines(&by_ipv6)[0], "out tcp any 2001:db8::9 3128 yes");

    let direct = through(&fields.replace("coordinator.", "direct."), PROXY, None).unwrap();
    assert_eq!(lines(&direct)[0], "out tcp any direct.example.net 443 yes", "as NO_PROXY says");
    through(&fields, "socks5://proxy.example.net", None).unwrap_err();
}

/// No rule has two IP versions.
#[test]
fn pf_and_firewalld() {
    let pf = rules(&of(r#""LocalPort": 47100, "Coordinator": {"Url": "https://[2001:db8::1]"}"#), Format::Pf);
    for rule in [
        "pass out on $wan proto tcp from $gateway6 to 2001:db8::1 port 443 keep state\n",
        "pass in on $wan proto udp from any to ($wan) port 47100 rdr-to $gateway\n",
        "pass out on $wan proto udp from $gateway to any keep state\n",
    ] {
        assert!(pf.contains(rule), "{pf}");
    }
    let firewalld = rules(&with_peers(), Format::Firewalld);
    assert!(firewalld.contains("--get-zone-of-interface=eth1"), "only the LAN is let into the tunnel: {firewalld}");
    assert!(!firewalld.contains("=ANY"), "{firewalld}");
}

#[test]
fn names_are_asked_for_once_each() {
    let peer = |name, key| {
        format!(r#"{{"Name": "{name}", "PublicKey": "{key}", "Endpoint": "gw.example.net:51820", "AllowedIPs": []}}"#)
    };
    let fields = format!(r#"{COORDINATOR}, "Peers": [{}, {}]"#, peer("b", KEYS[0]), peer("c", KEYS[1]));
    assert_eq!(of(&fields).flows.last().unwrap().why, "name servers, for coordinator.example.net and 1 more");
}

#[test]
fn every_format_has_every_flow_and_no_name_breaks_out() {
    for needs in [with_peers(), with_coordinator()] {
        for format in Format::value_variants().iter().copied().filter(|format| *format != Format::Table) {
            let text = rules(&needs, format);
            // firewalld lets out everything; what goes to the router does not pass it, and a cloud's maps no ports.
            let in_front = matches!(format, Format::Pf | Format::Aws | Format::Gcp | Format::Azure);
            let listed = |flow: &&Flow| match (&flow.remote, flow.direction) {
                (Remote::Router(_), _) if in_front => false,
                (_, Direction::Out) => format != Format::Firewalld,
                (_, Direction::In) => true,
            };
            for flow in needs.flows.iter().filter(listed) {
                let port = match flow.direction {
                    Direction::In => flow.local_port,
                    Direction::Out => flow.remote_port,
                };
                let port = port.map(|port| port.to_string()).unwrap_or_default();
                // What it is for is in the line, or in the one before; a name from the profile may be altered.
                let purpose = &flow.why[..13];
                let mut pairs = std::iter::once("").chain(text.lines()).zip(text.lines());
                let found = pairs
                    .any(|(one, next)| [one, next].iter().any(|line| line.contains(purpose)) && next.contains(&port));
                assert!(found, "{format:?} lacks {flow:?}:\n{text}");
            }
            let of_router = needs == with_coordinator() && !in_front && format != Format::Firewalld;
            assert_eq!(text.contains("192.168.1.1"), of_router, "{format:?}: {text}");
            assert!(!text.contains("b\"; flush"), "{format:?}: {text}");
        }
    }
}
