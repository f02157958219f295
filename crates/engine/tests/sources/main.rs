//! Backups from other sources than a running server with an archive: a server that is stopped or has crashed, and
//! backups that carry their own WAL. Nothing here archives: what is restored must come up by itself.

#[allow(dead_code, reason = "the backup tests use the rest of it")]
#[path = "../backup/support.rs"]
mod archived;
mod limits;
mod proofs;
#[allow(dead_code, reason = "the restore tests use the rest of it")]
#[path = "../restore/support.rs"]
mod restoring;
mod site;
mod snapshot;
mod standbys;
mod warm;

use archived::{Result, at_phase, options};
use engine::EngineError;
use engine::backup::{BackupOptions, Sharing, Stopping};
use engine::restore::{RecoveryTarget, RestoreRequest};
use site::{Site, hint_of, offline_of};
use testkit::compare::{amcheck, checksums, compare_dirs, dumps_are_equal};
use testkit::pg::StopMode;

/// Tables, a tablespace, an unlogged table, a second database.
fn fill(site: &Site) -> Result {
    let server = &site.server;
    let space = server.make_dir("space")?;
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
    server.sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 40000) n")?;
    server.sql("CREATE INDEX ON big (t); CREATE TABLE there (x int) TABLESPACE fast")?;
    server.sql("INSERT INTO there SELECT generate_series(1, 5000); VACUUM there, big")?;
    server.sql("CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 1000) x; CREATE DATABASE other")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_backed_up_and_comes_up_without_an_archive() -> Result {
    let mut site = Site::start(15, &[]).await?;
    let empty = {
        site.server.stop(StopMode::Fast)?;
        let report = site.backup(&site.offline()).await?;
        site.server.start_again()?;
        report
    };
    assert!(empty.standalone && empty.source == "offline" && empty.prior.is_none(), "{empty:?}");
    fill(&site)?;
    let dump = site.server.sql("SELECT count(*), sum(x) FROM there")?;
    site.server.stop(StopMode::Fast)?;
    let full = site.backup(&site.offline()).await?;
    assert_eq!(full.prior, Some(empty.backup), "a later backup builds on it");
    assert!(full.warnings.is_empty() && full.damaged.is_empty(), "{full:?}");
    assert!(full.start_lsn < full.stop_lsn, "the checkpoint's own record");

    // What was restored is byte for byte what was there, before it is started.
    let request = site.request("copy", RecoveryTarget::Latest)?;
    let request = RestoreRequest { tablespaces: site.elsewhere("fast", "copy-fast")?, ..request };
    site.restore(&request).await?;
    let comparison = compare_dirs(site.server.data_dir(), &request.target_dir)?;
    comparison.require_equal()?;
    assert!(comparison.files > 500, "{comparison:?}");
    let mut copy = site.open(&request.target_dir)?;
    assert_eq!(copy.sql("SELECT count(*), sum(x) FROM there")?, dump);
    assert_eq!(copy.sql("SELECT count(*) FROM fleeting")?, "0", "as after a crash");
    assert_eq!(copy.sql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")?, "00000002", "its own timeline");
    site.server.start_again()?;
    site.server.sql("TRUNCATE fleeting")?;
    dumps_are_equal(&site.server, &copy)?;
    amcheck(&copy)?;
    copy.stop(StopMode::Fast)?;
    checksums(&copy)?;

    // One more, after changes, is read by page LSNs and stores little; `immediate` is the same as latest.
    site.server.sql("UPDATE big SET n = n + 1 WHERE n % 4000 = 7; INSERT INTO fleeting VALUES (1)")?;
    site.server.stop(StopMode::Fast)?;
    let second = site.backup(&site.offline()).await?;
    assert_eq!(second.prior, Some(full.backup));
    assert!(second.numbers.bytes_shared > 0 && second.numbers.pages_stored < second.numbers.pages_read, "{second:?}");
    let request = site.request("second", RecoveryTarget::Immediate)?;
    let request = RestoreRequest { tablespaces: site.elsewhere("fast", "second-fast")?, ..request };
    site.restore(&request).await?;
    let copy = site.open(&request.target_dir)?;
    site.server.start_again()?;
    site.server.sql("TRUNCATE fleeting")?;
    dumps_are_equal(&site.server, &copy)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_server_recovers_from_its_backup_by_itself() -> Result {
    let mut site = Site::start(15, &[]).await?;
    fill(&site)?;
    site.server.sql("CHECKPOINT")?;
    for round in 0..20 {
        site.server.sql(&format!("INSERT INTO there SELECT generate_series(1, 300) + {round}"))?;
        site.server.sql("UPDATE big SET t = t || 'x' WHERE n % 50 = 3")?;
    }
    site.server.kill9()?;
    let report = site.backup(&site.offline()).await?;
    assert!(report.standalone && report.start_lsn < report.stop_lsn, "{report:?}");
    let copy = site.copy("copy", RecoveryTarget::Latest).await?;
    site.server.start_again()?;
    site.is_equal_to(copy)?;

    // A segment that recovery needs is gone: no server would start from this.
    site.server.sql("CHECKPOINT; INSERT INTO there SELECT generate_series(1, 300)")?;
    let segment = site.server.sql("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()")?;
    site.server.kill9()?;
    std::fs::remove_file(site.server.data_dir().join("pg_wal").join(segment))?;
    let error = site.backup(&site.offline()).await.unwrap_err();
    assert!(hint_of(&error).contains("the WAL of the last checkpoint"), "{}", hint_of(&error));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_runs_or_may_run_is_refused() -> Result {
    let mut site = Site::start(15, &[]).await?;
    let says = async |site: &Site, words: &[&str]| -> Result {
        let error = site.backup(&site.offline()).await.unwrap_err();
        let text = hint_of(&error);
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(site.cluster().await?.backups().await?, []);
        Ok(())
    };
    says(&site, &["a server runs on it", "stop it first"]).await?;
    // Frozen in the middle of its work it still runs.
    site.server.stop(StopMode::Fast)?;
    // As another host, or another container, that has the directory too would leave it.
    let pid_file = site.server.data_dir().join("postmaster.pid");
    let elsewhere = format!("4000000\n{}\n1700000000\n5432\n/tmp\n*\n  87654321    999999\nready   \n", "/data");
    std::fs::write(&pid_file, elsewhere)?;
    says(&site, &["a server may run on it", "another container or on another host", "remove postmaster.pid"]).await?;
    std::fs::remove_file(&pid_file)?;

    // Started while it is copied: the copy is void, and the next one goes on from it.
    let ctx = {
        let data = site.server.data_dir().to_owned();
        at_phase("reading files", move || std::fs::write(data.join("postmaster.pid"), "1\n").expect("written"))
    };
    let error = site.backup_with(&ctx, &site.offline()).await.unwrap_err();
    assert!(hint_of(&error).contains("a server was started on it"), "{}", hint_of(&error));
    assert_eq!(site.cluster().await?.backups().await?, []);
    std::fs::remove_file(&pid_file)?;
    let report = site.backup(&site.offline()).await?;
    assert_eq!(report.resumed.len(), 1, "{report:?}");

    let missing = offline_of("/nonexistent".as_ref(), Stopping::Already);
    let error = site.backup(&BackupOptions { source: missing, ..options() }).await.unwrap_err();
    assert!(hint_of(&error).contains("no data directory"), "{}", hint_of(&error));
    Ok(())
}

/// Offline and online backups of one cluster build on each other.
#[tokio::test(flavor = "multi_thread")]
async fn online_and_offline_backups_build_on_each_other() -> Result {
    let mut archived = archived::Archived::start().await?;
    archived
        .server
        .sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 40000) n")?;
    let first = archived.backup().await?;
    archived.server.sql("UPDATE big SET n = n + 1 WHERE n % 4000 = 7")?;
    archived.server.stop(StopMode::Fast)?;
    let offline = offline_of(archived.server.data_dir(), Stopping::Already);
    let offline = BackupOptions { source: offline, ..options() };
    let nowhere = archived::conninfo(&archived.server)?;
    let cluster = archived.cluster().await?;
    let second = engine::backup::run(&archived::context(), &cluster, &nowhere, &offline).await?;
    assert_eq!(second.prior, Some(first.backup));
    assert!(second.numbers.bytes_added < first.numbers.bytes_added / 2, "{second:?}");
    archived.server.start_again()?;
    archived.server.sql("UPDATE big SET n = n + 1 WHERE n % 4000 = 9")?;
    let third = archived.backup().await?;
    assert_eq!(third.prior, Some(second.backup));
    assert!(archived.holds_what_the_server_has(third.backup).await? > 1000);
    let full = BackupOptions { sharing: Sharing::Full, ..offline };
    let refused = engine::backup::run(&archived::context(), &cluster, &nowhere, &full).await;
    assert!(matches!(refused, Err(EngineError::Refused { .. })), "it runs: {refused:?}");
    Ok(())
}

/// Archiving is off: the WAL is kept by a temporary slot, and travels in the backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_backup_under_load_comes_up_without_an_archive() -> Result {
    let site = Site::start(15, &[]).await?;
    fill(&site)?;
    let refused = site.backup(&options()).await.unwrap_err();
    assert!(hint_of(&refused).contains("--standalone"), "{}", hint_of(&refused));
    let standalone = BackupOptions { standalone: true, ..options() };
    let full = site.backup(&standalone).await?;
    assert!(full.standalone && full.source == "direct", "{full:?}");
    // WAL of several segments, and checkpoints that would recycle it, while files are read.
    let ctx = {
        let psql = site.server.conninfo();
        let bin = site.server.bin("psql")?;
        at_phase("reading files", move || {
            for _ in 0..3 {
                let sql = "UPDATE there SET x = x + 1; SELECT pg_switch_wal(); CHECKPOINT";
                let done = std::process::Command::new(&bin).args(["-X", "-d", &psql, "-c", sql]).output();
                assert!(done.expect("psql runs").status.success());
            }
        })
    };
    let report = site.backup_with(&ctx, &standalone).await?;
    assert_eq!(report.prior, Some(full.backup));
    assert!(report.stop_lsn.0 - report.start_lsn.0 > 3 << 24, "{report:?}");
    assert_eq!(site.server.sql("SELECT count(*) FROM pg_replication_slots")?, "0", "nothing is kept any longer");
    for (name, target) in [("latest", RecoveryTarget::Latest), ("immediate", RecoveryTarget::Immediate)] {
        site.comes_up_equal(name, target).await?;
    }

    // No slot is to be had, and there is no archive either.
    let none = Site::start(15, &[("max_replication_slots", "0")]).await?;
    let error = none.backup(&standalone).await.unwrap_err();
    assert!(hint_of(&error).contains("max_replication_slots"), "{}", hint_of(&error));
    assert_eq!(none.cluster().await?.backups().await?, []);
    Ok(())
}

/// Where no slot is to be had, the archive serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_backup_takes_its_wal_from_the_archive() -> Result {
    let mut archived = archived::Archived::start().await?;
    archived.server.append_conf("max_replication_slots", "0")?;
    archived.server.stop(StopMode::Fast)?;
    archived.server.start_again()?;
    archived.server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) x")?;
    let standalone = BackupOptions { standalone: true, ..options() };
    let (cluster, conninfo) = (archived.cluster().await?, archived::conninfo(&archived.server)?);
    let report = engine::backup::run(&archived::context(), &cluster, &conninfo, &standalone).await?;
    assert!(report.standalone);
    let manifest = cluster.open_manifest(report.backup).await?;
    let size = pg_format::WalSegmentSize::new(1 << 24)?;
    let name = pg_format::SegmentName::of_lsn(report.timeline, report.start_lsn, size).to_string();
    let entry = manifest.find(format!("wal/{name}").as_bytes()).await?.expect("the first segment travels along");
    let plain = archived::content(&cluster, &manifest, &entry).await?;
    let object = cluster.name().wal_file(manifest.facts().system_id, report.timeline, &name)?;
    let stored = repo::wal::read_segment(cluster.repository().store().clone(), cluster.repository().keys(), &object);
    assert!(plain == stored.await?, "as it is in the archive");
    Ok(())
}

