//! Known rate, loss and delay.

use std::time::Duration;

use penstock_bench::laboratory::search::Limits;
use penstock_bench::laboratory::wire::{Findings, Kind, Plan, Session, Traffic};
use penstock_bench::traffic::packet::{Flows, Mix};

use penstock_netns::{End, veth};

use super::device::Delay;
use super::{MIDDLE_EAST, NO_STOP, PORT, RIGHT, Row, trial};

/// The rate that a token bucket lets through, in packets a second, of IP packets of `SIZE` bytes: it counts Ethernet
/// headers, but not check sequences.
const BUCKET: f64 = 8_000_000.0 / 8.0 / (SIZE + 14) as f64;
const SIZE: usize = 1000;

fn shape(row: &Row) {
    row.route();
    // Queue and burst are small, because each of the search's trials finds them empty and gains by that; but larger
    // than what the generator sends in a burst without reporting it.
    let words = "tc qdisc add dev east root tbf rate 8mbit burst 3000 limit 40000";
    row.middle.run(&words.split(' ').collect::<Vec<_>>());
}

#[test]
fn a_known_rate_is_reported() {
    let Some(row) = Row::new() else { return };
    shape(&row);
    let outcome = trial(&mut row.bench(&Mix::packets(SIZE)), 3_000, 1.5);
    assert_eq!(outcome.sent.packets, 4_500);
    // A busy machine may let the bucket's timer fire late, which loses tokens beyond the burst.
    let rate = outcome.received_rate;
    assert!(rate > 0.9 * BUCKET && rate < 1.02 * BUCKET, "{rate} of {BUCKET}");
    let bits = outcome.received_bits;
    assert!((bits / rate / (8 * SIZE) as f64 - 1.0).abs() < 1e-6, "{bits} of {rate}");
    let expected = 4_500.0 - 1.5 * BUCKET;
    let lost = outcome.lost() as f64;
    // What the burst and the queue held was not lost.
    assert!(lost > 0.95 * expected && lost < 1.1 * expected, "{lost} of {expected}");
    assert_eq!((outcome.counts.duplicates, outcome.counts.corrupt), (0, 0));
}

#[test]
fn a_search_finds_a_known_rate() {
    let Some(row) = Row::new() else { return };
    shape(&row);
    let findings = search(&row, Mix::packets(SIZE), Kind::Throughput);
    // Burst and queue hold four percent of a second's packets; the search's width is four, too.
    let rate = sample(&findings, "Throughput (RFC 2544)") * 1e3;
    assert!(rate > 0.95 * BUCKET && rate < 1.05 * BUCKET, "{rate} of {BUCKET}: {:?}", findings.notes);
    assert!(findings.notes.iter().any(|note| note.contains("ceiling was not measured")), "{:?}", findings.notes);
}

/// One round of seconds, loads up to 4000 packets/s.
fn search(row: &Row, mix: Mix, kind: Kind) -> Findings {
    let plan = Plan {
        mixes: vec![mix],
        kinds: vec![kind],
        fixed: None,
        trial: Duration::from_secs(1),
        duration_sum: Duration::from_secs(1),
        exceed_ratio: 0.0,
        width: 0.04,
        limits: Limits { min: 100, max: 4_000 },
        rounds: 1,
    };
    let session = Session {
        plan: &plan,
        traffic: &row.traffic(),
        device: row.bench(&plan.mixes[0]),
        bare: None,
        stop: &NO_STOP,
        progress: &mut |_| (),
    };
    session.run().expect("a search")
}

fn sample(findings: &Findings, quantity: &str) -> f64 {
    findings.measures.iter().find(|measure| measure.quantity == quantity).expect("it is there").samples[0]
}

