//! The rank sum test of Mann and Whitney and the interval that belongs to it.
//!
//! If two samples of sizes *m* and *n* are drawn from the same distribution, all *(m+n)!/(m! n!)* ways to shuffle them
//! are equally likely. *U* counts the pairs in which the second is larger; its distribution follows by counting. So if
//! the pairwise ratios are sorted, the interval from the *(k+1)*th smallest to the *(k+1)*th largest misses the true
//! ratio with a probability of *2 P(U ≤ k)*.
//!
//! H. B. Mann, D. R. Whitney, "On a test of whether one of two random variables is stochastically larger than the
//! other", 1947; J. L. Hodges, E. L. Lehmann, "Estimates of location based on rank tests", 1963; D. F. Bauer,
//! "Constructing confidence sets using rank statistics", 1972. With ties the interval is a little wider than need be.

/// Up to this many rounds on both sides the distribution is counted; beyond that the normal distribution is as good.
const EXACT_MOST: usize = 40;

/// How sure a verdict must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Confidence {
    /// 1 in 20 comparisons without a difference finds one
    #[value(name = "95")]
    Percent95,
    /// 1 in 100
    #[value(name = "99")]
    Percent99,
    /// 1 in 1000: for scripts that compare a lot
    #[value(name = "99.9")]
    Permille999,
}

impl Confidence {
    /// The probability of finding a difference where there is none.
    pub fn risk(self) -> f64 {
        match self {
            Confidence::Percent95 => 0.05,
            Confidence::Percent99 => 0.01,
            Confidence::Permille999 => 0.001,
        }
    }

    /// For a heading.
    pub fn percent(self) -> &'static str {
        match self {
            Confidence::Percent95 => "95",
            Confidence::Percent99 => "99",
            Confidence::Permille999 => "99.9",
        }
    }

    /// The number of standard deviations of a normal distribution, on both sides, that leave out no more than the risk.
    fn deviations(self) -> f64 {
        match self {
            Confidence::Percent95 => 1.959_964,
            Confidence::Percent99 => 2.575_829,
            Confidence::Permille999 => 3.290_527,
        }
    }
}

/// How many of the sorted pairwise ratios lie outside the interval on each side; `None` if even the interval over all
/// of them misses too often.
pub fn outside(m: usize, n: usize, confidence: Confidence) -> Option<usize> {
    if m > EXACT_MOST || n > EXACT_MOST {
        return normal(m, n, confidence);
    }
    let mut below = 0.0;
    let likely = distribution(m, n);
    let within = likely.iter().take_while(|likely| {
        below += **likely;
        2.0 * below <= confidence.risk()
    });
    within.count().checked_sub(1)
}

/// The fewest rounds, the same number in both reports, that allow a verdict.
pub fn least_rounds(confidence: Confidence) -> usize {
    (1..EXACT_MOST).find(|n| outside(*n, *n, confidence).is_some()).unwrap_or(EXACT_MOST)
}

/// P(U = u) for u from 0 to m n, by the recurrence of Mann and Whitney: the largest value is one of the *n* with
/// the probability n / (m + n), and then larger than all *m*.
fn distribution(m: usize, n: usize) -> Vec<f64> {
    // One row for each size of the first sample, for the current size of the second.
    let mut rows: Vec<Vec<f64>> = vec![vec![1.0]; m + 1];
    for size in 1..=n {
        for first in 1..=m {
            let total = (first + size) as f64;
            let mut row = vec![0.0; first * size + 1];
            for (u, likely) in rows[first - 1].iter().enumerate() {
                row[u] += likely * first as f64 / total;
            }
            for (u, likely) in rows[first].iter().enumerate() {
                row[u + first] += likely * size as f64 / total;
            }
            rows[first] = row;
        }
    }
    rows.pop().unwrap_or_default()
}

fn normal(m: usize, n: usize, confidence: Confidence) -> Option<usize> {
    let (m, n) = (m as f64, n as f64);
    let deviation = (m * n * (m + n + 1.0) / 12.0).sqrt();
    let most = (m * n / 2.0 - confidence.deviations() * deviation - 0.5).floor();
    (most >= 0.0).then_some(most as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_distributions_are_as_counted_by_hand() {
        // Two and two: over the six orders U is 0, 1, 3 and 4 once each, and 2 twice.
        let counted = distribution(2, 2).iter().map(|p| (p * 6.0).round() as u32).collect::<Vec<_>>();
        assert_eq!(counted, [1, 1, 2, 1, 1]);
        for (m, n) in [(1, 5), (3, 4), (40, 40)] {
            let likely = distribution(m, n);
            assert_eq!(likely.len(), m * n + 1);
            assert!((likely.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn critical_values_are_those_of_the_published_tables() {
        // Two-sided, 5 % and 1 %: the largest U that is significant.
        let published = [
            (4, 4, Some(0), None),
            (5, 5, Some(2), Some(0)),
            (3, 5, Some(0), None),
            (8, 8, Some(13), Some(7)),
            (10, 12, Some(29), Some(21)),
            (20, 20, Some(127), Some(105)),
        ];
        for (m, n, at_95, at_99) in published {
            assert_eq!(outside(m, n, Confidence::Percent95), at_95, "{m} and {n}");
            assert_eq!(outside(n, m, Confidence::Percent99), at_99, "{m} and {n}");
        }
        assert_eq!(outside(3, 3, Confidence::Percent95), None);
        assert_eq!(outside(1, 30, Confidence::Percent95), None);
    }

    #[test]
    fn the_fewest_rounds_are_known() {
        let least = [Confidence::Percent95, Confidence::Percent99, Confidence::Permille999].map(least_rounds);
        assert_eq!(least, [4, 5, 7]);
    }

    #[test]
    fn the_normal_approximation_meets_the_exact_count() {
        let (exact, near) =
            (outside(40, 40, Confidence::Percent95), normal(40, 40, Confidence::Percent95).expect("enough"));
        assert!(exact.expect("enough").abs_diff(near) <= 1, "{exact:?} and {near}");
        assert_eq!(normal(41, 1, Confidence::Percent95), None);
    }
}
