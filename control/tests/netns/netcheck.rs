//! `penstock netcheck` behind every kind of NAT: the name, the consequences, and what it advises to change.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use crate::support::nat::{Kind, Lab, MappingServer, Offer, Site, Stun};
use crate::support::overlay::{Coordinator, OverlayGateway};
use crate::support::{PATIENCE, Process, eventually, genkey, penstock_binary, ready};
use serde_json::Value;

const TOOLS: [&str; 3] = ["nft", "conntrack", "tinyproxy"];
const PORT: u16 = 47100;

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::None => "none",
        Kind::FullCone => "full-cone",
        Kind::AddressRestricted => "address-restricted",
        Kind::PortRestricted | Kind::Masquerade => "port-restricted",
        Kind::Symmetric => "symmetric",
        Kind::UdpBlocked | Kind::ProxyOnly => "udp-blocked",
    }
}

/// The entry of the report's table for a peer behind `other`.
fn direct(report: &Value, other: Kind) -> bool {
    let row = report["Direct"].as_array().expect("a table").iter().find(|row| row["NatType"] == name(other));
    row.unwrap_or_else(|| panic!("no row for {other:?}"))["Direct"].as_bool().expect("known")
}

fn subjects(report: &Value) -> Vec<&str> {
    report["Advice"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|advice| advice["Subject"].as_str().expect("text"))
        .collect()
}

/// A profile with a pinned port, or without.
fn profile(site: &Site, port: u16) -> std::path::PathBuf {
    let key = site.scratch.join(format!("netcheck-{port}.key"));
    crate::support::write_secret(&key, &genkey());
    let path = site.scratch.join(format!("netcheck-{port}.profile"));
    let text = serde_json::json!({
        "Name": format!("check{}-{port}", site.number),
        "LocalPort": port,
        "PrivateKeyFile": key,
        "Wan": { "Interface": "wan0" },
    });
    std::fs::write(&path, text.to_string()).expect("a profile");
    path
}

fn netcheck(site: &Site, port: u16, stun: SocketAddr, arguments: &[&str], proxy: bool) -> String {
    let mut command: Command = site.gateway.command(penstock_binary().expect("a binary"));
    command.arg("--profile").arg(profile(site, port));
    command.args(["netcheck", "--stun", &stun.to_string()]).args(arguments);
    command.env("PENSTOCK_RUNTIME_DIR", &site.scratch).env_remove("HTTPS_PROXY").env_remove("https_proxy");
    if proxy {
        command.env("HTTPS_PROXY", format!("http://{}", site.proxy()));
    }
    let output = command.output().expect("it runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {complaint}", site.kind());
    assert!(complaint.is_empty(), "{complaint}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(site: &Site, port: u16, stun: SocketAddr, arguments: &[&str], proxy: bool) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&netcheck(site, port, stun, &arguments, proxy)).expect("JSON")
}

#[test]
fn every_kind_is_named_and_explained() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let listener = lab.internet().enter(|| TcpListener::bind((lab.server(3), 443))).expect("a listener");
    let coordinator = format!("https://{}", listener.local_addr().expect("bound").ip());
    let sites = lab.sites(&Kind::ALL);
    std::thread::scope(|scope| {
        for site in &sites {
            scope.spawn(|| check(site, stun.ipv4, &coordinator));
        }
    });
}

