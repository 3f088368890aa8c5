//! `penstock-bench compare` from start to end, with the subjects that every machine has. Needs root and iperf3;
//! without them the tests say so and pass.

mod support;

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use penstock_netns::{eventually, has_signal};
use rustix::process::Signal;
use support::Running;

const BENCH: &str = env!("CARGO_BIN_EXE_penstock-bench");
/// Two subjects, six measurements of a second each, with the set-up of a busy machine.
const LONG_ENOUGH: Duration = Duration::from_secs(120);
/// What takes a second or two.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_page_and_the_table_hold_what_was_measured_and_nothing_is_left() {
    if !ready() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let [output, temporary] = ["output", "tmp"].map(|name| folder.path().join(name));
    fs::create_dir(&temporary).expect("a folder");
    let results = folder.path().join("results.md");
    let mut command = compare(&output, &temporary, "1");
    command.arg("--results").arg(&results).args(["--label", "place=<a lab>", "--rival", "newest=/none/wireguard"]);
    let mut child = start(&mut command);
    let pid = child.0.id();
    assert!(child.ends_within(LONG_ENOUGH), "it takes too long");
    assert!(child.0.wait().expect("it ended").success());

    let text = fs::read(output.join("report.json")).expect("a report");
    let report = penstock_bench::report::json::parse(&text).expect("a sound report");
    for subject in ["kernel", "forwarder"] {
        for quantity in
            ["TCP, 1 stream", "TCP, 4 streams", "UDP, 64 B", "UDP, 1434 B", "idle ping", "latency at 2 kpps, median"]
        {
            let samples = report.samples(subject, quantity).unwrap_or_else(|| panic!("{subject}, {quantity}"));
            assert!(samples.len() == 1 && samples[0] > 0.0, "{subject}, {quantity}: {samples:?}");
        }
    }
    for curve in ["latency at 2 kpps", "idle ping"] {
        assert_eq!(report.curves.iter().filter(|found| found.quantity == curve).count(), 2, "{curve}");
    }
    let ratio = report.samples("forwarder", "TCP, 1 stream, of kernel").expect("a ratio")[0];
    let [forwarder, kernel] =
        ["forwarder", "kernel"].map(|subject| report.samples(subject, "TCP, 1 stream").expect("measured")[0]);
    assert_eq!(ratio, forwarder / kernel);
    assert!(report.context.contains(&("place".into(), "<a lab>".into())));
    let skipped = "newest was skipped: /none/wireguard is not on this machine.";
    assert!(report.notes.iter().any(|note| note == skipped), "{:?}", report.notes);
    let told = |name: &str| &report.context.iter().find(|(found, _)| found == name).expect(name).1;
    assert_eq!(told("forwarder bound"), "lan: native XDP, copy; wan: native XDP, copy");
    assert!(told("links").starts_with("veth") && told("links").ends_with("MTU 1500"), "{}", told("links"));

    let mut rows = csv::Reader::from_path(output.join("report.csv")).expect("a table");
    let samples: Vec<csv::StringRecord> =
        rows.records().map(|row| row.expect("a row")).filter(|row| &row[0] == "sample").collect();
    assert_eq!(samples.len(), report.measures.iter().map(|measure| measure.samples.len()).sum::<usize>());
    let subjects: HashSet<&str> = samples.iter().map(|row| &row[1]).collect();
    assert_eq!(subjects, HashSet::from(["kernel", "forwarder"]));

    let page = fs::read_to_string(output.join("report.html")).expect("a page");
    for shown in ["TCP, 1 stream, Gbit/s", "UDP, 64 B, kpps", "forwarder", "<svg", "&lt;a lab&gt;"] {
        assert!(page.contains(shown), "{shown}");
    }
    let results = fs::read_to_string(results).expect("results");
    assert!(results.contains("| kernel | ") && results.contains("| forwarder | "), "{results}");
    nothing_is_left(pid, &temporary);
}

