//! A stall must show in all the packets that would have been sent meanwhile.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use penstock_bench::traffic::packet::Mix;
use rustix::process::Signal;

use super::support::Running;
use super::{MIDDLE_EAST, RIGHT, Row, trial};

const RATE: u64 = 2_000;
const STALL: Duration = Duration::from_millis(300);

impl Running {
    /// Stops the process for a while; returns the least and the greatest time that it may have been stopped.
    pub fn stall(&self) -> (Duration, Duration) {
        let start = Instant::now();
        self.signal(Signal::STOP);
        let stopped = Instant::now();
        std::thread::sleep(STALL);
        let least = stopped.elapsed();
        self.signal(Signal::CONT);
        (least, start.elapsed())
    }
}

fn forwarder(row: &Row) -> Running {
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_penstock-bench"))
            .args(["forward", "--from=west", "--to=east", "--seconds=30"])
            .args(["--rewrite-src-mac", &MIDDLE_EAST.to_string(), "--rewrite-dst-mac", &RIGHT.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut child = Running(row.middle.enter(start).expect("a forwarder"));
    let mut line = String::new();
    BufReader::new(child.0.stderr.take().expect("piped")).read_line(&mut line).expect("standard error reads");
    assert!(line.starts_with("ready"), "{line}");
    child
}

#[test]
fn a_device_that_stands_still_shows_in_the_tail() {
    let Some(row) = Row::new() else { return };
    let device = forwarder(&row);
    let mut bench = row.bench(&Mix::packets(64));
    let (outcome, (least, most)) = std::thread::scope(|scope| {
        let measuring = scope.spawn(|| trial(&mut bench, RATE, 2.0));
        std::thread::sleep(Duration::from_millis(800));
        let stalled = device.stall();
        (measuring.join().expect("a trial"), stalled)
    });
    // The rings hold what arrives during a stall; not always a burst after the generator was held up.
    assert_eq!(outcome.sent.packets, 4_000);
    assert!(outcome.lost() <= outcome.sent.late, "{} lost, {} late", outcome.lost(), outcome.sent.late);

    // What a busy machine may add before the forwarder runs again.
    let slack = Duration::from_millis(100);
    let highest = Duration::from_nanos(outcome.latency.max());
    assert!(highest + Duration::from_millis(5) > least, "{highest:?} after {least:?}");
    assert!(highest < most + slack, "{highest:?} after {most:?}");

    // An open loop goes on sending: of the packets due during the stall, those of its first part wait longer
    // than `bound`. A closed loop would have had one packet on its way, and one bad sample.
    let bound = Duration::from_millis(100);
    let slow = outcome.latency.len() - outcome.latency.count_between(0, bound.as_nanos() as u64);
    let due_in = |time: Duration| (time.as_secs_f64() * RATE as f64) as u64;
    assert!(slow + 20 >= due_in(least - bound), "{slow} slow packets, {least:?} stalled");
    assert!(slow <= due_in(most + slack - bound), "{slow} slow packets, {most:?} stalled");
    // And no others are affected.
    assert!(outcome.latency.value_at_percentile(50.0) < bound.as_nanos() as u64 / 2);
}
