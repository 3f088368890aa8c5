//! `penstock-coordinator`: see [`penstock_coordinator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    penstock_coordinator::cli::main()
}
