//! A comparison as Markdown, for bench/RESULTS.md.

use std::fmt::Write;

use super::figures::{self, Quantity};
use crate::report::text::plain;
use crate::report::{Measure, Report};

/// The page.
pub fn render(report: &Report) -> String {
    let command = report.context.iter().find(|(name, _)| name == "command line").map_or("", |(_, text)| text);
    let mut page = format!(
        "# Results\n\
         Written by `{}`. Medians of the rounds, with the least and the most; everything was measured in this one run \
         on this one machine. [bench-compare.md](../docs/bench-compare.md) says what each figure is and what limits \
         it.\n\n| | |\n|---|---|\n",
        cell(command)
    );
    for (name, text) in report.context.iter().filter(|(name, _)| name != "command line") {
        let _ = writeln!(page, "| {} | {} |", cell(name), cell(text));
    }
    // Rates and their fractions of the ceiling first, then the rest.
    let (rates, rest): (Vec<&Quantity>, Vec<&Quantity>) =
        figures::ALL.into_iter().partition(|quantity| figures::ratio_name(quantity).is_some());
    let rates = rates.iter().flat_map(|quantity| [Some(quantity.name.into()), figures::ratio_name(quantity)]);
    table(&mut page, report, &rates.flatten().collect::<Vec<String>>());
    table(&mut page, report, &rest.iter().map(|quantity| quantity.name.to_owned()).collect::<Vec<_>>());
    page.push('\n');
    for note in &report.notes {
        let _ = writeln!(page, "- {}", cell(note));
    }
    page
}

/// A table with a row per subject and a column per quantity measured.
fn table(page: &mut String, report: &Report, wanted: &[String]) {
    let quantities = report.quantities();
    let columns: Vec<_> = wanted.iter().filter_map(|name| quantities.iter().find(|q| q.name == *name)).collect();
    let mut subjects: Vec<&str> = Vec::new();
    for measure in columns.iter().flat_map(|column| &column.measures) {
        if !subjects.contains(&measure.subject.as_str()) {
            subjects.push(&measure.subject);
        }
    }
    let headings: Vec<String> = columns.iter().map(|column| cell(&column.heading())).collect();
    let _ = writeln!(page, "\n| | {} |\n|---|{}", headings.join(" | "), "---|".repeat(columns.len()));
    for subject in subjects {
        let found = |column: &&crate::report::Quantity<'_>| {
            column
                .measures
                .iter()
                .find(|measure| measure.subject == subject)
                .map_or("–".into(), |measure| figures(measure))
        };
        let _ = writeln!(page, "| {} | {} |", cell(subject), columns.iter().map(found).collect::<Vec<_>>().join(" | "));
    }
}

/// "median (least to most)"; for a ratio only the median.
fn figures(measure: &Measure) -> String {
    use crate::report::text::figure;
    let spread = measure.spread();
    match measure.unit.is_empty() {
        true => format!("{:.2}", spread.median),
        false => format!("{} ({} to {})", figure(spread.median), figure(spread.least), figure(spread.most)),
    }
}

fn cell(text: &str) -> String {
    plain(text).replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::super::{Placement, subject};
    use super::*;

    #[test]
    fn the_tables_have_a_row_a_subject() {
        let [kernel, other] = ["kernel", "wireguard-go"].map(|name| subject::find(name).expect("a subject"));
        let mut figures = figures::Figures::default();
        for round in 0..3 {
            figures.add(kernel, Placement::Scheduler, round, &figures::TCP_1, 10.0 + round as f64);
            figures.add(other, Placement::Scheduler, round, &figures::TCP_1, 5.0 + round as f64 / 2.0);
            figures.add(kernel, Placement::Scheduler, round, &figures::PING, 60.0);
        }
        let context = vec![("command line".into(), "penstock-bench compare".into()), ("a|b".into(), "c".into())];
        let mut report = Report::new("Comparison", context);
        report.notes.push("nebula was skipped.".into());
        figures.report(&[kernel, other], &mut report);
        let page = render(&report);
        for line in [
            "| a\\|b | c |",
            "| | TCP, 1 stream, Gbit/s | TCP, 1 stream, of kernel |",
            "| kernel | 11.0 (10.0 to 12.0) | – |",
            "| wireguard-go | 5.50 (5.00 to 6.00) | 0.50 |",
            "| | idle ping, µs |",
            "| kernel | 60.0 (60.0 to 60.0) |",
            "- nebula was skipped.",
        ] {
            assert!(page.lines().any(|found| found == line), "\"{line}\" is not in\n{page}");
        }
        assert!(page.contains("by `penstock-bench compare`"));
    }
}
