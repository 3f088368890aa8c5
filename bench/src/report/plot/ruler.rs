//! Maps values to positions along an axis, and chooses the ticks that a reader expects.

use super::super::Scale;

/// About this many ticks fit on an axis without touching each other.
const TICKS: f64 = 5.0;
/// Values that differ by less count as equal; ticks between them would run out of digits.
const LEAST_SPAN: f64 = 1e-100;
/// How many decades the maximum is drawn beyond the last percentile.
const BEHIND: f64 = 0.75;
/// Tolerance for the last digits of a logarithm.
const EPSILON: f64 = 1e-9;

/// An axis with its range.
#[derive(Debug)]
pub struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    /// The distance between two ticks, in transformed values.
    step: f64,
    /// Whether the axis ends with the maximum, beyond all percentiles.
    to_the_maximum: bool,
}

impl Ruler {
    /// An axis that shows all values, and 0 if it is linear and `from_zero`.
    pub fn new(values: impl Iterator<Item = f64>, scale: Scale, from_zero: bool) -> Ruler {
        let (mut low, mut high, mut to_the_maximum) = (f64::INFINITY, f64::NEG_INFINITY, false);
        for value in values {
            match transform(value, scale) {
                Some(value) => (low, high) = (low.min(value), high.max(value)),
                None => to_the_maximum = true,
            }
        }
        match scale {
            Scale::Linear => Ruler::linear(low, high, from_zero),
            Scale::Logarithmic => {
                let (low, high) = ((low + EPSILON).floor(), (high - EPSILON).ceil());
                let high = high.max(low + 1.0);
                Ruler { scale, low, high, step: ((high - low) / TICKS).ceil(), to_the_maximum }
            }
            Scale::Percentile => {
                let high = high.max(1.0) + if to_the_maximum { BEHIND } else { 0.0 };
                Ruler { scale, low: 0.0, high, step: (high / TICKS).ceil(), to_the_maximum }
            }
        }
    }

    fn linear(low: f64, high: f64, from_zero: bool) -> Ruler {
        let (low, high) = if from_zero { (low.min(0.0), high.max(0.0)) } else { (low, high) };
        let span = match high - low {
            span if span > LEAST_SPAN => span,
            _ if low.abs() <= LEAST_SPAN => 1.0,
            _ => low.abs() / 10.0,
        };
        let step = round_number(span / TICKS);
        let low = (low / step + EPSILON).floor() * step;
        let high = ((high / step - EPSILON).ceil() * step).max(low + step);
        Ruler { scale: Scale::Linear, low, high, step, to_the_maximum: false }
    }

    /// The position of a value, from 0 to 1.
    pub fn place(&self, value: f64) -> f64 {
        let value = transform(value, self.scale).unwrap_or(self.high);
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Positions and labels of the ticks, all in the same notation.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let place = |transformed: f64| (transformed - self.low) / (self.high - self.low);
        // Never many, however odd the values are.
        let count = ((self.high - self.low) / self.step + EPSILON).floor().min(4.0 * TICKS) as usize;
        let mut values: Vec<f64> = (0..=count).map(|n| self.low + n as f64 * self.step).collect();
        if self.scale == Scale::Logarithmic && self.high - self.low <= 2.0 {
            for decade in 0..(self.high - self.low) as i32 {
                values.extend([2.0_f64, 5.0].map(|factor| self.low + f64::from(decade) + factor.log10()));
            }
        }
        let labels = match self.scale {
            Scale::Linear => self.linear_labels(&values),
            Scale::Logarithmic => logarithmic_labels(&values),
            Scale::Percentile => values.iter().map(|value| percentile_label(*value)).collect(),
        };
        let mut ticks: Vec<(f64, String)> = values.into_iter().map(place).zip(labels).collect();
        if self.to_the_maximum {
            // It would touch the label of the last percentile.
            ticks.retain(|(place, _)| *place < 0.86);
            ticks.push((1.0, "max".into()));
        }
        ticks
    }

    fn linear_labels(&self, values: &[f64]) -> Vec<String> {
        let decimals = (-(self.step.log10() + EPSILON).floor()).max(0.0) as usize;
        // No "-0".
        let values = values.iter().map(|value| if value.abs() < self.step / 2.0 { 0.0 } else { *value });
        let values: Vec<(f64, usize)> = values.map(|value| (value, decimals)).collect();
        numbers(&values)
    }
}

fn logarithmic_labels(values: &[f64]) -> Vec<String> {
    let decimals = |value: f64| (-(value + EPSILON).floor()).max(0.0) as usize;
    let values: Vec<(f64, usize)> = values.iter().map(|value| (10_f64.powf(*value), decimals(*value))).collect();
    numbers(&values)
}

