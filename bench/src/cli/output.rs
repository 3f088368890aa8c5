//! Where a report goes: to the terminal and to files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::report::{Report, csv, html, json, table};
use anyhow::Context;
use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};

use super::print_text;

/// Where a command that measures puts its report.
#[derive(Args)]
pub(super) struct Output {
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
    /// Also write the report's JSON here
    #[arg(long, value_name = "FILE", value_parser = writable())]
    output: Option<PathBuf>,
    /// Write the samples here as CSV, a row each
    #[arg(long, value_name = "FILE", value_parser = writable())]
    csv: Option<PathBuf>,
    /// Write the report here as a web page
    #[arg(long, value_name = "FILE", value_parser = writable())]
    html: Option<PathBuf>,
}

impl Output {
    /// Writes the files, then prints, because the reader of the tables may be gone. A file that cannot be written does
    /// not keep the figures from being printed.
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

/// For a path on the command line that is only written to at the end: whether it can be is checked before anything is
/// measured.
pub(super) fn writable() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match try_to_write(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(format!("cannot write it: {error}")),
    })
}

/// Checks that the file can be written. Existing contents are kept.
pub(super) fn try_to_write(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        // Opening and closing a pipe would look like the end of the output to its reader.
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

/// Writes a whole file.
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
