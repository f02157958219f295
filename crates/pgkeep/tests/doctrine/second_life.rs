//! A restored cluster takes its origin's place and archives on a new timeline into the same repository; afterwards both
//! lives can be restored, and "latest" is the second one.

use crate::world::{bare, load, lsn, open, protect_locally, restore, try_restore};
use std::time::Duration;
use testkit::load::{Ledger, Target};
use testkit::pg::{Cluster, StopMode};

#[test]
fn both_lives_of_a_cluster_can_be_restored() {
    let mut site = bare(Cluster::builder(15).without_fsync().wal_segsize_mb(1));
    protect_locally(&mut site);
    let first_load = load(&site.cluster);
    first_load.wait_for_more(20).unwrap();
    site.run(&["backup"]).expect(0);
    first_load.wait_for_more(40).unwrap();
    let fork = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    first_load.wait_for_more(40).unwrap();
    let later = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    first_load.wait_for_more(40).unwrap();
    let first = first_load.stop();
    site.archive();
    site.cluster.stop(StopMode::Fast).unwrap();

    let said = try_restore(&site, "second", &["--lsn", &fork, "--exclusive", "--archive"]);
    said.expect(4).says(&["archives as its origin does"]);
    let mut second = Cluster::adopt(&site.dir.join("second"), 15).unwrap();
    second.start_again().unwrap();
    second.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
    assert_eq!(second.sql("SHOW archive_mode").unwrap(), "on");
    first.verify_before(&second, Target::Lsn(lsn(&fork))).unwrap();
    let second_load = load(&second);
    second_load.wait_for_more(60).unwrap();
    let notes = after_fork(first.clone(), lsn(&fork), second_load.stop());
    let segment = second.switch_wal().unwrap();
    assert!(segment.starts_with("00000002"), "{segment}");
    second.wait_archived(&segment, Duration::from_secs(60)).unwrap();
    notes.verify_all(&second).unwrap();

    // From the first life's backup, across the fork.
    let latest = open(&site, &restore(&site, "latest", &["--latest"]));
    notes.verify_all(&latest).unwrap();
    drop(latest);
    // The first life after the fork is still there for who asks for it.
    let other = open(&site, &restore(&site, "other", &["--lsn", &later, "--exclusive", "--timeline", "1"]));
    let verdict = first.verify_before(&other, Target::Lsn(lsn(&later))).unwrap();
    assert!(verdict.required >= 80 && verdict.excluded >= 30, "{verdict:?}");
    drop(other);

    // The first one wakes up and archives again. That does not make it the production one.
    site.cluster.start_again().unwrap();
    site.cluster.sql("CREATE TABLE awake (g int)").unwrap();
    site.archive();
    let target = site.path("planned");
    let plan = site.run(&["restore", "--to-dir", &target, "--latest", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["plan"]["timeline"], 2, "{plan}");
    site.cluster.stop(StopMode::Fast).unwrap();

    // The second life is backed up in its turn, and is enough by itself.
    let config = std::fs::read_to_string(site.config()).unwrap();
    let (from, to) = (site.cluster.conninfo(), second.conninfo());
    assert!(config.contains(&from), "{config}");
    std::fs::write(site.config(), config.replace(&from, &to)).unwrap();
    let backup = site.run(&["backup", "--json"]).expect(0).json();
    assert_eq!(backup["timeline"], 2, "{backup}");
    second.stop(StopMode::Fast).unwrap();
    let again = open(&site, &restore(&site, "again", &[]));
    notes.verify_all(&again).unwrap();
    assert_eq!(again.sql("SELECT to_regclass('awake') IS NULL").unwrap(), "t");
    site.run(&["verify", "--all", "--deep"]).expect(0);
}

/// What must be in the second life: the first one's commits up to the fork, and its own.
fn after_fork(first: Ledger, fork: u64, second: Ledger) -> Ledger {
    let mut notes = Ledger::default();
    for mut entry in first.entries {
        if entry.lsn_before.is_none_or(|lsn| lsn > fork) {
            continue;
        }
        // At the fork itself it may be either.
        entry.acknowledged &= entry.lsn_after.is_some_and(|lsn| lsn <= fork);
        notes.entries.push(entry);
    }
    notes.extend(second);
    notes
}
