//! MLRsearch, RFC 9971: one search for several goals, which share their trials.
//!
//! The classification of loads is the RFC's (`goal.rs`); the choice of the next load is left to the implementation, and
//! this one is ours. One trial at Max Load shows what the device forwards when it is flooded. The goals are taken in
//! the given order, the strictest first, since lower loads should be measured before higher ones. Each begins at the
//! best load that the trials so far suggest, widens in doubling steps until it has both bounds, and then halves their
//! distance until it is no more than the Goal Width.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Class, End, Goal, GoalResult, Limits, Measurer, Trial};

/// The first step away from a bound, in widths of the goal.
const FIRST_STEP: f64 = 2.0;
/// The most trials for one goal: many times what a steady device needs (about log2 of the range over the width, times
/// the trials per load). A device whose bounds never settle must not keep a search running for ever.
const MOST_TRIALS: usize = 500;

/// Searches for every goal; the results are in the order of the goals. The trial at Max Load lasts `first`, and if that
/// is short, it counts as RFC 9971 lets short trials count.
pub fn mlrsearch<M: Measurer>(
    measurer: &mut M,
    limits: Limits,
    goals: &[Goal],
    first: Duration,
) -> Result<Vec<GoalResult>, M::Error> {
    let mut search = Search { measurer, limits, trials: BTreeMap::new() };
    let flooded = search.measure(limits.max, first)?;
    let forwarded = limits.max as f64 * (1.0 - flooded.loss);
    let mut start = (forwarded as u64).clamp(limits.min, limits.max);
    let mut results = vec![];
    for goal in goals {
        let result = search.goal(goal, start)?;
        start = result.lower.unwrap_or(limits.min);
        results.push(result);
    }
    // Trials for later goals may have moved the bounds of earlier ones.
    Ok(results.iter().zip(goals).map(|(result, goal)| search.result(goal, result.end)).collect())
}

struct Search<'a, M> {
    measurer: &'a mut M,
    limits: Limits,
    trials: BTreeMap<u64, Vec<Trial>>,
}

/// The current bounds of a goal.
#[derive(Clone, Copy)]
struct Bounds {
    lower: Option<u64>,
    upper: Option<u64>,
    /// The lowest load at which trials are disputed.
    ceiling: Option<u64>,
}

impl<M: Measurer> Search<'_, M> {
    fn goal(&mut self, goal: &Goal, start: u64) -> Result<GoalResult, M::Error> {
        let mut step = FIRST_STEP * goal.width;
        let mut left = MOST_TRIALS;
        let end = loop {
            let bounds = self.bounds(goal);
            let Limits { min, max } = self.limits;
            let load = match (bounds.lower, bounds.above()) {
                (None, None) => start,
                (Some(lower), None) if lower >= max => break End::MaxLoad,
                (None, Some(above)) if above <= min => {
                    break if bounds.upper == Some(above) { End::MinLoad } else { End::Ceiling(above) };
                }
                (Some(lower), None) => widened(&mut step, |step| lower as f64 * (1.0 + step)).min(max),
                // A start that is known to be too high is ignored.
                (None, Some(above)) if start < above && !self.is_decided(goal, start) => start,
                (None, Some(above)) => widened(&mut step, |step| above as f64 / (1.0 + step)).max(min),
                (Some(lower), Some(above)) if is_narrow(lower, above, goal.width) => {
                    break if bounds.upper == Some(above) { End::Regular } else { End::Ceiling(above) };
                }
                // The far bound may be the trial at Max Load: approach it in steps, then halve.
                (Some(lower), Some(above)) => {
                    let middle = (lower as f64 * above as f64).sqrt() as u64;
                    middle.min(widened(&mut step, |step| lower as f64 * (1.0 + step))).max(lower + 1)
                }
            };
            while !self.is_decided(goal, load) {
                if left == 0 {
                    return Ok(self.result(goal, End::Trials));
                }
                left -= 1;
                self.measure(load, goal.final_trial)?;
            }
            if left == 0 {
                break End::Trials;
            }
        };
        Ok(self.result(goal, end))
    }

    fn measure(&mut self, load: u64, duration: Duration) -> Result<Trial, M::Error> {
        let trial = self.measurer.measure(load, duration)?;
        self.trials.entry(load).or_default().push(trial);
        Ok(trial)
    }

    fn class(&self, goal: &Goal, load: u64) -> Class {
        goal.classify(self.trials.get(&load).map_or(&[], Vec::as_slice))
    }

    fn is_decided(&self, goal: &Goal, load: u64) -> bool {
        self.class(goal, load) != Class::Undecided
    }

    fn bounds(&self, goal: &Goal) -> Bounds {
        let first = |class| self.trials.keys().copied().find(|&load| self.class(goal, load) == class);
        let (upper, ceiling) = (first(Class::Upper), first(Class::Ceiling));
        let below = upper.into_iter().chain(ceiling).min().unwrap_or(u64::MAX);
        let lower = self.trials.range(..below).rev().map(|(&load, _)| load);
        let lower = lower.into_iter().find(|&load| self.class(goal, load) == Class::Lower);
        Bounds { lower, upper, ceiling }
    }

    fn result(&self, goal: &Goal, end: End) -> GoalResult {
        let Bounds { lower, upper, .. } = self.bounds(goal);
        let conditional_throughput = lower.and_then(|load| goal.conditional_throughput(&self.trials[&load]));
        let end = match (end, lower, upper) {
            (End::Regular, Some(lower), Some(upper)) if !is_narrow(lower, upper, goal.width) => End::Trials,
            (End::Regular, None, _) | (End::Regular, _, None) => End::Trials,
            (end, ..) => end,
        };
        GoalResult { lower, upper, conditional_throughput, end }
    }
}

