//! What is measured of a subject that carries packets.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::figures::{self, Quantity};
use super::process::Process;
use super::topology::{End, HOSTS, Side, Topology, mac};
use super::{Error, Options, Result, io_error};
use crate::traffic::packet::ETHERNET_LEN;

/// Slow enough that the machine is idle in between.
const PINGS_A_SECOND: u64 = 10;
/// A program may take this much longer than it was told to.
const MARGIN: Duration = Duration::from_secs(10);
/// How long packets in flight may take to arrive after the generator has ended.
const DRAIN: Duration = Duration::from_millis(300);
/// How long a server may take until it listens.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// The beginning of the line by which our own programs say that packets can be sent.
pub(super) const READY: &str = "ready (";

/// One of the measurements, which are taken one after another.
#[derive(Debug)]
pub(super) enum Measurement {
    /// Round trips while nothing else is sent.
    Ping,
    /// The latency of small packets at a negligible load.
    Latency,
    /// iperf3 with this many streams, and the CPU time they cost.
    Tcp { streams: u32, rate: &'static Quantity, cost: &'static Quantity },
    /// Frames of this many bytes without the check sequence, as fast as the generator can.
    Udp { frame: usize, received: &'static Quantity, lost: &'static Quantity },
}

/// Bytes of the smaller frame.
const SMALL: usize = 64;
/// Packets a second: a modest load even for the slowest subject, and so far apart that the generator sleeps in between.
const LATENCY_RATE: &str = "2000";

/// In this order. The larger frame fills the tunnel's MTU of 1420.
pub(super) static ALL: [Measurement; 6] = [
    Measurement::Ping,
    Measurement::Latency,
    Measurement::Tcp { streams: 1, rate: &figures::TCP_1, cost: &figures::COST_1 },
    Measurement::Tcp { streams: 4, rate: &figures::TCP_4, cost: &figures::COST_4 },
    Measurement::Udp { frame: SMALL, received: &figures::SMALL, lost: &figures::SMALL_LOST },
    Measurement::Udp { frame: 1434, received: &figures::LARGE, lost: &figures::LARGE_LOST },
];

/// What a measurement works with.
pub(super) struct Environment<'a> {
    pub(super) topology: &'a Topology,
    pub(super) options: &'a Options,
    /// Cores that are busy while nothing is measured; `None` if they are too many for a difference to mean anything.
    pub(super) idle_load: Option<f64>,
    pub(super) stop: &'a AtomicBool,
}

/// The result of one measurement.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) figures: Vec<(&'static Quantity, f64)>,
    /// Each round trip in µs.
    pub(super) round_trips: Vec<f64>,
    /// Percentiles of the latency in µs.
    pub(super) latency: Vec<(f64, f64)>,
}

impl Measurement {
    /// Its name in the progress bar.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Measurement::Ping => "ping",
            Measurement::Latency => "latency",
            Measurement::Tcp { rate, .. } => rate.name,
            Measurement::Udp { received, .. } => received.name,
        }
    }

    pub(super) fn take(&self, environment: &Environment<'_>) -> Result<Taken> {
        match self {
            Measurement::Ping => ping(environment),
            Measurement::Latency => latency(environment),
            Measurement::Tcp { streams, rate, cost } => tcp(environment, *streams, rate, cost),
            Measurement::Udp { frame, received, lost } => udp(environment, frame - ETHERNET_LEN, received, lost),
        }
    }
}

fn ping(environment: &Environment<'_>) -> Result<Taken> {
    let count = (environment.options.duration.as_secs() * PINGS_A_SECOND).to_string();
    let words = ["ping", "-n", "-i", "0.1", "-c", &count, "-W", "1", HOSTS[1]];
    let process = environment.start(Side::A, "ping", &words)?;
    let printed = process.finish(environment.options.duration + MARGIN, environment.stop)?;
    let milliseconds = |line: &str| line.rsplit_once(" time=")?.1.strip_suffix(" ms")?.parse::<f64>().ok();
    let round_trips: Vec<f64> = printed.lines().filter_map(milliseconds).map(|time| time * 1e3).collect();
    if round_trips.is_empty() {
        return Err(Error::Failed("no ping came back".into()));
    }
    let median = crate::report::Spread::of(&round_trips).median;
    Ok(Taken { figures: vec![(&figures::PING, median)], round_trips, ..Taken::default() })
}

