//! The progress of a measurement, on standard error: a bar on a terminal, otherwise one line per step.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _, stderr};
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// How often the bar is redrawn without an event, because the remaining time changes.
const TICK: Duration = Duration::from_millis(500);

/// A measurement's progress. Dropping it removes the bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    on_terminal: bool,
}

impl Progress {
    /// For a measurement of this many steps that take about the same time each.
    pub fn new(steps: u64) -> Progress {
        Progress::on(steps, stderr().is_terminal())
    }

    fn on(steps: u64, on_terminal: bool) -> Progress {
        let target = if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        // Writing to a string cannot fail.
        let key = |state: &ProgressState, line: &mut dyn Write| _ = line.write_str(&left(state.pos(), state.eta()));
        if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {pos} of {len}{left}: {wide_msg}") {
            bar.set_style(style.with_key("left", key).progress_chars("=> "));
        }
        if on_terminal {
            bar.enable_steady_tick(TICK);
        }
        Progress { bar, on_terminal }
    }

    /// Shows what is measured now; the step before is done.
    pub fn begin(&self, what: &str) {
        if !self.bar.message().is_empty() {
            self.bar.inc(1);
        }
        self.bar.set_message(what.to_owned());
        if !self.on_terminal {
            print(&self.line());
        }
    }

    /// Skips this many steps.
    pub fn skip(&self, steps: u64) {
        self.bar.inc(steps);
    }

    /// Prints a sentence that stays on the screen.
    pub fn say(&self, sentence: &str) {
        self.bar.suspend(|| print(sentence));
    }

    fn line(&self) -> String {
        let of = self.bar.length().unwrap_or(0);
        format!("{} of {of}: {}", self.bar.position() + 1, self.bar.message())
    }
}

/// ", 5m left"; empty before the first step is done, when it is unknown.
fn left(done: u64, time: Duration) -> String {
    match done {
        0 => String::new(),
        _ => format!(", {:#} left", HumanDuration(time)),
    }
}

/// The terminal may be gone, which must not end the measurement.
fn print(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_told_when_it_is_known() {
        assert_eq!(left(0, Duration::ZERO), "");
        assert_eq!(left(2, Duration::from_secs(300)), ", 5m left");
    }

    #[test]
    fn steps_are_counted_from_one() {
        let progress = Progress::on(3, false);
        progress.begin("round 1, kernel");
        assert_eq!(progress.line(), "1 of 3: round 1, kernel");
        progress.begin("round 1, forwarder");
        assert_eq!(progress.line(), "2 of 3: round 1, forwarder");
    }
}
