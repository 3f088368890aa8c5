//! Where a report goes: to the terminal and to files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::report::{Report, csv, html, json, table};
use anyhow::Context;
use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};

use super::print_text;

/// What a command that measures does with its report.
#[derive(Args)]
pub(super) struct Output {
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
    /// Write the report's JSON here too
    #[arg(long, value_name = "FILE", value_parser = writable())]
    output: Option<PathBuf>,
    /// Write a row a sample here
    #[arg(long, value_name = "FILE", value_parser = writable())]
    csv: Option<PathBuf>,
    /// Write the report as a page here
    #[arg(long, value_name = "FILE", value_parser = writable())]
    html: Option<PathBuf>,
}

impl Output {
    /// Writes the files, then prints: whoever reads the tables may have gone. What cannot be written is no reason to
    /// keep the figures back.
    pub(super) fn show(&self, report: &Report) -> anyhow::Result<()> {
        let text = json::write(report)?;
        let written = self.write(report, &text);
        print_text(&if self.json { text } else { table::render(report) })?;
        written
    }

    fn write(&self, report: &Report, text: &str) -> anyhow::Result<()> {
        if let Some(file) = &self.output {
            write(file, text.as_bytes())?;
        }
        if let Some(file) = &self.csv {
            write(file, &rows(report)?)?;
        }
        if let Some(file) = &self.html {
            write(file, html::render(report).as_bytes())?;
        }
        Ok(())
    }
}

/// For a path of the command line that is written to in the end: tried before anything is measured.
pub(super) fn writable() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match try_to_write(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(format!("cannot write it: {error}")),
    })
}

/// Can the file be written? What is there stays as it is.
pub(super) fn try_to_write(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // Whoever waits at the other end of a pipe would take our look for the whole of it.
        Ok(found) if !found.is_file() && !found.is_dir() => Ok(()),
        Ok(_) => fs::OpenOptions::new().append(true).open(path).map(drop),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::OpenOptions::new().write(true).create_new(true).open(path)?;
            fs::remove_file(path)
        }
        Err(error) => Err(error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written_is_found_out_and_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "a report").expect("written");
        try_to_write(&path("old")).expect("it can");
        assert_eq!(fs::read(path("old")).expect("there"), b"a report");
        try_to_write(&path("new")).expect("it can");
        assert!(!path("new").exists());
        try_to_write(Path::new("/dev/null")).expect("it can");
        for wrong in [path("no/such"), path("old/below"), path("."), PathBuf::new()] {
            assert!(try_to_write(&wrong).is_err(), "{}", wrong.display());
        }
    }
}