fn tcp(environment: &Environment<'_>, streams: u32, rate: &'static Quantity, cost: &'static Quantity) -> Result<Taken> {
    let mut server = environment.start(Side::B, "iperf3-server", &["iperf3", "-s", "-1", "--forceflush"])?;
    server.wait_for("listening", READY_WITHIN, environment.stop)?;
    let (time, streams) = (environment.options.duration.as_secs().to_string(), streams.to_string());
    let words = ["iperf3", "-c", HOSTS[1], "-t", &time, "-P", &streams, "-J"];
    let clock = CpuClock::start()?;
    let client = environment.start(Side::A, "iperf3", &words)?;
    let printed = client.finish(environment.options.duration + MARGIN, environment.stop)?;
    let spent = environment.idle_load.map(|idle_load| clock.spent(idle_load)).transpose()?;
    let result: Value = serde_json::from_str(&printed).map_err(|e| Error::Failed(format!("iperf3 printed: {e}")))?;
    let received = &result["end"]["sum_received"];
    match (received["bits_per_second"].as_f64(), received["bytes"].as_f64()) {
        (Some(bits), Some(bytes)) if bytes > 0.0 => {
            let cost = spent.map(|seconds| (cost, seconds / (bytes / 1e9)));
            let figures = [(rate, bits / 1e9)].into_iter().chain(cost).collect();
            Ok(Taken { figures, ..Taken::default() })
        }
        _ => Err(Error::Failed("iperf3 received nothing".into())),
    }
}

/// Small packets, few enough for the slowest subject; their age counts from when they were due.
fn latency(environment: &Environment<'_>) -> Result<Taken> {
    let (_, arrived) = traffic(environment, SMALL - ETHERNET_LEN, &["--rate", LATENCY_RATE], &["--latency"])?;
    let percentiles: Vec<(f64, f64)> = serde_json::from_value(arrived["Latency"].clone())
        .map_err(|error| Error::Failed(format!("a report without latency: {error}")))?;
    let at = |wanted: f64| {
        let found = percentiles.iter().find(|(percentile, _)| (percentile - wanted).abs() < 1e-6);
        found.map(|(_, time)| *time).ok_or_else(|| Error::Failed("too few packets came through".into()))
    };
    let figures = vec![(&figures::LATENCY_50, at(50.0)?), (&figures::LATENCY_99, at(99.0)?)];
    Ok(Taken { figures, latency: percentiles, ..Taken::default() })
}

/// Packets of `size` bytes without the Ethernet header, unpaced.
fn udp(
    environment: &Environment<'_>,
    size: usize,
    received: &'static Quantity,
    lost: &'static Quantity,
) -> Result<Taken> {
    let (sent, arrived) = traffic(environment, size, &[], &[])?;
    let number = |report: &Value, name: &str| {
        report[name].as_f64().ok_or_else(|| Error::Failed(format!("a report without {name}: {report}")))
    };
    let rate = number(&arrived, "PacketsPerSecond")? / 1e3;
    let part = number(&arrived, "Packets")? / number(&sent, "Packets")?.max(1.0);
    Ok(Taken { figures: vec![(received, rate), (lost, 100.0 * (1.0 - part))], ..Taken::default() })
}

