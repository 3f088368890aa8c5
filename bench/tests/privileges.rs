//! What users without the privileges are told.

use std::process::Command;

const BENCH: &str = env!("CARGO_BIN_EXE_penstock-bench");

#[test]
fn without_privileges_wire_says_which_it_needs() {
    // Root without this capability is like any other user here.
    let mut command = match rustix::process::geteuid().is_root() {
        true => Command::new("setpriv"),
        false => Command::new("env"),
    };
    if rustix::process::geteuid().is_root() {
        command.arg("--bounding-set=-sys_admin");
    }
    let output = command.args([BENCH, "wire", "--self-test"]).output().expect("penstock-bench starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("run as root or with CAP_SYS_ADMIN"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
