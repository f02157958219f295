//! Times as people write them, and times shown to people.

use crate::error::CommandError;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp, Zoned};

/// A time that was read, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The moment.
    pub(crate) time: Timestamp,
    /// How it was read, for the operator to check.
    pub(crate) how: String,
}

/// Reads a time. One without a zone is in `zone`; relative ones count from `now`.
pub(crate) fn read(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Reading, CommandError> {
    let text = text.trim();
    let here = now.to_zoned(zone.clone());
    if text == "now" {
        return Ok(Reading { time: now, how: format!("now is {}", both(now, zone)) });
    }
    if let Some(result) = relative(text, &here) {
        let time = result?;
        return Ok(Reading { time, how: format!("'{text}' is {}", both(time, zone)) });
    }
    if let Some(time) = with_zone(text) {
        return Ok(Reading { time, how: format!("'{text}' is {}", both(time, zone)) });
    }
    let Some(civil) = without_zone(text, &here) else {
        return Err(CommandError::usage(format!("'{text}' is not a time that pgkeep can read")).hint(
            "write it like '2026-11-20 20:09:10+01', '2026-11-20T20:09:10Z', '2026-11-20 20:09 Europe/Berlin', \
             '10 minutes ago', 'yesterday 14:00'",
        ));
    };
    if let Some((civil, name)) = civil.zone_name {
        let zone = TimeZone::get(&name).map_err(|_| {
            CommandError::usage(format!("'{text}': the time zone '{name}' is not known"))
                .hint("write an offset such as +01:00, or a name such as Europe/Berlin")
        })?;
        let time = in_zone(text, civil, &zone)?;
        return Ok(Reading { time, how: format!("'{text}' is {}", both(time, &zone)) });
    }
    let time = in_zone(text, civil.time, zone)?;
    let how = format!("'{text}' has no time zone and was read in this host's: {}", both(time, zone));
    Ok(Reading { time, how })
}

/// A time to come: a length from now, such as `30d` or `6 months`, or whatever [`read`] takes.
pub(crate) fn ahead(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, CommandError> {
    let here = now.to_zoned(zone.clone());
    let span = text.trim().to_ascii_lowercase().parse::<Span>().ok().filter(|span| !span.is_negative());
    match span.map(|span| here.checked_add(span)) {
        Some(Ok(time)) => Ok(time.timestamp()),
        Some(Err(error)) => Err(CommandError::usage(format!("'{text}' from now is out of range: {error}"))),
        None => Ok(read(text, now, zone)?.time),
    }
}

/// A whole number with `s`, `min`, `h` or `d`, or 0, as in the configuration.
pub(crate) fn duration(text: &str) -> Option<std::time::Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(std::time::Duration::ZERO);
    }
    [("min", 60), ("s", 1), ("h", 3600), ("d", 24 * 3600)].iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*factor).filter(|seconds| *seconds < 1 << 50).map(std::time::Duration::from_secs)
    })
}

/// `10 minutes ago`, `1 hour 30 min ago`, `2d ago`.
fn relative(text: &str, here: &Zoned) -> Option<Result<Timestamp, CommandError>> {
    let lower = text.to_ascii_lowercase();
    let amount = lower.strip_suffix("ago")?.trim();
    let bad = || {
        CommandError::usage(format!("'{text}' is not a time that pgkeep can read")).hint(
            "write a number and a unit: '30 seconds ago', '10 minutes ago', '1 hour 30 minutes ago', '2 days ago'",
        )
    };
    Some((|| {
        let span: Span = amount.parse().map_err(|_| bad())?;
        if span.is_negative() {
            return Err(bad());
        }
        // Days are days of the calendar: at a change to summer time "1 day ago" is the same hour of the clock.
        Ok(here.checked_sub(span).map_err(|_| bad())?.timestamp())
    })())
}

/// With `Z`, an offset or a zone in brackets.
fn with_zone(text: &str) -> Option<Timestamp> {
    let iso = text.replacen(' ', "T", 1);
    let iso = iso.replace(' ', "");
    iso.parse::<Timestamp>().ok().or_else(|| iso.parse::<Zoned>().ok().map(|zoned| zoned.timestamp()))
}