/// Sends IP packets of `size` bytes from host to host; `pace` and `look` are additional arguments of the generator and
/// the sink. Returns the reports of both.
fn traffic(environment: &Environment<'_>, size: usize, pace: &[&str], look: &[&str]) -> Result<(Value, Value)> {
    let duration = environment.options.duration;
    let bench = environment.options.bench.to_string_lossy();
    let long_enough = (duration + MARGIN).as_secs().to_string();
    let words = [&bench, "sink", "--interface", "lan", "--seconds", &long_enough, "--json"];
    let sink = environment.start_bench(Side::B, "sink", &[&words[..], look].concat())?;
    let (size, time) = (size.to_string(), duration.as_secs().to_string());
    let [from, to] = [End::HostA, End::LanA].map(mac);
    let addresses = ["--src", HOSTS[0], "--dst", HOSTS[1], "--src-mac", &from, "--dst-mac", &to];
    let packets = ["--size", &size, "--seconds", &time, "--json"];
    let words = [&[&bench, "generate", "--interface", "lan"], &addresses[..], &packets[..], pace].concat();
    let generator = environment.start_bench(Side::A, "generator", &words)?;
    let sent = generator.finish(duration + MARGIN, environment.stop)?;
    std::thread::sleep(DRAIN);
    Ok((parse(&sent)?, parse(&sink.stop()?)?))
}

fn parse(printed: &str) -> Result<Value> {
    serde_json::from_str(printed).map_err(|error| Error::Failed(format!("not a report of penstock-bench: {error}")))
}

impl Environment<'_> {
    /// Starts one of our programs, and waits until it has its queue: the kernel releases a queue only some time after
    /// its last socket is closed.
    fn start_bench(&self, side: Side, log: &str, words: &[&str]) -> Result<Process> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            let mut process = self.start(side, log, words)?;
            match process.wait_for(READY, READY_WITHIN, self.stop) {
                Ok(()) => return Ok(process),
                Err(Error::Failed(complaint)) if complaint.contains("busy") && Instant::now() < end => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts a program on a host.
    fn start(&self, side: Side, log: &str, words: &[&str]) -> Result<Process> {
        let mut command = self.topology.host(side).command(words[0]);
        command.args(&words[1..]);
        Process::start(command, &self.topology.folder.join(log))
    }
}

/// The CPU time of the whole machine: all processes, the kernel, hard and soft interrupts, but not what other virtual
/// machines took. In-kernel forwarding and AF_XDP work in soft interrupts, which are charged to no process, so nothing
/// less would be fair.
#[derive(Debug)]
pub(super) struct CpuClock {
    begun: Instant,
    busy: f64,
}

impl CpuClock {
    pub(super) fn start() -> Result<CpuClock> {
        Ok(CpuClock { begun: Instant::now(), busy: busy_seconds()? })
    }

    /// CPU seconds since then, without what the machine uses when nothing is measured.
    fn spent(&self, idle_load: f64) -> Result<f64> {
        let idle = idle_load * self.begun.elapsed().as_secs_f64();
        Ok((busy_seconds()? - self.busy - idle).max(0.0))
    }

    /// Cores that were busy since.
    pub(super) fn load(&self) -> Result<f64> {
        Ok((busy_seconds()? - self.busy) / self.begun.elapsed().as_secs_f64())
    }
}

fn busy_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").map_err(io_error("read /proc/stat"))?;
    let ticks = busy_ticks(&text).ok_or_else(|| Error::Failed("/proc/stat has no line for all cores".into()))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// user + nice + system + irq + softirq of the line "cpu" (proc_stat(5)).
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    match fields[..] {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] => Some(user + nice + system + irq + softirq),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_neither_idle_nor_waiting_nor_stolen() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 1 1\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), Some(7_600_321));
        assert_eq!(busy_ticks("cpu  1 2 3\n"), None);
        assert_eq!(busy_ticks("intr 5\n"), None);
    }

    #[test]
    fn the_clock_sees_a_core_at_work() {
        let clock = CpuClock::start().expect("/proc");
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        assert!(clock.load().expect("/proc") > 0.5);
        assert!(clock.spent(0.0).expect("/proc") > 0.15);
        assert_eq!(clock.spent(1e6).expect("/proc"), 0.0);
    }
}
