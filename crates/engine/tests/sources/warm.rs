//! Two passes: files are read while the server runs, and only what changed since when it is stopped.

use super::archived::{Result, at_phase, conninfo, context, options};
use super::fill;
use super::site::{Site, hint_of, offline_of};
use engine::EngineError;
use engine::backup::{self, BackupOptions, BackupReport, Stopping, WarmReport};
use engine::restore::{RecoveryTarget, RestoreRequest};
use std::path::Path;
use std::time::Duration;
use testkit::compare::{amcheck, checksums, compare_dirs};
use testkit::load::{Ledger, LoadOptions};
use testkit::pg::StopMode;
use tokio_util::sync::CancellationToken;

impl Site {
    async fn warm(&self) -> std::result::Result<Option<WarmReport>, EngineError> {
        let cluster = self.cluster().await.expect("opened");
        backup::warm(&context(), &cluster, self.server.data_dir(), None, &self.offline()).await
    }

    /// What a backup of a stopped server gives back is byte for byte what is there, and comes up whole.
    async fn gives_back_what_is_there(&self, name: &str) -> Result {
        let request = self.request(name, RecoveryTarget::Latest)?;
        let request = RestoreRequest { tablespaces: self.elsewhere("fast", &format!("{name}-fast"))?, ..request };
        self.restore(&request).await?;
        let comparison = compare_dirs(self.server.data_dir(), &request.target_dir)?;
        comparison.require_equal()?;
        assert!(comparison.files > 500, "{comparison:?}");
        let mut copy = self.open(&request.target_dir)?;
        amcheck(&copy)?;
        copy.stop(StopMode::Fast)?;
        checksums(&copy)
    }
}