struct Civil {
    time: DateTime,
    zone_name: Option<(DateTime, String)>,
}

/// A date and time, a date, or a time of a day named in words; perhaps with the name of a zone.
fn without_zone(text: &str, here: &Zoned) -> Option<Civil> {
    if let Some(time) = plain(text, here) {
        return Some(Civil { time, zone_name: None });
    }
    let (rest, name) = text.rsplit_once(' ')?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let time = plain(rest.trim_end(), here)?;
    Some(Civil { time, zone_name: Some((time, name.to_owned())) })
}

fn plain(text: &str, here: &Zoned) -> Option<DateTime> {
    let text = text.replacen('T', " ", 1);
    let mut words = text.split_whitespace();
    let (first, second) = (words.next()?, words.next());
    if words.next().is_some() {
        return None;
    }
    let today = here.date();
    let day = match first.to_ascii_lowercase().as_str() {
        "today" => Some(today),
        "yesterday" => today.yesterday().ok(),
        _ => first.parse::<Date>().ok().filter(|_| first.contains('-')),
    };
    match (day, second) {
        (Some(day), Some(time)) => Some(day.to_datetime(clock(time)?)),
        (Some(day), None) => Some(day.to_datetime(Time::midnight())),
        (None, None) => Some(today.to_datetime(clock(first)?)),
        (None, Some(_)) => None,
    }
}

/// `20:09`, `20:09:10`, `20:09:10.123456`.
fn clock(text: &str) -> Option<Time> {
    if !text.contains(':') || !text.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.') {
        return None;
    }
    text.parse().ok()
}

/// The moment of a time in a zone. A time that the clock there showed twice or never is refused.
fn in_zone(text: &str, civil: DateTime, zone: &TimeZone) -> Result<Timestamp, CommandError> {
    let ambiguous = zone.to_ambiguous_zoned(civil);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => ambiguous
            .compatible()
            .map(|zoned| zoned.timestamp())
            .map_err(|error| CommandError::usage(format!("'{text}' is out of range: {error}"))),
        AmbiguousOffset::Gap { before, after } => Err(CommandError::usage(format!(
            "'{text}' does not exist in the zone {}: the clock went from {before} to {after} and left it out",
            zone_name(zone)
        ))
        .hint(format!("write the offset: '{civil}{before}' or '{civil}{after}'"))),
        AmbiguousOffset::Fold { before, after } => Err(CommandError::usage(format!(
            "'{text}' happened twice in the zone {}: the clock went back from {before} to {after}",
            zone_name(zone)
        ))
        .hint(format!("say which: '{civil}{before}' (the first) or '{civil}{after}' (the second)"))),
    }
}

fn zone_name(zone: &TimeZone) -> String {
    zone.iana_name().unwrap_or("of this host").to_owned()
}

/// The zone of this host.
pub(crate) fn local_zone() -> TimeZone {
    TimeZone::system()
}

/// The zone that was named, else this host's.
pub(crate) fn zone(named: Option<&str>) -> Result<TimeZone, CommandError> {
    let Some(name) = named else { return Ok(local_zone()) };
    TimeZone::get(name).map_err(|_| {
        CommandError::usage(format!("--time-zone {name}: there is no such time zone"))
            .hint("write a name such as Europe/Berlin, or UTC")
    })
}

/// A time in a zone, `2026-11-20 21:09:10 +01`. Fractions of a second are shown when there are some.
pub(crate) fn local(time: Timestamp, zone: &TimeZone) -> String {
    let zoned = time.to_zoned(zone.clone());
    let fraction = if zoned.subsec_nanosecond() == 0 { "%Y-%m-%d %H:%M:%S" } else { "%Y-%m-%d %H:%M:%S%.6f" };
    let offset = zoned.strftime("%:z").to_string();
    let offset = offset.strip_suffix(":00").unwrap_or(&offset).to_owned();
    format!("{} {offset}", zoned.strftime(fraction))
}

