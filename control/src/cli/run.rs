//! `run`: the gateway in the foreground.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tracing_subscriber::EnvFilter;

use crate::gateway;
use crate::profile::{Environment, Profile};

/// What is logged unless somebody says otherwise.
const DEFAULT_FILTER: &str = "info";

pub(super) fn run(path: &Path, filter: Option<&str>, detached: bool) -> Result<()> {
    if detached {
        leave_session()?;
    }
    log_to_stderr(filter)?;
    let profile = Profile::load(path, &Environment::of_process())?;
    // The daemon only publishes to the workers, which are threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(gateway::run(profile))
}

pub(super) fn leave_session() -> Result<()> {
    rustix::process::setsid().context("cannot leave the terminal's session")?;
    Ok(())
}

pub(super) fn log_to_stderr(filter: Option<&str>) -> Result<()> {
    let given = filter.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok());
    let text = given.filter(|text| !text.is_empty()).unwrap_or_else(|| DEFAULT_FILTER.into());
    let Ok(filter) = EnvFilter::try_new(&text) else {
        bail!("{text:?} is no log filter such as debug or penstock::netlink=trace,info");
    };
    // It would log what it carries, enrolment keys too.
    let quiet = ["tungstenite=info", "tokio_tungstenite=info"].map(|directive| directive.parse());
    let filter = quiet.into_iter().flatten().fold(filter, EnvFilter::add_directive);
    let stderr = std::io::stderr;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let builder = builder.with_ansi(stderr().is_terminal()).with_target(false);
    // journald has its own clock.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
    Ok(())
}
