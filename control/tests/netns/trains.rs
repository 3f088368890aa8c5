//! Trains of datagrams (UDP_SEGMENT) prove that they arrive whole, and give way where they do not.

use crate::support::nat::{self, Lab};
use crate::support::overlay::{Coordinator, Pair};
use crate::support::*;
use penstock_dataplane::ports::set_option;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};
use std::time::Duration;

const PATH: Duration = Duration::from_secs(30);
/// A test each 10 s while all is well, three in a row when it is not, and what a busy machine adds.
const SECONDS: Duration = Duration::from_secs(30);
/// What a second of TCP carries at least, once datagrams go one by one; a train that is lost costs 200 ms and more.
const WORKS: u64 = 2_000_000;

/// Faults of whoever cuts trains: what is larger than a datagram is lost whole; the first datagram of it is damaged.
const SWALLOWS: &str = "drop";
const DAMAGES: &str = "@th,192,32 set 0x55555555";

#[test]
fn trains_that_are_swallowed_give_way_aloud_and_come_back() {
    spoilt_trains_give_way_and_come_back(SWALLOWS, "the same 16 were lost");
}

#[test]
fn trains_that_are_damaged_give_way_aloud_and_come_back() {
    spoilt_trains_give_way_and_come_back(DAMAGES, "the same 1 were lost");
}

/// `fault` is a statement of nftables for packets larger than one datagram, `seen` what the gateway says of it.
fn spoilt_trains_give_way_and_come_back(fault: &str, seen: &str) {
    if !ready(&["nft", "conntrack"]) || !is_penstock() {
        return;
    }
    let lab = Lab::new();
    let coordinator = Coordinator::start(&lab);
    let pair = Pair::start(&lab, &coordinator, [nat::Kind::FullCone, nat::Kind::FullCone], &json!({}));
    pair.await_both("direct", PATH);
    let Pair { gateway_a, gateway_b, a, b } = &pair;
    let trains = || gateway_a.peer(&gateway_b.name)["Trains"].clone();
    let is = |state: &str| trains()["State"] == state;
    let problem = || {
        let problems = gateway_a.status()["Problems"].as_array().cloned().unwrap_or_default();
        let of = |problem: &&Value| problem["Subject"] == format!("trains to {}", gateway_b.name);
        problems.iter().find(of).map(|problem| problem["Sentence"].to_string()).unwrap_or_default()
    };
    let flood = TcpSink::flood(&a.host, &b.host, b.host_address(), 2);
    eventually(SECONDS, "trains are proven", || is("proven"));
    assert!(trains()["ProvenSecondsAgo"].as_u64().is_some_and(|seconds| seconds < 60), "{}", trains());
    assert_eq!(problem(), "");

    a.nat.nft(&format!(
        "table ip faulty {{ chain forward {{ type filter hook forward priority 0; \
         iifname \"lan\" meta l4proto udp meta length > 1600 {fault}; }}; }}"
    ));
    eventually(SECONDS, "they are given up", || is("failing"));
    assert!(problem().contains(seen) && problem().contains("one by one until"), "{}", problem());
    // TCP waits longer and longer while everything is lost.
    eventually(SECONDS, "TCP works", || {
        let before = flood.received();
        pause(1_000);
        flood.received() - before >= WORKS
    });

    a.nat.nft("delete table ip faulty");
    a.gateway.ip("link set wan0 mtu 1499\n");
    eventually(SECONDS, "they are proven again", || is("proven"));
    eventually(PATIENCE, "all is well", || problem().is_empty());
    let log = gateway_a.process.log();
    assert!(log.contains("trains to") && log.contains("resolved"), "{log}");
}

/// Whether the gateway's sockets send checksums. The kernel refuses trains of those that do not.
fn send_checksums(gateway: &Gateway, on: bool) {
    let pid = gateway.process.pid();
    let process = pidfd_open(Pid::from_raw(pid as i32).expect("a process"), PidfdFlags::empty()).expect("it runs");
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs") {
        let entry = entry.expect("a descriptor");
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
        let is_socket = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
        // What is no more was none of the tunnel's.
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
    pause(1_000);
    assert_eq!(said(), (None, Value::Null));

    send_checksums(&a, false);
    eventually(SECONDS, "it is told", || said().0.is_some());
    let (problem, trains) = said();
    assert!(problem.is_some_and(|sentence| sentence.contains("refuses to send trains")), "{trains}");
    assert_eq!(trains["State"], "failing");
    eventually(SECONDS, "TCP works", || {
        let before = flood.received();
        pause(1_000);
        flood.received() - before >= WORKS
    });

    send_checksums(&a, true);
    topology.a.gateway.ip("link set wan0 mtu 1499\n");
    eventually(SECONDS, "trains are sent again", || said() == (None, Value::Null));
    let log = a.process.log();
    assert!(log.contains("trains: the kernel refuses") && log.contains("trains: resolved"), "{log}");
}
