//! `penstock-bench`: measures gateways. See [`penstock_bench`] for what it is made of.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("penstock-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
