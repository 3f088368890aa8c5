//! Trains of datagrams (UDP_SEGMENT) prove that they arrive whole, and are given up where they do not.

use crate::support::nat::{self, Lab};
use crate::support::overlay::{Coordinator, Pair};
use crate::support::*;
use penstock_dataplane::ports::set_option;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use std::time::Duration;

const PATH: Duration = Duration::from_secs(30);
/// A test every 10 s while all is well, three in a row when it is not, and what a busy machine adds.
const SECONDS: Duration = Duration::from_secs(30);
/// The least that a second of TCP carries once datagrams are sent one by one, also on a busy machine; while trains are
/// lost, each costs 200 ms and more.
const WORKS: u64 = 500_000;

/// Faults of whatever splits trains: anything larger than a datagram is lost whole; its first datagram is damaged.
const SWALLOWS: &str = "drop";
const DAMAGES: &str = "@th,192,32 set 0x55555555";

/// Between sites that a coordinator has made known to each other.
#[test]
fn trains_that_are_swallowed_give_way_aloud_and_come_back() {
    if !ready(&["nft", "conntrack"]) || !is_penstock() {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let pair = Pair::start(&lab, &coordinator, [nat::Kind::FullCone, nat::Kind::FullCone], &json!({}));
    pair.await_both("direct", PATH);
    let Pair { gateway_a, a, b, .. } = &pair;
    let flood = &|| TcpSink::flood(&a.host, &b.host, b.host_address(), 2);
    let link = Link { status: &|| gateway_a.status(), router: &a.nat, inward: "lan", gateway: &a.gateway, flood };
    link.spoils_trains_for_a_while(SWALLOWS, "the same 16 were lost");
    let log = gateway_a.process.log();
    assert!(log.contains("trains to") && log.contains("resolved"), "{log}");
}

/// Between sites that have each other in their profiles.
#[test]
fn trains_that_are_damaged_give_way_aloud_and_come_back() {
    if !ready(&["nft"]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::router());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let flood = &|| TcpSink::flood(&topology.a.host, &topology.b.host, topology.b.host4(), 2);
    let gateway = &topology.a.gateway;
    let link = Link { status: &|| a.status(), router: topology.middle(), inward: "a0", gateway, flood };
    link.spoils_trains_for_a_while(DAMAGES, "the same 1 were lost");
}

fn tcp_works(flood: &TcpSink) {
    eventually(SECONDS, "TCP works", || {
        let before = flood.received();
        pause(1_000);
        flood.received() - before >= WORKS
    });
}

/// A gateway with one peer, and a router between them.
struct Link<'a> {
    status: &'a dyn Fn() -> Value,
    router: &'a Namespace,
    /// The router's interface to the gateway.
    inward: &'a str,
    gateway: &'a Namespace,
    /// Starts TCP connections.
    flood: &'a dyn Fn() -> TcpSink,
}

impl Link<'_> {
    fn trains(&self) -> Value {
        (self.status)()["Peers"][0]["Trains"].clone()
    }

    fn is(&self, state: &str) -> bool {
        self.trains()["State"] == state
    }

    fn problem(&self) -> String {
        let problems = (self.status)()["Problems"].as_array().cloned().unwrap_or_default();
        let of_trains = |problem: &&Value| problem["Subject"].as_str().is_some_and(|of| of.starts_with("trains to "));
        problems.iter().find(of_trains).map(|problem| problem["Sentence"].to_string()).unwrap_or_default()
    }

    /// `fault` is a statement of nftables for packets larger than one datagram, `seen` what the gateway says about it.
    fn spoils_trains_for_a_while(&self, fault: &str, seen: &str) {
        let _load = (self.flood)();
        eventually(SECONDS, "trains are proven", || self.is("proven"));
        let trains = self.trains();
        assert!(trains["ProvenSecondsAgo"].as_u64().is_some_and(|seconds| seconds < 60), "{trains}");
        assert_eq!(self.problem(), "");

        self.router.nft(&format!(
            "table ip faulty {{ chain forward {{ type filter hook forward priority 0; \
             iifname \"{}\" meta l4proto udp meta length > 1600 {fault}; }}; }}",
            self.inward
        ));
        eventually(SECONDS, "they are given up", || self.is("failing"));
        let problem = self.problem();
        assert!(problem.contains(seen) && problem.contains("one by one until"), "{problem}");
        // Connections that have lost everything for 15 s may send again only after 25 s more.
        let flood = (self.flood)();
        tcp_works(&flood);

        self.router.nft("delete table ip faulty");
        self.gateway.ip("link set wan0 mtu 1499\n");
        eventually(SECONDS, "they are proven again", || self.is("proven"));
        eventually(PATIENCE, "all is well", || self.problem().is_empty());
    }
}

/// Whether the gateway's sockets send checksums. The kernel refuses trains on those that do not.
fn send_checksums(gateway: &Gateway, on: bool) {
    let pid = gateway.process.pid();
    let process = pidfd_open(Pid::from_raw(pid as i32).expect("a process"), PidfdFlags::empty()).expect("it runs");
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs") {
        let entry = entry.expect("a descriptor");
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
        let is_socket = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        // A socket that is gone was not one of the tunnel's.
        let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { continue };
        if is_socket {
            set_option(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, &i32::from(!on).to_ne_bytes()).expect("set");
        }
    }
}

#[test]
fn trains_that_the_kernel_refuses_give_way_aloud_and_come_back() {
    if !ready(&[]) || !is_penstock() {
        return;
    }
    let topology = Topology::new(Options::default());
    let (a, _b) = joined(&topology, Kind::SOCKET, Kind::SOCKET, Outer::V4);
    let said = || {
        let status = a.status();
        let problems = status["Problems"].as_array().expect("problems").clone();
        let problem = problems.iter().find(|problem| problem["Subject"] == "trains");
        (problem.map(|problem| problem["Sentence"].to_string()), status["Peers"][0]["Trains"].clone())
    };
    let flood = TcpSink::flood(&topology.a.host, &topology.b.host, topology.b.host4(), 2);
    eventually(SECONDS, "trains are proven", || said().1["State"] == "proven");
    assert_eq!(said().0, None);

    send_checksums(&a, false);
    eventually(SECONDS, "it is told", || said().0.is_some());
    let (problem, trains) = said();
    assert!(problem.is_some_and(|sentence| sentence.contains("refuses to send trains")), "{trains}");
    assert_eq!(trains["State"], "failing");
    tcp_works(&flood);

    send_checksums(&a, true);
    topology.a.gateway.ip("link set wan0 mtu 1499\n");
    eventually(SECONDS, "trains are sent again", || {
        let (problem, trains) = said();
        problem.is_none() && trains["State"] == "proven"
    });
    let log = a.process.log();
    assert!(log.contains("trains: the kernel refuses") && log.contains("trains: resolved"), "{log}");
}
