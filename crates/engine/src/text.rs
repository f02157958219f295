//! Words for people: times and counts, the same in every message.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time in UTC, as the program shows times in other zones: `2026-11-20 20:09:10 +00`, with microseconds when there are some.
pub(crate) fn time(time: Timestamp) -> String {
    let utc = time.to_zoned(TimeZone::UTC);
    let format = if utc.subsec_nanosecond() == 0 { "%Y-%m-%d %H:%M:%S +00" } else { "%Y-%m-%d %H:%M:%S%.6f +00" };
    utc.strftime(format).to_string()
}

/// A number with its noun: `1 file`, `2 files`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts() {
        let check = |text: &str, expect: &str| assert_eq!(time(text.parse().unwrap()), expect);
        check("2026-11-20T20:09:10Z", "2026-11-20 20:09:10 +00");
        check("2026-11-20T20:09:10.123456789Z", "2026-11-20 20:09:10.123456 +00");
        assert_eq!([count(1, "file", "files"), count(0, "file", "files")], ["1 file", "0 files"]);
    }
}
