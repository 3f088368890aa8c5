//! A report of penstock-bench from anywhere: read, shown in every form, compared with itself and its reverse.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_bench::report::verdict::rank_sum::Confidence;
use penstock_bench::report::verdict::{Verdict, compare};
use penstock_bench::report::{csv, html, json, plot, table};

fuzz_target!(|input: &[u8]| {
    let Ok(report) = json::parse(input) else { return };
    let written = json::write(&report).expect("what was read can be written");
    assert_eq!(json::parse(written.as_bytes()).expect("and read again"), report);

    let shown = table::render(&report);
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'));
    let page = html::render(&report);
    assert!(!page.contains("<script"));
    csv::write(&report, std::io::sink()).expect("a sink takes all");
    if let Ok(picture) = plot::picture(&report, &[]) {
        picture.standalone(&report.title);
    }

    let Ok(same) = compare(&report, &report, Confidence::Percent95) else { return };
    assert_eq!(same.count(Verdict::Faster) + same.count(Verdict::Slower), 0);
    let mut reversed = report.clone();
    reversed.measures.iter_mut().for_each(|measure| measure.samples.reverse());
    let comparison = compare(&report, &reversed, Confidence::Percent99).expect("as many pairs as before");
    assert_eq!(comparison.count(Verdict::Faster) + comparison.count(Verdict::Slower), 0);
    comparison.render();
});
