//! `penstock-bench sink`.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use penstock_bench::sink::{Report, Selection, Sink};

use super::{announce, print_json, seconds};

#[derive(Args)]
pub(super) struct SinkOptions {
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
    /// Tell how old the packets were, as percentiles; of a paced generator's packets, since they were due
    #[arg(long)]
    latency: bool,
    /// How long to receive, unless SIGTERM or SIGINT comes first
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &SinkOptions, stop: &AtomicBool) -> anyhow::Result<()> {
    let selection = Selection { destination_port: options.dst_port, verify: options.verify, latency: options.latency };
    let sink = Sink::new(&options.interface, options.queue, selection)?;
    announce(&[(&options.interface, sink.socket().describe())]);
    let report = sink.run(options.seconds, stop)?;
    if options.json {
        return print_json(&report);
    }
    let Report { received, drops, latency, .. } = report;
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
    for (percentile, microseconds) in latency.unwrap_or_default() {
        println!("{percentile:8.4} % within {microseconds:.1} µs");
    }
    println!(
        "dropped in front of the socket: {} receive ring full, {} fill ring empty, {} other",
        drops.receive_ring_full, drops.fill_ring_empty, drops.other,
    );
    Ok(())
}
