//! A report as a page that needs nothing else: no script, no font, no network. Its content security policy forbids
//! them, so that even a text that got around the escaping could load nothing.

use std::fmt::Write;

use super::text::{escape, figure, percentile};
use super::{Curve, Measure, Plot, Quantity, Report, Scale, plot};

const STYLE: &str = "\
:root{color-scheme:light dark;--page:#f6f8fa;--card:#fff;--ink:#1d2733;--faint:#5b6876;--edge:#dde3ea;--accent:#0b7285}\
@media(prefers-color-scheme:dark){:root{--page:#12181f;--card:#1b232c;--ink:#e4eaf0;--faint:#9aa7b4;--edge:#2c3742;\
--accent:#3bb3c7}}\
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);\
font:16px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\
main{max-width:76rem;margin:0 auto;padding:1.5rem 1rem 3rem}h1{font-size:1.7rem;margin:0}\
h2{font-size:1.15rem;margin:2rem 0 0}h2+p,h2+.card{margin:.25rem 0 .75rem}h3{font-size:1rem;margin:0}p{margin:.25rem 0}\
.faint{color:var(--faint);font-size:.875rem}a{color:var(--accent)}\
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));align-items:start}\
.card{background:var(--card);border:1px solid var(--edge);border-radius:.6rem;padding:.85rem;min-width:0}\
svg.plot{display:block;width:100%;height:auto;margin:.75rem 0}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.8125rem;font-variant-numeric:tabular-nums}\
th,td{padding:.2rem .35rem;text-align:right;white-space:nowrap;border-top:1px solid var(--edge)}thead th{border-top:0;color:var(--faint);\
font-weight:500}th:first-child,td:first-child{text-align:left;padding-left:0;font-weight:500}\
.more td:first-child{white-space:normal;min-width:6rem}.more .subject{text-align:left;white-space:normal;min-width:9rem}\
.context td{text-align:left;white-space:normal;overflow-wrap:anywhere}.context td:first-child{width:12rem;color:var(--faint)}\
ul{margin:0;padding-left:1.2rem}li{margin:.25rem 0;overflow-wrap:anywhere}";

/// The lines of the context shown under the title, if present.
const HEADLINE: [&str; 3] = ["time", "machine", "kernel"];

