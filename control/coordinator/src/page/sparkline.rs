//! A small line that shows how a number has changed: time runs from left to right, the value from zero at the bottom to
//! the highest at the top. Where nothing is known the line is interrupted.

use maud::{Markup, html};

/// The height in the line's own units; one unit to the right is one value. The style sheet says how large it is shown.
const HEIGHT: f32 = 40.0;

pub(super) fn draw(values: &[Option<f32>]) -> Markup {
    let highest = values.iter().flatten().copied().fold(f32::MIN_POSITIVE, f32::max);
    let mut from = 0;
    let mut lines = Vec::new();
    for known in values.split(Option::is_none) {
        let heights: Vec<i32> =
            known.iter().flatten().map(|value| (HEIGHT * (1.0 - value / highest)).round() as i32).collect();
        if !heights.is_empty() {
            lines.push(points(from, &heights));
        }
        from += known.len() + 1;
    }
    html! {
        svg.sparkline viewBox={ "0 0 " (values.len().max(2) - 1) " " (HEIGHT) } preserveAspectRatio="none"
            aria-hidden="true" {
            @for line in &lines { polyline points=(line) {} }
        }
    }
}

/// The points of a line without those in the middle of a level part.
fn points(from: usize, heights: &[i32]) -> String {
    let last = heights.len() - 1;
    let is_level = |at: usize| at > 0 && at < last && heights[at - 1] == heights[at] && heights[at] == heights[at + 1];
    let turns = (0..=last).filter(|at| !is_level(*at));
    let mut points: Vec<String> = turns.map(|at| format!("{},{}", from + at, heights[at])).collect();
    if let [only] = &points[..] {
        // A single point makes no line; the same point twice makes a dot.
        points.push(only.clone());
    }
    points.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: &[Option<f32>]) -> Vec<String> {
        let drawn = draw(values).into_string();
        drawn.split("points=\"").skip(1).map(|line| line.split('"').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_line_goes_from_zero_to_the_highest_value_and_leaves_out_what_is_unknown() {
        let values = [Some(0.0), Some(50.0), Some(100.0), None, None, Some(25.0), None];
        assert_eq!(lines(&values), ["0,40 1,20 2,0", "5,30 5,30"]);
        assert!(draw(&values).into_string().contains("viewBox=\"0 0 6 40\""));
        assert_eq!(lines(&[Some(3.0), Some(3.0), Some(3.0), Some(0.0)]), ["0,0 2,0 3,40"]);
    }

    #[test]
    fn nothing_zero_and_absurd_values_can_be_drawn() {
        assert!(lines(&[]).is_empty() && lines(&[None]).is_empty());
        assert_eq!(lines(&[Some(0.0); 90]), ["0,40 89,40"]);
        assert_eq!(lines(&[Some(f32::MAX), Some(0.0)]), ["0,0 1,40"]);
    }
}
