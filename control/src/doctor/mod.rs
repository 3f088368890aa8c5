//! What on this machine stands in the gateway's way, and the command that fixes it: `penstock doctor`.
//!
//! ```text
//!   /proc, /sys, netlink, profile, running gateway ──gather──► Facts ──checks──► Findings ─► words, JSON
//! ```
//! Gathering reads and never changes anything. The checks are pure functions of the facts. [`Report`] is a contract
//! (docs/doctor.md).

mod checks;
mod clock;
mod facts;
mod gather;
mod placement;
mod spread;

use std::fmt::Write as _;

use serde::Serialize;

pub use checks::check;
pub use facts::{Facts, Running};
pub use gather::gather;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The gateway works, though slower or less reliably than it could.
    Warning,
    /// The gateway does not start, or does not forward.
    Error,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: an interface, a file, a setting.
    pub subject: String,
    /// What is wrong.
    pub sentence: String,
    /// A command line that fixes it.
    pub command: String,
}

/// What `doctor` has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// The profile's file.
    pub profile: String,
    /// Whether its gateway runs; `None` if that is unknown.
    pub running: Option<bool>,
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What could not be seen: sentences.
    pub unseen: Vec<String>,
}

impl Report {
    /// Looks at the facts.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        Self {
            profile: facts.file.path.display().to_string(),
            running: match facts.gateway {
                Running::Unknown => None,
                Running::No => Some(false),
                Running::Yes(_) => Some(true),
            },
            findings: check(facts),
            unseen: facts.unseen.clone(),
        }
    }

    /// The worst of the findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// For people, with line ends.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for Finding { severity, subject, sentence, command } in &self.findings {
            let severity = if *severity == Severity::Error { "error" } else { "warning" };
            // An error in the profile begins with its place in it.
            let what = if sentence.starts_with(subject) { "" } else { &format!("{subject}: ") };
            // A question has its mark already.
            let end = if sentence.ends_with('?') { "" } else { "." };
            let _ = writeln!(text, "{severity}: {what}{sentence}{end}\n    {command}");
        }
        for sentence in &self.unseen {
            let _ = writeln!(text, "not seen: {sentence}.");
        }
        if self.findings.is_empty() {
            text.push_str("Nothing is wrong as far as can be seen.\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_does_not_end_with_a_full_stop() {
        let finding = |sentence: &str| Finding {
            severity: Severity::Error,
            subject: "profile".into(),
            sentence: sentence.into(),
            command: "edit it".into(),
        };
        let findings = vec![finding("there is no such field; did you mean Name?"), finding("it is empty")];
        let text = Report { profile: String::new(), running: None, findings, unseen: Vec::new() }.render();
        assert!(text.contains("did you mean Name?\n"), "{text}");
        assert!(text.contains("profile: it is empty.\n"), "{text}");
    }
}
