//! `penstock-bench report` on files.

mod support;

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use penstock_bench::report::{Better, Measure, Report, json};
use rustix::process::Signal;
use support::Running;

const BENCH: &str = env!("CARGO_BIN_EXE_penstock-bench");

#[test]
fn a_slower_report_is_noticed_and_a_like_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = file(folder.path(), "old", &[10.0, 10.1, 9.9, 10.2, 10.3]);
    let like = file(folder.path(), "like", &[10.15, 9.95, 10.05, 10.25, 9.85]);
    let slower = file(folder.path(), "slower", &[8.0, 8.1, 7.9, 8.2, 8.3]);
    let diff = |new: &Path, more: &[&str]| report(&["diff", &text(&old), &text(new)], more);

    let output = diff(&slower, &[]);
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.lines().any(|line| line.contains("TCP") && line.ends_with("slower")), "{printed}");
    assert_eq!(diff(&slower, &["--fail-if-slower"]).status.code(), Some(3));

    let output = diff(&like, &["--fail-if-slower"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("no difference beyond the noise"));
    // Five rounds are too few for a risk of one in a thousand.
    let output = diff(&slower, &["--fail-if-slower", "--confidence", "99.9"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("needs 7 rounds"));
}

#[test]
fn a_report_is_shown_in_every_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = file(folder.path(), "one", &[1.0, 2.0, 3.0]);
    let [html, csv, svg] = ["html", "csv", "svg"].map(|ending| folder.path().join(ending));
    let shown = report(&["show", &text(&file)], &[]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("2.00"));
    assert!(report(&["show", &text(&file), "--html", &text(&html), "--csv", &text(&csv)], &[]).status.success());
    assert!(report(&["picture", &text(&file), "--svg", &text(&svg)], &[]).status.success());
    for (file, holds) in [(&html, "penstock-auto"), (&csv, "Gbit/s"), (&svg, "penstock-auto")] {
        assert!(fs::read_to_string(file).expect("written").contains(holds), "{}", file.display());
    }
}

#[test]
fn a_quantity_that_is_not_there_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, svg) = (file(folder.path(), "one", &[1.0]), folder.path().join("svg"));
    let more = ["--quantity", "TCP, 1 stream", "--quantity", "nosuch"];
    let output = report(&["picture", &text(&file), "--svg", &text(&svg)], &more);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("\"nosuch\"") && said.contains("\"TCP, 1 stream\""), "{said}");
    assert!(!svg.exists());
}

#[test]
fn what_is_no_report_is_one_clear_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.json");
    fs::write(&broken, "{\"Version\":1,\"Tit").expect("written");
    for file in [broken, folder.path().join("missing.json")] {
        let output = report(&["show", &text(&file)], &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains(&text(&file)) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_signal_ends_what_waits_for_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, signal) in [("INT", Signal::INT), ("TERM", Signal::TERM), ("HUP", Signal::HUP)] {
        // A pipe for each: a process that another test is starting may still hold the other end of the last one.
        let pipe = folder.path().join(name);
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo starts").success());
        // Whatever signals the test was started with.
        let mut command = Command::new("env");
        command.args([&format!("--default-signal={name}"), BENCH, "report", "show"]).arg(&pipe);
        let mut child = Running(command.stdin(Stdio::null()).spawn().expect("penstock-bench starts"));
        let _writer = writer(&pipe);
        child.signal(signal);
        assert!(child.ends_within(Duration::from_secs(5)), "it goes on after SIG{name}");
    }
}

/// Opens the other end of the pipe as soon as somebody has opened this one.
fn writer(pipe: &Path) -> fs::File {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(pipe) {
            Ok(file) => return file,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn file(folder: &Path, name: &str, samples: &[f64]) -> PathBuf {
    let mut report = Report::new("Comparison", vec![]);
    report.measures.push(Measure::new("penstock-auto", "TCP, 1 stream", "Gbit/s", Better::Higher, samples.into()));
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, json::write(&report).expect("sound")).expect("written");
    path
}

fn report(arguments: &[&str], more: &[&str]) -> Output {
    Command::new(BENCH).arg("report").args(arguments).args(more).output().expect("penstock-bench starts")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
