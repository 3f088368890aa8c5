//! `penstock-bench`: measures gateways. See [`penstock_bench`] for what it is made of.

use std::process::ExitCode;

use penstock_bench::laboratory::pipeline::allocations::Counting;

/// Lets `pipeline` count how often a packet needs memory; it costs the other commands an addition.
#[global_allocator]
static COUNTING: Counting = Counting;

fn main() -> ExitCode {
    penstock_bench::cli::main()
}