fn check(site: &Site, stun: SocketAddr, coordinator: &str) {
    let kind = site.kind();
    let proxied = kind == Kind::ProxyOnly;
    let arguments = ["--coordinator", coordinator];
    let report = json(site, PORT, stun, &arguments, proxied);
    assert_eq!(report["NatType"], name(kind), "{kind:?}: {report:#}");
    assert_eq!((&report["LocalPort"], &report["Pinned"]), (&PORT.into(), &true.into()));
    assert_eq!(report["Coordinator"]["Reachable"], true, "{kind:?}: {report:#}");
    assert_eq!(report["Coordinator"]["Proxy"].is_string(), proxied);
    for other in [Kind::None, Kind::FullCone, Kind::AddressRestricted, Kind::PortRestricted, Kind::Symmetric] {
        assert_eq!(direct(&report, other), kind.direct_works(other), "{kind:?} to {other:?}");
    }
    let (reachable, advice) = match kind {
        Kind::None | Kind::FullCone => ("Open", vec![]),
        Kind::AddressRestricted => ("Closed", vec![]),
        Kind::PortRestricted | Kind::Masquerade => ("Closed", vec!["Filtering"]),
        Kind::Symmetric => ("Closed", vec!["Mapping"]),
        Kind::UdpBlocked | Kind::ProxyOnly => ("Blocked", vec!["UdpBlocked"]),
    };
    assert_eq!((report["Reachable"].as_str(), subjects(&report)), (Some(reachable), advice), "{kind:?}");
    if reachable != "Blocked" && kind != Kind::Symmetric {
        let public = SocketAddr::new(site.public().into(), PORT);
        assert_eq!(report["IPv4"]["Nat"]["Reflexive"], public.to_string(), "{kind:?}");
    }
    assert_eq!(report["PortMapping"]["Found"], serde_json::json!([]), "{kind:?}");

    // A second run right after the first, which must not have opened the filters that it tested; in words this time.
    let how = match reachable {
        "Open" => "yes: the port is open to anybody outside",
        "Closed" => "only by those that were sent to",
        _ => "no: UDP is blocked",
    };
    let text = netcheck(site, PORT, stun, &arguments, proxied);
    let words = match kind {
        Kind::None => "no NAT",
        Kind::FullCone => "full-cone NAT",
        Kind::AddressRestricted => "address-restricted NAT",
        Kind::PortRestricted | Kind::Masquerade => "port-restricted NAT",
        Kind::Symmetric => "symmetric NAT",
        Kind::UdpBlocked | Kind::ProxyOnly => "UDP blocked",
    };
    for (title, words) in [("NAT", words), ("Reachable", how)] {
        let line = text.lines().find(|line| line.starts_with(title)).expect("a line");
        assert!(line.ends_with(words), "{kind:?}: {text}");
    }
    let change = match kind {
        Kind::PortRestricted | Kind::Masquerade => "forward UDP port 47100 to this gateway",
        Kind::Symmetric => "no \"random\"",
        Kind::UdpBlocked | Kind::ProxyOnly => "Let UDP out",
        _ => "Direct path",
    };
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line.contains(change), "{kind:?}: {text}");
}

#[test]
fn a_forwarded_port_is_open_and_a_random_one_is_not() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::PortRestricted, 1);
    site.nat.nft(&format!(
        "table ip forwarding {{ chain prerouting {{ type nat hook prerouting priority -110; \
         iifname wan udp dport {PORT} dnat to {}; }}; \
         chain forward {{ type filter hook forward priority -5; udp dport {PORT} meta mark set 1; }}; }}",
        site.wan()
    ));
    // The rule that drops unsolicited packets comes later, and must let these pass.
    site.nat.run(&["nft", "insert", "rule", "ip", "lab", "forward", "meta", "mark", "1", "accept"]);
    let (pinned, random) = std::thread::scope(|scope| {
        let pinned = scope.spawn(|| json(&site, PORT, stun.ipv4, &[], false));
        let random = json(&site, 0, stun.ipv4, &[], false);
        (pinned.join().expect("a report"), random)
    });
    assert_eq!((&pinned["NatType"], &pinned["Reachable"]), (&"port-restricted".into(), &"Open".into()), "{pinned:#}");
    assert_eq!(pinned["IPv4"]["PortFiltering"], "EndpointIndependent");
    assert!(direct(&pinned, Kind::Symmetric));
    assert!(subjects(&pinned).is_empty());
    assert_eq!((&random["Pinned"], &random["Reachable"]), (&false.into(), &"Closed".into()), "{random:#}");
    assert!(!direct(&random, Kind::Symmetric));
    let advice = random["Advice"][0]["Text"].as_str().expect("advice");
    assert!(advice.contains("pin LocalPort"), "{advice}");
}

/// A router that maps ports makes a symmetric NAT harmless; the mapping made for the test is deleted.
#[test]
fn a_port_that_the_router_maps_is_reachable() {
    if !ready(&TOOLS) || !ready(&["miniupnpd"]) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::Symmetric, 1);
    let router = MappingServer::start(&site, Offer::ALL);
    let report = json(&site, PORT, stun.ipv4, &[], false);
    assert_eq!((&report["NatType"], &report["Reachable"]), (&"symmetric".into(), &"Mapped".into()), "{report:#}");
    assert_eq!(report["PortMapping"]["Found"], serde_json::json!(["PCP", "NAT-PMP", "UPnP IGD"]));
    let external = SocketAddr::new(site.public().into(), PORT).to_string();
    assert_eq!(report["PortMapping"]["External"], serde_json::json!({ "Address": external, "Protocol": "PCP" }));
    assert!(direct(&report, Kind::Symmetric));
    assert!(subjects(&report).is_empty());
    assert!(router.mappings().is_empty());
}

