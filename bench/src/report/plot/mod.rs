//! Plots as SVG, for the page and for files of their own.
//!
//! Colours come from the classes in [`STYLE`], which follows the reader's preference for light or dark. Coordinates are
//! those of a small screen, so that letters stay legible when a phone shows the plot at full width.

mod bars;
mod lines;
mod ruler;

use std::fmt::Write;

use super::text::{escape, plain};
use super::{Plot, Quantity, Report};

/// The width of a plot: that of a phone.
const WIDTH: f64 = 400.0;
/// The space between the plots of a picture.
const GAP: f64 = 24.0;
/// The margin of a drawing in a file: the viewer's background may not suit the colours.
const PAPER: f64 = 16.0;
/// The room for a plot's title in a picture.
const TITLE: f64 = 24.0;

/// Colours and fonts. The eight line colours are those of Okabe and Ito ("Color universal design", 2008), which most
/// colour-blind readers can tell apart, darkened or lightened to stand out from the background.
pub const STYLE: &str = "\
.plot{--paper:#fff;--ink:#1d2733;--faint:#5b6876;--grid:#e3e8ee;--bar:#a9b6c4;--ours:#0b7285;--dot:#1d2733;\
--s0:#0b7285;--s1:#d55e00;--s2:#0072b2;--s3:#b0498a;--s4:#00805c;--s5:#9a6d00;--s6:#3b3f98;--s7:#5b6876;\
font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:var(--ink)}\
@media(prefers-color-scheme:dark){.plot{--paper:#1b232c;--ink:#e4eaf0;--faint:#9aa7b4;--grid:#2c3742;--bar:#566474;--ours:#3bb3c7;\
--dot:#e4eaf0;--s0:#3bb3c7;--s1:#ff8c42;--s2:#5fb0f0;--s3:#e08fc0;--s4:#3ecf9c;--s5:#e6b422;--s6:#9a9df5;\
--s7:#9aa7b4}}\
.plot .paper{fill:var(--paper)}.plot .faint{fill:var(--faint)}.plot .title{font-weight:600;font-size:13px}.plot .figure{font-weight:600}\
.plot .grid{stroke:var(--grid);fill:none}.plot .axis{stroke:var(--faint);fill:none}\
.plot .bar{fill:var(--bar)}.plot .ours{fill:var(--ours)}.plot .whisker{stroke:var(--ink);stroke-width:1.2;fill:none}\
.plot .dot{fill:var(--dot);fill-opacity:.55}.plot .line{fill:none;stroke-width:2;stroke-linejoin:round}\
.plot .s0{stroke:var(--s0)}.plot .s1{stroke:var(--s1)}.plot .s2{stroke:var(--s2)}.plot .s3{stroke:var(--s3)}\
.plot .s4{stroke:var(--s4)}.plot .s5{stroke:var(--s5)}.plot .s6{stroke:var(--s6)}.plot .s7{stroke:var(--s7)}\
.plot .dashed{stroke-dasharray:6 3}";

/// The layout is made without the font: this is about the width of a letter in the widest one that [`STYLE`] names,
/// DejaVu Sans.
const LETTER: f64 = 7.2;

fn width(text: &str) -> f64 {
    LETTER * text.chars().count() as f64
}

/// The text, or as much of its start as fits.
fn fit(text: &str, room: f64) -> String {
    match width(text) <= room {
        true => text.into(),
        false => text.chars().take(((room / LETTER) as usize).saturating_sub(1)).chain(['…']).collect(),
    }
}

/// A drawing without its frame.
#[derive(Debug)]
pub struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

impl Drawing {
    /// As an element of a page that has [`STYLE`]; `label` is for screen readers.
    pub fn inline(&self, label: &str) -> String {
        let Drawing { width, height, body } = self;
        let label = escape(label);
        format!(r#"<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{body}</svg>"#)
    }

    /// As a file.
    pub fn standalone(&self, label: &str) -> String {
        let (label, body) = (escape(label), &self.body);
        let (width, height) = (self.width + 2.0 * PAPER, self.height + 2.0 * PAPER);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="{width}" height="{height}" viewBox="-{PAPER} -{PAPER} {width} {height}" role="img" aria-label="{label}"><style>{STYLE}</style><rect class="paper" x="-{PAPER}" y="-{PAPER}" width="{width}" height="{height}" rx="8"/>{body}</svg>
"#
        )
    }
}

