//! Makes a report from the samples of all rounds.

use penstock_dataplane::session::Suite;

use super::Sample;
use super::allocations;
use super::meter::Meter;
use super::rig::SITES;
use super::size::Size;
use super::subject::{DIRECTIONS, Direction, Subject};
use crate::report::{Better, Measure, Report};

/// Converts bytes per nanosecond to Gbit/s.
const BITS: f64 = 8.0;
/// Converts packets per nanosecond to millions per second.
const MEGA: f64 = 1e3;
/// The largest packet that fits the frames of AF_XDP ports with all its headers.
const JUMBO: usize =
    penstock_dataplane::frame::FRAME_ROOM - penstock_dataplane::ports::EGRESS_ROOM - penstock_dataplane::session::TAG;

/// The results at one size: the samples of each subject, one per round.
pub(super) struct Rows {
    pub size: Size,
    pub mean_bytes: f64,
    pub subjects: Vec<(Subject, Vec<Sample>)>,
}

impl Rows {
    pub fn new(size: Size, subjects: &[Subject]) -> Self {
        Self { size, mean_bytes: 0.0, subjects: subjects.iter().map(|subject| (*subject, Vec::new())).collect() }
    }

    fn of(&self, subject: Subject) -> &[Sample] {
        self.subjects.iter().find(|(s, _)| *s == subject).map_or(&[], |(_, samples)| samples)
    }

    fn nanoseconds(&self, subject: Subject) -> Vec<f64> {
        self.of(subject).iter().map(|sample| sample.nanoseconds).collect()
    }
}

/// The name of what is compared between stages: a quantity for each size, so that the values of one plot have the same
/// order of magnitude.
pub(super) fn at(quantity: &str, size: Size) -> String {
    format!("{quantity} at {size}")
}

/// The name of what is compared between sizes: a subject for each size.
pub(super) fn label(name: &str, size: Size) -> String {
    format!("{name}, {size}")
}

pub(super) fn report(rows: &[Rows], suite: Suite, meter: &Meter, core: usize) -> Report {
    let cycles = meter.cycles().are_counted();
    let counted = allocations::are_counted();
    let mut measures: Vec<Measure> =
        rows.iter().flat_map(|rows| DIRECTIONS.iter().flat_map(|d| rates(rows, d))).collect();
    for rows in rows {
        for (subject, samples) in &rows.subjects {
            let all = |value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<f64>>();
            let lower = |quantity: &str, unit: &str, samples| {
                Measure::new(subject.name(), at(quantity, rows.size), unit, Better::Lower, samples)
            };
            measures.push(lower("time", "ns/packet", all(|sample| sample.nanoseconds)));
            if cycles {
                measures.push(lower("cycles", "cycles/packet", all(|sample| sample.cycles)));
            }
            if counted {
                measures.push(lower("allocations", "1/packet", all(|sample| sample.allocations)));
            }
        }
        measures.extend(DIRECTIONS.iter().flat_map(|direction| beside(rows, direction)));
    }
    let context = vec![
        ("suite".into(), suite.to_string()),
        ("core".into(), format!("{core} (pinned)")),
        ("cycles".into(), if cycles { "the core's, in user mode" } else { "not counted: no counter here" }.into()),
        ("clock's own time".into(), format!("{} ns a measurement, subtracted", meter.own().time.as_nanos())),
        ("table".into(), format!("{SITES} sites, each with a session, a /24 and a /32; one flow to one of them")),
    ];
    Report { measures, notes: notes(rows, counted), ..Report::new("Pipeline", context) }
}

/// What a core carries in one direction, in each round, and how much longer that takes than the AEAD alone.
fn rates(rows: &Rows, direction: &Direction) -> Vec<Measure> {
    let (whole, floor) = (rows.nanoseconds(direction.whole), rows.nanoseconds(direction.floor));
    let subject = label(direction.whole.name(), rows.size);
    let measure = |quantity, unit, better, samples| Measure::new(&subject, quantity, unit, better, samples);
    let gigabits = whole.iter().map(|time| rows.mean_bytes * BITS / time).collect();
    let millions = whole.iter().map(|time| MEGA / time).collect();
    let beyond = whole.iter().zip(&floor).map(|(whole, floor)| (whole / floor - 1.0) * 100.0).collect();
    vec![
        measure("throughput on one core", "Gbit/s", Better::Higher, gigabits),
        measure("rate on one core", "Mpps", Better::Higher, millions),
        measure("beyond ring", "% of ring's time", Better::Lower, beyond),
    ]
}

/// A direction's time that is in none of its stages, and its time beyond the AEAD alone, in each round.
fn beside(rows: &Rows, direction: &Direction) -> [Measure; 2] {
    let (whole, floor) = (rows.nanoseconds(direction.whole), rows.nanoseconds(direction.floor));
    let mut rest = whole.clone();
    for stage in direction.stages {
        rest.iter_mut().zip(rows.nanoseconds(*stage)).for_each(|(rest, stage)| *rest -= stage);
    }
    let beyond = whole.iter().zip(&floor).map(|(whole, floor)| whole - floor).collect();
    [("rest", rest), ("beyond ring", beyond)].map(|(name, samples)| {
        let subject = format!("{}: {name}", direction.whole.name());
        Measure::new(subject, at("time", rows.size), "ns/packet", Better::Lower, samples)
    })
}

fn notes(rows: &[Rows], counted: bool) -> Vec<String> {
    let mut notes = vec![
        "Sizes are those of the inner IP packet; throughput counts its bits. A direction on one core is all that the \
         core does."
            .into(),
        "A sample is the median of its round's passes over one batch of 64 packets (48 of the mix), which are in the \
         cache, as they are behind a network card that writes there. Stages of nanoseconds are done 16 times over the \
         batch in a pass."
            .into(),
        "Rest is the worker's turn less the sum of its stages: what the memory ports, batching, queues, counters and \
         the clock take. It may be below 0, since in the worker a packet is fetched while the one before it is \
         encrypted, and stages overlap."
            .into(),
        "Memory ports put on no headers: those that AF_XDP ports write and read (IPv4, no UDP checksum) are measured \
         beside the worker and are not part of it. The kernel's share, steering and the driver, is not measured."
            .into(),
    ];
    if rows.iter().any(|rows| rows.size == Size::Imix) {
        notes.push(
            "IMIX is 28 : 16 : 4 Ethernet frames of 64, 570 and 1518 bytes, so IP packets of 46, 552 and 1500; the \
             tunnel's MTU is 1500 for it."
                .into(),
        );
    }
    if rows.iter().any(|rows| matches!(rows.size, Size::Bytes(bytes) if bytes > JUMBO)) {
        notes.push(
            "Packets that do not fit a frame of 4096 bytes are measured in larger frames of ordinary memory, which \
             AF_XDP does not take."
                .into(),
        );
    }
    if !counted {
        notes.push("Allocations were not counted: this program has another allocator.".into());
    }
    notes
}
