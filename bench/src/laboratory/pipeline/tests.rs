use super::figures::{at, label};
use super::subject::DIRECTIONS;
use super::*;
use crate::report::Measure;

const SUITE: Suite = Suite::ChaCha20Poly1305;

fn measured(sizes: &[Size]) -> Report {
    let options =
        Options { sizes: sizes.to_vec(), suite: SUITE, rounds: 2, time: Duration::from_millis(1), core: None };
    let mut steps = 0;
    let report = run(&options, &AtomicBool::new(false), &mut |_| steps += 1).expect("measured");
    assert_eq!(steps, options.steps());
    report
}

fn find<'a>(report: &'a Report, subject: &str, quantity: &str) -> &'a Measure {
    let found = report.measures.iter().find(|measure| measure.subject == subject && measure.quantity == quantity);
    found.unwrap_or_else(|| panic!("no {quantity} of {subject}"))
}

#[test]
fn every_size_and_stage_is_in_the_report_once_and_allocates_nothing() {
    let report = measured(&Size::ALL);
    for size in Size::ALL {
        for subject in Subject::all() {
            let time = find(&report, subject.name(), &at("time", size));
            assert!(time.samples.iter().all(|time| *time > 0.0), "{time:?}");
        }
    }
    for measure in &report.measures {
        assert!(measure.samples.len() == 2 && measure.samples.iter().all(|s| s.is_finite()), "{measure:?}");
    }
    let mut names: Vec<_> = report.measures.iter().map(|m| (&m.subject, &m.quantity)).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), report.measures.len());
    report.check().expect("a sound report");

    // And no stage allocates.
    let allocations: Vec<&Measure> =
        report.measures.iter().filter(|m| m.quantity.starts_with("allocations at ")).collect();
    assert_eq!(allocations.len(), Size::ALL.len() * Subject::all().count());
    for measure in allocations {
        assert_eq!(measure.samples, [0.0, 0.0], "{}", measure.subject);
    }
}

#[test]
fn what_follows_from_the_samples_adds_up() {
    let report = measured(&[Size::Imix]);
    let time = |name: &str| &find(&report, name, &at("time", Size::Imix)).samples;
    for direction in &DIRECTIONS {
        let name = direction.whole.name();
        for round in 0..2 {
            let whole = time(name)[round];
            let parts: f64 = direction.stages.iter().map(|stage| time(stage.name())[round]).sum();
            let rest = time(&format!("{name}: rest"))[round];
            assert!((whole - parts - rest).abs() < 1e-6, "{whole} is not {parts} and {rest}");
            let floor = time(direction.floor.name())[round];
            assert!((time(&format!("{name}: beyond ring"))[round] - (whole - floor)).abs() < 1e-6);
            // The mix has 16,120 bytes in 48 packets.
            let gigabits = find(&report, &label(name, Size::Imix), "throughput on one core").samples[round];
            assert!((gigabits - 16_120.0 / 48.0 * 8.0 / whole).abs() < 1e-6);
            let rate = find(&report, &label(name, Size::Imix), "rate on one core").samples[round];
            assert!((rate * whole - 1000.0).abs() < 1e-6);
            let beyond = find(&report, &label(name, Size::Imix), "beyond ring").samples[round];
            assert!(((1.0 + beyond / 100.0) * floor - whole).abs() < 1e-6);
        }
    }
}

#[test]
fn a_plot_holds_one_size_or_one_figure_of_each() {
    let report = measured(&Size::ALL);
    for quantity in report.quantities().iter().filter(|quantity| quantity.is_drawn()) {
        // A size's stages, with rest and what is beyond ring both ways; or each size both ways.
        let subjects = if quantity.name.contains(" at ") { Subject::all().count() + 4 } else { 2 * Size::ALL.len() };
        assert_eq!(quantity.measures.len(), subjects, "{}", quantity.heading());
    }
    let drawn = report.quantities().iter().filter(|quantity| quantity.is_drawn()).count();
    assert_eq!(drawn, Size::ALL.len() + 3, "neither cycles nor allocations");
}

#[test]
fn a_core_that_is_not_there_is_refused() {
    let options = Options {
        sizes: vec![Size::Imix],
        suite: SUITE,
        rounds: 1,
        time: Duration::from_millis(1),
        core: Some(100_000),
    };
    let refused = run(&options, &AtomicBool::new(false), &mut |_| {}).expect_err("no such core");
    assert_eq!(refused.to_string(), "cannot be pinned to core 100000");
}

#[test]
fn it_stops_when_told() {
    let options = Options { sizes: Size::ALL.to_vec(), suite: SUITE, rounds: 1000, time: LONGEST, core: None };
    let stopped = run(&options, &AtomicBool::new(true), &mut |_| {}).expect_err("stopped");
    assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
}
