//! How fast a backup reads, and for how long.

use super::archived::{Result, context, options};
use super::site::{Site, hint_of};
use engine::backup::BackupOptions;
use engine::{Context, EngineError, Progress, Unit};
use jiff::{Timestamp, ToSpan};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testkit::pg::StopMode;

/// Counts what is read.
#[derive(Default)]
struct Counting(AtomicU64);

impl Progress for Counting {
    fn phase(&self, _: &str, _: Option<u64>, _: Unit) {}
    fn advance(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
    fn warn(&self, _: &str) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_reads_no_faster_than_it_may_and_goes_on_after_its_time_was_up() -> Result {
    const RATE: u64 = 4 << 20;
    let mut site = Site::start(15, &[]).await?;
    site.server.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n; CHECKPOINT")?;
    let standalone = BackupOptions { standalone: true, bytes_per_second_max: Some(RATE), ..options() };
    // The clock jumps when some of it was read.
    let (counting, end) = (Arc::new(Counting::default()), Timestamp::now() + 1.hour());
    let clock = {
        let counting = counting.clone();
        Arc::new(move || if counting.0.load(Ordering::Relaxed) > 3 << 20 { end } else { Timestamp::now() })
    };
    let ctx = Context { progress: counting.clone(), clock, ..context() };
    let begun = Instant::now();
    let limited = BackupOptions { stop_reading_at: Some(end), ..standalone.clone() };
    let error = site.backup_with(&ctx, &limited).await.unwrap_err();
    assert!(matches!(error, EngineError::TimeIsUp { at } if at == end), "{}", hint_of(&error));
    assert_eq!(site.cluster().await?.backups().await?, []);
    // What was read in the last moment may not have been waited for yet.
    let least = |bytes: u64| Duration::from_secs_f64(bytes.saturating_sub(2 << 20) as f64 / RATE as f64);
    assert!(begun.elapsed() >= least(counting.0.load(Ordering::Relaxed)));

    let begun = Instant::now();
    let report = site.backup(&standalone).await?;
    assert_eq!(report.resumed.len(), 1, "{report:?}");
    assert!(begun.elapsed() >= least(report.numbers.pages_read * 8192), "{report:?}");
    assert!(report.numbers.bytes_shared > 100_000, "what was stored before the time was up: {report:?}");

    // The same of a server that is stopped.
    site.server.stop(StopMode::Fast)?;
    let begun = Instant::now();
    let offline = BackupOptions { bytes_per_second_max: Some(RATE), ..site.offline() };
    let report = site.backup(&offline).await?;
    assert!(begun.elapsed() >= least(report.numbers.pages_read * 8192), "{report:?}");
    Ok(())
}
