//! The index against PostgreSQL's own WAL summaries: the same blocks and the same limits, exactly.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pg_wal::index::Changes;
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
