//! What needs another kernel than the build machine's: kernel WireGuard, netem, real drivers. `scripts/lab` runs it
//! in virtual machines.

#[path = "../support/mod.rs"]
mod support;

mod cards;
mod kernel_wireguard;
mod netem;

use std::io::Write;

/// Whether the test can run here: in a machine of the laboratory, with `tools`.
fn ready(tools: &[&str]) -> bool {
    assert!(std::env::var_os("PENSTOCK_LAB_NOTES").is_some(), "these tests run in the laboratory: scripts/lab run");
    support::ready(tools)
}

/// Has `scripts/lab` print what a test has measured or found.
fn note(text: &str) {
    let path = std::env::var_os("PENSTOCK_LAB_NOTES").expect("asked in ready");
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("the notes");
    writeln!(file, "{text}").expect("noted");
}
