//! The throughput of RFC 2544, section 26.1: the highest load at which a trial loses nothing.

use std::time::Duration;

use super::{End, Goal, GoalResult, Limits, MOST_DISPUTED, Measurer};

/// Searches by halving: one trial a load, from Max Load downwards, until the load that lost something is at
/// most `width` (a part of it) above the one that lost nothing.
///
/// A disputed trial is repeated, and a load whose trials go on being disputed bounds the search from above.
pub fn throughput<M: Measurer>(
    measurer: &mut M,
    limits: Limits,
    duration: Duration,
    width: f64,
) -> Result<GoalResult, M::Error> {
    let mut ceiling = None;
    let (mut lower, mut upper) = (None, None);
    let mut load = limits.max;
    let end = loop {
        match verdict(measurer, load, duration)? {
            Some(true) => (upper, ceiling) = (Some(load), None),
            Some(false) => lower = Some(load),
            None => ceiling = Some(load),
        }
        load = match (lower, ceiling.or(upper)) {
            (Some(lower), None) if lower == limits.max => break End::MaxLoad,
            (None, Some(above)) if above <= limits.min => break ceiling.map_or(End::MinLoad, End::Ceiling),
            (Some(lower), Some(above)) if above - lower <= ((above as f64 * width) as u64).max(1) => {
                break ceiling.map_or(End::Regular, End::Ceiling);
            }
            (lower, above) => {
                let (below, above) = (lower.unwrap_or(0), above.unwrap_or(limits.max));
                (below + (above - below) / 2).max(limits.min)
            }
        };
    };
    // One trial a load: the load is its own throughput.
    Ok(GoalResult { lower, upper, conditional_throughput: lower.map(|load| load as f64), end })
}

/// Did the device lose anything? `None`: nobody knows.
fn verdict<M: Measurer>(measurer: &mut M, load: u64, duration: Duration) -> Result<Option<bool>, M::Error> {
    for _ in 0..MOST_DISPUTED {
        let verdict = measurer.measure(load, duration)?.is_high_loss(0.0);
        if verdict.is_some() {
            return Ok(verdict);
        }
    }
    Ok(None)
}

/// The goal of RFC 9971 that means the same.
impl Goal {
    /// One trial a load, no loss.
    pub fn rfc2544(trial: Duration, width: f64) -> Goal {
        Goal { loss_ratio: 0.0, final_trial: trial, duration_sum: trial, exceed_ratio: 0.0, width }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::Device;
    use super::*;

    const LIMITS: Limits = Limits { min: 1_000, max: 10_000_000 };
    const SECOND: Duration = Duration::from_secs(1);

    fn search(device: &mut Device) -> GoalResult {
        let Ok(result) = throughput(device, LIMITS, SECOND, 0.01);
        result
    }

    #[test]
    fn the_capacity_is_found_to_within_the_width() {
        for capacity in [2_000, 123_456, 5_000_000, 9_999_000] {
            let result = search(&mut Device::with_capacity(capacity));
            let (lower, upper) = (result.lower.expect("a bound"), result.upper.expect("a bound"));
            assert_eq!(result.end, End::Regular, "{capacity}");
            assert!(lower <= capacity && capacity < upper, "{lower} {capacity} {upper}");
            assert!((upper - lower) as f64 <= 0.01 * upper as f64, "{lower} {upper}");
        }
    }

    #[test]
    fn a_search_that_meets_a_limit_says_so() {
        assert_eq!(search(&mut Device::with_capacity(20_000_000)).end, End::MaxLoad);
        let below = search(&mut Device::with_capacity(10));
        assert_eq!((below.end, below.lower), (End::MinLoad, None));
    }

    #[test]
    fn the_tools_ceiling_is_not_the_devices_loss() {
        // The device carries twice what the generator sends.
        let mut device = Device::with_capacity(2_000_000);
        device.generator = 1_000_000;
        let result = search(&mut device);
        assert!(matches!(result.end, End::Ceiling(load) if load > 1_000_000 && load < 1_015_000), "{result:?}");
        assert!(result.lower.is_some_and(|load| load <= 1_000_000 && load > 985_000), "{result:?}");
        assert_eq!(result.upper, None);
        // A generator that is fast enough leaves the result regular though the first trials were above it.
        let mut device = Device::with_capacity(800_000);
        device.generator = 1_000_000;
        assert_eq!(search(&mut device).end, End::Regular);
        // Not even Min Load is offered: nothing is known of the device.
        device.generator = 500;
        let result = search(&mut device);
        assert_eq!((result.end, result.lower, result.upper), (End::Ceiling(LIMITS.min), None, None));
    }
}
