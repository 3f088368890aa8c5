//! `penstock-bench generate`.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::traffic::generator::{Generator, Plan, Sent};
use crate::traffic::packet::{Addresses, Flows, Mac, Mix, Template};
use clap::Args;

use super::{announce, print_json, seconds};

#[derive(Args)]
pub(super) struct Generate {
    /// Interface to send from
    #[arg(long)]
    interface: String,
    /// The queue to use
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
    /// The flows take this many source and destination addresses in turn, counted up from --src and --dst
    #[arg(long, default_value_t = 1)]
    hosts: u16,
    /// Report as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Generate, stop: &AtomicBool) -> anyhow::Result<()> {
    let addresses = Addresses {
        source_mac: options.src_mac,
        destination_mac: options.dst_mac,
        source: options.src,
        destination: options.dst,
        source_port: options.src_port,
        destination_port: options.dst_port,
    };
    let flows = Flows { count: options.flows, hosts: options.hosts };
    let template = Template::new(&addresses, &Mix::packets(options.size), flows)?;
    let mut generator = Generator::new(&options.interface, options.queue, template)?;
    let copy = if generator.sender().is_zero_copy() { "zero-copy" } else { "copy" };
    announce(&[(&options.interface, copy.into())]);
    let plan = Plan { first: 0, start: 0, duration: options.seconds, rate: options.rate, most: u64::MAX };
    let sent = generator.run(plan, stop)?;
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
