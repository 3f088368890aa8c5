//! `penstock netcheck --lifetime` behind NATs whose memory is known.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::nat::{Kind, Lab, Site, Stun, UdpTimeouts, corners};
use crate::support::overlay::{Coordinator, OverlayGateway};
use crate::support::{penstock_binary, ready};
use serde_json::{Value, json};

const TOOLS: [&str; 3] = ["nft", "conntrack", "tinyproxy"];
/// Lifetimes of 5 s and 12 s are in the middle of two of the gaps, so that a second's delay on a busy machine is
/// harmless.
const SILENCES: &str = "--lifetime=3,8,16";

fn timeouts(unreplied: u64, stream: u64) -> UdpTimeouts {
    UdpTimeouts { unreplied: Duration::from_secs(unreplied), stream: Duration::from_secs(stream) }
}

fn bracket(from: u64, to: Option<u64>) -> Value {
    json!({ "From": from, "To": to, "Problem": null })
}

fn problem(name: &str) -> Value {
    json!({ "From": null, "To": null, "Problem": name })
}

fn netcheck(site: &Site, server: &str, arguments: &[&str]) -> Output {
    let mut command: Command = site.gateway.command(penstock_binary().expect("a binary"));
    command.args(["netcheck", "--stun", server]).args(arguments);
    command.env("PENSTOCK_RUNTIME_DIR", &site.scratch).env_remove("HTTPS_PROXY").env_remove("https_proxy");
    command.env("PENSTOCK_PROFILE", site.scratch.join("none.profile"));
    let key = site.scratch.join("none.key");
    crate::support::write_secret(&key, &crate::support::genkey());
    let profile =
        json!({ "Name": format!("life{}", site.number), "PrivateKeyFile": key, "Wan": { "Interface": "wan0" } });
    std::fs::write(site.scratch.join("none.profile"), profile.to_string()).expect("a profile");
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{:?}: {}", site.kind(), String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn the_bracket_is_the_one_that_the_nats_memory_lies_in() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let server = stun.ipv4.to_string();
    let cases = [
        (Kind::PortRestricted, timeouts(5, 5), bracket(3, Some(8))),
        (Kind::FullCone, timeouts(12, 12), bracket(8, Some(16))),
        (Kind::AddressRestricted, timeouts(5, 5), bracket(3, Some(8))),
        (Kind::Masquerade, timeouts(12, 12), bracket(8, Some(16))),
        // The lifetime that counts is that of a flow that has gone both ways for some time.
        (Kind::Symmetric, timeouts(5, 12), bracket(8, Some(16))),
        (Kind::Symmetric, timeouts(5, 5), bracket(3, Some(8))),
        (Kind::PortRestricted, UdpTimeouts::default(), bracket(16, None)),
        (Kind::None, timeouts(5, 5), problem("NoMapping")),
        (Kind::UdpBlocked, timeouts(5, 5), problem("UdpBlocked")),
    ];
    let sites = lab.sites(&cases.each_ref().map(|case| case.0));
    std::thread::scope(|scope| {
        for (site, (kind, timeouts, expected)) in sites.iter().zip(&cases) {
            site.set_udp_timeouts(*timeouts);
            let server = &server;
            scope.spawn(move || {
                let output = netcheck(site, server, &[SILENCES, "--json"]);
                let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
                let lifetime = &report["IPv4"]["MappingLifetime"];
                assert_eq!(lifetime, expected, "{kind:?} {timeouts:?}: {report:#}");
                let progress = String::from_utf8_lossy(&output.stderr);
                assert_eq!(progress.contains("up to 36 s"), expected["Problem"].is_null(), "{kind:?}: {progress}");
                assert_eq!(
                    progress.contains("still there after 8 s"),
                    expected["From"].as_u64() > Some(3),
                    "{progress}"
                );
            });
        }
    });
}

#[test]
fn a_running_gateway_is_measured_beside() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let site = lab.site(Kind::PortRestricted, 1);
    let gateway = OverlayGateway::start(&site, &coordinator, &coordinator.key(1, "any"), &json!({}));
    gateway.status();
    site.set_udp_timeouts(timeouts(5, 5));
    let measure = |silences: &str| -> Value {
        let output = gateway.penstock(&["netcheck", silences, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let report = measure("--lifetime=3,8");
    assert_eq!((&report["Running"], &report["IPv4"]["MappingLifetime"]), (&true.into(), &bracket(3, Some(8))));
    let advised = report["Advice"].as_array().expect("a list").iter().any(|part| part["Subject"] == "MappingLifetime");
    assert!(advised, "{report:#}");

    // UDP to all servers is blocked after the gateway has measured, so its earlier results do not show this.
    let [first, second, ..] = corners(&lab).map(|corner| corner.ip());
    for ip in [first, second] {
        let std::net::IpAddr::V4(ip) = ip else { panic!("IPv4") };
        site.cut(ip);
    }
    let begun = Instant::now();
    let report = measure("--lifetime=3");
    assert_eq!(report["IPv4"]["MappingLifetime"], problem("UdpBlocked"), "{report:#}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// In words; and text that is not a list of silences is refused before anything is measured.
#[test]
fn words_and_wrong_silences() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::FullCone, 1);
    let output = netcheck(&site, &stun.ipv4.to_string(), &["--lifetime=1,2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.trim_start().starts_with("mapping lifetime")).expect("a line");
    assert!(line.ends_with("more than 2 s of silence"), "{text}");
    for wrong in ["--lifetime=0", "--lifetime=5,x", "--lifetime=601"] {
        let refused = site.gateway.command(penstock_binary().expect("a binary")).args(["netcheck", wrong]).output();
        assert_eq!(refused.expect("it runs").status.code(), Some(2), "{wrong}");
    }
}
