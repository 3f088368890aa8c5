//! The profile's firewall, and what a coordinator's policy allows, under real traffic, in every mode and both families;
//! and the effect of a reload.

use crate::overlay_modes::{End, host6, start};
use crate::support::nat::{Kind as Nat, Lab};
use crate::support::overlay::Coordinator;
use crate::support::*;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Ports on B: its firewall lets in the first, and not the second.
const WEB: u16 = 8080;
const HIDDEN: u16 = 8081;
/// Longer than a round trip on a loaded machine, shorter than the retransmission of a SYN.
const SHORT: Duration = Duration::from_millis(800);

/// Lets everything out, and lets in only what these rules accept.
fn firewall(rules: Value) -> Value {
    json!({ "In": "drop", "Out": "accept", "Rules": rules })
}

fn web() -> Value {
    json!({ "Name": "web", "Verdict": "accept", "Direction": "in", "Sites": ["tag:trusted"],
            "Destinations": ["10.102.0.0/24", "fd00:102::/64"], "Services": [format!("tcp/{WEB}")] })
}

fn protect(gateway: &Gateway, rules: Value) {
    gateway.reload(|profile| {
        profile["Peers"][0]["Tags"] = json!(["trusted"]);
        profile["Firewall"] = firewall(rules);
    });
}

fn listen(namespace: &Namespace, address: IpAddr, port: u16) -> TcpListener {
    namespace.enter(|| TcpListener::bind((address, port)).expect("a listener"))
}

fn connect(namespace: &Namespace, address: IpAddr, port: u16, wait: Duration) -> Option<TcpStream> {
    namespace.enter(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), wait).ok())
}

/// Sends a word; returns whether the other end receives it in time.
fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    from.write_all(b"word").expect("buffered");
    to.set_read_timeout(Some(SHORT)).expect("a timeout");
    let mut word = [0; 4];
    match to.read_exact(&mut word) {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            false
        }
    }
}

fn packets_of(gateway: &Gateway, rule: usize) -> u64 {
    gateway.status()["Firewall"]["Rules"][rule]["Packets"].as_u64().expect("a count")
}

#[test]
fn what_no_rule_accepts_does_not_pass_and_answers_do() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (_a, b) = joined(&topology, kind, kind, Outer::V4);
        protect(&b, json!([web()]));
        for (target, source) in topology.b.hosts().into_iter().zip(topology.a.hosts()) {
            let (web, hidden) = (listen(&topology.b.host, target, WEB), listen(&topology.b.host, target, HIDDEN));
            let before = (packets_of(&b, 0), b.drops("filter-denied"));
            let mut client = connect(&topology.a.host, target, WEB, PATIENCE).expect("a rule accepts it");
            let (mut server, _) = web.accept().expect("a connection");
            assert!(passes(&mut client, &mut server) && passes(&mut server, &mut client), "{kind:?} {target}");
            assert_eq!(packets_of(&b, 0), before.0 + 1, "{kind:?}: its first packet only");
            assert!(connect(&topology.a.host, target, HIDDEN, SHORT).is_none(), "{kind:?} {target}");
            drop(hidden);
            let pings = ping(&topology.a.host, target, &["-c", "2", "-i", "0.1", "-W", "1"]);
            assert_eq!(pings.received, 0, "{kind:?}: {}", pings.text);
            assert!(b.drops("filter-denied") >= before.1 + 3, "{kind:?}");
            // Requests from B's host are answered, also in fragments, and so are those from B's gateway.
            for size in ["56", "2000"] {
                let options = ["-c", "5", "-i", "0.1", "-W", "2", "-s", size, "-M", "dont"];
                let pings = ping(&topology.b.host, source, &options);
                // When fragments overtake each other the first packet may be lost; with IPv6 both hosts lose one until
                // they know how large fragments may be.
                assert!(pings.received >= 3, "{kind:?} {size}: {}", pings.text);
            }
            let pings = ping(&topology.b.gateway, source, &["-c", "2", "-i", "0.1", "-W", "2"]);
            assert!(pings.all_answered(), "{kind:?}: {}", pings.text);
        }
        assert!(b.status()["Firewall"]["Flows"].as_u64().expect("a count") > 0);
        assert_eq!(b.drops("filter-malformed"), 0);
    }
}

/// The router behind the tunnel reports that a packet is too large, and the firewall lets the report pass.
#[test]
fn path_mtu_discovery_works_through_it() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in Kind::MODES {
        let topology = Topology::new(Options::default());
        let (a, b) = joined(&topology, kind, kind, Outer::V4);
        protect(&a, json!([]));
        protect(&b, json!([web()]));
        // Behind B's gateway the path is narrower than the tunnel.
        topology.b.gateway.run(&["ip", "link", "set", "lan0", "mtu", "1300"]);
        for target in topology.b.hosts() {
            let web = listen(&topology.b.host, target, WEB);
            let mut client = connect(&topology.a.host, target, WEB, PATIENCE).expect("a rule accepts it");
            let (mut server, _) = web.accept().expect("a connection");
            let bytes = vec![7; 100_000];
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            client.set_write_timeout(Some(PATIENCE)).expect("a timeout");
            std::thread::scope(|scope| {
                scope.spawn(|| client.write_all(&bytes).expect("sent"));
                let mut received = vec![0; bytes.len()];
                server.read_exact(&mut received).unwrap_or_else(|error| panic!("{kind:?} {target}: {error}"));
            });
        }
    }
}

