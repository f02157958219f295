//! Changes by the WAL index on real servers of every version, with the pages themselves as the oracle.

use super::tests::*;
use super::*;
use pg_format::history::TimelineHistory;
use pg_format::{SegmentName, Timeline};
use pg_wal::reader::Expected;
use pg_wal::{IndexOptions, index_segment};
use repo::wal::{Fragments, WalEncoder, WalFacts};
use std::path::PathBuf;
use std::time::Duration;
use testkit::pg::{Cluster, SUPPORTED};

/// Puts a segment into the repository, with or without its index.
async fn archive_of(asker: &Asker, server: &Cluster, name: SegmentName, with_index: bool, plain: Option<Vec<u8>>) {
    let file = server.data_dir().join("pg_wal").join(name.to_string());
    archive(asker, name, with_index, plain.unwrap_or_else(|| std::fs::read(file).unwrap())).await;
}

async fn archive(asker: &Asker, name: SegmentName, with_index: bool, plain: Vec<u8>) {
    let repository = asker.cluster.repository();
    let (mut scan, index) = index_segment(&plain, Some(&Expected::default()), &IndexOptions::usual()).unwrap();
    let magic = scan.info.major.facts().wal_page_magic;
    let facts = WalFacts::of(&scan, name.timeline, magic, &plain);
    let fragments = Fragments::take(&mut scan);
    let index = repo::wal_index::encode(&index.unwrap()).unwrap();
    let path = asker.cluster.name().wal_file(asker.facts.system_id, name.timeline, &name.to_string()).unwrap();
    let object = WalEncoder::new(repo::Compression::None)
        .encode_indexed(repository.keys(), &path, &plain, &facts, &fragments, with_index.then_some(&index[..]))
        .unwrap();
    repository.store().put(&path, object).await.unwrap();
}

/// The segments from one LSN to another.
fn names(asker: &Asker, stretch: &Stretch) -> Vec<SegmentName> {
    let size = asker.facts.wal_segment_size;
    let range = stretch.from.1.segment_no(size).0..=stretch.to.1.segment_no_of_end(size).0;
    range.map(|segno| SegmentName::new(stretch.to.0, pg_format::XLogSegNo(segno), size).unwrap()).collect()
}

/// `sql` as this version knows it.
fn known_to(major: u32, sql: &str) -> String {
    if major >= 15 { sql.into() } else { sql.replace(" STRATEGY file_copy", "").replace(" STRATEGY wal_log", "") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_index_says_is_what_changed() {
    for major in SUPPORTED {
        let server = server(major).conf("wal_keep_size", "1GB").start().unwrap();
        let tablespace = server.make_dir("space").unwrap();
        server.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display())).unwrap();
        server.sql(&known_to(major, BEFORE)).unwrap();
        let mut asker = Asker::new(&server).await;
        server.sql("SELECT pg_switch_wal()").unwrap();
        let from = checkpoint(&server);
        let before = pages(&server);
        server.sql(&known_to(major, WORK)).unwrap();
        server.sql("ALTER DATABASE old2 SET TABLESPACE space").unwrap();
        let many = if major == 15 { 36_000 } else { 0 };
        server
            .sql(&format!("CREATE TABLE many AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, {many}) g"))
            .unwrap();
        server.sql("SELECT pg_switch_wal()").unwrap();
        let to = checkpoint(&server);
        let after = pages(&server);
        let all = stretch(from, to);
        let names = names(&asker, &all);
        assert!(names.len() > 4, "{major}: {names:?}");

        // All from pg_wal, some of it, and as little as can be.
        let unarchived = asker.index(&all).await.unwrap();
        let (differing, named) = assert_named(&before, &after, &unarchived);
        assert!(differing > 20 && named < 4000 + many / 7, "{major}: {differing} pages differ, {named} are named");
        archive_of(&asker, &server, names[1], true, None).await;
        assert_eq!(asker.index(&all).await.unwrap(), unarchived);
        for name in names[..names.len() - 1].iter().filter(|&&name| name != names[1]) {
            archive_of(&asker, &server, *name, true, None).await;
        }
        assert_eq!(asker.index(&all).await.unwrap(), unarchived);
        let found = find(&context(), &asker.cluster, &asker.facts, Some(&mut asker.client), &all).await.unwrap();
        assert!(matches!(found, Found::Changes { used: "wal-index", .. }), "{found:?}");
        assert_eq!(asker.index(&stretch(to, to)).await.unwrap(), Changes::default());

        if many > 0 {
            rolled_up_says_the_same(&mut asker, &all, &names, &unarchived).await;
        }

        // Nothing that the server's own summaries name is missing.
        if asker.facts.summarize_wal.is_some() {
            asker.changes(&all).await;
            let mut told_of = 0;
            for (name, path) in files(&server) {
                if name.start_lsn >= from.1 && name.end_lsn <= to.1 {
                    let told = server.tool("pg_walsummary", &["-i", path.to_str().unwrap()]).unwrap();
                    told_of += told.lines().filter(|line| assert_line(&unarchived, line)).count();
                }
            }
            assert!(told_of > 100, "{told_of}");
        }
    }
}