/// Every kind of change that a file can go through.
fn change(site: &Site, round: u32) -> Result {
    let sql = |text: &str| site.server.sql(text).map(drop);
    sql(&format!(
        "UPDATE big SET n = n + 1 WHERE n % 500 = {round}; INSERT INTO there SELECT generate_series(1, 900)"
    ))?;
    sql("CREATE TABLE IF NOT EXISTS once (n int, t text); DROP TABLE once; CREATE TABLE once (n int, t text)")?;
    sql("INSERT INTO once SELECT n, repeat('x', 90) FROM generate_series(1, 5000) n; CREATE INDEX ON once (t)")?;
    // It loses its end, and grows again with other rows.
    sql("CREATE TABLE IF NOT EXISTS shrunk (n int, t text); DELETE FROM shrunk WHERE n > 50")?;
    sql("VACUUM shrunk; CHECKPOINT")?;
    sql(&format!("INSERT INTO shrunk SELECT n, repeat('{round}', 200) FROM generate_series(1, 4000) n"))?;
    sql("VACUUM FULL there; CREATE TABLE IF NOT EXISTS swept (n int); TRUNCATE swept; INSERT INTO swept VALUES (1)")?;
    sql("SELECT pg_switch_wal(); UPDATE swept SET n = n + 1; VACUUM big; CHECKPOINT")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_pass_reads_only_what_changed() -> Result {
    let mut site = Site::start(15, &[("wal_keep_size", "1GB")]).await?;
    fill(&site)?;
    change(&site, 1)?;
    // All the while somebody works.
    let load = Ledger::start(&site.server, LoadOptions { clients: 2, pause: Duration::from_millis(1) })?;
    load.wait_for_more(20)?;
    let warm = site.warm().await?.expect("it runs");
    assert_eq!(site.cluster().await?.backups().await?, [], "a warm pass is no backup");
    assert!(warm.warnings.is_empty() && warm.prior.is_none(), "{warm:?}");
    load.wait_for_more(20)?;
    change(&site, 2)?;
    drop(load.stop());
    site.server.stop(StopMode::Fast)?;
    let first = site.backup(&site.offline()).await?;
    assert_eq!((&first.resumed[..], first.change_detection.used.as_str()), (&[warm.id][..], "wal-index"), "{first:?}");
    assert!(first.numbers.pages_read * 3 < warm.pages_read, "{first:?} {warm:?}");
    assert!(first.damaged.is_empty() && first.warnings.is_empty(), "{first:?}");
    site.gives_back_what_is_there("first").await?;
    // What the warm pass stored and nobody uses is gone.
    let unfinished = site.cluster().await?.unfinished().await?;
    assert_eq!(unfinished, []);

    // The same on top of that backup. Then twice warm.
    site.server.start_again()?;
    change(&site, 3)?;
    site.server.sql("DROP TABLE once")?;
    let one = site.warm().await?.expect("it runs");
    assert_eq!((one.prior, one.change_detection.used.as_str()), (Some(first.backup), "wal-index"), "{one:?}");
    change(&site, 4)?;
    let two = site.warm().await?.expect("it runs");
    assert_eq!((two.prior, &two.resumed[..]), (Some(first.backup), &[one.id][..]), "{two:?}");
    change(&site, 5)?;
    site.server.sql("DROP TABLE swept")?;
    site.server.stop(StopMode::Fast)?;
    let second = site.backup(&site.offline()).await?;
    assert_eq!((second.prior, &second.resumed[..]), (Some(first.backup), &[one.id, two.id][..]), "{second:?}");
    assert!(second.numbers.bytes_shared > 0 && second.numbers.pages_read < first.numbers.pages_read * 2, "{second:?}");
    site.gives_back_what_is_there("second").await?;

    // The first one does not lean on the second.
    site.server.start_again()?;
    site.server.stop(StopMode::Fast)?;
    let third = site.backup(&site.offline()).await?;
    assert_eq!(third.prior, Some(second.backup));
    site.gives_back_what_is_there("third").await
}

/// Nothing is archived and no WAL is kept: the warm pass has to look at every page, the second pass has not.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_warm_pass_found_out_is_not_found_out_again() -> Result {
    let mut site = Site::start(15, &[("autovacuum", "off")]).await?;
    fill(&site)?;
    change(&site, 1)?;
    site.server.stop(StopMode::Fast)?;
    let first = site.backup(&site.offline()).await?;
    site.server.start_again()?;
    for round in 2..6 {
        change(&site, round)?;
    }
    site.server.sql("DROP TABLE once; DELETE FROM shrunk WHERE n > 10; VACUUM shrunk; CHECKPOINT")?;
    let warm = site.warm().await?.expect("it runs");
    assert_eq!((warm.prior, warm.change_detection.used.as_str()), (Some(first.backup), "page-lsn"), "{warm:?}");
    // WAL of two segments: the first is renamed when the server is stopped.
    site.server.sql("INSERT INTO shrunk SELECT n, repeat('z', 200) FROM generate_series(1, 4000) n")?;
    site.server.sql("SELECT pg_switch_wal(); UPDATE big SET n = n + 1 WHERE n % 4000 = 7")?;
    site.server.stop(StopMode::Fast)?;
    let second = site.backup(&site.offline()).await?;
    assert_eq!((second.prior, second.change_detection.used.as_str()), (Some(first.backup), "wal-index"), "{second:?}");
    assert!(second.numbers.pages_read * 3 < warm.pages_read, "{second:?} {warm:?}");
    site.gives_back_what_is_there("second").await?;

    // And where the WAL is gone for good, every page is looked at again: by its LSN, not by the time of its file.
    site.server.start_again()?;
    change(&site, 6)?;
    let warm = site.warm().await?.expect("it runs");
    change(&site, 7)?;
    site.server.stop(StopMode::Fast)?;
    let control = testkit::compare::controldata(&site.server, "Latest checkpoint's REDO WAL file")?;
    for entry in std::fs::read_dir(site.server.data_dir().join("pg_wal"))? {
        let path = entry?.path();
        if path.is_file() && !path.ends_with(&control) {
            std::fs::remove_file(path)?;
        }
    }
    let third = site.backup(&site.offline()).await?;
    assert_eq!((&third.resumed[..], third.change_detection.used.as_str()), (&[warm.id][..], "page-lsn"), "{third:?}");
    assert!(third.numbers.pages_read > second.numbers.pages_read * 3, "{third:?}");
    site.gives_back_what_is_there("third").await
}

