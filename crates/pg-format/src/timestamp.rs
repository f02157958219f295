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

/// A moment as `backup_manifest` has it: `2026-11-20 20:09:10 GMT`.
#[must_use]
pub fn gmt_text(unix_seconds: i64) -> String {
    let (days, second) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} GMT", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted from March, so
/// that the leap day is the last one of its year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    // Days since 0000-03-01.
    let days = days.saturating_add(719_468);
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
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

    #[test]
    fn texts() {
        let check = |seconds: i64, expect: &str| assert_eq!(gmt_text(seconds), expect);
        check(0, "1970-01-01 00:00:00 GMT");
        check(-1, "1969-12-31 23:59:59 GMT");
        check(951_782_400, "2000-02-29 00:00:00 GMT");
        check(1_795_205_350, "2026-11-20 20:09:10 GMT");
        check(4_107_542_400, "2100-03-01 00:00:00 GMT");
    }

    proptest! {
        #[test]
        fn texts_never_panic(seconds: i64) {
            let _ = gmt_text(seconds);
        }

        #[test]
        fn round_trip(micros in -1i64 << 60..1 << 60) {
            let there = TimestampTz(micros).to_unix_micros().unwrap();
            prop_assert_eq!(TimestampTz::from_unix_micros(there), Some(TimestampTz(micros)));
        }
    }
}
