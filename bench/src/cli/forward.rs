//! `penstock-bench forward`.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::traffic::forwarder::{Forwarder, Passed, Rewrite};
use crate::traffic::packet::Mac;
use clap::Args;

use super::{announce, print_json, seconds};

#[derive(Args)]
pub(super) struct Forward {
    /// One interface
    #[arg(long)]
    from: String,
    /// The other interface
    #[arg(long)]
    to: String,
    /// The queue to use on both
    #[arg(long, default_value_t = 0)]
    queue: u32,
    /// New Ethernet destination of frames from --from to --to
    #[arg(long, value_name = "MAC")]
    rewrite_dst_mac: Option<Mac>,
    /// New Ethernet source of frames from --from to --to
    #[arg(long, value_name = "MAC")]
    rewrite_src_mac: Option<Mac>,
    /// New Ethernet destination of frames from --to to --from
    #[arg(long, value_name = "MAC")]
    return_dst_mac: Option<Mac>,
    /// New Ethernet source of frames from --to to --from
    #[arg(long, value_name = "MAC")]
    return_src_mac: Option<Mac>,
    /// Never sleep: look for packets all the time
    #[arg(long)]
    poll: bool,
    /// How long to forward; without it until SIGTERM, SIGINT or SIGHUP
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Forward, stop: &AtomicBool) -> anyhow::Result<()> {
    let forth = Rewrite { destination: options.rewrite_dst_mac, source: options.rewrite_src_mac };
    let back = Rewrite { destination: options.return_dst_mac, source: options.return_src_mac };
    let forwarder = Forwarder::new(&options.from, &options.to, options.queue, forth, back)?;
    let [from, to] = forwarder.sockets().map(|socket| socket.describe());
    announce(&[(&options.from, from), (&options.to, to)]);
    let report = forwarder.run(options.seconds, options.poll, stop)?;
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
