//! How large packets may be: according to link, path and profile, and what hosts are told.

use crate::support::nat::{self, Lab};
use crate::support::overlay::{Coordinator, OverlayGateway};
use crate::support::*;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const MODES: [Kind; 2] = [Kind::XDP, Kind::SOCKET];
/// Time for the kernel's news, on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// How soon a path that shrinks under traffic has recovered; twice the documented time, for a busy machine.
const RECOVERY: Duration = Duration::from_secs(4);

/// Both ends of the cable between the gateways.
fn set_wan_mtu(topology: &Topology, mtu: u32) {
    for site in [&topology.a, &topology.b] {
        site.gateway.ip(&format!("link set wan0 mtu {mtu}\n"));
    }
}

fn await_mtu(gateway: &Gateway, outer: u16, inner: u16) {
    let mut mtu = Value::Null;
    let known = holds_within(SOON, || {
        mtu = gateway.status()["Peers"][0]["Mtu"].clone();
        mtu["Outer"] == outer && mtu["Inner"] == inner
    });
    assert!(known, "not {outer} outside and {inner} inside, but {mtu}: {}", gateway.process.log());
}

/// Echo requests that fill `mtu` and may not be fragmented.
fn ping_of(topology: &Topology, target: IpAddr, mtu: u16, count: &str) -> Ping {
    let headers = if target.is_ipv4() { 28 } else { 48 };
    let size = (mtu - headers).to_string();
    ping(&topology.a.host, target, &["-c", count, "-i", "0.1", "-M", "do", "-s", &size])
}

/// Packets of `inner` bytes pass whole, one byte more is answered with the MTU, and TCP gets through.
fn carries(topology: &Topology, inner: u16, what: &str) {
    for target in topology.b.hosts() {
        let full = ping_of(topology, target, inner, "3");
        assert!(full.all_answered(), "{what}, {target}: {}", full.text);
        let larger = ping_of(topology, target, inner + 1, "2");
        assert_eq!(larger.reported_mtu(), Some(inner), "{what}, {target}: {}", larger.text);
        tcp_both_ways(&topology.a.host, &topology.b.host, target, 300_000);
    }
    // IPv4 that may be fragmented is, by whoever routes it.
    let larger = ["-c", "3", "-i", "0.1", "-M", "dont", "-s", "1472"];
    let pings = ping(&topology.a.host, topology.b.host4(), &larger);
    assert!(pings.all_answered(), "{what}, fragments: {}", pings.text);
}

/// Hosts remember the MTU of a path for minutes.
fn forget_learnt(topology: &Topology) {
    for site in [&topology.a, &topology.b] {
        for family in ["-4", "-6"] {
            site.host.run(&["ip", family, "route", "flush", "cache"]);
        }
    }
}

#[test]
fn the_wan_s_mtu_is_followed_while_running() {
    if !ready(&[]) {
        return;
    }
    for (kind, outer) in [(Kind::XDP, Outer::V4), (Kind::XDP, Outer::V6), (Kind::SOCKET, Outer::V6)] {
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, outer);
        let what = |when: &str| format!("{kind:?}, {outer:?}, {when}");
        // Over IPv4 there would be room for 1440, but the tunnel keeps to what fits over IPv6.
        await_mtu(&a, 1500, 1420);
        carries(&topology, 1420, &what("at first"));
        set_wan_mtu(&topology, 1400);
        for gateway in [&a, &b] {
            await_mtu(gateway, 1400, 1320);
        }
        forget_learnt(&topology);
        carries(&topology, 1320, &what("lowered"));
        set_wan_mtu(&topology, 1500);
        for gateway in [&a, &b] {
            await_mtu(gateway, 1500, 1420);
        }
        forget_learnt(&topology);
        carries(&topology, 1420, &what("raised"));
    }
}

