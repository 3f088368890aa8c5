//! The commands, one file each.

mod compare;
mod forward;
mod generate;
mod output;
mod pipeline;
mod report;
mod sink;
mod wire;

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use penstock_netns::has_signal;
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The parser of the arguments, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Measures gateways: generator, sink and crypto-free forwarder on AF_XDP
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send UDP packets that carry a sequence number and the time they were sent
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

/// The parsed command line.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // The error may be that the terminal is gone.
            let _ = writeln!(stderr(), "penstock-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Generate(options) => generate::run(&options, &*stop_flag()?),
            Command::Sink(options) => sink::run(&options, &*stop_flag()?),
            Command::Pipeline(options) => pipeline::run(&options, &*stop_flag()?),
            Command::Forward(options) => forward::run(&options, &*stop_flag()?),
            Command::Compare(options) => compare::run(&options, &*stop_flag()?),
            Command::Wire(options) => wire::run(&options, &*stop_flag()?),
            // It leaves nothing behind, so signals may end it at once.
            Command::Report(command) => return report::run(command),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// A flag that SIGTERM and SIGINT set, and SIGHUP, which comes when the terminal is closed. The measurement then ends.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // Unless this program was started with it ignored, as `nohup` does.
    let hangup = (!has_signal(std::process::id(), "SigIgn", Signal::HUP)).then_some(SIGHUP);
    for signal in [SIGTERM, SIGINT].into_iter().chain(hangup) {
        signal_hook::flag::register(signal, stop.clone()).context("cannot catch signals")?;
    }
    Ok(stop)
}

/// Tells the program that started this one, on standard error, that packets can be sent.
fn announce(sockets: &[(&str, String)]) {
    let modes: Vec<String> = sockets.iter().map(|(name, mode)| format!("{name}: {mode}")).collect();
    eprintln!("ready ({})", modes.join("; "));
}

/// Prints a text. The reader may be gone, which is no reason to panic.
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

#[cfg(test)]
mod tests {
    use crate::traffic::socket::SetupError;

    #[test]
    fn a_cause_is_told_once() {
        let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
        let error = SetupError::Bind { interface: "eth0".into(), queue: 3, source: busy };
        let said = format!("{:#}", anyhow::Error::new(error));
        assert_eq!(said.matches("resource busy").count(), 1, "{said}");
        assert!(said.contains("another program or socket has it"), "{said}");
    }
}
