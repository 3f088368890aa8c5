//! Dates and lengths of time in signed documents, in whole seconds.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A date, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl From<SystemTime> for UnixTime {
    /// A time before 1970 becomes 1970.
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

/// Both clocks of a gateway, read together.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic clock.
    pub instant: Instant,
    /// The wall clock, which may be wrong.
    pub wall: UnixTime,
}

/// When a statement holds: from the one date until before the other. Either may be open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", try_from = "Bounds", into = "Bounds")]
pub struct Validity {
    from: Option<UnixTime>,
    until: Option<UnixTime>,
}

/// The end of a [`Validity`] is not after its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must end after it begins")]
pub struct ValidityError;

impl Validity {
    /// Valid from the one date until the other.
    ///
    /// # Errors
    /// It would end before it begins.
    pub fn new(from: Option<UnixTime>, until: Option<UnixTime>) -> Result<Self, ValidityError> {
        match (from, until) {
            (Some(from), Some(until)) if until <= from => Err(ValidityError),
            _ => Ok(Self { from, until }),
        }
    }

    /// The beginning.
    #[must_use]
    pub fn from(&self) -> Option<UnixTime> {
        self.from
    }

    /// The end.
    #[must_use]
    pub fn until(&self) -> Option<UnixTime> {
        self.until
    }

    /// Whether every moment of `other` is one of this.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let from = self.from.is_none_or(|from| other.from.is_some_and(|other| from <= other));
        let until = self.until.is_none_or(|until| other.until.is_some_and(|other| until >= other));
        from && until
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Bounds {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<UnixTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<UnixTime>,
}

impl TryFrom<Bounds> for Validity {
    type Error = ValidityError;

    fn try_from(bounds: Bounds) -> Result<Self, ValidityError> {
        Self::new(bounds.from, bounds.until)
    }
}

impl From<Validity> for Bounds {
    fn from(validity: Validity) -> Self {
        Self { from: validity.from, until: validity.until }
    }
}

/// How long a lease keeps a statement alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum LeaseLength {
    /// A number of seconds, not 0.
    Seconds(std::num::NonZeroU32),
    /// For good. It is longer than any other.
    Never,
}

impl LeaseLength {
    /// Seven days: longer than a holiday's outage of a coordinator, short enough that a revoked site which
    /// keeps a gateway away from its coordinator does not gain much.
    pub const DEFAULT: Self = match std::num::NonZeroU32::new(7 * 86_400) {
        Some(seconds) => Self::Seconds(seconds),
        None => Self::Never,
    };

    /// The length as a duration, unless it is for good.
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::Seconds(seconds) => Some(Duration::from_secs(seconds.get().into())),
            Self::Never => None,
        }
    }

    /// How long after one lease the coordinator gives the next: an eighth, and every day where leases do
    /// not end, since they also tell gateways the date.
    #[must_use]
    pub fn renewal(self) -> Duration {
        self.duration().map_or(Duration::from_secs(86_400), |length| length / 8)
    }
}

/// In documents and files, seconds; 0 stands for [`LeaseLength::Never`].
impl From<u32> for LeaseLength {
    fn from(seconds: u32) -> Self {
        std::num::NonZeroU32::new(seconds).map_or(Self::Never, Self::Seconds)
    }
}

impl From<LeaseLength> for u32 {
    fn from(length: LeaseLength) -> Self {
        match length {
            LeaseLength::Seconds(seconds) => seconds.get(),
            LeaseLength::Never => 0,
        }
    }
}

impl fmt::Display for LeaseLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) => write!(f, "{seconds} s"),
            Self::Never => f.write_str("never"),
        }
    }
}
