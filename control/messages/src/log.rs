//! A program's log on standard error. systemd's journal gets each line's priority in front of it (sd-daemon(3)), and
//! keeps the time itself; a file or terminal gets the time instead.

use std::env;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::anyhow;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, format};
use tracing_subscriber::registry::LookupSpan;

/// What is logged by default.
const DEFAULT_FILTER: &str = "info";

/// The priority of an error (syslog(3)).
const ERROR: u8 = 3;

/// Starts logging to standard error what passes the filter, which is `RUST_LOG` or informational messages by default.
///
/// # Errors
/// It is not a filter.
pub fn log_to_stderr(filter: Option<&str>) -> anyhow::Result<()> {
    let given = filter.map(str::to_owned).or_else(|| env::var("RUST_LOG").ok());
    let text = given.filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT_FILTER.into());
    let filter = log_filter(&text)?;
    // These would log what they carry, including enrolment keys.
    let quiet = ["tungstenite=info", "tokio_tungstenite=info"].map(|directive| directive.parse());
    let filter = quiet.into_iter().flatten().fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if is_journal() {
        builder.event_format(Journal::default()).init();
    } else {
        builder.with_ansi(io::stderr().is_terminal()).with_target(false).init();
    }
    Ok(())
}

/// The filter that a text describes.
///
/// # Errors
/// It is not a filter.
pub fn log_filter(text: &str) -> anyhow::Result<EnvFilter> {
    let filter = EnvFilter::try_new(text);
    filter.map_err(|_| anyhow!("{text:?} is not a log filter such as debug or penstock::netlink=trace,info"))
}

/// Prints on standard error the error that ends a program.
pub fn print_fatal(program: &str, sentence: impl Display) {
    if is_journal() {
        eprint!("<{ERROR}>");
    }
    eprintln!("{program}: {sentence}");
}

/// Whether standard error is the journal's stream that the environment names, and not a file that took its place
/// (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from).and_then(|stderr| stderr.metadata());
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Lines for the journal.
struct Journal(Format<Full, ()>);

impl Default for Journal {
    fn default() -> Self {
        Self(format().without_time().with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_journal_gets_the_priority_of_each_line() {
        let written = Written::default();
        let lines = written.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(Level::DEBUG).event_format(Journal::default());
        tracing::subscriber::with_default(subscriber.with_writer(move || lines.clone()).finish(), || {
            tracing::error!("a");
            tracing::warn!("b");
            tracing::info!("c");
            tracing::debug!("d");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>ERROR a\n<4> WARN b\n<6> INFO c\n<7>DEBUG d\n");
    }
}
