//! `penstock-bench sink`.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::traffic::arrivals::{Arrivals, MOST_PACKETS};
use crate::traffic::interface::{Interface, InterfaceName};
use crate::traffic::latency;
use crate::traffic::payload::now;
use crate::traffic::port::Port;
use crate::traffic::sink::Ending;
use crate::traffic::socket::SocketDrops;
use clap::Args;
use serde::Serialize;

use super::{announce, print_json, seconds};

#[derive(Args)]
pub(super) struct SinkOptions {
    /// Interface to receive from, on all its queues: NAME, or NAMESPACE:NAME
    #[arg(long)]
    interface: InterfaceName,
    /// Verify checksums and every byte of the payload
    #[arg(long)]
    verify: bool,
    /// Report the age of the packets as percentiles; if the generator was paced, since they were due
    #[arg(long)]
    latency: bool,
    /// How long to receive, unless SIGTERM or SIGINT comes first
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was received. How many were sent is not known here.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    /// Different packets.
    packets: u64,
    /// Bytes of their IP packets.
    bytes: u64,
    /// From the first batch to the last.
    seconds: f64,
    /// Packets a second in that time.
    packets_per_second: f64,
    /// IP packets' bits a second in that time.
    bits_per_second: f64,
    /// Numbers missing between the lowest and the highest received; losses before and after these do not show.
    lost: u64,
    /// Packets received more than once.
    duplicates: u64,
    /// Packets that came after a later one of their flow.
    reordered: u64,
    /// Packets with a wrong checksum or payload, if these are verified; they are in no other count.
    corrupt: u64,
    /// Packets that are not the generator's, or whose numbers are too old to be judged.
    foreign: u64,
    /// Time since packets were sent, or were due if the generator was paced: pairs of percentile and µs.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Vec<(f64, f64)>>,
    /// What the kernel dropped in front of the sockets.
    drops: SocketDrops,
    /// Modes that were bound.
    bound: String,
}

pub(super) fn run(options: &SinkOptions, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut port = Port::open(&Interface::find(&options.interface)?, false, true)?;
    announce(&[(&options.interface.name, port.describe().into())]);
    let mut arrivals = Arrivals::new(0..MOST_PACKETS, options.verify);
    let ending = Ending::at(now() + options.seconds.as_nanos() as u64);
    let drops = port.sink().receive(&mut arrivals, &ending, false, stop)?;

    let (counts, rate) = (arrivals.counts(), arrivals.rate());
    let report = Report {
        packets: counts.distinct,
        bytes: counts.bytes,
        seconds: rate.seconds,
        packets_per_second: rate.packets,
        bits_per_second: rate.bytes * 8.0,
        lost: arrivals.gaps(),
        duplicates: counts.duplicates,
        reordered: counts.reordered,
        corrupt: counts.corrupt,
        foreign: counts.foreign + counts.stale,
        latency: options.latency.then(|| latency::percentiles(arrivals.latency())),
        drops,
        bound: port.describe().into(),
    };
    if options.json { print_json(&report) } else { print(&report, options.verify) }
}

fn print(report: &Report, verified: bool) -> anyhow::Result<()> {
    let Report { packets, bytes, seconds, packets_per_second, bits_per_second, lost, duplicates, .. } = report;
    println!(
        "received {packets} packets, {bytes} bytes in {seconds:.2} s: {packets_per_second:.0} packets/s, {:.3} Gbit/s",
        bits_per_second / 1e9,
    );
    let corrupt = if verified { report.corrupt.to_string() } else { "not checked".into() };
    println!(
        "lost {lost}, duplicates {duplicates}, reordered {}, corrupt {corrupt}, foreign {}",
        report.reordered, report.foreign
    );
    for (percentile, microseconds) in report.latency.iter().flatten() {
        println!("{percentile:8.4} % within {microseconds:.1} µs");
    }
    println!(
        "dropped in front of the socket: {} receive ring full, {} fill ring empty, {} other",
        report.drops.receive_ring_full, report.drops.fill_ring_empty, report.drops.other,
    );
    Ok(())
}