/// A ceiling too large for the link is lowered, and hosts are told.
#[test]
fn an_mtu_that_is_too_large_is_lowered() {
    if !ready(&[]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::default());
        // Part of the MAC looks like the type of a VLAN tag; answers are sent to it all the same.
        topology.a.host.run(&["ip", "link", "set", "eth0", "address", "02:00:81:00:00:05"]);
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        for gateway in [&a, &b] {
            gateway.reload(|profile| profile["Mtu"] = 1480.into());
        }
        await_mtu(&a, 1500, 1440);
        carries(&topology, 1440, &format!("{kind:?}"));
    }
}

/// The inside is never smaller than 1280: outer packets are fragmented, also where AF_XDP could not do so.
#[test]
fn a_link_too_small_for_1280_bytes_inside_carries_them_in_fragments() {
    if !ready(&[]) {
        return;
    }
    for (kind, outer) in [(Kind::XDP, Outer::V4), (Kind::XDP, Outer::V6), (Kind::SOCKET, Outer::V6)] {
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, outer);
        set_wan_mtu(&topology, 1300);
        for gateway in [&a, &b] {
            await_mtu(gateway, 1300, 1280);
            assert_eq!(gateway.status()["Peers"][0]["Mtu"]["Fragmented"], true);
        }
        forget_learnt(&topology);
        carries(&topology, 1280, &format!("{kind:?}, {outer:?}"));
    }
}

/// A router on the way has a smaller link and reports it; peers of the profile are not probed. Over IPv4 routers
/// fragment.
#[test]
fn a_router_that_says_what_its_link_takes_is_heard() {
    if !ready(&[]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::router());
        let (a, b) = joined(&topology, kind, kind, Outer::V6);
        // With a smaller MTU of its links a veth pair would drop packets on receipt, before there is a router to report
        // it.
        for (site, port) in [(&topology.a, "a0"), (&topology.b, "b0")] {
            topology.middle().ip(&format!("route replace {}/128 dev {port} mtu 1400\n", site.wan6));
        }
        let full = ["-c", "1", "-M", "dont", "-s", "1380"];
        for (gateway, [from, to]) in [(&a, [&topology.a, &topology.b]), (&b, [&topology.b, &topology.a])] {
            let mut mtu = Value::Null;
            let told = holds_within(SOON, || {
                ping(&from.host, to.host4(), &full);
                mtu = gateway.status()["Peers"][0]["Mtu"].clone();
                mtu["Outer"] == 1400 && mtu["Reason"] == "told by a router"
            });
            assert!(told, "{kind:?}: {mtu}: {}", gateway.process.log());
        }
        forget_learnt(&topology);
        carries(&topology, 1320, &format!("{kind:?}"));
    }
}

struct Coordinated {
    lab: Lab,
    sites: [nat::Site; 2],
    gateways: [OverlayGateway; 2],
    _coordinator: Coordinator,
}

/// Two coordinated sites, directly connected, with routers in between.
fn coordinated(modes: (&str, &str)) -> Coordinated {
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let key = coordinator.key(2, "site");
    let sites = [1, 2].map(|number| lab.site(nat::Kind::FullCone, number));
    let gateways = [0, 1].map(|n| {
        let site = &sites[n];
        // Otherwise veth pairs pass whole bundles, which are longer than any packet.
        site.gateway.run(&["ethtool", "-K", "wan0", "tx-udp-segmentation", "off"]);
        let extra = json!({
            "Wan": { "Interface": "wan0", "Mode": modes.0 },
            "Lan": { "Interfaces": ["lan0"], "Mode": modes.1, "Subnets": [site.subnet()] },
        });
        OverlayGateway::start(site, &coordinator, &key, &extra)
    });
    for n in [0, 1] {
        gateways[n].await_path(&gateways[1 - n].name, "direct", Duration::from_secs(30));
    }
    Coordinated { lab, sites, gateways, _coordinator: coordinator }
}

