//! How far an operation is: a bar on a terminal, a line every few seconds elsewhere.

use crate::output::{Output, size};
use crate::when;
use engine::{Progress, Unit};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Progress in the way that fits: a bar, lines, or only the warnings.
pub(crate) fn for_output(output: &Output) -> Arc<dyn Progress> {
    if output.quiet || (output.json && !output.terminal) {
        Arc::new(Silent { output: output.clone() })
    } else if output.terminal {
        Arc::new(Bar { output: output.clone(), bar: Mutex::new(None) })
    } else {
        Arc::new(Lines { output: output.clone(), phase: Mutex::new(None), done: AtomicU64::new(0) })
    }
}

/// For a process that stays: warnings go to the log, one line each.
pub(crate) fn for_log(output: &Output) -> Arc<dyn Progress> {
    Arc::new(Log(output.clone()))
}

struct Log(Output);

impl Progress for Log {
    fn phase(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, text: &str) {
        self.0.always(format!("warning: {text}"));
    }
}

struct Silent {
    output: Output,
}

impl Progress for Silent {
    fn phase(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn advance(&self, _: u64) {}
    fn warn(&self, text: &str) {
        self.output.warn(text);
    }
}

struct Bar {
    output: Output,
    bar: Mutex<Option<ProgressBar>>,
}

impl Bar {
    fn style(total: Option<u64>, unit: Unit) -> ProgressStyle {
        let template = match (total.is_some(), unit) {
            (true, Unit::Bytes) => {
                "{msg:<26} {bar:24} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}"
            }
            (true, Unit::Items) => "{msg:<26} {bar:24} {percent:>3} %  {pos}/{len}  {eta}",
            (false, Unit::Bytes) => "{msg:<26} {spinner}  {binary_bytes}  {binary_bytes_per_sec}  {elapsed}",
            (false, Unit::Items) => "{msg:<26} {spinner}  {pos}  {elapsed}",
        };
        ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
            .tick_chars("|/-\\ ")
    }
}

impl Progress for Bar {
    fn phase(&self, name: &str, total: Option<u64>, unit: Unit) {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let bar = self.output.bars().add(bar.with_style(Self::style(total, unit)).with_message(name.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(250));
        let old = self.bar.lock().unwrap_or_else(PoisonError::into_inner).replace(bar);
        if let Some(old) = old {
            old.finish_and_clear();
        }
    }

    fn advance(&self, by: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(by);
        }
    }

    fn warn(&self, text: &str) {
        self.output.warn(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

struct Phase {
    name: String,
    total: Option<u64>,
    unit: Unit,
    begun: Instant,
    said: Instant,
}

struct Lines {
    output: Output,
    phase: Mutex<Option<Phase>>,
    done: AtomicU64,
}

impl Progress for Lines {
    fn phase(&self, name: &str, total: Option<u64>, unit: Unit) {
        let now = Instant::now();
        self.done.store(0, Ordering::Relaxed);
        let phase = Phase { name: name.to_owned(), total, unit, begun: now, said: now };
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Some(phase);
        self.output.note(match (total, unit) {
            (Some(total), Unit::Bytes) => format!("{name} ({})", size::bytes(total)),
            (Some(total), Unit::Items) => format!("{name} ({total})"),
            (None, _) => name.to_owned(),
        });
    }

    fn advance(&self, by: u64) {
        let done = self.done.fetch_add(by, Ordering::Relaxed) + by;
        // Whoever finds the lock taken leaves it: somebody else is saying the same.
        let Ok(mut guard) = self.phase.try_lock() else { return };
        let Some(phase) = guard.as_mut().filter(|phase| phase.said.elapsed() >= LINE_EVERY) else { return };
        phase.said = Instant::now();
        let line = progress_line(phase, done, phase.begun.elapsed());
        drop(guard);
        self.output.note(line);
    }

    fn warn(&self, text: &str) {
        self.output.warn(text);
    }
}

fn progress_line(phase: &Phase, done: u64, elapsed: Duration) -> String {
    let shown = |number: u64| if phase.unit == Unit::Bytes { size::bytes(number) } else { number.to_string() };
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = done as f64 / seconds;
    let rate_shown = match phase.unit {
        Unit::Bytes => format!("{}/s", size::bytes(rate as u64)),
        Unit::Items => format!("{rate:.1}/s"),
    };
    match phase.total.filter(|total| *total > 0) {
        Some(total) => {
            let percent = done.min(total) as f64 * 100.0 / total as f64;
            let left = if rate > 0.0 { (total.saturating_sub(done) as f64 / rate) as u64 } else { 0 };
            format!(
                "{}: {percent:.0} %, {} of {}, {rate_shown}, about {} left",
                phase.name,
                shown(done),
                shown(total),
                when::length(left)
            )
        }
        None => format!("{}: {}, {rate_shown}", phase.name, shown(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_it_is() {
        let now = Instant::now();
        let mut phase =
            Phase { name: "reading files".into(), total: Some(4 << 30), unit: Unit::Bytes, begun: now, said: now };
        assert_eq!(
            progress_line(&phase, 1 << 30, Duration::from_secs(10)),
            "reading files: 25 %, 1.00 GiB of 4.00 GiB, 102 MiB/s, about 30 s left"
        );
        phase.total = None;
        phase.unit = Unit::Items;
        assert_eq!(progress_line(&phase, 30, Duration::from_secs(10)), "reading files: 30, 3.0/s");
        phase.total = Some(0);
        assert!(!progress_line(&phase, 0, Duration::ZERO).contains("NaN"));
    }

    #[test]
    fn bars_have_valid_templates() {
        for total in [None, Some(1)] {
            for unit in [Unit::Bytes, Unit::Items] {
                Bar::style(total, unit);
            }
        }
    }
}
