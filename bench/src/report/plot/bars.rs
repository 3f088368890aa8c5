//! Bars: one a subject, so that long names have a line of their own on the left.

use std::fmt::Write;

use super::super::text::{escape, figure, shorten};
use super::super::{Quantity, Scale};
use super::ruler::Ruler;
use super::{Drawing, WIDTH};

const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
/// Where the bars begin, behind the names.
const LEFT: f64 = 122.0;
/// Behind the bars, for the median.
const RIGHT: f64 = 52.0;
/// Under the bars, for the ticks.
const BOTTOM: f64 = 20.0;
/// Characters of a name that fit in front of the bars.
const NAME: usize = 19;
/// Samples are drawn this far apart, up and down, so that equal ones both show.
const JITTER: f64 = 3.0;
/// More dots than this would be a blot.
const DOTS: usize = 30;
/// What the others are compared with: its bars stand out.
const OURS: &str = "penstock";

pub(super) fn draw(quantity: &Quantity<'_>) -> Drawing {
    let samples = quantity.measures.iter().flat_map(|measure| measure.samples.iter().copied());
    let ruler = Ruler::new(samples, Scale::Linear, true);
    let x = |value: f64| LEFT + ruler.place(value) * (WIDTH - LEFT - RIGHT);
    let bottom = quantity.measures.len() as f64 * ROW;
    let mut body = String::new();
    for (place, label) in ruler.ticks() {
        let x = LEFT + place * (WIDTH - LEFT - RIGHT);
        let _ = write!(
            body,
            r#"<path class="grid" d="M{x:.1} 0V{bottom}"/><text class="faint" x="{x:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            bottom + 15.0
        );
    }
    let any_ours = quantity.measures.iter().any(|measure| measure.subject.starts_with(OURS));
    for (row, measure) in quantity.measures.iter().enumerate() {
        let middle = row as f64 * ROW + ROW / 2.0;
        let spread = measure.spread();
        let class = if !any_ours || measure.subject.starts_with(OURS) { "bar ours" } else { "bar" };
        let (zero, end) = (x(0.0), x(spread.median));
        let _ = write!(
            body,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}<title>{}</title></text><rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{BAR}" rx="2"/>"#,
            LEFT - 8.0,
            middle + 4.0,
            escape(&shorten(&measure.subject, NAME)),
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
}
