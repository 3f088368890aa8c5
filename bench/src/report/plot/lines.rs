//! Curves, and the legend under them.

use std::fmt::Write;

use super::super::text::escape;
use super::super::{Axis, Curve, Plot};
use super::ruler::Ruler;
use super::{Drawing, WIDTH, fit};

/// The position of the curves in the drawing.
const LEFT: f64 = 50.0;
const TOP: f64 = 28.0;
const RIGHT: f64 = WIDTH - 14.0;
const BOTTOM: f64 = 230.0;
/// Height of a line of the legend, which has two columns.
const LEGEND_ROW: f64 = 18.0;
/// Where the legend begins.
const LEGEND: f64 = BOTTOM + 46.0;
/// The room for a name beside its line in the legend.
const NAME: f64 = WIDTH / 2.0 - 36.0;
/// Colours; further lines are dashed.
const COLOURS: usize = 8;
/// The most points of a line: more than one per pixel show nothing.
const POINTS: usize = 400;
/// Points are marked if there are no more than this.
const MARKED: usize = 25;

pub(super) fn draw(plot: &Plot<'_>) -> Drawing {
    let Some(first) = plot.curves.first() else {
        return Drawing { width: WIDTH, height: 0.0, body: String::new() };
    };
    let points = || plot.curves.iter().flat_map(|curve| curve.points.iter());
    let across = Ruler::new(points().map(|(x, _)| *x), first.x.scale, false);
    let up = Ruler::new(points().map(|(_, y)| *y), first.y.scale, true);
    let mut body = String::new();
    for (place, label) in across.ticks() {
        let x = LEFT + place * (RIGHT - LEFT);
        let _ = write!(
            body,
            r#"<path class="grid" d="M{x:.1} {TOP}V{BOTTOM}"/><text class="faint" x="{x:.1}" y="{}" text-anchor="middle">{label}</text>"#,
            BOTTOM + 15.0
        );
    }
    for (place, label) in up.ticks() {
        let y = BOTTOM - place * (BOTTOM - TOP);
        let _ = write!(
            body,
            r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/><text class="faint" x="{}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 6.0,
            y + 4.0
        );
    }
    let _ = write!(
        body,
        r#"<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/><text class="faint" x="0" y="12">{}</text><text class="faint" x="{RIGHT}" y="{}" text-anchor="end">{}</text>"#,
        name(&first.y),
        BOTTOM + 31.0,
        name(&first.x)
    );
    for (n, curve) in plot.curves.iter().enumerate() {
        let place =
            |(x, y): &(f64, f64)| (LEFT + across.place(*x) * (RIGHT - LEFT), BOTTOM - up.place(*y) * (BOTTOM - TOP));
        line(&mut body, n, curve, place);
        legend(&mut body, n, &curve.subject);
    }
    let rows = plot.curves.len().div_ceil(2) as f64;
    Drawing { width: WIDTH, height: LEGEND + rows * LEGEND_ROW, body }
}

fn line(body: &mut String, n: usize, curve: &Curve, place: impl Fn(&(f64, f64)) -> (f64, f64)) {
    let step = curve.points.len().div_ceil(POINTS);
    let last = curve.points.len() - 1;
    let shown = curve.points.iter().enumerate().filter(|(n, _)| n % step == 0 || *n == last);
    let places: Vec<(f64, f64)> = shown.map(|(_, point)| place(point)).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let class = class(n);
    let _ = write!(body, r#"<path class="line {class}" d="M{}"/>"#, path.join("L"));
    if places.len() <= MARKED {
        for (x, y) in places {
            let _ = write!(body, r#"<circle class="line {class}" cx="{x:.1}" cy="{y:.1}" r="1.5"/>"#);
        }
    }
}

fn legend(body: &mut String, n: usize, subject: &str) {
    let x = (n % 2) as f64 * WIDTH / 2.0;
    let y = LEGEND + (n / 2) as f64 * LEGEND_ROW + 6.0;
    let _ = write!(
        body,
        r#"<path class="line {}" d="M{x} {y}h22"/><text x="{}" y="{}">{}<title>{}</title></text>"#,
        class(n),
        x + 28.0,
        y + 4.0,
        escape(&fit(subject, NAME)),
        escape(subject)
    );
}

fn class(n: usize) -> String {
    format!("s{}{}", n % COLOURS, if n >= COLOURS { " dashed" } else { "" })
}

fn name(axis: &Axis) -> String {
    match axis.unit.as_str() {
        "" => escape(&axis.label),
        unit => format!("{}, {}", escape(&axis.label), escape(unit)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sample;
    use super::*;

    #[test]
    fn curves_rise_and_keep_inside() {
        let report = sample::report();
        let drawing = draw(&report.plots()[0]).standalone("Latency");
        let document = roxmltree::Document::parse(&drawing).expect("well-formed");
        let lines: Vec<Vec<(f64, f64)>> = document
            .descendants()
            .filter(|n| n.has_tag_name("path") && n.attribute("class").is_some_and(|c| c.starts_with("line")))
            .filter_map(|n| n.attribute("d")?.strip_prefix('M'))
            .filter(|path| path.contains('L'))
            .map(|path| {
                let point = |text: &str| text.split_once(' ').map(|(x, y)| (x.parse(), y.parse()));
                let point = |text| match point(text) {
                    Some((Ok(x), Ok(y))) => (x, y),
                    other => panic!("{text}: {other:?}"),
                };
                path.split('L').map(point).collect()
            })
            .collect();
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert_eq!(line.len(), 6);
            assert!(line.is_sorted_by(|a, b| a.0 < b.0 && a.1 > b.1), "{line:?}");
            assert!(line.iter().all(|(x, y)| (LEFT..=RIGHT).contains(x) && (TOP..=BOTTOM).contains(y)), "{line:?}");
            assert_eq!(line[5].0, RIGHT);
        }
    }

    #[test]
    fn many_points_are_thinned_and_the_last_one_stays() {
        let mut report = sample::report();
        report.curves[2].points = (0..100_000).map(|n| (f64::from(n), f64::from(n % 7))).collect();
        let drawing = draw(&report.plots()[1]).body;
        assert!(drawing.len() < 20_000, "{}", drawing.len());
        assert!(drawing.contains(&format!("L{RIGHT:.1} ")), "{drawing}");
    }
}
