//! The commands, one file each.

mod compare;
mod forward;
mod generate;
mod output;
mod pipeline;
mod report;
mod sink;
mod wire;

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Measures gateways: generator, sink and crypto-free forwarder on AF_XDP
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send UDP packets that carry a sequence number and their send time
    Generate(generate::Generate),
    /// Count what a generator sent: rate, loss, order
    Sink(sink::SinkOptions),
    /// Measure the data plane on one core without devices, stage by stage
    Pipeline(pipeline::Pipeline),
    /// Forward between two interfaces without touching more than the Ethernet addresses
    Forward(forward::Forward),
    /// Measure Penstock, other gateways and the ceilings in the same topology, one after another
    Compare(compare::Compare),
    /// Measure a device: rates without and with a little loss, latency, loss, order
    Wire(Box<wire::Wire>),
    /// Show a report, draw it, or compare two
    #[command(subcommand)]
    Report(report::Command),
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let stop = stop_flag()?;
        match self.command {
            Command::Generate(options) => generate::run(&options, &stop),
            Command::Sink(options) => sink::run(&options, &stop),
            Command::Pipeline(options) => pipeline::run(&options, &stop),
            Command::Forward(options) => forward::run(&options, &stop),
            Command::Compare(options) => compare::run(&options, &stop),
            Command::Wire(options) => wire::run(&options, &stop),
            Command::Report(command) => return report::run(command),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone()).context("cannot catch signals")?;
    }
    Ok(stop)
}

/// Tells whoever started us, on standard error, that packets can come.
fn announce(sockets: &[(&str, String)]) {
    let modes: Vec<String> = sockets.iter().map(|(name, mode)| format!("{name}: {mode}")).collect();
    eprintln!("ready ({})", modes.join("; "));
}

/// Prints a text; whoever reads it may have gone, which is no reason to panic.
fn print_text(text: &str) -> anyhow::Result<()> {
    stdout().write_all(text.as_bytes()).context("cannot print")
}

fn print_json(report: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let refuse = || format!("\"{text}\" is not a number of seconds between 0 and a year");
    let seconds: f64 = text.parse().map_err(|_| refuse())?;
    match (0.0..=31_536_000.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(refuse()),
    }
}
