//! `penstock-bench wire`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::laboratory::search::Limits;
use crate::laboratory::wire::topology::{self, Line};
use crate::laboratory::wire::{Bench, Direction, Kind, Load, Options, Plan, Session, Traffic};
use crate::laboratory::{context, progress::Progress};
use crate::report::Report;
use crate::traffic::interface::{Interface, InterfaceName};
use crate::traffic::packet::{Addresses, ETHERNET_LEN, FRAME_CHECK_LEN, Flows, Mac, Mix, Template};
use crate::traffic::port::Port;
use anyhow::{Context, bail};
use clap::Args;

use super::output::Output;
use super::seconds;

/// Addresses for benchmarks, which no network routes: RFC 2544, appendix C.2.2, and RFC 5180, section 8.
const IPV4: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), IpAddr::V4(Ipv4Addr::new(198, 19, 0, 1))];
const IPV6: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 1, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 2, 0, 0, 0, 1))];
/// The highest load that can be requested: 64-byte frames at 100 Gbit/s.
const FASTEST: u64 = 148_809_523;
/// The shortest Ethernet frame, including its check sequence.
const SHORTEST_FRAME: usize = 64;
/// The most rounds that can be requested.
const MOST_ROUNDS: i64 = 1000;

#[derive(Args)]
#[command(override_usage = "penstock-bench wire [OPTIONS] --from <INTERFACE> --to <INTERFACE>\n       \
                            penstock-bench wire [OPTIONS] --self-test")]
pub(super) struct Wire {
    /// Interface to send from: NAME, or NAMESPACE:NAME
    #[arg(long, value_name = "INTERFACE", required_unless_present = "self_test", requires = "to")]
    from: Option<InterfaceName>,
    /// Interface to receive on
    #[arg(long, value_name = "INTERFACE", requires = "from")]
    to: Option<InterfaceName>,
    /// Measure the crypto-free forwarder in namespaces that the command makes itself
    #[arg(long, conflicts_with_all = ["from", "to"])]
    self_test: bool,
    /// Ethernet address that packets from --from are sent to; without it that of --to
    #[arg(long, value_name = "MAC", conflicts_with = "self_test")]
    next_hop: Option<Mac>,
    /// The same for packets from --to
    #[arg(long, value_name = "MAC", conflicts_with = "self_test")]
    return_next_hop: Option<Mac>,
    /// Send in both directions at once, each at the given rate
    #[arg(long)]
    bidirectional: bool,
    /// Send IPv6 packets
    #[arg(long, conflicts_with_all = ["src", "dst"])]
    ipv6: bool,
    /// First source address; without it one of the addresses reserved for benchmarks
    #[arg(long, value_name = "IP", requires = "dst")]
    src: Option<IpAddr>,
    /// First destination address
    #[arg(long, value_name = "IP", requires = "src")]
    dst: Option<IpAddr>,
    /// UDP source port of the first flow
    #[arg(long, default_value_t = 40_000)]
    src_port: u16,
    /// UDP destination port
    #[arg(long, default_value_t = 48_000)]
    dst_port: u16,
    /// Flows in each direction, told apart by their source ports
    #[arg(long, default_value_t = 1)]
    flows: u16,
    /// The flows take this many source and destination addresses in turn
    #[arg(long, default_value_t = 1)]
    hosts: u16,
    /// Sizes of Ethernet frames including the check sequence, as in RFC 2544; "64+1518" alternates; "imix"
    ///
    /// Without it 64, 512, 1518 and imix; with IPv6, whose shortest is 82, that instead of 64
    #[arg(long, value_delimiter = ',')]
    frames: Vec<String>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "mlr,latency,maximum")]
    tests: Vec<Kind>,
    /// Instead of searching, one trial at this rate
    #[arg(long, value_name = "PPS", value_parser = rate)]
    rate: Option<NonZeroU64>,
    /// Seconds of a trial
    #[arg(long, default_value = "1", value_parser = trial)]
    trial: Duration,
    /// Total seconds of trials that decide about a load (RFC 9971)
    #[arg(long, default_value = "5", value_parser = trial)]
    duration_sum: Duration,
    /// Fraction of that time in which more loss is allowed (RFC 9971)
    #[arg(long, default_value_t = 0.5, value_parser = ratio)]
    exceed_ratio: f64,
    /// How close together the bounds must get, as a fraction of the upper one
    #[arg(long, default_value_t = 0.01, value_parser = width)]
    width: f64,
    /// Lowest load to try
    #[arg(long, value_name = "PPS", default_value = "1000", value_parser = rate)]
    min_rate: NonZeroU64,
    /// Highest load to try; without it what the generator sends when unpaced
    #[arg(long, value_name = "PPS", value_parser = rate)]
    max_rate: Option<NonZeroU64>,
    /// Seconds to wait for packets still on their way
    #[arg(long, default_value = "2", value_parser = seconds)]
    wait: Duration,
    /// Seconds of rest before each trial (RFC 2544: 5)
    #[arg(long, default_value = "0.1", value_parser = seconds)]
    settle: Duration,
    /// How often to measure everything
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MOST_ROUNDS))]
    rounds: u32,
    /// Do not measure the tool's own ceiling first
    #[arg(long)]
    no_ceiling: bool,
    /// Do not verify checksums and payloads
    #[arg(long)]
    no_verify: bool,
    /// Cores for the generator and the sink of each direction in turn, which then never sleep
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(options: &Wire, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut context = context::machine();
    let line = options.line()?;
    let traffic = options.traffic(&line)?;
    let plan = options.plan(&traffic)?;
    let bench_options = options.bench()?;

    let first = plan.mixes.first().context("no sizes to measure")?;
    let device = open(&line, &traffic, first, bench_options.clone(), Some(&mut context))?;
    let bare_line = (!options.no_ceiling).then(topology::bare).transpose()?;
    let bare = bare_line.as_ref().map(|line| open(line, &traffic, first, bench_options, None)).transpose()?;
    options.describe(&line, &traffic, &mut context);

    let progress = Progress::new(plan.steps(bare.is_some()));
    let mut begin = |what: &str| progress.begin(what);
    let session = Session { plan: &plan, traffic: &traffic, device, bare, stop, progress: &mut begin };
    let findings = session.run()?;
    drop(progress);

    let mut report = Report::new("Wire", context);
    (report.measures, report.curves, report.notes) = (findings.measures, findings.curves, findings.notes);
    options.output.show(&report)
}

