//! The subjects in turn, round after round.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::figures::Figures;
use super::measure::{self, CpuClock, Environment};
use super::topology::Topology;
use super::{Error, Options, Placement, Result, Subject, io_error, process};
use crate::laboratory::context;
use crate::laboratory::progress::Progress;
use crate::report::Report;

/// The programs without which nothing can be measured.
const TOOLS: [&str; 8] = ["ip", "ethtool", "iperf3", "ping", "sysctl", "nsenter", "mount", "sh"];
/// With this many cores busy otherwise, CPU time says nothing about the subject, and the other figures are unreliable.
const BUSY_CORES: f64 = 0.2;
/// How long the machine is observed while nothing is measured.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Notes that hold for every run, whatever its results.
const ALWAYS: [&str; 7] = [
    "Traffic sources and sinks, both gateways and the kernel share the machine's cores: a rate is what the whole chain \
     carries, not what a gateway on cores of its own would, and a gateway that takes less leaves more to the others.",
    "The links are veth pairs: AF_XDP copies every packet on them, and a NIC with zero-copy would favour it; TCP passes \
     them in super-packets of up to 64 kB, which favours what keeps those whole (kernel, penstock-tun).",
    "UDP rates are what the sink received while an unpaced generator sent one flow; it loses what the chain cannot carry. \
     Sizes are those of the Ethernet frames on the LAN without their check sequence.",
    "Latency is one way, from when a packet was due until the sink had it, its wake-up included: 2000 frames of 64 B \
     a second.",
    "CPU time is the whole machine's, iperf3 included: all that was not idle, less what was busy before anything was \
     started, per 10^9 bytes received. A gateway that polls busily is charged for its polling.",
    "Ratios are of the same round; trust them more than the absolute figures.",
    "WireGuard encrypts with ChaCha20-Poly1305, nebula with AES-256-GCM, its default. Every rival runs with its \
     defaults, with an MTU of 1440.",
];

/// Measures all subjects. What cannot be measured is left out, with a sentence that says so.
///
/// # Errors
/// [`Error::Stopped`] after a signal; a sentence if nothing at all can be measured.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Report> {
    let mut report = Report::new("Comparison of gateways", context::machine());
    look_around(options)?;
    let folder = std::env::temp_dir();
    for left in penstock_netns::left_in(&folder) {
        let _ = fs::remove_dir_all(folder.join(left));
    }
    let mut subjects = Vec::new();
    for subject in &options.subjects {
        match subject.look(options) {
            Ok(version) => subjects.push((subject, version)),
            Err(why) => report.notes.push(format!("{} was skipped: {why}.", subject.name)),
        }
    }
    if subjects.is_empty() {
        return Err(Error::Failed(format!("nothing to measure: {}", report.notes.join(" "))));
    }
    let names: Vec<&Subject> = subjects.iter().map(|(subject, _)| *subject).collect();
    let places: usize = names.iter().map(|subject| placements(subject, options).len()).sum();
    let progress = Progress::new((options.rounds * places * measure::ALL.len()) as u64);
    report.notes.iter().for_each(|note| progress.say(note));
    let folder =
        tempfile::Builder::new().prefix(&penstock_netns::prefix()).tempdir().map_err(io_error("make a folder"))?;
    let mut run = Run {
        options,
        stop,
        progress,
        folder: folder.path(),
        figures: Figures::default(),
        said: vec![],
        bound: BTreeMap::new(),
        links: None,
    };
    for round in 0..options.rounds {
        run.round(round, &names)?;
    }
    report.context.extend(surroundings(options, run.links.as_deref().unwrap_or("unknown")));
    report.context.extend(names.iter().map(|subject| (format!("{} is", subject.name), subject.about.to_string())));
    for version in subjects.into_iter().filter_map(|(_, version)| version) {
        if !report.context.contains(&version) {
            report.context.push(version);
        }
    }
    let bound = run.bound.iter().map(|(name, modes)| (format!("{name} bound"), modes.clone()));
    report.context.extend(bound);
    if options.placements.len() > 1 {
        let pinned = |subject: &&Subject| Some((format!("{} pinned for", subject.name), run.figures.pinned(subject)?));
        report.context.extend(names.iter().filter_map(pinned));
    }
    report.notes.append(&mut run.said);
    report.notes.extend(ALWAYS.map(String::from));
    run.figures.report(&names, &mut report);
    Ok(report)
}

/// A comparison under way.
struct Run<'a> {
    options: &'a Options,
    stop: &'a AtomicBool,
    progress: Progress,
    folder: &'a Path,
    figures: Figures,
    /// What went wrong.
    said: Vec<String>,
    /// By subject, the modes that it actually bound.
    bound: BTreeMap<String, String>,
    /// The kernel's description of the links.
    links: Option<String>,
}

