//! How fast files are read: at most so many bytes per second, for all threads of an operation together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A wait is looked at again after so long, so that it can be ended early.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// At most so many bytes per second; without a limit it costs nothing.
///
/// What was not used in a quiet moment is not made up for later: the limit holds for every second, not on average.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When everything noted so far may have been read.
    due: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, due: Mutex::new(None) }
    }

    /// Notes that bytes were read, and waits until that many may have been read, or until `stopped`. Blocks.
    pub(crate) fn spent(&self, bytes: u64, stopped: &impl Fn() -> bool) {
        let Some(until) = self.note(bytes, Instant::now()) else { return };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || stopped() {
                return;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }

    /// Notes bytes; gives until when to wait.
    fn note(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second?.max(1);
        let time = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let until = due.map_or(now, |due| due.max(now)) + time;
        *due = Some(until);
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_share_one_limit_and_quiet_moments_are_not_made_up_for() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let pace = Pace::new(Some(1000));
        assert_eq!(pace.note(100, start), Some(after(100)));
        assert_eq!(pace.note(100, start), Some(after(200)), "another thread");
        assert_eq!(pace.note(100, after(150)), Some(after(300)));
        assert_eq!(pace.note(100, after(1000)), Some(after(1100)), "nothing is saved up");
        assert_eq!(Pace::new(None).note(u64::MAX, start), None);
    }

    #[test]
    fn a_wait_can_be_ended() {
        let pace = Pace::new(Some(1));
        // A year and a half, if it could not.
        pace.spent(50_000_000, &|| true);
    }
}
