//! WAL as crashes and promotions leave it: overwritten continuations, timelines that begin in the middle of a segment.

mod support;

use std::time::Duration;

use anyhow::Result;
use pg_wal::{Expected, Timeline, scan_segment};
use support::{compare, majors, segments, waldump, walk};
use testkit::pg::{Cluster, StopMode};

fn builder(major: u32) -> testkit::pg::ClusterBuilder {
    Cluster::builder(major).wal_segsize_mb(1).conf("wal_keep_size", "4GB").conf("checkpoint_timeout", "1h")
}

/// As PostgreSQL's own `src/test/recovery/t/026_overwrite_contrecord.pl`: the server crashes while a record that
/// crosses segments is only on disk in part, and after recovery goes on over its missing end.
fn overwritten(major: u32) -> Result<()> {
    let mut cluster = builder(major).start()?;
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) g; CHECKPOINT; SELECT pg_switch_wal()")?;
    let before = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    cluster.sql("SELECT pg_logical_emit_message(false, 'lost', repeat('0123456789', 250000))")?;
    cluster.kill9()?;
    for (path, _) in segments(&cluster)? {
        // All segments after the one in which the long record begins are lost.
        if *path.file_name().unwrap_or_default().to_string_lossy() > *before {
            std::fs::remove_file(path)?;
        }
    }
    cluster.start_again()?;
    cluster.sql("INSERT INTO t SELECT generate_series(1, 5000)")?;
    cluster.stop(StopMode::Fast)?;
    let segments = segments(&cluster)?;
    let walk = walk(&segments)?;
    assert_eq!(walk.overwritten.len(), 1, "{:X?}", walk.overwritten);
    let lost = pg_wal::Lsn(walk.overwritten[0]);
    let told = walk.lines.iter().find(|line| line.meaning.starts_with(&format!("OVERWRITE_CONTRECORD lsn {lost};")));
    assert!(told.is_some(), "no record says that {lost} was lost");
    if major != 14 {
        compare(&walk.lines, &waldump(&cluster, &segments[0].0, 1, &[])?);
    }
    Ok(())
}

#[test]
fn lost_ends_of_records_are_dropped() -> Result<()> {
    majors()?.into_iter().try_for_each(overwritten)
}

/// A standby is promoted in the middle of a segment: the new timeline's first segment begins with pages of the old.
#[test]
fn timelines_begin_inside_segments() -> Result<()> {
    let cluster = builder(15).conf("wal_level", "replica").start()?;
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) g; SELECT pg_switch_wal()")?;
    cluster.sql("INSERT INTO t SELECT generate_series(1, 3000)")?;
    let mut standby = cluster.standby()?;
    standby.wait_replayed(&cluster.sql("SELECT pg_current_wal_flush_lsn()")?, Duration::from_secs(60))?;
    standby.promote()?;
    standby.sql("INSERT INTO t SELECT generate_series(1, 100)")?;
    standby.sql("SELECT pg_create_restore_point('on the new one')")?;
    let name = standby.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    assert!(name.starts_with("00000002"), "{name}");
    standby.stop(StopMode::Fast)?;

    let bytes = std::fs::read(standby.data_dir().join("pg_wal").join(&name))?;
    let facts = scan_segment(&bytes, Some(&Expected { timeline: Some(Timeline(2)), ..Expected::default() }))?;
    assert_eq!(facts.timeline_last, Timeline(2));
    let first_of_new = facts.checkpoints.iter().find(|checkpoint| checkpoint.timeline == Timeline(2));
    assert!(first_of_new.is_some() || facts.info.timeline == Timeline(1));
    // As a segment of the old timeline it is refused from its first page of the new one on.
    let old = Expected { timeline: Some(Timeline(1)), ..Expected::default() };
    let refused = match scan_segment(&bytes, Some(&old)) {
        Ok(facts) => facts.unreadable.is_some_and(|unreadable| unreadable.reason.to_string().contains("timeline")),
        Err(error) => error.to_string().contains("timeline"),
    };
    assert!(refused);
    Ok(())
}

/// What the facts of a segment say is what the server said.
#[test]
fn facts_agree_with_the_server() -> Result<()> {
    let mut cluster = builder(15).conf("archive_mode", "off").start()?;
    let system_id = cluster.sql("SELECT system_identifier FROM pg_control_system()")?;
    cluster.sql("CREATE TABLE t (x int); SELECT pg_switch_wal()")?;
    let name = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    for value in 0..7 {
        cluster.sql(&format!("INSERT INTO t VALUES ({value})"))?;
    }
    cluster.sql("BEGIN; INSERT INTO t VALUES (8); ROLLBACK")?;
    let point = cluster.sql("SELECT pg_create_restore_point('here')")?;
    cluster.sql("CHECKPOINT")?;
    let checkpoint = cluster.sql("SELECT checkpoint_lsn || ' ' || redo_lsn FROM pg_control_checkpoint()")?;
    let switched = cluster.sql("SELECT pg_switch_wal()")?;
    let bytes = std::fs::read(cluster.data_dir().join("pg_wal").join(&name))?;
    cluster.stop(StopMode::Immediate)?;

    let expected = Expected {
        system_id: Some(system_id.parse()?),
        segment_size: Some(1 << 20),
        timeline: Some(Timeline(1)),
        ..Expected::default()
    };
    let facts = scan_segment(&bytes, Some(&expected))?;
    assert!(facts.switched && facts.is_whole());
    assert_eq!((facts.commits, facts.aborts), (7, 1));
    let points: Vec<_> = facts.restore_points.iter().map(|point| point.end_lsn.to_string()).collect();
    assert_eq!(points, [point]);
    assert_eq!(facts.restore_points[0].name, b"here");
    let checkpoints: Vec<_> = facts.checkpoints.iter().map(|at| format!("{} {}", at.lsn, at.redo)).collect();
    assert_eq!(checkpoints, [checkpoint]);
    assert_eq!(facts.last_lsn.to_string(), switched);
    assert_eq!(facts.valid_end, facts.info.end());
    let times = facts.commit_times.expect("there are commits");
    assert!(times.earliest < times.latest);
    // Another cluster's WAL, another place: refused with the first page.
    let other = Expected { system_id: Some(pg_wal::SystemId(1)), ..expected };
    assert!(matches!(scan_segment(&bytes, Some(&other)), Err(pg_wal::WalError::OtherSystem { .. })));
    let other = Expected { segment_size: Some(16 << 20), ..expected };
    assert!(matches!(scan_segment(&bytes, Some(&other)), Err(pg_wal::WalError::OtherSegmentSize { .. })));
    let other = Expected { start: Some(pg_wal::Lsn(0)), ..expected };
    assert!(matches!(scan_segment(&bytes, Some(&other)), Err(pg_wal::WalError::OtherAddress { .. })));
    Ok(())
}
