//! `penstock-bench`: one side of a measurement per process. `scripts/bench` puts them together.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use penstock_bench::forwarder::{Forwarder, Passed, Rewrite};
use penstock_bench::generator::{Generator, Sent};
use penstock_bench::packet::{Addresses, Mac, Template};
use penstock_bench::sink::{Report, Selection, Sink};

/// Generator, sink and crypto-free forwarder on AF_XDP
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send UDP packets that carry a sequence number and their send time
    Generate(Generate),
    /// Count what a generator sent: rate, loss, order
    Sink(SinkOptions),
    /// Forward between two interfaces without touching more than the Ethernet addresses
    Forward(Forward),
}

#[derive(Args)]
struct Generate {
    /// Interface to send from
    #[arg(long)]
    interface: String,
    /// Its queue
    #[arg(long, default_value_t = 0)]
    queue: u32,
    /// Ethernet address of the next hop
    #[arg(long, value_name = "MAC")]
    dst_mac: Mac,
    /// Ethernet address of the interface
    #[arg(long, value_name = "MAC")]
    src_mac: Mac,
    /// IPv4 or IPv6 source
    #[arg(long, value_name = "IP")]
    src: IpAddr,
    /// IPv4 or IPv6 destination
    #[arg(long, value_name = "IP")]
    dst: IpAddr,
    /// UDP source port of the first flow
    #[arg(long, default_value_t = 40_000)]
    src_port: u16,
    /// UDP destination port
    #[arg(long, default_value_t = 48_000)]
    dst_port: u16,
    /// Bytes of the IP packet
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How long to send
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Packets a second; without it as fast as the interface takes them
    #[arg(long, value_name = "PPS")]
    rate: Option<NonZeroU64>,
    /// Flows, told apart by their source ports
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SinkOptions {
    /// Interface to receive from
    #[arg(long)]
    interface: String,
    /// Its queue
    #[arg(long, default_value_t = 0)]
    queue: u32,
    /// Only packets to this UDP port
    #[arg(long)]
    dst_port: Option<u16>,
    /// Verify checksums and every byte of the payload
    #[arg(long)]
    verify: bool,
    /// How long to receive, unless SIGTERM or SIGINT comes first
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Forward {
    /// One interface
    #[arg(long)]
    from: String,
    /// The other
    #[arg(long)]
    to: String,
    /// Queue of both
    #[arg(long, default_value_t = 0)]
    queue: u32,
    /// New Ethernet destination of what goes from --from to --to
    #[arg(long, value_name = "MAC")]
    rewrite_dst_mac: Option<Mac>,
    /// New Ethernet source of what goes from --from to --to
    #[arg(long, value_name = "MAC")]
    rewrite_src_mac: Option<Mac>,
    /// New Ethernet destination of what goes from --to to --from
    #[arg(long, value_name = "MAC")]
    return_dst_mac: Option<Mac>,
    /// New Ethernet source of what goes from --to to --from
    #[arg(long, value_name = "MAC")]
    return_src_mac: Option<Mac>,
    /// How long to forward; without it until SIGTERM or SIGINT
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = stop_flag().and_then(|stop| match cli.command {
        Command::Generate(options) => generate(&options, &stop),
        Command::Sink(options) => sink(&options, &stop),
        Command::Forward(options) => forward(&options, &stop),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn generate(options: &Generate, stop: &AtomicBool) -> anyhow::Result<()> {
    let addresses = Addresses {
        source_mac: options.src_mac,
        destination_mac: options.dst_mac,
        source: options.src,
        destination: options.dst,
        source_port: options.src_port,
        destination_port: options.dst_port,
    };
    let template = Template::new(&addresses, options.size, options.flows)?;
    let generator = Generator::new(&options.interface, options.queue, template)?;
    announce(&[(&options.interface, generator.socket().describe())]);
    let sent = generator.run(options.seconds, options.rate, stop)?;
    if options.json {
        return print_json(&sent);
    }
    let Sent { packets, seconds, packets_per_second, bits_per_second, most_behind, .. } = sent;
    println!(
        "sent {packets} packets in {seconds:.2} s: {packets_per_second:.0} packets/s, {:.3} Gbit/s",
        bits_per_second / 1e9,
    );
    if options.rate.is_some() {
        println!("at most {most_behind} packets were due at once");
    }
    Ok(())
}

fn sink(options: &SinkOptions, stop: &AtomicBool) -> anyhow::Result<()> {
    let selection = Selection { destination_port: options.dst_port, verify: options.verify };
    let sink = Sink::new(&options.interface, options.queue, selection)?;
    announce(&[(&options.interface, sink.socket().describe())]);
    let report = sink.run(options.seconds, stop)?;
    if options.json {
        return print_json(&report);
    }
    let Report { received, drops, .. } = report;
    println!(
        "received {} packets, {} bytes in {:.2} s: {:.0} packets/s, {:.3} Gbit/s",
        received.packets,
        received.bytes,
        received.seconds,
        received.packets_per_second,
        received.bits_per_second / 1e9,
    );
    println!(
        "lost {}, reordered {}, corrupt {}, foreign {}",
        received.lost,
        received.reordered,
        if options.verify { received.corrupt.to_string() } else { "not looked at".into() },
        received.foreign,
    );
    println!(
        "dropped in front of the socket: {} receive ring full, {} fill ring empty, {} other",
        drops.receive_ring_full, drops.fill_ring_empty, drops.other,
    );
    Ok(())
}

fn forward(options: &Forward, stop: &AtomicBool) -> anyhow::Result<()> {
    let forth = Rewrite { destination: options.rewrite_dst_mac, source: options.rewrite_src_mac };
    let back = Rewrite { destination: options.return_dst_mac, source: options.return_src_mac };
    let forwarder = Forwarder::new(&options.from, &options.to, options.queue, forth, back)?;
    let [from, to] = forwarder.sockets().map(|socket| socket.describe());
    announce(&[(&options.from, from), (&options.to, to)]);
    let report = forwarder.run(options.seconds, stop)?;
    if options.json {
        return print_json(&report);
    }
    let line = |from: &str, to: &str, passed: Passed, in_front: u64| {
        let Passed { packets, dropped, batches, .. } = passed;
        let mean = packets as f64 / batches.max(1) as f64;
        println!(
            "{from} to {to}: {packets} packets in batches of {mean:.1}, {dropped} dropped, \
             {in_front} dropped in front of the socket"
        );
    };
    let (a, b) = (options.from.as_str(), options.to.as_str());
    line(a, b, report.forth, report.from_drops.total());
    line(b, a, report.back, report.to_drops.total());
    Ok(())
}

/// Tells whoever started us, on standard error, that packets can come.
fn announce(sockets: &[(&str, String)]) {
    let modes: Vec<String> = sockets.iter().map(|(name, mode)| format!("{name}: {mode}")).collect();
    eprintln!("ready ({})", modes.join("; "));
}

fn print_json(report: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone()).context("cannot catch signals")?;
    }
    Ok(stop)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let refuse = || format!("\"{text}\" is not a number of seconds between 0 and a year");
    let seconds: f64 = text.parse().map_err(|_| refuse())?;
    match (0.0..=31_536_000.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(refuse()),
    }
}
