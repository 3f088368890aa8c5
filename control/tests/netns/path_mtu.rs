//! How large packets may be: according to link, path and profile, and what hosts are told.

use crate::support::nat::{self, Lab};
use crate::support::overlay::{Coordinator, OverlayGateway};
use crate::support::*;
use penstock_dataplane::ports::INNER_MAX;
use penstock_proto::path::{FIRST_BYTE, PROBE_LENGTH};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const MODES: [Kind; 2] = [Kind::XDP, Kind::SOCKET];
/// Time for the kernel's notifications, on a busy machine.
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
    // The last answer is waited for as long as the interval.
    ping(&topology.a.host, target, &["-c", count, "-i", "0.3", "-M", "do", "-s", &size])
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
    // IPv4 that may be fragmented is fragmented, by whichever side routes it.
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

/// Jumbo frames inside are never larger than what a slot of AF_XDP's memory holds, also where the interface would carry
/// more, and hosts are told.
#[test]
fn jumbo_frames_pass_up_to_what_hosts_are_told() {
    if !ready(&[]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options { mtu: 9001, ..Options::default() });
        let (a, _b) = joined(&topology, kind, kind, Outer::V4);
        assert_eq!(a.status()["TunnelMtu"], INNER_MAX, "{kind:?}");
        let mut inner = 0;
        // The search stops within some bytes of it.
        eventually(2 * SOON, "the path's MTU is found", || {
            let mtu = a.status()["Peers"][0]["Mtu"].clone();
            inner = mtu["Inner"].as_u64().expect("a size") as u16;
            mtu["Reason"] == "probed" && usize::from(inner) > INNER_MAX - 16
        });
        carries(&topology, inner, &format!("{kind:?}"));
        for target in topology.b.hosts() {
            forget_learnt(&topology);
            // Beyond what the ring takes, and as large as the host sends: the kernel reports the tunnel's or the path's
            // MTU.
            let largest = ping_of(&topology, target, 9001, "2");
            let told = largest.reported_mtu().is_some_and(|mtu| (usize::from(inner)..=INNER_MAX).contains(&mtu.into()));
            assert!(told, "{kind:?}, {target}: {}", largest.text);
        }
    }
}

/// The inner MTU is never below 1280: outer packets are fragmented, even where AF_XDP could not do so.
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

/// How A knows the size of the path to its only peer.
fn await_reason(gateway: &Gateway, outer: std::ops::RangeInclusive<u64>, reason: &str) {
    let mut mtu = Value::Null;
    let known = holds_within(SOON, || {
        mtu = gateway.status()["Peers"][0]["Mtu"].clone();
        mtu["Reason"] == reason && mtu["Outer"].as_u64().is_some_and(|found| outer.contains(&found))
    });
    assert!(known, "not {outer:?}, {reason}, but {mtu}: {}", gateway.process.log());
}

/// Makes a router drop larger packets, and report nothing.
fn drop_larger(router: &Namespace, mtu: u32) {
    // A smaller link would fragment IPv4 without DF.
    router.nft(&format!(
        "table inet mtu {{ chain forward {{ type filter hook forward priority 0; meta length > {mtu} drop; }}; }}"
    ));
}

/// Makes the middle's links smaller through routes: with a smaller MTU a veth pair would drop packets on receipt,
/// before there is a router to report it.
fn shrink_links(topology: &Topology, mtu: u32) {
    for (site, port) in [(&topology.a, "a0"), (&topology.b, "b0")] {
        let (wan4, wan6) = (site.wan4, site.wan6);
        topology.middle().ip(&format!(
            "route replace {wan4}/32 dev {port} mtu {mtu}\n\
             route replace {wan6}/128 dev {port} mtu {mtu}\n"
        ));
    }
}

