//! Being in nobody's way: nice levels, limits of rate and time, by arguments and configuration.

use crate::cli::GentleArgs;
use crate::error::CommandError;
use crate::output::size;
use crate::session::Session;
use crate::when;
use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use std::process::Command;

/// At most so many bytes are read per second.
pub(crate) fn max_rate(args: &GentleArgs, configured: Option<u64>) -> Result<Option<u64>, CommandError> {
    let Some(text) = &args.max_rate else { return Ok(configured) };
    size::read(text).map(Some).ok_or_else(|| {
        CommandError::usage(format!("--max-rate {text}: not a size such as 512kB, 50MB or 1GB"))
            .hint("write a whole number and its unit; it is for one second")
    })
}

/// When reading is stopped.
pub(crate) fn stop_at(args: &GentleArgs, now: Timestamp, zone: &TimeZone) -> Result<Option<Timestamp>, CommandError> {
    if let Some(text) = &args.stop_after {
        let time = when::duration(text).filter(|time| !time.is_zero());
        return time.and_then(|time| now.checked_add(time).ok()).map(Some).ok_or_else(|| {
            CommandError::usage(format!("--stop-after {text}: not a time such as 90min, 2h or 1d"))
                .hint("write a whole number and its unit")
        });
    }
    let Some(text) = &args.until else { return Ok(None) };
    let at = match time_of_day(text) {
        Some(time) => next(time, now, zone),
        None => when::ahead(text, now, zone)?,
    };
    if at <= now {
        return Err(CommandError::usage(format!("--until {text} is over already"))
            .hint("name a time of the day, such as 06:00, or a time to come"));
    }
    Ok(Some(at))
}

fn time_of_day(text: &str) -> Option<Time> {
    ["%H:%M", "%H:%M:%S"].iter().find_map(|form| Time::strptime(form, text.trim()).ok())
}

/// The next moment at which clocks show this. An hour that is left out is passed over, one that comes twice ends with its
/// first.
fn next(time: Time, now: Timestamp, zone: &TimeZone) -> Timestamp {
    let today = now.to_zoned(zone.clone()).date();
    let at = |date: jiff::civil::Date| date.to_datetime(time).to_zoned(zone.clone()).ok().map(|at| at.timestamp());
    let days = [Some(today), today.tomorrow().ok()];
    days.into_iter().flatten().filter_map(at).find(|at| *at > now).unwrap_or(now)
}

/// The level of backups beside a server that runs, when nobody says another: its clients go first.
const NICE_USUAL: u8 = 5;

/// Makes this process nice: as told, else, `beside` a server that runs, at the usual level, unless the caller's is one
/// already. What cannot be is said, and is no reason to stop.
pub(crate) fn be_nice(session: &Session, told: Option<u8>, beside: bool, idle_io: bool) {
    let usual = || (beside && getpriority_process(None).is_ok_and(|level| level == 0)).then_some(NICE_USUAL);
    if let Some(nice) = told.or_else(usual) {
        // A level is each thread's own, and what a thread starts has it too.
        let failed = threads().into_iter().filter(|thread| setpriority_process(Some(*thread), nice.into()).is_err());
        if failed.count() > 0 {
            session.output.warn(format!("the nice level {nice} could not be set: it is lower than the present one"));
        }
    }
    if idle_io {
        let threads = threads().into_iter().map(|thread| thread.as_raw_nonzero().to_string());
        let done = Command::new("ionice").args(["-c", "3", "-p"]).args(threads).output();
        let why = match done {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        session.output.warn(format!("--idle-io: `ionice` (of util-linux) could not do it: {why}"));
    }
}

/// The threads of this process.
fn threads() -> Vec<Pid> {
    let names = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    names.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(until: Option<&str>, stop_after: Option<&str>) -> GentleArgs {
        let (until, stop_after) = (until.map(str::to_owned), stop_after.map(str::to_owned));
        GentleArgs { max_rate: None, until, stop_after, nice: None, idle_io: false }
    }

    #[test]
    fn the_end_is_the_next_time_that_clocks_show() {
        let now: Timestamp = "2026-11-20T23:30:00Z".parse().unwrap();
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let check = |until: &str, expect: &str| {
            let found = stop_at(&args(Some(until), None), now, &berlin).unwrap().unwrap();
            assert_eq!(found.to_string(), expect, "{until}");
        };
        // It is 00:30 there.
        check("06:00", "2026-11-21T05:00:00Z");
        check("00:31", "2026-11-20T23:31:00Z");
        check("00:30", "2026-11-21T23:30:00Z");
        check("23:59:30", "2026-11-21T22:59:30Z");
        check("2026-11-22 06:00:00+00", "2026-11-22T06:00:00Z");
        for bad in ["25:00", "2026-11-19 06:00:00+00", "soon"] {
            assert_eq!(stop_at(&args(Some(bad), None), now, &berlin).unwrap_err().kind.exit_code(), 2, "{bad}");
        }
        let after = |text: &str| stop_at(&args(None, Some(text)), now, &berlin);
        assert_eq!(after("2h").unwrap().unwrap().to_string(), "2026-11-21T01:30:00Z");
        assert!(after("0").is_err() && after("2").is_err() && after("-1h").is_err());
        assert_eq!(stop_at(&args(None, None), now, &berlin).unwrap(), None);
    }

    #[test]
    fn rates_have_a_unit() {
        let rate = |text: &str| max_rate(&GentleArgs { max_rate: Some(text.into()), ..args(None, None) }, Some(7));
        assert_eq!(rate("50MB").unwrap(), Some(50 << 20));
        assert_eq!(max_rate(&args(None, None), Some(7)).unwrap(), Some(7));
        for bad in ["50", "0MB", "MB", "-1MB", "1.5GB", "99999999TB"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
