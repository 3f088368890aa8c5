//! Runs the system's tools for what the kernel holds: nft, iptables-save.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Runs a tool with this input and returns its output. The input has to be short for tools that print before they have
/// read all of it, or both sides would wait forever.
///
/// # Errors
/// `NotFound`: it is not installed. `Unsupported`: it says that the kernel cannot do this. Otherwise its first line.
pub fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| io::Error::new(e.kind(), format!("{program} cannot be run: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gives no reason").trim();
    let kind = if first.contains("not supported") { io::ErrorKind::Unsupported } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, format!("{program}: {first}")))
}
