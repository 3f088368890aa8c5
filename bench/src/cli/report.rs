//! `penstock-bench report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::report::verdict::rank_sum::Confidence;
use crate::report::verdict::{self, Verdict};
use crate::report::{Report, html, json, plot, table};
use anyhow::Context;
use clap::{Args, Subcommand};

use super::output::{rows, write};
use super::print_text;

/// The exit code of `--fail-if-slower`; 1 and 2 are errors.
const SLOWER: u8 = 3;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print a report, or write it in another form
    Show(Show),
    /// Compare two reports by a rule that knows the noise
    Diff(Diff),
    /// Draw bars from a report as a picture for another page
    Picture(Picture),
}

#[derive(Args)]
pub(super) struct Show {
    /// A report's JSON
    file: PathBuf,
    /// Write the page here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the samples here as CSV, a row each
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Diff {
    /// The report to compare with
    old: PathBuf,
    /// The report to judge
    new: PathBuf,
    /// How sure a verdict must be, in percent
    #[arg(long, value_enum, default_value = "95")]
    confidence: Confidence,
    /// Exit with 3 if anything is slower
    #[arg(long)]
    fail_if_slower: bool,
}

#[derive(Args)]
pub(super) struct Picture {
    /// A report's JSON
    file: PathBuf,
    /// Write the picture here
    #[arg(long, value_name = "FILE")]
    svg: PathBuf,
    /// Only this quantity; may be repeated; without it all throughputs
    #[arg(long, value_name = "NAME")]
    quantity: Vec<String>,
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Show(options) => show(&options).map(|()| ExitCode::SUCCESS),
        Command::Diff(options) => diff(&options),
        Command::Picture(options) => picture(&options).map(|()| ExitCode::SUCCESS),
    }
}

fn show(options: &Show) -> anyhow::Result<()> {
    let report = read(&options.file)?;
    if let Some(file) = &options.html {
        write(file, html::render(&report).as_bytes())?;
    }
    if let Some(file) = &options.csv {
        write(file, &rows(&report)?)?;
    }
    if options.html.is_none() && options.csv.is_none() {
        print_text(&table::render(&report))?;
    }
    Ok(())
}

fn diff(options: &Diff) -> anyhow::Result<ExitCode> {
    let comparison = verdict::compare(&read(&options.old)?, &read(&options.new)?, options.confidence)
        .with_context(|| format!("{} and {}", options.old.display(), options.new.display()))?;
    print_text(&comparison.render())?;
    let failed = options.fail_if_slower && comparison.count(Verdict::Slower) > 0;
    Ok(if failed { ExitCode::from(SLOWER) } else { ExitCode::SUCCESS })
}

fn picture(options: &Picture) -> anyhow::Result<()> {
    let report = read(&options.file)?;
    let picture = plot::picture(&report, &options.quantity)?;
    write(&options.svg, picture.standalone(&report.title).as_bytes())
}

fn read(file: &Path) -> anyhow::Result<Report> {
    json::read(file).with_context(|| file.display().to_string())
}