impl Run<'_> {
    /// Each round begins with a different subject, so that none is always first.
    fn round(&mut self, round: usize, subjects: &[&Subject]) -> Result<()> {
        let clock = CpuClock::start()?;
        thread::sleep(IDLE_LOOK);
        let idle_load = clock.load()?;
        if idle_load > BUSY_CORES {
            let sentence = format!(
                "The machine was not idle in round {}: {idle_load:.1} cores were busy before anything was started. So its \
                 figures are too low and noisy, and CPU time was not measured.",
                round + 1
            );
            self.say(sentence);
        }
        let idle_load = (idle_load <= BUSY_CORES).then_some(idle_load);
        for n in 0..subjects.len() {
            let subject = subjects[(n + round) % subjects.len()];
            for placement in placements(subject, self.options) {
                self.subject(round, subject, *placement, idle_load)?;
            }
        }
        Ok(())
    }

    /// Measures one subject in namespaces of its own. Only a signal is returned as an error.
    fn subject(&mut self, round: usize, subject: &Subject, placement: Placement, idle_load: Option<f64>) -> Result<()> {
        let topology = Topology::new(self.folder, placement, &self.options.congestion_control)?;
        self.links.get_or_insert_with(|| topology.describe_links());
        let mut running = match subject.start(&topology, self.options, self.stop) {
            Ok(running) => running,
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(error) => {
                self.progress.skip(measure::ALL.len() as u64);
                self.complain(round, subject, &error.to_string());
                return Ok(());
            }
        };
        let bound = subject.bound(&topology, &running, self.options);
        self.bound.extend(bound.map(|modes| (subject.name.to_string(), modes)));
        let environment = Environment { topology: &topology, options: self.options, idle_load, stop: self.stop };
        for measurement in &measure::ALL {
            let of = self.options.rounds;
            self.progress.begin(&format!("round {} of {of}, {}, {}", round + 1, subject.name, measurement.name()));
            match measurement.take(&environment) {
                Ok(taken) => {
                    for (quantity, value) in taken.figures {
                        self.figures.add(subject, placement, round, quantity, value);
                    }
                    self.figures.add_round_trips(subject, placement, &taken.round_trips);
                    if !taken.latency.is_empty() {
                        self.figures.add_latency(subject, placement, taken.latency);
                    }
                }
                Err(Error::Stopped) => return Err(Error::Stopped),
                Err(error) => self.complain(round, subject, &format!("{}: {error}", measurement.name())),
            }
        }
        if let Some(death) = running.has_died() {
            self.complain(round, subject, &death);
        }
        Ok(())
    }

    fn complain(&mut self, round: usize, subject: &Subject, what: &str) {
        self.say(format!("{}, round {}: {}.", subject.name, round + 1, what.trim_end_matches('.')));
    }

    fn say(&mut self, sentence: String) {
        self.progress.say(&sentence);
        self.said.push(sentence);
    }
}

/// The placements in which a subject is measured.
fn placements<'a>(subject: &Subject, options: &'a Options) -> &'a [Placement] {
    if subject.can_be_pinned() { &options.placements } else { &[Placement::Scheduler] }
}

fn placed(placements: &[Placement]) -> &'static str {
    match placements {
        [Placement::Scheduler] => "placed by the scheduler",
        [Placement::Pinned] => "A on core 0, B on core 1",
        _ => "placed by the scheduler, and A on core 0 with B on core 1; each figure is that of the better one",
    }
}

/// Checks that everything that every subject needs is there.
fn look_around(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Failed("network namespaces and AF_XDP need root".into()));
    }
    let pinning = options.placements.contains(&Placement::Pinned).then_some("taskset");
    let missing: Vec<&str> = TOOLS.into_iter().chain(pinning).filter(|tool| process::find(tool).is_none()).collect();
    match missing[..] {
        [] => Ok(()),
        _ => Err(Error::Failed(format!("these programs are not on this machine: {}", missing.join(", ")))),
    }
}

fn surroundings(options: &Options, links: &str) -> Vec<(String, String)> {
    let line = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let iperf3 = context::version(Path::new("iperf3"), &["--version"]).unwrap_or("version unknown".into());
    let seconds = options.duration.as_secs();
    vec![
        line("rounds", &format!("{} interleaved, {seconds} s a measurement", options.rounds)),
        line("topology", "4 network namespaces (host, gateway, gateway, host)"),
        line("links", links),
        line("gateways", placed(&options.placements)),
        line("iperf3", &iperf3),
        line("congestion control", &options.congestion_control),
    ]
}
