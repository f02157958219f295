//! Backups over the replication protocol: real servers of every version send their files, and what was stored of them
//! restores to what they have.

#[allow(dead_code, reason = "the backup tests use the rest of it")]
#[path = "../backup/support.rs"]
mod archived;
mod place;
mod refusals;

use archived::{Archived, Result, at_phase, context, options};
use engine::backup::{BackupOptions, Sharing, StreamCompression};
use engine::restore::RecoveryTarget;
use place::{Place, stream, stream_with};
use std::time::Duration;
use store::Store;
use testkit::compare::{amcheck, checksums, dumps_are_equal};
use testkit::load::{Ledger, LoadOptions};
use testkit::pg::{Cluster, StopMode};

/// Tables of several extents, a tablespace, an unlogged table, a second database.
fn fill(server: &Cluster) -> Result {
    let space = server.make_dir("space")?;
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()))?;
    server.sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 40000) n")?;
    server.sql("CREATE INDEX ON big (t); CREATE TABLE there (x int, t text) TABLESPACE fast")?;
    server.sql("INSERT INTO there SELECT n, md5(n::text) FROM generate_series(1, 20000) n; VACUUM there, big")?;
    server.sql("CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 1000) x; CREATE DATABASE other")?;
    Ok(())
}

/// Full, incremental, upon a direct backup and under one, while clients write; then what each restores to is compared page
/// by page with the server.
async fn under_load(major: u32) -> Result {
    let archived = Archived::start_as(Cluster::builder(major).checksums(true).conf("autovacuum", "off")).await?;
    let mut place = Place::of(archived);
    fill(place.server())?;
    let load = Ledger::start(place.server(), LoadOptions { clients: 2, pause: Duration::from_millis(2) })?;
    load.wait_for_more(50)?;
    let full = place.backup(&stream()).await?;
    assert_eq!((full.source, full.prior, full.standalone), ("stream", None, false), "{full:?}");
    assert!(full.warnings.is_empty() && full.damaged.is_empty(), "{full:?}");
    assert!(full.start_lsn < full.stop_lsn && full.numbers.files > 900, "{full:?}");
    place.server().sql("UPDATE big SET n = n + 1 WHERE n % 4000 = 7; INSERT INTO there VALUES (0, 'new')")?;
    load.wait_for_more(50)?;
    let second = place.backup(&stream()).await?;
    assert_eq!(second.prior, Some(full.backup), "{second:?}");
    assert_eq!(second.change_detection.used, "page-lsn");
    assert!(second.numbers.bytes_added < full.numbers.bytes_added / 2, "{second:?}");
    place.server().sql("UPDATE big SET n = n + 1 WHERE n % 4000 = 9; DELETE FROM there WHERE x % 2 = 0")?;
    let direct = place.backup(&options()).await?;
    assert_eq!((direct.source, direct.prior), ("direct", Some(second.backup)), "{direct:?}");
    assert!(direct.numbers.bytes_added < full.numbers.bytes_added / 2, "{direct:?}");
    place.server().sql("VACUUM there; UPDATE big SET n = n + 1 WHERE n % 4000 = 11; DROP TABLE fleeting")?;
    load.wait_for_more(50)?;
    let last = place.backup(&stream()).await?;
    assert_eq!(last.prior, Some(direct.backup), "{last:?}");
    assert!(last.numbers.bytes_added < full.numbers.bytes_added / 2, "{last:?}");
    assert!(last.numbers.bytes_shared > full.numbers.bytes_added / 4, "{last:?}");
    let ledger = load.stop();
    place.stop().await?;
    for (name, backup) in [("full", &full), ("second", &second), ("direct", &direct), ("last", &last)] {
        let copy = place.restored_and_compared(name, backup.backup).await?;
        let verdict = ledger.verify_all(&copy)?;
        assert!(verdict.required > 100, "{verdict:?}");
        drop(copy);
        place.remove(name)?;
    }
    place.only_finished_backups().await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_14() -> Result {
    under_load(14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_15() -> Result {
    under_load(15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_16() -> Result {
    under_load(16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_17() -> Result {
    under_load(17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_18() -> Result {
    under_load(18).await
}

/// No archive: the WAL comes with the files, and a cluster comes up from nothing else.
async fn standalone(major: u32) -> Result {
    let mut place = Place::without_archive(Cluster::builder(major).checksums(true)).await?;
    let empty = place.backup(&BackupOptions { standalone: true, ..stream() }).await?;
    assert!(empty.standalone && empty.prior.is_none(), "{empty:?}");
    fill(place.server())?;
    // WAL of several segments, and checkpoints that would recycle it, while files are received.
    let ctx = {
        let (psql, bin) = (place.server().conninfo(), place.server().bin("psql")?);
        at_phase("receiving files", move || {
            for _ in 0..3 {
                let sql = "UPDATE there SET x = x + 1; SELECT pg_switch_wal(); CHECKPOINT";
                let done = std::process::Command::new(&bin).args(["-X", "-d", &psql, "-c", sql]).output();
                assert!(done.expect("psql runs").status.success());
            }
        })
    };
    let report = place.backup_with(&ctx, &BackupOptions { standalone: true, ..stream() }).await?;
    assert_eq!(report.prior, Some(empty.backup));
    assert!(report.stop_lsn.0 - report.start_lsn.0 > 2 << 24, "{report:?}");
    assert_eq!(place.server().sql("SELECT count(*) FROM pg_replication_slots")?, "0", "nothing is kept any longer");
    for (name, target) in [("latest", RecoveryTarget::Latest), ("immediate", RecoveryTarget::Immediate)] {
        let mut copy = place.restored(name, report.backup, target).await?;
        place.server().sql("TRUNCATE fleeting")?;
        dumps_are_equal(place.server(), &copy)?;
        amcheck(&copy)?;
        copy.stop(StopMode::Fast)?;
        if major > 14 {
            checksums(&copy)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn standalone_14() -> Result {
    standalone(14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn standalone_15() -> Result {
    standalone(15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn standalone_18() -> Result {
    standalone(18).await
}

/// What comes compressed is stored as what comes plain; a method that the server lacks is said.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_streams_hold_the_same() -> Result {
    let mut place = Place::of(Archived::start().await?);
    fill(place.server())?;
    place.server().sql("VACUUM (FREEZE); CHECKPOINT")?;
    let full = |compression| BackupOptions { sharing: Sharing::Full, ..stream_with(compression, None) };
    let kinds = [
        StreamCompression::None,
        StreamCompression::Zstd(Some(3)),
        StreamCompression::Lz4(None),
        StreamCompression::Gzip(Some(1)),
    ];
    let mut counted = Vec::new();
    for kind in kinds {
        let report = place.backup(&full(kind)).await?;
        assert!(place.holds_what_the_server_has(report.backup).await? > 2000, "{kind:?}");
        counted.push(report.numbers.files);
    }
    assert!(counted.windows(2).all(|pair| pair[0].abs_diff(pair[1]) <= 2), "{counted:?}");
    place.stop().await?;

    // Built without zstd: asked for it is refused, else it is done without.
    let mut plain = Place::of(Archived::start_as(Cluster::builder(16).tcp()).await?);
    let error = plain.backup(&full(StreamCompression::Zstd(None))).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("zstd"), "{error}");
    plain.backup_over_tcp(&full(StreamCompression::Auto)).await?;
    Ok(())
}

/// Nothing but the attribute REPLICATION: no other privilege, and no database to connect to.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_replication_is_enough() -> Result {
    let mut place = Place::of(Archived::start().await?);
    fill(place.server())?;
    place.server().sql("CREATE ROLE mover LOGIN REPLICATION; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")?;
    let first = place.backup_as("mover", &stream()).await?;
    assert!(first.warnings.is_empty(), "{first:?}");
    place.server().sql("UPDATE big SET n = n + 1 WHERE n % 4000 = 7")?;
    let second = place.backup_as("mover", &stream()).await?;
    assert_eq!(second.prior, Some(first.backup));
    let facts = place.cluster().await?.manifest_facts(second.backup).await?;
    assert_eq!((facts.tablespaces.len(), facts.data_directory.as_str()), (1, ""), "{facts:?}");
    place.server().sql("SELECT 1 FROM pg_switch_wal()")?;
    place.stop().await?;
    place.restored_and_compared("copy", second.backup).await.map(drop)
}

/// A database that was dropped and made anew has pages with old LSNs; a table that was truncated, and one with the same
/// file number.
#[tokio::test(flavor = "multi_thread")]
async fn pages_with_old_lsns_are_not_taken_for_old_pages() -> Result {
    let mut place =
        Place::of(Archived::start_as(Cluster::builder(15).checksums(false).conf("autovacuum", "off")).await?);
    let server = place.server();
    server.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS t FROM generate_series(1, 30000) n; VACUUM t")?;
    server.sql("CREATE DATABASE a; CREATE DATABASE b")?;
    server.psql_db("a", "CREATE TABLE x AS SELECT n, md5(n::text) AS t FROM generate_series(1, 30000) n")?;
    server.psql_db("b", "CREATE TABLE x AS SELECT n, 'b' || n AS t FROM generate_series(1, 30000) n")?;
    server.sql("CHECKPOINT")?;
    let first = place.backup(&stream()).await?;
    let server = place.server();
    // All visible again without a change of LSNs, as checksums are off; then changes that clear the map.
    server.sql(
        "UPDATE t SET n = n + 1 WHERE n % 5000 = 3; VACUUM t; VACUUM (FREEZE) t; DELETE FROM t WHERE n % 700 = 1",
    )?;
    server.sql("DROP DATABASE a; CREATE DATABASE a TEMPLATE b STRATEGY file_copy; TRUNCATE t")?;
    server.sql("INSERT INTO t SELECT n, 'anew' FROM generate_series(1, 9000) n")?;
    let second = place.backup(&stream()).await?;
    assert_eq!(second.prior, Some(first.backup));
    place.stop().await?;
    place.restored_and_compared("copy", second.backup).await.map(drop)
}

/// Over several backups all of what is shared is compared again, and packs that hold little are left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_is_looked_at_again() -> Result {
    let mut place = Place::of(Archived::start().await?);
    fill(place.server())?;
    let first = place.backup(&stream()).await?;
    let mut compared = 0;
    for round in 0..29 {
        place.server().sql(&format!("UPDATE big SET n = n + 1 WHERE n % 4000 = {round}"))?;
        let report = place.backup(&stream()).await?;
        let again = report.look_again.as_ref().expect("there is a prior");
        assert!(again.differing.is_empty(), "{again:?}");
        compared += again.pages;
        assert!(report.numbers.bytes_added < first.numbers.bytes_added / 2, "{report:?}");
    }
    assert!(compared > 1000, "{compared} pages were compared");
    let last = place.backup(&stream()).await?;
    assert!(place.holds_what_the_server_has(last.backup).await? > 2000);
    place.only_finished_backups().await
}

/// Damage that the server meets does not end the backup: it is named, as with files that are read here.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_named_and_the_backup_is_kept() -> Result {
    let mut place = Place::of(Archived::start().await?);
    let server = place.server_mut();
    server.sql("CREATE TABLE hurt AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g")?;
    let path = server.sql("SELECT pg_relation_filepath('hurt')")?;
    server.stop(StopMode::Fast)?;
    let on_disk = server.data_dir().join(&path);
    let mut bytes = std::fs::read(&on_disk)?;
    bytes[3 * 8192 + 5000] ^= 1;
    std::fs::write(&on_disk, bytes)?;
    server.start_again()?;
    let report = place.backup(&stream()).await?;
    let damaged: Vec<_> = report.damaged.iter().map(|page| (page.relation.as_deref(), page.block)).collect();
    assert_eq!(damaged, [(Some("public.hurt"), 3)]);
    assert!(report.warnings.is_empty(), "{report:?}");
    // An earlier copy that is whole stays: the page is not new, so it is not stored.
    let next = place.backup(&stream()).await?;
    assert_eq!(next.damaged.len(), 1);
    Ok(())
}

/// From a standby; and promoted in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_sends_its_files() -> Result {
    let mut place = Place::of(Archived::start().await?);
    place.server().sql("CREATE TABLE t AS SELECT n, md5(n::text) AS t FROM generate_series(1, 30000) n")?;
    let standby = place.server().standby()?;
    let lsn = place.server().sql("SELECT pg_current_wal_lsn()")?;
    standby.wait_replayed(&lsn, Duration::from_secs(60))?;
    let load = Ledger::start(place.server(), LoadOptions { clients: 1, pause: Duration::from_millis(5) })?;
    load.wait_for_more(20)?;
    // The segment in which it ends is archived when the primary, which is asked to, goes on to the next.
    let report = place.backup_of(&standby, &context(), &stream()).await?;
    assert!(report.damaged.is_empty() && report.start_lsn < report.stop_lsn, "{report:?}");
    assert!(place.cluster().await?.manifest_facts(report.backup).await?.from_standby);
    let ledger = load.stop();

    // Standalone: WAL as far as the standby has it.
    let alone = place.backup_of(&standby, &context(), &BackupOptions { standalone: true, ..stream() }).await?;
    assert!(alone.standalone, "{alone:?}");

    // Promoted while it sends.
    let (bin, psql) = (standby.bin("psql")?, standby.conninfo());
    standby.sql("SELECT 1")?;
    let ctx = at_phase("receiving files", move || {
        let promoted = std::process::Command::new(&bin).args(["-X", "-d", &psql, "-c", "SELECT pg_promote()"]).output();
        assert!(promoted.expect("psql runs").status.success());
    });
    let slow = stream_with(StreamCompression::None, Some(8 << 20));
    let error = place.backup_of(&standby, &ctx, &slow).await.unwrap_err();
    assert!(error.to_string().contains("promoted during online backup"), "{error}");
    assert!(error.to_string().contains("void"), "{error}");
    drop(standby);
    place.only_finished_backups().await?;

    place.stop().await?;
    let copy = place.restored_and_compared("copy", report.backup).await?;
    ledger.verify_all(&copy).map(drop)
}

/// Half a gigabyte a second it is not: a rate is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_asked_of_the_server() -> Result {
    let mut place = Place::of(Archived::start().await?);
    place.server().sql("CREATE TABLE t AS SELECT n, md5(n::text) AS t FROM generate_series(1, 100000) n")?;
    let began = std::time::Instant::now();
    let report = place.backup(&stream_with(StreamCompression::None, Some(16 << 20))).await?;
    let least = report.numbers.bytes as f64 / f64::from(16 << 20) * 0.8;
    assert!(began.elapsed().as_secs_f64() > least, "{:?} for {} bytes", began.elapsed(), report.numbers.bytes);
    let error = place.backup(&stream_with(StreamCompression::None, Some(1000))).await.unwrap_err();
    assert!(error.to_string().contains("a rate of 1 KiB a second"), "{error}");
    assert_eq!(
        place
            .memory
            .list_page(None, None, 10_000)
            .await?
            .iter()
            .filter(|o| o.path.to_string().contains("intent"))
            .count(),
        0
    );
    Ok(())
}

/// The server sends only what changed; tables that were cut and made longer again, without a word of the pages between in
/// WAL; a database made anew; then everything is compared page by page.
async fn changes_only(major: u32) -> Result {
    let builder = Cluster::builder(major).checksums(true).conf("summarize_wal", "on").conf("autovacuum", "off");
    let mut place = Place::of(Archived::start_as(builder).await?);
    fill(place.server())?;
    let server = place.server();
    server.sql("CREATE TABLE cut AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 30000) n")?;
    server.sql("CREATE TABLE still AS SELECT n, repeat('y', 500) AS t FROM generate_series(1, 3000) n; CHECKPOINT")?;
    let full = place.backup(&stream()).await?;
    assert_eq!(full.change_detection.used, "all", "{full:?}");
    let load = Ledger::start(place.server(), LoadOptions { clients: 2, pause: Duration::from_millis(2) })?;
    let mut last = full.clone();
    let mut least = u64::MAX;
    for round in 0..4 {
        let server = place.server();
        server.sql(&format!("UPDATE big SET n = n + 1 WHERE n % 4000 = {round}"))?;
        // Cut short by VACUUM, then longer again by pages that nothing is written to.
        server.sql("DELETE FROM cut WHERE ctid > '(100,0)'; VACUUM (TRUNCATE) cut")?;
        server.sql("INSERT INTO cut SELECT n, repeat('z', 500) FROM generate_series(1, 100) n")?;
        server.sql("BEGIN; INSERT INTO cut SELECT n, repeat('w', 500) FROM generate_series(1, 3000) n; ROLLBACK")?;
        load.wait_for_more(30)?;
        let report = place.backup(&stream()).await?;
        assert_eq!(report.prior, Some(last.backup));
        assert_eq!(report.change_detection.used, "wal-summaries", "{:?}", report.change_detection);
        // In some turn what is looked at again is most of so small a cluster.
        least = least.min(report.numbers.pages_read);
        assert!(report.warnings.is_empty() && report.damaged.is_empty(), "{report:?}");
        last = report;
    }
    assert!(least < full.numbers.pages_read / 3, "{least} of {}", full.numbers.pages_read);
    // Upon and under a direct one.
    place.server().sql(
        "DROP DATABASE other; CREATE DATABASE other STRATEGY file_copy; UPDATE there SET x = x + 1 WHERE x < 100",
    )?;
    let direct = place.backup(&options()).await?;
    assert_eq!(direct.prior, Some(last.backup));
    place.server().sql("INSERT INTO there VALUES (1, 'later')")?;
    let upon_direct = place.backup(&stream()).await?;
    assert_eq!(upon_direct.change_detection.used, "wal-summaries", "{:?}", upon_direct.change_detection);
    let ledger = load.stop();
    place.stop().await?;
    for (name, backup) in [("last", &last), ("direct", &direct), ("upon", &upon_direct)] {
        let copy = place.restored_and_compared(name, backup.backup).await?;
        ledger.verify_all(&copy)?;
        drop(copy);
        place.remove(name)?;
    }
    place.only_finished_backups().await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_only_17() -> Result {
    changes_only(17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_only_18() -> Result {
    changes_only(18).await
}

/// A file is cut and made longer again by pages of zeros, which nothing in WAL names: the pages that the earlier backup
/// has in their place must not come back.
#[tokio::test(flavor = "multi_thread")]
async fn pages_that_were_cut_off_do_not_come_back() -> Result {
    let builder = Cluster::builder(17).checksums(true).conf("summarize_wal", "on").conf("autovacuum", "off");
    let mut place = Place::of(Archived::start_as(builder).await?);
    let server = place.server();
    server.sql("CREATE TABLE cut AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 30000) n; CHECKPOINT")?;
    let path = server.data_dir().join(server.sql("SELECT pg_relation_filepath('cut')")?);
    let full = place.backup(&stream()).await?;
    let server = place.server();
    server.sql("DELETE FROM cut WHERE ctid > '(100,0)'; VACUUM (TRUNCATE) cut; CHECKPOINT")?;
    let short = std::fs::metadata(&path)?.len();
    // As a crash between making a file longer and writing to it leaves it.
    let file = std::fs::OpenOptions::new().write(true).open(&path)?;
    file.set_len(short + 300 * 8192)?;
    place.archived_settled().await?;
    let report = place.backup(&stream()).await?;
    assert_eq!((report.prior, report.change_detection.used.as_str()), (Some(full.backup), "wal-summaries"));
    let cluster = place.cluster().await?;
    let manifest = cluster.open_manifest(report.backup).await?;
    let name = format!("data/{}", place.server().sql("SELECT pg_relation_filepath('cut')")?);
    let entry = manifest.find(name.as_bytes()).await?.expect("it is there");
    let ours = archived::content(&cluster, &manifest, &entry).await?;
    assert_eq!(ours.len() as u64, short + 300 * 8192);
    assert!(ours[short as usize..].iter().all(|byte| *byte == 0), "what was cut off has come back");
    Ok(())
}

/// The server cannot tell what changed: everything comes, and it is said why.
#[tokio::test(flavor = "multi_thread")]
async fn without_summaries_everything_comes() -> Result {
    let mut place = Place::of(Archived::start_as(Cluster::builder(17)).await?);
    place.server().sql("CREATE TABLE t AS SELECT generate_series(1, 10000) x")?;
    place.backup(&stream()).await?;
    let second = place.backup(&stream()).await?;
    assert_eq!(second.change_detection.used, "page-lsn");
    assert!(second.change_detection.reasons.iter().any(|why| why.contains("summarize_wal is off")), "{second:?}");
    // On now, but not since the earlier backup.
    place.server().sql("ALTER SYSTEM SET summarize_wal = on")?;
    place.server().reload()?;
    place.server().wait_for("SHOW summarize_wal", "on", Duration::from_secs(60))?;
    let third = place.backup(&stream()).await?;
    assert_eq!(third.prior, Some(second.backup));
    assert!(third.damaged.is_empty() && third.warnings.is_empty(), "{third:?}");
    Ok(())
}
