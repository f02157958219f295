//! The index against PostgreSQL's own WAL summaries: the same blocks and the same limits, exactly.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pg_wal::index::{Catalog, CatalogChangeKind, CatalogRows, Changes, Outcome, RowImage, RowPlace, TupleId};
use pg_wal::{Fork, IndexBuilder, IndexOptions, Lsn, WalIndex, index_segment};
use support::workload::workload;
use support::{each_record, majors, segments};
use testkit::pg::{Cluster, StopMode};

/// Tablespace, database, relfilenode, fork: limit and blocks.
type Table = BTreeMap<(u32, u32, u32, String), (Option<u32>, Vec<u32>)>;

/// As PostgreSQL has it: no free space maps, and relation 0 for a whole database.
fn table_of(changes: &Changes) -> Table {
    let mut table = Table::new();
    for fork in changes.forks.iter().filter(|fork| fork.key.fork != Fork::Fsm) {
        let rel = fork.key.rel;
        let key = (rel.tablespace.0, rel.database.0, rel.relfilenode, fork.key.fork.to_string());
        table.insert(key, (fork.limit, fork.blocks.clone()));
    }
    for database in &changes.databases {
        table.insert((database.tablespace.0, database.database.0, 0, "main".into()), (Some(0), Vec::new()));
    }
    table
}

/// What counts as changed in any case need not be listed.
fn without_implied(mut table: Table) -> Table {
    for (limit, blocks) in table.values_mut() {
        blocks.retain(|block| limit.is_none_or(|limit| *block < limit));
    }
    table
}

