//! What is wrong, under a name: since when, when it is tried again, and what an administrator can do.
//!
//! A failed operation becomes a problem and is retried with exponential back-off; it ends nothing and hides nothing. A
//! condition that cannot be retried from here (two networks numbered alike) is a problem too, as long as it lasts. Time
//! is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Time to the first retry of an operation that failed. Each further failure doubles it.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest time between two attempts.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// A problem as `penstock status --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Problem {
    /// What it is about: a prefix, an interface, a file, a setting. Each subject has at most one problem.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub sentence: String,
    /// What an administrator can do about it.
    pub what_to_do: String,
    /// How bad it is.
    pub severity: Severity,
    /// Seconds since it was first seen.
    pub since_seconds: u64,
    /// Seconds until it is tried again; `None`: when something changes.
    pub next_try_seconds: Option<u64>,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Error,
    /// A consequence of the profile that somebody may not want. It does not make the gateway unhealthy.
    Warning,
}

/// Problems by subject.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    sentence: String,
    what_to_do: String,
    severity: Severity,
    since: Instant,
    /// When to retry, and how long the wait was before that.
    retry: Option<(Instant, Duration)>,
}

impl Problems {
    /// A condition that lasts until somebody changes something.
    pub fn note(&mut self, now: Instant, subject: &str, sentence: &str, what_to_do: &str) {
        self.set(now, subject, sentence, what_to_do, None);
    }

    /// A consequence of what the profile demands.
    pub fn warn(&mut self, now: Instant, subject: &str, sentence: &str, what_to_do: &str) {
        self.note(now, subject, sentence, what_to_do);
        if let Some(entry) = self.entries.get_mut(subject) {
            entry.severity = Severity::Warning;
        }
    }

    /// An operation that is worth retrying has failed. Each failure doubles the wait.
    pub fn failed(&mut self, now: Instant, subject: &str, sentence: &str, what_to_do: &str) {
        let last = self.entries.get(subject).and_then(|entry| entry.retry);
        let wait = last.map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LONGEST_RETRY));
        self.set(now, subject, sentence, what_to_do, Some((now + wait, wait)));
    }

    fn set(
        &mut self,
        now: Instant,
        subject: &str,
        sentence: &str,
        what_to_do: &str,
        retry: Option<(Instant, Duration)>,
    ) {
        let entry = self.entries.entry(subject.to_owned()).or_insert_with(|| {
            tracing::warn!("{subject}: {sentence}");
            let severity = Severity::Error;
            Entry { sentence: String::new(), what_to_do: String::new(), severity, since: now, retry: None }
        });
        entry.severity = Severity::Error;
        sentence.clone_into(&mut entry.sentence);
        what_to_do.clone_into(&mut entry.what_to_do);
        entry.retry = retry;
    }

    /// Whether it is time to try this again; also true of what has never failed.
    #[must_use]
    pub fn may_try(&self, now: Instant, subject: &str) -> bool {
        let retry = self.entries.get(subject).and_then(|entry| entry.retry);
        retry.is_none_or(|(at, _)| at <= now)
    }

    /// The problem is gone.
    pub fn solved(&mut self, subject: &str) {
        if self.entries.remove(subject).is_some() {
            tracing::info!("{subject}: resolved");
        }
    }

    /// All problems are gone, except those with these subjects.
    pub fn solved_all_but(&mut self, subjects: &BTreeSet<String>) {
        self.entries.retain(|subject, _| {
            let stays = subjects.contains(subject);
            if !stays {
                tracing::info!("{subject}: resolved");
            }
            stays
        });
    }

    /// Retries at once what has failed, because something has changed that may have been the cause.
    pub fn try_now(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if let Some((at, _)) = &mut entry.retry {
                *at = now;
            }
        }
    }

    /// When the next failed operation is to be retried.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.retry).map(|(at, _)| at).min()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All problems, for people and machines to read.
    #[must_use]
    pub fn list(&self, now: Instant) -> Vec<Problem> {
        let problem = |(subject, entry): (&String, &Entry)| Problem {
            subject: subject.clone(),
            sentence: entry.sentence.clone(),
            what_to_do: entry.what_to_do.clone(),
            severity: entry.severity,
            since_seconds: now.saturating_duration_since(entry.since).as_secs(),
            next_try_seconds: entry.retry.map(|(at, _)| at.saturating_duration_since(now).as_secs()),
        };
        self.entries.iter().map(problem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_ever_more_rarely_and_forgotten_when_solved() {
        let start = Instant::now();
        let mut problems = Problems::default();
        assert!(problems.may_try(start, "route"));
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..14 {
            problems.failed(now, "route", "it is refused", "wait");
            let next = problems.poll_timeout().unwrap();
            assert!(!problems.may_try(next - Duration::from_millis(1), "route") && problems.may_try(next, "route"));
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits[..3], [FIRST_RETRY, FIRST_RETRY * 2, FIRST_RETRY * 4]);
        assert_eq!(waits[13], LONGEST_RETRY);
        let listed = problems.list(now);
        assert_eq!(listed[0].since_seconds, (now - start).as_secs());
        problems.solved("route");
        assert!(problems.is_empty() && problems.poll_timeout().is_none());
        problems.failed(now, "route", "it is refused", "wait");
        assert_eq!(problems.poll_timeout(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn status_shows_problems_in_pascal_case() {
        let now = Instant::now();
        let mut problems = Problems::default();
        problems.note(now, "10.1.0.0/16", "is here too", "renumber");
        let json = serde_json::to_value(problems.list(now)).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{
                "Subject": "10.1.0.0/16", "Sentence": "is here too", "WhatToDo": "renumber", "Severity": "error",
                "SinceSeconds": 0, "NextTrySeconds": null
            }])
        );
    }
}
