//! A report for the terminal: a table per quantity, and one for everything that the page does not draw.

use std::fmt::Write;

use comfy_table::{Cell, CellAlignment, Table, presets};

use super::text::{figure, plain};
use super::{Measure, Quantity, Report};

/// Everything but the curves, which only a plot can show.
pub fn render(report: &Report) -> String {
    let mut text = format!("{}\n\n", plain(&report.title));
    let mut context = table();
    context.add_rows(report.context.iter().map(|(name, value)| [plain(name), plain(value)]));
    push(&mut text, &context);
    let (drawn, told): (Vec<_>, Vec<_>) = report.quantities().into_iter().partition(Quantity::is_drawn);
    for quantity in &drawn {
        let _ = writeln!(text, "{} ({})", plain(&quantity.heading()), quantity.better.sentence());
        let mut table = headed(&[""]);
        table.add_rows(quantity.rows().iter().map(|(subject, measure)| row(&[subject], measure)));
        push(&mut text, &table);
    }
    if !told.is_empty() {
        push(&mut text, &together(&told));
    }
    if !report.curves.is_empty() {
        let names: Vec<String> = report.plots().iter().map(|plot| plain(plot.name)).collect();
        let _ = writeln!(text, "plots, in the page and the CSV: {}\n", names.join("; "));
    }
    for note in &report.notes {
        let _ = writeln!(text, "- {}", plain(note));
    }
    text
}

/// The figures that the page does not draw, in one table; the heading of a quantity is in the first of its rows.
fn together(quantities: &[Quantity<'_>]) -> Table {
    let mut table = headed(&["", ""]);
    for quantity in quantities {
        let headings = std::iter::once(quantity.heading()).chain(std::iter::repeat(String::new()));
        table
            .add_rows(quantity.rows().iter().zip(headings).map(|((subject, m), heading)| row(&[&heading, subject], m)));
    }
    table
}

/// A table of figures with this many columns of names.
fn headed(names: &[&str]) -> Table {
    let mut table = table();
    let names = names.iter().chain(&["median", "least", "most", "rounds"]);
    table.set_header(names.map(|name| Cell::new(name).set_alignment(CellAlignment::Right)));
    table
}

fn row(names: &[&str], measure: &Measure) -> Vec<Cell> {
    let spread = measure.spread();
    let rounds = measure.samples.len().to_string();
    let figures = [figure(spread.median), figure(spread.least), figure(spread.most), rounds];
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    names.iter().map(|name| Cell::new(plain(name))).chain(figures.map(right)).collect()
}

/// Without lines, so that it can be pasted into a mail.
pub(super) fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn push(text: &mut String, table: &Table) {
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_table_reads_well() {
        let report = sample::report();
        let expected = "\
Comparison

 kernel  6.18.0
 load    0.1 0.2 0.3

TCP, 1 stream, Gbit/s (higher is better)
                median  least   most  rounds
 kernel           11.9   8.83   13.5       3
 penstock auto    2.77   2.57   3.64       3
 wireguard-go    0.400  0.340  0.460       3

idle ping, µs (lower is better)
                median  least  most  rounds
 kernel           64.0   60.0  74.0       3
 penstock auto     318    276   339       3

                                          median  least   most  rounds
 TCP, 1 stream, of kernel  penstock auto   0.270  0.232  0.291       3

plots, in the page and the CSV: Latency; Loss

- nebula was skipped: nebula is not on this machine.
";
        assert_eq!(render(&report), expected);
    }

    #[test]
    fn what_differs_nowhere_is_one_row() {
        let mut report = sample::report();
        for measure in report.measures.iter_mut().filter(|measure| measure.quantity == "idle ping") {
            measure.samples = vec![0.0; 3];
        }
        let text = render(&report);
        assert!(text.contains(" idle ping, µs             all 2               0      0      0       3\n"), "{text}");
    }

    #[test]
    fn no_text_steers_the_terminal() {
        let mut report = sample::report();
        let steer = |text: &mut String| text.insert_str(0, "\u{1b}[2J\n");
        steer(&mut report.title);
        report.notes.iter_mut().for_each(steer);
        report.context.iter_mut().for_each(|(name, text)| [name, text].into_iter().for_each(steer));
        for Measure { subject, quantity, unit, .. } in &mut report.measures {
            [subject, quantity, unit].into_iter().filter(|text| !text.is_empty()).for_each(steer);
        }
        report.curves.iter_mut().for_each(|curve| steer(&mut curve.quantity));
        let text = render(&report);
        assert!(!text.contains('\u{1b}') && text.contains('\u{fffd}'), "{text:?}");
        assert_eq!(text.lines().count(), render(&sample::report()).lines().count());
    }
}
