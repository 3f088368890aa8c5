//! `penstock-bench compare`.

use std::fs;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::laboratory::compare::{self, Options, Placement, Subject, markdown, subject};
use crate::report::{Report, html, json, table};
use anyhow::Context;
use clap::Args;

use super::output::{rows, try_to_write, writable, write};
use super::print_text;

/// A run with more rounds would take days.
const MOST_ROUNDS: i64 = 100;
/// A longer measurement yields nothing new.
const MOST_SECONDS: i64 = 600;
/// The files of a comparison, in the requested folder.
const JSON: &str = "report.json";
const CSV: &str = "report.csv";
const PAGE: &str = "report.html";

#[derive(Args)]
pub(super) struct Compare {
    /// Measure only this gateway; may be repeated
    #[arg(long, value_name = "NAME", value_parser = subject::NAMES)]
    only: Vec<String>,
    /// How often everything is measured; a verdict on two reports needs at least 4
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=MOST_ROUNDS))]
    rounds: u16,
    /// How long one measurement lasts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=MOST_SECONDS))]
    seconds: u16,
    /// Another userspace WireGuard, started as PATH -f wg0; a known name replaces that gateway; may be repeated
    #[arg(long, value_name = "NAME=PATH", value_parser = subject::rival)]
    rival: Vec<Subject>,
    /// Where the gateways run: where the scheduler puts them, on a core each, or whichever is better for each figure
    #[arg(long, value_enum, default_value_t)]
    placement: Choice,
    /// The congestion control of the hosts' TCP, whatever this machine's default is
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    congestion_control: String,
    /// Where report.json, report.csv and report.html go
    #[arg(long, value_name = "DIR", default_value = "penstock-compare")]
    output: PathBuf,
    /// Write the tables as Markdown here too
    #[arg(long, value_name = "FILE", value_parser = writable())]
    results: Option<PathBuf>,
    /// A line about the machine or the build for the report, such as "instance=c7gn.large"; may be repeated
    #[arg(long, value_name = "NAME=TEXT", value_parser = label)]
    label: Vec<(String, String)>,
    /// The penstock to measure; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    penstock: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Choice {
    #[default]
    Best,
    Scheduler,
    Pinned,
}

pub(super) fn run(options: &Compare, stop: &AtomicBool) -> anyhow::Result<()> {
    let bench = std::env::current_exe().context("cannot find this program")?;
    let penstock = options.penstock.clone().unwrap_or_else(|| bench.with_file_name("penstock"));
    let mut subjects = subject::ALL.to_vec();
    subjects.retain(|subject| options.only.is_empty() || options.only.iter().any(|name| *name == subject.name));
    for rival in &options.rival {
        subjects.retain(|subject| subject.name != rival.name);
        subjects.push(rival.clone());
    }
    // Better to fail before an hour of measuring than after it.
    fs::create_dir_all(&options.output).with_context(|| format!("cannot make {}", options.output.display()))?;
    for name in [JSON, CSV, PAGE] {
        let file = options.output.join(name);
        try_to_write(&file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut report = compare::run(
        &Options {
            subjects,
            rounds: options.rounds.into(),
            duration: Duration::from_secs(options.seconds.into()),
            placements: match options.placement {
                Choice::Best => Placement::ALL.into(),
                Choice::Scheduler => vec![Placement::Scheduler],
                Choice::Pinned => vec![Placement::Pinned],
            },
            congestion_control: options.congestion_control.clone(),
            bench,
            penstock,
        },
        stop,
    )?;
    report.context.extend(options.label.iter().cloned());
    // Files first: whoever reads the tables may be gone by then.
    let saved = save(&report, options);
    print_text(&table::render(&report))?;
    saved
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, text) = text.split_once('=').ok_or("a label looks like name=text")?;
    Ok((name.into(), text.into()))
}

fn save(report: &Report, options: &Compare) -> anyhow::Result<()> {
    let page = options.output.join(PAGE);
    write(&options.output.join(JSON), json::write(report)?.as_bytes())?;
    write(&options.output.join(CSV), &rows(report)?)?;
    write(&page, html::render(report).as_bytes())?;
    if let Some(file) = &options.results {
        write(file, markdown::render(report).as_bytes())?;
    }
    let _ = writeln!(stderr(), "the page: {}", page.display());
    Ok(())
}