/// Reads a summary with `pg_walsummary --individual`.
fn walsummary(cluster: &Cluster, path: &std::path::Path) -> Result<Table> {
    let mut command = cluster.command_as_pg(cluster.bin("pg_walsummary")?);
    let output = command.arg("--individual").arg(path).output()?;
    if !output.status.success() {
        bail!("pg_walsummary: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut table = Table::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        // TS 1663, DB 5, REL 16384, FORK main: limit 0
        let (key, what) = line.split_once(": ").context("a line without a colon")?;
        let words: Vec<_> = key.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let key = (words[1].parse()?, words[3].parse()?, words[5].parse()?, words[7].to_owned());
        let entry = table.entry(key).or_default();
        match what.split_once(' ').context(line.to_owned())? {
            ("limit", limit) => entry.0 = Some(limit.parse()?),
            ("block" | "blocks", block) => entry.1.push(block.parse()?),
            _ => bail!("unknown: {line}"),
        }
    }
    table.values_mut().for_each(|(_, blocks)| blocks.sort_unstable());
    Ok(table)
}

fn check(major: u32) -> Result<()> {
    if !majors()?.contains(&major) {
        assert_ne!(major, 15);
        return Ok(());
    }
    let mut cluster = Cluster::builder(major)
        .wal_segsize_mb(1)
        .conf("wal_level", "logical")
        .conf("summarize_wal", "on")
        .conf("wal_summary_keep_time", "0")
        .conf("max_prepared_transactions", "20")
        .conf("track_commit_timestamp", "on")
        .conf("wal_keep_size", "4GB")
        .conf("max_wal_size", "4GB")
        .conf("checkpoint_timeout", "1h")
        .conf("autovacuum", "off")
        .without_fsync()
        .start()?;
    workload(&mut cluster)?;
    cluster.sql(
        "CREATE TABLE cut (x int, y text); INSERT INTO cut SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g",
    )?;
    cluster.sql("CHECKPOINT; DELETE FROM cut WHERE x > 2000; VACUUM cut; INSERT INTO cut SELECT g, repeat('y', 700) FROM generate_series(1, 900) g")?;
    cluster.sql("DELETE FROM cut WHERE x < 900; VACUUM cut; CHECKPOINT; DELETE FROM cut; VACUUM cut")?;
    cluster.sql("BEGIN; CREATE TABLE t0 (x int); INSERT INTO t0 SELECT generate_series(1, 999); SAVEPOINT s; TRUNCATE t0; ROLLBACK TO s; DROP TABLE t0; COMMIT")?;
    cluster.sql("BEGIN; DROP TABLE cut; PREPARE TRANSACTION 'dropping'; COMMIT PREPARED 'dropping'; CHECKPOINT")?;
    let reached: Lsn = cluster.sql("SELECT pg_current_wal_insert_lsn()")?.parse()?;
    cluster.sql("CHECKPOINT")?;
    let begin = Instant::now();
    while cluster.sql("SELECT summarized_lsn FROM pg_get_wal_summarizer_state()")?.parse::<Lsn>()? < reached {
        assert!(begin.elapsed() < Duration::from_secs(120), "the summarizer does not come to its end");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.stop(StopMode::Fast)?;

    let segments = segments(&cluster)?;
    let mut compared = 0;
    let mut whole: Option<WalIndex> = None;
    let mut names: Vec<_> = std::fs::read_dir(cluster.data_dir().join("pg_wal/summaries"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut all: Table = Table::new();
    let mut first_lsn = None;
    let mut last_lsn = Lsn(0);
    for name in &names {
        let Ok(parsed) = name.parse::<pg_format::wal_summary::WalSummaryName>() else { continue };
        let path = cluster.data_dir().join("pg_wal/summaries").join(name);
        let theirs = walsummary(&cluster, &path)?;
        let mut builder = IndexBuilder::new(&IndexOptions::usual());
        each_record(&segments, |record| {
            if record.lsn >= parsed.start_lsn && record.lsn < parsed.end_lsn {
                builder.add(record);
            }
        })?;
        let index = builder.finish(parsed.start_lsn, parsed.end_lsn)?;
        let ours = table_of(&index.changes);
        for (key, value) in &theirs {
            assert_eq!(ours.get(key), Some(value), "{name}: {key:?}: left is ours, right is the server's");
        }
        for key in ours.keys() {
            assert!(theirs.contains_key(key), "{name}: {key:?} is not in the server's");
        }
        compared += theirs.len();
        match &mut whole {
            None => whole = Some(index),
            Some(whole) => whole.append(index),
        }
        first_lsn.get_or_insert(parsed.start_lsn);
        last_lsn = parsed.end_lsn;
        for (key, (limit, blocks)) in theirs {
            let entry = all.entry(key).or_default();
            entry.0 = [entry.0, limit].into_iter().flatten().min();
            entry.1.extend(blocks);
        }
    }
    assert!(compared > 300 && names.len() > 5, "only {compared} forks in {} summaries", names.len());
    for (_, blocks) in all.values_mut() {
        blocks.sort_unstable();
        blocks.dedup();
    }
    let all = without_implied(all);
    // Joined neighbours say the same as the server's summaries together.
    let whole = whole.context("no summaries")?;
    assert_eq!(without_implied(table_of(&whole.changes)), all);
    // And so do segments indexed alone, with the records between them.
    let by_segment = by_segments(&segments, first_lsn.context("none")?, last_lsn)?;
    assert_eq!(without_implied(table_of(&by_segment.changes)), all);
    Ok(())
}

/// Segments indexed each alone, records that cross borders added between them.
fn by_segments(segments: &[(std::path::PathBuf, Vec<u8>)], from: Lsn, to: Lsn) -> Result<WalIndex> {
    let mut all: Option<WalIndex> = None;
    let mut add = |index: WalIndex| match &mut all {
        None => all = Some(index),
        Some(all) => all.append(index),
    };
    let mut joiner: Option<pg_wal::Joiner> = None;
    for (path, bytes) in segments {
        let info = pg_wal::peek_segment(bytes)?;
        if info.end() <= from || info.start >= to {
            continue;
        }
        let mut builder = IndexBuilder::new(&IndexOptions::usual());
        let (facts, index) = index_segment(bytes, None, &IndexOptions::usual())?;
        if let Some(mut open) = joiner.take() {
            match open.push(&info, facts.head.as_ref())? {
                pg_wal::Joined::More => joiner = Some(open),
                pg_wal::Joined::Whole => {
                    let record = open.record().context("whole")?;
                    if record.lsn < to {
                        builder.add(&record);
                    }
                    add(builder.finish(record.lsn, record.end_lsn)?);
                }
                pg_wal::Joined::Overwritten => {}
            }
        }
        if info.start < from || info.end() > to {
            // At the edges only some of its records are wanted.
            let mut builder = IndexBuilder::new(&IndexOptions::usual());
            pg_wal::facts::scan_segment_with(bytes, None, |record| {
                if record.lsn >= from && record.lsn < to {
                    builder.add(record);
                }
            })?;
            add(builder.finish(info.start, info.end())?);
        } else {
            add(index.with_context(|| format!("{path:?}"))?);
        }
        if let Some(tail) = facts.tail {
            joiner = Some(pg_wal::Joiner::new(tail, &info));
        }
    }
    all.context("no segments")
}

#[test]
fn summaries_of_17() -> Result<()> {
    check(17)
}

#[test]
fn summaries_of_18() -> Result<()> {
    check(18)
}

/// All that a cluster's WAL says, as one index.
fn whole_index(cluster: &Cluster) -> Result<WalIndex> {
    let segments = segments(cluster)?;
    let first = pg_wal::peek_segment(&segments[0].1)?.start;
    let last = pg_wal::peek_segment(&segments[segments.len() - 1].1)?;
    by_segments(&segments, first, last.end())
}

/// Rows counted by transaction and relation are those that were changed.
fn transactions(major: u32) -> Result<()> {
    let mut cluster = Cluster::builder(major)
        .wal_segsize_mb(1)
        .conf("max_prepared_transactions", "5")
        .conf("wal_keep_size", "4GB")
        .conf("autovacuum", "off")
        .without_fsync()
        .start()?;
    cluster.sql("CREATE TABLE a (x int PRIMARY KEY, y int) WITH (fillfactor = 50); CREATE TABLE b (x int)")?;
    let file =
        |name: &str| -> Result<u32> { Ok(cluster.sql(&format!("SELECT pg_relation_filenode('{name}')"))?.parse()?) };
    let (a, b) = (file("a")?, file("b")?);
    let xid = |sql: &str| -> Result<u32> {
        let out = cluster.sql(&format!("BEGIN; {sql}; SELECT pg_current_xact_id(); COMMIT"))?;
        Ok(out.trim().parse()?)
    };
    let plain = xid("INSERT INTO a SELECT g, 0 FROM generate_series(1, 300) g; UPDATE a SET y = 1 WHERE x < 4; \
         UPDATE a SET x = 1000 WHERE x = 9; DELETE FROM a WHERE x IN (5, 6); INSERT INTO b VALUES (1)")?;
    let subs = xid("INSERT INTO b VALUES (1); SAVEPOINT s; INSERT INTO b VALUES (2), (3); ROLLBACK TO s; \
         SAVEPOINT t; INSERT INTO b VALUES (4), (5), (6); SAVEPOINT u; INSERT INTO a VALUES (5, 5); RELEASE t")?;
    let copied = xid("CREATE TEMP TABLE gone (x int); COPY b FROM PROGRAM 'seq 1 500'")?;
    let conflicts =
        xid("INSERT INTO a VALUES (1, 1) ON CONFLICT DO NOTHING; INSERT INTO a VALUES (6, 1) ON CONFLICT DO NOTHING")?;
    // Long enough to lie in several segments, with subtransactions in all of them.
    let long = xid(
        "INSERT INTO b SELECT generate_series(1, 9000); SAVEPOINT v; INSERT INTO b SELECT generate_series(1, 30000); \
         RELEASE v; SELECT pg_switch_wal() IS NULL AS s \\gset\nINSERT INTO b SELECT generate_series(1, 1000); UPDATE b SET x = 0 WHERE x = 77",
    )?;
    cluster.sql("BEGIN; INSERT INTO b VALUES (7); SAVEPOINT w; INSERT INTO b VALUES (8); PREPARE TRANSACTION 'p1'")?;
    let prepared: u32 = cluster.sql("SELECT transaction FROM pg_prepared_xacts")?.parse()?;
    cluster.sql("SELECT pg_switch_wal(); COMMIT PREPARED 'p1'")?;
    let dropping = xid("DROP TABLE a")?;
    cluster.sql("BEGIN; CREATE TABLE c (x int); INSERT INTO c VALUES (1); ROLLBACK")?;
    cluster.stop(StopMode::Fast)?;

    let index = whole_index(&cluster)?;
    let ended = |xid: u32, outcome: Outcome| {
        let mut found = index.transactions.iter().filter(|t| t.xid == xid);
        let one = found.next().unwrap_or_else(|| panic!("no transaction {xid}"));
        assert!(found.next().is_none(), "{xid} is there twice");
        assert_eq!(one.end.as_ref().map(|end| end.outcome), Some(outcome), "{xid}");
        one
    };
    let counts = |xid: u32, file: u32| {
        let work = &ended(xid, Outcome::Commit).work;
        let rows = work.iter().find(|work| work.rel.relfilenode == file).map(|work| work.rows).unwrap_or_default();
        [rows.inserted, rows.multi_inserted, rows.updated, rows.hot_updated, rows.deleted]
    };
    assert_eq!(counts(plain, a), [300, 0, 1, 3, 2]);
    assert_eq!(counts(plain, b), [1, 0, 0, 0, 0]);
    assert_eq!(counts(subs, b), [4, 0, 0, 0, 0]);
    assert_eq!(counts(subs, a), [1, 0, 0, 0, 0]);
    assert_eq!(counts(copied, b), [0, 500, 0, 0, 0]);
    assert_eq!(counts(conflicts, a), [1, 0, 0, 0, 0]);
    let [inserted, _, updated, hot, _] = counts(long, b);
    assert_eq!((inserted, updated + hot > 0), (40_000, true));
    assert_eq!(counts(prepared, b), [2, 0, 0, 0, 0]);
    let prepared = ended(prepared, Outcome::Commit);
    assert!(prepared.prepared.as_ref().is_some_and(|p| p.gid == b"p1"));
    assert!(prepared.end.as_ref().is_some_and(|end| end.prepared && end.subxacts.len() == 1));
    let dropped = &ended(dropping, Outcome::Commit).end.as_ref().context("it ended")?.dropped;
    assert!(dropped.iter().any(|rel| rel.relfilenode == a), "{dropped:?}");
    let extent = ended(long, Outcome::Commit).extent.context("it wrote much")?;
    assert!(extent.bytes > 2_000_000, "{extent:?}");
    // What was rolled back to a savepoint is an abort of its own.
    let aborts: Vec<_> =
        index.transactions.iter().filter(|t| t.end.as_ref().is_some_and(|end| end.outcome == Outcome::Abort)).collect();
    assert!(aborts.iter().any(|t| t.work.iter().any(|work| work.rel.relfilenode == b && work.rows.inserted == 2)));
    assert!(aborts.iter().any(|t| t.end.as_ref().is_some_and(|end| !end.dropped.is_empty())), "a table never made");
    let times: Vec<_> = index.transactions.iter().filter_map(|t| t.end.as_ref()).map(|end| end.lsn).collect();
    assert!(times.is_sorted());
    // What is left open is open: nothing.
    let open: Vec<_> = index.transactions.iter().filter(|t| t.end.is_none() && t.xid != 0).collect();
    assert!(open.is_empty(), "{open:?}");
    Ok(())
}

/// Catalog rows brought forward from the index are those that the server has.
fn names(major: u32) -> Result<()> {
    let mut cluster = Cluster::builder(major)
        .wal_segsize_mb(1)
        .conf("wal_keep_size", "4GB")
        .conf("autovacuum", "off")
        .without_fsync()
        .start()?;
    cluster.sql("CHECKPOINT")?;
    let checkpoint: Lsn = cluster.sql("SELECT redo_lsn FROM pg_control_checkpoint()")?.parse()?;
    for round in 0..20 {
        cluster.sql(&format!(
            "CREATE SCHEMA s{round}; CREATE TABLE s{round}.t (x serial PRIMARY KEY, y text) ;
             CREATE VIEW s{round}.v AS SELECT * FROM s{round}.t; CREATE INDEX ON s{round}.t (y);
             ALTER TABLE s{round}.t RENAME TO renamed_{round}; ALTER SCHEMA s{round} RENAME TO schema_{round};
             INSERT INTO schema_{round}.renamed_{round} (y) SELECT 'z' FROM generate_series(1, 50);
             TRUNCATE schema_{round}.renamed_{round}; ALTER TABLE schema_{round}.renamed_{round} SET UNLOGGED;
             VACUUM schema_{round}.renamed_{round}; COMMENT ON TABLE schema_{round}.renamed_{round} IS 'x';
             GRANT SELECT ON schema_{round}.renamed_{round} TO public;
             CREATE TABLE parts_{round} (x int) PARTITION BY RANGE (x);
             CREATE TABLE part_{round} PARTITION OF parts_{round} FOR VALUES FROM (1) TO (9);"
        ))?;
        if round % 3 == 0 {
            cluster.sql(&format!("DROP SCHEMA schema_{round} CASCADE"))?;
        }
        if round == 10 {
            // Rows are moved, dead ones are removed, pages are seen anew.
            cluster.sql("VACUUM pg_class; VACUUM pg_namespace; CHECKPOINT; CREATE DATABASE other")?;
            cluster.sql("ALTER DATABASE other RENAME TO another")?;
        }
    }
    let live = cluster.sql(
        "SELECT c.ctid, c.oid, c.relname, c.relnamespace, c.relfilenode, c.reltablespace, c.relkind, c.relpersistence
         FROM pg_class c",
    )?;
    let spaces = cluster.sql("SELECT ctid, oid, nspname FROM pg_namespace")?;
    let databases = cluster.sql("SELECT ctid, oid, datname FROM pg_database")?;
    let database: u32 = cluster.sql("SELECT oid FROM pg_database WHERE datname = current_database()")?.parse()?;
    let version = pg_wal::PgMajor::from_number(major)?;
    cluster.stop(StopMode::Fast)?;

    let index = whole_index(&cluster)?;
    let mut rows = CatalogRows::default();
    let (mut unknown_old, mut unknown_new) = (0, 0);
    for change in index.catalog.iter().filter(|change| change.lsn >= checkpoint) {
        let applied = rows.apply(change);
        match change.kind {
            CatalogChangeKind::Page { .. } => {}
            CatalogChangeKind::Insert { .. } => unknown_new += usize::from(applied.new.is_none()),
            CatalogChangeKind::Update { .. } => {
                unknown_new += usize::from(applied.new.is_none());
                unknown_old += usize::from(applied.old.is_none());
            }
            CatalogChangeKind::Delete { .. } => unknown_old += usize::from(applied.old.is_none()),
        }
    }
    assert_eq!((unknown_old, unknown_new), (0, 0), "every row that is changed is known");
    let tid = |text: &str| -> Result<TupleId> {
        let (block, offset) = text.trim_matches(['(', ')']).split_once(',').context("a ctid")?;
        Ok(TupleId { block: block.parse()?, offset: offset.parse()? })
    };
    let mut compared = 0;
    for line in live.lines() {
        let words: Vec<&str> = line.split('|').collect();
        let place = RowPlace { database: pg_wal::Oid(database), catalog: Catalog::Class, at: tid(words[0])? };
        let oid: u32 = words[1].parse()?;
        let Some(row) = rows.get(&place) else {
            assert!(oid < 16384, "{line} is not known");
            continue;
        };
        let row = row.class(version).context("it is long enough")?;
        let ours = format!(
            "{}|{}|{}|{}|{}|{}|{}|{}",
            words[0],
            row.oid,
            String::from_utf8_lossy(&row.name),
            row.namespace,
            row.relfilenode,
            row.tablespace,
            char::from(row.kind),
            char::from(row.persistence)
        );
        assert_eq!(ours, line);
        compared += 1;
    }
    assert!(compared > 150, "only {compared} rows");
    for (catalog, database, text, count) in
        [(Catalog::Namespace, database, &spaces, 13), (Catalog::Database, 0, &databases, 1)]
    {
        let mut compared = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split('|').collect();
            let place = RowPlace { database: pg_wal::Oid(database), catalog, at: tid(words[0])? };
            let Some((oid, name)) = rows.get(&place).and_then(RowImage::oid_and_name) else {
                assert!(words[1].parse::<u32>()? < 16384, "{line} is not known");
                continue;
            };
            assert_eq!(format!("{}|{oid}|{}", words[0], String::from_utf8_lossy(name)), line);
            compared += 1;
        }
        assert!(compared >= count, "only {compared} of {catalog:?}");
    }
    Ok(())
}

#[test]
fn transactions_and_their_rows() -> Result<()> {
    majors()?.into_iter().try_for_each(transactions)
}

#[test]
fn names_are_those_of_the_server() -> Result<()> {
    majors()?.into_iter().try_for_each(names)
}