fn percentile_label(value: f64) -> String {
    let decimals = (value - 2.0).max(0.0).round() as usize;
    format!("{:.decimals$}", 100.0 - 100.0 / 10_f64.powf(value))
}

/// Labels with the decimals they need; if one would be too wide, all are written with an exponent.
fn numbers(values: &[(f64, usize)]) -> Vec<String> {
    let is_narrow = |(value, decimals): &(f64, usize)| *decimals <= 5 && value.abs() < 1e5;
    let all_narrow = values.iter().all(is_narrow);
    let written = |(value, decimals): &(f64, usize)| match all_narrow {
        true => format!("{value:.decimals$}"),
        false => with_exponent(*value),
    };
    values.iter().map(written).collect()
}

/// "1.5e6"; 0 is 0.
fn with_exponent(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let written = format!("{value:.2e}");
    let (digits, power) = written.split_once('e').unwrap_or((&written, "0"));
    format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// `None` for the maximum on an axis of percentiles.
fn transform(value: f64, scale: Scale) -> Option<f64> {
    match scale {
        Scale::Linear => Some(value),
        Scale::Logarithmic => Some(value.log10()),
        Scale::Percentile => (value < 100.0).then(|| (100.0 / (100.0 - value)).log10()),
    }
}

/// The next larger of 1, 2 and 5 times a power of ten.
fn round_number(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let factor = value / power;
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| *round >= factor - EPSILON).unwrap_or(10.0);
    round * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], scale: Scale, from_zero: bool) -> Vec<String> {
        let ruler = Ruler::new(values.iter().copied(), scale, from_zero);
        let ticks = ruler.ticks();
        assert!(ticks.iter().all(|(place, _)| (-EPSILON..=1.0 + EPSILON).contains(place)), "{ticks:?}");
        for value in values {
            assert!((0.0..=1.0).contains(&ruler.place(*value)));
        }
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn linear_ticks_are_round_numbers() {
        assert_eq!(labels(&[11.9, 0.4], Scale::Linear, true), ["0", "5", "10", "15"]);
        assert_eq!(labels(&[0.93, 0.04], Scale::Linear, true), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[110.0, 190.0], Scale::Linear, false), ["100", "120", "140", "160", "180", "200"]);
        assert_eq!(labels(&[-3.0, 2.0], Scale::Linear, true), ["-3", "-2", "-1", "0", "1", "2"]);
        assert_eq!(labels(&[2.5e6], Scale::Linear, true), ["0", "5e5", "1e6", "1.5e6", "2e6", "2.5e6"]);
        assert_eq!(labels(&[119_407.0], Scale::Linear, true), ["0", "5e4", "1e5", "1.5e5"]);
        assert_eq!(labels(&[0.0], Scale::Linear, true), ["0.0", "0.2"]);
    }

    #[test]
    fn logarithmic_ticks_are_decades() {
        assert_eq!(labels(&[20.0, 90_000.0], Scale::Logarithmic, false), ["1e1", "1e2", "1e3", "1e4", "1e5"]);
        assert_eq!(labels(&[20.0, 9_000.0], Scale::Logarithmic, false), ["10", "100", "1000", "10000"]);
        assert_eq!(labels(&[0.2, 0.7], Scale::Logarithmic, false), ["0.1", "1", "0.2", "0.5"]);
    }

    #[test]
    fn percentile_ticks_are_nines_and_the_maximum() {
        assert_eq!(labels(&[0.0, 50.0, 99.9], Scale::Percentile, false), ["0", "90", "99", "99.9"]);
        assert_eq!(labels(&[0.0, 99.99, 100.0], Scale::Percentile, false), ["0", "90", "99", "99.9", "99.99", "max"]);
    }

    #[test]
    fn odd_values_make_few_ticks_and_no_panic() {
        use Scale::{Linear, Logarithmic, Percentile};
        let odd: [(&[f64], Scale); 8] = [
            (&[1e18, -1e18], Linear),
            (&[1e18, 1e18 - 128.0], Linear),
            (&[5e-324], Linear),
            (&[-7.0], Linear),
            (&[5e-324, 1e18], Logarithmic),
            (&[1.0], Logarithmic),
            (&[100.0], Percentile),
            (&[99.999_999_999_999, 0.0], Percentile),
        ];
        for (values, scale) in odd {
            for from_zero in [false, true] {
                let count = labels(values, scale, from_zero).len();
                assert!((1..=25).contains(&count), "{values:?} have {count} ticks");
            }
        }
    }
}