#[test]
fn a_reload_keeps_connections_that_the_new_rules_accept_and_ends_others() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    for kind in [Kind::XDP, Kind::SOCKET] {
        let topology = Topology::new(Options { queues: 2, ..Options::default() });
        let (_a, b) = joined(&topology, kind, kind, Outer::V4);
        protect(&b, json!([web()]));
        for target in topology.b.hosts() {
            let web_server = listen(&topology.b.host, target, WEB);
            let mut client = connect(&topology.a.host, target, WEB, PATIENCE).expect("a rule accepts it");
            let (mut server, _) = web_server.accept().expect("a connection");
            assert!(passes(&mut client, &mut server));
            // The rule is in another place, among other rules. Only an answer has to pass, so the flow was kept.
            protect(&b, json!([{ "Verdict": "accept", "Services": ["icmp"] }, web()]));
            assert!(passes(&mut server, &mut client) && passes(&mut client, &mut server), "{kind:?} {target}");
            assert!(ping(&topology.a.host, target, &["-c", "2", "-i", "0.1"]).all_answered(), "{kind:?} {target}");
            // Workers are replaced, but the known flows are kept.
            b.reload(|profile| profile["BusyPoll"] = true.into());
            assert!(passes(&mut server, &mut client) && passes(&mut client, &mut server), "{kind:?} {target}");
            b.reload(|profile| profile["BusyPoll"] = false.into());

            protect(&b, json!([]));
            assert!(!passes(&mut server, &mut client), "{kind:?} {target}: it was ended");
            assert!(!passes(&mut client, &mut server), "{kind:?} {target}");
            protect(&b, json!([web()]));
        }
        b.reload(|profile| profile["Firewall"] = Value::Null);
        assert_eq!(b.status()["Firewall"], Value::Null);
        await_traffic(&topology);
    }
}

/// What the policy allows one site to open at another is enforced by the other, at once, whatever the first one does.
#[test]
fn the_receiver_enforces_what_the_policy_allows() {
    if !ready(&["nft", "conntrack"]) || !is_penstock() {
        return;
    }
    const PATH: Duration = Duration::from_secs(30);
    for modes in [("udp", "tun"), ("xdp", "xdp")] {
        let lab = Lab::new();
        let coordinator = Coordinator::start(&lab);
        let allow = |services: Value| {
            coordinator.policy(&json!({ "Links": [{ "From": "tag:branch", "To": "tag:hub", "Allow": services }] }));
        };
        allow(json!([format!("tcp/{WEB}")]));
        let (branch, hub) = (coordinator.key(1, "branch"), coordinator.key(1, "hub"));
        let a = start(&lab, &coordinator, &branch, (Nat::FullCone, 1), modes);
        let b = start(&lab, &coordinator, &hub, (Nat::FullCone, 2), modes);
        a.gateway.await_path(&b.gateway.name, "direct", PATH);
        b.gateway.await_path(&a.gateway.name, "direct", PATH);
        let restricted = |end: &End| end.gateway.status()["Firewall"]["Restrictions"][0]["Allow"].clone();
        assert_eq!((restricted(&a), restricted(&b)), (json!([]), json!([format!("tcp/{WEB}")])), "{modes:?}");
        let problems = |end: &End| end.gateway.status()["Problems"].to_string();
        assert!(!problems(&a).contains("too old") && !problems(&b).contains("too old"), "{modes:?}: {}", problems(&a));

        let [to_b, to_a] = [&b, &a].map(|end| [end.site.host_address(), host6(&end.site)]);
        let pinged = |from: &End, to: IpAddr| ping(&from.site.host, to, &["-c", "2", "-i", "0.1", "-W", "1"]).received;
        let listeners = |end: &End, at: [IpAddr; 2], port| at.map(|address| listen(&end.site.host, address, port));
        let (web, _hidden) = (listeners(&b, to_b, WEB), listeners(&b, to_b, HIDDEN));
        let _refused = listeners(&a, to_a, WEB);
        let mut connections = Vec::new();
        for (target, web) in to_b.into_iter().zip(&web) {
            let mut client = connect(&a.site.host, target, WEB, PATIENCE).expect("the policy allows it");
            let (mut server, _) = web.accept().expect("a connection");
            assert!(passes(&mut client, &mut server) && passes(&mut server, &mut client), "{modes:?} {target}");
            assert!(connect(&a.site.host, target, HIDDEN, SHORT).is_none(), "{modes:?} {target}");
            assert_eq!(pinged(&a, target), 0, "{modes:?} {target}");
            connections.push((client, server));
        }
        for target in to_a {
            assert!(connect(&b.site.host, target, WEB, SHORT).is_none(), "{modes:?} {target}: the other way");
        }

        allow(json!(["icmp"]));
        eventually(PATIENCE, "the hub has heard of it", || restricted(&b) == json!(["icmp"]));
        for ((client, server), target) in connections.iter_mut().zip(to_b) {
            assert!(!passes(client, server), "{modes:?} {target}: what stands ends as well");
            assert_eq!(pinged(&a, target), 2, "{modes:?} {target}");
        }
        coordinator.policy(&json!({ "Links": [["tag:branch", "tag:hub"]] }));
        let free = |end: &End| end.gateway.status()["Firewall"].is_null();
        eventually(PATIENCE, "nobody is restricted", || free(&a) && free(&b));
        for (from, target) in to_b.map(|target| (&a, target)).into_iter().chain(to_a.map(|target| (&b, target))) {
            assert!(connect(&from.site.host, target, WEB, PATIENCE).is_some(), "{modes:?} {target}");
        }
    }
}