/// A router on the path has a smaller link and reports it. Over IPv4 routers fragment.
#[test]
fn a_router_that_says_what_its_link_takes_is_heard_where_nobody_answers_probes() {
    if !ready(&["wireguard-go"]) {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::router());
        let (a, b) = joined(&topology, kind, Kind::WireguardGo, Outer::V6);
        // So that B's own large packets cannot be lost: this test is not about them.
        topology.b.gateway.ip(&format!("link set {} mtu 1320\n", b.name()));
        shrink_links(&topology, 1400);
        eventually(SOON, "the router is heard", || {
            ping(&topology.a.host, topology.b.host4(), &["-c", "1", "-M", "dont", "-s", "1380"]);
            a.status()["Peers"][0]["Mtu"]["Outer"] == 1400
        });
        await_reason(&a, 1400..=1400, "told by a router");
        forget_learnt(&topology);
        carries(&topology, 1320, &format!("{kind:?}"));
    }
}

/// The receiving kernel would reassemble a fragmented probe, as if its size passed.
#[test]
fn a_router_that_fragments_does_not_hide_how_little_its_link_takes() {
    if !ready(&[]) {
        return;
    }
    let outers = [Outer::V4, Outer::V6];
    for (kind, outer) in MODES.into_iter().flat_map(|kind| outers.map(|outer| (kind, outer))) {
        let topology = Topology::new(Options::router());
        shrink_links(&topology, 1400);
        let (a, b) = joined(&topology, kind, kind, outer);
        for gateway in [&a, &b] {
            await_reason(gateway, 1384..=1400, "probed");
        }
        let inner = a.status()["Peers"][0]["Mtu"]["Inner"].as_u64().expect("a size") as u16;
        carries(&topology, inner, &format!("{kind:?}, {outer:?}"));
    }
}

/// Probes in a capture: datagrams that begin like ours, by their length.
fn probes(frames: &[Frame]) -> Vec<usize> {
    let datagrams = frames.iter().filter_map(Frame::datagram).map(|datagram| datagram.payload);
    datagrams.filter(|payload| payload.first() == Some(&FIRST_BYTE)).map(|payload| payload.len()).collect()
}

/// A peer that answers no probes is sent a few small ones in each session, and loses nothing by them.
#[test]
fn a_plain_peer_is_hardly_probed_and_has_the_link_s_mtu() {
    if !ready(&["wireguard-go", "tcpdump"]) || !is_penstock() {
        return;
    }
    for kind in MODES {
        let topology = Topology::new(Options::switch());
        let (mut a, mut b) = pair_config(&topology, kind, Kind::WireguardGo, Outer::V4);
        a.rekey_after(6);
        // So that A remains the initiator.
        b.peers[0].endpoint = None;
        let capture = Capture::of_wan(&topology);
        let (a, b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
        await_traffic(&topology);
        let pings = ping(&topology.a.host, topology.b.host4(), &["-c", "300", "-i", "0.05"]);
        carries(&topology, 1420, &format!("{kind:?}"));
        let frames = capture.stop();
        assert!(pings.all_answered(), "{kind:?}: {}", pings.text);
        let sessions = count_messages(&frames, HANDSHAKE_RESPONSE);
        let probes = probes(&frames);
        assert!(sessions >= 2, "{kind:?}: {sessions} sessions");
        assert!((6..=6 * sessions).contains(&probes.len()), "{kind:?}: {} in {sessions} sessions", probes.len());
        assert!(probes.iter().all(|length| *length == PROBE_LENGTH), "{kind:?}: {probes:?}");
        await_reason(&a, 1500..=1500, "of the link");
        assert_eq!(b.endpoint(&a.public_key()), Some(topology.a.endpoint(Outer::V4)));
    }
}

/// Restarts, and peers that go and come back by `wg set` and by the profile.
#[test]
fn peers_that_come_back_are_probed_again() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::router());
    drop_larger(topology.middle(), 1400);
    let (a, mut b) = pair_config(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    // B learns A's address from its packets.
    b.peers[0].endpoint = None;
    let (mut a, mut b) = (Gateway::start(&topology.a, a), Gateway::start(&topology.b, b));
    let both = |a: &Gateway, b: &Gateway, what: &str| {
        eventually(Duration::from_secs(30), what, || {
            ping(&topology.a.host, topology.b.host4(), &["-c", "1"]).all_answered()
        });
        await_reason(a, 1384..=1400, "probed");
        await_reason(b, 1384..=1400, "probed");
    };
    both(&a, &b, "at first");
    assert_eq!(a.status()["Peers"][0]["RoundTripMs"].as_f64().map(|ms| ms < 1e3), Some(true));
    b.kill();
    b.restart();
    both(&a, &b, "after a crash there");
    assert!(a.terminate().success());
    a.restart();
    both(&a, &b, "after a restart here");
    let (key, endpoint) = (b.public_key(), topology.b.endpoint(Outer::V4).to_string());
    a.set(&["peer", &key, "remove"]);
    a.set(&["peer", &key, "endpoint", &endpoint, "allowed-ips", &topology.b.allowed_ips().join(",")]);
    both(&a, &b, "after wg set");
    let mut peers = Value::Null;
    a.reload(|profile| peers = std::mem::replace(&mut profile["Peers"], json!([])));
    a.reload(|profile| profile["Peers"] = peers);
    both(&a, &b, "after two reloads");
    // To the peer, another port starts another session.
    a.reload(|profile| profile["LocalPort"] = (PORT + 1).into());
    both(&a, &b, "after a move to another port");
    // An endpoint may lie inside its own prefix.
    a.reload(|profile| {
        profile["Peers"][0]["AllowedIPs"].as_array_mut().expect("a list").push(json!(topology.b.wan4.to_string()));
    });
    let private_key = genkey();
    let file = a.secret_file("new", &private_key);
    a.set(&["private-key", &file]);
    let new = pubkey(&private_key);
    b.set(&["peer", &a.public_key(), "remove", "peer", &new, "allowed-ips", &topology.a.allowed_ips().join(",")]);
    both(&a, &b, "with another key");
}

