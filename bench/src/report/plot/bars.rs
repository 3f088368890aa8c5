//! Bars: one per subject, beside its name. If a name is too long for that, all names are above their bars.

use std::fmt::Write;

use super::super::text::{escape, figure};
use super::super::{Quantity, Scale};
use super::ruler::Ruler;
use super::{Drawing, WIDTH, fit, width};

const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
/// Names longer than this would leave too little room for the bars, and are written above them.
const NAMES_MOST: f64 = WIDTH / 2.0;
/// How much a name above its bar adds to the height of a row.
const NAME_LINE: f64 = 16.0;
/// The space between names, bars and figures.
const GAP: f64 = 8.0;
/// Half the width of the first tick's label, if no name leaves room for it.
const LEFT_LEAST: f64 = 20.0;
/// The figures are in bold.
const BOLD: f64 = 1.1;
/// Under the bars, for the ticks.
const BOTTOM: f64 = 20.0;
/// Samples are drawn this far apart vertically, so that equal ones are both visible.
const JITTER: f64 = 3.0;
/// More dots than this would run together.
const DOTS: usize = 30;
/// The subject that the others are compared with, whose bars are highlighted.
const OURS: &str = "penstock";

pub(super) fn draw(quantity: &Quantity<'_>) -> Drawing {
    let measures = &quantity.measures;
    let samples = measures.iter().flat_map(|measure| measure.samples.iter().copied());
    let ruler = Ruler::new(samples, Scale::Linear, true);
    let names = measures.iter().map(|measure| width(&measure.subject)).fold(0.0, f64::max);
    let are_above = names > NAMES_MOST;
    let left = if are_above { LEFT_LEAST } else { (names + GAP).max(LEFT_LEAST) };
    let figures = measures.iter().map(|measure| width(&figure(measure.spread().median)) * BOLD).fold(0.0, f64::max);
    let right = WIDTH - GAP - figures;
    let x = |value: f64| left + ruler.place(value) * (right - left);
    let row_height = ROW + if are_above { NAME_LINE } else { 0.0 };
    let bottom = measures.len() as f64 * row_height;
    let mut body = String::new();
    for (place, label) in spaced(&ruler, right - left) {
        let x = left + place * (right - left);
        let _ = write!(
            body,
            r#"<path class="grid" d="M{x:.1} 0V{bottom}"/><text class="faint" x="{x:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            bottom + 15.0
        );
    }
    let any_ours = measures.iter().any(|measure| measure.subject.starts_with(OURS));
    for (row, measure) in measures.iter().enumerate() {
        let middle = (row + 1) as f64 * row_height - ROW / 2.0;
        let spread = measure.spread();
        let class = if !any_ours || measure.subject.starts_with(OURS) { "bar ours" } else { "bar" };
        let (zero, end) = (x(0.0), x(spread.median));
        let (name_x, name_y, anchor) = match are_above {
            true => (0.0, middle - BAR / 2.0 - 5.0, "start"),
            false => (left - GAP, middle + 4.0, "end"),
        };
        let _ = write!(
            body,
            r#"<text class="name" x="{name_x:.1}" y="{name_y:.1}" text-anchor="{anchor}">{}<title>{}</title></text><rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{BAR}" rx="2"/>"#,
            escape(&fit(&measure.subject, WIDTH)),
            escape(&measure.subject),
            zero.min(end),
            middle - BAR / 2.0,
            (end - zero).abs(),
        );
        if measure.samples.len() > 1 {
            let (least, most) = (x(spread.least), x(spread.most));
            let (up, down) = (middle - 4.0, middle + 4.0);
            let _ = write!(
                body,
                r#"<path class="whisker" d="M{least:.1} {middle}H{most:.1}M{least:.1} {up}V{down}M{most:.1} {up}V{down}"/>"#
            );
        }
        for (round, sample) in measure.samples.iter().take(DOTS).enumerate() {
            let y = middle + JITTER * ((round % 3) as f64 - 1.0);
            let _ = write!(body, r#"<circle class="dot" cx="{:.1}" cy="{y:.1}" r="1.8"/>"#, x(*sample));
        }
        let _ = write!(
            body,
            r#"<text class="figure" x="{WIDTH}" y="{:.1}" text-anchor="end">{}</text>"#,
            middle + 4.0,
            figure(spread.median)
        );
    }
    let _ = write!(body, r#"<path class="axis" d="M{0:.1} 0V{bottom}"/>"#, x(0.0));
    Drawing { width: WIDTH, height: bottom + BOTTOM, body }
}

/// The ticks, or as many of them, including 0, as have labels that do not touch on an axis of this length.
fn spaced(ruler: &Ruler, length: f64) -> Vec<(f64, String)> {
    let ticks = ruler.ticks();
    let widest = ticks.iter().map(|(_, label)| width(label)).fold(0.0, f64::max) + GAP;
    let apart = length / (ticks.len().max(2) - 1) as f64;
    let every = (widest / apart).ceil() as usize;
    let zero = ticks.iter().position(|(place, _)| *place >= ruler.place(0.0) - f64::EPSILON).unwrap_or(0);
    let kept = ticks.into_iter().enumerate().filter(|(n, _)| n.abs_diff(zero) % every.max(1) == 0);
    kept.map(|(_, tick)| tick).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::sample;
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let report = sample::report();
        let drawing = draw(&report.quantities()[0]).standalone("TCP");
        let document = roxmltree::Document::parse(&drawing).expect("well-formed");
        let of_class =
            |class: &str| document.descendants().filter(|n| n.attribute("class") == Some(class)).collect::<Vec<_>>();
        let width =
            |node: &roxmltree::Node<'_, '_>| node.attribute("width").map(|w| w.parse::<f64>().expect("a number"));
        let (kernel, penstock) = (width(&of_class("bar")[0]), width(&of_class("bar ours")[0]));
        let ratio = kernel.expect("drawn") / penstock.expect("drawn");
        assert!((ratio - 11.9 / 2.77).abs() < 0.05, "{ratio}");
        assert_eq!(of_class("dot").len(), 9);
        assert_eq!(of_class("whisker").len(), 3);
        let figures: Vec<_> = of_class("figure").iter().filter_map(|n| n.text().map(String::from)).collect();
        assert_eq!(figures, ["11.9", "2.77", "0.400"]);
    }

    /// The names as drawn: begin, end and text.
    fn names(drawing: &Drawing) -> Vec<(f64, f64, String)> {
        let drawing = drawing.standalone("");
        let document = roxmltree::Document::parse(&drawing).expect("well-formed");
        let names = document.descendants().filter(|node| node.attribute("class") == Some("name"));
        let place = |node: roxmltree::Node<'_, '_>| {
            let x: f64 = node.attribute("x").and_then(|x| x.parse().ok()).expect("a place");
            let text = node.text().unwrap_or_default().to_owned();
            match node.attribute("text-anchor") {
                Some("end") => (x - width(&text), x, text),
                _ => (x, x + width(&text), text),
            }
        };
        names.map(place).collect()
    }

    #[test]
    fn names_are_whole_and_inside() {
        let mut report = sample::report();
        for (long, height) in
            [("decrypt: ECN, next hop, TTL", 3.0 * 26.0), ("64 B, from the left to the right, forth", 3.0 * 42.0)]
        {
            report.measures[0].subject = long.into();
            let drawing = draw(&report.quantities()[0]);
            assert_eq!(drawing.height, height + BOTTOM);
            let names = names(&drawing);
            assert_eq!(
                names.iter().map(|(.., name)| name.as_str()).collect::<Vec<_>>(),
                [long, "penstock auto", "wireguard-go"]
            );
            assert!(names.iter().all(|(from, to, _)| *from >= 0.0 && *to <= WIDTH), "{names:?}");
        }
        report.measures[0].subject = "x".repeat(200);
        let names = names(&draw(&report.quantities()[0]));
        assert!(names[0].2.ends_with('…') && names[0].1 <= WIDTH, "{names:?}");
    }

    #[test]
    fn ticks_do_not_touch_and_keep_their_zero() {
        for values in [[0.0, 4900.0], [-3000.0, 49_000.0], [-0.001, 0.002]] {
            let ruler = Ruler::new(values.into_iter(), Scale::Linear, true);
            for length in [60.0, 150.0, 300.0] {
                let ticks = spaced(&ruler, length);
                assert!(ticks.iter().any(|(place, _)| (place - ruler.place(0.0)).abs() < 1e-9), "{ticks:?}");
                for pair in ticks.windows(2) {
                    let half = (width(&pair[0].1) + width(&pair[1].1)) / 2.0;
                    assert!((pair[1].0 - pair[0].0) * length > half, "{ticks:?} on {length}");
                }
            }
        }
    }
}
