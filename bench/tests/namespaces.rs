//! Generator, forwarder and sink as processes in three network namespaces:
//!
//! ```text
//!  ┌─ generator ─┐      ┌── forwarder ──┐      ┌─── sink ────┐
//!  │        east ├──────┤ west     east ├──────┤ west        │
//!  └─────────────┘ veth └───────────────┘ veth └─────────────┘
//! ```
//! Needs root; without it the tests say so and pass.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use penstock_netns::{End, Namespace, veth};
use rustix::process::Signal;
use serde_json::Value;
use support::Running;

const BENCH: &str = env!("CARGO_BIN_EXE_penstock-bench");
/// Slow enough for a debug build on a busy machine.
const RATE: u64 = 20_000;
const SECONDS: &str = "1";

const GENERATOR_MAC: &str = "02:00:00:00:01:01";
const FORWARDER_WEST_MAC: &str = "02:00:00:00:01:02";
const FORWARDER_EAST_MAC: &str = "02:00:00:00:02:01";
const SINK_MAC: &str = "02:00:00:00:02:02";

#[test]
fn ipv4_packets_arrive_whole_and_in_order() {
    packets_arrive_whole_and_in_order("10.77.1.1", "10.77.2.1", "64");
}

#[test]
fn ipv6_packets_arrive_whole_and_in_order() {
    packets_arrive_whole_and_in_order("fd77:1::1", "fd77:2::1", "1434");
}

#[test]
fn a_sink_ends_in_time_though_packets_keep_coming() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let [generator, sink] = ["gen", "sink"].map(Namespace::new);
    link(&generator, GENERATOR_MAC, &sink, SINK_MAC);
    let sending = start(
        &generator,
        &[
            "generate",
            "--interface=east",
            &format!("--src-mac={GENERATOR_MAC}"),
            &format!("--dst-mac={SINK_MAC}"),
            "--src=10.77.1.1",
            "--dst=10.77.2.1",
            &format!("--rate={RATE}"),
            "--seconds=20",
        ],
    );
    let began = Instant::now();
    let received = start(&sink, &["sink", "--interface=west", "--seconds=1", "--latency", "--json"]).report();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(number(&received["Packets"]) > 0 && number(&received["Lost"]) < RATE, "{received}");
    let ages = received["Latency"].as_array().expect("asked for");
    assert!(ages.len() > 5, "{received}");
    drop(sending);
}

#[test]
fn a_missing_interface_is_one_clear_sentence() {
    let output =
        Command::new(BENCH).args(["sink", "--interface", "no-such-device"]).output().expect("penstock-bench starts");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no interface \"no-such-device\""), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

fn packets_arrive_whole_and_in_order(source: &str, destination: &str, size: &str) {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let [generator, forwarder, sink] = ["gen", "fwd", "sink"].map(Namespace::new);
    link(&generator, GENERATOR_MAC, &forwarder, FORWARDER_WEST_MAC);
    link(&forwarder, FORWARDER_EAST_MAC, &sink, SINK_MAC);

    let receiving = start(&sink, &["sink", "--interface=west", "--seconds=20", "--verify", "--json"]);
    let forwarding = start(
        &forwarder,
        &[
            "forward",
            "--from=west",
            "--to=east",
            &format!("--rewrite-src-mac={FORWARDER_EAST_MAC}"),
            &format!("--rewrite-dst-mac={SINK_MAC}"),
            "--seconds=20",
            "--json",
        ],
    );
    let sending = start(
        &generator,
        &[
            "generate",
            "--interface=east",
            &format!("--src-mac={GENERATOR_MAC}"),
            &format!("--dst-mac={FORWARDER_WEST_MAC}"),
            &format!("--src={source}"),
            &format!("--dst={destination}"),
            &format!("--size={size}"),
            &format!("--rate={RATE}"),
            &format!("--seconds={SECONDS}"),
            "--flows=4",
            "--json",
        ],
    );
    let sent = sending.report();
    let passed = forwarding.stop();
    let received = receiving.stop();

    assert!(number(&sent["Packets"]) > 0, "{sent}");
    assert!(number(&received["Packets"]) > 0, "{received}");
    assert!(received["PacketsPerSecond"].as_f64() > Some(0.0), "{received}");
    assert_eq!(number(&received["Reordered"]), 0, "{received}");
    assert_eq!(number(&received["Corrupt"]), 0, "{received}");
    assert!(number(&received["Packets"]) <= number(&passed["Forth"]["Packets"]));
    assert!(number(&passed["Forth"]["Packets"]) <= number(&sent["Packets"]));
    let bytes = number(&received["Packets"]) * size.parse::<u64>().expect("a number");
    assert_eq!(number(&received["Bytes"]), bytes);
}

/// Starts penstock-bench in a namespace and waits until it is ready.
fn start(namespace: &Namespace, arguments: &[&str]) -> Running {
    let mut command = namespace.command(BENCH);
    let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut running = Running(child.expect("ip starts"));
    let mut line = String::new();
    let mut said = BufReader::new(running.0.stderr.take().expect("piped"));
    said.read_line(&mut line).expect("standard error reads");
    assert!(line.starts_with("ready"), "{arguments:?}: {line}");
    running
}

impl Running {
    fn stop(self) -> Value {
        self.signal(Signal::TERM);
        self.report()
    }

    fn report(mut self) -> Value {
        let mut printed = String::new();
        let output = self.0.stdout.as_mut().expect("piped");
        output.read_to_string(&mut printed).expect("output reads");
        assert!(self.0.wait().expect("it ends").success(), "{printed}");
        serde_json::from_str(&printed).expect("JSON")
    }
}

/// Joins "east" of one namespace with "west" of another.
fn link(left: &Namespace, left_mac: &str, right: &Namespace, right_mac: &str) {
    let east = End { namespace: left, name: "east", address: left_mac };
    veth([east, End { namespace: right, name: "west", address: right_mac }], 1).expect("a veth pair");
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number in the report")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