/// Indexes rolled up over many segments are read where they are, and what they cover need not be there itself.
async fn rolled_up_says_the_same(asker: &mut Asker, all: &Stretch, names: &[SegmentName], expect: &Changes) {
    let options = crate::setup::RegisterOptions { new_system: false };
    crate::setup::register(&context(), &asker.cluster, &asker.facts, options).await.unwrap();
    let (system, size) = (asker.facts.system_id, asker.facts.wal_segment_size);
    let wal = crate::wal::WalArchive::load(&asker.cluster, system).await.unwrap();
    let rolled = crate::wal::index::roll_up(&context(), &wal).await.unwrap();
    assert!(rolled.written > 0 && rolled.left_out.is_empty(), "{rolled:?} of {names:?}");
    assert_eq!(asker.index(all).await.unwrap(), *expect);
    // The last one is still being written; archived too, nothing is needed of the server.
    let directory = std::mem::replace(&mut asker.facts.data_directory, PathBuf::from("/nonexistent"));
    let (last, whole) = names.split_last().unwrap();
    let plain = std::fs::read(directory.join("pg_wal").join(last.to_string())).unwrap();
    archive(asker, *last, true, plain).await;
    // One in the middle of a group goes.
    let grouped = |name: &&SegmentName| {
        let segno = name.segno(size).unwrap().0;
        let first = segno - segno % 16;
        let has = |n: u64| whole.iter().any(|name| name.segno(size).unwrap().0 == n);
        segno % 16 == 7 && has(first) && has(first + 15)
    };
    let covered = whole.iter().find(grouped).expect("a group is covered whole");
    let path = asker.cluster.name().wal_file(system, covered.timeline, &covered.to_string()).unwrap();
    let store = asker.cluster.repository().store().clone();
    let object = store.get(&path, 1 << 30).await.unwrap();
    store.delete(&path).await.unwrap();
    assert_eq!(asker.index(all).await.unwrap(), *expect);
    // A damaged one is not believed: then the segments themselves are needed.
    let first = SegmentName::new(covered.timeline, pg_format::XLogSegNo(covered.segno(size).unwrap().0 - 7), size);
    let rolled_up = asker.cluster.name().wal_index(system, first.unwrap(), 16);
    store.delete(&rolled_up).await.unwrap();
    store.put(&rolled_up, bytes::Bytes::from_static(b"nothing")).await.unwrap();
    assert!(asker.index(all).await.unwrap_err().contains(&covered.to_string()));
    store.put(&path, object).await.unwrap();
    assert_eq!(asker.index(all).await.unwrap(), *expect);
    asker.facts.data_directory = directory;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_run_is_found() {
    let mut server = server(15).conf("wal_keep_size", "1GB").start().unwrap();
    let from = checkpoint(&server);
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 1000) FROM generate_series(1, 6000) g").unwrap();
    let to = checkpoint(&server);
    let all = stretch(from, to);
    let mut asker = Asker::new(&server).await;
    let names = names(&asker, &all);
    let directory = std::mem::replace(&mut asker.facts.data_directory, PathBuf::from("/nonexistent"));
    for (broken, expect) in [
        ("absent", "is not in the repository, and not in pg_wal"),
        ("unindexed", "has no index"),
        ("cut", "cannot be read from"),
        ("whole", ""),
    ] {
        let mut fresh = Asker::new(&server).await;
        fresh.facts.data_directory = PathBuf::from("/nonexistent");
        for (number, name) in names.iter().enumerate() {
            let cut = || {
                let mut plain = std::fs::read(directory.join("pg_wal").join(name.to_string())).unwrap();
                plain[500_000..].fill(0);
                plain
            };
            match (number, broken) {
                (2, "absent") => {}
                (2, "unindexed") => archive_of(&fresh, &server, *name, false, None).await,
                (2, "cut") => archive_of(&fresh, &server, *name, true, Some(cut())).await,
                _ => archive_of(&fresh, &server, *name, true, None).await,
            }
        }
        match fresh.index(&all).await {
            Ok(_) => assert_eq!(broken, "whole"),
            Err(reason) => {
                assert!(broken != "whole" && reason.contains(expect), "{broken}: {reason}");
                assert!(reason.contains(&names[2].to_string()), "{broken}: {reason}");
            }
        }
    }

    // What a time at wal_level=minimal changed is nowhere in the WAL; before it and after it all is well.
    server.append_conf("wal_level", "minimal").unwrap();
    server.append_conf("max_wal_senders", "0").unwrap();
    server.restart().unwrap();
    server.sql("BEGIN; CREATE TABLE unseen AS SELECT 1 AS i; COMMIT").unwrap();
    server.append_conf("wal_level", "replica").unwrap();
    server.restart().unwrap();
    let later = checkpoint(&server);
    let asker = Asker::new(&server).await;
    let reason = asker.index(&stretch(from, later)).await.unwrap_err();
    assert!(reason.starts_with("wal_level was minimal at"), "{reason}");
    asker.index(&all).await.unwrap();
    server.sql("UPDATE unseen SET i = 2").unwrap();
    let last = checkpoint(&server);
    asker.index(&stretch(later, last)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_leads_over_a_promotion_and_a_crash() {
    let primary = server(16).conf("wal_keep_size", "1GB").start().unwrap();
    primary
        .sql("CREATE TABLE a AS SELECT 1 AS i; CREATE TABLE b AS SELECT 1 AS i; CREATE TABLE c AS SELECT 1 AS i")
        .unwrap();
    let mut standby = primary.standby().unwrap();
    let from = checkpoint(&primary);
    primary.sql("UPDATE a SET i = 2").unwrap();
    let lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    standby.wait_replayed(&lsn, Duration::from_secs(60)).unwrap();
    standby.promote().unwrap();
    primary.sql("UPDATE c SET i = 3").unwrap();
    standby
        .sql("UPDATE b SET i = 2; CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
        .unwrap();
    standby.kill9().unwrap();
    standby.start_again().unwrap();
    let to = checkpoint(&standby);
    let history = std::fs::read_to_string(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
    let history = TimelineHistory::parse(Timeline(2), &history).unwrap();
    let over = Stretch { from, to, history: Some(history) };
    let asker = Asker::new(&standby).await;
    let changes = asker.index(&over).await.unwrap();
    let number = |sql: &str| standby.sql(sql).unwrap().parse::<u32>().unwrap();
    let database = number("SELECT oid FROM pg_database WHERE datname = 'postgres'");
    let named = |table: &str| {
        let node = number(&format!("SELECT pg_relation_filenode('{table}')"));
        changes.names_relation(1663, database, node)
    };
    assert_eq!(["a", "b", "c", "big"].map(named), [true, true, false, true]);
}
