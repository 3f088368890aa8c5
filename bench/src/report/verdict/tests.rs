use super::super::sample;
use super::*;

/// A small generator of noise, the same on every machine (Steele, Lea, Flood: SplitMix64).
struct Noise(u64);

impl Noise {
    /// Evenly from 0 to 1.
    fn even(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Around `middle`, with this relative standard deviation (Box and Muller).
    fn samples(&mut self, count: usize, middle: f64, deviation: f64) -> Vec<f64> {
        let mut one = || {
            let radius = (-2.0 * (1.0 - self.even()).ln()).sqrt();
            middle * (1.0 + deviation * radius * (std::f64::consts::TAU * self.even()).cos())
        };
        (0..count).map(|_| one()).collect()
    }
}

fn verdict(old: &[f64], new: &[f64], better: Better, confidence: Confidence) -> Verdict {
    let measure = |samples: &[f64]| Measure::new("s", "q", "", better, samples.into());
    judge(&measure(old), &measure(new), &mut Outside::new(confidence)).verdict
}

#[test]
fn the_same_distribution_is_judged_different_as_rarely_as_promised() {
    const SEEDS: u64 = 4000;
    for confidence in [Confidence::Percent95, Confidence::Percent99] {
        for (m, n) in [(5, 5), (4, 9), (12, 12)] {
            let wrong = (0..SEEDS)
                .filter(|seed| {
                    let mut noise = Noise(*seed);
                    let (old, new) = (noise.samples(m, 10.0, 0.05), noise.samples(n, 10.0, 0.05));
                    verdict(&old, &new, Better::Higher, confidence) != Verdict::NoDifference
                })
                .count();
            let promised = SEEDS as f64 * confidence.risk();
            // Four standard deviations of the count itself.
            assert!((wrong as f64) < promised + 4.0 * promised.sqrt(), "{m} and {n}: {wrong} of {SEEDS}");
        }
    }
}

#[test]
fn a_shift_of_a_fifth_is_found_in_noise_of_a_twentieth() {
    const SEEDS: u64 = 500;
    for (factor, expected) in [(1.2, Verdict::Faster), (1.0 / 1.2, Verdict::Slower)] {
        let found = (0..SEEDS)
            .filter(|seed| {
                let mut noise = Noise(*seed);
                let (old, new) = (noise.samples(5, 3.0, 0.05), noise.samples(5, 3.0 * factor, 0.05));
                verdict(&old, &new, Better::Higher, Confidence::Percent95) == expected
            })
            .count();
        assert!(found as f64 > 0.98 * SEEDS as f64, "{expected:?} in {found} of {SEEDS}");
    }
}

#[test]
fn the_interval_holds_the_true_ratio_as_often_as_promised() {
    const SEEDS: u64 = 2000;
    let held = (0..SEEDS)
        .filter(|seed| {
            let mut noise = Noise(*seed);
            let (old, new) = (noise.samples(6, 100.0, 0.08), noise.samples(6, 130.0, 0.08));
            let change = change(&old, &new, &mut Outside::new(Confidence::Percent95)).expect("enough rounds");
            (change.low..=change.high).contains(&1.3)
        })
        .count();
    assert!(held as f64 > 0.94 * SEEDS as f64, "{held} of {SEEDS}");
}

#[test]
fn lower_latency_is_faster() {
    let (low, high) = ([1.0, 1.1, 1.2, 1.3], [2.0, 2.1, 2.2, 2.3]);
    let judged = |old: &[f64], new: &[f64]| verdict(old, new, Better::Lower, Confidence::Percent95);
    assert_eq!(judged(&high, &low), Verdict::Faster);
    assert_eq!(judged(&low, &high), Verdict::Slower);
    assert_eq!(judged(&low, &low), Verdict::NoDifference);
    assert_eq!(judged(&low[..3], &high[..3]), Verdict::NotEnoughRounds);
    assert_eq!(verdict(&low, &high, Better::Lower, Confidence::Percent99), Verdict::NotEnoughRounds);
}

#[test]
fn figures_without_noise_are_judged_too() {
    let judged = |old: f64, new: f64| verdict(&[old; 4], &[new; 4], Better::Lower, Confidence::Percent95);
    assert_eq!(judged(5.0, 5.0), Verdict::NoDifference);
    assert_eq!(judged(5.0, 4.0), Verdict::Faster);
    // Where no ratio exists.
    assert_eq!(judged(0.0, 0.0), Verdict::NoDifference);
    assert_eq!(judged(0.0, 0.5), Verdict::Slower);
    assert_eq!(judged(-1.0, -2.0), Verdict::Faster);
}

#[test]
fn what_only_one_report_has_and_where_they_were_made_is_said() {
    let (mut old, mut new) = (sample::report(), sample::report());
    old.measures.remove(0);
    new.measures.remove(1);
    new.context[0].1 = "6.19.0".into();
    new.context.push(("NIC".into(), "\u{1b}[1mmlx5".into()));
    let comparison = compare(&old, &new, Confidence::Percent95).expect("few samples");
    assert_eq!(comparison.compared.len(), 4);
    assert_eq!(comparison.count(Verdict::NotEnoughRounds), 4);
    let text = comparison.render();
    for sentence in [
        "A verdict at 95 % needs 4 rounds in each report.",
        "kernel, TCP, 1 stream: only in the new report.",
        "kernel, idle ping: only in the old report.",
        "kernel was \"6.18.0\" and is \"6.19.0\".",
        "NIC was \"not told\" and is \"\u{fffd}[1mmlx5\".",
    ] {
        assert!(text.contains(sentence), "{sentence} is not in\n{text}");
    }
    assert!(!text.contains("time was"));
}

#[test]
fn the_table_shows_the_change_and_its_interval() {
    let report = |factor: f64| {
        let samples = [10.0, 10.2, 9.9, 10.1].map(|sample| sample * factor).to_vec();
        Report {
            measures: vec![Measure::new("penstock auto", "TCP, 1 stream", "Gbit/s", Better::Higher, samples)],
            ..Report::new("Comparison", vec![])
        }
    };
    let text = compare(&report(1.0), &report(1.2), Confidence::Percent95).expect("few samples").render();
    let expected = "\
                                      old   new   change       95 % interval
 TCP, 1 stream, Gbit/s  penstock auto  10.1  12.1  × 1.200  × 1.165 to × 1.236  faster

- 1 faster, 0 slower of 1 judged. Were nothing changed, about 0.1 of them would still differ by chance at 95 % confidence.
";
    let squeeze =
        |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert_eq!(squeeze(&text), squeeze(expected));
}

#[test]
fn more_pairs_than_seconds_are_refused() {
    let report = |count: usize| {
        let measure = |n| Measure::new("s", format!("q {n}"), "", Better::Higher, vec![1.0; 1000]);
        Report { measures: (0..count).map(measure).collect(), ..Report::new("Large", vec![]) }
    };
    // A measure that only one report has costs nothing.
    let most = MOST_PAIRS / 1_000_000;
    assert!(compare(&report(1), &report(most + 1), Confidence::Percent95).is_ok());
    let refused = compare(&report(most + 1), &report(most + 1), Confidence::Percent95).expect_err("too many");
    assert_eq!(refused, TooManyPairs(MOST_PAIRS + 1_000_000));
}
