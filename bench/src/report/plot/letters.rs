//! How wide a text is drawn. A drawing's layout is made without the font, so this must be right for the widest of
//! those that [`super::STYLE`] names: DejaVu Sans at 12 units, whose advance widths these are, rounded up by class.

/// In units of the drawing.
pub fn width(text: &str) -> f64 {
    text.chars().map(advance).sum()
}

/// The text, or as much of its start as fits.
pub fn fit(text: &str, room: f64) -> String {
    if width(text) <= room {
        return text.into();
    }
    let mut left = room - advance('…');
    let fits = |c: &char| {
        left -= advance(*c);
        left >= 0.0
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

fn advance(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | 'I' | 'J' | ' ' | ',' | '.' | ':' | ';' | '\'' | '|' | '/' => 4.1,
        'f' | 'r' | 't' | '(' | ')' | '[' | ']' | '-' => 5.0,
        'm' | 'M' | 'w' | 'W' | '%' | '@' | '…' => 12.0,
        '+' | '=' | '<' | '>' | '#' | '~' | '&' | '^' => 10.1,
        'A'..='Z' => 9.5,
        ' '..='~' => 7.7,
        // Whatever it is: most letters are narrower.
        _ => 12.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_no_less_than_those_of_the_font() {
        // Advance widths of DejaVu Sans, 2048 to the em, at 12 units.
        for (text, units) in
            [("encrypt", 7841), ("WireGuard", 10_978), ("0123456789", 13_030), ("kernel-wireguard", 17_495)]
        {
            let drawn = f64::from(units) * 12.0 / 2048.0;
            assert!((drawn..drawn * 1.3).contains(&width(text)), "{text}: {} for {drawn}", width(text));
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        assert_eq!(fit("kernel", width("kernel")), "kernel");
        let cut = fit("penstock-auto", 60.0);
        assert!(cut.starts_with("pen") && cut.ends_with('…') && width(&cut) <= 60.0, "{cut}");
        assert_eq!(fit("kernel", 0.0), "…");
    }
}
