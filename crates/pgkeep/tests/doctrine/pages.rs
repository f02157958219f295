//! A restored cluster that replayed to the same place is compared with its origin page by page, and asked by
//! PostgreSQL's own checks, after a backup that was taken while everything moved.

use crate::support::Site;
use crate::world::{bare, load, open, protect_locally, restore};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use testkit::compare::{amcheck, checksums, compare_dirs, dumps_are_equal, index_only_scans_agree};
use testkit::load::fill;
use testkit::pg::{Cluster, StopMode};

/// What makes files come, go, shrink and change their names.
fn churn(round: usize) -> Vec<(&'static str, String)> {
    let index = format!("churn_{}", round % 3);
    vec![
        (
            "postgres",
            "DELETE FROM orders WHERE id % 11 = 0; UPDATE events SET value = value + 1 WHERE id % 40 = 0".into(),
        ),
        ("postgres", "VACUUM orders, events".into()),
        ("postgres", format!("CREATE TABLE {index} AS SELECT g, md5(g::text) AS t FROM generate_series(1, 5000) g")),
        ("postgres", format!("CREATE INDEX ON {index} (t); CREATE INDEX ON {index} USING hash (g)")),
        ("postgres", "CREATE DATABASE passing".into()),
        ("passing", "CREATE TABLE t AS SELECT g FROM generate_series(1, 5000) g; VACUUM t".into()),
        (
            "postgres",
            "TRUNCATE shrinking; INSERT INTO shrinking SELECT g, repeat('x', 200) FROM generate_series(1, 3000) g"
                .into(),
        ),
        ("postgres", "DELETE FROM shrinking WHERE id > 100".into()),
        ("postgres", "VACUUM (TRUNCATE) shrinking".into()),
        ("postgres", "DROP DATABASE passing".into()),
        ("postgres", format!("ALTER TABLE {index} SET TABLESPACE fast")),
        ("postgres", "REINDEX TABLE documents; VACUUM FULL shrinking".into()),
        ("postgres", "INSERT INTO fleeting SELECT g FROM generate_series(1, 2000) g; SELECT nextval('s')".into()),
        ("postgres", format!("DROP TABLE {index}")),
    ]
}

/// How the restored cluster is brought to the same place as its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Replay to a restore point at the end, and shut down there.
    ShutdownAtTarget,
    /// As a standby that follows the archive to its end.
    Standby,
}

fn moving_origin(major: u32) -> Site {
    // Only what the test itself does changes pages.
    let mut site = bare(Cluster::builder(major).without_fsync().conf("autovacuum", "off"));
    let fast = site.cluster.make_dir("fast").unwrap();
    site.cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", fast.display())).unwrap();
    site.cluster
        .sql("CREATE TABLE shrinking (id int, t text); CREATE UNLOGGED TABLE fleeting (g int); CREATE SEQUENCE s")
        .unwrap();
    site.cluster.sql("CREATE DATABASE lasting TABLESPACE fast").unwrap();
    fill(&site.cluster, 12).unwrap();
    protect_locally(&mut site);
    site
}

/// Takes a backup while load and churn are at work, and lets them go on for a while.
fn backup_while_all_moves(site: &Site) {
    let load = load(&site.cluster);
    let (stop, steps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            // Whole rounds only: what is made is removed again.
            for round in 0.. {
                for (database, sql) in churn(round) {
                    site.cluster.psql_db(database, &sql).unwrap();
                    steps.fetch_add(1, Ordering::SeqCst);
                }
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        let more_steps = |from: usize, count: usize| {
            site.wait_for("things move", || mover.is_finished() || steps.load(Ordering::SeqCst) >= from + count);
        };
        more_steps(0, 3);
        // How fast either goes is the machine's affair; one of the backups meets enough.
        let met = (0..10).any(|_| {
            let before = steps.load(Ordering::SeqCst);
            let said = site.run(&["backup", "--json"]);
            stop.store(said.code != 0, Ordering::SeqCst);
            let backup = said.expect(0).json();
            assert_eq!(backup["damaged"].as_array().unwrap().len(), 0, "{backup}");
            steps.load(Ordering::SeqCst) >= before + 6
        });
        let now = steps.load(Ordering::SeqCst);
        more_steps(now, 16);
        stop.store(true, Ordering::SeqCst);
        assert!(met, "no backup met a moving cluster");
    });
    let ledger = load.stop();
    ledger.verify_all(&site.cluster).unwrap();
}

