//! The pipeline as its users start it: the program with its own allocator, and the files that it writes.

mod support;

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use penstock_bench::report::{Report, json};
use rustix::process::Signal;
use support::Running;

const BENCH: &str = env!("CARGO_BIN_EXE_penstock-bench");

fn pipeline(arguments: &[&str]) -> Output {
    let mut command = Command::new(BENCH);
    command.arg("pipeline").args(arguments).output().expect("it starts")
}

fn samples<'a>(report: &'a Report, subject: &str, quantity: &str) -> &'a [f64] {
    report.samples(subject, quantity).unwrap_or_else(|| panic!("no {quantity} of {subject}"))
}

#[test]
fn a_report_is_written_in_every_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let (output, csv, html) = (file("report.json"), file("report.csv"), file("report.html"));
    let output_option = output.to_str().expect("UTF-8");
    let files =
        ["--output", output_option, "--csv", csv.to_str().expect("UTF-8"), "--html", html.to_str().expect("UTF-8")];
    let few = ["--rounds", "2", "--seconds", "0.005", "--only", "64", "--only", "imix", "--only", "64"];
    let done = pipeline(&[&few[..], &files[..]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("time at IMIX, ns/packet"));

    let report = json::read(&output).expect("a report");
    // The program has the allocator that counts.
    for size in ["64 B", "IMIX"] {
        assert!(samples(&report, "encrypt: seal", &format!("time at {size}")).iter().all(|time| *time > 0.0));
        assert_eq!(samples(&report, "decrypt", &format!("allocations at {size}")), [0.0, 0.0]);
    }
    let said: Vec<&str> = report.context.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["command line", "kernel", "core", "cycles", "table"] {
        assert!(said.contains(&name), "{name} is not among {said:?}");
    }
    let page = std::fs::read_to_string(html).expect("a page");
    assert!(page.contains("time at 64 B, ns/packet") && page.contains("decrypt: ECN, next hop, TTL"));
    let rows = std::fs::read_to_string(csv).expect("rows");
    let samples: usize = report.measures.iter().map(|measure| measure.samples.len()).sum();
    assert_eq!(rows.lines().filter(|row| row.starts_with("sample,")).count(), samples);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (wrong, sentence) in [
        (["--only", "27"], "from 28 to 60000"),
        (["--seconds", "0"], "lasts up to 3 s"),
        (["--seconds", "4"], "lasts up to 3 s"),
        (["--rounds", "0"], "not in 1..=1000"),
        (["--core", "99999"], "cannot be pinned to core 99999"),
    ] {
        let refused = pipeline(&wrong);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(sentence), "{wrong:?}: {said}");
    }
}

#[test]
fn a_file_that_cannot_be_written_costs_no_measurement() {
    // If this is known before measuring, nothing is measured.
    let long = ["--rounds", "1000", "--seconds", "3"];
    for option in ["--output", "--csv", "--html"] {
        let refused = pipeline(&[&long[..], &[option, "/no/such/folder/x"]].concat());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(option) && said.contains("No such file"), "{said}");
    }
    // Otherwise the figures are still printed: /dev/full can be opened, but not written.
    let short = ["--rounds", "1", "--seconds", "0.005", "--only", "64"];
    let failed = pipeline(&[&short[..], &["--output", "/dev/full"]].concat());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && said.contains("cannot write /dev/full"), "{said}");
    assert!(String::from_utf8_lossy(&failed.stdout).contains("time at 64 B"));
}

#[test]
fn a_terminal_that_goes_ends_it_unless_it_was_told_to_go_on() {
    let start = |how: &str| {
        let mut command = Command::new("env");
        command.args([how, BENCH, "pipeline", "--rounds", "1000", "--only", "64", "--seconds", "0.1"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = Running(child.expect("starts"));
        // Its first line says that it measures.
        let mut byte = [0];
        child.0.stderr.as_mut().expect("piped").read_exact(&mut byte).expect("a step");
        child
    };
    let mut child = start("--default-signal=HUP");
    child.signal(Signal::HUP);
    assert!(child.ends_within(Duration::from_secs(10)), "it goes on");
    // By itself, not by the signal.
    assert_eq!(child.0.wait().expect("it ended").code(), Some(1));

    let mut child = start("--ignore-signal=HUP");
    child.signal(Signal::HUP);
    assert!(!child.ends_within(Duration::from_secs(1)), "it ended");
    // Nobody reads what it says any more.
    drop(child.0.stderr.take());
    assert!(!child.ends_within(Duration::from_secs(4)), "it ended");
    child.signal(Signal::TERM);
    assert!(child.ends_within(Duration::from_secs(10)), "it goes on");
    assert_eq!(child.0.wait().expect("it ended").code(), Some(1));
}
