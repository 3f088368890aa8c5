//! `penstock-bench pipeline`.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::laboratory::pipeline::size::Size;
use crate::laboratory::pipeline::{self, LONGEST, Options};
use crate::laboratory::{context, progress::Progress};
use clap::Args;
use penstock_dataplane::session::Suite;

use super::output::Output;
use super::seconds;

/// A report takes no more samples.
const MOST_ROUNDS: i64 = 1000;

#[derive(Args)]
pub(super) struct Pipeline {
    /// How often everything is measured; a verdict on two reports needs at least 4
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=MOST_ROUNDS))]
    rounds: u16,
    /// How long one measurement lasts: a stage at a size in a round
    #[arg(long, default_value = "0.1", value_parser = short)]
    seconds: Duration,
    /// Only this size of the inner packet, in bytes or "imix"; may be repeated; without it 64, 512, 1420, imix, 9000
    #[arg(long, value_name = "SIZE")]
    only: Vec<Size>,
    /// The suite: "chacha20-poly1305" or "aes-256-gcm"
    #[arg(long, default_value_t = Suite::ChaCha20Poly1305)]
    suite: Suite,
    /// The core to measure on; without it the last one
    #[arg(long)]
    core: Option<usize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &Pipeline, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut sizes: Vec<Size> = Vec::new();
    for size in &arguments.only {
        if !sizes.contains(size) {
            sizes.push(*size);
        }
    }
    let options = Options {
        sizes: if sizes.is_empty() { Size::ALL.to_vec() } else { sizes },
        suite: arguments.suite,
        rounds: usize::from(arguments.rounds),
        time: arguments.seconds,
        core: arguments.core,
    };
    let machine = context::machine();
    let progress = Progress::new(options.steps() as u64);
    let mut report = pipeline::run(&options, stop, &mut |what| progress.begin(what))?;
    drop(progress);
    report.context.splice(0..0, machine);
    arguments.output.show(&report)
}

fn short(text: &str) -> Result<Duration, String> {
    let time = seconds(text)?;
    match time > Duration::ZERO && time <= LONGEST {
        true => Ok(time),
        false => Err(format!("a measurement lasts up to {} s", LONGEST.as_secs())),
    }
}