#[test]
fn both_ip_versions_are_looked_at() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::dual_stack();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::Symmetric, 1);
    let six = stun.ipv6.to_string();
    let report = json(&site, PORT, stun.ipv4, &["--stun", &six], false);
    assert_eq!((&report["IPv4"]["NatType"], &report["IPv6"]["NatType"]), (&"symmetric".into(), &"none".into()));
    let address = SocketAddr::new(site.global_ipv6().into(), PORT);
    assert_eq!(report["IPv6"]["Nat"]["Reflexive"], address.to_string());
}

#[test]
fn what_cannot_be_reached_is_told() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let stun = Stun::start(&lab);
    let site = lab.site(Kind::FullCone, 1);
    let refused = format!("https://{}:444", lab.server(3));
    let report = json(&site, PORT, stun.ipv4, &["--coordinator", &refused], false);
    assert_eq!((&report["Coordinator"]["Reachable"], subjects(&report)), (&false.into(), vec!["Coordinator"]));
    // A gateway without a coordinator has nobody to ask.
    let of_none = profile(&site, 0);
    let site_command = |words: &[&str]| {
        let mut command = site.gateway.command(penstock_binary().expect("a binary"));
        command.arg("--profile").arg(&of_none).args(words).env("PENSTOCK_RUNTIME_DIR", &site.scratch);
        command
    };
    let gateway = Process::spawn(site_command(&["run"]), &site.scratch.join("run.log"), Some(site.gateway.clone()));
    let mut complaint = String::new();
    eventually(PATIENCE, "a sentence of the gateway without a coordinator", || {
        complaint =
            String::from_utf8_lossy(&site_command(&["netcheck"]).output().expect("it runs").stderr).into_owned();
        complaint.contains("runs without a coordinator")
    });
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    drop(gateway);
    // Its port is in use: no report, one sentence.
    let _taken = crate::support::nat::socket(&site, PORT);
    let mut command = site.gateway.command(penstock_binary().expect("a binary"));
    command.arg("--profile").arg(profile(&site, PORT)).args(["netcheck", "--stun", "11.255.0.1"]);
    let output = command.output().expect("it runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.lines().count() == 1, "{complaint}");
    assert!(complaint.contains("47100"), "{complaint}");
}

/// What `netcheck` prints for a gateway that has enrolled.
fn overlay_netcheck(gateway: &OverlayGateway, arguments: &[&str]) -> String {
    let output = gateway.penstock(&[&["netcheck"], arguments].concat());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "{complaint}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn overlay_json(gateway: &OverlayGateway) -> Value {
    serde_json::from_str(&overlay_netcheck(gateway, &["--json"])).expect("JSON")
}

fn peer<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["Peers"].as_array().expect("a list").iter().find(|peer| peer["Name"] == name).unwrap_or(&Value::Null)
}