/// The whole page.
pub fn render(report: &Report) -> String {
    let title = escape(&report.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline'\">\
         <title>{title} · penstock-bench</title><style>{STYLE}{}</style></head>\n<body><main><h1>{title}</h1>\n",
        plot::STYLE
    );
    let told = |name: &&str| report.context.iter().find(|(found, _)| found == name).map(|(_, text)| escape(text));
    let headline: Vec<String> = HEADLINE.iter().filter_map(told).collect();
    let _ = writeln!(page, "<p class=\"faint\">{}</p>", headline.join(" · "));
    let (drawn, told): (Vec<_>, Vec<_>) = report.quantities().into_iter().partition(Quantity::is_drawn);
    section(
        &mut page,
        "Figures",
        "Bars are medians, whiskers the least and the most, dots the n rounds.",
        drawn.iter().map(quantity),
    );
    let table = match &told[..] {
        [] => String::new(),
        told => format!("<div class=\"card wide\">{}</div>\n", table(told)),
    };
    if drawn.is_empty() && !told.is_empty() {
        let _ = write!(page, "<h2>Figures</h2>\n{table}");
    }
    section(&mut page, "Curves", "", report.plots().iter().map(curves));
    if !drawn.is_empty() && !told.is_empty() {
        let _ = write!(page, "<h2>More figures</h2>\n{table}");
    }
    if !report.notes.is_empty() {
        let notes: String = report.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
        let _ = writeln!(page, "<h2>What limits these figures</h2>\n<div class=\"card\"><ul>{notes}</ul></div>");
    }
    let row = |(name, text): &(String, String)| format!("<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(text));
    let context: String = report.context.iter().map(row).collect();
    let _ = writeln!(
        page,
        "<h2>How they were measured</h2>\n<div class=\"card wide\"><table class=\"context\">{context}</table></div>\n\
         </main></body></html>"
    );
    page
}

fn section(page: &mut String, heading: &str, explanation: &str, cards: impl ExactSizeIterator<Item = String>) {
    if cards.len() > 0 {
        let cards: String = cards.collect();
        let _ = writeln!(
            page,
            "<h2>{heading}</h2><p class=\"faint\">{explanation}</p>\n<div class=\"cards\">{cards}</div>"
        );
    }
}

fn quantity(quantity: &Quantity<'_>) -> String {
    let heading = quantity.heading();
    let row = |measure: &&Measure| format!("<tr><td>{}</td>{}</tr>\n", escape(&measure.subject), figures(measure));
    let rows: String = quantity.measures.iter().map(row).collect();
    format!(
        "<section class=\"card\"><h3>{}</h3><p class=\"faint\">{}</p>{}<div class=\"wide\"><table><thead><tr><th></th><th>median</th><th>least</th><th>most</th>\
         <th>n</th></tr></thead><tbody>{rows}</tbody></table></div></section>\n",
        escape(&heading),
        quantity.better.sentence(),
        plot::bars(quantity).inline(&heading)
    )
}

/// The quantities that need no plot: a row per subject, or one for all if they are the same.
fn table(quantities: &[Quantity<'_>]) -> String {
    let rows = |quantity: &Quantity<'_>| -> String {
        // The heading is in the first of its rows.
        let headings = std::iter::once(escape(&quantity.heading())).chain(std::iter::repeat(String::new()));
        let row = |((subject, measure), heading): ((String, &Measure), String)| {
            format!("<tr><td>{heading}</td><td class=\"subject\">{}</td>{}</tr>\n", escape(&subject), figures(measure))
        };
        quantity.rows().into_iter().zip(headings).map(row).collect()
    };
    format!(
        "<table class=\"more\"><thead><tr><th></th><th></th><th>median</th><th>least</th><th>most</th><th>n</th></tr>\
         </thead><tbody>{}</tbody></table>",
        quantities.iter().map(rows).collect::<String>()
    )
}

/// The cells of a measure: median, least, most, rounds.
fn figures(measure: &Measure) -> String {
    let spread = measure.spread();
    let cells = [spread.median, spread.least, spread.most].map(|value| format!("<td>{}</td>", figure(value)));
    format!("{}<td>{}</td>", cells.concat(), measure.samples.len())
}

/// Curves may have hundreds of points: the table has the ends and the middle, the CSV file all of them.
fn curves(plot: &Plot<'_>) -> String {
    let x = |curve: &Curve, x: f64| match curve.x.scale {
        Scale::Percentile => percentile(x),
        Scale::Linear | Scale::Logarithmic => figure(x),
    };
    let rows: String = plot
        .curves
        .iter()
        .map(|curve| {
            let [first, middle, last] = [0, (curve.points.len() - 1) / 2, curve.points.len() - 1];
            let points = [first, middle, last].map(|n| curve.points[n]);
            let points = points.map(|point| format!("<td>{} → {}</td>", x(curve, point.0), figure(point.1))).concat();
            format!("<tr><td>{}</td>{points}</tr>\n", escape(&curve.subject))
        })
        .collect();
    format!(
        "<section class=\"card\"><h3>{}</h3>{}<div class=\"wide\"><table><thead><tr><th></th><th>first point</th>\
         <th>middle</th><th>last</th></tr></thead><tbody>{rows}</tbody></table></div></section>\n",
        escape(plot.name),
        plot::lines(plot).inline(plot.name)
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Better, sample};
    use super::*;

    const HOSTILE: &str = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>\"&\u{202e}\u{0}";

    #[test]
    fn the_page_shows_every_figure_and_loads_nothing() {
        let report = sample::report();
        let page = render(&report);
        for shown in ["Comparison", "TCP, 1 stream, Gbit/s", "penstock auto", "11.9", "6.18.0", "nebula was skipped"] {
            assert!(page.contains(shown), "{shown}");
        }
        // Two quantities with several subjects and two plots; the third has one subject, and is only in the table.
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(
            page.contains("<td>TCP, 1 stream, of kernel</td><td class=\"subject\">penstock auto</td><td>0.270</td>")
        );
        for loads in ["src=", "href=", "url(", "@import", "http://", "https://", "<script", "<link"] {
            assert!(!page.contains(loads), "{loads}");
        }
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let mut report = sample::report();
        let tags = |report: &Report| {
            let page = render(report);
            page.matches('<').count()
        };
        let before = tags(&report);
        let text = || HOSTILE.to_string();
        report.title = text();
        report.context = vec![(text(), text()), (text(), text())];
        report.notes = vec![text()];
        for measure in &mut report.measures {
            for field in [&mut measure.subject, &mut measure.quantity, &mut measure.unit] {
                *field = field.clone() + HOSTILE;
            }
        }
        for curve in &mut report.curves {
            let axes = [&mut curve.x, &mut curve.y];
            axes.into_iter().for_each(|axis| (axis.label, axis.unit) = (text(), text()));
            curve.subject.push_str(HOSTILE);
            curve.quantity.push_str(HOSTILE);
        }
        let page = render(&report);
        assert_eq!(page.matches('<').count(), before, "as many tags as without them");
        assert!(!page.contains("<script") && !page.contains("onerror='") && !page.contains('\u{202e}'));
        assert!(page.contains("&lt;script&gt;"));
    }

    #[test]
    fn the_last_percentile_is_not_rounded_to_the_maximum() {
        let mut report = sample::report();
        report.curves[0].points = vec![(0.0, 60.0), (99.0, 90.0), (99.98, 119_407.0)];
        let row = "<td>kernel</td><td>0 → 60.0</td><td>99 → 90.0</td><td>99.98 → 119407</td>";
        assert!(render(&report).contains(row));
    }

    #[test]
    fn an_empty_report_is_a_page_too() {
        let page = render(&Report::new("Nothing", vec![]));
        assert!(page.ends_with("</html>\n") && !page.contains("Figures"));
        let mut report = sample::report();
        report.measures[0].better = Better::Lower;
        assert_eq!(
            render(&report).matches("<td>TCP, 1 stream, Gbit/s</td>").count(),
            1,
            "another direction, another quantity"
        );
    }

    #[test]
    fn what_differs_nowhere_is_one_row_and_what_was_counted_has_no_plot() {
        let mut report = sample::report();
        let plots = |report: &Report| render(report).matches("<svg").count();
        for measure in &mut report.measures[..4] {
            measure.unit = "packets".into();
        }
        assert_eq!(plots(&report), 2, "TCP has one subject left, ping none");
        let mut report = sample::report();
        for measure in report.measures.iter_mut().filter(|measure| measure.quantity == "idle ping") {
            measure.samples = vec![0.0; 3];
        }
        assert_eq!(plots(&report), 3);
        let row =
            "<tr><td>idle ping, µs</td><td class=\"subject\">all 2</td><td>0</td><td>0</td><td>0</td><td>3</td></tr>";
        assert!(render(&report).contains(row));
        let place = |report: &Report, text: &str| render(report).find(text);
        assert!(place(&report, "<h2>Curves") < place(&report, "<h2>More figures"), "what is drawn comes first");
        let mut alone = sample::report();
        alone.measures.truncate(1);
        assert!(place(&alone, "<h2>Figures") < place(&alone, "<h2>Curves") && place(&alone, "<h2>More").is_none());
        report.measures[1].samples.push(0.0);
        assert_eq!(plots(&report), 4, "more rounds are a difference");
    }
}