impl Bounds {
    fn above(&self) -> Option<u64> {
        self.upper.into_iter().chain(self.ceiling).min()
    }
}

/// The load at the current step; the next step is twice as long.
fn widened(step: &mut f64, load: impl Fn(f64) -> f64) -> u64 {
    let load = load(*step);
    *step *= 2.0;
    load as u64
}

fn is_narrow(lower: u64, upper: u64, width: f64) -> bool {
    upper.saturating_sub(lower) <= ((upper as f64 * width) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::simulated::Device;
    use super::*;

    const LIMITS: Limits = Limits { min: 1_000, max: 10_000_000 };
    const SECOND: Duration = Duration::from_secs(1);

    /// No loss; and half a percent, in five trials of which half may fail.
    fn goals() -> [Goal; 2] {
        [0.0, 0.005].map(|loss_ratio| Goal {
            loss_ratio,
            final_trial: SECOND,
            duration_sum: 5 * SECOND,
            exceed_ratio: 0.5,
            width: 0.01,
        })
    }

    fn search(device: &mut Device) -> [GoalResult; 2] {
        let Ok(results) = mlrsearch(device, LIMITS, &goals(), SECOND);
        results.try_into().expect("two goals")
    }

    fn assert_bounds(result: &GoalResult, load: f64) {
        let (lower, upper) = (result.lower.expect("a bound") as f64, result.upper.expect("a bound") as f64);
        assert_eq!(result.end, End::Regular, "{result:?}");
        assert!(lower <= load * 1.000_01 && load <= upper * 1.000_01, "{lower} {load} {upper}");
        assert!(upper - lower <= 0.01 * upper, "{lower} {upper}");
    }

    #[test]
    fn both_rates_of_a_steady_device_are_found() {
        for capacity in [2_000, 98_765, 3_000_000, 9_900_000] {
            let mut device = Device::with_capacity(capacity);
            let [ndr, pdr] = search(&mut device);
            assert_bounds(&ndr, capacity as f64);
            // At half a percent above the capacity, half a percent is lost.
            assert_bounds(&pdr, capacity as f64 / 0.995);
            assert!(ndr.conditional_throughput.expect("a bound") <= capacity as f64);
            assert!(device.trials.len() < 100, "{capacity}: {} trials", device.trials.len());
        }
    }

    #[test]
    fn the_throughput_of_rfc_2544_takes_one_trial_a_load() {
        for capacity in [2_000, 123_456, 9_999_000] {
            let mut device = Device::with_capacity(capacity);
            let Ok(results) = mlrsearch(&mut device, LIMITS, &[Goal::rfc2544(SECOND, 0.01)], SECOND);
            assert_bounds(&results[0], capacity as f64);
            assert_eq!(results[0].conditional_throughput, results[0].lower.map(|load| load as f64));
            let loads: BTreeSet<u64> = device.trials.iter().map(|trial| trial.load).collect();
            assert_eq!(loads.len(), device.trials.len(), "{capacity}");
        }
    }

    #[test]
    fn a_device_that_always_loses_a_little_has_only_a_partial_drop_rate() {
        let mut device = Device::with_capacity(500_000);
        device.floor = 0.001;
        let [ndr, pdr] = search(&mut device);
        assert_eq!((ndr.end, ndr.lower, ndr.conditional_throughput), (End::MinLoad, None, None));
        assert_bounds(&pdr, 500_000.0 / 0.996);
        let forwarded = pdr.lower.expect("a bound") as f64;
        let throughput = pdr.conditional_throughput.expect("a bound");
        assert!(throughput < forwarded && throughput > forwarded * 0.995, "{throughput} of {forwarded}");
    }

    #[test]
    fn hiccups_below_the_exceed_ratio_do_not_move_the_result() {
        for hiccup in [3, 4, 7] {
            let mut device = Device::with_capacity(400_000);
            device.hiccup = hiccup;
            let [ndr, pdr] = search(&mut device);
            assert_bounds(&ndr, 400_000.0);
            assert_bounds(&pdr, 400_000.0 / 0.995);
        }
        // A goal without tolerance always hits a hiccup in five trials.
        let mut device = Device::with_capacity(400_000);
        device.hiccup = 4;
        let goal = Goal { exceed_ratio: 0.0, ..goals()[0] };
        let Ok(results) = mlrsearch(&mut device, LIMITS, &[goal], SECOND);
        assert_eq!((results[0].end, results[0].lower), (End::MinLoad, None));
    }

    #[test]
    fn the_tools_ceiling_is_not_the_devices_loss() {
        let mut device = Device::with_capacity(3_000_000);
        device.generator = 1_000_000;
        for result in search(&mut device) {
            assert!(matches!(result.end, End::Ceiling(load) if load > 1_000_000), "{result:?}");
            assert_eq!(result.upper, None);
            assert!(result.lower.is_some_and(|load| load > 980_000 && load <= 1_000_000), "{result:?}");
        }
        // Not even Min Load is offered: nothing is known about the device.
        device.generator = 500;
        for result in search(&mut device) {
            assert_eq!((result.end, result.lower, result.upper), (End::Ceiling(LIMITS.min), None, None));
        }
    }

    #[test]
    fn a_search_that_meets_a_limit_says_so() {
        let [ndr, pdr] = search(&mut Device::with_capacity(20_000_000));
        assert_eq!((ndr.end, ndr.lower), (End::MaxLoad, Some(LIMITS.max)));
        assert_eq!((pdr.end, pdr.upper), (End::MaxLoad, None));
        let [ndr, _] = search(&mut Device::with_capacity(10));
        assert_eq!(ndr.end, End::MinLoad);
    }

    #[test]
    fn under_loss_inversion_the_lower_load_counts() {
        let mut device = Device::with_capacity(1);
        let mut search = Search { measurer: &mut device, limits: LIMITS, trials: BTreeMap::new() };
        let goal = Goal::rfc2544(SECOND, 0.01);
        for (load, loss) in [(50, 0.0), (100, 0.1), (200, 0.0), (300, 0.1)] {
            let trial = Trial { load, duration: SECOND, loss, certain_loss: loss, offered: true };
            search.trials.insert(load, vec![trial]);
        }
        let result = search.result(&goal, End::Regular);
        assert_eq!((result.lower, result.upper), (Some(50), Some(100)));
        // They are too far apart for a regular result.
        assert_eq!(result.end, End::Trials);
    }

    #[test]
    fn no_device_keeps_a_search_for_ever() {
        // Loss by chance alone: the bounds never settle.
        struct Dice(u64, usize);
        impl Measurer for Dice {
            type Error = std::convert::Infallible;
            fn measure(&mut self, load: u64, duration: Duration) -> Result<Trial, Self::Error> {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                self.1 += 1;
                let loss = if self.0 >> 63 == 0 { 0.0 } else { 0.5 };
                Ok(Trial { load, duration, loss, certain_loss: loss, offered: true })
            }
        }
        for seed in 0..50 {
            let mut dice = Dice(seed, 0);
            let Ok(results) = mlrsearch(&mut dice, LIMITS, &goals(), SECOND);
            assert!(dice.1 <= 1 + 2 * MOST_TRIALS, "{} trials", dice.1);
            for result in results {
                assert!(result.lower.unwrap_or(0) < result.upper.unwrap_or(u64::MAX), "{result:?}");
            }
        }
    }
}
