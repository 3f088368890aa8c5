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
    packets_arrive_whole_and_in_order("v4", "10.77.1.1", "10.77.2.1", "64");
}

#[test]
fn ipv6_packets_arrive_whole_and_in_order() {
    packets_arrive_whole_and_in_order("v6", "fd77:1::1", "fd77:2::1", "1434");
}

#[test]
fn a_sink_ends_in_time_though_packets_keep_coming() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let [generator, sink] = ["gen", "sink"].map(|role| Namespace::new(&format!("end-{role}")));
    link(&generator, GENERATOR_MAC, &sink, SINK_MAC);
    let sending = generator.start(&[
        "generate",
        "--interface=east",
        &format!("--src-mac={GENERATOR_MAC}"),
        &format!("--dst-mac={SINK_MAC}"),
        "--src=10.77.1.1",
        "--dst=10.77.2.1",
        &format!("--rate={RATE}"),
        "--seconds=20",
    ]);
    let began = Instant::now();
    let received = sink.start(&["sink", "--interface=west", "--seconds=1", "--latency", "--json"]).report();
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

fn packets_arrive_whole_and_in_order(name: &str, source: &str, destination: &str, size: &str) {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let [generator, forwarder, sink] = ["gen", "fwd", "sink"].map(|role| Namespace::new(&format!("{name}-{role}")));
    link(&generator, GENERATOR_MAC, &forwarder, FORWARDER_WEST_MAC);
    link(&forwarder, FORWARDER_EAST_MAC, &sink, SINK_MAC);

    let receiving = sink.start(&["sink", "--interface=west", "--seconds=20", "--verify", "--json"]);
    let forwarding = forwarder.start(&[
        "forward",
        "--from=west",
        "--to=east",
        &format!("--rewrite-src-mac={FORWARDER_EAST_MAC}"),
        &format!("--rewrite-dst-mac={SINK_MAC}"),
        "--seconds=20",
        "--json",
    ]);
    let sending = generator.start(&[
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
    ]);
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

/// A network namespace that goes with the test.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Namespace {
        let namespace = Namespace(format!("pstkb{}-{name}", std::process::id()));
        ip(&["netns", "add", &namespace.0]);
        namespace
    }

    /// Starts penstock-bench here and waits until it is ready.
    fn start(&self, arguments: &[&str]) -> Running {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0, BENCH])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let running = Running(child);
        let mut line = String::new();
        said.read_line(&mut line).expect("standard error reads");
        assert!(line.starts_with("ready"), "{arguments:?}: {line}");
        running
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // While unwinding nothing more can be done about a failure.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
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
    let one_queue = ["numrxqueues", "1", "numtxqueues", "1"];
    let mut arguments = vec!["link", "add", "east", "address", left_mac, "netns", &left.0];
    arguments.extend(one_queue);
    arguments.extend(["type", "veth", "peer", "name", "west", "address", right_mac]);
    arguments.extend(["netns", &right.0]);
    arguments.extend(one_queue);
    ip(&arguments);
    ip(&["-n", &left.0, "link", "set", "east", "up"]);
    ip(&["-n", &right.0, "link", "set", "west", "up"]);
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.expect("ip starts").success(), "ip {arguments:?}");
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number in the report")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