impl Wire {
    fn line(&self) -> anyhow::Result<Line> {
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => {
                if from == to {
                    bail!("--from and --to are the same interface");
                }
                Ok(Line { left: Interface::find(from)?, right: Interface::find(to)?, device: None })
            }
            _ => topology::with_forwarder(),
        }
    }

    fn traffic(&self, line: &Line) -> anyhow::Result<Traffic> {
        let [source, destination] = match (self.src, self.dst) {
            (Some(source), Some(destination)) => [source, destination],
            _ if self.ipv6 => IPV6,
            _ => IPV4,
        };
        let (left, right) = (line.left.mac()?, line.right.mac()?);
        let forth = Addresses {
            source_mac: left,
            destination_mac: self.next_hop.unwrap_or(right),
            source,
            destination,
            source_port: self.src_port,
            destination_port: self.dst_port,
        };
        let back = Addresses {
            source_mac: right,
            destination_mac: self.return_next_hop.unwrap_or(left),
            source: destination,
            destination: source,
            ..forth.clone()
        };
        let addresses = if self.bidirectional { vec![forth, back] } else { vec![forth] };
        Ok(Traffic { addresses, flows: Flows { count: self.flows, hosts: self.hosts } })
    }

    fn plan(&self, traffic: &Traffic) -> anyhow::Result<Plan> {
        let least = Template::shortest(traffic.addresses[0].source);
        let frame = |packet: usize| packet + ETHERNET_LEN + FRAME_CHECK_LEN;
        let (shortest, longest) = (frame(least).max(SHORTEST_FRAME), frame(Template::LONGEST));
        let usual = [&shortest.to_string(), "512", "1518", "imix"].map(String::from);
        let frames = if self.frames.is_empty() { &usual[..] } else { &self.frames };
        let mixes = frames.iter().map(|text| Mix::read(text, least).map_err(anyhow::Error::msg));
        let mixes: Vec<Mix> = mixes.collect::<Result<_, _>>()?;
        for mix in &mixes {
            let bounds = || format!("--frames {mix}: frames have {shortest} to {longest} bytes here");
            traffic.templates(mix).with_context(bounds)?;
        }
        for rate in self.rate.into_iter().chain(self.max_rate) {
            let duration = self.trial.max(self.duration_sum);
            Load { rate: Some(rate), duration }.most_packets()?;
        }
        let limits = Limits { min: self.min_rate.get(), max: self.max_rate.map_or(FASTEST, NonZeroU64::get) };
        if limits.min > limits.max {
            bail!("--min-rate is above --max-rate");
        }
        Ok(Plan {
            mixes,
            kinds: self.tests.clone(),
            fixed: self.rate,
            trial: self.trial,
            duration_sum: self.duration_sum.max(self.trial),
            exceed_ratio: self.exceed_ratio,
            width: self.width,
            limits,
            rounds: self.rounds,
        })
    }

    fn bench(&self) -> anyhow::Result<Options> {
        let threads = if self.bidirectional { 4 } else { 2 };
        let known: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        let cores = match self.cores.len() {
            // The device and the kernel need some as well.
            0 if known.len() > 2 * threads => known[known.len() - threads..].to_vec(),
            0 => vec![],
            given if given == threads => self.cores.clone(),
            given => bail!("--cores names {given} cores, and there are {threads} threads"),
        };
        if let Some(core) = cores.iter().find(|core| !known.contains(core)) {
            bail!("--cores: core {core} is not available to this process");
        }
        let spin = !cores.is_empty();
        Ok(Options { wait: self.wait, settle: self.settle, verify: !self.no_verify, spin, cores })
    }

    fn describe(&self, line: &Line, traffic: &Traffic, context: &mut Vec<(String, String)>) {
        let mut add = |name: &str, value: String| context.push((name.into(), value));
        match &line.device {
            Some(device) => add("Device", format!("penstock-bench forward between veth pairs ({})", device.described)),
            None => add("Device", "what is between the two interfaces".into()),
        }
        let Addresses { source, destination, destination_port, .. } = &traffic.addresses[0];
        let Flows { count, hosts } = traffic.flows;
        add(
            "Traffic",
            format!(
                "UDP {source} to {destination} port {destination_port}, {count} flows of {} hosts each side",
                hosts.min(count)
            ),
        );
        add("Directions", if self.bidirectional { "both" } else { "one" }.into());
        add("Verified", if self.no_verify { "no" } else { "checksums and every byte of the payload" }.into());
        add("Waits", format!("{:?} of rest before a trial, up to {:?} for stragglers", self.settle, self.wait));
    }
}