/// Bars for the medians, whiskers from the least to the most, a dot per sample.
pub fn bars(quantity: &Quantity<'_>) -> Drawing {
    bars::draw(quantity)
}

/// The curves of a plot with their legend.
pub fn lines(plot: &Plot<'_>) -> Drawing {
    lines::draw(plot)
}

/// Why a picture cannot be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// A quantity that the report does not have, and those that it has.
    #[error("the report has no quantity \"{}\"; it has: {}", plain(.0), plain(.1))]
    Quantity(String, String),
    /// No quantity was named, and the report has no throughput.
    #[error("the report has no throughput; it has: {}", plain(.0))]
    Throughput(String),
}

/// The bars of several quantities side by side, each under its title, two in a row; without names all throughputs.
///
/// # Errors
/// A quantity is not in the report.
pub fn picture(report: &Report, wanted: &[String]) -> Result<Drawing, Missing> {
    let quantities = report.quantities();
    let known = || quantities.iter().map(|quantity| format!("\"{}\"", quantity.name)).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let found = quantities.iter().find(|quantity| quantity.name == *name);
        found.ok_or_else(|| Missing::Quantity(name.clone(), known()))
    };
    let is_throughput = |quantity: &&Quantity<'_>| quantity.unit.ends_with("/s") || quantity.unit == "kpps";
    let chosen: Vec<&Quantity<'_>> = match wanted {
        [] => quantities.iter().filter(is_throughput).collect(),
        names => names.iter().map(find).collect::<Result<_, _>>()?,
    };
    if chosen.is_empty() {
        return Err(Missing::Throughput(known()));
    }
    let mut body = String::new();
    let mut top = 0.0;
    for pair in chosen.chunks(2) {
        let mut tallest: f64 = 0.0;
        for (column, quantity) in pair.iter().enumerate() {
            let drawing = bars(quantity);
            let (left, title) = (column as f64 * (WIDTH + GAP), escape(&quantity.heading()));
            let _ = write!(
                body,
                r#"<g transform="translate({left} {top})"><text class="title" x="0" y="14">{title}</text><g transform="translate(0 {TITLE})">{}</g></g>"#,
                drawing.body
            );
            tallest = tallest.max(drawing.height + TITLE);
        }
        top += tallest + GAP;
    }
    let width = if chosen.len() > 1 { 2.0 * WIDTH + GAP } else { WIDTH };
    Ok(Drawing { width, height: top - GAP, body })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_picture_stands_alone_and_escapes() {
        let mut report = sample::report();
        report.measures[0].subject = "<kernel>".into();
        let picture = picture(&report, &[]).expect("throughput").standalone("\"Throughput\"");
        assert!(picture.contains("TCP, 1 stream, Gbit/s") && !picture.contains("idle ping"));
        assert!(picture.contains("&lt;kernel&gt;") && !picture.contains("<kernel>"));
        assert!(picture.contains(r#"aria-label="&quot;Throughput&quot;""#));
        let document = roxmltree::Document::parse(&picture).expect("well-formed");
        let bars = document.descendants().filter(|n| n.attribute("class").is_some_and(|c| c.starts_with("bar")));
        assert_eq!(bars.count(), 3);
    }

    #[test]
    fn a_picture_shows_what_was_asked_for() {
        let report = sample::report();
        let drawn = picture(&report, &["idle ping".into()]).expect("one").standalone("");
        assert!(drawn.contains("idle ping, µs") && !drawn.contains("TCP"));
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let mut report = sample::report();
        let refused = picture(&report, &["idle ping".into(), "no such".into()]).expect_err("refused").to_string();
        assert_eq!(
            refused,
            "the report has no quantity \"no such\"; it has: \"TCP, 1 stream\", \"idle ping\", \"TCP, 1 stream, of kernel\""
        );
        report.measures.retain(|measure| measure.unit == "µs");
        let refused = picture(&report, &[]).expect_err("refused").to_string();
        assert_eq!(refused, "the report has no throughput; it has: \"idle ping\"");
    }
}
