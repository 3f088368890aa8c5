//! The program as people use it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use penstock_bench::report::{Report, json};
use rustix::process::Signal;

use super::alone;
use super::support::Running;

const BENCH: &str = env!("CARGO_BIN_EXE_penstock-bench");

fn wire(words: &str) -> Command {
    let mut command = Command::new(BENCH);
    command.arg("wire").args(words.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(output: &[u8]) -> Report {
    json::parse(output).expect("a report")
}

fn sample(report: &Report, subject: &str, quantity: &str) -> f64 {
    *report.samples(subject, quantity).unwrap_or_else(|| panic!("{quantity} of {subject}")).first().expect("a sample")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_measures_its_own_forwarder_both_ways_in_both_families() {
    let Some(_alone) = alone() else { return };
    for family in ["", " --ipv6"] {
        let words = "--self-test --bidirectional --flows 6 --hosts 3 --frames imix --rate 2400 --trial 0.5 --wait 0.5";
        let output = wire(&format!("{words} --no-ceiling --json{family}")).output().expect("it starts");
        assert!(output.status.success(), "{}", said(&output));
        let report = report(&output.stdout);
        for subject in ["IMIX, forth", "IMIX, back"] {
            let of = |quantity| sample(&report, subject, quantity);
            assert_eq!((of("Sent"), of("Not sent in time")), (1200.0, 0.0));
            assert!(of("Lost") <= of("Sent in bursts by a late generator"), "{:?}", report.measures);
            assert_eq!(of("Received, distinct") + of("Lost"), 1200.0);
            assert_eq!((of("Duplicates"), of("Reordered"), of("Corrupt")), (0.0, 0.0, 0.0));
            assert!(of("Latency, 50 %") > 0.0);
            assert!(report.curves.iter().any(|curve| curve.subject == subject));
        }
    }
}

#[test]
fn below_its_stated_ceiling_the_tool_loses_nothing() {
    let Some(_alone) = alone() else { return };
    let words = "--self-test --tests tool --frames 64 --trial 0.3 --duration-sum 1 --rounds 2 --wait 0.5 --json";
    let output = wire(words).output().expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
    let report = report(&output.stdout);
    let of = |quantity: &str| report.samples("64 B", quantity).unwrap_or_else(|| panic!("{quantity}: {report:?}"));
    assert!(of("Tool's own ceiling (bare veth, no loss)")[0] > 0.0);
    // Other work on the machine may take the sink's core away in one round, but not in each.
    for what in ["without a device", "by the sink"] {
        let parts = of(&format!("Lost {what} at 90 % of the tool's ceiling"));
        assert!(parts.len() == 2 && parts.contains(&0.0), "{what}: {parts:?}");
    }
}

#[test]
fn without_sizes_there_are_some_that_fit() {
    let Some(_alone) = alone() else { return };
    for (family, shortest) in [("", "64 B"), (" --ipv6", "82 B")] {
        let words = "--self-test --rate 1000 --trial 0.1 --wait 0.5 --no-ceiling --json";
        let output = wire(&format!("{words}{family}")).output().expect("it starts");
        assert!(output.status.success(), "{}", said(&output));
        let report = report(&output.stdout);
        for subject in [shortest, "512 B", "1518 B", "IMIX"] {
            assert_eq!(sample(&report, subject, "Sent"), 100.0);
        }
    }
}

#[test]
fn a_generator_that_stands_still_shows_as_latency_and_is_told() {
    let Some(_alone) = alone() else { return };
    let words = "--self-test --frames 64 --rate 2000 --trial 2 --settle 0 --wait 0.5 --no-ceiling --json";
    let mut child = Running(wire(words).spawn().expect("it starts"));
    let mut progress = BufReader::new(child.0.stderr.take().expect("piped"));
    let mut line = String::new();
    progress.read_line(&mut line).expect("standard error reads");
    assert!(line.contains("2000 packets/s"), "{line}");
    // Well inside the trial, even if its threads take their time to start.
    std::thread::sleep(Duration::from_millis(700));
    let (least, _) = child.stall();
    let mut printed = vec![];
    child.0.stdout.take().expect("piped").read_to_end(&mut printed).expect("standard output reads");
    let report = report(&printed);
    let of = |quantity| sample(&report, "64 B", quantity);
    // The packets carry the schedule's time: the first one that was due in the stall waited for all of it. Queues may
    // lose some of the burst afterwards, so a fifth is allowed for; a time taken when sending would show nothing.
    let expected = least.as_micros() as f64 * 0.8;
    assert!(of("Latency, highest") > expected, "{:?}", report.measures);
    assert!(of("Latency: generator's lateness, highest") > expected, "{:?}", report.measures);
    assert!(of("Sent in bursts by a late generator") > 0.0);
    assert_eq!(of("Sent"), 4000.0);
    assert!(report.notes.iter().any(|note| note.contains("the generator was held up")), "{:?}", report.notes);
}

#[test]
fn an_interrupt_ends_it_at_once() {
    let Some(_alone) = alone() else { return };
    let mut child =
        Running(wire("--self-test --frames 64 --rate 1000 --trial 30 --no-ceiling").spawn().expect("it starts"));
    let mut progress = BufReader::new(child.0.stderr.take().expect("piped"));
    let mut line = String::new();
    progress.read_line(&mut line).expect("standard error reads");
    std::thread::sleep(Duration::from_millis(300));
    child.signal(Signal::INT);
    let start = Instant::now();
    let status = child.0.wait().expect("it ends");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(1));
    line.clear();
    progress.read_to_string(&mut line).expect("standard error reads");
    assert!(line.contains("interrupted"), "{line}");
}

#[test]
fn wrong_arguments_are_one_clear_sentence() {
    let Some(_alone) = alone() else { return };
    for (words, sentence) in [
        ("--from no-such-device --to nowhere:eth0 --json", "there is no network namespace \"nowhere\""),
        ("--from lo --to lo", "the same interface"),
        ("--self-test --frames 64 --ipv6", "frames have 82 to 1796 bytes here"),
        ("--self-test --frames 9000", "frames have 64 to 1796 bytes here"),
        ("--self-test --max-rate 100000000 --trial 3600", "can be told apart"),
        ("--self-test --frames 63,imix,x", "\"x\" is not a frame size"),
        ("--self-test --min-rate 10 --max-rate 9", "--min-rate is above --max-rate"),
        ("--self-test --cores 0,0,0", "--cores names 3 cores"),
    ] {
        let output = wire(words).output().expect("it starts");
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(said(&output).contains(sentence), "{words}: {}", said(&output));
        assert_eq!(said(&output).lines().count(), 1, "{words}: {}", said(&output));
    }
}