/// A standby, the server that it becomes, and that one after a crash: what each had is what comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_and_a_promoted_server_are_backed_up_when_they_are_stopped() -> Result {
    let site = Site::start(15, &[("wal_keep_size", "512MB")]).await?;
    site.server.sql("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 10) AS x FROM generate_series(1, 20000) n")?;
    let standby = site.server.standby()?;
    site.server
        .sql("UPDATE t SET n = n + 1 WHERE n % 7 = 0; CHECKPOINT; INSERT INTO t SELECT 1, 'x' FROM t LIMIT 500")?;
    standby.wait_replayed(&site.server.sql("SELECT pg_current_wal_lsn()")?, std::time::Duration::from_secs(60))?;
    let mut site = Site { server: standby, memory: site.memory.clone() };
    let rows = "SELECT count(*), sum(n), md5(string_agg(x, '' ORDER BY n, x)) FROM t";
    let comes_back = async |site: &Site, name: &str, expect: &str| -> Result {
        let report = site.backup(&site.offline()).await?;
        assert!(report.standalone && report.damaged.is_empty() && report.warnings.is_empty(), "{report:?}");
        let request = site.request(name, RecoveryTarget::Latest)?;
        site.restore(&request).await?;
        let copy = site.open(&request.target_dir)?;
        assert_eq!(copy.sql(rows)?, expect, "{name}");
        amcheck(&copy)
    };
    let expect = site.server.sql(rows)?;
    site.server.stop(StopMode::Fast)?;
    comes_back(&site, "standby", &expect).await?;

    site.server.start_again()?;
    site.server.promote()?;
    site.server.sql("CHECKPOINT; DELETE FROM t WHERE n % 5 = 0")?;
    let expect = site.server.sql(rows)?;
    site.server.stop(StopMode::Fast)?;
    comes_back(&site, "promoted", &expect).await?;

    site.server.start_again()?;
    site.server.sql("INSERT INTO t SELECT n, 'again' FROM t WHERE n % 3 = 0")?;
    let expect = site.server.sql(rows)?;
    site.server.kill9()?;
    comes_back(&site, "crashed", &expect).await?;
    let facts = site.cluster().await?;
    let newest = facts.backups().await?.pop().expect("three");
    assert_eq!(facts.manifest_facts(newest).await?.timeline, pg_format::Timeline(2));
    Ok(())
}