#[test]
fn of_a_mix_only_what_came_is_counted() {
    let Some(row) = Row::new() else { return };
    row.route();
    let rule = "table ip filter { chain forward { type filter hook forward priority 0; meta length > 100 drop; }; }";
    row.middle.nft(rule);
    let findings = search(&row, Mix::imix(46), Kind::Maximum);
    let [kpps, gigabits] = ["", ", IP"].map(|unit| sample(&findings, &format!("Maximum received rate{unit}")));
    // Only the shortest packets, of 46 bytes, arrived.
    let bytes = gigabits * 1e9 / 8.0 / (kpps * 1e3);
    assert!((bytes - 46.0).abs() < 1e-6, "{bytes} bytes a packet");
}

#[test]
fn a_known_loss_is_reported() {
    let Some(row) = Row::new() else { return };
    row.route();
    let rule = format!(
        "table ip filter {{ chain forward {{ type filter hook forward priority 0; udp dport {PORT} numgen inc mod 10 == 0 drop; }}; }}"
    );
    row.middle.nft(&rule);
    let outcome = trial(&mut row.bench(&Mix::packets(200)), 1_000, 1.0);
    assert_eq!((outcome.sent.packets, outcome.sent.unsent), (1_000, 0));
    // Exactly every tenth; but a burst after the generator was held up may have overrun veth's queue.
    let lost = outcome.lost();
    assert!((100..=100 + outcome.sent.late).contains(&lost), "{lost}, {} late", outcome.sent.late);
    assert!(outcome.certainly_lost() <= 100);
    assert_eq!((outcome.counts.duplicates, outcome.counts.reordered, outcome.counts.corrupt), (0, 0, 0));
}

#[test]
fn known_duplicates_are_reported() {
    let Some(row) = Row::new() else { return };
    row.route();
    let rule = format!(
        "table ip filter {{ chain forward {{ type filter hook forward priority 0; \
         udp dport {PORT} numgen inc mod 10 == 0 dup to 198.19.0.1 device east; }}; }}"
    );
    row.middle.nft(&rule);
    let outcome = trial(&mut row.bench(&Mix::packets(200)), 1_000, 1.0);
    // One of ten arrives twice; copies are not reordering, and hide no loss.
    let missing = outcome.lost();
    assert!(missing <= outcome.sent.late, "{missing} lost");
    let copies = outcome.counts.duplicates;
    assert!(copies <= 100 && copies + outcome.sent.late >= 100, "{copies} copies");
    assert_eq!((outcome.counts.reordered, outcome.counts.corrupt), (0, 0));
}

#[test]
fn every_queue_is_received_from() {
    let Some(row) = Row::new() else { return };
    row.middle.ip("link del east");
    let (middle, right) = (MIDDLE_EAST.to_string(), RIGHT.to_string());
    let east = End { namespace: &row.middle, name: "east", address: &middle };
    veth([east, End { namespace: &row.right, name: "west", address: &right }], 2).expect("a pair with two queues");
    row.route();
    // The kernel assigns flows to queues by their hash: of 64, some go to each.
    let flows = Flows { count: 64, hosts: 1 };
    let traffic = Traffic { flows, ..row.traffic() };
    let outcome = trial(&mut row.bench_of(&traffic, &Mix::packets(100)), 1_000, 1.0);
    assert!(outcome.lost() <= outcome.sent.late, "{} lost, {} late", outcome.lost(), outcome.sent.late);
    assert_eq!((outcome.counts.reordered, outcome.counts.duplicates), (0, 0));
}

#[test]
fn a_known_delay_is_reported() {
    let Some(row) = Row::new() else { return };
    let delay = Duration::from_millis(5);
    let _device = Delay::start(&row, delay);
    let outcome = trial(&mut row.bench(&Mix::packets(64)), 1_000, 1.0);
    assert!(outcome.lost() <= outcome.sent.late, "{} lost, {} late", outcome.lost(), outcome.sent.late);
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    // Nothing can be faster (the histogram keeps 0.1 %), and some packet meets no other delay. For most packets, a busy
    // machine may add up to three times the delay.
    let least = micros(outcome.latency.min());
    assert!((4_995.0..6_000.0).contains(&least), "{least}");
    let median = micros(outcome.latency.value_at_percentile(50.0));
    assert!(median < 20_000.0, "{median}");
}
