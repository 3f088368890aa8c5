//! `penstock-bench`: measures gateways. See [`penstock_bench`] for what it is made of.

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use penstock_bench::cli;
use penstock_bench::pipeline::allocations::Counting;

/// So that `pipeline` can tell how often a packet asks for memory; it costs the others an addition.
#[global_allocator]
static COUNTING: Counting = Counting;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // The terminal may be what went.
            let _ = writeln!(stderr(), "penstock-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