/// A running gateway reports what its own socket has found and how its peers are reached; after it has stopped, its
/// cached map names servers and peers.
#[test]
fn a_gateway_with_a_coordinator_needs_no_server_named() {
    if !ready(&TOOLS) {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let key = coordinator.key(4, "any");
    let sites = lab.sites(&[Kind::PortRestricted, Kind::Symmetric, Kind::FullCone, Kind::ProxyOnly]);
    let started = |site: &Site| {
        let port = if site.number == 1 { PORT } else { 0 };
        let extra = serde_json::json!({ "LocalPort": port, "BirthdayProbing": false });
        OverlayGateway::start(site, &coordinator, &key, &extra)
    };
    let mut gateways: Vec<OverlayGateway> = std::thread::scope(|scope| {
        let starts: Vec<_> = sites.iter().map(|site| scope.spawn(|| started(site))).collect();
        starts.into_iter().map(|start| start.join().expect("a gateway")).collect()
    });
    let names: Vec<String> = gateways.iter().map(|gateway| gateway.name.clone()).collect();
    let [_, symmetric, cone, proxied] = [0, 1, 2, 3].map(|index| names[index].as_str());

    // Asked as soon as it answers, before it has measured: netcheck waits for it.
    gateways[0].status();
    let report = overlay_json(&gateways[0]);
    assert_eq!((&report["Running"], &report["Measuring"]), (&true.into(), &false.into()));
    assert_eq!((&report["LocalPort"], &report["Pinned"]), (&PORT.into(), &true.into()));
    assert_eq!((&report["NatType"], &report["Reachable"]), (&"port-restricted".into(), &"Closed".into()), "{report:#}");
    assert_eq!(report["IPv4"]["Nat"]["Reflexive"], SocketAddr::new(sites[0].public().into(), PORT).to_string());
    assert_eq!(report["PortMapping"], serde_json::json!({ "Found": [], "External": null }));
    assert_eq!(report["Coordinator"]["Reachable"], true, "{report:#}");
    assert_eq!(subjects(&report), ["Filtering"]);

    let known = [
        (symmetric, "symmetric", false, "relay"),
        (cone, "full-cone", true, "direct"),
        (proxied, "udp-blocked", false, "relay"),
    ];
    let mut report = Value::Null;
    eventually(PATIENCE, "all peers' NATs are known", || {
        report = overlay_json(&gateways[0]);
        known.iter().all(|(name, nat, _, path)| {
            let peer = peer(&report, name);
            peer["NatType"] == *nat && peer["Path"] == *path
        })
    });
    for (name, _, direct, path) in known {
        let peer = peer(&report, name);
        assert_eq!(peer["Direct"], direct, "{peer:#}");
        let reason = peer["Reason"].as_str().expect("a sentence");
        assert_eq!(reason == "the peer answers directly", path == "direct", "{reason}");
    }
    let text = overlay_netcheck(&gateways[0], &[]);
    let line = |name: &str| {
        text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"))
    };
    assert!(line(cone).ends_with("works     now direct"), "{text}");
    assert!(line(symmetric).contains("symmetric NAT") && line(symmetric).ends_with("relayed   now relayed"), "{text}");
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        format!("{symmetric} is relayed: the peer's NAT uses"),
        format!("{proxied} is relayed: UDP is blocked at the peer"),
    ] {
        assert!(one_line.contains(&words), "{words}: {text}");
    }

    let report = overlay_json(&gateways[3]);
    assert_eq!((&report["NatType"], &report["Reachable"]), (&"udp-blocked".into(), &"Blocked".into()));
    assert_eq!(report["Coordinator"]["Proxy"], sites[3].proxy().to_string());
    assert_eq!(report["Pinned"], false);
    assert_eq!(report["LocalPort"], gateways[3].status()["LocalPort"]);

    let refused = gateways[0].penstock(&["netcheck", "--stun", "11.255.0.1"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("is running"));

    let map = sites[0].scratch.join(format!("{}.map", names[0]));
    eventually(PATIENCE, "the map is kept", || {
        let kept = std::fs::read(&map).unwrap_or_default();
        ["\"Mapping\":\"AddressAndPortDependent\"", "\"UdpBlocked\":true"]
            .iter()
            .all(|words| String::from_utf8_lossy(&kept).contains(words))
    });
    gateways[0].process.terminate();
    let report = overlay_json(&gateways[0]);
    assert_eq!((&report["Running"], &report["NatType"]), (&false.into(), &"port-restricted".into()), "{report:#}");
    // Although the gateway's own discovery was only a moment ago.
    assert_eq!(report["Reachable"], "Closed", "{report:#}");
    assert_eq!(report["Coordinator"]["Reachable"], true);
    for (name, nat, direct, _) in known {
        let peer = peer(&report, name);
        assert_eq!(
            (&peer["NatType"], &peer["Direct"], &peer["Path"]),
            (&nat.into(), &direct.into(), &Value::Null),
            "{peer:#}"
        );
    }
}

/// What the router maps, and what IPv6 shows, are the running gateway's own findings.
#[test]
fn a_running_gateway_tells_of_its_mapping_and_of_ipv6() {
    if !ready(&TOOLS) || !ready(&["miniupnpd"]) {
        return;
    }
    let lab = Lab::dual_stack();
    let coordinator = Coordinator::start(&lab);
    let site = lab.site(Kind::Symmetric, 1);
    let router = MappingServer::start(&site, Offer::ALL);
    let key = coordinator.key(1, "any");
    let gateway = OverlayGateway::start(&site, &coordinator, &key, &serde_json::json!({ "LocalPort": PORT }));
    gateway.status();
    let report = overlay_json(&gateway);
    assert_eq!((&report["Running"], &report["Measuring"]), (&true.into(), &false.into()), "{report:#}");
    assert_eq!(report["Reachable"], "Mapped", "{report:#}");
    let external = SocketAddr::new(site.public().into(), PORT).to_string();
    assert_eq!(report["PortMapping"]["External"], serde_json::json!({ "Address": external, "Protocol": "PCP" }));
    assert_eq!(router.mappings().len(), 1, "asking has changed nothing");
    let address = SocketAddr::new(site.global_ipv6().into(), PORT).to_string();
    let six = &report["IPv6"]["Nat"];
    assert_eq!((&six["Reflexive"], &six["Translated"]), (&address.into(), &false.into()), "{report:#}");
}
