//! The output of `penstock firewall`, in force where everything else is dropped.

use crate::support::nat::{Kind as Nat, Lab, MappingServer, Offer};
use crate::support::overlay::{Coordinator, OverlayGateway};
use crate::support::*;
use serde_json::json;

/// Drops everything but answers, and what IPv6 needs on a link. The last rule drops: what is appended has no effect.
const STRICT: &str = "table inet filter {
    chain input {
        type filter hook input priority 0;
        ct state established accept
        meta l4proto ipv6-icmp accept
        iif lo accept
        drop
    }
    chain output {
        type filter hook output priority 0;
        ct state established accept
        meta l4proto ipv6-icmp accept
        oif lo accept
        drop
    }
    chain forward {
        type filter hook forward priority 0;
        drop
    }
}
";

#[test]
fn the_rules_let_the_gateway_work_and_nothing_less_does() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (mut a, mut b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    // A only initiates, B only responds.
    (a.peers[0].keepalive, b.peers[0].endpoint) = (Some(1), None);
    let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    for site in [&topology.a, &topology.b] {
        site.gateway.nft(STRICT);
    }
    let reached = |count| ping(&topology.a.host, topology.b.host4(), &["-c", count, "-W", "0.5"]);
    assert_eq!(reached("2").received, 0, "nothing is dropped, so the rules show nothing");
    for (site, gateway) in [(&topology.a, &a), (&topology.b, &b)] {
        let output = gateway.command(&["firewall", "--format", "nftables"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        site.gateway.nft(&String::from_utf8_lossy(&output.stdout));
    }
    await_traffic(&topology);
}

/// To the coordinator through a proxy, to the router by UPnP, to the STUN server: a gateway starts with its rules.
#[test]
fn the_rules_let_through_what_a_coordinator_needs() {
    if !ready(&["nft", "conntrack", "tinyproxy", "miniupnpd"]) || !is_penstock() {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let key = coordinator.key(2, "all");
    let sites = lab.sites(&[Nat::ProxyOnly, Nat::Symmetric]);
    let start = |site, fields| OverlayGateway::start(site, &coordinator, &key, fields);
    // The proxy is on the router, to whose ports port mapping lets all TCP through.
    let fields = [json!({ "PortMapping": false }), json!({ "LocalPort": 47100 })];
    let mut gateways = [start(&sites[0], &fields[0]), start(&sites[1], &fields[1])];
    for (site, gateway) in sites.iter().zip(&mut gateways) {
        assert!(gateway.process.terminate().success(), "{}", gateway.process.log());
        site.gateway.nft(STRICT);
        let output = gateway.penstock(&["firewall", "--format", "nftables"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        site.gateway.nft(&String::from_utf8_lossy(&output.stdout));
    }
    let router = MappingServer::start(&sites[1], Offer::UPNP_IGD);
    for gateway in &mut gateways {
        gateway.restart();
    }
    for gateway in &gateways {
        eventually(PATIENCE, "the coordinator is reached", || gateway.status()["Coordinator"]["Connected"] == true);
    }
    eventually(PATIENCE, "the port is mapped", || !router.mappings().is_empty());
    eventually(PATIENCE, "the NAT is measured", || {
        let status = gateways[1].status();
        status["NatType"].as_str().is_some_and(|nat| nat.contains("address- and port-dependent mapping"))
    });
}

/// Pinned and random ports, and a name that could end a quotation.
#[test]
fn iptables_takes_the_rules() {
    if !ready(&["iptables-restore"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let a = Gateway::start(&topology.a, a);
    for port in [47100, 0] {
        a.edit_profile(|profile| {
            profile["LocalPort"] = port.into();
            profile["Peers"][0]["Name"] = "a\"b $(c)".into();
        });
        let output = a.command(&["firewall", "--format", "iptables"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        for program in ["iptables", "ip6tables"] {
            let rules: Vec<&str> =
                text.lines().filter_map(|line| line.strip_prefix(program)?.strip_prefix(' ')).collect();
            assert!(!rules.is_empty(), "{text}");
            let file = topology.a.scratch.join(program);
            std::fs::write(&file, format!("*filter\n{}\nCOMMIT\n", rules.join("\n"))).expect("written");
            let restore = format!("{program}-restore");
            let (accepted, says) = topology.a.gateway.attempt(&[&restore, "--test", file.to_str().expect("UTF-8")]);
            assert!(accepted, "{says}: {rules:#?}");
        }
    }
}

/// ufw reads every rule as a shell hands it over, and changes nothing.
#[test]
fn ufw_takes_the_rules() {
    if !ready(&["ufw"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let mut a = GatewayConfig::new(&topology.a, Kind::SOCKET);
    a.coordinator = Some(json!({ "Url": "https://[2001:db8::1]" }));
    let profile = topology.a.scratch.join("ufw.profile");
    write_profile(&profile, &a.profile(&topology.a.scratch));
    let script = format!(
        "set -e
         unset HTTPS_PROXY https_proxy
         {} firewall --format ufw --profile {} >rules
         ufw() {{ command ufw --dry-run \"$@\" >said; grep -qx 'Rules updated.*' said || {{ echo \"$*\"; cat said; }}; }}
         . ./rules
         grep -c '^ufw ' rules",
        penstock_binary().expect("checked by ready()").display(),
        profile.display(),
    );
    let mut command = topology.a.gateway.command("sh");
    let output = command.args(["-c", &script]).current_dir(&topology.a.scratch).output().expect("a shell");
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // In; to the coordinator by TCP and to three ports of UDP; to the router at three; for the LAN both ways.
    assert_eq!((said.trim(), error.trim()), ("10", ""));
}
