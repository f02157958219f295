//! PostgreSQL's moments in time (`src/include/datatype/timestamp.h`).

use serde::{Deserialize, Serialize};

/// Microseconds since 2000-01-01 00:00:00 UTC, as WAL records and the replication protocol carry them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimestampTz(pub i64);

/// Seconds from 1970-01-01 to 2000-01-01: 10,957 days.
const EPOCH_DIFFERENCE_SECONDS: i64 = 10_957 * 86_400;

impl TimestampTz {
    /// The moment as microseconds since 1970-01-01 UTC; `None` beyond 64 bits.
    #[must_use]
    pub const fn to_unix_micros(self) -> Option<i64> {
        self.0.checked_add(EPOCH_DIFFERENCE_SECONDS * 1_000_000)
    }

    /// The moment from microseconds since 1970-01-01 UTC; `None` beyond 64 bits.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Option<Self> {
        match micros.checked_sub(EPOCH_DIFFERENCE_SECONDS * 1_000_000) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn epochs() {
        assert_eq!(TimestampTz(0).to_unix_micros(), Some(946_684_800_000_000));
        assert_eq!(TimestampTz::from_unix_micros(0), Some(TimestampTz(-946_684_800_000_000)));
        assert_eq!(TimestampTz(i64::MAX).to_unix_micros(), None);
        assert_eq!(TimestampTz::from_unix_micros(i64::MIN), None);
    }

    proptest! {
        #[test]
        fn round_trip(micros in -1i64 << 60..1 << 60) {
            let there = TimestampTz(micros).to_unix_micros().unwrap();
            prop_assert_eq!(TimestampTz::from_unix_micros(there), Some(TimestampTz(micros)));
        }
    }
}
