//! The same records, blocks, images and meanings as `pg_waldump`, over a workload of every resource manager.

mod support;

use anyhow::Result;
use support::workload::workload;
use support::{builtin_rmgrs, compare, count_rmgrs, majors, segments, waldump, walk};
use testkit::pg::{Cluster, StopMode};

/// Runs the workload on one version and compares. One test per version so that they can be told apart.
fn check(major: u32) -> Result<()> {
    if !majors()?.contains(&major) {
        // Only 15 must be there (`majors` fails without it); the others come with the project's set-up.
        assert_ne!(major, 15);
        return Ok(());
    }
    let mut cluster = Cluster::builder(major)
        .wal_segsize_mb(1)
        .conf("wal_level", "logical")
        .conf("max_prepared_transactions", "20")
        .conf("track_commit_timestamp", "on")
        .conf("wal_keep_size", "4GB")
        .conf("max_wal_size", "4GB")
        .conf("checkpoint_timeout", "1h")
        .conf("autovacuum", "off")
        .without_fsync()
        .start()?;
    workload(&mut cluster)?;
    cluster.stop(StopMode::Fast)?;

    let segments = segments(&cluster)?;
    let walk = walk(&segments)?;
    let counts = count_rmgrs(&walk.lines);
    for rmgr in builtin_rmgrs().iter().filter(|name| *name != "CLOG") {
        assert!(counts.contains_key(rmgr), "the workload made no record of {rmgr}: {counts:?}");
    }
    assert!(walk.joined > 20, "only {} records crossed segments", walk.joined);
    assert!(walk.whole_segments >= 3, "only {} segments were one continuation", walk.whole_segments);
    assert!(walk.images > 100, "only {} images", walk.images);
    assert!(walk.overwritten.is_empty());

    let last = walk.lines.last().map(|line| line.meaning.as_str()).unwrap_or_default();
    assert!(last.starts_with("CHECKPOINT_SHUTDOWN"), "WAL ends with {last}");
    if major == 14 {
        // There is no pg_waldump of 14 to be had, and no other reads its pages. The walk itself has checked each
        // checksum and each link, and that WAL ends where the server ended.
        return Ok(());
    }
    let saved = cluster.make_dir("saved")?;
    let extra: &[&str] = if major >= 16 { &["--save-fullpage", saved.to_str().unwrap_or_default()] } else { &[] };
    std::fs::remove_dir(&saved)?;
    compare(&walk.lines, &waldump(&cluster, &segments[0].0, 1, extra)?);
    if major >= 16 {
        let mut compared = 0;
        for entry in std::fs::read_dir(&saved)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // The first nine characters are the timeline.
            let ours = walk.pages.get(&name[9..]).unwrap_or_else(|| panic!("no page {name}"));
            assert!(*ours == std::fs::read(entry.path())?, "page {name}");
            compared += 1;
        }
        assert_eq!(compared, walk.pages.len());
    }
    Ok(())
}

#[test]
fn postgresql_14() -> Result<()> {
    check(14)
}

#[test]
fn postgresql_15() -> Result<()> {
    check(15)
}

#[test]
fn postgresql_16() -> Result<()> {
    check(16)
}

#[test]
fn postgresql_17() -> Result<()> {
    check(17)
}

#[test]
fn postgresql_18() -> Result<()> {
    check(18)
}