/// Opens both ends of a line, for the directions of the traffic.
fn open(
    line: &Line,
    traffic: &Traffic,
    mix: &Mix,
    options: Options,
    context: Option<&mut Vec<(String, String)>>,
) -> anyhow::Result<Bench> {
    let both = traffic.addresses.len() > 1;
    let mut left = Port::open(&line.left, true, both)?;
    let mut right = Port::open(&line.right, both, true)?;
    if let Some(context) = context {
        for (interface, port) in [(&line.left, &left), (&line.right, &right)] {
            context.push(context::interface(interface));
            context.push((format!("Bound to {}", interface.name), port.describe().into()));
        }
    }
    let names = ["forth", "back"];
    let mut directions = vec![];
    for (n, template) in traffic.templates(mix)?.into_iter().enumerate() {
        let (from, to) = if n == 0 { (&mut left, &mut right) } else { (&mut right, &mut left) };
        let generator = from.generator(template).context("the interface was not opened to send")?;
        directions.push(Direction { name: names[n].into(), generator, sink: to.sink() });
    }
    Ok(Bench::new(directions, options))
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let rate = text.parse().ok().filter(|rate: &NonZeroU64| rate.get() <= FASTEST);
    rate.ok_or_else(|| format!("\"{text}\" is not a number of packets a second from 1 to {FASTEST}"))
}

/// A trial's duration: long enough to mean something, and at most an hour.
fn trial(text: &str) -> Result<Duration, String> {
    let duration = seconds(text)?;
    match (0.01..=3600.0).contains(&duration.as_secs_f64()) {
        true => Ok(duration),
        false => Err(format!("\"{text}\" is not a number of seconds from 0.01 to 3600")),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..1.0).contains(ratio));
    ratio.ok_or_else(|| format!("\"{text}\" is not a number from 0 to below 1"))
}

fn width(text: &str) -> Result<f64, String> {
    let width = text.parse().ok().filter(|width| (0.0001..=0.5).contains(width));
    width.ok_or_else(|| format!("\"{text}\" is not a number from 0.0001 to 0.5"))
}