/// A crash between the passes: recovery brings what the second pass does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_warm_pass_does_no_harm() -> Result {
    let mut site = Site::start(15, &[("wal_keep_size", "1GB")]).await?;
    fill(&site)?;
    let load = Ledger::start(&site.server, LoadOptions { clients: 2, pause: Duration::from_millis(1) })?;
    load.wait_for_more(20)?;
    let warm = site.warm().await?.expect("it runs");
    change(&site, 2)?;
    load.wait_for_more(50)?;
    site.server.kill9()?;
    drop(load.stop());
    let report = site.backup(&site.offline()).await?;
    assert_eq!(report.resumed, [warm.id]);
    let copy = site.copy("copy", RecoveryTarget::Latest).await?;
    site.server.start_again()?;
    site.is_equal_to(copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_stopped_and_started_again_whatever_happens() -> Result {
    let mut site = Site::start(15, &[]).await?;
    let data = site.server.data_dir().to_owned();
    let (pid_file, started) = (data.join("postmaster.pid"), site.server.home().join("started"));
    let stop = format!("kill -INT $(head -n 1 {0}) && while test -e {0}; do sleep 0.05; done", pid_file.display());
    let commands = |stop: &str, start: &str| {
        let (stop, start) = (stop.to_owned(), Some(start.to_owned()));
        let stopping = Stopping::Commands { stop, start, time_max: Duration::from_secs(60) };
        BackupOptions { source: offline_of(&data, stopping), ..options() }
    };
    let start = format!("sleep 0.3; echo x >> {}", started.display());
    let starts = || std::fs::read_to_string(&started).map_or(0, |text| text.lines().count());
    let warm = site.warm().await?.expect("it runs");
    let report: BackupReport = site.backup(&commands(&stop, &start)).await?;
    assert_eq!((starts(), &report.resumed[..]), (1, &[warm.id][..]), "{report:?}");
    assert!(report.downtime_seconds.is_some_and(|seconds| seconds > 0.3), "{report:?}");
    let manifest = site.cluster().await?.open_manifest(report.backup).await?;
    assert!(manifest.facts().notes.contains_key("downtime_seconds"));
    assert!(site.warm().await?.is_none(), "it is stopped");

    // It was not stopped at all.
    site.server.start_again()?;
    let text = hint_of(&site.backup(&commands("echo no way; exit 3", &start)).await.unwrap_err());
    assert!(text.contains("stop command") && text.contains("no way"), "{text}");
    assert_eq!(starts(), 2);
    // Stopped, and then Ctrl-C.
    let token = CancellationToken::new();
    let cancel = token.clone();
    let ctx = engine::Context { cancel: token, ..at_phase("reading files", move || cancel.cancel()) };
    let error = site.backup_with(&ctx, &commands(&stop, &start)).await.unwrap_err();
    assert!(matches!(error, EngineError::Cancelled) && starts() == 3, "{error}");
    // It does not come up: the backup is whole, and that is said.
    let report = site.backup(&commands("true", "echo broken; exit 5")).await?;
    assert!(report.warnings.iter().any(|text| text.contains("not started again") && text.contains("broken")));

    // Or somebody else stops it.
    site.server.start_again()?;
    let waiting = BackupOptions { source: offline_of(&data, Stopping::Wait), ..options() };
    let (cluster, conninfo) = (site.cluster().await?, conninfo(&site.server)?);
    let waiting = tokio::spawn(async move { backup::run(&context(), &cluster, &conninfo, &waiting).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it waits");
    site.server.stop(StopMode::Fast)?;
    let report = waiting.await??;
    assert!(report.downtime_seconds.is_some(), "{report:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_warm_pass_could_not_rely_on_is_refused() -> Result {
    let check = async |settings: &[(&str, &str)], word: &str| -> Result {
        let site = Site::start(15, settings).await?;
        site.server.sql("CHECKPOINT")?;
        let text = hint_of(&site.warm().await.unwrap_err());
        assert!(text.contains(word) && text.contains("--warm"), "{text}");
        Ok(())
    };
    check(&[("wal_level", "minimal"), ("max_wal_senders", "0")], "wal_level is minimal").await?;
    check(&[("full_page_writes", "off")], "full_page_writes is off").await?;
    let site = Site::start(15, &[]).await?;
    let cluster = site.cluster().await?;
    let nowhere = backup::warm(&context(), &cluster, Path::new("/nonexistent"), None, &site.offline()).await?;
    assert!(nowhere.is_none(), "no server runs there");
    Ok(())
}