/// How two sites learn about each other.
#[derive(Clone, Copy, Debug)]
enum Named {
    Coordinator,
    Profile,
}

/// Two sites with routers in between, the first of them behind a NAT.
struct Connected {
    lab: Lab,
    sites: [nat::Site; 2],
    gateways: [OverlayGateway; 2],
    /// The name of each at the other site.
    names: [String; 2],
    _coordinator: Option<Coordinator>,
}

/// Two sites, directly connected. In a profile, the first has the address of the second, which waits for an initiation.
fn connected(named: Named, modes: (&str, &str)) -> Connected {
    let lab = Lab::new();
    let sites = [(nat::Kind::FullCone, 1), (nat::Kind::None, 2)].map(|(kind, number)| lab.site(kind, number));
    let fields = |site: &nat::Site| {
        // Otherwise veth pairs pass whole bundles, which are longer than any packet.
        site.gateway.run(&["ethtool", "-K", "wan0", "tx-udp-segmentation", "off"]);
        json!({
            "LocalPort": PORT,
            "Wan": { "Interface": "wan0", "Mode": modes.0 },
            "Lan": { "Interfaces": ["lan0"], "Mode": modes.1, "Subnets": [site.subnet()] },
        })
    };
    let (gateways, names, coordinator) = match named {
        Named::Coordinator => {
            let coordinator = Coordinator::start(&lab);
            let key = coordinator.key(2, "site");
            let gateways = [0, 1].map(|n| OverlayGateway::start(&sites[n], &coordinator, &key, &fields(&sites[n])));
            let names = [0, 1].map(|n| gateways[n].name.clone());
            (gateways, names, Some(coordinator))
        }
        Named::Profile => {
            let (keys, names) = ([genkey(), genkey()], ["first", "second"].map(str::to_owned));
            let gateways = [0, 1].map(|n| {
                let (site, other) = (&sites[n], &sites[1 - n]);
                let endpoint = (n == 0).then(|| format!("{}:{PORT}", other.public()));
                let mut fields = fields(site);
                fields["Peers"] = json!([{
                    "Name": names[1 - n],
                    "PublicKey": pubkey(&keys[1 - n]),
                    "Endpoint": endpoint,
                    "AllowedIPs": [other.subnet()],
                }]);
                OverlayGateway::enrolled(site, &keys[n], &fields)
            });
            (gateways, names, None)
        }
    };
    let pair = Connected { lab, sites, gateways, names, _coordinator: coordinator };
    eventually(Duration::from_secs(30), "the hosts reach each other", || {
        ping(&pair.sites[0].host, pair.sites[1].host_address(), &["-c", "1"]).all_answered()
    });
    for n in [0, 1] {
        pair.gateways[n].await_path(&pair.names[1 - n], "direct", Duration::from_secs(30));
    }
    pair
}

