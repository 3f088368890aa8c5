//! How figures and texts are shown. The texts of a report may come from anybody: none may reach a terminal or a page
//! except through [`plain`] or [`escape`].

/// A figure with three significant digits, more if it is a large whole number.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if !(1e-4..1e9).contains(&size) => format!("{value:.2e}"),
        _ => {
            // Digits before the point: 1 for 1.0 to 9.99, 0 for 0.1 to 0.999.
            let whole = size.log10().floor() as i32 + 1;
            format!("{value:.*}", usize::try_from(3 - whole).unwrap_or(0))
        }
    }
}

/// A percentile, from 0 to 100, with as many digits as distinguish it from 100 and from its neighbours: "50", "99.98".
pub fn percentile(value: f64) -> String {
    // Digits behind the point until one is not 9; the largest number below 100 needs 14 in all.
    let nines = (-(100.0 - value).log10()).clamp(0.0, 13.0).ceil();
    let written = format!("{value:.*}", nines as usize + 1);
    written.trim_end_matches('0').trim_end_matches('.').into()
}

/// A text without anything that controls a terminal or changes the direction of writing.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// A text as HTML and SVG need it, in element content and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if steers(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Control characters, which XML forbids too, and Unicode's bidirectional ones (UAX #9); XML also forbids the last
/// two of the basic plane.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
        || matches!(c, '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        let shown = [0.0, 11.904, 0.232, 197.4, 123_456.7, 1.0, 0.012_345, -2.5, 9.999, 2e-7, 3e12];
        let expected =
            ["0", "11.9", "0.232", "197", "123457", "1.00", "0.0123", "-2.50", "10.00", "2.00e-7", "3.00e12"];
        assert_eq!(shown.map(figure), expected);
    }

    #[test]
    fn no_percentile_but_the_last_is_100() {
        let shown = [0.0, 10.0, 25.04, 99.0, 99.9, 99.98, 99.994_3, 99.999_999, 100.0].map(percentile);
        assert_eq!(shown, ["0", "10", "25", "99", "99.9", "99.98", "99.9943", "99.999999", "100"]);
        assert_ne!(percentile(100.0_f64.next_down()), "100");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\r\n\u{202e}ü"), "a\u{fffd}[31mb\u{fffd}\u{fffd}\u{fffd}ü");
    }

    #[test]
    fn nothing_leaves_its_element_or_attribute() {
        assert_eq!(escape(r#"<b a="x" b='y'>&"#), "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;");
        assert_eq!(escape("\u{0}\u{202e}\u{ffff}"), "\u{fffd}\u{fffd}\u{fffd}");
    }
}
