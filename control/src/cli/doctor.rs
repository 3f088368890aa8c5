//! `doctor`: what on this machine stands in the gateway's way.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::environment;
use crate::doctor::{Report, Severity, gather};

/// Exit codes: nothing found, warnings, errors.
const SOUND: u8 = 0;
const WARNINGS: u8 = 1;
const ERRORS: u8 = 2;

pub(super) fn doctor(profile: &Path, json: bool) -> ExitCode {
    let report = Report::of(&gather(profile, &environment(profile)));
    let text = if json { serde_json::to_string_pretty(&report).map(|text| text + "\n") } else { Ok(report.render()) };
    let written = text.map_err(Into::into).and_then(|text| std::io::stdout().write_all(text.as_bytes()));
    match (written, report.worst()) {
        // The reader of our output may have closed the pipe.
        (Err(_), _) | (_, Some(Severity::Error)) => ERRORS.into(),
        (_, Some(Severity::Warning)) => WARNINGS.into(),
        (_, None) => SOUND.into(),
    }
}
