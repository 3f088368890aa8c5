//! `penstock-bench`: measures gateways. See [`penstock_bench`] for what it is made of.

use std::process::ExitCode;

use penstock_bench::laboratory::pipeline::allocations::Counting;

/// So that `pipeline` can tell how often a packet asks for memory; it costs the others an addition.
#[global_allocator]
static COUNTING: Counting = Counting;

fn main() -> ExitCode {
    penstock_bench::cli::main()
}
