//! Durations in people's spelling.

use std::time::Duration;

use penstock_proto::trust::LeaseLength;

/// Longest duration: a century, so that no sum of times overflows.
const LONGEST: u64 = 100 * 366 * 86_400;

/// Parses a whole number of `s`, `m`, `h` or `d`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 90s, 30m, 24h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let total = number.parse::<u64>().ok().filter(|_| digits).and_then(|number| number.checked_mul(seconds));
    match total.ok_or_else(wrong)? {
        0 => Err("it would be over at once".into()),
        total if total > LONGEST => Err("that is more than a century".into()),
        total => Ok(Duration::from_secs(total)),
    }
}

/// Parses how long leases last: a duration, or `never`.
pub(super) fn parse_lease(text: &str) -> Result<LeaseLength, String> {
    if text == "never" {
        return Ok(LeaseLength::Never);
    }
    let seconds = parse(text)?.as_secs();
    u32::try_from(seconds).map(LeaseLength::from).map_err(|_| "that is more than a century: write never".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_units() {
        for (text, seconds) in [("1s", 1), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(parse_lease("never"), Ok(LeaseLength::Never));
        assert_eq!(parse_lease("7d"), Ok(LeaseLength::DEFAULT));
        assert!(parse_lease("0s").is_err() && parse_lease("forever").is_err());
        for bad in ["", "h", "24", "-1h", "+1h", "1.5h", "24 h", "0s", "99999999999999999999d", "40000d", "3ä", "ä"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
