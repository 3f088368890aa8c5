//! The `wg` command, which speaks to every implementation over its socket.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs `wg` and returns its output or its error message.
pub fn wg_try(arguments: &[&str]) -> Result<String, String> {
    wg_with_input(arguments, "")
}

/// Runs `wg`, which must succeed.
pub fn wg(arguments: &[&str]) -> String {
    wg_try(arguments).unwrap_or_else(|complaint| panic!("wg {arguments:?}: {complaint}"))
}

pub fn genkey() -> String {
    wg(&["genkey"]).trim().to_owned()
}

pub fn genpsk() -> String {
    wg(&["genpsk"]).trim().to_owned()
}

pub fn pubkey(private: &str) -> String {
    wg_with_input(&["pubkey"], private).expect("a private key").trim().to_owned()
}

fn wg_with_input(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("wg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("wg starts");
    // wg may not read its input at all.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("wg ends");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
