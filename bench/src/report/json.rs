//! A report as a file. It may come from anywhere, so its size is limited and its contents are checked.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Report;
use super::check::Invalid;

/// The size of the largest file that is read, in bytes: a thousand times a large report.
pub const MOST_BYTES: usize = 16 << 20;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read {0}")]
    File(PathBuf, #[source] io::Error),
    /// It is not a regular file.
    #[error("it is larger than the {MOST_BYTES} bytes of the largest report")]
    TooLong,
    /// It does not contain a report.
    #[error("it is not a report of penstock-bench")]
    Format(#[from] serde_json::Error),
    /// The report breaks a promise of its types.
    #[error("it is not a valid report")]
    Invalid(#[from] Invalid),
}

/// Writes a report as one line.
///
/// # Errors
/// [`ReadError::Invalid`] if it could not be read back.
pub fn write(report: &Report) -> Result<String, ReadError> {
    report.check()?;
    let mut text = serde_json::to_string(report)?;
    text.push('\n');
    Ok(text)
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// Why it cannot be read.
pub fn parse(bytes: &[u8]) -> Result<Report, ReadError> {
    if bytes.len() > MOST_BYTES {
        return Err(ReadError::TooLong);
    }
    let report: Report = serde_json::from_slice(bytes)?;
    report.check()?;
    Ok(report)
}

/// Reads a file.
///
/// # Errors
/// Why it cannot be read.
pub fn read(path: &Path) -> Result<Report, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| ReadError::File(path.into(), error))?;
    parse(&bytes)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_report_survives_its_file() {
        let mut report = sample::report();
        // A quick parser would round away these digits.
        report.measures[0].samples = (1..1000).map(|n| 1.0 / f64::from(n)).collect();
        report.measures[1].rounds = vec![1, 2, 4];
        let text = write(&report).expect("sound");
        assert_eq!(text.matches("\"Rounds\"").count(), 1, "only where one is missing");
        assert_eq!(parse(text.as_bytes()).expect("a report"), report);
    }

    #[test]
    fn what_cannot_be_read_back_is_not_written() {
        let mut report = sample::report();
        report.measures[0].samples[0] = f64::INFINITY;
        assert!(matches!(write(&report), Err(ReadError::Invalid(_))));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let text = write(&sample::report()).expect("sound");
        let refused = |text: &str| format!("{:#}", anyhow::Error::new(parse(text.as_bytes()).expect_err("refused")));
        assert!(refused("").contains("not a report of"));
        assert!(refused(&text.replace("\"Notes\"", "\"Nodes\"")).contains("not a report of"));
        assert!(refused(&text.replace("11.9", "1e999")).contains("not a report of"));
        assert!(refused(&text.replace("11.9", "null")).contains("not a report of"));
        assert!(refused(&text.replace("11.9", "-1e300")).contains("not a valid report"));
        let old = refused(&text.replace("\"Version\":1", "\"Version\":2"));
        assert_eq!(old.matches("version 2").count(), 1, "{old}");
        assert!(refused(&" ".repeat(MOST_BYTES + 1)).contains("larger than"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/no/such/report.json")).expect_err("not there");
        assert!(error.to_string().contains("/no/such/report.json"));
    }
}