impl Connected {
    /// What a gateway reports about the other.
    fn peer(&self, n: usize) -> Value {
        self.gateways[n].peer(&self.names[1 - n])
    }

    /// Makes the path between the sites drop larger packets, and report nothing.
    fn shrink(&self, mtu: u32) {
        drop_larger(self.lab.internet(), mtu);
    }

    fn await_probed(&self, outer: std::ops::RangeInclusive<u64>, limit: Duration) {
        for n in [0, 1] {
            let mut mtu = Value::Null;
            let known = holds_within(limit, || {
                mtu = self.peer(n)["Mtu"].clone();
                mtu["Reason"] == "probed" && mtu["Outer"].as_u64().is_some_and(|found| outer.contains(&found))
            });
            assert!(known, "not {outer:?}, probed, but {mtu}: {}", self.gateways[n].process.log());
        }
    }

    /// Below what IPv6 needs inside, `doctor` names the peer, and its command ends the fragments.
    fn doctor_finds_fragments(&self) {
        let (gateway, other) = (&self.gateways[0], &self.names[1]);
        let command = || {
            let report: Value = serde_json::from_slice(&gateway.penstock(&["doctor", "--json"]).stdout).expect("JSON");
            let findings = report["Findings"].as_array().expect("findings");
            let found = findings.iter().find(|finding| finding["Subject"] == *other)?;
            Some(found["Command"].as_str().expect("text").to_owned())
        };
        assert_eq!(command(), None);
        self.shrink(1310);
        // Data makes the gateways probe.
        let target = self.sites[1].host_address();
        eventually(RECOVERY, "the gateways notice", || {
            ping(&self.sites[0].host, target, &["-c", "1"]);
            self.peer(0)["Mtu"]["Fragmented"] == true
        });
        self.await_probed(1280..=1310, SOON);
        let fix = command().expect("found");
        let field = fix.split(' ').find(|word| word.starts_with("Mtu=")).unwrap_or_else(|| panic!("{fix}"));
        let output = gateway.penstock(&["set-config", field]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        eventually(SOON, "nothing is fragmented", || self.peer(0)["Mtu"]["Fragmented"] == false);
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
    let modes = [("xdp", "xdp"), ("udp", "tun")];
    for (named, modes) in [Named::Coordinator, Named::Profile].into_iter().flat_map(|named| modes.map(|m| (named, m))) {
        let pair = connected(named, modes);
        pair.await_probed(1500..=1500, SOON);
        pair.tcp(300_000);
        let target = pair.sites[1].host_address();
        let flood = TcpSink::flood(&pair.sites[0].host, &pair.sites[1].host, target, 1);
        // Not one of the ladder's sizes.
        pair.shrink(1410);
        let (began, before) = (Instant::now(), flood.received());
        eventually(RECOVERY, "full packets pass again", || {
            ping(&pair.sites[0].host, target, &["-c", "1", "-M", "dont", "-s", "1300"]).all_answered()
                && pair.peer(0)["Mtu"]["Outer"].as_u64().is_some_and(|mtu| mtu <= 1410)
        });
        println!("{named:?}, {modes:?}: recovered after {:?}", began.elapsed());
        // It sends again a second after the last attempt, or two.
        eventually(RECOVERY, "TCP goes on", || flood.received() > before + 1_000_000);
        println!("{named:?}, {modes:?}: TCP goes on after {:?}", began.elapsed());
        drop(flood);
        pair.tcp(300_000);
        pair.await_probed(1394..=1410, SOON);
        let full = ["-c", "2", "-i", "0.1", "-M", "do", "-s", "1392"];
        let refused = ping(&pair.sites[0].host, target, &full);
        assert!(
            refused.reported_mtu().is_some_and(|mtu| (1334..=1350).contains(&mtu)),
            "{named:?}, {modes:?}: {}",
            refused.text
        );
        pair.doctor_finds_fragments();
    }
}