/// A time in a zone without fractions, for tables.
pub(crate) fn short(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A time in a zone, and in UTC where that differs.
pub(crate) fn both(time: Timestamp, zone: &TimeZone) -> String {
    let utc = local(time, &TimeZone::UTC).replace(" +00", " UTC");
    if zone.to_offset(time).is_zero() { utc } else { format!("{} ({utc})", local(time, zone)) }
}

/// As [`both`], to the second.
pub(crate) fn seconds(time: Timestamp, zone: &TimeZone) -> String {
    both(Timestamp::from_second(time.as_second()).unwrap_or(time), zone)
}

/// A length of time for people: `3 s`, `4 min 10 s`, `2 h 5 min`, `3 days 4 h`.
pub(crate) fn length(seconds: u64) -> String {
    let parts = |high: u64, high_unit: &str, low: u64, low_unit: &str| match low {
        0 => format!("{high} {high_unit}"),
        _ => format!("{high} {high_unit} {low} {low_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => parts(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => parts(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => {
            let days = seconds / 86_400;
            parts(days, if days == 1 { "day" } else { "days" }, seconds % 86_400 / 3600, "h")
        }
    }
}

/// How long ago, or how far ahead.
pub(crate) fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - time.as_second();
    if seconds < 0 {
        format!("in {}", length(seconds.unsigned_abs()))
    } else {
        format!("{} ago", length(seconds.unsigned_abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-20T20:09:10Z".parse().unwrap()
    }

    #[test]
    fn times_are_read() {
        for (text, expect) in [
            ("2026-11-20 20:09", "2026-11-20T19:09:00Z"),
            ("2026-11-20 20:09:10", "2026-11-20T19:09:10Z"),
            ("2026-11-20T20:09:10.123456", "2026-11-20T19:09:10.123456Z"),
            ("2026-07-20 20:09", "2026-07-20T18:09:00Z"),
            ("2026-11-20", "2026-11-19T23:00:00Z"),
            ("2026-11-20 20:09:10Z", "2026-11-20T20:09:10Z"),
            ("2026-11-20T20:09:10Z", "2026-11-20T20:09:10Z"),
            ("2026-11-20 20:09:10+01", "2026-11-20T19:09:10Z"),
            ("2026-11-20 20:09:10 +01:00", "2026-11-20T19:09:10Z"),
            ("2026-11-20 20:09:10.5-05:30", "2026-11-21T01:39:10.5Z"),
            ("2026-11-20 20:09+0000", "2026-11-20T20:09:00Z"),
            ("2026-11-20T20:09:10+01:00[Europe/Berlin]", "2026-11-20T19:09:10Z"),
            ("2026-11-20 20:09 UTC", "2026-11-20T20:09:00Z"),
            ("2026-11-20 20:09:10 America/New_York", "2026-11-21T01:09:10Z"),
            ("yesterday 14:00", "2026-11-19T13:00:00Z"),
            ("Yesterday 14:00 UTC", "2026-11-19T14:00:00Z"),
            ("yesterday", "2026-11-18T23:00:00Z"),
            ("today 14:00:30", "2026-11-20T13:00:30Z"),
            ("14:00", "2026-11-20T13:00:00Z"),
            ("10 minutes ago", "2026-11-20T19:59:10Z"),
            ("1 hour 30 minutes ago", "2026-11-20T18:39:10Z"),
            ("1h 30m ago", "2026-11-20T18:39:10Z"),
            ("2 days ago", "2026-11-18T20:09:10Z"),
            ("1 week ago", "2026-11-13T20:09:10Z"),
            ("now", "2026-11-20T20:09:10Z"),
        ] {
            let reading = read(text, now(), &berlin()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reading.time, expect.parse::<Timestamp>().unwrap(), "{text}: {}", reading.how);
        }
    }

    #[test]
    fn how_a_time_was_read_is_said() {
        assert_eq!(
            read("2026-11-20 20:09", now(), &berlin()).unwrap().how,
            "'2026-11-20 20:09' has no time zone and was read in this host's: \
             2026-11-20 20:09:00 +01 (2026-11-20 19:09:00 UTC)"
        );
        assert_eq!(
            read("2026-11-20 20:09Z", now(), &TimeZone::UTC).unwrap().how,
            "'2026-11-20 20:09Z' is 2026-11-20 20:09:00 UTC"
        );
    }

    #[test]
    fn days_are_days_of_the_calendar() {
        let now = "2026-03-29T18:00:00Z".parse().unwrap();
        // Summer time began that night: 20:00 +02 less one day is 20:00 +01.
        assert_eq!(read("1 day ago", now, &berlin()).unwrap().time, "2026-03-28T19:00:00Z".parse().unwrap());
    }

    #[test]
    fn hours_that_came_twice_or_never_are_refused() {
        let twice = read("2026-10-25 02:30", now(), &berlin()).unwrap_err();
        assert!(twice.message.contains("happened twice"), "{twice}");
        assert!(twice.hints[0].contains("'2026-10-25T02:30:00+02' (the first)"), "{twice}");
        for hinted in ["2026-10-25T02:30:00+02", "2026-10-25T02:30:00+01"] {
            read(hinted, now(), &berlin()).unwrap();
        }
        let never = read("2026-03-29 02:30", now(), &berlin()).unwrap_err();
        assert!(never.message.contains("does not exist"), "{never}");
    }

    #[test]
    fn times_to_come() {
        for (text, expect) in [
            ("30d", "2026-12-20T20:09:10Z"),
            ("6 months", "2027-05-20T19:09:10Z"),
            ("1 year", "2027-11-20T20:09:10Z"),
            ("36h", "2026-11-22T08:09:10Z"),
            ("2027-01-31", "2027-01-30T23:00:00Z"),
            ("2027-01-31T00:00Z", "2027-01-31T00:00:00Z"),
        ] {
            assert_eq!(ahead(text, now(), &berlin()).unwrap(), expect.parse::<Timestamp>().unwrap(), "{text}");
        }
        for text in ["", "soon", "-30d", "30", "99999999999 years"] {
            assert!(ahead(text, now(), &berlin()).is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_are_read() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("90s", 90), ("10min", 600), ("36 h", 129_600), ("8d", 691_200)] {
            assert_eq!(duration(text), Some(std::time::Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1", "h", "1.5h", "-1h", "1w", "99999999999999999d"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "soon",
            "2026-13-01",
            "2026-11-20 25:00",
            "2026-11-20 20:09 Mars/Base",
            "minutes ago",
            "-5 minutes ago",
            "20",
            "2026",
            "tomorrow 10:00",
            "10 minutes",
            "2026-11-20 20:09 +01 x",
            "20:09+01",
        ] {
            let error = read(text, now(), &berlin()).unwrap_err();
            assert_eq!(error.kind.exit_code(), 2, "{text}");
            assert!(!error.hints.is_empty(), "{text}");
        }
    }

    #[test]
    fn times_and_lengths_are_shown() {
        assert_eq!(both(now(), &TimeZone::UTC), "2026-11-20 20:09:10 UTC");
        assert_eq!(both(now(), &berlin()), "2026-11-20 21:09:10 +01 (2026-11-20 20:09:10 UTC)");
        let fraction: Timestamp = "2026-11-20T20:09:10.000123Z".parse().unwrap();
        assert_eq!(local(fraction, &TimeZone::UTC), "2026-11-20 20:09:10.000123 +00");
        for (seconds, expect) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (250, "4 min 10 s"),
            (7500, "2 h 5 min"),
            (86_400, "1 day"),
            (273_700, "3 days 4 h"),
        ] {
            assert_eq!(length(seconds), expect);
        }
        assert_eq!(ago(now(), now() + jiff::SignedDuration::from_secs(61)), "1 min 1 s ago");
        assert_eq!(ago(now() + jiff::SignedDuration::from_secs(61), now()), "in 1 min 1 s");
    }
}