#[test]
fn a_signal_ends_it_at_once_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (signal, wait) in [(Signal::INT, 0), (Signal::TERM, 4000), (Signal::HUP, 2500)] {
        let mut child = start(compare(folder.path(), folder.path(), "50").stderr(Stdio::piped()));
        let pid = child.0.id();
        eventually(SOON, "it waits for signals", || has_signal(pid, "SigCgt", signal));
        std::thread::sleep(Duration::from_millis(wait));
        child.signal(signal);
        assert!(child.ends_within(SOON), "it goes on after {signal:?}");
        let mut said = String::new();
        child.0.stderr.take().expect("piped").read_to_string(&mut said).expect("standard error reads");
        assert!(!child.0.wait().expect("it ended").success() && said.contains("stopped by a signal"), "{said}");
        assert!(!folder.path().join("report.json").exists());
        nothing_is_left(pid, folder.path());
    }
}

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    if !ready() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let begin = || start(compare(folder.path(), folder.path(), "50").stderr(Stdio::null()));
    let killed = begin();
    let pid = killed.0.id();
    eventually(SOON, "there are namespaces", || !namespaces_of(pid).is_empty());
    std::thread::sleep(Duration::from_millis(500));
    // This sends SIGKILL.
    drop(killed);
    assert!(!namespaces_of(pid).is_empty(), "it ended by itself");
    let mut next = begin();
    eventually(SOON, "they are gone", || namespaces_of(pid).is_empty());
    next.signal(Signal::INT);
    assert!(next.ends_within(SOON));
    nothing_is_left(pid, folder.path());
}

#[test]
fn a_file_that_cannot_be_written_costs_no_measurement() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("report.csv")).expect("a folder");
    let output = compare(folder.path(), folder.path(), "50").output().expect("penstock-bench starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot write") && said.contains("report.csv"), "{said}");
}

#[test]
fn an_unknown_subject_is_refused_with_the_names() {
    let output = Command::new(BENCH).args(["compare", "--only", "openvpn"]).output().expect("penstock-bench starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("kernel") && said.contains("nebula"), "{said}");
}

fn start(command: &mut Command) -> Running {
    Running(command.spawn().expect("penstock-bench starts"))
}

fn compare(output: &Path, temporary: &Path, rounds: &str) -> Command {
    // Whatever the test was started with: SIGHUP must end it.
    let mut command = Command::new("env");
    command
        .args([
            "--default-signal=HUP",
            BENCH,
            "compare",
            "--only",
            "kernel",
            "--only",
            "forwarder",
            "--placement",
            "scheduler",
            "--seconds",
            "1",
            "--output",
        ])
        .arg(output);
    command.env("TMPDIR", temporary).stdin(Stdio::null()).stdout(Stdio::null());
    command.args(["--rounds", rounds]);
    command
}

fn namespaces_of(pid: u32) -> Vec<String> {
    let prefix = format!("penstock-lab-{pid}-");
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

/// No namespaces of the run, none of its files, and no program that it started.
fn nothing_is_left(pid: u32, temporary: &Path) {
    let namespaces = namespaces_of(pid);
    assert!(namespaces.is_empty(), "{namespaces:?}");
    let folders: Vec<_> = fs::read_dir(temporary)
        .expect("the folder")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("penstock-lab-"))
        .collect();
    assert!(folders.is_empty(), "{folders:?}");
    let mark = format!("TMPDIR={}", temporary.display());
    let programs: Vec<String> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| entry.file_name() != *std::process::id().to_string())
        .filter(|entry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .map(|entry| fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default())
        .collect();
    assert!(programs.is_empty(), "{programs:?}");
}

fn ready() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let iperf3 = Command::new("iperf3").arg("--version").output().is_ok();
    if !root || !iperf3 {
        eprintln!("skipped: a comparison needs root and iperf3");
    }
    root && iperf3
}
