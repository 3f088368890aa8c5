//! Where a report goes: to the terminal and to files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use penstock_bench::report::{Report, csv, html, json, table};

use super::print_text;

/// What a command that measures does with its report.
#[derive(Args)]
pub(super) struct Output {
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
    /// Write the report's JSON here too
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a row a sample here
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the report as a page here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Output {
    /// Writes the files, then prints: whoever reads the tables may have gone.
    pub(super) fn show(&self, report: &Report) -> anyhow::Result<()> {
        let text = json::write(report)?;
        if let Some(file) = &self.output {
            write(file, text.as_bytes())?;
        }
        if let Some(file) = &self.csv {
            write(file, &rows(report)?)?;
        }
        if let Some(file) = &self.html {
            write(file, html::render(report).as_bytes())?;
        }
        print_text(&if self.json { text } else { table::render(report) })
    }
}

/// The report as CSV.
pub(super) fn rows(report: &Report) -> anyhow::Result<Vec<u8>> {
    let mut rows = Vec::new();
    csv::write(report, &mut rows)?;
    Ok(rows)
}

/// Writes a file whole.
pub(super) fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}
