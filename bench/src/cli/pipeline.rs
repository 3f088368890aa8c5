//! `penstock-bench pipeline`.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use penstock_bench::pipeline::size::Size;
use penstock_bench::pipeline::{self, LONGEST, Options};

use super::{print_json, seconds};

#[derive(Args)]
pub(super) struct Pipeline {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// How long one measurement lasts: a stage at a size in a round
    #[arg(long, default_value = "0.1", value_parser = short)]
    seconds: Duration,
    /// Only this size of the inner packet, in bytes or "imix"; may be repeated (64, 512, 1420, imix, 9000)
    #[arg(long, value_name = "SIZE")]
    only: Vec<Size>,
    /// The core to measure on; without it the last one
    #[arg(long)]
    core: Option<usize>,
}

pub(super) fn run(options: &Pipeline, stop: &AtomicBool) -> anyhow::Result<()> {
    let options = Options {
        sizes: if options.only.is_empty() { Size::ALL.to_vec() } else { options.only.clone() },
        rounds: usize::from(options.rounds),
        time: options.seconds,
        core: options.core,
    };
    let report = pipeline::run(&options, stop, &mut |_| {})?;
    print_json(&report)
}

fn short(text: &str) -> Result<Duration, String> {
    let time = seconds(text)?;
    match time > Duration::ZERO && time <= LONGEST {
        true => Ok(time),
        false => Err(format!("a measurement lasts up to {} s", LONGEST.as_secs())),
    }
}
