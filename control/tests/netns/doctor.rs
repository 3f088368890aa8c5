//! `penstock doctor` with real faults: it finds each, and the command that it prints repairs it.

use serde_json::Value;

use crate::support::*;

/// The command that repairs the problem with the subject, and its severity.
fn finding(gateway: &Gateway, subject: &str) -> Option<(String, String)> {
    let (report, code) = gateway.doctor();
    assert_eq!(report["Running"], true);
    let findings = report["Findings"].as_array().expect("findings");
    let severe = findings.iter().any(|finding| finding["Severity"] == "error");
    assert_eq!(code, if severe { 2 } else { i32::from(!findings.is_empty()) });
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let found = findings.iter().find(|finding| finding["Subject"] == subject)?;
    Some((text(&found["Severity"]), text(&found["Command"])))
}

/// The fault is found, and the printed command repairs it.
fn is_fixed(gateway: &Gateway, site: &Site, subject: &str, severity: &str) {
    let (found, command) = finding(gateway, subject).unwrap_or_else(|| panic!("{subject} is not found"));
    assert_eq!(found, severity, "{subject}");
    site.gateway.run(&["sh", "-c", &command]);
    assert_eq!(finding(gateway, subject), None, "after {command}");
}

#[test]
fn the_printed_commands_fix_what_is_found() {
    if !ready(&["sysctl", "nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let site = &topology.a;
    assert_eq!(finding(&a, "wan0"), None, "nothing is wrong yet");

    site.gateway.ip("link set wan0 mtu 1300\n");
    is_fixed(&a, site, "wan0", "warning");

    site.gateway.sysctl("net/ipv4/conf/wan0/rp_filter", "1");
    assert_eq!(finding(&a, "wan0"), None, "nothing leads elsewhere");
    site.gateway.ip("route replace default via 10.101.0.77 dev lan0\n");
    is_fixed(&a, site, "wan0", "warning");

    site.gateway.ip("rule add priority 100 table 200\n");
    assert_eq!(finding(&a, "rule 100"), None, "its table is empty");
    site.gateway.ip("route add 10.0.0.0/8 via 10.101.0.77 dev lan0 table 200\n");
    is_fixed(&a, site, "rule 100", "error");
    site.gateway.ip("rule add priority 101 to 10.102.0.0/16 blackhole\n");
    is_fixed(&a, site, "rule 101", "error");

    // Answers are let in, and the ICMPv6 that finds neighbours.
    site.gateway.nft(
        "table inet fw {
            chain in {
                type filter hook input priority 0; policy drop;
                ct state established,related accept; meta l4proto ipv6-icmp accept;
            };
            chain through { type filter hook forward priority 0; policy accept; oifname \"wan0\" drop; };
        };",
    );
    is_fixed(&a, site, &format!("UDP port {}", a.config.port), "warning");
    assert_eq!(finding(&a, "lan0"), None, "what leads out of the WAN is none of the tunnel's");
    site.gateway.nft("add rule inet fw through reject");
    is_fixed(&a, site, "lan0", "error");
    await_traffic(&topology);
}

#[test]
fn a_program_that_has_the_port_is_named_and_nothing_is_changed() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    a.terminate();
    let port = a.config.port;
    let state = || ["rule show", "link show", "-4 route show table all"].map(|query| topology.a.gateway.ip_show(query));
    let before = state();
    let taken = || {
        let (report, _) = a.doctor();
        assert_eq!(report["Running"], false);
        let findings = report["Findings"].as_array().expect("findings").clone();
        findings.into_iter().find(|finding| finding["Subject"] == format!("UDP port {port}"))
    };
    // A program that the gateway was about to start may still hold its sockets.
    eventually(PATIENCE, "the port is free", || taken().is_none());
    let socket = topology.a.gateway.enter(|| std::net::UdpSocket::bind(("0.0.0.0", port)).expect("a free port"));
    let command = taken().expect("found")["Command"].as_str().map(str::to_owned);
    assert_eq!(command, Some(format!("kill {}", std::process::id())));
    drop(socket);
    assert_eq!(taken(), None);
    assert_eq!(state(), before);
}

#[test]
fn a_foreign_xdp_program_is_found_and_taken_off() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    a.terminate();
    a.edit_profile(|profile| profile["Wan"]["Mode"] = "xdp".into());
    let found = || {
        let (report, _) = a.doctor();
        let findings = report["Findings"].as_array().expect("findings").clone();
        let sentence = |finding: &Value| finding["Sentence"].as_str().expect("text").contains("XDP program");
        findings.into_iter().find(sentence)
    };
    for mode in ["xdpdrv", "xdpgeneric"] {
        assert_eq!(found(), None, "before {mode}");
        attach_foreign_program(&topology.a.gateway, "wan0", mode);
        let finding = found().unwrap_or_else(|| panic!("the program in {mode} is not found"));
        assert_eq!((&finding["Subject"], &finding["Severity"]), (&"wan0".into(), &"error".into()));
        topology.a.gateway.run(&["sh", "-c", finding["Command"].as_str().expect("text")]);
        assert_eq!(found(), None, "after {}", finding["Command"]);
    }
}
