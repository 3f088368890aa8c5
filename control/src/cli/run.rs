//! `run`: the gateway in the foreground.

use std::path::Path;

use anyhow::{Context, Result};

use super::guard;
use crate::gateway;
use crate::profile::Profile;

pub(super) fn run(path: &Path, filter: Option<&str>, detached: bool) -> Result<()> {
    if detached {
        leave_session()?;
    }
    penstock_messages::log_to_stderr(filter)?;
    let profile = guard::loaded_or_guarded(path, Profile::load)?;
    // The daemon only publishes to the workers, which are threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(gateway::run(profile))
}

pub(super) fn leave_session() -> Result<()> {
    rustix::process::setsid().context("cannot leave the terminal's session")?;
    Ok(())
}
