//! `wireguard`: a WireGuard device, as `wg-quick` expects it.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Result, bail};

use super::{run, service};
use crate::control_socket;
use crate::gateway::device;
use crate::profile::Name;
use crate::uapi::socket::DIRECTORY;

/// The program's other name, under which it runs this command: `wg-quick` calls its implementation by one word.
pub(super) const PROGRAM: &str = "penstock-wireguard";

/// Runs the device in this process.
pub(super) fn foreground(name: &Name, filter: Option<&str>, detached: bool) -> Result<()> {
    if detached {
        run::leave_session()?;
    }
    penstock_messages::log_to_stderr(filter)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(device::run(name))
}

/// Runs the device in a process of its own. Returns when the device exists.
pub(super) fn background(name: &Name, filter: Option<&str>) -> Result<()> {
    let socket = Path::new(DIRECTORY).join(format!("{name}.sock"));
    if UnixStream::connect(&socket).is_ok() {
        bail!("there is a WireGuard device {name} already");
    }
    let arguments = ["wireguard", "--detached", name.as_str()];
    service::in_background(&control_socket::directory(), name, filter, &arguments, &|| {
        Ok(UnixStream::connect(&socket).is_ok())
    })
}