fn equals_origin(major: u32, way: Way) {
    let mut site = moving_origin(major);
    backup_while_all_moves(&site);
    // Every page reaches its file here. A restored server writes all it has changed when it replays this checkpoint
    // and shuts down; what comes after is no page.
    site.cluster.sql("CHECKPOINT; SELECT pg_create_restore_point('the end')").unwrap();
    let end = site.cluster.sql("SELECT pg_current_wal_insert_lsn()").unwrap();
    site.cluster.switch_wal().unwrap();
    // A clean stop waits for the archiver.
    site.cluster.stop(StopMode::Fast).unwrap();
    let elsewhere = format!("fast={}", site.path("copy-fast"));
    let bin_dir = site.cluster.install().bin_dir().to_string_lossy().into_owned();
    let target = site.path("copy");
    let mut copy = match way {
        Way::ShutdownAtTarget => {
            let args = ["restore", "--to-dir", &target, "--tablespace", &elsewhere, "--restore-point", "the end"];
            let args = [&args[..], &["--action", "shutdown", "--start", "--pg-bin", &bin_dir, "--json"]].concat();
            let restored = site.run(&args).expect(0).json();
            assert_eq!(restored["server"]["state"], "shut-down", "{restored}");
            std::fs::remove_file(restored["server"]["log"].as_str().unwrap()).unwrap();
            Cluster::adopt(target.as_ref(), major).unwrap()
        }
        Way::Standby => {
            let dir = restore(&site, "copy", &["--standby", "--tablespace", &elsewhere]);
            let mut standby = Cluster::adopt(&dir, major).unwrap();
            standby.start_again().unwrap();
            standby.wait_replayed(&end, Duration::from_secs(60)).unwrap();
            standby.stop(StopMode::Fast).unwrap();
            standby
        }
    };
    let comparison = compare_dirs(site.cluster.data_dir(), copy.data_dir()).unwrap();
    comparison.require_equal().unwrap();
    assert!(comparison.files > 500 && comparison.pages > 3000, "{comparison:?}");
    checksums(&copy).unwrap();

    match way {
        // It would stop at its target again.
        Way::ShutdownAtTarget => copy.set_option("recovery_target_action", "promote"),
        Way::Standby => std::fs::remove_file(copy.data_dir().join("standby.signal")).unwrap(),
    }
    copy.start_again().unwrap();
    copy.wait_for("SELECT pg_is_in_recovery()", "f", Duration::from_secs(60)).unwrap();
    site.cluster.start_again().unwrap();
    dumps_are_equal(&site.cluster, &copy).unwrap();
    index_only_scans_agree(&copy, "postgres").unwrap();
    amcheck(&copy).unwrap();
    copy.stop(StopMode::Fast).unwrap();
    checksums(&copy).unwrap();

    // The comparison is not of a file with itself: a recovery that goes on differs.
    let latest = restore(&site, "latest", &["--latest", "--tablespace", &format!("fast={}", site.path("latest-fast"))]);
    let latest = open(&site, &latest);
    dumps_are_equal(&site.cluster, &latest).unwrap();
}

#[test]
fn restored_cluster_equals_origin_page_by_page() {
    equals_origin(15, Way::ShutdownAtTarget);
}

#[test]
fn restored_standby_equals_origin_page_by_page_on_18() {
    equals_origin(18, Way::Standby);
}