impl Coordinated {
    /// Makes the path between the sites drop larger packets, and report nothing.
    fn shrink(&self, mtu: u32) {
        // A smaller link would fragment IPv4 without DF.
        self.lab.internet().nft(&format!(
            "table inet mtu {{ chain forward {{ type filter hook forward priority 0; meta length > {mtu} drop; }}; }}"
        ));
    }

    fn await_probed(&self, outer: std::ops::RangeInclusive<u64>, limit: Duration) {
        for n in [0, 1] {
            let mut mtu = Value::Null;
            let known = holds_within(limit, || {
                mtu = self.gateways[n].peer(&self.gateways[1 - n].name)["Mtu"].clone();
                mtu["Reason"] == "probed" && mtu["Outer"].as_u64().is_some_and(|found| outer.contains(&found))
            });
            assert!(known, "not {outer:?}, probed, but {mtu}: {}", self.gateways[n].process.log());
        }
    }

    /// Below what IPv6 needs inside, `doctor` names the peer, and its command ends the fragments.
    fn doctor_finds_fragments(&self) {
        let [gateway, other] = &self.gateways;
        let command = || {
            let report: Value = serde_json::from_slice(&gateway.penstock(&["doctor", "--json"]).stdout).expect("JSON");
            let findings = report["Findings"].as_array().expect("findings");
            let found = findings.iter().find(|finding| finding["Subject"] == other.name)?;
            Some(found["Command"].as_str().expect("text").to_owned())
        };
        assert_eq!(command(), None);
        self.shrink(1310);
        // Data makes the gateways probe.
        let target = self.sites[1].host_address();
        eventually(RECOVERY, "the gateways notice", || {
            ping(&self.sites[0].host, target, &["-c", "1"]);
            gateway.peer(&other.name)["Mtu"]["Fragmented"] == true
        });
        self.await_probed(1280..=1310, SOON);
        let fix = command().expect("found");
        let field = fix.split(' ').find(|word| word.starts_with("Mtu=")).unwrap_or_else(|| panic!("{fix}"));
        let output = gateway.penstock(&["set-config", field]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        eventually(SOON, "nothing is fragmented", || gateway.peer(&other.name)["Mtu"]["Fragmented"] == false);
        self.tcp(10_000);
        assert_eq!(command(), None, "after {fix}");
    }

    fn tcp(&self, bytes: usize) {
        let [a, b] = &self.sites;
        tcp_both_ways(&a.host, &b.host, b.host_address(), bytes);
    }
}

#[test]
fn a_path_smaller_than_its_ends_is_found_and_a_shrinking_one_recovers() {
    if !ready(&["nft", "conntrack"]) {
        return;
    }
    for modes in [("xdp", "xdp"), ("udp", "tun")] {
        let pair = coordinated(modes);
        pair.await_probed(1500..=1500, SOON);
        pair.tcp(300_000);
        // Not one of the ladder's sizes.
        pair.shrink(1410);
        let began = Instant::now();
        // Data makes the gateways probe.
        let target = pair.sites[1].host_address();
        eventually(RECOVERY, "full packets pass again", || {
            ping(&pair.sites[0].host, target, &["-c", "1", "-M", "dont", "-s", "1300"]).all_answered()
                && pair.gateways[0].peer(&pair.gateways[1].name)["Mtu"]["Outer"].as_u64().is_some_and(|mtu| mtu <= 1410)
        });
        println!("{modes:?}: recovered after {:?}", began.elapsed());
        pair.tcp(300_000);
        pair.await_probed(1394..=1410, SOON);
        let full = ["-c", "2", "-i", "0.1", "-M", "do", "-s", "1392"];
        let refused = ping(&pair.sites[0].host, target, &full);
        assert!(refused.reported_mtu().is_some_and(|mtu| (1334..=1350).contains(&mtu)), "{modes:?}: {}", refused.text);
        pair.doctor_finds_fragments();
    }
}
